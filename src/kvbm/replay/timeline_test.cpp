// SPDX-License-Identifier: Apache-2.0
#include "kvbm/replay/timeline.hpp"

#include <gtest/gtest.h>

#include "kvbm/base/contract.hpp"

namespace kvbm {
namespace {

TEST(PerTier, AddsUpAndFindsItsTiers) {
  PerTier<uint64_t> counts{1, 2, 3};
  EXPECT_EQ(counts.total(), 6U);
  counts.of(TierId::kG3) = 30;
  EXPECT_EQ(counts.of(TierId::kG1), 1U);
  EXPECT_EQ(counts.of(TierId::kG2), 2U);
  EXPECT_EQ(counts, (PerTier<uint64_t>{1, 2, 30}));
  EXPECT_THROW(static_cast<void>(counts.of(TierId::kG4)), ContractViolation);
}

TEST(Timeline, KeepsAboutOneSampleAnInterval) {
  constexpr uint64_t kAccesses = 1'000'000;
  Timeline timeline(kAccesses);
  for (uint64_t i = 1; i <= kAccesses; i += 7) timeline.record({i, {i / 2, 0, 0}});
  const auto samples = timeline.take({kAccesses, {kAccesses / 2, 0, 0}});
  EXPECT_LE(samples.size(), Timeline::kIntervals + 1);
  EXPECT_GE(samples.size(), Timeline::kIntervals - 1);
  for (size_t i = 1; i < samples.size(); ++i) {
    EXPECT_LT(samples[i - 1].accesses, samples[i].accesses);
  }
}

TEST(Timeline, EndsWithTheEndOfTheTrace) {
  Timeline timeline(10);
  timeline.record({4, {1, 0, 0}});
  timeline.record({9, {2, 0, 0}});
  const auto samples = timeline.take({10, {3, 0, 0}});
  ASSERT_EQ(samples.size(), 3U);
  EXPECT_EQ(samples.back(), (TimelineSample{10, {3, 0, 0}}));
}

TEST(Timeline, DoesNotTellTheEndTwice) {
  Timeline timeline(2);
  timeline.record({2, {1, 0, 0}});
  EXPECT_EQ(timeline.take({2, {1, 0, 0}}).size(), 1U);
}

TEST(Timeline, KeepsOneSampleWhereOneStepPassesManyIntervals) {
  Timeline timeline(2560);
  timeline.record({2000, {}});
  timeline.record({2001, {}});
  EXPECT_EQ(timeline.take({2001, {}}).size(), 2U);
}

}  // namespace
}  // namespace kvbm
