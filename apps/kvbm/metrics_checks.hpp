// SPDX-License-Identifier: Apache-2.0
// The lines of `kvbm doctor --metrics`: what a page of metrics says about a running kvbm.
#pragma once

#include <string_view>
#include <vector>

#include "kvbm/base/result.hpp"
#include "kvbm/runtime/metrics_page.hpp"

#include "apps/kvbm/doctor_checks.hpp"

namespace kvbm {

struct NamedFinding {
  std::string_view name;
  DoctorFinding finding;
};

/// Errors: kNotFound (a page without the series of kvbm).
[[nodiscard]] Result<std::vector<NamedFinding>> examine_metrics(const MetricsPage& page);

}  // namespace kvbm
