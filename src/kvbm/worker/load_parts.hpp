// SPDX-License-Identifier: Apache-2.0
// Into which ranges of layers a load is split, so that an engine need not wait for all of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvbm/layout/layout_config.hpp"

namespace kvbm {

/// Each part costs a submission, some tens of microseconds on a GPU.
inline constexpr size_t kMaxLoadParts = 8;

/// Ranges that together are layers [0, num_layers), ascending: at most kMaxLoadParts, and so many
/// that the first has some `min_part_bytes`, or one. The first is the smallest, as the engine waits
/// for it with nothing to compute; the others grow to four times as much and no further, as it
/// computes what the last one holds when all the loading is over.
/// Units: `layer_bytes` of all blocks of the load.
/// Requires: num_layers is not 0.
[[nodiscard]] std::vector<LayerRange> split_load(uint32_t num_layers, uint64_t layer_bytes,
                                                 uint64_t min_part_bytes);

}  // namespace kvbm
