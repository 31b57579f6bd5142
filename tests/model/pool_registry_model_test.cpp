// SPDX-License-Identifier: Apache-2.0
//
// Random operations on a registry and its pools, next to a model that is as plain as it can be: no
// hash table, no list, no heap, every question answered by looking at everything. KVBM_SEED and
// KVBM_MODEL_OPS choose the run.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/random.hpp"
#include "kvbm/blocks/block_registry.hpp"

#include "tests/support/block_chains.hpp"
#include "tests/support/seed.hpp"

namespace kvbm {
namespace {

// A key is a number below kNumNumbers and a group; the model never looks at anything else of it.
constexpr uint32_t kNumNumbers = 48;
using Number = uint32_t;
using Parent = std::optional<Number>;

struct ModelBlock {
  enum State { kFree, kMutable, kPrimary, kDuplicate, kGone } state = kFree;
  Number number = 0;
  uint32_t refs = 0;
  uint32_t primary = 0;     // of a duplicate
  uint64_t registered = 0;  // tick
  uint64_t idle = 0;        // tick: became idle or was touched
  uint64_t inside = 0;      // tick: became an idle block with a child, or was touched as one
  uint64_t generation = 0;
};

struct ModelPool {
  PoolSpec spec;
  bool is_window = false;
  std::vector<ModelBlock> blocks;
  std::deque<uint32_t> free;
  uint32_t limit = 0;  // blocks from here on leave instead of becoming free
  PoolStatistics statistics;

  [[nodiscard]] std::optional<uint32_t> find(Number number) const {
    for (uint32_t block = 0; block < blocks.size(); ++block) {
      if (blocks[block].state == ModelBlock::kPrimary && blocks[block].number == number) {
        return block;
      }
    }
    return std::nullopt;
  }
  [[nodiscard]] bool is_idle(uint32_t block) const {
    return blocks[block].state == ModelBlock::kPrimary && blocks[block].refs == 0;
  }
  [[nodiscard]] PoolOccupancy occupancy() const {
    PoolOccupancy result;
    for (uint32_t block = 0; block < blocks.size(); ++block) {
      if (blocks[block].state == ModelBlock::kFree) ++result.num_free;
      if (blocks[block].state == ModelBlock::kMutable) ++result.num_mutable;
      if (is_idle(block)) ++result.num_idle;
      if (blocks[block].refs > 0) ++result.num_active;
    }
    return result;
  }
};

struct ModelEvicted {
  Number number;
  Parent parent;
  uint32_t block;
};

class Model {
 public:
  std::vector<GroupSpec> groups;
  std::vector<ModelPool> pools;
  uint64_t num_inner_evicted = 0;

  [[nodiscard]] ModelPool* pool_of(size_t group, size_t tier) {
    for (ModelPool& pool : pools) {
      if (pool.spec.group == groups[group].id && static_cast<size_t>(pool.spec.tier) == tier) {
        return &pool;
      }
    }
    return nullptr;
  }
  [[nodiscard]] bool is_resident(GroupId group, Number number) const {
    return std::any_of(pools.begin(), pools.end(), [&](const ModelPool& pool) {
      return pool.spec.group == group && pool.find(number);
    });
  }
  [[nodiscard]] Parent parent_of(GroupId group, Number number) const {
    const auto found = parents_.find({group, number});
    return found == parents_.end() ? std::nullopt : found->second;
  }
  [[nodiscard]] bool has_child(const ModelPool& pool, Number number) const {
    return std::any_of(pool.blocks.begin(), pool.blocks.end(), [&](const ModelBlock& block) {
      return block.state == ModelBlock::kPrimary &&
             parent_of(pool.spec.group, block.number) == number;
    });
  }

  void pin(ModelPool& pool, uint32_t block) { ++pool.blocks[block].refs; }

  void unpin(ModelPool& pool, uint32_t block) {
    ModelBlock& dropped = pool.blocks[block];
    if (--dropped.refs > 0) return;
    if (dropped.state == ModelBlock::kDuplicate) {
      make_free(pool, block);
      unpin(pool, dropped.primary);
      return;
    }
    dropped.idle = dropped.inside = ++tick_;
    if (block < pool.limit) return;
    evict(pool, block);
    make_free(pool, block);
  }

  void make_free(ModelPool& pool, uint32_t block) {
    if (pool.blocks[block].state != ModelBlock::kMutable) ++pool.blocks[block].generation;
    pool.blocks[block].state = block < pool.limit ? ModelBlock::kFree : ModelBlock::kGone;
    if (block < pool.limit) pool.free.push_back(block);
  }

