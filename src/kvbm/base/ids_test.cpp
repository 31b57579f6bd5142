// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/ids.hpp"

#include <sstream>
#include <type_traits>
#include <unordered_set>

#include <gtest/gtest.h>

namespace kvbm {
namespace {

static_assert(std::is_trivially_copyable_v<BlockId> && sizeof(BlockId) == 4);
static_assert(sizeof(LayerId) == 2 && sizeof(GroupId) == 2 && sizeof(RankId) == 2);
static_assert(sizeof(WorkerId) == 8 && sizeof(SequenceHash) == 8);
static_assert(!std::is_convertible_v<uint32_t, BlockId> &&
              !std::is_convertible_v<BlockId, uint32_t>);
static_assert(!std::is_constructible_v<BlockHash, SequenceHash>);

TEST(StrongId, ComparesByValue) {
  EXPECT_EQ(BlockId(7), BlockId(7));
  EXPECT_NE(BlockId(7), BlockId(8));
  EXPECT_LT(BlockId(7), BlockId(8));
  EXPECT_EQ(BlockId().value(), 0U);
  EXPECT_EQ(OpId(~uint64_t{0}).value(), ~uint64_t{0});
}

TEST(StrongId, HashesForContainers) {
  const std::unordered_set<BlockId> ids = {BlockId(1), BlockId(2), BlockId(1)};
  EXPECT_EQ(ids.size(), 2U);
  EXPECT_TRUE(ids.contains(BlockId(2)));
}

TEST(StrongId, IdsPrintInDecimalAndHashesInHexadecimal) {
  std::ostringstream out;
  out << std::hex << BlockId(42) << ' ' << SequenceHash(0xABC);
  EXPECT_EQ(out.str(), "42 0000000000000abc");
  EXPECT_EQ(to_string(LayerId(65535)), "65535");
  EXPECT_EQ(to_string(SaltHash(0x0123456789ABCDEF)), "0123456789abcdef");
}

TEST(TierId, HasNames) {
  EXPECT_EQ(to_string(TierId::kG1), "G1");
  EXPECT_EQ(to_string(TierId::kG4), "G4");
  EXPECT_EQ(to_string(static_cast<TierId>(9)), "unknown");
  std::ostringstream out;
  out << TierId::kG3;
  EXPECT_EQ(out.str(), "G3");
}

}  // namespace
}  // namespace kvbm
