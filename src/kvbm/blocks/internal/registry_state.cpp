// SPDX-License-Identifier: Apache-2.0
#include "kvbm/blocks/internal/registry_state.hpp"

#include <algorithm>
#include <utility>

namespace kvbm::internal {

namespace {

class PoolChains final : public ChainView {
 public:
  PoolChains(const KeyIndex& index, const PoolState& pool) : index_(index), pool_(pool) {}

  [[nodiscard]] uint32_t parent_of(uint32_t block) const override {
    const uint32_t parent = index_.links(node_of(block)).parent;
    return parent == kNone ? kNone : index_.node(parent).slots[tier()];
  }
  [[nodiscard]] uint32_t num_children(uint32_t block) const override {
    return index_.links(node_of(block)).num_children[tier()];
  }

 private:
  [[nodiscard]] uint32_t node_of(uint32_t block) const { return pool_.slots[block].link; }
  [[nodiscard]] size_t tier() const { return static_cast<size_t>(pool_.spec.tier); }

  const KeyIndex& index_;
  const PoolState& pool_;
};

}  // namespace

PoolState::PoolState(RegistryState& owner, const PoolSpec& pool_spec, size_t index_of_group)
    : registry(&owner),
      spec(pool_spec),
      group_index(index_of_group),
      retention(owner.groups[index_of_group].retention),
      slots(pool_spec.num_blocks),
      limit(pool_spec.num_blocks),
      free_head(0),
      free_tail(pool_spec.num_blocks - 1),
      policy(make_policy(pool_spec.policy, retention, pool_spec.num_blocks)) {
  for (uint32_t block = 0; block < free_tail; ++block) slots[block].link = block + 1;
  occupancy.num_free = pool_spec.num_blocks;
}

RegistryState::RegistryState(std::vector<GroupSpec> group_specs)
    : groups(std::move(group_specs)), tiers_of_group(groups.size(), Tiers{}) {}

std::optional<size_t> RegistryState::index_of(GroupId group) const noexcept {
  for (size_t i = 0; i < groups.size(); ++i) {
    if (groups[i].id == group) return i;
  }
  return std::nullopt;
}

const BlockKey& RegistryState::key_of(const PoolState& pool, uint32_t block) const noexcept {
  const Slot* slot = &pool.slots[block];
  if (slot->state == SlotState::kDuplicate) slot = &pool.slots[slot->link];
  return index.node(slot->link).key;
}

PoolState* RegistryState::find_pool(TierId tier, GroupId group) const noexcept {
  const std::optional<size_t> group_index = index_of(group);
  return group_index ? tiers_of_group[*group_index][static_cast<size_t>(tier)] : nullptr;
}

PoolState& RegistryState::add_pool(const PoolSpec& spec, size_t group) {
  size_t num_blocks = spec.num_blocks;
  for (const auto& pool : pools) num_blocks += pool->spec.num_blocks;
  auto pool = std::make_unique<PoolState>(*this, spec, group);
  pools.reserve(pools.size() + 1);
  // A resident key has one parent, so there are never more ghosts than resident keys.
  index.reserve(2 * num_blocks);
  pools.push_back(std::move(pool));
  tiers_of_group[group][static_cast<size_t>(spec.tier)] = pools.back().get();
  return *pools.back();
}

uint32_t RegistryState::take_free(PoolState& pool) noexcept {
  const uint32_t block = pool.free_head;
  Slot& slot = pool.slots[block];
  pool.free_head = std::exchange(slot.link, kNone);
  if (pool.free_head == kNone) pool.free_tail = kNone;
  slot.state = SlotState::kMutable;
  --pool.occupancy.num_free;
  ++pool.occupancy.num_mutable;
  return block;
}

void RegistryState::free_slot(PoolState& pool, uint32_t block) noexcept {
  Slot& slot = pool.slots[block];
  slot.link = kNone;
  if (block >= pool.limit) {
    slot.state = SlotState::kGone;
    return;
  }
  slot.state = SlotState::kFree;
  (pool.free_tail == kNone ? pool.free_head : pool.slots[pool.free_tail].link) = block;
  pool.free_tail = block;
  ++pool.occupancy.num_free;
}

void RegistryState::apply_limit(PoolState& pool) noexcept {
  uint32_t block = std::exchange(pool.free_head, kNone);
  pool.free_tail = kNone;
  pool.occupancy.num_free = 0;
  while (block != kNone) {
    const uint32_t next = pool.slots[block].link;
    free_slot(pool, block);
    block = next;
  }
}

void RegistryState::drop_mutable(PoolState& pool, uint32_t block) noexcept {
  --pool.occupancy.num_mutable;
  free_slot(pool, block);
}

void RegistryState::pin(PoolState& pool, uint32_t block) noexcept {
  Slot& slot = pool.slots[block];
  if (slot.refs++ > 0) return;
  pool.policy->erase(block);
  --pool.occupancy.num_idle;
  ++pool.occupancy.num_active;
}

void RegistryState::unpin(PoolState& pool, uint32_t block) noexcept {
  Slot* slot = &pool.slots[block];
  if (--slot->refs > 0) return;
  --pool.occupancy.num_active;
  if (slot->state == SlotState::kDuplicate) {
    const uint32_t primary = slot->link;
    ++slot->generation;
    free_slot(pool, block);
    block = primary;
    slot = &pool.slots[block];
    if (--slot->refs > 0) return;
    --pool.occupancy.num_active;
  }
  pool.policy->insert(block, ++tick, slot->has_child);
  ++pool.occupancy.num_idle;
  if (block < pool.limit) return;
  static_cast<void>(evict(pool, block));
  free_slot(pool, block);
}

void RegistryState::release(std::span<ImmutableBlock> blocks) noexcept {
  {
    MutexLock lock(mutex);
    // Deepest first where a chain is needed from its root; else the positions that are given first
    // are those that were left behind.
    for (size_t i = blocks.size(); i-- > 0;) {
      SlotRef& slot = GuardAccess::slot_of(blocks[i]);
      if (slot.pool().retention.is_full_prefix()) unpin(*slot.take(), slot.block());
    }
    for (ImmutableBlock& block : blocks) {
      SlotRef& slot = GuardAccess::slot_of(block);
      if (slot.has_value()) unpin(*slot.take(), slot.block());
    }
  }
  let_go(blocks.size());
}

EvictedBlock RegistryState::describe(const PoolState& pool, uint32_t block) const {
  const uint32_t node = pool.slots[block].link;
  EvictedBlock described{index.node(node).key, std::nullopt, BlockId(block)};
  const uint32_t parent = index.links(node).parent;
  if (parent != kNone) described.parent = index.node(parent).key;
  return described;
}

EvictedBlock RegistryState::evict(PoolState& pool) noexcept {
  return evict(pool, pool.policy->victim());
}

EvictedBlock RegistryState::evict(PoolState& pool, uint32_t block) noexcept {
  pool.policy->erase(block);
  EvictedBlock evicted = describe(pool, block);
  Slot& slot = pool.slots[block];
  const uint32_t node = std::exchange(slot.link, kNone);
  ++slot.generation;
  index.node(node).slots[static_cast<size_t>(pool.spec.tier)] = kNone;
  if (index.links(node).parent != kNone) remove_from_parent(pool, node);
  if (!index.node(node).is_resident()) {
    if (index.links(node).has_children()) {
      ++num_ghosts;
    } else {
      index.erase(node);
    }
  }
  --pool.occupancy.num_idle;
  ++pool.statistics.evicted;
  return evicted;
}

uint32_t RegistryState::find_or_add_parent(const BlockKey& key, uint32_t hint) noexcept {
  if (hint != kNone && index.node(hint).key == key) return hint;
  const uint64_t hash = hash_of(key);
  const uint32_t found = index.find(key, hash);
  if (found != kNone) return found;
  ++num_ghosts;
  return index.insert(key, hash);
}

void RegistryState::add_to_parent(PoolState& pool, uint32_t node) noexcept {
  const auto tier = static_cast<size_t>(pool.spec.tier);
  const uint32_t parent = index.links(node).parent;
  if (++index.links(parent).num_children[tier] > 1) return;
  const uint32_t block = index.node(parent).slots[tier];
  if (block == kNone) return;
  pool.slots[block].has_child = true;
  if (pool.slots[block].refs == 0) pool.policy->set_has_child(block, true);
}

void RegistryState::remove_from_parent(PoolState& pool, uint32_t node) noexcept {
  const auto tier = static_cast<size_t>(pool.spec.tier);
  const uint32_t parent = index.links(node).parent;
  if (!index.node(node).is_resident()) index.links(node).parent = kNone;
  if (--index.links(parent).num_children[tier] > 0) return;
  const uint32_t block = index.node(parent).slots[tier];
  if (block != kNone) {
    pool.slots[block].has_child = false;
    if (pool.slots[block].refs == 0) pool.policy->set_has_child(block, false);
  } else if (!index.node(parent).is_resident() && !index.links(parent).has_children()) {
    index.erase(parent);
    --num_ghosts;
  }
}

uint32_t RegistryState::register_slot(PoolState& pool, uint32_t block, const BlockKey& key,
                                      uint64_t hash, const Identity* parent,
                                      uint32_t& node) noexcept {
  const auto tier = static_cast<size_t>(pool.spec.tier);
  const uint32_t parent_hint = std::exchange(node, index.find(key, hash));
  const bool known = node != kNone;
  if (!known) node = index.insert(key, hash);
  NodeLinks& links = index.links(node);

  if (known && index.node(node).is_resident()) {
    const bool same_parent =
        links.parent == kNone
            ? parent == nullptr
            : parent != nullptr && index.node(links.parent).key.identity == *parent;
    if (!same_parent) ++pool.statistics.parent_conflicts;
    const uint32_t primary = index.node(node).slots[tier];
    if (primary != kNone && pool.spec.duplicates == DuplicatePolicy::kReject) {
      drop_mutable(pool, block);
      pin(pool, primary);
      ++pool.statistics.rejected;
      return primary;
    }
    if (primary != kNone) {
      Slot& slot = pool.slots[block];
      slot.refs = 1;
      slot.link = primary;
      slot.state = SlotState::kDuplicate;
      --pool.occupancy.num_mutable;
      ++pool.occupancy.num_active;
      pin(pool, primary);
      ++pool.statistics.duplicates;
      return block;
    }
  } else {
    if (known) --num_ghosts;
    if (parent != nullptr) {
      links.parent = find_or_add_parent({key.ns, key.group, *parent}, parent_hint);
    }
  }

  index.node(node).slots[tier] = block;
  if (links.parent != kNone) add_to_parent(pool, node);
  Slot& slot = pool.slots[block];
  slot.refs = 1;
  slot.link = node;
  slot.state = SlotState::kPrimary;
  slot.has_child = links.num_children[tier] > 0;
  pool.policy->on_registered(block, ++tick);
  --pool.occupancy.num_mutable;
  ++pool.occupancy.num_active;
  ++pool.statistics.registered;
  return block;
}

uint32_t RegistryState::find(const PoolState& pool, const BlockKey& key) const noexcept {
  const uint32_t found = index.find(key, hash_of(key));
  return found == kNone ? kNone : index.node(found).slots[static_cast<size_t>(pool.spec.tier)];
}

std::optional<ImmutableBlock> RegistryState::find_and_pin(PoolState& pool,
                                                          const BlockKey& key) noexcept {
  ++pool.statistics.asked;
  const uint32_t block = find(pool, key);
  if (block == kNone) return std::nullopt;
  pin(pool, block);
  hold();
  ++pool.statistics.matched;
  return GuardAccess::make_immutable(pool, block);
}

std::vector<uint32_t> RegistryState::eviction_order(const PoolState& pool, size_t limit) const {
  std::vector<uint32_t> order;
  order.reserve(std::min<size_t>(limit, pool.occupancy.num_idle));
  pool.policy->order(PoolChains(index, pool), limit, order);
  return order;
}

void RegistryState::look_up(const GroupKeys& group, size_t begin, size_t end,
                            std::optional<TierId> only, uint32_t* nodes) const {
  for (; begin < end; begin += std::min(KeyIndex::kBatch, end - begin)) {
    const std::span<const BlockKey> keys =
        group.keys.subspan(begin, std::min(KeyIndex::kBatch, end - begin));
    bool same_group = true;
    for (const BlockKey& key : keys) same_group &= key.group == group.group;
    KVBM_CONTRACT(same_group, "a key of another group");

    const std::span<uint32_t> found(nodes + begin, keys.size());
    index.find_batch(keys, found);
    for (uint32_t& node : found) {
      if (node == kNone) continue;
      const Node& there = index.node(node);
      const bool resident =
          only ? there.slots[static_cast<size_t>(*only)] != kNone : there.is_resident();
      if (!resident) node = kNone;
    }
  }
}

size_t RegistryState::longest_run(const GroupKeys& group, size_t first_needed, size_t limit,
                                  std::optional<TierId> only, uint32_t* nodes) const {
  for (size_t begin = 0; begin < limit;) {
    const size_t end = std::min(begin + KeyIndex::kBatch, limit);
    look_up(group, begin, end, only, nodes);
    for (size_t position = std::max(begin, first_needed); position < end; ++position) {
      if (nodes[position] == kNone) return position;
    }
    begin = end;
  }
  return limit;
}

void RegistryState::pin_all(const Tiers& tiers, std::span<const uint32_t> nodes,
                            std::optional<TierId> only,
                            std::vector<ImmutableBlock>& pinned) noexcept {
  const auto tier_of = [&](uint32_t node) {
    if (only) return static_cast<size_t>(*only);
    size_t tier = 0;
    while (index.node(node).slots[tier] == kNone) ++tier;
    return tier;
  };
  const auto ask_ahead = [&](uint32_t node) {
    const size_t tier = tier_of(node);
    const uint32_t block = index.node(node).slots[tier];
    __builtin_prefetch(&tiers[tier]->slots[block], 1);
    tiers[tier]->policy->prefetch(block);
  };
  constexpr size_t kAhead = 8;
  for (size_t i = 0; i < std::min(kAhead, nodes.size()); ++i) ask_ahead(nodes[i]);
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (i + kAhead < nodes.size()) ask_ahead(nodes[i + kAhead]);
    const size_t tier = tier_of(nodes[i]);
    PoolState& pool = *tiers[tier];
    const uint32_t block = index.node(nodes[i]).slots[tier];
    pin(pool, block);
    ++pool.statistics.matched;
    pinned.push_back(GuardAccess::make_immutable(pool, block));
  }
  hold(nodes.size());
}

void RegistryState::touch(const Tiers& tiers, std::span<const uint32_t> nodes,
                          size_t num_others) noexcept {
  // What is pinned is not idle, so without another tier there is nothing to renew.
  size_t end = nodes.size();
  if (std::count(tiers.begin(), tiers.end(), nullptr) == kNumTiers - 1) end = num_others;
  for (size_t i = end; i-- > 0;) {
    if (nodes[i] == kNone) continue;
    const Node& node = index.node(nodes[i]);
    for (size_t tier = 0; tier < kNumTiers; ++tier) {
      const uint32_t block = node.slots[tier];
      if (block == kNone || !is_idle(*tiers[tier], block)) continue;
      tiers[tier]->policy->touch(block, ++tick);
      ++tiers[tier]->statistics.touched;
    }
  }
}

}  // namespace kvbm::internal
