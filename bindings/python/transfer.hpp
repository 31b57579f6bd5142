// SPDX-License-Identifier: Apache-2.0
// kvbm.TransferManager: copies blocks between registered layouts, for Python.
#pragma once

#include <nanobind/nanobind.h>

namespace kvbm {

void bind_transfer(nanobind::module_& module);

}  // namespace kvbm
