// SPDX-License-Identifier: Apache-2.0
// RegistryState: what the handles and guards of one registry share. All logic that runs under its
// lock.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kvbm/base/mutex.hpp"
#include "kvbm/blocks/block_pool.hpp"
#include "kvbm/blocks/block_registry.hpp"
#include "kvbm/blocks/internal/eviction_policy.hpp"
#include "kvbm/blocks/internal/key_index.hpp"

namespace kvbm::internal {

enum class SlotState : uint8_t { kFree, kMutable, kPrimary, kDuplicate, kGone };

/// One block of a pool. The key of a mutable block that is complete travels in its guard.
struct Slot {
  uint32_t refs = 0;      ///< guards of a registered block; a duplicate is one of its primary's
  uint32_t link = kNone;  ///< primary: its node; duplicate: its primary; free: the next free block
  uint32_t generation = 0;  ///< how many registrations of this slot have ended
  SlotState state = SlotState::kFree;
  bool has_child = false;  ///< primary: its key has a direct child in the same tier
};

/// Under the registry's lock, except what never changes (registry, spec, retention, slots.data())
/// and what holds still as long as a guard is held (state, link and generation of its slot).
struct PoolState {
  PoolState(RegistryState& owner, const PoolSpec& pool_spec, size_t index_of_group);

  RegistryState* registry;
  const PoolSpec spec;
  const size_t group_index;
  const Retention retention;
  std::vector<Slot> slots;
  uint32_t limit;  ///< blocks from here on leave instead of becoming free
  uint32_t free_head = kNone;
  uint32_t free_tail = kNone;
  PoolOccupancy occupancy;
  PoolStatistics statistics;               // but `completed`
  std::atomic<uint64_t> num_completed{0};  // not guarded
  std::unique_ptr<EvictionPolicy> policy;
};

/// What is known of one group while the length of a match is being found.
struct GroupSearch {
  const GroupKeys* group;
  size_t index;  ///< of the group in the registry
  Retention retention;
  uint32_t* nodes;       ///< of group->keys, as far as they were looked up
  size_t looked_up = 0;  ///< last window: positions from here on were looked up
  size_t resident = 0;   ///< last window: positions from here up to the length are resident
};

/// The transitions of a block, one function each:
///
///   free ─take_free─▶ mutable ─register_slot─▶ active ─unpin─▶ idle ─evict─▶ (mutable or free)
///     ▲                  │                       ▲               │
///     └────free_slot─────┘                       └──────pin──────┘
///
/// From the limit of its pool on, free_slot() makes it gone for ever, and unpin() evicts it.
/// Threads: any thread; what needs the lock says so.
struct RegistryState {
  explicit RegistryState(std::vector<GroupSpec> group_specs);

  /// Handles and guards that keep this alive. Counted apart from the lock, so that nobody unlocks a
  /// mutex that another thread has deleted.
  std::atomic<uint64_t> num_holders{0};
  const std::vector<GroupSpec> groups;

  mutable Mutex mutex{LockRank::kBlocks, "blocks.registry"};
  KeyIndex index;  // guarded, except nodes that are pinned
  size_t num_ghosts KVBM_GUARDED_BY(mutex) = 0;
  uint64_t tick KVBM_GUARDED_BY(mutex) = 0;
  std::vector<std::unique_ptr<PoolState>> pools KVBM_GUARDED_BY(mutex);
  using Tiers = std::array<PoolState*, kNumTiers>;
  std::vector<Tiers> tiers_of_group KVBM_GUARDED_BY(mutex);  // as `groups`; null: no pool
  // Of one match; kept for their memory.
  std::vector<uint32_t> match_nodes KVBM_GUARDED_BY(mutex);
  std::vector<GroupSearch> match_searches KVBM_GUARDED_BY(mutex);

  void hold(size_t count = 1) noexcept { num_holders.fetch_add(count, std::memory_order_relaxed); }
  /// The last one deletes the state. Not under the lock.
  void let_go(size_t count = 1) noexcept {
    if (num_holders.fetch_sub(count, std::memory_order_acq_rel) == count) delete this;
  }

  [[nodiscard]] std::optional<size_t> index_of(GroupId group) const noexcept;
  [[nodiscard]] const BlockKey& key_of(const PoolState& pool, uint32_t block) const noexcept;

  [[nodiscard]] PoolState* find_pool(TierId tier, GroupId group) const noexcept
      KVBM_REQUIRES(mutex);
  [[nodiscard]] const Tiers& tiers_of(const PoolState& pool) const noexcept KVBM_REQUIRES(mutex) {
    return tiers_of_group[pool.group_index];
  }
  PoolState& add_pool(const PoolSpec& spec, size_t group) KVBM_REQUIRES(mutex);

