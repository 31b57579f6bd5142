// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cuda/internal/copy_pace.hpp"

#include <chrono>

#include <gtest/gtest.h>

namespace kvbm::internal {
namespace {

constexpr uint64_t kMany = 1'000'000;

TimePoint at(int64_t microseconds) { return TimePoint() + std::chrono::microseconds(microseconds); }

TEST(CopyPace, KnowsNothingAtFirst) {
  CopyPace pace;
  EXPECT_EQ(pace.expected_end(at(0), kMany), std::nullopt);
  pace.on_end(at(0), 100, at(50));
  EXPECT_EQ(pace.expected_end(at(60), kMany), std::nullopt) << "100 bytes tell nothing";
}

TEST(CopyPace, ExpectsTheRateOfWhatHasEnded) {
  CopyPace pace;
  pace.on_end(at(100), kMany, at(120));
  EXPECT_EQ(pace.expected_end(at(200), kMany), at(220));
  EXPECT_EQ(pace.expected_end(at(200), 3 * kMany), at(260));
  EXPECT_EQ(pace.expected_end(at(200), 100), std::nullopt);
}

TEST(CopyPace, CopiesBeginWhenThoseBeforeThemHaveEnded) {
  CopyPace pace;
  pace.on_end(at(100), kMany, at(120));
  pace.on_end(at(100), kMany, at(140));
  EXPECT_EQ(pace.expected_end(at(100), kMany), at(160));
}

TEST(LikelyEnd, DoubtsLongCopiesMore) {
  const LikelyEnd of_short = likely_end(at(1000), at(1100));
  EXPECT_EQ(of_short.earliest, at(1060));
  EXPECT_EQ(of_short.latest, at(1160));
  const LikelyEnd of_long = likely_end(at(0), at(6400));
  EXPECT_EQ(of_long.earliest, at(6200));
  EXPECT_EQ(of_long.latest, at(6600));
  const LikelyEnd of_very_long = likely_end(at(0), at(1'000'000));
  EXPECT_EQ(of_very_long.earliest, at(999'500));
  EXPECT_EQ(of_very_long.latest, at(1'000'500));
}

TEST(CopyPace, FollowsALinkThatSlowsDown) {
  CopyPace pace;
  int64_t now = 0;
  const auto copy_in = [&](int64_t microseconds) {
    pace.on_end(at(now), kMany, at(now + microseconds));
    now += microseconds;
  };
  copy_in(20);
  copy_in(40);
  EXPECT_EQ(pace.expected_end(at(now), kMany), at(now + 25));
  for (int i = 0; i < 30; ++i) copy_in(40);
  EXPECT_GE(*pace.expected_end(at(now), kMany), at(now + 39));
}

}  // namespace
}  // namespace kvbm::internal
