// SPDX-License-Identifier: Apache-2.0
#include "kvbm/blocks/block_registry.hpp"

#include <algorithm>
#include <array>
#include <memory>
#include <string>

#include "kvbm/blocks/internal/registry_state.hpp"

namespace kvbm {

using internal::GroupSearch;
using internal::GuardAccess;
using internal::kNone;
using internal::PoolState;
using internal::RegistryState;

namespace {

// Node indices are 32 bits, and each block may bring a ghost.
constexpr uint64_t kMaxBlocks = uint64_t{1} << 30;

// The first position that has to be restored.
size_t first_of(const GroupSearch& search, size_t first_block, size_t length) {
  const size_t first = search.retention.first_needed(static_cast<uint32_t>(length));
  return std::max(first, first_block);
}

// Shortens `length` until the window before it is resident, or begins at `first_block`.
size_t shorten_to_window(const RegistryState& state, GroupSearch& search, size_t first_block,
                         size_t length) KVBM_REQUIRES(state.mutex) {
  search.resident = std::min(search.resident, length);
  search.looked_up = std::min(search.looked_up, length);
  size_t first = first_of(search, first_block, length);
  while (search.resident > first) {
    if (search.resident == search.looked_up) {
      const size_t batch = std::min(internal::KeyIndex::kBatch, search.looked_up - first_block);
      state.look_up(*search.group, search.looked_up - batch, search.looked_up, std::nullopt,
                    search.nodes);
      search.looked_up -= batch;
    }
    --search.resident;
    if (search.nodes[search.resident] != kNone) continue;
    length = search.resident;
    first = first_of(search, first_block, length);
  }
  return length;
}

// The longest prefix that all groups can restore, `length` at most.
size_t longest_for_all(const RegistryState& state, std::span<GroupSearch> searches,
                       size_t first_block, size_t length) KVBM_REQUIRES(state.mutex) {
  for (const GroupSearch& search : searches) {
    if (!search.retention.is_full_prefix()) continue;
    length = state.longest_run(*search.group, first_block, length, std::nullopt, search.nodes);
  }
  for (GroupSearch& search : searches) search.looked_up = search.resident = length;
  // A window that makes the match shorter moves the windows of the other groups: until none does.
  for (size_t before = length + 1; length < before;) {
    before = length;
    for (GroupSearch& search : searches) {
      if (search.retention.is_full_prefix()) continue;
      length = shorten_to_window(state, search, first_block, length);
    }
  }
  return length;
}

}  // namespace

Result<BlockRegistry> BlockRegistry::create(RegistryOptions options) {
  if (options.groups.empty()) {
    return make_error(ErrorCode::kInvalidArgument, "a registry has at least one layer group");
  }
  for (auto group = options.groups.begin(); group != options.groups.end(); ++group) {
    const auto same = [&](const GroupSpec& other) { return other.id == group->id; };
    if (std::any_of(options.groups.begin(), group, same)) {
      return make_error(ErrorCode::kInvalidArgument,
                        "layer group " + to_string(group->id) + " is given twice");
    }
  }
  auto state = std::make_unique<RegistryState>(std::move(options.groups));
  state->hold();
  return BlockRegistry(state.release());
}

void BlockRegistry::drop() noexcept { state_->let_go(); }

Result<BlockPool> BlockRegistry::create_pool(const PoolSpec& spec) {
  RegistryState& registry = state();
  const auto refuse = [&](const std::string& reason) {
    return make_error(ErrorCode::kInvalidArgument,
                      "no pool of " + std::string(to_string(spec.tier)) + " group " +
                          to_string(spec.group) + ": " + reason);
  };
  const std::optional<size_t> group = registry.index_of(spec.group);
  if (!group) return refuse("the registry has no such group");
  if (static_cast<size_t>(spec.tier) >= kNumTiers) return refuse("there is no such tier");
  if (spec.num_blocks == 0) return refuse("it needs at least one block");

  MutexLock lock(registry.mutex);
  if (registry.tiers_of_group[*group][static_cast<size_t>(spec.tier)] != nullptr) {
    return refuse("there is one");
  }
  uint64_t num_blocks = spec.num_blocks;
  for (const auto& pool : registry.pools) num_blocks += pool->spec.num_blocks;
  if (num_blocks > kMaxBlocks) return refuse("all pools together have at most 2^30 blocks");
  PoolState& pool = registry.add_pool(spec, *group);
  registry.hold();
  return GuardAccess::make_pool(pool);
}

std::optional<BlockPool> BlockRegistry::pool(TierId tier, GroupId group) const {
  RegistryState& registry = state();
  MutexLock lock(registry.mutex);
  PoolState* const pool = registry.find_pool(tier, group);
  if (pool == nullptr) return std::nullopt;
  registry.hold();
  return GuardAccess::make_pool(*pool);
}

PrefixMatch BlockRegistry::match(std::span<const GroupKeys> groups, MatchOptions options) {
  RegistryState& registry = state();
  KVBM_CONTRACT(!groups.empty(), "a match is about at least one group");
  const size_t first_block = options.first_block;
  size_t length = groups[0].keys.size();
  size_t num_keys = 0;
  for (const GroupKeys& group : groups) {
    KVBM_CONTRACT(registry.index_of(group.group), "the registry has no such group");
    length = std::min(length, group.keys.size());
    num_keys += group.keys.size();
  }
  for (size_t i = 1; i < groups.size(); ++i) {
    for (size_t k = 0; k < i; ++k) {
      KVBM_CONTRACT(groups[i].group != groups[k].group, "a group is given twice");
    }
  }
  KVBM_CONTRACT(first_block <= length, "first_block is above the number of keys");
  KVBM_CONTRACT(length <= kMaxBlocks, "too many keys");

  PrefixMatch match;
  match.groups.resize(groups.size());
  MutexLock lock(registry.mutex);
  if (registry.match_nodes.size() < num_keys) registry.match_nodes.resize(num_keys);
  std::vector<GroupSearch>& searches = registry.match_searches;
  searches.clear();
  uint32_t* nodes = registry.match_nodes.data();
  for (const GroupKeys& group : groups) {
    const size_t index = *registry.index_of(group.group);
    searches.push_back({&group, index, registry.groups[index].retention, nodes});
    nodes += group.keys.size();
  }
  length = longest_for_all(registry, searches, first_block, length);

  // From here on nothing but the reservations can fail, and nothing has changed before them.
  match.num_blocks = static_cast<uint32_t>(length);
  for (size_t i = 0; i < groups.size(); ++i) {
    const size_t first = first_of(searches[i], first_block, length);
    match.groups[i].group = groups[i].group;
    match.groups[i].first = static_cast<uint32_t>(first);
    match.groups[i].blocks.reserve(length - first);
  }
  for (size_t i = 0; i < groups.size(); ++i) {
    const GroupSearch& search = searches[i];
    const size_t first = match.groups[i].first;
    const RegistryState::Tiers& tiers = registry.tiers_of_group[search.index];
    for (internal::PoolState* pool : tiers) {
      if (pool != nullptr) pool->statistics.asked += search.group->keys.size() - first_block;
    }
    registry.pin_all(tiers, {search.nodes + first, length - first}, std::nullopt,
                     match.groups[i].blocks);
    const size_t touched = search.retention.is_full_prefix() ? 0 : first;
    registry.touch(tiers, {search.nodes + touched, length - touched}, first - touched);
  }
  return match;
}

std::optional<ImmutableBlock> BlockRegistry::find(const BlockKey& key, TierId tier) {
  RegistryState& registry = state();
  MutexLock lock(registry.mutex);
  PoolState* const pool = registry.find_pool(tier, key.group);
  if (pool == nullptr) return std::nullopt;
  return registry.find_and_pin(*pool, key);
}

bool BlockRegistry::is_resident(const BlockKey& key, TierId tier) const {
  RegistryState& registry = state();
  MutexLock lock(registry.mutex);
  const PoolState* const pool = registry.find_pool(tier, key.group);
  return pool != nullptr && registry.find(*pool, key) != kNone;
}

std::vector<bool> BlockRegistry::are_resident(std::span<const BlockKey> keys, TierId tier) const {
  RegistryState& registry = state();
  std::vector<bool> resident(keys.size());
  std::array<uint32_t, internal::KeyIndex::kBatch> nodes;
  MutexLock lock(registry.mutex);
  for (size_t begin = 0; begin < keys.size(); begin += nodes.size()) {
    const size_t count = std::min(nodes.size(), keys.size() - begin);
    registry.index.find_batch(keys.subspan(begin, count), {nodes.data(), count});
    for (size_t i = 0; i < count; ++i) {
      resident[begin + i] = nodes[i] != kNone &&
                            registry.index.node(nodes[i]).slots[static_cast<size_t>(tier)] != kNone;
    }
  }
  return resident;
}

void BlockRegistry::release(std::vector<ImmutableBlock>&& blocks) {
  RegistryState& registry = state();
  for (ImmutableBlock& block : blocks) {
    KVBM_CONTRACT(GuardAccess::slot_of(block).pool().registry == &registry,
                  "a block of another registry");
  }
  registry.release(blocks);
  blocks.clear();
}

void BlockRegistry::release(PrefixMatch&& match) {
  for (GroupMatch& group : match.groups) release(std::move(group.blocks));
  match = PrefixMatch{};
}

std::span<const GroupSpec> BlockRegistry::groups() const { return state().groups; }

RegistryOccupancy BlockRegistry::occupancy() const {
  RegistryState& registry = state();
  MutexLock lock(registry.mutex);
  RegistryOccupancy occupancy;
  occupancy.num_ghosts = registry.num_ghosts;
  occupancy.num_keys = registry.index.size() - registry.num_ghosts;
  occupancy.memory_bytes = registry.index.memory_bytes();
  for (const auto& pool : registry.pools) {
    occupancy.memory_bytes += pool->slots.capacity() * sizeof(internal::Slot);
    occupancy.memory_bytes += pool->policy->memory_bytes();
  }
  return occupancy;
}

}  // namespace kvbm
