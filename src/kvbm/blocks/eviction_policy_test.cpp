// SPDX-License-Identifier: Apache-2.0
#include "kvbm/blocks/eviction_policy.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/random.hpp"
#include "kvbm/blocks/internal/eviction_policy.hpp"

namespace kvbm {
namespace {

using internal::ChainView;
using internal::EvictionPolicy;
using internal::kNone;
using ::testing::ElementsAre;

TEST(PolicyKind, NamesGoBothWays) {
  EXPECT_THAT(policy_names(), ElementsAre("lineage", "lru", "fifo"));
  for (const std::string_view name : policy_names()) {
    const Result<PolicyKind> policy = parse_policy(name);
    ASSERT_TRUE(policy);
    EXPECT_EQ(to_string(*policy), name);
  }
}

TEST(PolicyKind, AnUnknownNameIsAnErrorThatListsTheNames) {
  const Result<PolicyKind> policy = parse_policy("random");
  ASSERT_FALSE(policy);
  EXPECT_EQ(policy.error().code(), ErrorCode::kInvalidArgument);
  for (const std::string_view part : {"random", "lineage", "lru", "fifo"}) {
    EXPECT_THAT(policy.error().message(), ::testing::HasSubstr(std::string(part)));
  }
}

/// Chains given as a parent for each block.
class Chains final : public ChainView {
 public:
  explicit Chains(std::vector<uint32_t> parents) : parents_(std::move(parents)) {}

  [[nodiscard]] uint32_t parent_of(uint32_t block) const override { return parents_[block]; }
  [[nodiscard]] uint32_t num_children(uint32_t block) const override {
    uint32_t count = 0;
    for (const uint32_t parent : parents_) count += parent == block ? 1 : 0;
    return count;
  }
  void forget(uint32_t block) { parents_[block] = kNone; }

