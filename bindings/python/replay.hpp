// SPDX-License-Identifier: Apache-2.0
// kvbm.replay: plays a trace through the tiers and gives the report as a dict.
#pragma once

#include <nanobind/nanobind.h>

namespace kvbm {

void bind_replay(nanobind::module_& module);

}  // namespace kvbm