  /// What was registered in what leaves.
  std::vector<ModelEvicted> shrink(ModelPool& pool, uint32_t num_blocks) {
    std::vector<ModelEvicted> registered;
    const uint32_t before = pool.limit;
    if (num_blocks >= before) return registered;
    pool.limit = num_blocks;
    std::erase_if(pool.free, [&](uint32_t block) { return block >= num_blocks; });
    for (uint32_t block = num_blocks; block < before; ++block) {
      ModelBlock& leaving = pool.blocks[block];
      if (leaving.state == ModelBlock::kFree) leaving.state = ModelBlock::kGone;
      if (leaving.state != ModelBlock::kPrimary) continue;
      if (pool.is_idle(block)) {
        registered.push_back(evict(pool, block));
        make_free(pool, block);
      } else {
        const Parent parent = parent_of(pool.spec.group, leaving.number);
        registered.push_back({leaving.number, parent, block});
      }
    }
    return registered;
  }

  void touch(ModelPool& pool, uint32_t block) {
    if (!pool.is_idle(block)) return;
    pool.blocks[block].idle = pool.blocks[block].inside = ++tick_;
    ++pool.statistics.touched;
  }

  [[nodiscard]] static bool is_leaf_first(const ModelPool& pool) {
    return pool.spec.policy == PolicyKind::kLineage && !pool.is_window;
  }

  /// The block that goes next, if any is idle.
  [[nodiscard]] std::optional<uint32_t> victim(const ModelPool& pool) const {
    std::optional<uint32_t> best;
    const bool leaf_first = is_leaf_first(pool);
    const auto rank = [&](uint32_t block) {
      const ModelBlock& candidate = pool.blocks[block];
      if (pool.spec.policy == PolicyKind::kFifo) return std::pair(0, candidate.registered);
      if (leaf_first && has_child(pool, candidate.number)) return std::pair(1, candidate.inside);
      return std::pair(0, candidate.idle);
    };
    for (uint32_t block = 0; block < pool.blocks.size(); ++block) {
      if (pool.is_idle(block) && (!best || rank(block) < rank(*best))) best = block;
    }
    return best;
  }

  ModelEvicted evict(ModelPool& pool) { return evict(pool, victim(pool).value()); }

  ModelEvicted evict(ModelPool& pool, uint32_t block) {
    ModelBlock& evicted = pool.blocks[block];
    const GroupId group = pool.spec.group;
    const ModelEvicted result{evicted.number, parent_of(group, evicted.number), block};
    if (is_leaf_first(pool) && has_child(pool, evicted.number)) ++num_inner_evicted;
    evicted.state = ModelBlock::kMutable;
    ++evicted.generation;
    if (!is_resident(group, evicted.number)) parents_.erase({group, evicted.number});
    ++pool.statistics.evicted;
    return result;
  }

  /// Returns the block to hold.
  uint32_t register_block(ModelPool& pool, uint32_t block, Number number, Parent parent) {
    const GroupId group = pool.spec.group;
    if (is_resident(group, number)) {
      if (parent_of(group, number) != parent) ++pool.statistics.parent_conflicts;
    } else {
      parents_[{group, number}] = parent;
    }
    ModelBlock& registered = pool.blocks[block];
    const std::optional<uint32_t> primary = pool.find(number);
    if (primary && pool.spec.duplicates == DuplicatePolicy::kReject) {
      make_free(pool, block);
      pin(pool, *primary);
      ++pool.statistics.rejected;
      return *primary;
    }
    registered.number = number;
    registered.refs = 1;
    if (primary) {
      registered.state = ModelBlock::kDuplicate;
      registered.primary = *primary;
      pin(pool, *primary);
      ++pool.statistics.duplicates;
      return block;
    }
    // An idle parent that gets its first child here is inside from now on.
    if (const Parent known = parent_of(group, number)) {
      const std::optional<uint32_t> above = pool.find(*known);
      if (above && pool.is_idle(*above) && !has_child(pool, *known)) {
        pool.blocks[*above].inside = ++tick_;
      }
    }
    registered.state = ModelBlock::kPrimary;
    registered.registered = ++tick_;
    ++pool.statistics.registered;
    return block;
  }

  /// Parents of resident keys that are resident nowhere, and resident keys.
  [[nodiscard]] std::pair<size_t, size_t> ghosts_and_keys() const {
    std::set<std::pair<GroupId, Number>> keys;
    std::set<std::pair<GroupId, Number>> ghosts;
    for (const ModelPool& pool : pools) {
      for (const ModelBlock& block : pool.blocks) {
        if (block.state == ModelBlock::kPrimary) keys.insert({pool.spec.group, block.number});
      }
    }
    for (const auto& [group, number] : keys) {
      const Parent parent = parent_of(group, number);
      if (parent && !keys.contains({group, *parent})) ghosts.insert({group, *parent});
    }
    return {ghosts.size(), keys.size()};
  }

