// SPDX-License-Identifier: Apache-2.0
// What a registry has counted, as a Python dictionary.
#pragma once

#include <nanobind/nanobind.h>

#include "kvbm/base/metrics.hpp"

namespace kvbm {

/// Counters and gauges by series_name.
[[nodiscard]] nanobind::dict statistics_of(const MetricsRegistry& metrics);

}  // namespace kvbm
