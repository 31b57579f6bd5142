// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cuda/internal/pinned_ring.hpp"

#include <algorithm>
#include <deque>
#include <optional>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/random.hpp"

#include "tests/support/seed.hpp"

namespace kvbm::internal {
namespace {

struct alignas(PinnedRing::kAlignment) Memory {
  std::byte bytes[8192];
};

TEST(PinnedRingTest, LendsAllOfItAndNoMore) {
  Memory memory;
  PinnedRing ring(memory.bytes);
  std::vector<PinnedRing::Slice> slices;
  for (auto slice = ring.take(1000); slice && slices.size() < 100; slice = ring.take(1000)) {
    slices.push_back(*std::move(slice));
  }
  EXPECT_EQ(slices.size(), 8u);
  slices.erase(slices.begin() + 1);
  EXPECT_FALSE(ring.take(1)) << "an older slice is lent before it";
  slices.erase(slices.begin());
  EXPECT_TRUE(ring.take(2048)) << "both are free";
  slices.clear();
  EXPECT_TRUE(ring.take(8192));
  EXPECT_FALSE(ring.take(8193));
  EXPECT_FALSE(ring.take(0));
}

TEST(PinnedRingTest, WhatIsLentNeverOverlaps) {
  Memory memory;
  PinnedRing ring(memory.bytes);
  Random random(testing::test_seed());
  std::deque<std::pair<PinnedRing::Slice, std::byte>> lent;
  uint64_t taken = 0;
  uint64_t refused = 0;
  for (int step = 0; step < 20'000; ++step) {
    if (random.chance(0.55)) {
      auto slice = ring.take(random.uniform_between(1, 2500));
      if (!slice) {
        ++refused;
        ASSERT_FALSE(lent.empty()) << "an empty ring has room";
        continue;
      }
      ++taken;
      const auto mark = static_cast<std::byte>(step);
      std::ranges::fill(slice->bytes(), mark);
      ASSERT_EQ(reinterpret_cast<uintptr_t>(slice->bytes().data()) % PinnedRing::kAlignment, 0u);
      ASSERT_LE(slice->bytes().data() + slice->bytes().size(), std::end(memory.bytes));
      lent.emplace_back(*std::move(slice), mark);
    } else if (!lent.empty()) {
      // Mostly the oldest, as events come about.
      const auto i = static_cast<ptrdiff_t>(random.chance(0.7) ? 0 : random.uniform(lent.size()));
      const auto& [slice, mark] = lent[static_cast<size_t>(i)];
      ASSERT_TRUE(std::ranges::all_of(slice.bytes(), [&](std::byte b) { return b == mark; }));
      lent.erase(lent.begin() + i);
    }
  }
  EXPECT_GT(taken, 5000u);
  EXPECT_GT(refused, 500u);
}

}  // namespace
}  // namespace kvbm::internal
