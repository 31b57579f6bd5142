// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/layout_handle.hpp"

#include <gtest/gtest.h>

namespace kvbm {
namespace {

TEST(LayoutHandle, IsAWorkerAndALayoutIn128Bits) {
  const LayoutHandle handle{WorkerId{0xfedc'ba98'7654'3210}, 0xabcd};
  EXPECT_EQ(handle.low(), 0xfedc'ba98'7654'3210U);
  EXPECT_EQ(handle.high(), 0xabcdU);
  EXPECT_EQ(LayoutHandle::from_bits(handle.low(), handle.high()).value(), handle);
  EXPECT_EQ(to_string(LayoutHandle{WorkerId{7}, 2}), "worker 7 layout 2");
}

TEST(LayoutHandle, BitsAboveTheLayoutAreRefused) {
  EXPECT_TRUE(LayoutHandle::from_bits(1, 0xffff));
  EXPECT_EQ(LayoutHandle::from_bits(1, 0x1'0000).error().code(), ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace kvbm
