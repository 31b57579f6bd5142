// SPDX-License-Identifier: Apache-2.0
// BlockPool: the blocks of one layer group in one tier.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kvbm/base/ids.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/blocks/block.hpp"
#include "kvbm/blocks/block_key.hpp"
#include "kvbm/blocks/eviction_policy.hpp"

namespace kvbm {

/// What registering a key does that is already in the tier.
enum class DuplicatePolicy : uint8_t {
  kAllow,   ///< the block stays, as a duplicate that pins the one that is there
  kReject,  ///< the block is freed, and the caller gets a pin of the one that is there
};

/// Contract (create_pool says so as an error): `num_blocks` >= 1.
struct PoolSpec {
  TierId tier = TierId::kG1;
  GroupId group;
  uint32_t num_blocks = 0;
  PolicyKind policy = PolicyKind::kLineage;
  DuplicatePolicy duplicates = DuplicatePolicy::kAllow;
};

/// What a block held when it was given up. Its slot still has the content until its new owner
/// writes.
struct EvictedBlock {
  BlockKey key;
  std::optional<BlockKey> parent;
  BlockId block;
};

/// One registration of a block, without its content: small, so that a whole pool can be listed.
/// Pins nothing.
struct IdleBlock {
  BlockId block;
  uint32_t generation = 0;  ///< how many registrations of this slot had ended
};

/// `evicted` is in the order in which blocks were given up.
struct Allocation {
  std::vector<MutableBlock> blocks;
  std::vector<EvictedBlock> evicted;
};

/// Where the blocks of a pool are; the four add up to num_blocks().
struct PoolOccupancy {
  uint32_t num_free = 0;     ///< without content
  uint32_t num_idle = 0;     ///< registered, held by nobody
  uint32_t num_active = 0;   ///< registered and held, duplicates included
  uint32_t num_mutable = 0;  ///< allocated and not registered
};

/// Counts of blocks since creation.
struct PoolStatistics {
  uint64_t allocated = 0;
  uint64_t from_free = 0;   ///< of these, blocks that were free
  uint64_t refused = 0;     ///< asked for by an allocate() that failed
  uint64_t evicted = 0;     ///< given up by an allocation, reset_idle(), discard() or shrink()
  uint64_t completed = 0;   ///< got a key
  uint64_t registered = 0;  ///< became findable
  uint64_t duplicates = 0;  ///< registered although the key was there
  uint64_t rejected = 0;    ///< freed at registration because the key was there
  uint64_t asked = 0;       ///< keys that a match or a find was given
  uint64_t matched = 0;     ///< pinned by a match or a find
  uint64_t touched = 0;     ///< idle copies whose tick a match renewed
  uint64_t parent_conflicts = 0;  ///< registered with another parent than the key already has
};

/// A handle to a pool of a BlockRegistry, which all handles and guards share. Free blocks are used
/// first, in the order in which they became free; then idle blocks are evicted, as the policy says.
/// Nothing happens in the background.
/// Ownership: move-only, 8 bytes. Blocks stay registered when the handle goes.
/// Errors: use after a move is a ContractViolation.
/// Threads: any thread; every call takes the registry's one lock for its whole duration.
class BlockPool {
 public:
  BlockPool(BlockPool&& other) noexcept : pool_(std::exchange(other.pool_, nullptr)) {}
  BlockPool& operator=(BlockPool&& other) noexcept {
    BlockPool moved(std::move(other));
    std::swap(pool_, moved.pool_);
    return *this;
  }
  ~BlockPool() {
    if (pool_ != nullptr) drop();
  }

  /// All or nothing.
  /// Errors: kExhausted if there are fewer free and idle blocks; nothing changes then.
  [[nodiscard]] Result<Allocation> allocate(size_t num_blocks);
  /// As many as there are, up to `num_blocks`.
  [[nodiscard]] Allocation allocate_up_to(size_t num_blocks);

