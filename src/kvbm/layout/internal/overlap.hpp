// SPDX-License-Identifier: Apache-2.0
// Exact overlap tests between grids of chunks. They visit layers and outer entries, never blocks.
#pragma once

#include <cstdint>
#include <optional>

#include "kvbm/layout/page_map.hpp"

namespace kvbm::internal {

/// The distance, in entries of each axis, between two chunks that share a byte.
struct ChunkDistance {
  int64_t blocks = 0;
  int64_t layers = 0;
  int64_t outers = 0;
};

/// Two chunks of one map that share a byte, if there are any.
/// Requires: the last chunk ends below 2^63.
[[nodiscard]] std::optional<ChunkDistance> find_overlap(const PageMapSpec& map);

/// Whether a chunk of `a` shares a byte with a chunk of `b`, which starts `distance` bytes after
/// `a`. Requires: equal block strides, unless one of them holds a single block; both end below
/// 2^62.
[[nodiscard]] bool overlap(const PageMap& a, const PageMap& b, int64_t distance);

}  // namespace kvbm::internal
