// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/internal/tier_size.hpp"

#include <limits>

#include <gtest/gtest.h>

#include "kvbm/base/contract.hpp"

namespace kvbm::internal {
namespace {

constexpr uint64_t kPlenty = uint64_t{1} << 40;

TEST(StoreBudget, Is5PercentOfThePoolButNotLessThan1024Blocks) {
  EXPECT_EQ(store_budget_blocks(std::nullopt, 100'000, kPlenty), 5000U);
  EXPECT_EQ(store_budget_blocks(std::nullopt, 20'480, kPlenty), 1024U);
  EXPECT_EQ(store_budget_blocks(std::nullopt, 512, kPlenty), 1024U);
}

TEST(StoreBudget, IsTakenAsItIsSaidAndIsOneBlockAtLeast) {
  EXPECT_EQ(store_budget_blocks(0.05, 512, kPlenty), 25U);
  EXPECT_EQ(store_budget_blocks(0.5, 100'001, kPlenty), 50'000U);
  EXPECT_EQ(store_budget_blocks(1.0, 512, kPlenty), 512U);
  EXPECT_EQ(store_budget_blocks(1e-9, 512, kPlenty), 1U);
  const uint32_t most = std::numeric_limits<uint32_t>::max();
  EXPECT_EQ(store_budget_blocks(1.0, most, kPlenty), most);
}

TEST(StoreBudget, IsNeverMoreThanTheNearestTierHas) {
  EXPECT_EQ(store_budget_blocks(std::nullopt, 512, 200), 200U);
  EXPECT_EQ(store_budget_blocks(1.0, 512, 200), 200U);
  EXPECT_EQ(store_budget_blocks(0.25, 512, 200), 128U);
}

TEST(StoreBudget, AShareIsAboveZeroAndAtMostOne) {
  for (const double share : {0.0, -0.1, 1.1, std::numeric_limits<double>::quiet_NaN()}) {
    EXPECT_THROW((void)store_budget_blocks(share, 512, kPlenty), ContractViolation) << share;
  }
}

}  // namespace
}  // namespace kvbm::internal
