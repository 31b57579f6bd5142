// SPDX-License-Identifier: Apache-2.0
#include "kvbm/blocks/block.hpp"

#include <optional>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/blocks/block_registry.hpp"

#include "tests/support/block_chains.hpp"

namespace kvbm {
namespace {

using testing::add_chain;
using testing::expect_occupancy;
using testing::hold_chain;
using testing::make_pool;
using testing::make_registry;
using testing::test_chain;
using testing::test_key;
using testing::test_keys;

static_assert(sizeof(MutableBlock) == 16 && sizeof(ImmutableBlock) == 16 &&
              sizeof(WeakBlock) == 16);
static_assert(std::is_nothrow_move_constructible_v<CompleteBlock> &&
              std::is_nothrow_move_assignable_v<ImmutableBlock>);

class BlockTest : public ::testing::Test {
 protected:
  MutableBlock allocate_one() { return std::move(pool_.allocate(1).value().blocks[0]); }
  ImmutableBlock hold(uint64_t number) {
    return pool_.register_block(allocate_one().complete(test_key(number), std::nullopt));
  }

  BlockRegistry registry_ = make_registry();
  BlockPool pool_ = make_pool(registry_, 4);
};

TEST_F(BlockTest, ADroppedMutableBlockIsFree) {
  {
    const MutableBlock block = allocate_one();
    EXPECT_EQ(block.tier(), TierId::kG1);
    EXPECT_EQ(block.group(), GroupId(0));
    expect_occupancy(pool_, 3, 0, 0, 1);
  }
  expect_occupancy(pool_, 4, 0, 0, 0);
}

TEST_F(BlockTest, ADroppedCompleteBlockIsFreeAndWasNeverFindable) {
  {
    const CompleteBlock block = allocate_one().complete(test_key(1), test_key(0));
    EXPECT_EQ(block.key(), test_key(1));
    EXPECT_EQ(block.parent(), test_key(0));
    EXPECT_EQ(block.tier(), TierId::kG1);
    EXPECT_FALSE(pool_.is_resident(test_key(1)));
    expect_occupancy(pool_, 3, 0, 0, 1);
  }
  expect_occupancy(pool_, 4, 0, 0, 0);
}

TEST_F(BlockTest, ResetGoesBackToTheSameMutableBlock) {
  MutableBlock block = allocate_one();
  const BlockId id = block.block_id();
  CompleteBlock complete = std::move(block).complete(test_key(1), std::nullopt);
  EXPECT_EQ(complete.block_id(), id);
  EXPECT_FALSE(complete.parent());
  MutableBlock again = std::move(complete).reset();
  EXPECT_EQ(again.block_id(), id);
  expect_occupancy(pool_, 3, 0, 0, 1);
}

TEST_F(BlockTest, TheLastDropOfAnImmutableBlockMakesItIdle) {
  std::optional<ImmutableBlock> first = hold(1);
  std::optional<ImmutableBlock> second = first->clone();
  EXPECT_EQ(second->block_id(), first->block_id());
  EXPECT_EQ(second->key(), test_key(1));
  EXPECT_FALSE(second->is_duplicate());
  first.reset();
  expect_occupancy(pool_, 3, 0, 1, 0);
  second.reset();
  expect_occupancy(pool_, 3, 1, 0, 0);
  EXPECT_TRUE(pool_.is_resident(test_key(1)));
}

TEST_F(BlockTest, AssignmentDropsWhatWasThere) {
  ImmutableBlock block = hold(1);
  block = hold(2);
  EXPECT_EQ(block.key(), test_key(2));
  expect_occupancy(pool_, 2, 1, 1, 0);

  MutableBlock mutable_block = allocate_one();
  mutable_block = allocate_one();
  expect_occupancy(pool_, 1, 1, 1, 1);

  CompleteBlock complete = std::move(mutable_block).complete(test_key(3), test_key(2));
  complete = allocate_one().complete(test_key(4), std::nullopt);
  EXPECT_EQ(complete.key(), test_key(4));
  EXPECT_FALSE(complete.parent());
  expect_occupancy(pool_, 1, 1, 1, 1);
}

TEST_F(BlockTest, UseAfterAMoveIsAContractViolation) {
  MutableBlock block = allocate_one();
  CompleteBlock complete = std::move(block).complete(test_key(1), std::nullopt);
  EXPECT_THROW(static_cast<void>(block.block_id()), ContractViolation);
  EXPECT_THROW(static_cast<void>(block.tier()), ContractViolation);
  EXPECT_THROW(static_cast<void>(std::move(block).complete(test_key(1), std::nullopt)),
               ContractViolation);
  ImmutableBlock immutable = pool_.register_block(std::move(complete));
  EXPECT_THROW(static_cast<void>(complete.block_id()), ContractViolation);
  EXPECT_THROW(static_cast<void>(pool_.register_block(std::move(complete))), ContractViolation);
  const ImmutableBlock other = std::move(immutable);
  EXPECT_THROW(static_cast<void>(immutable.key()), ContractViolation);
  EXPECT_THROW(static_cast<void>(immutable.clone()), ContractViolation);
  EXPECT_THROW(static_cast<void>(immutable.downgrade()), ContractViolation);
  expect_occupancy(pool_, 3, 0, 1, 0);
}

TEST_F(BlockTest, CompleteRefusesKeysThatDoNotFit) {
  MutableBlock block = allocate_one();
  const BlockKey key = test_key(1);
  const BlockKey other_group = test_key(1, GroupId(1));
  BlockKey other_namespace = test_key(0);
  other_namespace.ns = NamespaceId(0);
  EXPECT_THROW(static_cast<void>(std::move(block).complete(other_group, std::nullopt)),
               ContractViolation);
  EXPECT_THROW(static_cast<void>(std::move(block).complete(key, other_group)), ContractViolation);
  EXPECT_THROW(static_cast<void>(std::move(block).complete(key, other_namespace)),
               ContractViolation);
  EXPECT_THROW(static_cast<void>(std::move(block).complete(key, key)), ContractViolation);
  // The block is still the caller's.
  EXPECT_EQ(std::move(block).complete(key, test_key(0)).key(), key);
}

TEST_F(BlockTest, AWeakBlockDoesNotPin) {
  std::optional<ImmutableBlock> block = hold(1);
  const WeakBlock weak = block->downgrade();
  block.reset();
  expect_occupancy(pool_, 3, 1, 0, 0);
  std::optional<ImmutableBlock> again = weak.upgrade();
  ASSERT_TRUE(again);
  EXPECT_EQ(again->key(), test_key(1));
  expect_occupancy(pool_, 3, 0, 1, 0);
}

TEST_F(BlockTest, AWeakBlockOfAHeldBlockIsAnotherPin) {
  std::optional<ImmutableBlock> block = hold(1);
  const WeakBlock weak = block->downgrade().clone();
  const std::optional<ImmutableBlock> again = weak.upgrade();
  block.reset();
  expect_occupancy(pool_, 3, 0, 1, 0);
}

TEST_F(BlockTest, AWeakBlockEndsWithTheEviction) {
  std::optional<ImmutableBlock> block = hold(1);
  const BlockId id = block->block_id();
  const WeakBlock weak = block->downgrade();
  block.reset();
  std::vector<MutableBlock> all = std::move(pool_.allocate(4).value().blocks);
  EXPECT_FALSE(weak.upgrade());
  all.clear();
  EXPECT_FALSE(weak.upgrade());
  // The slot is in use again, with the same key even.
  std::vector<ImmutableBlock> held = hold_chain(pool_, test_keys({5, 6, 7, 1}));
  EXPECT_EQ(held[3].block_id(), id);
  EXPECT_EQ(held[3].key(), test_key(1));
  EXPECT_FALSE(weak.upgrade());
  EXPECT_TRUE(held[3].downgrade().upgrade());
}

TEST_F(BlockTest, AWeakBlockOfADuplicateEndsWithIt) {
  const ImmutableBlock primary = hold(1);
  std::optional<ImmutableBlock> duplicate = hold(1);
  ASSERT_TRUE(duplicate->is_duplicate());
  const WeakBlock weak = duplicate->downgrade();
  EXPECT_EQ(weak.upgrade()->block_id(), duplicate->block_id());
  duplicate.reset();
  EXPECT_FALSE(weak.upgrade());
  // All slots are in use again, that of the duplicate too.
  const std::vector<ImmutableBlock> others = hold_chain(pool_, test_keys({2, 3, 4}));
  EXPECT_FALSE(weak.upgrade());
}

TEST_F(BlockTest, GuardsOutliveThePoolAndTheRegistry) {
  std::optional<MutableBlock> mutable_block;
  std::optional<CompleteBlock> complete;
  std::optional<ImmutableBlock> immutable;
  std::optional<WeakBlock> weak;
  {
    BlockRegistry registry = make_registry();
    BlockPool pool = make_pool(registry, 3);
    std::vector<MutableBlock> blocks = std::move(pool.allocate(3).value().blocks);
    immutable = pool.register_block(std::move(blocks[0]).complete(test_key(1), std::nullopt));
    complete = std::move(blocks[1]).complete(test_key(2), std::nullopt);
    mutable_block = std::move(blocks[2]);
    weak = immutable->downgrade();
  }
  EXPECT_EQ(immutable->key(), test_key(1));
  const std::optional<ImmutableBlock> clone = immutable->clone();
  immutable.reset();
  mutable_block.reset();
  EXPECT_EQ(std::move(*complete).reset().block_id(), BlockId(1));
  complete.reset();
  EXPECT_TRUE(weak->upgrade());
}

TEST_F(BlockTest, AWeakBlockAloneKeepsItsMemory) {
  std::optional<WeakBlock> weak;
  {
    BlockRegistry registry = make_registry();
    BlockPool pool = make_pool(registry, 1);
    weak = hold_chain(pool, test_keys({1}))[0].downgrade();
  }
  EXPECT_TRUE(weak->upgrade());
  EXPECT_EQ(weak->upgrade()->key(), test_key(1));
}

TEST(BlockThreads, GuardsMayBeDroppedOnAnyThread) {
  BlockRegistry registry = make_registry();
  BlockPool pool = make_pool(registry, 64);
  for (int round = 0; round < 20; ++round) {
    std::vector<ImmutableBlock> held =
        hold_chain(pool, test_chain(1'000 * static_cast<uint64_t>(round), 32));
    std::vector<ImmutableBlock> clones;
    for (const ImmutableBlock& block : held) clones.push_back(block.clone());
    std::vector<MutableBlock> spare = std::move(pool.allocate(32).value().blocks);
    std::thread a([mine = std::move(held)]() mutable { mine.clear(); });
    std::thread b([mine = std::move(clones)]() mutable {
      while (!mine.empty()) mine.pop_back();
    });
    std::thread c([mine = std::move(spare)]() mutable { mine.clear(); });
    a.join();
    b.join();
    c.join();
    expect_occupancy(pool, 32, 32, 0, 0);
    pool.reset_idle();
  }
}

TEST(BlockThreads, TheLastGuardMayGoOnAnotherThreadThanTheRegistry) {
  for (int round = 0; round < 200; ++round) {
    auto registry = std::optional(make_registry());
    auto pool = std::optional(make_pool(*registry, 2));
    std::vector<ImmutableBlock> held = hold_chain(*pool, test_keys({1, 2}));
    std::thread other([mine = std::move(held)]() mutable { mine.clear(); });
    pool.reset();
    registry.reset();
    other.join();
  }
}

TEST(BlockThreads, ThreadsThatShareAPoolDoNotDisturbEachOther) {
  BlockRegistry registry = make_registry();
  BlockPool pool = make_pool(registry, 96);
  constexpr uint64_t kThreads = 4;
  std::vector<std::thread> threads;
  for (uint64_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      std::vector<WeakBlock> weak;
      uint32_t seen = 0;
      for (uint64_t round = 0; round < 400; ++round) {
        // Some chains are shared by all threads, some are not.
        const uint64_t first = round % 3 == 0 ? 10 * (round % 7) : 10'000 * (thread + 1) + round;
        const std::vector<BlockKey> keys = test_chain(first, 8);
        std::vector<ImmutableBlock> held = pool.match_prefix(keys);
        const size_t known = held.size();
        Result<Allocation> allocation = pool.allocate(keys.size() - known);
        if (!allocation) continue;
        std::vector<CompleteBlock> complete;
        for (size_t i = known; i < keys.size(); ++i) {
          complete.push_back(
              std::move(allocation->blocks[i - known])
                  .complete(keys[i], i > 0 ? std::optional(keys[i - 1]) : std::nullopt));
        }
        for (ImmutableBlock& block : pool.register_blocks(std::move(complete))) {
          held.push_back(std::move(block));
        }
        for (size_t i = 0; i < held.size(); ++i) ASSERT_EQ(held[i].key(), keys[i]);
        for (const WeakBlock& block : weak) {
          const std::optional<ImmutableBlock> strong = block.upgrade();
          if (strong) seen += strong->key().group.value();
        }
        weak.clear();
        weak.push_back(held.back().downgrade());
        const ImmutableBlock clone = held.front().clone();
        if (round % 2 == 0) {
          pool.release(std::move(held));
        }
      }
      EXPECT_EQ(seen, 0U);  // reads what a weak block leads to
    });
  }
  for (std::thread& thread : threads) thread.join();
  const PoolOccupancy occupancy = pool.occupancy();
  EXPECT_EQ(occupancy.num_active, 0U);
  EXPECT_EQ(occupancy.num_mutable, 0U);
  EXPECT_EQ(occupancy.num_free + occupancy.num_idle, 96U);
  EXPECT_EQ(registry.occupancy().num_keys, occupancy.num_idle);
  pool.reset_idle();
  EXPECT_EQ(registry.occupancy().num_keys, 0U);
  EXPECT_EQ(registry.occupancy().num_ghosts, 0U);
}

}  // namespace
}  // namespace kvbm
