// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/latch.hpp"

#include <memory>
#include <thread>

#include <gtest/gtest.h>

namespace kvbm {
namespace {

TEST(Latch, OpensOnceAndStaysOpen) {
  Latch latch;
  EXPECT_FALSE(latch.is_set());
  EXPECT_FALSE(latch.block_until(TimePoint::min()));
  latch.set();
  latch.set();
  EXPECT_TRUE(latch.is_set());
  EXPECT_TRUE(latch.block_until(TimePoint::min()));
  EXPECT_TRUE(latch.block_until(kNever));
}

TEST(Latch, MayBeDestroyedAsSoonAsAWaitReturns) {
  for (int round = 0; round < 300; ++round) {
    auto latch = std::make_unique<Latch>();
    std::thread setter([&raw = *latch] { raw.set(); });
    EXPECT_TRUE(latch->block_until(kNever));
    latch.reset();
    setter.join();
  }
}

}  // namespace
}  // namespace kvbm
