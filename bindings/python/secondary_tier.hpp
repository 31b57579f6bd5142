// SPDX-License-Identifier: Apache-2.0
// kvbm._core.SecondaryTier: a disk below an engine's own host pool.
#pragma once

#include <nanobind/nanobind.h>

namespace kvbm {

void bind_secondary_tier(nanobind::module_& module);

}  // namespace kvbm
