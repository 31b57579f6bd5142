// SPDX-License-Identifier: Apache-2.0
#include "kvbm/replay/progress.hpp"

#include <atomic>
#include <chrono>
#include <string>
#include <string_view>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kvbm {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::StartsWith;

// A clock that counts how often it is asked.
class CountingClock final : public Clock {
 public:
  [[nodiscard]] TimePoint now() const noexcept override {
    ++reads;
    return time;
  }
  [[nodiscard]] WallTime wall_time() const noexcept override { return {}; }

  TimePoint time{};
  mutable int reads = 0;
};

class ProgressTest : public ::testing::Test {
 protected:
  Progress make(ProgressStyle style) {
    return Progress(
        {.style = style, .label = "replay", .unit = "accesses", .columns = 79},
        [this](std::string_view text) { written_.emplace_back(text); }, clock_);
  }

  CountingClock clock_;
  std::vector<std::string> written_;
};

TEST_F(ProgressTest, IsSilentIfAsked) {
  Progress progress = make(ProgressStyle::kSilent);
  progress.start(100);
  for (uint64_t i = 0; i <= 100; ++i) {
    clock_.time += seconds(10);
    progress.update(i);
  }
  progress.finish();
  EXPECT_THAT(written_, IsEmpty());
  EXPECT_EQ(clock_.reads, 0);
}

TEST_F(ProgressTest, ReadsTheClockAThousandTimesAtMost) {
  for (const ProgressStyle style : {ProgressStyle::kBar, ProgressStyle::kLines}) {
    clock_.reads = 0;
    Progress progress = make(style);
    progress.start(10'000'000);
    for (uint64_t i = 0; i <= 10'000'000; ++i) progress.update(i);
    EXPECT_LE(clock_.reads, 1'001);
    EXPECT_GE(clock_.reads, 900);
  }
}

TEST_F(ProgressTest, DrawsTheBarTenTimesASecondAtMost) {
  Progress progress = make(ProgressStyle::kBar);
  progress.start(1'000);
  for (uint64_t i = 1; i <= 1'000; ++i) {
    clock_.time += milliseconds(3);
    progress.update(i);
  }
  progress.finish();
  EXPECT_THAT(written_, SizeIs(::testing::AllOf(::testing::Ge(25U), ::testing::Le(32U))));
}

TEST_F(ProgressTest, ClearsTheBarAtTheEnd) {
  Progress progress = make(ProgressStyle::kBar);
  progress.start(1'000);
  EXPECT_THAT(written_, SizeIs(1));
  progress.finish();
  EXPECT_EQ(written_.back(), "\r\x1b[K");
  const size_t count = written_.size();
  progress.finish();
  EXPECT_THAT(written_, SizeIs(count));
}

TEST_F(ProgressTest, ClearsTheBarWhenItIsDestroyed) {
  {
    Progress progress = make(ProgressStyle::kBar);
    progress.start(1'000);
  }
  EXPECT_EQ(written_.back(), "\r\x1b[K");
}

TEST_F(ProgressTest, TellsShareRateAndWhatIsLeft) {
  Progress progress = make(ProgressStyle::kBar);
  progress.start(1'000);
  clock_.time += seconds(2);
  progress.update(250);
  EXPECT_THAT(written_.back(), HasSubstr("replay [######..................]  25 %"));
  EXPECT_THAT(written_.back(), HasSubstr("250 of 1.00 k accesses, 125/s, 6"));
}

TEST_F(ProgressTest, KeepsTheBarInItsLine) {
  Progress progress(
      {.style = ProgressStyle::kBar, .label = "replay", .unit = "accesses", .columns = 20},
      [this](std::string_view text) { written_.emplace_back(text); }, clock_);
  progress.start(1'000);
  EXPECT_THAT(written_.back(), SizeIs(4 + 20));  // the clearing before it takes no room
}

TEST_F(ProgressTest, WritesWholeLinesWhereThereIsNoTerminal) {
  Progress progress = make(ProgressStyle::kLines);
  progress.start(1'000);
  clock_.time += seconds(2);
  progress.update(500);
  progress.finish();
  EXPECT_THAT(written_,
              ::testing::ElementsAre("replay: 50 %, 500 of 1.00 k accesses after 2.00 s\n"));
}

TEST_F(ProgressTest, WritesALineForTenPercentIfASecondHasPassed) {
  Progress progress = make(ProgressStyle::kLines);
  progress.start(1'000);
  clock_.time += milliseconds(999);
  progress.update(900);
  EXPECT_THAT(written_, IsEmpty());
  clock_.time += milliseconds(1);
  progress.update(910);
  EXPECT_THAT(written_, SizeIs(1));
  // Nine percent more, within ten seconds: not yet.
  clock_.time += seconds(9);
  progress.update(1'000 - 1);
  EXPECT_THAT(written_, SizeIs(1));
}

TEST_F(ProgressTest, WritesALineEveryTenSecondsHoweverSlowItIs) {
  Progress progress = make(ProgressStyle::kLines);
  progress.start(1'000);
  for (uint64_t i = 1; i <= 40; ++i) {
    clock_.time += seconds(1);
    progress.update(i);
  }
  EXPECT_THAT(written_, SizeIs(4));
}

TEST_F(ProgressTest, CanStartAgain) {
  Progress progress = make(ProgressStyle::kLines);
  progress.start(10);
  clock_.time += seconds(20);
  progress.update(10);
  progress.start(20);
  clock_.time += seconds(20);
  progress.update(10);
  ASSERT_THAT(written_, SizeIs(2));
  EXPECT_THAT(written_.back(), StartsWith("replay: 50 %"));
}

TEST_F(ProgressTest, TakesATotalOfNothing) {
  Progress progress = make(ProgressStyle::kBar);
  progress.start(0);
  clock_.time += seconds(1);
  progress.update(1);
  progress.finish();
  EXPECT_EQ(written_.back(), "\r\x1b[K");
}

TEST_F(ProgressTest, KnowsWhetherItIsInterrupted) {
  std::atomic<bool> flag{false};
  const Progress progress({.interrupted = &flag}, {}, clock_);
  EXPECT_FALSE(progress.interrupted());
  flag = true;
  EXPECT_TRUE(progress.interrupted());
  EXPECT_FALSE(Progress(clock_).interrupted());
}

}  // namespace
}  // namespace kvbm