 private:
  uint64_t tick_ = 0;
  std::map<std::pair<GroupId, Number>, Parent> parents_;  // of resident keys
};

struct HeldMutable {
  MutableBlock guard;
  size_t pool;
};
struct HeldComplete {
  CompleteBlock guard;
  size_t pool;
  Number number;
  Parent parent;
};
struct HeldImmutable {
  ImmutableBlock guard;
  size_t pool;
  uint32_t block;
};
struct HeldWeak {
  WeakBlock guard;
  size_t pool;
  uint32_t block;
  uint64_t generation;
};

template <class T>
T take_from(std::vector<T>& items, size_t index) {
  T taken = std::move(items[index]);
  if (index + 1 != items.size()) items[index] = std::move(items.back());
  items.pop_back();
  return taken;
}

/// What all pools of all worlds went through.
struct RunStatistics {
  uint64_t refused = 0;
  uint64_t evicted = 0;
  uint64_t inner_evicted = 0;  // with a child in the same tier, because there was no leaf
  uint64_t duplicates = 0;
  uint64_t rejected = 0;
  uint64_t matched = 0;
  uint64_t touched = 0;
  uint64_t parent_conflicts = 0;
  uint64_t shrunk_idle = 0;  // idle blocks that left because their pool shrank
  uint64_t shrunk_held = 0;  // those that had to leave, and were held then
};

class Machine {
 public:
  explicit Machine(uint64_t seed) : random_(seed), registry_(make()) {}

  void run(uint64_t num_operations, RunStatistics& total) {
    for (uint64_t i = 0; i < num_operations && !::testing::Test::HasFatalFailure(); ++i) {
      step();
      if (i % 64 == 0) check_order();
      if (i % 512 == 0) check_everything();
    }
    check_everything();
    let_all_go();
    total.inner_evicted += model_.num_inner_evicted;
    total.shrunk_idle += shrunk_.shrunk_idle;
    total.shrunk_held += shrunk_.shrunk_held;
    for (const BlockPool& pool : pools_) {
      const PoolStatistics part = pool.statistics();
      total.refused += part.refused;
      total.evicted += part.evicted;
      total.duplicates += part.duplicates;
      total.rejected += part.rejected;
      total.matched += part.matched;
      total.touched += part.touched;
      total.parent_conflicts += part.parent_conflicts;
    }
  }

 private:
  BlockRegistry make() {
    // One or two full groups and one or two windows; the tree of numbers is the same for all.
    const size_t num_full = 1 + random_.uniform(2);
    const size_t num_windows = random_.uniform(3);
    for (size_t i = 0; i < num_full + num_windows; ++i) {
      const auto window = static_cast<uint32_t>(1 + random_.uniform(5));
      model_.groups.push_back(
          {GroupId(static_cast<uint16_t>(3 * i)),
           i < num_full ? Retention::full_prefix() : Retention::last_window(window)});
    }
    BlockRegistry registry = BlockRegistry::create({model_.groups}).value();
    for (size_t group = 0; group < model_.groups.size(); ++group) {
      bool any = false;
      for (size_t tier = 0; tier < kNumTiers; ++tier) {
        if (any && random_.chance(0.5)) continue;
        any = true;
        const PoolSpec spec{
            .tier = static_cast<TierId>(tier),
            .group = model_.groups[group].id,
            .num_blocks = static_cast<uint32_t>(2 + random_.uniform(random_.chance(0.2) ? 60 : 20)),
            .policy = random_.chance(0.7) ? PolicyKind::kLineage
                                          : static_cast<PolicyKind>(random_.uniform(3)),
            .duplicates = static_cast<DuplicatePolicy>(random_.uniform(2))};
        pools_.push_back(registry.create_pool(spec).value());
        ModelPool pool;
        pool.spec = spec;
        pool.is_window = !model_.groups[group].retention.is_full_prefix();
        pool.blocks.resize(spec.num_blocks);
        pool.limit = spec.num_blocks;
        for (uint32_t block = 0; block < spec.num_blocks; ++block) pool.free.push_back(block);
        model_.pools.push_back(std::move(pool));
      }
    }
    for (Number number = 1; number < kNumNumbers; ++number) {
      // Mostly long chains, some branches, a few roots.
      if (random_.chance(0.08)) continue;
      tree_[number] =
          random_.chance(0.75) ? number - 1 : static_cast<Number>(random_.uniform(number));
    }
    return registry;
  }

  [[nodiscard]] BlockKey key_of(GroupId group, Number number) const {
    return testing::test_key(number, group);
  }
  [[nodiscard]] size_t any_pool() { return random_.uniform(pools_.size()); }

  /// From the root down to `number`, and then on along first children.
  [[nodiscard]] std::vector<Number> path_through(Number number) {
    std::vector<Number> path;
    for (Parent at = number; at; at = tree_[*at]) path.insert(path.begin(), *at);
    for (Number below = number + 1; below < kNumNumbers; ++below) {
      if (tree_[below] == path.back()) path.push_back(below);
    }
    return path;
  }

