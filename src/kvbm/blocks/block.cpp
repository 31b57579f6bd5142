// SPDX-License-Identifier: Apache-2.0
#include "kvbm/blocks/block.hpp"

#include "kvbm/blocks/internal/registry_state.hpp"

namespace kvbm {

using internal::GuardAccess;
using internal::PoolState;
using internal::RegistryState;
using internal::Slot;
using internal::SlotState;

TierId MutableBlock::tier() const { return slot_.pool().spec.tier; }

GroupId MutableBlock::group() const { return slot_.pool().spec.group; }

CompleteBlock MutableBlock::complete(const BlockKey& key,
                                     const std::optional<BlockKey>& parent) && {
  KVBM_CONTRACT(key.group == slot_.pool().spec.group, "the key is of another group than the pool");
  if (parent) {
    KVBM_CONTRACT(parent->ns == key.ns && parent->group == key.group,
                  "the parent is of another namespace or group than the key");
    KVBM_CONTRACT(!(parent->identity == key.identity), "a block is not its own parent");
  }
  slot_.pool().num_completed.fetch_add(1, std::memory_order_relaxed);
  return CompleteBlock(std::move(*this), key, parent);
}

void MutableBlock::drop() noexcept {
  PoolState& pool = *slot_.take();
  RegistryState& state = *pool.registry;
  {
    MutexLock lock(state.mutex);
    state.drop_mutable(pool, slot_.block());
  }
  state.let_go();
}

const BlockKey& ImmutableBlock::key() const {
  PoolState& pool = slot_.pool();
  return pool.registry->key_of(pool, slot_.block());
}

TierId ImmutableBlock::tier() const { return slot_.pool().spec.tier; }

bool ImmutableBlock::is_duplicate() const {
  return slot_.pool().slots[slot_.block()].state == SlotState::kDuplicate;
}

ImmutableBlock ImmutableBlock::clone() const {
  PoolState& pool = slot_.pool();
  RegistryState& state = *pool.registry;
  {
    MutexLock lock(state.mutex);
    state.pin(pool, slot_.block());
  }
  state.hold();
  return GuardAccess::make_immutable(pool, slot_.block());
}

WeakBlock ImmutableBlock::downgrade() const {
  PoolState& pool = slot_.pool();
  pool.registry->hold();
  return GuardAccess::make_weak(pool, slot_.block(), pool.slots[slot_.block()].generation);
}

void ImmutableBlock::drop() noexcept {
  PoolState& pool = *slot_.take();
  RegistryState& state = *pool.registry;
  {
    MutexLock lock(state.mutex);
    state.unpin(pool, slot_.block());
  }
  state.let_go();
}

std::optional<ImmutableBlock> WeakBlock::upgrade() const {
  PoolState& pool = slot_.pool();
  RegistryState& state = *pool.registry;
  {
    MutexLock lock(state.mutex);
    const Slot& slot = pool.slots[slot_.block()];
    const bool registered =
        slot.state == SlotState::kPrimary || slot.state == SlotState::kDuplicate;
    if (!registered || slot.generation != slot_.extra()) return std::nullopt;
    state.pin(pool, slot_.block());
  }
  state.hold();
  return GuardAccess::make_immutable(pool, slot_.block());
}

WeakBlock WeakBlock::clone() const {
  PoolState& pool = slot_.pool();
  pool.registry->hold();
  return GuardAccess::make_weak(pool, slot_.block(), slot_.extra());
}

void WeakBlock::drop() noexcept { slot_.take()->registry->let_go(); }

}  // namespace kvbm
