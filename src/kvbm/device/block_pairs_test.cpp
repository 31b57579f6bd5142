// SPDX-License-Identifier: Apache-2.0
#include "kvbm/device/block_pairs.hpp"

#include <cstdint>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/contract.hpp"

namespace kvbm {
namespace {

std::vector<BlockId> ids_in_steps(uint32_t first, uint32_t step, size_t count) {
  std::vector<BlockId> ids;
  for (size_t i = 0; i < count; ++i) ids.emplace_back(first + static_cast<uint32_t>(i) * step);
  return ids;
}

TEST(RangeOf, IsFoundWhereverItStands) {
  EXPECT_EQ(range_of({}), BlockIdRange());
  for (size_t at = 0; at < 21; ++at) {
    std::vector<BlockId> ids = ids_in_steps(5, 1, 22);
    ids[at] = BlockId(1000);
    ids[at + 1] = BlockId(2);
    EXPECT_EQ(range_of(ids), (BlockIdRange{.lowest = 2, .highest = 1000})) << at;
  }
}

TEST(CountRows, EndsWhereAStepDiffersOnEitherSide) {
  for (size_t length = 3; length < 200; ++length) {
    std::vector<BlockId> from = ids_in_steps(3, 2, 230);
    const std::vector<BlockId> to = ids_in_steps(7, 5, 230);
    EXPECT_EQ(count_rows(from, to, 0), 230U);
    from[length] = BlockId(from[length].value() + 1);
    EXPECT_EQ(count_rows(from, to, 0), length);
    EXPECT_EQ(count_rows(to, from, 0), length);
  }
}

TEST(CountRows, StepsThatDifferByAllIdsAreNotEqual) {
  // 0, 3 * 2^30, 2^31, 2^30, 0 …: modulo 2^32 in equal steps.
  const std::vector<BlockId> wraps = ids_in_steps(0, 0xc000'0000, 400);
  const std::vector<BlockId> rises = ids_in_steps(0, 1, 400);
  EXPECT_EQ(count_rows(wraps, rises, 0), 1U);
  // Ten of these are below 2^32.
  const std::vector<BlockId> later = ids_in_steps(0, 0x1c00'0000, 400);
  EXPECT_EQ(count_rows(rises, later, 0), 10U);
  const std::vector<BlockId> much_later = ids_in_steps(0, 0x0100'0000, 400);
  EXPECT_EQ(count_rows(rises, much_later, 0), 256U);
}

TEST(BlockPairs, KnowTheRangesOfBothSidesInAnyOrder) {
  BlockPairs pairs;  // of the longer ones, the memory is used again
  for (const size_t count : {200U, 64U, 3U, 2U, 1U}) {
    const std::vector<BlockId> from = ids_in_steps(4, 1, count);
    const std::vector<BlockId> to = ids_in_steps(9, 3, count);
    const BlockIdRange from_range{.lowest = 4, .highest = 3 + count};
    const BlockIdRange to_range{.lowest = 9, .highest = 9 + 3 * (count - 1)};
    pairs.assign(from, to);
    EXPECT_EQ(pairs.from(), from);
    EXPECT_EQ(pairs.to(), to);
    EXPECT_EQ(pairs.from_range(), from_range);
    EXPECT_EQ(pairs.to_range(), to_range);
    EXPECT_EQ(pairs.in_equal_steps(), count != 2) << "two in steps of three are no row";
    EXPECT_EQ(pairs.count_rows(0), count == 2 ? 1 : count);
    EXPECT_EQ(pairs.count_groups(), count == 2 ? 2 : 1);
    std::vector<BlockId> swapped = to;
    std::swap(swapped.front(), swapped.back());
    pairs.assign(from, swapped);
    EXPECT_EQ(pairs.from_range(), from_range);
    EXPECT_EQ(pairs.to_range(), to_range);
    EXPECT_EQ(pairs.in_equal_steps(), count == 1);
  }
}

TEST(BlockPairs, OfNoneAskForNothing) {
  BlockPairs pairs({{BlockId(1)}}, {{BlockId(2)}});
  pairs.assign({}, {});
  EXPECT_TRUE(pairs.empty());
  EXPECT_FALSE(pairs.in_equal_steps());
  EXPECT_EQ(pairs.count_groups(), 0U);
  EXPECT_EQ(pairs.to_range(), BlockIdRange());
}

TEST(BlockPairs, AreListsOfOneLength) {
  EXPECT_THROW(BlockPairs({{BlockId(1)}}, {}), ContractViolation);
}

}  // namespace
}  // namespace kvbm
