// SPDX-License-Identifier: Apache-2.0
#include "kvbm/replay/block_shape.hpp"

#include <algorithm>

namespace kvbm {
namespace {

constexpr uint64_t kMaxHeads = 8192;     // of the configuration's num_heads
constexpr uint64_t kMaxHeadDim = 65536;  // of its head_dim

struct Halves {
  uint32_t num_layers;
  uint32_t outer_dim;
};
// As a model has them, for odd sizes, and for very large ones.
constexpr Halves kHalves[] = {{4, 2}, {1, 1}, {512, 2}};

}  // namespace

std::optional<BlockShape> block_shape_of(uint64_t rank_block_bytes) noexcept {
  if (rank_block_bytes == 0) return std::nullopt;
  for (const Halves& halves : kHalves) {
    const uint64_t num_chunks = uint64_t{halves.num_layers} * halves.outer_dim;
    if (rank_block_bytes % num_chunks != 0) continue;
    const uint64_t chunk_bytes = rank_block_bytes / num_chunks;
    // The largest head that divides the chunk leaves the fewest heads.
    uint64_t head_dim = std::min(chunk_bytes, kMaxHeadDim);
    while (chunk_bytes % head_dim != 0) --head_dim;
    const uint64_t num_heads = chunk_bytes / head_dim;
    if (num_heads > kMaxHeads) continue;
    return BlockShape{.num_layers = halves.num_layers,
                      .outer_dim = halves.outer_dim,
                      .num_heads = static_cast<uint32_t>(num_heads),
                      .head_dim = static_cast<uint32_t>(head_dim)};
  }
  return std::nullopt;
}

}  // namespace kvbm
