// SPDX-License-Identifier: Apache-2.0
// kvbm.BlockManager, its blocks as tensors, and what goes with them.
#pragma once

#include <nanobind/nanobind.h>

namespace kvbm {

void bind_block_manager(nanobind::module_& module);

}  // namespace kvbm
