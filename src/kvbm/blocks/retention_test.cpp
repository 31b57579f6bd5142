// SPDX-License-Identifier: Apache-2.0
#include "kvbm/blocks/retention.hpp"

#include <gtest/gtest.h>

namespace kvbm {
namespace {

TEST(Retention, AFullPrefixNeedsEveryPosition) {
  const Retention retention = Retention::full_prefix();
  EXPECT_TRUE(retention.is_full_prefix());
  EXPECT_EQ(retention.first_needed(0), 0U);
  EXPECT_EQ(retention.first_needed(1'000'000), 0U);
  EXPECT_THROW(static_cast<void>(retention.window_blocks()), ContractViolation);
}

TEST(Retention, AWindowNeedsItsLastBlocks) {
  const Retention retention = Retention::last_window(4);
  EXPECT_FALSE(retention.is_full_prefix());
  EXPECT_EQ(retention.window_blocks(), 4U);
  EXPECT_EQ(retention.first_needed(0), 0U);
  EXPECT_EQ(retention.first_needed(4), 0U);
  EXPECT_EQ(retention.first_needed(5), 1U);
  EXPECT_EQ(retention.first_needed(100), 96U);
}

TEST(Retention, AWindowHasAtLeastOneBlock) {
  EXPECT_THROW(static_cast<void>(Retention::last_window(0)), ContractViolation);
}

}  // namespace
}  // namespace kvbm