  void step() {
    switch (random_.uniform(16)) {
      case 0:
      case 1:
        return allocate();
      case 2:
      case 3:
        return complete();
      case 4:
      case 5:
        return register_some();
      case 6:
        return random_.chance(0.3) ? drop_unregistered() : fill_chain();
      case 7:
        return fill_chain();
      case 8:
        return match();
      case 9:
        return match_prefix();
      case 10:
        return random_.chance(0.5) ? find() : clone();
      case 11:
      case 12:
        return drop_some();
      case 13:
        return random_.chance(0.2) ? discard() : release_batch();
      case 14:
        return random_.chance(0.5) ? downgrade() : upgrade();
      default:
        if (random_.chance(0.006)) return shrink();
        return random_.chance(0.03) ? reset_idle() : look();
    }
  }

  void expect_evicted(const ModelPool& pool, std::span<const EvictedBlock> evicted,
                      std::span<const ModelEvicted> expected) {
    ASSERT_EQ(evicted.size(), expected.size());
    for (size_t i = 0; i < evicted.size(); ++i) {
      ASSERT_EQ(evicted[i].key, key_of(pool.spec.group, expected[i].number));
      ASSERT_EQ(evicted[i].block.value(), expected[i].block);
      ASSERT_EQ(evicted[i].parent.has_value(), expected[i].parent.has_value());
      if (expected[i].parent) {
        ASSERT_EQ(*evicted[i].parent, key_of(pool.spec.group, *expected[i].parent));
      }
    }
  }

  /// The blocks that an allocation of `count` takes.
  std::vector<uint32_t> model_allocate(ModelPool& pool, size_t count,
                                       std::vector<ModelEvicted>& evicted) {
    std::vector<uint32_t> blocks;
    while (blocks.size() < count) {
      if (!pool.free.empty()) {
        blocks.push_back(pool.free.front());
        pool.free.pop_front();
        pool.blocks[blocks.back()].state = ModelBlock::kMutable;
      } else {
        evicted.push_back(model_.evict(pool));
        blocks.push_back(evicted.back().block);
      }
    }
    pool.statistics.allocated += count;
    return blocks;
  }

  void take_over(size_t index, Allocation&& allocation, size_t count) {
    ModelPool& pool = model_.pools[index];
    std::vector<ModelEvicted> evicted;
    const std::vector<uint32_t> expected = model_allocate(pool, count, evicted);
    ASSERT_EQ(allocation.blocks.size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_EQ(allocation.blocks[i].block_id().value(), expected[i]);
    }
    expect_evicted(pool, allocation.evicted, evicted);
    for (MutableBlock& block : allocation.blocks) mutable_.push_back({std::move(block), index});
  }

  void allocate() {
    const size_t index = any_pool();
    ModelPool& pool = model_.pools[index];
    const size_t count = random_.chance(0.05) ? random_.uniform(24) : random_.uniform(4);
    const PoolOccupancy before = pool.occupancy();
    const size_t available = before.num_free + before.num_idle;
    if (random_.chance(0.2)) {
      return take_over(index, pools_[index].allocate_up_to(count), std::min(count, available));
    }
    Result<Allocation> allocation = pools_[index].allocate(count);
    ASSERT_EQ(allocation.has_value(), count <= available);
    if (allocation) return take_over(index, std::move(*allocation), count);
    ASSERT_EQ(allocation.error().code(), ErrorCode::kExhausted);
    pool.statistics.refused += count;
  }

  [[nodiscard]] Parent some_parent(Number number) {
    if (random_.chance(0.97)) return tree_[number];
    const auto other = static_cast<Number>(random_.uniform(kNumNumbers));
    return other == number ? std::nullopt : Parent(other);
  }

  void complete_one(HeldMutable&& held, Number number, Parent parent) {
    const GroupId group = model_.pools[held.pool].spec.group;
    std::optional<BlockKey> parent_key;
    if (parent) parent_key = key_of(group, *parent);
    complete_.push_back({std::move(held.guard).complete(key_of(group, number), parent_key),
                         held.pool, number, parent});
  }

  void complete() {
    if (mutable_.empty()) return;
    const auto number = static_cast<Number>(random_.uniform(kNumNumbers));
    complete_one(take_from(mutable_, random_.uniform(mutable_.size())), number,
                 some_parent(number));
  }

  void hold(ImmutableBlock&& guard, size_t pool, uint32_t block) {
    ASSERT_EQ(guard.block_id().value(), block);
    immutable_.push_back({std::move(guard), pool, block});
  }

