// SPDX-License-Identifier: Apache-2.0
#include "kvbm/tiers/internal/open_by_block.hpp"

#include <algorithm>
#include <map>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/random.hpp"
#include "kvbm/base/result.hpp"

#include "tests/support/seed.hpp"

namespace kvbm::internal {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::vector<OpId> ops_of(const OpenByBlock& open, BlockId block) {
  std::vector<OpId> found;
  open.find(block, found);
  std::sort(found.begin(), found.end());
  return found;
}

TEST(OpenByBlock, ABlockHasTheOperationsThatWereAddedForIt) {
  OpenByBlock open;
  EXPECT_THAT(ops_of(open, BlockId(7)), IsEmpty());
  open.add(BlockId(7), OpId(1));
  open.add(BlockId(8), OpId(1));
  open.add(BlockId(7), OpId(2));
  EXPECT_THAT(ops_of(open, BlockId(7)), ElementsAre(OpId(1), OpId(2)));
  EXPECT_THAT(ops_of(open, BlockId(8)), ElementsAre(OpId(1)));
  EXPECT_THAT(ops_of(open, BlockId(9)), IsEmpty());
  open.remove(BlockId(7), OpId(1));
  EXPECT_THAT(ops_of(open, BlockId(7)), ElementsAre(OpId(2)));
  EXPECT_THAT(ops_of(open, BlockId(8)), ElementsAre(OpId(1)));
  EXPECT_EQ(open.size(), 2U);
}

TEST(OpenByBlock, APairThatIsAddedTwiceIsRemovedTwice) {
  OpenByBlock open;
  open.add(BlockId(0), OpId(1));
  open.add(BlockId(0), OpId(1));
  open.remove(BlockId(0), OpId(1));
  EXPECT_THAT(ops_of(open, BlockId(0)), ElementsAre(OpId(1)));
  open.remove(BlockId(0), OpId(1));
  EXPECT_THAT(ops_of(open, BlockId(0)), IsEmpty());
}

TEST(OpenByBlock, WhatWasNotAddedIsNotRemoved) {
  OpenByBlock open;
  EXPECT_THROW(open.remove(BlockId(0), OpId(1)), ContractViolation);
  EXPECT_THROW(open.add(BlockId(0), OpId(0)), ContractViolation);
  open.add(BlockId(0), OpId(1));
  EXPECT_THROW(open.remove(BlockId(0), OpId(2)), ContractViolation);
  EXPECT_THROW(open.remove(BlockId(1), OpId(1)), ContractViolation);
  EXPECT_THAT(ops_of(open, BlockId(0)), ElementsAre(OpId(1)));
}

TEST(OpenByBlock, MemoryFollowsTheEntries) {
  OpenByBlock open;
  EXPECT_EQ(open.memory_bytes(), 0U);
  open.add(BlockId(0xffff'ffff), OpId(1));
  EXPECT_LE(open.memory_bytes(), 256U);
  for (uint32_t block = 0; block < 10'000; ++block) open.add(BlockId(block), OpId(2));
  EXPECT_LE(open.memory_bytes(), 10'000U * 16 * 4);
  for (uint32_t block = 0; block < 10'000; ++block) open.remove(BlockId(block), OpId(2));
  EXPECT_LE(open.memory_bytes(), 256U);
  EXPECT_THAT(ops_of(open, BlockId(0xffff'ffff)), ElementsAre(OpId(1)));
}

TEST(OpenByBlock, AgreesWithAMultimapThroughRandomChurn) {
  const uint64_t seed = ::kvbm::testing::test_seed();
  for (uint64_t program = 0; program < 50; ++program) {
    Random random(seed * 1'000'003 + program);
    const auto num_blocks = random.uniform_between(1, 400);
    OpenByBlock open;
    std::multimap<uint32_t, uint64_t> model;
    for (int step = 0; step < 2000; ++step) {
      // Grows in the first half and shrinks in the second.
      if (model.empty() || random.chance(step < 1000 ? 0.7 : 0.3)) {
        const auto block = static_cast<uint32_t>(random.uniform(num_blocks));
        const uint64_t op = random.uniform_between(1, 20);
        open.add(BlockId(block), OpId(op));
        model.emplace(block, op);
      } else {
        const auto chosen =
            std::next(model.begin(), static_cast<std::ptrdiff_t>(random.uniform(model.size())));
        open.remove(BlockId(chosen->first), OpId(chosen->second));
        model.erase(chosen);
      }
      const auto asked = static_cast<uint32_t>(random.uniform(num_blocks));
      std::vector<OpId> expected;
      const auto [first, last] = model.equal_range(asked);
      for (auto it = first; it != last; ++it) expected.emplace_back(it->second);
      std::sort(expected.begin(), expected.end());
      ASSERT_EQ(ops_of(open, BlockId(asked)), expected)
          << "program " << program << " of KVBM_SEED=" << seed;
      ASSERT_EQ(open.size(), model.size());
    }
  }
}

}  // namespace
}  // namespace kvbm::internal
