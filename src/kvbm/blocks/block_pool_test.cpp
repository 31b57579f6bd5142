// SPDX-License-Identifier: Apache-2.0
#include "kvbm/blocks/block_pool.hpp"

#include <optional>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/blocks/block_registry.hpp"

#include "tests/support/allocation_meter.hpp"
#include "tests/support/block_chains.hpp"

namespace kvbm {
namespace {

using testing::add_chain;
using testing::AllocationMeter;
using testing::complete_chain;
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

std::vector<uint32_t> ids_of(std::span<const MutableBlock> blocks) {
  std::vector<uint32_t> ids;
  for (const MutableBlock& block : blocks) ids.push_back(block.block_id().value());
  return ids;
}

class BlockPoolTest : public ::testing::Test {
 protected:
  BlockRegistry registry_ = make_registry();
  BlockPool pool_ = make_pool(registry_, 6);
};

TEST_F(BlockPoolTest, TellsWhatItWasMadeOf) {
  EXPECT_EQ(pool_.tier(), TierId::kG1);
  EXPECT_EQ(pool_.group(), GroupId(0));
  EXPECT_EQ(pool_.policy(), PolicyKind::kLineage);
  EXPECT_EQ(pool_.num_blocks(), 6U);
  expect_occupancy(pool_, 6, 0, 0, 0);
}

TEST_F(BlockPoolTest, AllocatesFreeBlocksInTheOrderInWhichTheyBecameFree) {
  std::vector<MutableBlock> blocks = std::move(pool_.allocate(6).value().blocks);
  EXPECT_THAT(ids_of(blocks), ElementsAre(0, 1, 2, 3, 4, 5));
  for (const size_t i : {4U, 0U, 3U}) {
    const MutableBlock dropped = std::move(blocks[i]);
  }
  EXPECT_THAT(ids_of(pool_.allocate(3).value().blocks), ElementsAre(4, 0, 3));
}

TEST_F(BlockPoolTest, AllocatesNothingWhenAskedForNothing) {
  const Result<Allocation> allocation = pool_.allocate(0);
  ASSERT_TRUE(allocation);
  EXPECT_TRUE(allocation->blocks.empty());
  EXPECT_TRUE(allocation->evicted.empty());
}

TEST_F(BlockPoolTest, AllocateIsAllOrNothing) {
  add_chain(pool_, test_chain(1, 2));
  const std::vector<ImmutableBlock> held = hold_chain(pool_, test_chain(10, 2));
  const Result<Allocation> allocation = pool_.allocate(5);
  ASSERT_FALSE(allocation);
  EXPECT_EQ(allocation.error().code(), ErrorCode::kExhausted);
  EXPECT_THAT(allocation.error().message(), ::testing::HasSubstr("2 free, 2 idle, 2 active"));
  expect_occupancy(pool_, 2, 2, 2, 0);
  EXPECT_TRUE(pool_.is_resident(test_key(1)));
  EXPECT_EQ(pool_.statistics().refused, 5U);
  EXPECT_EQ(pool_.statistics().evicted, 0U);
  EXPECT_TRUE(pool_.allocate(4));
}

TEST_F(BlockPoolTest, AllocateSurvivesAnAbsurdNumber) {
  EXPECT_EQ(pool_.allocate(~size_t{0}).error().code(), ErrorCode::kExhausted);
}

TEST_F(BlockPoolTest, AllocateTakesFreeBlocksBeforeItEvicts) {
  add_chain(pool_, test_chain(1, 4));
  const Allocation allocation = pool_.allocate(3).value();
  EXPECT_THAT(ids_of(allocation.blocks), ElementsAre(4, 5, 3));
  ASSERT_EQ(allocation.evicted.size(), 1U);
  EXPECT_EQ(allocation.evicted[0].key, test_key(4));
  EXPECT_EQ(allocation.evicted[0].parent, test_key(3));
  EXPECT_EQ(allocation.evicted[0].block, BlockId(3));
  EXPECT_FALSE(pool_.is_resident(test_key(4)));
  expect_occupancy(pool_, 0, 3, 0, 3);
}

TEST_F(BlockPoolTest, AllocateEvictsTheOldestIdleLeaf) {
  // Two chains with a common root: 1 ← 2 ← 3 and 1 ← 4; 3 was released before 4.
  add_chain(pool_, test_chain(1, 3));
  add_chain(pool_, test_keys({4}), test_key(1));
  const Allocation allocation = pool_.allocate(6).value();
  // 3 has the oldest tick; then 2 is a leaf with the next one; 1 has a child until 4 is gone.
  EXPECT_THAT(keys_of(allocation.evicted), ElementsAreArray(test_keys({3, 2, 4, 1})));
  EXPECT_EQ(allocation.evicted[2].parent, test_key(1));
  EXPECT_FALSE(allocation.evicted[3].parent);
}

TEST_F(BlockPoolTest, AMatchedChainOutlivesANewerOne) {
  add_chain(pool_, test_chain(1, 3));
  add_chain(pool_, test_chain(11, 3));
  pool_.release(pool_.match_prefix(test_chain(1, 3)));
  EXPECT_THAT(keys_of(pool_.allocate(4).value().evicted),
              ElementsAreArray(test_keys({13, 12, 11, 3})));
}

TEST_F(BlockPoolTest, AnIdleParentOfAHeldBlockGoesOnlyIfNothingElseCan) {
  std::vector<ImmutableBlock> chain = hold_chain(pool_, test_chain(1, 3));
  add_chain(pool_, test_keys({11, 12, 13}));
  chain.erase(chain.begin(), chain.begin() + 2);  // 1 and 2 are idle, 3 is held
  expect_occupancy(pool_, 0, 5, 1, 0);
  EXPECT_THAT(idle_keys(pool_), ElementsAreArray(test_keys({13, 12, 11, 1, 2})));
  const Allocation allocation = pool_.allocate(5).value();
  EXPECT_THAT(keys_of(allocation.evicted), ElementsAreArray(test_keys({13, 12, 11, 1, 2})));
  EXPECT_EQ(registry_.occupancy().num_ghosts, 1U);
  EXPECT_EQ(chain[0].key(), test_key(3));
}

TEST_F(BlockPoolTest, AllocateUpToGivesWhatThereIs) {
  add_chain(pool_, test_chain(1, 3));
  const std::vector<ImmutableBlock> held = pool_.match_prefix(test_chain(1, 1));
  const Allocation allocation = pool_.allocate_up_to(100);
  EXPECT_EQ(allocation.blocks.size(), 5U);
  EXPECT_THAT(keys_of(allocation.evicted), ElementsAreArray(test_keys({3, 2})));
  EXPECT_TRUE(pool_.allocate_up_to(1).blocks.empty());
  EXPECT_EQ(pool_.statistics().refused, 0U);
}

TEST_F(BlockPoolTest, RegisterReturnsGuardsInTheGivenOrder) {
  const std::vector<BlockKey> keys = test_keys({5, 3, 9});
  std::vector<CompleteBlock> complete = complete_chain(pool_, keys);
  const std::vector<ImmutableBlock> held = pool_.register_blocks(std::move(complete));
  EXPECT_THAT(keys_of(held), ElementsAreArray(keys));
  EXPECT_THAT(held[1].block_id(), BlockId(1));
  EXPECT_EQ(pool_.statistics().registered, 3U);
}

TEST_F(BlockPoolTest, ABatchMayBranch) {
  std::vector<MutableBlock> blocks = std::move(pool_.allocate(3).value().blocks);
  std::vector<CompleteBlock> complete;
  complete.push_back(std::move(blocks[0]).complete(test_key(1), std::nullopt));
  complete.push_back(std::move(blocks[1]).complete(test_key(2), test_key(1)));
  complete.push_back(std::move(blocks[2]).complete(test_key(3), test_key(1)));
  pool_.release(pool_.register_blocks(std::move(complete)));
  const std::vector<EvictedBlock> idle = idle_content(pool_);
  EXPECT_THAT(keys_of(idle), ElementsAreArray(test_keys({3, 2, 1})));
  EXPECT_EQ(idle[0].parent, test_key(1));
}

TEST_F(BlockPoolTest, ABlockThatLostItsChildWhileHeldIsALeaf) {
  std::vector<ImmutableBlock> chain = hold_chain(pool_, test_chain(1, 2));
  chain.pop_back();
  pool_.reset_idle();
  chain.clear();
  add_chain(pool_, test_keys({9}));
  EXPECT_THAT(idle_keys(pool_), ElementsAreArray(test_keys({1, 9})));
}

TEST_F(BlockPoolTest, ADuplicateHasItsOwnBlockAndPinsThePrimary) {
  std::vector<ImmutableBlock> primary = hold_chain(pool_, test_keys({1}));
  std::vector<ImmutableBlock> duplicate = hold_chain(pool_, test_keys({1}));
  EXPECT_TRUE(duplicate[0].is_duplicate());
  EXPECT_FALSE(primary[0].is_duplicate());
  EXPECT_NE(duplicate[0].block_id(), primary[0].block_id());
  EXPECT_EQ(duplicate[0].key(), test_key(1));
  primary.clear();
  expect_occupancy(pool_, 4, 0, 2, 0);
  EXPECT_EQ(pool_.find(test_key(1))->block_id(), BlockId(0));  // it is never found itself
  const ImmutableBlock clone = duplicate[0].clone();
  EXPECT_TRUE(clone.is_duplicate());
  duplicate.clear();
  expect_occupancy(pool_, 4, 0, 2, 0);
  EXPECT_EQ(pool_.statistics().duplicates, 1U);
}

TEST_F(BlockPoolTest, ADuplicateIsFreedByItsLastDrop) {
  hold_chain(pool_, test_keys({1})).clear();
  expect_occupancy(pool_, 5, 1, 0, 0);
  hold_chain(pool_, test_keys({1})).clear();
  expect_occupancy(pool_, 5, 1, 0, 0);
  EXPECT_EQ(pool_.find(test_key(1))->block_id(), BlockId(0));
}

TEST_F(BlockPoolTest, ADuplicateMayBeBornInTheSameBatch) {
  std::vector<ImmutableBlock> held =
      pool_.register_blocks(complete_chain(pool_, test_keys({1, 2, 1})));
  EXPECT_FALSE(held[0].is_duplicate());
  EXPECT_TRUE(held[2].is_duplicate());
  pool_.release(std::move(held));
  expect_occupancy(pool_, 4, 2, 0, 0);
}

TEST(BlockPool, RejectingADuplicateFreesItAndPinsThePrimary) {
  BlockRegistry registry = make_registry();
  BlockPool pool = make_pool(registry, 3, TierId::kG2, GroupId(0), PolicyKind::kLineage,
                             DuplicatePolicy::kReject);
  add_chain(pool, test_keys({1}));
  const std::vector<ImmutableBlock> again = hold_chain(pool, test_keys({1}));
  EXPECT_EQ(again[0].block_id(), BlockId(0));
  EXPECT_FALSE(again[0].is_duplicate());
  expect_occupancy(pool, 2, 0, 1, 0);
  EXPECT_EQ(pool.statistics().rejected, 1U);
  EXPECT_EQ(pool.statistics().registered, 1U);
}

TEST_F(BlockPoolTest, RegisterRefusesTheBlocksOfAnotherPoolBeforeItTakesAny) {
  BlockPool other = make_pool(registry_, 2, TierId::kG2);
  std::vector<CompleteBlock> complete = complete_chain(pool_, test_keys({1}));
  complete.push_back(std::move(complete_chain(other, test_keys({2}))[0]));
  EXPECT_THROW(static_cast<void>(pool_.register_blocks(std::move(complete))), ContractViolation);
  EXPECT_FALSE(pool_.is_resident(test_key(1)));
  EXPECT_THROW(static_cast<void>(pool_.register_block(std::move(complete[1]))), ContractViolation);
  expect_occupancy(pool_, 5, 0, 0, 1);
  expect_occupancy(other, 1, 0, 0, 1);
}

TEST_F(BlockPoolTest, ReleaseRefusesTheBlocksOfAnotherPool) {
  BlockPool other = make_pool(registry_, 2, TierId::kG2);
  std::vector<ImmutableBlock> held = hold_chain(pool_, test_keys({1}));
  EXPECT_THROW(other.release(std::move(held)), ContractViolation);
  expect_occupancy(pool_, 5, 0, 1, 0);
}

TEST_F(BlockPoolTest, ReleaseGivesTheDeepestBlockTheOldestTick) {
  // No parents are given, so that the order of the ticks alone decides.
  std::vector<ImmutableBlock> held;
  for (const uint64_t number : {1U, 2U, 3U}) {
    held.push_back(std::move(hold_chain(pool_, test_keys({number}))[0]));
  }
  pool_.release(std::move(held));
  EXPECT_TRUE(held.empty());
  EXPECT_THAT(idle_keys(pool_), ElementsAreArray(test_keys({3, 2, 1})));
}

TEST(BlockPool, ReleaseInAWindowGivesTheFirstBlockTheOldestTick) {
  BlockRegistry registry = make_registry({{GroupId(0), Retention::last_window(2)}});
  BlockPool pool = make_pool(registry, 6);
  add_chain(pool, test_chain(1, 4));
  // The position that the window left behind goes first, although it has a child.
  EXPECT_THAT(idle_keys(pool), ElementsAreArray(test_chain(1, 4)));
  EXPECT_THAT(keys_of(pool.allocate(4).value().evicted), ElementsAreArray(test_keys({1, 2})));
}

TEST(BlockPool, LruIgnoresChains) {
  BlockRegistry registry = make_registry();
  BlockPool pool = make_pool(registry, 4, TierId::kG1, GroupId(0), PolicyKind::kLru);
  std::vector<ImmutableBlock> held = hold_chain(pool, test_chain(1, 3));
  held.clear();  // 1 is dropped first
  EXPECT_THAT(keys_of(pool.allocate(4).value().evicted), ElementsAreArray(test_chain(1, 3)));
}

TEST(BlockPool, FifoIgnoresUse) {
  BlockRegistry registry = make_registry();
  BlockPool pool = make_pool(registry, 4, TierId::kG1, GroupId(0), PolicyKind::kFifo);
  add_chain(pool, test_chain(1, 3));
  pool.release(pool.match_prefix(test_chain(1, 2)));
  EXPECT_THAT(keys_of(pool.allocate(4).value().evicted), ElementsAreArray(test_chain(1, 3)));
}

TEST_F(BlockPoolTest, CountsWhatWasFreeGotAKeyAndWasAskedFor) {
  add_chain(pool_, test_keys({1, 2}));
  const uint32_t size = pool_.num_blocks();
  { const auto all = pool_.allocate(size); }
  const PoolStatistics statistics = pool_.statistics();
  EXPECT_EQ(statistics.allocated, size + 2U);
  EXPECT_EQ(statistics.from_free, size);
  EXPECT_EQ(statistics.completed, 2U);
  EXPECT_TRUE(pool_.match_prefix(test_chain(1, 4)).empty());
  EXPECT_FALSE(pool_.find(test_key(1)));
  EXPECT_EQ(pool_.statistics().asked, 5U);
}

TEST_F(BlockPoolTest, MatchPrefixStopsAtTheFirstMiss) {
  add_chain(pool_, test_keys({1, 2}));
  add_chain(pool_, test_keys({4}), test_key(3));
  const std::vector<ImmutableBlock> held = pool_.match_prefix(test_chain(1, 4));
  EXPECT_THAT(keys_of(held), ElementsAreArray(test_keys({1, 2})));
  expect_occupancy(pool_, 3, 1, 2, 0);
  EXPECT_EQ(pool_.statistics().matched, 2U);
  EXPECT_TRUE(pool_.match_prefix(test_chain(3, 2)).empty());
  EXPECT_TRUE(pool_.match_prefix({}).empty());
}

TEST(BlockPool, MatchPrefixIsExactAtEveryLength) {
  BlockRegistry registry = make_registry();
  BlockPool pool = make_pool(registry, 80);
  const std::vector<BlockKey> keys = test_chain(1, 80);
  for (size_t resident = 0; resident <= 70; ++resident) {
    add_chain(pool, std::span(keys).first(resident));
    for (const size_t asked : {resident / 2, resident, resident + 1, size_t{80}}) {
      EXPECT_EQ(pool.match_prefix(std::span(keys).first(asked)).size(), std::min(asked, resident));
    }
    pool.reset_idle();
  }
}

TEST_F(BlockPoolTest, MatchPrefixRefusesKeysOfAnotherGroup) {
  add_chain(pool_, test_keys({1}));
  std::vector<BlockKey> keys = test_keys({1});
  keys.push_back(test_key(2, GroupId(1)));
  EXPECT_THROW(static_cast<void>(pool_.match_prefix(keys)), ContractViolation);
  EXPECT_THROW(static_cast<void>(pool_.find(keys[1])), ContractViolation);
  EXPECT_THROW(static_cast<void>(pool_.is_resident(keys[1])), ContractViolation);
  expect_occupancy(pool_, 5, 1, 0, 0);
}

TEST_F(BlockPoolTest, FindPinsOneBlock) {
  add_chain(pool_, test_chain(1, 2));
  const std::optional<ImmutableBlock> found = pool_.find(test_key(2));
  ASSERT_TRUE(found);
  EXPECT_EQ(found->key(), test_key(2));
  expect_occupancy(pool_, 4, 1, 1, 0);
  EXPECT_FALSE(pool_.find(test_key(3)));
}

TEST_F(BlockPoolTest, ResetIdleGivesUpEverythingThatNobodyHolds) {
  add_chain(pool_, test_chain(1, 3));
  const std::vector<ImmutableBlock> held = hold_chain(pool_, test_keys({9}));
  const std::vector<BlockKey> foretold = idle_keys(pool_);
  const std::vector<EvictedBlock> evicted = pool_.reset_idle();
  EXPECT_THAT(keys_of(evicted), ElementsAreArray(test_keys({3, 2, 1})));
  EXPECT_THAT(keys_of(evicted), ElementsAreArray(foretold));
  expect_occupancy(pool_, 5, 0, 1, 0);
  EXPECT_TRUE(pool_.is_resident(test_key(9)));
  EXPECT_THAT(ids_of(pool_.allocate(5).value().blocks), ElementsAre(4, 5, 2, 1, 0));
}

TEST_F(BlockPoolTest, IdleBlocksChangesNothing) {
  add_chain(pool_, test_chain(1, 3));
  const std::vector<EvictedBlock> idle = pool_.describe(pool_.idle_blocks(2));
  EXPECT_THAT(keys_of(idle), ElementsAreArray(test_keys({3, 2})));
  EXPECT_EQ(idle[0].parent, test_key(2));
  EXPECT_EQ(idle[0].block, BlockId(2));
  expect_occupancy(pool_, 3, 3, 0, 0);
  EXPECT_THAT(idle_keys(pool_), ElementsAreArray(test_keys({3, 2, 1})));
}

TEST_F(BlockPoolTest, AListedBlockIsDescribedUntilItsRegistrationEnds) {
  static_assert(sizeof(IdleBlock) == 8);
  add_chain(pool_, test_chain(1, 4));
  const std::vector<IdleBlock> listed = pool_.idle_blocks();
  const std::optional<ImmutableBlock> held = pool_.find(test_key(3));
  EXPECT_THAT(keys_of(pool_.describe(listed)), ElementsAreArray(test_keys({4, 3, 2, 1})));
  EXPECT_EQ(pool_.describe(std::span(listed).first(1))[0].parent, test_key(3));

  pool_.reset_idle();  // but for 3, which is held
  EXPECT_THAT(keys_of(pool_.describe(listed)), ElementsAreArray(test_keys({3})));
  add_chain(pool_, test_keys({11, 12, 13, 14, 15}));  // in all slots that were free
  EXPECT_THAT(keys_of(pool_.describe(listed)), ElementsAreArray(test_keys({3})));
  const std::vector<IdleBlock> strange = {{BlockId(6), 0}};
  EXPECT_THROW((void)pool_.describe(strange), ContractViolation);
}

TEST_F(BlockPoolTest, ADiscardedBlockIsFreeAndNotFoundAgain) {
  add_chain(pool_, test_chain(1, 3));
  const WeakBlock weak = pool_.find(test_key(2))->downgrade();
  EXPECT_TRUE(pool_.discard(std::move(*pool_.find(test_key(2)))));
  EXPECT_FALSE(pool_.is_resident(test_key(2)));
  EXPECT_FALSE(weak.upgrade());
  EXPECT_EQ(pool_.match_prefix(test_chain(1, 3)).size(), 1U);
  expect_occupancy(pool_, 4, 2, 0, 0);
  EXPECT_EQ(registry_.occupancy().num_ghosts, 1U);
  EXPECT_EQ(pool_.statistics().evicted, 1U);
}

TEST_F(BlockPoolTest, ADiscardedBlockStaysAsLongAsOthersHoldIt) {
  std::vector<ImmutableBlock> held = hold_chain(pool_, test_keys({1}));
  EXPECT_FALSE(pool_.discard(held[0].clone()));
  EXPECT_TRUE(pool_.is_resident(test_key(1)));
  EXPECT_FALSE(pool_.discard(std::move(hold_chain(pool_, test_keys({1}))[0])));  // a duplicate
  expect_occupancy(pool_, 5, 0, 1, 0);
  BlockPool other = make_pool(registry_, 1, TierId::kG2);
  EXPECT_THROW(static_cast<void>(other.discard(std::move(held[0]))), ContractViolation);
  EXPECT_TRUE(pool_.discard(std::move(held[0])));
  expect_occupancy(pool_, 6, 0, 0, 0);
}

TEST_F(BlockPoolTest, WhatIsFreeLeavesAPoolThatShrinksAndTheOthersAreStillGivenOut) {
  add_chain(pool_, test_keys({1, 2}));  // blocks 0 and 1
  EXPECT_EQ(pool_.limit(), 6U);
  EXPECT_TRUE(pool_.shrink(4).empty());
  EXPECT_EQ(pool_.limit(), 4U);
  EXPECT_EQ(pool_.num_blocks(), 4U);
  expect_occupancy(pool_, 2, 2, 0, 0);
  Result<Allocation> all = pool_.allocate(4);
  ASSERT_TRUE(all);
  EXPECT_THAT(ids_of(all->blocks), ElementsAre(2, 3, 1, 0));
  EXPECT_EQ(pool_.allocate(1).error().code(), ErrorCode::kExhausted);
  all->blocks.clear();
  EXPECT_THAT(ids_of(pool_.allocate_up_to(6).blocks), ElementsAre(2, 3, 1, 0));
}

TEST_F(BlockPoolTest, ABlockThatIsBeingFilledLeavesAShrunkPoolInsteadOfBecomingFree) {
  Allocation all = pool_.allocate(6).value();
  EXPECT_TRUE(pool_.shrink(4).empty());
  EXPECT_EQ(pool_.num_blocks(), 6U);  // two are on their way out
  std::vector<CompleteBlock> complete;
  for (const uint32_t block : {3U, 4U}) {
    complete.push_back(std::move(all.blocks[block]).complete(test_key(block), std::nullopt));
  }
  all.blocks.clear();
  expect_occupancy(pool_, 3, 0, 0, 2);
  std::vector<ImmutableBlock> held = pool_.register_blocks(std::move(complete));
  EXPECT_TRUE(pool_.is_resident(test_key(4)));
  pool_.release(std::move(held));
  expect_occupancy(pool_, 3, 1, 0, 0);
  EXPECT_THAT(idle_keys(pool_), ElementsAre(test_key(3)));
  EXPECT_FALSE(pool_.is_resident(test_key(4)));
  EXPECT_EQ(pool_.num_blocks(), 4U);
}

TEST_F(BlockPoolTest, AShrunkPoolSaysWhatItLosesAndHeldBlocksStayUntilTheyAreLetGo) {
  std::vector<ImmutableBlock> held = hold_chain(pool_, test_chain(1, 6));
  ImmutableBlock last = std::move(held[5]);
  std::vector<ImmutableBlock> fifth;
  fifth.push_back(std::move(held[4]));
  held.erase(held.begin() + 4, held.end());
  pool_.release(std::move(held));
  pool_.release(std::move(fifth));
  const WeakBlock weak = last.downgrade();
  const std::vector<EvictedBlock> gone = pool_.shrink(3);
  ASSERT_THAT(keys_of(gone), ElementsAre(test_key(4), test_key(5), test_key(6)));
  EXPECT_EQ(gone[2].block, BlockId(5));
  EXPECT_EQ(gone[2].parent, test_key(5));
  EXPECT_FALSE(pool_.is_resident(test_key(5)));
  EXPECT_TRUE(pool_.is_resident(test_key(6)));
  expect_occupancy(pool_, 0, 3, 1, 0);
  EXPECT_EQ(pool_.shrink(2).size(), 1U);  // each is told once
  EXPECT_FALSE(pool_.discard(last.clone()));
  EXPECT_TRUE(pool_.discard(std::move(last)));
  EXPECT_FALSE(weak.upgrade());
  expect_occupancy(pool_, 0, 2, 0, 0);
  EXPECT_EQ(registry_.occupancy().num_keys, 2U);
  EXPECT_EQ(pool_.statistics().evicted, 4U);
}

TEST_F(BlockPoolTest, ADuplicateThatLeavesAShrunkPoolLetsGoOfItsPrimary) {
  add_chain(pool_, test_keys({1}));
  std::vector<ImmutableBlock> twice = hold_chain(pool_, test_keys({1}));  // block 1
  ASSERT_TRUE(twice[0].is_duplicate());
  EXPECT_TRUE(pool_.shrink(1).empty());
  expect_occupancy(pool_, 0, 0, 2, 0);
  EXPECT_FALSE(pool_.discard(std::move(twice[0])));
  expect_occupancy(pool_, 0, 1, 0, 0);
  EXPECT_TRUE(pool_.is_resident(test_key(1)));
}

TEST_F(BlockPoolTest, APoolMayShrinkToNothingAndNeverGrows) {
  EXPECT_TRUE(pool_.shrink(9).empty());
  EXPECT_EQ(pool_.limit(), 6U);
  EXPECT_TRUE(pool_.shrink(0).empty());
  EXPECT_TRUE(pool_.shrink(6).empty());
  EXPECT_EQ(pool_.limit(), 0U);
  expect_occupancy(pool_, 0, 0, 0, 0);
  EXPECT_TRUE(pool_.allocate_up_to(1).blocks.empty());
  EXPECT_EQ(pool_.allocate(1).error().code(), ErrorCode::kExhausted);
}

TEST_F(BlockPoolTest, AMovedFromPoolIsAContractViolation) {
  BlockPool moved = std::move(pool_);
  EXPECT_EQ(moved.num_blocks(), 6U);
  EXPECT_THROW(static_cast<void>(pool_.num_free()), ContractViolation);
  EXPECT_THROW(static_cast<void>(pool_.allocate(1)), ContractViolation);
  pool_ = std::move(moved);
  EXPECT_EQ(pool_.num_free(), 6U);
}

TEST(BlockPool, MatchAllocatesNothingButItsResult) {
  BlockRegistry registry = make_registry();
  BlockPool pool = make_pool(registry, 256);
  const std::vector<BlockKey> keys = test_chain(1, 128);
  add_chain(pool, keys);
  pool.release(pool.match_prefix(keys));
  const AllocationMeter meter;
  pool.release(pool.match_prefix(keys));
  EXPECT_EQ(meter.count(), 1U);
}

TEST(BlockPool, ChurnAllocatesNothingButItsResults) {
  BlockRegistry registry = make_registry();
  BlockPool pool = make_pool(registry, 256);
  uint64_t first = 0;
  const auto churn = [&] {
    const std::vector<BlockKey> keys = test_chain(first, 100);
    first += 1'000;
    const AllocationMeter meter;
    Allocation allocation = pool.allocate(100).value();
    size_t count = meter.count();
    std::vector<CompleteBlock> complete;
    complete.reserve(100);
    for (size_t i = 0; i < 100; ++i) {
      complete.push_back(std::move(allocation.blocks[i])
                             .complete(keys[i], i > 0 ? std::optional(keys[i - 1]) : std::nullopt));
    }
    const size_t before = meter.count();
    pool.release(pool.register_blocks(std::move(complete)));
    return count + meter.count() - before;
  };
  for (int round = 0; round < 50; ++round) {
    EXPECT_LE(churn(), 3U);  // blocks, evicted, guards
  }
}

// Orders in which a chain is longest, or a parent has the most children.
TEST(BlockPool, EvictionDoesNotDependOnTheNumberOfChildren) {
  constexpr uint32_t kBlocks = 100'001;
  BlockRegistry registry = make_registry();
  BlockPool pool = make_pool(registry, kBlocks);
  add_chain(pool, test_keys({0}));  // older than all its children
  {
    Allocation allocation = pool.allocate(kBlocks - 1).value();
    std::vector<CompleteBlock> complete;
    for (uint64_t i = 1; i < kBlocks; ++i) {
      complete.push_back(std::move(allocation.blocks[i - 1]).complete(test_key(i), test_key(0)));
    }
    pool.release(pool.register_blocks(std::move(complete)));
  }
  const Allocation allocation = pool.allocate(kBlocks).value();
  EXPECT_EQ(allocation.evicted.front().key, test_key(kBlocks - 1));
  EXPECT_EQ(allocation.evicted.back().key, test_key(0));
}

}  // namespace
}  // namespace kvbm
