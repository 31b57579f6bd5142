// SPDX-License-Identifier: Apache-2.0
// Match: the part of a sequence that the tiers below the engine have, pinned until it is dropped.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "kvbm/base/ids.hpp"
#include "kvbm/blocks/block.hpp"
#include "kvbm/blocks/block_key.hpp"

namespace kvbm {

/// What one layer group needs from the tiers: its blocks of the positions [first, first +
/// blocks.size()).
struct MatchedGroup {
  GroupId group;
  uint32_t first = 0;
  std::vector<ImmutableBlock> blocks;  ///< pinned, each in the fastest tier that has it
  std::optional<BlockKey> parent;      ///< of blocks.front(), if it has one
};

/// Positions [first_block(), num_blocks()) of a sequence can be restored for every layer group.
/// A last-window group holds only the blocks that its window reaches.
/// Ownership: pins its blocks; move-only. Threads: one thread at a time.
struct Match {
  uint32_t first_block = 0;  ///< positions below are with the engine already
  uint32_t num_blocks = 0;   ///< >= first_block
  std::vector<MatchedGroup> groups;

  [[nodiscard]] bool empty() const noexcept { return num_blocks == first_block; }
};

}  // namespace kvbm
