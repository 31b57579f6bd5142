// SPDX-License-Identifier: Apache-2.0
#include "kvbm/layout/internal/overlap.hpp"

#include <algorithm>
#include <array>

namespace kvbm::internal {
namespace {

// A step n in [low, high] with -below < start + n * stride < above, if there is one.
std::optional<int64_t> step_into(int64_t start, int64_t stride, int64_t low, int64_t high,
                                 int64_t below, int64_t above) {
  int64_t nearest = low;
  if (stride > 0) {
    nearest = -start / stride;
    if (-start % stride < 0) --nearest;  // rounds down, also below zero
  }
  for (const int64_t n : {std::clamp(nearest, low, high), std::clamp(nearest + 1, low, high)}) {
    const int64_t at = start + n * stride;
    if (-below < at && at < above) return n;
  }
  return std::nullopt;
}

}  // namespace

std::optional<ChunkDistance> find_overlap(const PageMapSpec& map) {
  const auto chunk = static_cast<int64_t>(map.chunk_bytes);
  const auto num_blocks = int64_t{map.num_blocks};
  // An axis with one entry has no say, whatever its stride is.
  const int64_t block_stride = num_blocks > 1 ? static_cast<int64_t>(map.block_stride) : 0;
  const int64_t layer_stride = map.layers.count > 1 ? static_cast<int64_t>(map.layer_stride) : 0;
  const int64_t outer_stride = map.outer_dim > 1 ? static_cast<int64_t>(map.outer_stride) : 0;

  // A pair of chunks may be taken in either order, so layers need only go forward.
  const int64_t max_outers = int64_t{map.outer_dim} - 1;
  for (int64_t layers = 0; layers < int64_t{map.layers.count}; ++layers) {
    for (int64_t outers = -max_outers; outers <= max_outers; ++outers) {
      const int64_t start = layers * layer_stride + outers * outer_stride;
      const bool same_chunk = layers == 0 && outers == 0;
      if (same_chunk && num_blocks == 1) continue;
      const int64_t low = same_chunk ? 1 : 1 - num_blocks;
      const std::optional<int64_t> blocks =
          step_into(start, block_stride, low, num_blocks - 1, chunk, chunk);
      if (blocks) return ChunkDistance{*blocks, layers, outers};
    }
  }
  return std::nullopt;
}

bool overlap(const PageMap& a, const PageMap& b, int64_t distance) {
  const auto stride =
      static_cast<int64_t>(a.num_blocks() > 1 ? a.block_stride() : b.block_stride());
  const int64_t low = 1 - int64_t{a.num_blocks()};
  const int64_t high = int64_t{b.num_blocks()} - 1;
  const auto at = [](const PageMap& map, uint32_t layer, uint32_t outer) {
    return static_cast<int64_t>(layer * map.layer_stride() + outer * map.outer_stride());
  };
  for (uint32_t layer_a = 0; layer_a < a.layers().count; ++layer_a) {
    for (uint32_t outer_a = 0; outer_a < a.outer_dim(); ++outer_a) {
      for (uint32_t layer_b = 0; layer_b < b.layers().count; ++layer_b) {
        for (uint32_t outer_b = 0; outer_b < b.outer_dim(); ++outer_b) {
          const int64_t start = distance + at(b, layer_b, outer_b) - at(a, layer_a, outer_a);
          if (step_into(start, stride, low, high, static_cast<int64_t>(b.chunk_bytes()),
                        static_cast<int64_t>(a.chunk_bytes()))) {
            return true;
          }
        }
      }
    }
  }
  return false;
}

}  // namespace kvbm::internal
