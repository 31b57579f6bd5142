// SPDX-License-Identifier: Apache-2.0
#include "kvbm/blocks/block_pool.hpp"

#include <algorithm>
#include <array>
#include <string>

#include "kvbm/blocks/internal/registry_state.hpp"

namespace kvbm {

using internal::GuardAccess;
using internal::KeyIndex;
using internal::kNone;
using internal::PoolState;
using internal::RegistryState;
using internal::SlotState;

namespace {

// Takes exactly `count` blocks, which are there. Requires: room in the vectors.
void take_blocks(RegistryState& state, PoolState& pool, size_t count,
                 Allocation& allocation) noexcept KVBM_REQUIRES(state.mutex) {
  for (; count > 0 && pool.occupancy.num_free > 0; --count) {
    allocation.blocks.push_back(GuardAccess::make_mutable(pool, state.take_free(pool)));
    ++pool.statistics.from_free;
  }
  for (; count > 0; --count) {
    allocation.evicted.push_back(state.evict(pool));
    const BlockId block = allocation.evicted.back().block;
    pool.slots[block.value()].state = SlotState::kMutable;
    ++pool.occupancy.num_mutable;
    allocation.blocks.push_back(GuardAccess::make_mutable(pool, block.value()));
  }
  pool.statistics.allocated += allocation.blocks.size();
}

uint32_t total(const PoolOccupancy& occupancy) {
  return occupancy.num_free + occupancy.num_idle + occupancy.num_active + occupancy.num_mutable;
}

size_t num_available(const PoolState& pool) {
  return size_t{pool.occupancy.num_free} + pool.occupancy.num_idle;
}

}  // namespace

void BlockPool::drop() noexcept { pool_->registry->let_go(); }

Result<Allocation> BlockPool::allocate(size_t num_blocks) {
  PoolState& pool = state();
  RegistryState& registry = *pool.registry;
  Allocation allocation;
  allocation.blocks.reserve(std::min<size_t>(num_blocks, pool.spec.num_blocks));
  PoolOccupancy found;
  {
    MutexLock lock(registry.mutex);
    if (num_blocks <= num_available(pool)) {
      if (num_blocks > pool.occupancy.num_free) {
        allocation.evicted.reserve(num_blocks - pool.occupancy.num_free);
      }
      registry.hold(num_blocks);
      take_blocks(registry, pool, num_blocks, allocation);
      return allocation;
    }
    pool.statistics.refused += num_blocks;
    found = pool.occupancy;
  }
  return make_error(
      ErrorCode::kExhausted,
      std::to_string(num_blocks) + " blocks of " + std::string(to_string(pool.spec.tier)) +
          " group " + to_string(pool.spec.group) + " were asked for; of " +
          std::to_string(total(found)) + " there are " + std::to_string(found.num_free) +
          " free, " + std::to_string(found.num_idle) + " idle, " +
          std::to_string(found.num_active) + " active, " + std::to_string(found.num_mutable) +
          " mutable; drop guards or ask for fewer");
}

Allocation BlockPool::allocate_up_to(size_t num_blocks) {
  PoolState& pool = state();
  RegistryState& registry = *pool.registry;
  Allocation allocation;
  MutexLock lock(registry.mutex);
  const size_t count = std::min(num_blocks, num_available(pool));
  allocation.blocks.reserve(count);
  if (count > pool.occupancy.num_free) allocation.evicted.reserve(count - pool.occupancy.num_free);
  registry.hold(count);
  take_blocks(registry, pool, count, allocation);
  return allocation;
}

std::vector<ImmutableBlock> BlockPool::register_blocks(std::vector<CompleteBlock>&& blocks) {
  PoolState& pool = state();
  RegistryState& registry = *pool.registry;
  for (CompleteBlock& block : blocks) {
    KVBM_CONTRACT(&GuardAccess::slot_of(block).pool() == &pool, "a block of another pool");
  }
  std::vector<ImmutableBlock> registered;
  registered.reserve(blocks.size());
  std::array<uint64_t, KeyIndex::kBatch> hashes;
  {
    // Each guard hands its share of the state over to the one that replaces it.
    MutexLock lock(registry.mutex);
    uint32_t node = kNone;
    for (size_t begin = 0; begin < blocks.size(); begin += hashes.size()) {
      const size_t end = std::min(begin + hashes.size(), blocks.size());
      for (size_t i = begin; i < end; ++i) {
        hashes[i - begin] = hash_of(blocks[i].key());
        registry.index.prefetch(hashes[i - begin]);
      }
      for (size_t i = begin; i < end; ++i) {
        internal::SlotRef& slot = GuardAccess::slot_of(blocks[i]);
        const uint32_t held =
            registry.register_slot(pool, slot.block(), blocks[i].key(), hashes[i - begin],
                                   GuardAccess::parent_of(blocks[i]), node);
        static_cast<void>(slot.take());
        registered.push_back(GuardAccess::make_immutable(pool, held));
      }
    }
  }
  blocks.clear();
  return registered;
}

ImmutableBlock BlockPool::register_block(CompleteBlock&& block) {
  PoolState& pool = state();
  RegistryState& registry = *pool.registry;
  internal::SlotRef& slot = GuardAccess::slot_of(block);
  KVBM_CONTRACT(&slot.pool() == &pool, "a block of another pool");
  uint32_t node = kNone;
  MutexLock lock(registry.mutex);
  const uint32_t held = registry.register_slot(
      pool, slot.block(), block.key(), hash_of(block.key()), GuardAccess::parent_of(block), node);
  static_cast<void>(slot.take());
  return GuardAccess::make_immutable(pool, held);
}

void BlockPool::release(std::vector<ImmutableBlock>&& blocks) {
  PoolState& pool = state();
  RegistryState& registry = *pool.registry;
  for (ImmutableBlock& block : blocks) {
    KVBM_CONTRACT(&GuardAccess::slot_of(block).pool() == &pool, "a block of another pool");
  }
  registry.release(blocks);
  blocks.clear();
}

bool BlockPool::discard(ImmutableBlock&& block) {
  PoolState& pool = state();
  RegistryState& registry = *pool.registry;
  internal::SlotRef& slot = GuardAccess::slot_of(block);
  KVBM_CONTRACT(&slot.pool() == &pool, "a block of another pool");
  bool freed = false;
  {
    MutexLock lock(registry.mutex);
    static_cast<void>(slot.take());
    const bool was_found = pool.slots[slot.block()].state == SlotState::kPrimary;
    registry.unpin(pool, slot.block());
    freed = was_found && pool.slots[slot.block()].state == SlotState::kGone;
    if (registry.is_idle(pool, slot.block())) {
      freed = true;
      static_cast<void>(registry.evict(pool, slot.block()));
      registry.free_slot(pool, slot.block());
    }
  }
  registry.let_go();
  return freed;
}

std::vector<ImmutableBlock> BlockPool::match_prefix(std::span<const BlockKey> keys) {
  PoolState& pool = state();
  RegistryState& registry = *pool.registry;
  const GroupKeys group{pool.spec.group, keys};
  std::vector<ImmutableBlock> matched;
  MutexLock lock(registry.mutex);
  pool.statistics.asked += keys.size();
  if (registry.match_nodes.size() < keys.size()) registry.match_nodes.resize(keys.size());
  uint32_t* const nodes = registry.match_nodes.data();
  const size_t count = registry.longest_run(group, 0, keys.size(), pool.spec.tier, nodes);
  matched.reserve(count);
  const RegistryState::Tiers& tiers = registry.tiers_of(pool);
  registry.pin_all(tiers, {nodes, count}, pool.spec.tier, matched);
  registry.touch(tiers, {nodes, count}, 0);
  return matched;
}

std::optional<ImmutableBlock> BlockPool::find(const BlockKey& key) {
  PoolState& pool = state();
  RegistryState& registry = *pool.registry;
  KVBM_CONTRACT(key.group == pool.spec.group, "a key of another group");
  MutexLock lock(registry.mutex);
  return registry.find_and_pin(pool, key);
}

bool BlockPool::is_resident(const BlockKey& key) const {
  const PoolState& pool = state();
  RegistryState& registry = *pool.registry;
  KVBM_CONTRACT(key.group == pool.spec.group, "a key of another group");
  MutexLock lock(registry.mutex);
  return registry.find(pool, key) != kNone;
}

std::vector<EvictedBlock> BlockPool::shrink(uint32_t num_blocks) {
  PoolState& pool = state();
  RegistryState& registry = *pool.registry;
  std::vector<EvictedBlock> registered;
  MutexLock lock(registry.mutex);
  if (num_blocks >= pool.limit) return registered;
  const uint32_t before = std::exchange(pool.limit, num_blocks);
  registry.apply_limit(pool);
  for (uint32_t block = num_blocks; block < before; ++block) {
    if (pool.slots[block].state != SlotState::kPrimary) continue;
    if (!registry.is_idle(pool, block)) {
      registered.push_back(registry.describe(pool, block));
      continue;
    }
    registered.push_back(registry.evict(pool, block));
    registry.free_slot(pool, block);
  }
  return registered;
}

uint32_t BlockPool::limit() const {
  const PoolState& pool = state();
  MutexLock lock(pool.registry->mutex);
  return pool.limit;
}

std::vector<EvictedBlock> BlockPool::reset_idle() {
  PoolState& pool = state();
  RegistryState& registry = *pool.registry;
  std::vector<EvictedBlock> evicted;
  MutexLock lock(registry.mutex);
  evicted.reserve(pool.occupancy.num_idle);
  while (pool.occupancy.num_idle > 0) {
    evicted.push_back(registry.evict(pool));
    registry.free_slot(pool, evicted.back().block.value());
  }
  return evicted;
}

std::vector<IdleBlock> BlockPool::idle_blocks(size_t limit) const {
  const PoolState& pool = state();
  RegistryState& registry = *pool.registry;
  MutexLock lock(registry.mutex);
  std::vector<IdleBlock> blocks;
  const std::vector<uint32_t> order = registry.eviction_order(pool, limit);
  blocks.reserve(order.size());
  for (const uint32_t block : order) {
    blocks.push_back({BlockId(block), pool.slots[block].generation});
  }
  return blocks;
}

std::vector<EvictedBlock> BlockPool::describe(std::span<const IdleBlock> blocks) const {
  const PoolState& pool = state();
  RegistryState& registry = *pool.registry;
  for (const IdleBlock& listed : blocks) {
    KVBM_CONTRACT(listed.block.value() < pool.spec.num_blocks, "a block of another pool");
  }
  std::vector<EvictedBlock> described;
  described.reserve(blocks.size());
  MutexLock lock(registry.mutex);
  for (const IdleBlock& listed : blocks) {
    const internal::Slot& slot = pool.slots[listed.block.value()];
    if (slot.state != SlotState::kPrimary || slot.generation != listed.generation) continue;
    described.push_back(registry.describe(pool, listed.block.value()));
  }
  return described;
}

TierId BlockPool::tier() const { return state().spec.tier; }

GroupId BlockPool::group() const { return state().spec.group; }

PolicyKind BlockPool::policy() const { return state().spec.policy; }

uint32_t BlockPool::num_blocks() const { return total(occupancy()); }

PoolOccupancy BlockPool::occupancy() const {
  const PoolState& pool = state();
  MutexLock lock(pool.registry->mutex);
  return pool.occupancy;
}

PoolStatistics BlockPool::statistics() const {
  const PoolState& pool = state();
  MutexLock lock(pool.registry->mutex);
  PoolStatistics statistics = pool.statistics;
  statistics.completed = pool.num_completed.load(std::memory_order_relaxed);
  return statistics;
}

}  // namespace kvbm