  void register_some() {
    if (complete_.empty()) return;
    const size_t index = complete_[random_.uniform(complete_.size())].pool;
    const size_t most = 1 + random_.uniform(5);
    std::vector<HeldComplete> chosen;
    for (size_t i = complete_.size(); i-- > 0 && chosen.size() < most;) {
      if (complete_[i].pool == index) chosen.push_back(take_from(complete_, i));
    }
    register_all(index, std::move(chosen));
  }

  void register_all(size_t index, std::vector<HeldComplete>&& chosen) {
    ModelPool& pool = model_.pools[index];
    std::vector<CompleteBlock> guards;
    std::vector<uint32_t> expected;
    const bool alone = chosen.size() == 1 && random_.chance(0.5);
    for (HeldComplete& held : chosen) {
      const uint32_t block = held.guard.block_id().value();
      expected.push_back(model_.register_block(pool, block, held.number, held.parent));
      guards.push_back(std::move(held.guard));
    }
    if (alone) return hold(pools_[index].register_block(std::move(guards[0])), index, expected[0]);
    std::vector<ImmutableBlock> registered = pools_[index].register_blocks(std::move(guards));
    ASSERT_EQ(registered.size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      hold(std::move(registered[i]), index, expected[i]);
    }
  }

  /// What an engine does: a whole prefix is matched, the rest is allocated and registered.
  void fill_chain() {
    const size_t index = any_pool();
    ModelPool& pool = model_.pools[index];
    std::vector<Number> path = path_through(static_cast<Number>(random_.uniform(kNumNumbers)));
    path.resize(1 + random_.uniform(path.size()));
    const size_t known = match_prefix_of(index, path);
    const PoolOccupancy before = pool.occupancy();
    const size_t count = std::min<size_t>(path.size() - known, before.num_free + before.num_idle);
    take_over(index, pools_[index].allocate_up_to(count), count);
    if (::testing::Test::HasFatalFailure()) return;
    std::vector<HeldMutable> blocks;
    for (size_t i = 0; i < count; ++i) {
      blocks.push_back(std::move(mutable_[mutable_.size() - count + i]));
    }
    mutable_.erase(mutable_.end() - static_cast<std::ptrdiff_t>(count), mutable_.end());
    std::vector<HeldComplete> chosen;
    for (size_t i = 0; i < count; ++i) {
      complete_one(std::move(blocks[i]), path[known + i], tree_[path[known + i]]);
      chosen.push_back(take_from(complete_, complete_.size() - 1));
    }
    register_all(index, std::move(chosen));
  }

  void drop_unregistered() {
    if (!complete_.empty() && random_.chance(0.6)) {
      HeldComplete held = take_from(complete_, random_.uniform(complete_.size()));
      if (random_.chance(0.5)) {
        mutable_.push_back({std::move(held.guard).reset(), held.pool});
        return;
      }
      model_.make_free(model_.pools[held.pool], held.guard.block_id().value());
      return;
    }
    if (mutable_.empty()) return;
    const HeldMutable held = take_from(mutable_, random_.uniform(mutable_.size()));
    model_.make_free(model_.pools[held.pool], held.guard.block_id().value());
  }

  void touch_copies(size_t group, Number number) {
    for (size_t tier = 0; tier < kNumTiers; ++tier) {
      ModelPool* const pool = model_.pool_of(group, tier);
      if (pool == nullptr) continue;
      if (const std::optional<uint32_t> block = pool->find(number)) model_.touch(*pool, *block);
    }
  }

