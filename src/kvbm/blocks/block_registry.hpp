// SPDX-License-Identifier: Apache-2.0
// BlockRegistry: one prefix index over the pools of all tiers and layer groups.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kvbm/base/ids.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/blocks/block.hpp"
#include "kvbm/blocks/block_key.hpp"
#include "kvbm/blocks/block_pool.hpp"
#include "kvbm/blocks/retention.hpp"

namespace kvbm {

namespace internal {
struct RegistryState;
}  // namespace internal

struct RegistryOptions {
  std::vector<GroupSpec> groups;
};

/// The keys of one group for positions 0, 1, … of a sequence.
struct GroupKeys {
  GroupId group;
  std::span<const BlockKey> keys;
};

struct MatchOptions {
  /// Blocks below this position are already with the caller: they need not be resident and are not
  /// pinned, but their copies are touched.
  uint32_t first_block = 0;
};

/// blocks[i] holds position first + i, from the nearest tier that has it.
struct GroupMatch {
  GroupId group;
  uint32_t first = 0;
  std::vector<ImmutableBlock> blocks;
};

/// Every group can go on after `num_blocks` blocks. `groups` is in the order of the question.
struct PrefixMatch {
  uint32_t num_blocks = 0;
  std::vector<GroupMatch> groups;
};

struct RegistryOccupancy {
  size_t num_keys = 0;  ///< resident in at least one tier
  size_t num_ghosts =
      0;  ///< parents of resident keys that are resident nowhere; never more than keys
  size_t memory_bytes = 0;  ///< of index and pools, as far as it was ever used
};

/// A key is in the index as long as a pool has a block for it. Beside these there are ghosts: the
/// direct parents of resident keys that are themselves absent, kept so that a chain is found
/// together again when the parent comes back.
/// Ownership: move-only handle; pools and guards share what it holds.
/// Errors: use after a move is a ContractViolation.
/// Threads: any thread; one lock for the index and all its pools.
class BlockRegistry {
 public:
  /// Errors: kInvalidArgument for no group or the same group twice.
  [[nodiscard]] static Result<BlockRegistry> create(RegistryOptions options);

  BlockRegistry(BlockRegistry&& other) noexcept : state_(std::exchange(other.state_, nullptr)) {}
  BlockRegistry& operator=(BlockRegistry&& other) noexcept {
    BlockRegistry moved(std::move(other));
    std::swap(state_, moved.state_);
    return *this;
  }
  ~BlockRegistry() {
    if (state_ != nullptr) drop();
  }

  /// Allocates all that the pool and its part of the index will ever need: later calls allocate
  /// nothing but the vectors they return.
  /// Errors: kInvalidArgument for an unknown group, no blocks, or a pool that exists.
  [[nodiscard]] Result<BlockPool> create_pool(const PoolSpec& spec);
  /// Another handle to a pool.
  [[nodiscard]] std::optional<BlockPool> pool(TierId tier, GroupId group) const;

  /// The longest prefix that every group of `groups` can restore: a full-prefix group needs all
  /// positions from first_block on in some tier, a last-window group those of its window. What is
  /// needed is pinned in the nearest tier that has it. All other copies of those positions, and
  /// those of a full-prefix group below first_block, are touched: their tick is renewed, deepest
  /// first, so that the disk copy of a hot prefix does not age. Contract: groups are registered,
  /// not empty and named once; keys are of their group; first_block is not above the shortest list
  /// of keys.
  [[nodiscard]] PrefixMatch match(std::span<const GroupKeys> groups, MatchOptions options = {});

  /// A pin of one block. Touches no other copy.
  [[nodiscard]] std::optional<ImmutableBlock> find(const BlockKey& key, TierId tier);

  /// Neither pins nor touches; may be out of date at once.
  [[nodiscard]] bool is_resident(const BlockKey& key, TierId tier) const;
  [[nodiscard]] std::vector<bool> are_resident(std::span<const BlockKey> keys, TierId tier) const;

  /// Drops pins of any of its pools under one lock: see BlockPool::release. Blocks of one group go
  /// deepest first if it is full-prefix, else in the given order.
  /// Contract: the blocks are of this registry.
  void release(std::vector<ImmutableBlock>&& blocks);
  void release(PrefixMatch&& match);

  [[nodiscard]] std::span<const GroupSpec> groups() const;
  [[nodiscard]] RegistryOccupancy occupancy() const;

 private:
  explicit BlockRegistry(internal::RegistryState* state) noexcept : state_(state) {}
  void drop() noexcept;
  [[nodiscard]] internal::RegistryState& state() const {
    KVBM_CONTRACT(state_ != nullptr, "the registry was moved from");
    return *state_;
  }

  internal::RegistryState* state_;
};

}  // namespace kvbm