  /// Makes blocks findable; the result is in their order.
  /// Where a key is resident in any tier it keeps the parent it has.
  /// Contract: the blocks are of this pool.
  [[nodiscard]] std::vector<ImmutableBlock> register_blocks(std::vector<CompleteBlock>&& blocks);
  [[nodiscard]] ImmutableBlock register_block(CompleteBlock&& block);

  /// Drops all of them under one lock. In a pool of a full-prefix group the last one goes first, so
  /// that the deepest block of a chain has the oldest tick; in a pool of a last-window group the
  /// first one. Contract: the blocks are of this pool.
  void release(std::vector<ImmutableBlock>&& blocks);

  /// Drops a pin of a block whose content has turned out to be bad. If it was the last one the
  /// block is freed instead of idle, and cannot be found any more: true. Else the others decide:
  /// false. (A duplicate could never be found: false.) Contract: the block is of this pool.
  [[nodiscard]] bool discard(ImmutableBlock&& block);

  /// The longest run of `keys`, from the first one, that is resident here; each is pinned. Its
  /// copies in other tiers are touched: see BlockRegistry::match. Contract: keys are of the pool's
  /// group.
  [[nodiscard]] std::vector<ImmutableBlock> match_prefix(std::span<const BlockKey> keys);
  /// A pin of one block. Touches no other copy.
  [[nodiscard]] std::optional<ImmutableBlock> find(const BlockKey& key);
  /// Neither pins nor touches; may be out of date at once.
  [[nodiscard]] bool is_resident(const BlockKey& key) const;

  /// From now on no block with an id from `num_blocks` on is given out. Free ones leave the pool
  /// now, the others when they would become free; a registered one then cannot be found any more.
  /// Returns what was registered there, in the order of the ids: idle blocks are gone, the others
  /// go with their last pin. What has left does not come back: a larger number changes nothing.
  std::vector<EvictedBlock> shrink(uint32_t num_blocks);
  /// What it was shrunk to; else as many as it was made with.
  [[nodiscard]] uint32_t limit() const;

  /// Gives up all idle blocks; they are returned in eviction order, and are free in that order.
  std::vector<EvictedBlock> reset_idle();
  /// The next `limit` blocks in the order in which an allocation would evict them.
  /// Cost: O(n log n) for a policy that sorts.
  [[nodiscard]] std::vector<IdleBlock> idle_blocks(
      size_t limit = std::numeric_limits<size_t>::max()) const;
  /// What those of `blocks` hold whose registration has not ended since they were listed, held or
  /// not, in their order. Neither pins nor touches. Contract: the blocks are of this pool.
  [[nodiscard]] std::vector<EvictedBlock> describe(std::span<const IdleBlock> blocks) const;

  [[nodiscard]] TierId tier() const;
  [[nodiscard]] GroupId group() const;
  [[nodiscard]] PolicyKind policy() const;
  /// Without those that have left.
  [[nodiscard]] uint32_t num_blocks() const;
  [[nodiscard]] uint32_t num_free() const { return occupancy().num_free; }
  [[nodiscard]] uint32_t num_idle() const { return occupancy().num_idle; }
  [[nodiscard]] uint32_t num_active() const { return occupancy().num_active; }
  [[nodiscard]] uint32_t num_mutable() const { return occupancy().num_mutable; }
  /// All four of one moment.
  [[nodiscard]] PoolOccupancy occupancy() const;
  [[nodiscard]] PoolStatistics statistics() const;

 private:
  friend struct internal::GuardAccess;
  explicit BlockPool(internal::PoolState* pool) noexcept : pool_(pool) {}
  void drop() noexcept;
  [[nodiscard]] internal::PoolState& state() const {
    KVBM_CONTRACT(pool_ != nullptr, "the pool was moved from");
    return *pool_;
  }

  internal::PoolState* pool_;
};

}  // namespace kvbm