  [[nodiscard]] uint32_t take_free(PoolState& pool) noexcept KVBM_REQUIRES(mutex);
  /// A mutable block, or one that was just evicted, goes to the end of the free list, or leaves.
  void free_slot(PoolState& pool, uint32_t block) noexcept KVBM_REQUIRES(mutex);
  /// What is free from the limit on leaves.
  void apply_limit(PoolState& pool) noexcept KVBM_REQUIRES(mutex);
  void drop_mutable(PoolState& pool, uint32_t block) noexcept KVBM_REQUIRES(mutex);
  void pin(PoolState& pool, uint32_t block) noexcept KVBM_REQUIRES(mutex);
  void unpin(PoolState& pool, uint32_t block) noexcept KVBM_REQUIRES(mutex);
  /// Drops the pins of all guards, which are of this registry and not moved from.
  void release(std::span<ImmutableBlock> blocks) noexcept KVBM_EXCLUDES(mutex);
  /// Takes the next victim's content away. The slot counts as nothing until the caller says what it
  /// is.
  [[nodiscard]] EvictedBlock evict(PoolState& pool) noexcept KVBM_REQUIRES(mutex);
  /// The same with an idle block, whether it is its turn or not.
  [[nodiscard]] EvictedBlock evict(PoolState& pool, uint32_t block) noexcept KVBM_REQUIRES(mutex);
  /// Makes a mutable block findable, or a duplicate, or frees it; returns the block to hold,
  /// pinned. `node` is where the parent may be found without a lookup; becomes the node of `key`.
  [[nodiscard]] uint32_t register_slot(PoolState& pool, uint32_t block, const BlockKey& key,
                                       uint64_t hash, const Identity* parent,
                                       uint32_t& node) noexcept KVBM_REQUIRES(mutex);

  [[nodiscard]] EvictedBlock describe(const PoolState& pool, uint32_t block) const
      KVBM_REQUIRES(mutex);
  /// The block of a key in a pool, or kNone.
  [[nodiscard]] uint32_t find(const PoolState& pool, const BlockKey& key) const noexcept
      KVBM_REQUIRES(mutex);
  [[nodiscard]] std::optional<ImmutableBlock> find_and_pin(PoolState& pool,
                                                           const BlockKey& key) noexcept
      KVBM_REQUIRES(mutex);
  [[nodiscard]] std::vector<uint32_t> eviction_order(const PoolState& pool, size_t limit) const
      KVBM_REQUIRES(mutex);
  /// Looks up keys[begin, end) into nodes[begin, end): the node if the key is resident in `only`,
  /// or anywhere if that is empty, else kNone. Contract: the keys are of `group`.
  void look_up(const GroupKeys& group, size_t begin, size_t end, std::optional<TierId> only,
               uint32_t* nodes) const KVBM_REQUIRES(mutex);
  /// Looks up keys from position 0 on, up to the first one at or after `first_needed` that is not
  /// resident; returns that position, or `limit`.
  [[nodiscard]] size_t longest_run(const GroupKeys& group, size_t first_needed, size_t limit,
                                   std::optional<TierId> only, uint32_t* nodes) const
      KVBM_REQUIRES(mutex);
  /// Pins the block of each node in the nearest tier (or in `only`). Requires: resident there.
  void pin_all(const Tiers& tiers, std::span<const uint32_t> nodes, std::optional<TierId> only,
               std::vector<ImmutableBlock>& pinned) noexcept KVBM_REQUIRES(mutex);
  /// Renews the idle copies of nodes[i], the last one first, in all tiers. All but the first
  /// `num_others` nodes have a pinned copy.
  void touch(const Tiers& tiers, std::span<const uint32_t> nodes, size_t num_others) noexcept
      KVBM_REQUIRES(mutex);

  [[nodiscard]] bool is_idle(const PoolState& pool, uint32_t block) const noexcept {
    return pool.slots[block].state == SlotState::kPrimary && pool.slots[block].refs == 0;
  }

 private:
  [[nodiscard]] uint32_t find_or_add_parent(const BlockKey& key, uint32_t hint) noexcept
      KVBM_REQUIRES(mutex);
  void add_to_parent(PoolState& pool, uint32_t node) noexcept KVBM_REQUIRES(mutex);
  void remove_from_parent(PoolState& pool, uint32_t node) noexcept KVBM_REQUIRES(mutex);
};

/// Makes and opens guards.
struct GuardAccess {
  [[nodiscard]] static MutableBlock make_mutable(PoolState& pool, uint32_t block) noexcept {
    return MutableBlock(SlotRef(&pool, block));
  }
  [[nodiscard]] static ImmutableBlock make_immutable(PoolState& pool, uint32_t block) noexcept {
    return ImmutableBlock(SlotRef(&pool, block));
  }
  [[nodiscard]] static WeakBlock make_weak(PoolState& pool, uint32_t block,
                                           uint32_t generation) noexcept {
    return WeakBlock(SlotRef(&pool, block, generation));
  }
  [[nodiscard]] static BlockPool make_pool(PoolState& pool) noexcept { return BlockPool(&pool); }

  [[nodiscard]] static SlotRef& slot_of(CompleteBlock& block) noexcept {
    return block.block_.slot_;
  }
  [[nodiscard]] static SlotRef& slot_of(ImmutableBlock& block) noexcept { return block.slot_; }
  [[nodiscard]] static const Identity* parent_of(const CompleteBlock& block) noexcept {
    return block.parent_ ? &*block.parent_ : nullptr;
  }
};

}  // namespace kvbm::internal
