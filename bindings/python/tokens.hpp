// SPDX-License-Identifier: Apache-2.0
// kvbm.TokenBlockSequence: what names the blocks of a growing token sequence.
#pragma once

#include <nanobind/nanobind.h>

namespace kvbm {

void bind_tokens(nanobind::module_& module);

}  // namespace kvbm