 private:
  std::vector<uint32_t> parents_;
};

std::vector<uint32_t> order_of(const EvictionPolicy& policy, const ChainView& chains,
                               size_t limit = 100) {
  std::vector<uint32_t> order;
  policy.order(chains, limit, order);
  return order;
}

/// Evicts `count` idle blocks, which are all there are, the way a pool does.
std::vector<uint32_t> drain(EvictionPolicy& policy, Chains chains, size_t count) {
  std::vector<uint32_t> order;
  const auto is_gone = [&](uint32_t block) {
    return std::find(order.begin(), order.end(), block) != order.end();
  };
  for (; count > 0; --count) {
    const uint32_t block = policy.victim();
    policy.erase(block);
    order.push_back(block);
    const uint32_t parent = chains.parent_of(block);
    chains.forget(block);
    if (parent == kNone || is_gone(parent) || chains.num_children(parent) > 0) continue;
    policy.set_has_child(parent, false);
  }
  return order;
}

TEST(LruPolicy, GivesUpWhatWasUsedLongestAgo) {
  const auto policy = internal::make_lru_policy(4);
  const Chains none({kNone, kNone, kNone, kNone});
  for (uint32_t block = 0; block < 4; ++block) policy->insert(block, block + 1, block % 2 == 0);
  policy->touch(0, 5);
  policy->erase(2);
  EXPECT_THAT(order_of(*policy, none), ElementsAre(1, 3, 0));
  EXPECT_THAT(order_of(*policy, none, 2), ElementsAre(1, 3));
  EXPECT_THAT(drain(*policy, none, 3), ElementsAre(1, 3, 0));
}

TEST(FifoPolicy, GivesUpWhatWasRegisteredFirst) {
  const auto policy = internal::make_fifo_policy(4);
  const Chains none({kNone, kNone, kNone, kNone});
  for (const uint32_t block : {2U, 0U, 3U, 1U}) policy->on_registered(block, 10 + block);
  for (const uint32_t block : {3U, 1U, 0U, 2U}) policy->insert(block, 20 - block, false);
  policy->touch(0, 30);
  policy->erase(1);
  EXPECT_THAT(order_of(*policy, none), ElementsAre(0, 2, 3));
  EXPECT_THAT(order_of(*policy, none, 1), ElementsAre(0));
  EXPECT_THAT(drain(*policy, none, 3), ElementsAre(0, 2, 3));
}

TEST(LineagePolicy, AParentReentersWithItsOriginalTick) {
  // 0 ← 1 ← 2, and 3 alone; the chain is older than 3 except for its leaf.
  const auto policy = internal::make_lineage_policy(4);
  const Chains chains({kNone, 0, 1, kNone});
  policy->insert(0, 1, true);
  policy->insert(1, 2, true);
  policy->insert(3, 3, false);
  policy->insert(2, 4, false);
  EXPECT_THAT(order_of(*policy, chains), ElementsAre(3, 2, 1, 0));
  EXPECT_THAT(drain(*policy, chains, 4), ElementsAre(3, 2, 1, 0));
}

TEST(LineagePolicy, TheLimitCutsTheOrder) {
  const auto policy = internal::make_lineage_policy(4);
  const Chains chains({kNone, 0, 1, kNone});
  policy->insert(2, 1, false);
  policy->insert(1, 2, true);
  policy->insert(0, 3, true);
  EXPECT_THAT(order_of(*policy, chains, 2), ElementsAre(2, 1));
}

TEST(LineagePolicy, ATouchOfAnInnerBlockCountsWhenItBecomesALeaf) {
  const auto policy = internal::make_lineage_policy(4);
  const Chains chains({kNone, 0, kNone, kNone});
  policy->insert(0, 1, true);
  policy->insert(1, 2, false);
  policy->insert(2, 3, false);
  policy->touch(0, 4);
  EXPECT_THAT(order_of(*policy, chains), ElementsAre(1, 2, 0));
  EXPECT_THAT(drain(*policy, chains, 3), ElementsAre(1, 2, 0));
}

TEST(LineagePolicy, ABlockWithAChildIsNoLeafAnyMore) {
  const auto policy = internal::make_lineage_policy(4);
  const Chains chains({kNone, 0, kNone, kNone});
  policy->insert(0, 1, false);
  policy->insert(2, 2, false);
  EXPECT_EQ(policy->victim(), 0U);
  policy->set_has_child(0, true);
  EXPECT_EQ(policy->victim(), 2U);
}

TEST(LineagePolicy, WithoutALeafTheLongestInPositionGoes) {
  // 0 ← 1 ← 2 ← 3 where 3 is held; 1 came to be inside first, then 2; 0 was touched last.
  const auto policy = internal::make_lineage_policy(4);
  const Chains chains({kNone, 0, 1, 2});
  policy->insert(0, 1, true);
  policy->insert(1, 2, true);
  policy->insert(2, 3, true);
  policy->touch(0, 4);
  EXPECT_EQ(policy->victim(), 1U);
  // Without 1, 0 is a leaf and goes before 2, whose child is held.
  EXPECT_THAT(order_of(*policy, chains), ElementsAre(1, 0, 2));
  EXPECT_THAT(drain(*policy, chains, 3), ElementsAre(1, 0, 2));
}

TEST(LineagePolicy, ACycleOfParentsIsGivenUpToo) {
  const auto policy = internal::make_lineage_policy(2);
  const Chains chains({1, 0});
  policy->insert(0, 1, true);
  policy->insert(1, 2, true);
  EXPECT_THAT(order_of(*policy, chains), ElementsAre(0, 1));
  EXPECT_THAT(drain(*policy, chains, 2), ElementsAre(0, 1));
}

// Random forests, random ticks: the order that is foretold is the one that comes about.
TEST(LineagePolicy, OrderForetellsTheVictims) {
  Random random(7);
  for (int round = 0; round < 300; ++round) {
    const auto count = static_cast<uint32_t>(1 + random.uniform(40));
    std::vector<uint32_t> parents(count, kNone);
    for (uint32_t block = 1; block < count; ++block) {
      if (random.chance(0.8)) parents[block] = static_cast<uint32_t>(random.uniform(block));
    }
    const Chains chains(parents);
    std::vector<uint32_t> blocks(count);
    for (uint32_t block = 0; block < count; ++block) blocks[block] = block;
    random.shuffle(std::span(blocks));
    const auto policy = internal::make_lineage_policy(count);
    uint64_t tick = 0;
    for (const uint32_t block : blocks) {
      policy->insert(block, ++tick, chains.num_children(block) > 0);
    }
    for (int i = 0; i < 10; ++i) policy->touch(blocks[random.uniform(count)], ++tick);
    const std::vector<uint32_t> foretold = order_of(*policy, chains);
    ASSERT_EQ(foretold.size(), count);
    ASSERT_EQ(foretold, drain(*policy, chains, count)) << "round " << round;
  }
}

TEST(MakePolicy, LineageOfAWindowIsLeastRecentlyUsed) {
  const auto policy = internal::make_policy(PolicyKind::kLineage, Retention::last_window(2), 2);
  policy->insert(0, 1, true);
  policy->insert(1, 2, false);
  EXPECT_EQ(policy->victim(), 0U);
}

}  // namespace
}  // namespace kvbm