  void match() {
    // Some of the groups, in any order, one path.
    std::vector<size_t> chosen;
    for (size_t group = 0; group < model_.groups.size(); ++group) {
      if (random_.chance(0.7)) chosen.push_back(group);
    }
    if (chosen.empty()) chosen.push_back(0);
    random_.shuffle(std::span(chosen));
    const std::vector<Number> path =
        path_through(static_cast<Number>(random_.uniform(kNumNumbers)));
    std::vector<std::vector<BlockKey>> keys;
    size_t shortest = path.size();
    for (const size_t group : chosen) {
      const size_t count = random_.chance(0.8) ? path.size() : random_.uniform(path.size() + 1);
      shortest = std::min(shortest, count);
      keys.emplace_back();
      for (size_t i = 0; i < count; ++i) {
        keys.back().push_back(key_of(model_.groups[group].id, path[i]));
      }
    }
    const size_t first_block = random_.chance(0.5) ? 0 : random_.uniform(shortest + 1);
    std::vector<GroupKeys> question;
    for (size_t i = 0; i < chosen.size(); ++i) {
      question.push_back({model_.groups[chosen[i]].id, keys[i]});
    }
    PrefixMatch found =
        registry_.match(question, {.first_block = static_cast<uint32_t>(first_block)});

    // The longest length that suits all, tried from the top.
    const auto first_of = [&](size_t group, size_t length) {
      const Retention retention = model_.groups[group].retention;
      return std::max<size_t>(retention.first_needed(static_cast<uint32_t>(length)), first_block);
    };
    size_t length = shortest;
    const auto suits_all = [&] {
      for (const size_t group : chosen) {
        for (size_t position = first_of(group, length); position < length; ++position) {
          if (!model_.is_resident(model_.groups[group].id, path[position])) return false;
        }
      }
      return true;
    };
    while (!suits_all()) --length;
    ASSERT_EQ(found.num_blocks, length);
    ASSERT_EQ(found.groups.size(), chosen.size());
    for (size_t i = 0; i < chosen.size(); ++i) {
      const size_t group = chosen[i];
      const size_t first = first_of(group, length);
      GroupMatch& blocks = found.groups[i];
      ASSERT_EQ(blocks.group, model_.groups[group].id);
      ASSERT_EQ(blocks.first, first);
      ASSERT_EQ(blocks.blocks.size(), length - first);
      for (size_t position = first; position < length; ++position) {
        size_t tier = 0;
        while (model_.pool_of(group, tier) == nullptr ||
               !model_.pool_of(group, tier)->find(path[position])) {
          ++tier;
        }
        ModelPool& pool = *model_.pool_of(group, tier);
        const uint32_t block = pool.find(path[position]).value();
        model_.pin(pool, block);
        ++pool.statistics.matched;
        ASSERT_EQ(static_cast<size_t>(blocks.blocks[position - first].tier()), tier);
        hold(std::move(blocks.blocks[position - first]),
             static_cast<size_t>(&pool - model_.pools.data()), block);
      }
      const size_t last_touched = model_.groups[group].retention.is_full_prefix() ? 0 : first;
      for (size_t position = length; position-- > last_touched;) {
        touch_copies(group, path[position]);
      }
    }
  }

  [[nodiscard]] size_t group_index(const ModelPool& pool) const {
    size_t index = 0;
    while (model_.groups[index].id != pool.spec.group) ++index;
    return index;
  }

  size_t match_prefix_of(size_t index, std::span<const Number> path) {
    ModelPool& pool = model_.pools[index];
    std::vector<BlockKey> keys;
    for (const Number number : path) keys.push_back(key_of(pool.spec.group, number));
    std::vector<ImmutableBlock> found = pools_[index].match_prefix(keys);
    size_t length = 0;
    while (length < path.size() && pool.find(path[length])) ++length;
    EXPECT_EQ(found.size(), length);
    if (found.size() != length) std::abort();
    for (size_t i = 0; i < length; ++i) {
      const uint32_t block = pool.find(path[i]).value();
      model_.pin(pool, block);
      ++pool.statistics.matched;
      hold(std::move(found[i]), index, block);
    }
    for (size_t i = length; i-- > 0;) touch_copies(group_index(pool), path[i]);
    return length;
  }

  void match_prefix() {
    const std::vector<Number> path =
        path_through(static_cast<Number>(random_.uniform(kNumNumbers)));
    match_prefix_of(any_pool(), path);
  }

  void find() {
    const size_t index = any_pool();
    ModelPool& pool = model_.pools[index];
    const auto number = static_cast<Number>(random_.uniform(kNumNumbers));
    const BlockKey key = key_of(pool.spec.group, number);
    std::optional<ImmutableBlock> found =
        random_.chance(0.5) ? pools_[index].find(key) : registry_.find(key, pool.spec.tier);
    const std::optional<uint32_t> block = pool.find(number);
    ASSERT_EQ(found.has_value(), block.has_value());
    if (!block) return;
    model_.pin(pool, *block);
    ++pool.statistics.matched;
    hold(std::move(*found), index, *block);
  }

  void clone() {
    if (immutable_.empty()) return;
    const HeldImmutable& held = immutable_[random_.uniform(immutable_.size())];
    const size_t pool = held.pool;
    const uint32_t block = held.block;
    model_.pin(model_.pools[pool], block);
    hold(held.guard.clone(), pool, block);
  }

  void check_guard(const HeldImmutable& held) {
    const ModelPool& pool = model_.pools[held.pool];
    const ModelBlock& block = pool.blocks[held.block];
    ASSERT_EQ(held.guard.key(), key_of(pool.spec.group, block.number));
    ASSERT_EQ(held.guard.is_duplicate(), block.state == ModelBlock::kDuplicate);
    ASSERT_EQ(held.guard.tier(), pool.spec.tier);
  }

  void drop_some() {
    // More than are taken, so that there are idle blocks.
    for (size_t count = 1 + random_.uniform(6); count > 0 && !immutable_.empty(); --count) {
      const HeldImmutable held = take_from(immutable_, random_.uniform(immutable_.size()));
      check_guard(held);
      model_.unpin(model_.pools[held.pool], held.block);
    }
  }

