// SPDX-License-Identifier: Apache-2.0
#include "kvbm/blocks/block_registry.hpp"

#include <optional>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/allocation_meter.hpp"
#include "tests/support/block_chains.hpp"

namespace kvbm {
namespace {

using testing::add_chain;
using testing::AllocationMeter;
using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using testing::expect_occupancy;
using testing::hold_chain;
using testing::idle_content;
using testing::idle_keys;
using testing::keys_of;
using testing::make_pool;
using testing::make_registry;
using testing::test_chain;
using testing::test_key;
using testing::test_keys;

constexpr GroupId kFull{0};
constexpr GroupId kWindow{7};

std::vector<TierId> tiers_of(std::span<const ImmutableBlock> blocks) {
  std::vector<TierId> tiers;
  for (const ImmutableBlock& block : blocks) tiers.push_back(block.tier());
  return tiers;
}

TEST(BlockRegistry, NeedsGroupsThatDiffer) {
  EXPECT_EQ(BlockRegistry::create({}).error().code(), ErrorCode::kInvalidArgument);
  EXPECT_EQ(BlockRegistry::create({{{kFull}, {kWindow}, {kFull}}}).error().code(),
            ErrorCode::kInvalidArgument);
  const BlockRegistry registry = make_registry({{kFull}, {kWindow, Retention::last_window(2)}});
  EXPECT_THAT(registry.groups(),
              ElementsAre(GroupSpec{kFull}, GroupSpec{kWindow, Retention::last_window(2)}));
}

TEST(BlockRegistry, CreatePoolSaysWhatIsWrong) {
  BlockRegistry registry = make_registry();
  const auto message_of = [&](const PoolSpec& spec) {
    const Result<BlockPool> pool = registry.create_pool(spec);
    EXPECT_FALSE(pool);
    EXPECT_EQ(pool.error().code(), ErrorCode::kInvalidArgument);
    return pool.error().message();
  };
  EXPECT_THAT(message_of({TierId::kG2, GroupId(3), 4}), ::testing::HasSubstr("no such group"));
  EXPECT_THAT(message_of({TierId::kG2, kFull, 0}), ::testing::HasSubstr("at least one block"));
  EXPECT_THAT(message_of({TierId::kG2, kFull, 0xffff'ffff}), ::testing::HasSubstr("2^30"));
  EXPECT_THAT(message_of({static_cast<TierId>(4), kFull, 4}), ::testing::HasSubstr("tier"));
  const BlockPool pool = make_pool(registry, 4, TierId::kG2);
  EXPECT_THAT(message_of({TierId::kG2, kFull, 4}), ::testing::HasSubstr("there is one"));
}

TEST(BlockRegistry, PoolGivesAnotherHandle) {
  BlockRegistry registry = make_registry();
  EXPECT_FALSE(registry.pool(TierId::kG1, kFull));
  {
    BlockPool pool = make_pool(registry, 4);
    add_chain(pool, test_keys({1}));
  }
  EXPECT_EQ(registry.pool(TierId::kG1, kFull)->num_idle(), 1U);
  EXPECT_FALSE(registry.pool(TierId::kG1, GroupId(9)));
}

TEST(BlockRegistry, APoolMayComeLater) {
  BlockRegistry registry = make_registry();
  BlockPool first = make_pool(registry, 40, TierId::kG1);
  const std::vector<ImmutableBlock> held = hold_chain(first, test_chain(1, 40));
  const BlockKey& key = held[20].key();
  BlockPool second = make_pool(registry, 4'000, TierId::kG2);
  add_chain(second, test_chain(1, 4'000));
  EXPECT_EQ(&held[20].key(), &key);
  EXPECT_EQ(key, test_key(21));
  EXPECT_EQ(registry.occupancy().num_keys, 4'000U);
}

class TwoTiers : public ::testing::Test {
 protected:
  PrefixMatch match(const std::vector<BlockKey>& keys, uint32_t first_block = 0) {
    const GroupKeys group{kFull, keys};
    return registry_.match({&group, 1}, {.first_block = first_block});
  }

  BlockRegistry registry_ = make_registry();
  BlockPool host_ = make_pool(registry_, 8, TierId::kG2);
  BlockPool disk_ = make_pool(registry_, 8, TierId::kG3);
};

TEST_F(TwoTiers, MatchPinsTheNearestCopy) {
  const std::vector<BlockKey> keys = test_chain(1, 5);
  add_chain(disk_, std::span(keys).first(4));
  add_chain(host_, std::span(keys).first(2));
  const PrefixMatch found = match(keys);
  EXPECT_EQ(found.num_blocks, 4U);
  ASSERT_EQ(found.groups.size(), 1U);
  EXPECT_EQ(found.groups[0].group, kFull);
  EXPECT_EQ(found.groups[0].first, 0U);
  EXPECT_THAT(keys_of(found.groups[0].blocks), ElementsAreArray(test_chain(1, 4)));
  EXPECT_THAT(tiers_of(found.groups[0].blocks),
              ElementsAre(TierId::kG2, TierId::kG2, TierId::kG3, TierId::kG3));
  expect_occupancy(host_, 6, 0, 2, 0);
  expect_occupancy(disk_, 4, 2, 2, 0);
  EXPECT_EQ(disk_.statistics().touched, 2U);
  EXPECT_EQ(disk_.statistics().matched, 2U);
  EXPECT_EQ(host_.statistics().matched, 2U);
}

TEST_F(TwoTiers, AMatchMayMixTiersInAnyOrder) {
  const std::vector<BlockKey> keys = test_chain(1, 3);
  add_chain(host_, test_keys({1}));
  add_chain(disk_, test_keys({2}), test_key(1));
  add_chain(host_, test_keys({3}), test_key(2));
  EXPECT_THAT(tiers_of(match(keys).groups[0].blocks),
              ElementsAre(TierId::kG2, TierId::kG3, TierId::kG2));
}

TEST_F(TwoTiers, AMatchRenewsTheSlowerCopies) {
  add_chain(disk_, test_chain(1, 2));
  add_chain(disk_, test_chain(11, 2));
  add_chain(host_, test_chain(1, 2));
  EXPECT_THAT(idle_keys(disk_), ElementsAreArray(test_keys({2, 1, 12, 11})));
  registry_.release(match(test_chain(1, 2)));
  EXPECT_THAT(idle_keys(disk_), ElementsAreArray(test_keys({12, 11, 2, 1})));
}

TEST(BlockRegistry, AMatchRenewsTheDeepestCopyFirst) {
  BlockRegistry registry = make_registry();
  BlockPool host = make_pool(registry, 4, TierId::kG2);
  BlockPool disk = make_pool(registry, 4, TierId::kG3, kFull, PolicyKind::kLru);
  for (const uint64_t number : {1U, 2U, 3U}) add_chain(disk, test_keys({number}));
  add_chain(host, test_chain(1, 3));
  registry.release(host.match_prefix(test_chain(1, 3)));
  EXPECT_THAT(idle_keys(disk), ElementsAreArray(test_keys({3, 2, 1})));
}

TEST_F(TwoTiers, BlocksThatTheCallerHasAreTouchedAndNotPinned) {
  add_chain(host_, test_keys({11}));
  add_chain(host_, test_chain(1, 4));
  add_chain(disk_, test_chain(1, 4));
  const PrefixMatch found = match(test_chain(1, 4), 3);
  EXPECT_EQ(found.num_blocks, 4U);
  EXPECT_EQ(found.groups[0].first, 3U);
  EXPECT_THAT(keys_of(found.groups[0].blocks), ElementsAreArray(test_keys({4})));
  expect_occupancy(host_, 3, 4, 1, 0);
  EXPECT_EQ(host_.statistics().touched, 3U);
  EXPECT_EQ(disk_.statistics().touched, 4U);
}

TEST_F(TwoTiers, BlocksThatTheCallerHasNeedNotBeResident) {
  add_chain(host_, test_keys({3, 4}), test_key(2));
  EXPECT_EQ(match(test_chain(1, 4)).num_blocks, 0U);
  const PrefixMatch found = match(test_chain(1, 4), 2);
  EXPECT_EQ(found.num_blocks, 4U);
  EXPECT_EQ(found.groups[0].blocks.size(), 2U);
}

TEST_F(TwoTiers, WithNothingToRestoreTheMatchIsWhatTheCallerHas) {
  const PrefixMatch found = match(test_chain(1, 4), 2);
  EXPECT_EQ(found.num_blocks, 2U);
  EXPECT_EQ(found.groups[0].first, 2U);
  EXPECT_TRUE(found.groups[0].blocks.empty());
  add_chain(host_, test_chain(1, 2));
  EXPECT_EQ(match(test_chain(1, 4), 2).num_blocks, 2U);
  EXPECT_EQ(host_.statistics().touched, 2U);
}

TEST_F(TwoTiers, MatchRefusesBrokenQuestions) {
  const std::vector<BlockKey> keys = test_chain(1, 2);
  add_chain(host_, keys);
  EXPECT_THROW(static_cast<void>(registry_.match({})), ContractViolation);
  EXPECT_THROW(static_cast<void>(match(keys, 3)), ContractViolation);
  const std::vector<GroupKeys> unknown = {{GroupId(5), keys}};
  EXPECT_THROW(static_cast<void>(registry_.match(unknown)), ContractViolation);
  const std::vector<GroupKeys> twice = {{kFull, keys}, {kFull, keys}};
  EXPECT_THROW(static_cast<void>(registry_.match(twice)), ContractViolation);
  const std::vector<BlockKey> foreign = test_chain(1, 2, kWindow);
  const std::vector<GroupKeys> mixed = {{kFull, foreign}};
  EXPECT_THROW(static_cast<void>(registry_.match(mixed)), ContractViolation);
  expect_occupancy(host_, 6, 2, 0, 0);
}

TEST_F(TwoTiers, FindAndIsResidentLookAtOneTier) {
  add_chain(host_, test_keys({1}));
  EXPECT_TRUE(registry_.is_resident(test_key(1), TierId::kG2));
  EXPECT_FALSE(registry_.is_resident(test_key(1), TierId::kG3));
  EXPECT_FALSE(registry_.is_resident(test_key(1), TierId::kG1));
  EXPECT_FALSE(registry_.is_resident(test_key(1, kWindow), TierId::kG2));
  EXPECT_FALSE(registry_.find(test_key(1), TierId::kG3));
  EXPECT_FALSE(registry_.find(test_key(1), TierId::kG1));
  expect_occupancy(host_, 7, 1, 0, 0);
  const std::optional<ImmutableBlock> found = registry_.find(test_key(1), TierId::kG2);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->tier(), TierId::kG2);
  expect_occupancy(host_, 7, 0, 1, 0);
}

TEST_F(TwoTiers, ResidencyOfManyKeysAtOnce) {
  add_chain(disk_, test_chain(3, 8));
  EXPECT_THAT(registry_.are_resident(test_keys({2, 3, 10, 11, 5}), TierId::kG3),
              ElementsAre(false, true, true, false, true));
  EXPECT_THAT(registry_.are_resident(test_keys({3}), TierId::kG2), ElementsAre(false));
  EXPECT_TRUE(registry_.are_resident({}, TierId::kG2).empty());
  const std::vector<bool> many = registry_.are_resident(test_chain(1, 40), TierId::kG3);
  ASSERT_EQ(many.size(), 40U);
  for (size_t i = 0; i < many.size(); ++i) EXPECT_EQ(many[i], i >= 2 && i < 10) << i;
}

TEST_F(TwoTiers, ReleaseTakesBlocksOfAllPools) {
  add_chain(host_, test_keys({1, 2}));
  add_chain(disk_, test_keys({3}), test_key(2));
  std::vector<ImmutableBlock> held = std::move(match(test_chain(1, 3)).groups[0].blocks);
  ASSERT_EQ(held.size(), 3U);
  registry_.release(std::move(held));
  expect_occupancy(host_, 6, 2, 0, 0);
  expect_occupancy(disk_, 7, 1, 0, 0);
  BlockRegistry stranger = make_registry();
  EXPECT_THROW(stranger.release(match(test_chain(1, 3))), ContractViolation);
}

TEST_F(TwoTiers, LeavesAreCountedInEachTierOfItsOwn) {
  // 1 has a child on the host alone, so on disk it is a leaf.
  add_chain(host_, test_chain(1, 2));
  add_chain(disk_, test_keys({1}));
  add_chain(disk_, test_keys({9}));
  EXPECT_THAT(idle_keys(host_), ElementsAreArray(test_keys({2, 1})));
  EXPECT_THAT(idle_keys(disk_), ElementsAreArray(test_keys({1, 9})));
}

TEST_F(TwoTiers, AGhostLivesAsLongAsItHasResidentChildren) {
  add_chain(host_, test_keys({2}), test_key(1));
  add_chain(disk_, test_keys({3}), test_key(1));
  EXPECT_EQ(registry_.occupancy().num_keys, 2U);
  EXPECT_EQ(registry_.occupancy().num_ghosts, 1U);
  EXPECT_FALSE(registry_.is_resident(test_key(1), TierId::kG2));
  EXPECT_EQ(match(test_keys({1})).num_blocks, 0U);  // a ghost is no hit
  EXPECT_THAT(idle_content(host_)[0].parent, test_key(1));
  host_.reset_idle();
  EXPECT_EQ(registry_.occupancy().num_ghosts, 1U);
  disk_.reset_idle();
  EXPECT_EQ(registry_.occupancy().num_ghosts, 0U);
  EXPECT_EQ(registry_.occupancy().num_keys, 0U);
}

TEST_F(TwoTiers, AParentThatComesBackFindsItsChildren) {
  add_chain(host_, test_keys({2}), test_key(1));
  add_chain(host_, test_keys({1}));
  EXPECT_EQ(registry_.occupancy().num_ghosts, 0U);
  // 1 was released last, but 2 before it; without the link 2 would go first anyway, so touch 2.
  registry_.release(match(test_keys({2})));
  EXPECT_THAT(idle_keys(host_), ElementsAreArray(test_keys({2, 1})));
}

TEST_F(TwoTiers, AParentThatLeavesBecomesAGhostAndComesBack) {
  std::vector<ImmutableBlock> chain = hold_chain(host_, test_chain(1, 3));
  chain.erase(chain.begin(), chain.begin() + 2);
  host_.reset_idle();  // 1 and 2 go while 3 is held
  EXPECT_EQ(registry_.occupancy().num_ghosts, 1U);
  add_chain(disk_, test_keys({2}), test_key(1));
  EXPECT_EQ(registry_.occupancy().num_ghosts, 1U);  // now it is 1
  EXPECT_EQ(registry_.occupancy().num_keys, 2U);
  chain.clear();
  EXPECT_EQ(match(test_chain(1, 3), 1).num_blocks, 3U);
}

TEST_F(TwoTiers, AGhostForgetsItsParent) {
  std::vector<ImmutableBlock> chain = hold_chain(host_, test_keys({2, 3}), test_key(1));
  chain.erase(chain.begin());
  host_.reset_idle();
  EXPECT_EQ(registry_.occupancy().num_ghosts, 1U);  // 2; nobody needs 1 any more
  add_chain(host_, test_keys({2}));
  EXPECT_FALSE(idle_content(host_)[0].parent);
  EXPECT_EQ(registry_.occupancy().num_ghosts, 0U);
}

TEST_F(TwoTiers, AKeyKeepsItsFirstParent) {
  add_chain(host_, test_keys({2}), test_key(1));
  add_chain(disk_, test_keys({2}), test_key(5));
  EXPECT_EQ(idle_content(disk_)[0].parent, test_key(1));
  EXPECT_EQ(disk_.statistics().parent_conflicts, 1U);
  host_.reset_idle();
  disk_.reset_idle();
  add_chain(disk_, test_keys({2}), test_key(5));
  EXPECT_EQ(idle_content(disk_)[0].parent, test_key(5));
}

TEST_F(TwoTiers, ADisagreementAboutParentsIsCountedEachWay) {
  add_chain(host_, test_keys({2}), test_key(1));
  add_chain(disk_, test_keys({2}));
  EXPECT_EQ(disk_.statistics().parent_conflicts, 1U);
  add_chain(host_, test_keys({3}));
  add_chain(disk_, test_keys({3}), test_key(2));
  EXPECT_EQ(disk_.statistics().parent_conflicts, 2U);
  add_chain(host_, test_keys({4}));
  add_chain(disk_, test_keys({4}));
  EXPECT_EQ(disk_.statistics().parent_conflicts, 2U);
}

TEST_F(TwoTiers, ParentsInACircleAreGivenUpToo) {
  add_chain(host_, test_keys({1}), test_key(2));
  add_chain(host_, test_keys({2}), test_key(1));
  EXPECT_EQ(idle_keys(host_).size(), 2U);
  EXPECT_EQ(host_.allocate(8).value().evicted.size(), 2U);
  EXPECT_EQ(registry_.occupancy().num_keys + registry_.occupancy().num_ghosts, 0U);
}

class WithWindow : public ::testing::Test {
 protected:
  PrefixMatch match(size_t count, uint32_t first_block = 0) {
    const std::vector<BlockKey> full = test_chain(1, count, kFull);
    const std::vector<BlockKey> window = test_chain(1, count, kWindow);
    const std::vector<GroupKeys> groups = {{kWindow, window}, {kFull, full}};
    return registry_.match(groups, {.first_block = first_block});
  }
  /// Makes position `position` of the window group resident.
  void add_window(uint64_t position) {
    add_chain(window_, test_keys({position + 1}, kWindow), test_key(position, kWindow));
  }

  BlockRegistry registry_ = make_registry({{kFull}, {kWindow, Retention::last_window(3)}});
  BlockPool full_ = make_pool(registry_, 200, TierId::kG2, kFull);
  BlockPool window_ = make_pool(registry_, 200, TierId::kG3, kWindow);
};

TEST_F(WithWindow, AWindowNeedsOnlyItsLastBlocks) {
  add_chain(full_, test_chain(1, 10, kFull));
  for (const uint64_t position : {5U, 6U, 7U, 8U}) add_window(position);
  const PrefixMatch found = match(12);
  EXPECT_EQ(found.num_blocks, 9U);
  EXPECT_EQ(found.groups[0].group, kWindow);
  EXPECT_EQ(found.groups[0].first, 6U);
  EXPECT_THAT(keys_of(found.groups[0].blocks), ElementsAreArray(test_chain(7, 3, kWindow)));
  EXPECT_EQ(found.groups[1].first, 0U);
  EXPECT_THAT(keys_of(found.groups[1].blocks), ElementsAreArray(test_chain(1, 9, kFull)));
  // Position 5 was not needed: not pinned, not touched.
  expect_occupancy(window_, 196, 1, 3, 0);
  EXPECT_EQ(window_.statistics().touched, 0U);
}

TEST_F(WithWindow, TheFullGroupLimitsTheWindow) {
  add_chain(full_, test_chain(1, 4, kFull));
  for (uint64_t position = 0; position < 10; ++position) add_window(position);
  const PrefixMatch found = match(10);
  EXPECT_EQ(found.num_blocks, 4U);
  EXPECT_EQ(found.groups[0].first, 1U);
  EXPECT_EQ(found.groups[0].blocks.size(), 3U);
}

TEST_F(WithWindow, AHoleMovesTheWindowBack) {
  add_chain(full_, test_chain(1, 10, kFull));
  for (const uint64_t position : {1U, 2U, 3U, 5U, 6U, 8U, 9U}) add_window(position);
  EXPECT_EQ(match(10).num_blocks, 4U);
}

TEST_F(WithWindow, AShortPrefixNeedsAWindowFromItsRoot) {
  add_chain(full_, test_chain(1, 10, kFull));
  add_window(0);
  add_window(1);
  EXPECT_EQ(match(10).num_blocks, 2U);
}

TEST_F(WithWindow, WhatTheCallerHasShortensTheWindow) {
  add_chain(full_, test_chain(1, 10, kFull));
  add_window(8);
  EXPECT_EQ(match(10).num_blocks, 0U);
  const PrefixMatch found = match(10, 8);
  EXPECT_EQ(found.num_blocks, 9U);
  EXPECT_EQ(found.groups[0].first, 8U);
  EXPECT_EQ(found.groups[0].blocks.size(), 1U);
  EXPECT_EQ(found.groups[1].blocks.size(), 1U);
  EXPECT_EQ(match(10, 5).num_blocks, 5U);
}

TEST_F(WithWindow, AMissFarDownIsFound) {
  add_chain(full_, test_chain(1, 150, kFull));
  for (uint64_t position = 40; position < 43; ++position) add_window(position);
  EXPECT_EQ(match(150).num_blocks, 43U);
}

TEST(BlockRegistry, SeveralWindowsAgreeOnOneLength) {
  const std::vector<GroupId> ids = {GroupId(1), GroupId(2), GroupId(3)};
  BlockRegistry registry = make_registry({{ids[0], Retention::last_window(2)},
                                          {ids[1], Retention::last_window(3)},
                                          {ids[2], Retention::last_window(1)}});
  std::vector<BlockPool> pools;
  for (const GroupId id : ids) pools.push_back(make_pool(registry, 64, TierId::kG1, id));
  const auto add = [&](size_t group, std::initializer_list<uint64_t> positions) {
    for (const uint64_t position : positions) {
      add_chain(pools[group], test_keys({position}, ids[group]));
    }
  };
  // 10 suits the first, 6 also the second, 5 also the third, and so the first has to go on to 2.
  add(0, {0, 1, 4, 5, 8, 9});
  add(1, {0, 1, 3, 4, 5, 7, 8});
  add(2, {1, 4, 9});
  std::vector<std::vector<BlockKey>> keys;
  std::vector<GroupKeys> groups;
  for (const GroupId id : ids) keys.push_back(test_chain(0, 11, id));
  for (size_t i = 0; i < ids.size(); ++i) groups.push_back({ids[i], keys[i]});
  const PrefixMatch found = registry.match(groups);
  EXPECT_EQ(found.num_blocks, 2U);
  EXPECT_EQ(found.groups[0].blocks.size(), 2U);
  EXPECT_EQ(found.groups[1].blocks.size(), 2U);
  EXPECT_EQ(found.groups[2].blocks.size(), 1U);
}

TEST(BlockRegistry, GroupsDoNotShareKeys) {
  BlockRegistry registry = make_registry({{kFull}, {kWindow, Retention::last_window(3)}});
  BlockPool full = make_pool(registry, 4, TierId::kG1, kFull);
  BlockPool window = make_pool(registry, 4, TierId::kG1, kWindow);
  add_chain(full, test_keys({1}, kFull));
  EXPECT_FALSE(window.find(test_key(1, kWindow)));
  EXPECT_FALSE(registry.is_resident(test_key(1, kWindow), TierId::kG1));
}

TEST(BlockRegistry, NamespacesDoNotShareKeys) {
  BlockRegistry registry = make_registry();
  BlockPool pool = make_pool(registry, 4);
  add_chain(pool, test_keys({1}));
  BlockKey other = test_key(1);
  other.ns = NamespaceId(other.ns.value() + 1);
  EXPECT_FALSE(pool.find(other));
}

TEST(BlockRegistry, AMatchOverGroupsAllocatesNothingButItsResult) {
  BlockRegistry registry = make_registry({{kFull}, {kWindow, Retention::last_window(3)}});
  BlockPool full = make_pool(registry, 64, TierId::kG1, kFull);
  BlockPool window = make_pool(registry, 64, TierId::kG1, kWindow);
  const std::vector<BlockKey> full_keys = test_chain(1, 50, kFull);
  const std::vector<BlockKey> window_keys = test_chain(1, 50, kWindow);
  add_chain(full, full_keys);
  add_chain(window, window_keys);
  const std::vector<GroupKeys> groups = {{kFull, full_keys}, {kWindow, window_keys}};
  registry.release(registry.match(groups));
  const AllocationMeter meter;
  registry.release(registry.match(groups));
  EXPECT_EQ(meter.count(), 3U);
}

TEST(BlockRegistry, MemoryStaysBelow150BytesABlock) {
  constexpr uint32_t kBlocks = 50'000;
  BlockRegistry registry = make_registry();
  BlockPool pool = make_pool(registry, kBlocks);
  for (uint64_t first = 0; first < 3 * kBlocks; first += 20) add_chain(pool, test_chain(first, 20));
  EXPECT_EQ(pool.num_idle(), kBlocks);
  EXPECT_LT(registry.occupancy().memory_bytes, 150U * kBlocks);
}

TEST(BlockRegistry, AMovedFromRegistryIsAContractViolation) {
  BlockRegistry registry = make_registry();
  BlockRegistry moved = std::move(registry);
  EXPECT_EQ(moved.groups().size(), 1U);
  EXPECT_THROW(static_cast<void>(registry.groups()), ContractViolation);
  EXPECT_THROW(static_cast<void>(registry.match({})), ContractViolation);
  registry = std::move(moved);
  EXPECT_EQ(registry.groups().size(), 1U);
}

}  // namespace
}  // namespace kvbm
