// SPDX-License-Identifier: Apache-2.0
// What a format means for memory: its strides in a block without gaps, and what it cannot be.
#pragma once

#include "kvbm/base/result.hpp"
#include "kvbm/layout/kv_block_layout.hpp"
#include "kvbm/layout/layout_config.hpp"
#include "kvbm/layout/page_map.hpp"

namespace kvbm::internal {

/// Of an unknown format: those of layer and outer, around opaque chunks.
/// Requires: a valid config, for the format too.
[[nodiscard]] BlockStrides packed_strides(const LayoutConfig& config, const KvBlockLayout& format);

/// Errors: kInvalidArgument (a known format in which layers cannot be in memory of their own).
[[nodiscard]] Status check_layers_apart(const KvBlockLayout& format);

}  // namespace kvbm::internal