  void release_batch() {
    if (immutable_.empty()) return;
    const bool of_one_pool = random_.chance(0.6);
    const size_t index = immutable_[random_.uniform(immutable_.size())].pool;
    std::vector<HeldImmutable> chosen;
    for (size_t i = immutable_.size(); i-- > 0;) {
      if (of_one_pool && immutable_[i].pool != index) continue;
      if (random_.chance(0.8)) chosen.push_back(take_from(immutable_, i));
    }
    std::vector<ImmutableBlock> guards;
    for (HeldImmutable& held : chosen) guards.push_back(std::move(held.guard));
    for (size_t i = chosen.size(); i-- > 0;) {
      ModelPool& pool = model_.pools[chosen[i].pool];
      if (!pool.is_window) model_.unpin(pool, chosen[i].block);
    }
    for (const HeldImmutable& held : chosen) {
      ModelPool& pool = model_.pools[held.pool];
      if (pool.is_window) model_.unpin(pool, held.block);
    }
    if (of_one_pool) {
      pools_[index].release(std::move(guards));
    } else {
      registry_.release(std::move(guards));
    }
  }

  void discard() {
    if (immutable_.empty()) return;
    HeldImmutable held = take_from(immutable_, random_.uniform(immutable_.size()));
    ModelPool& pool = model_.pools[held.pool];
    const bool was_found = pool.blocks[held.block].state == ModelBlock::kPrimary;
    model_.unpin(pool, held.block);
    if (pool.is_idle(held.block)) {
      model_.evict(pool, held.block);
      model_.make_free(pool, held.block);
    }
    const bool freed = was_found && pool.blocks[held.block].state != ModelBlock::kPrimary;
    ASSERT_EQ(pools_[held.pool].discard(std::move(held.guard)), freed);
  }

  void downgrade() {
    if (immutable_.empty()) return;
    if (weak_.size() >= 64) weak_.erase(weak_.begin(), weak_.begin() + 16);
    const HeldImmutable& held = immutable_[random_.uniform(immutable_.size())];
    weak_.push_back({held.guard.downgrade(), held.pool, held.block,
                     model_.pools[held.pool].blocks[held.block].generation});
  }

  void upgrade() {
    if (weak_.empty()) return;
    const HeldWeak& weak = weak_[random_.uniform(weak_.size())];
    ModelPool& pool = model_.pools[weak.pool];
    const ModelBlock& block = pool.blocks[weak.block];
    const bool alive =
        block.generation == weak.generation &&
        (block.state == ModelBlock::kPrimary || block.state == ModelBlock::kDuplicate);
    std::optional<ImmutableBlock> upgraded = weak.guard.upgrade();
    ASSERT_EQ(upgraded.has_value(), alive);
    if (!alive) return;
    model_.pin(pool, weak.block);
    hold(std::move(*upgraded), weak.pool, weak.block);
  }

  void reset_idle() {
    const size_t index = any_pool();
    ModelPool& pool = model_.pools[index];
    std::vector<ModelEvicted> expected;
    while (model_.victim(pool)) {
      expected.push_back(model_.evict(pool));
      model_.make_free(pool, expected.back().block);
    }
    expect_evicted(pool, pools_[index].reset_idle(), expected);
  }

  /// By a little, and not below two blocks, so that a world goes on.
  void shrink() {
    const size_t index = any_pool();
    ModelPool& pool = model_.pools[index];
    const auto fewer = static_cast<uint32_t>(random_.uniform(4));
    const uint32_t limit = std::max(pool.limit, fewer + 2) - fewer;
    for (uint32_t block = limit; block < pool.limit; ++block) {
      shrunk_.shrunk_idle += pool.is_idle(block) ? 1 : 0;
      shrunk_.shrunk_held +=
          pool.blocks[block].state == ModelBlock::kPrimary && !pool.is_idle(block) ? 1 : 0;
    }
    const std::vector<ModelEvicted> expected = model_.shrink(pool, limit);
    expect_evicted(pool, pools_[index].shrink(limit), expected);
    ASSERT_EQ(pools_[index].limit(), limit);
  }

  void look() {
    const size_t index = any_pool();
    const ModelPool& pool = model_.pools[index];
    const auto number = static_cast<Number>(random_.uniform(kNumNumbers));
    const BlockKey key = key_of(pool.spec.group, number);
    const bool resident = pool.find(number).has_value();
    ASSERT_EQ(pools_[index].is_resident(key), resident);
    ASSERT_EQ(registry_.is_resident(key, pool.spec.tier), resident);
  }

  /// Foretold order of one pool, cut anywhere.
  void check_order() {
    const size_t index = any_pool();
    const PoolOccupancy occupancy = model_.pools[index].occupancy();
    const size_t limit = random_.uniform(occupancy.num_idle + 2);
    Model ahead = model_;
    ModelPool& pool = ahead.pools[index];
    std::vector<ModelEvicted> expected;
    while (expected.size() < limit && ahead.victim(pool)) expected.push_back(ahead.evict(pool));
    expect_evicted(pool, pools_[index].describe(pools_[index].idle_blocks(limit)), expected);
  }

  void check_everything() {
    std::vector<BlockKey> keys;
    for (size_t index = 0; index < pools_.size(); ++index) {
      const ModelPool& pool = model_.pools[index];
      const PoolOccupancy expected = pool.occupancy();
      const PoolOccupancy found = pools_[index].occupancy();
      ASSERT_EQ(found.num_free, expected.num_free);
      ASSERT_EQ(found.num_idle, expected.num_idle);
      ASSERT_EQ(found.num_active, expected.num_active);
      ASSERT_EQ(found.num_mutable, expected.num_mutable);
      const PoolStatistics counts = pools_[index].statistics();
      ASSERT_EQ(counts.allocated, pool.statistics.allocated);
      ASSERT_EQ(counts.refused, pool.statistics.refused);
      ASSERT_EQ(counts.evicted, pool.statistics.evicted);
      ASSERT_EQ(counts.registered, pool.statistics.registered);
      ASSERT_EQ(counts.duplicates, pool.statistics.duplicates);
      ASSERT_EQ(counts.rejected, pool.statistics.rejected);
      ASSERT_EQ(counts.matched, pool.statistics.matched);
      ASSERT_EQ(counts.touched, pool.statistics.touched);
      ASSERT_EQ(counts.parent_conflicts, pool.statistics.parent_conflicts);
      keys.clear();
      for (Number number = 0; number < kNumNumbers; ++number) {
        keys.push_back(key_of(pool.spec.group, number));
      }
      const std::vector<bool> resident = registry_.are_resident(keys, pool.spec.tier);
      for (Number number = 0; number < kNumNumbers; ++number) {
        ASSERT_EQ(resident[number], pool.find(number).has_value());
      }
    }
    const auto [num_ghosts, num_keys] = model_.ghosts_and_keys();
    ASSERT_EQ(registry_.occupancy().num_ghosts, num_ghosts);
    ASSERT_EQ(registry_.occupancy().num_keys, num_keys);
    for (const HeldImmutable& held : immutable_) check_guard(held);
  }

  void let_all_go() {
    mutable_.clear();
    complete_.clear();
    immutable_.clear();
    for (BlockPool& pool : pools_) pool.reset_idle();
    for (size_t index = 0; index < pools_.size(); ++index) {
      ASSERT_EQ(pools_[index].num_free(), model_.pools[index].limit);
      ASSERT_EQ(pools_[index].num_blocks(), model_.pools[index].limit);
    }
    ASSERT_EQ(registry_.occupancy().num_keys, 0U);
    ASSERT_EQ(registry_.occupancy().num_ghosts, 0U);
  }

  Random random_;
  Model model_;
  std::array<Parent, kNumNumbers> tree_{};
  std::vector<BlockPool> pools_;
  BlockRegistry registry_;
  std::vector<HeldMutable> mutable_;
  std::vector<HeldComplete> complete_;
  std::vector<HeldImmutable> immutable_;
  std::vector<HeldWeak> weak_;
  RunStatistics shrunk_;
};

uint64_t num_operations() {
  const char* const text = std::getenv("KVBM_MODEL_OPS");
  return text != nullptr ? std::stoull(text) : 1'000'000;
}

TEST(PoolRegistryModel, AgreesWithThePlainModel) {
  Random seeds(testing::test_seed());
  // Many small worlds: each has its own groups, tiers, policies and tree.
  constexpr uint64_t kOperationsOfAWorld = 10'000;
  const uint64_t operations = num_operations();
  uint64_t left = operations;
  RunStatistics total;
  for (int world = 0; left > 0; ++world) {
    const uint64_t seed = seeds.next();
    SCOPED_TRACE("world " + std::to_string(world) + ", seed " + std::to_string(seed));
    const uint64_t count = std::min(left, kOperationsOfAWorld);
    Machine(seed).run(count, total);
    if (::testing::Test::HasFailure()) return;
    left -= count;
  }
  // Nothing of it may be so rare that the run says little.
  EXPECT_GT(total.evicted, operations / 8);
  EXPECT_GT(total.refused, operations / 100);
  EXPECT_GT(total.duplicates, operations / 500);
  EXPECT_GT(total.rejected, operations / 500);
  EXPECT_GT(total.matched, operations / 8);
  EXPECT_GT(total.touched, operations / 8);
  EXPECT_GT(total.parent_conflicts, operations / 2'000);
  EXPECT_GT(total.inner_evicted, operations / 500);
  EXPECT_GT(total.shrunk_idle, operations / 100'000);
  EXPECT_GT(total.shrunk_held, operations / 100'000);
}

}  // namespace
}  // namespace kvbm
