// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/clock.hpp"

#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/contract.hpp"

namespace kvbm {
namespace {

using namespace std::chrono_literals;

TEST(ManualClock, MovesOnlyWhenAdvanced) {
  ManualClock clock;
  const TimePoint start = clock.now();
  const WallTime wall_start = clock.wall_time();
  EXPECT_EQ(clock.now(), start);
  clock.advance(5ms);
  EXPECT_EQ(clock.now() - start, 5ms);
  EXPECT_EQ(clock.wall_time() - wall_start, 5ms);
  EXPECT_EQ(wall_start, WallTime(std::chrono::sys_days(std::chrono::year(2000) / 1 / 1)));
  EXPECT_GT(start - 30min, TimePoint{});
}

TEST(ManualClock, NeverGoesBack) {
  ManualClock clock;
  clock.advance(10ms);
  const TimePoint now = clock.now();
  clock.advance_to(now - 5ms);
  EXPECT_EQ(clock.now(), now);
  clock.advance_to(now + 5ms);
  EXPECT_EQ(clock.now(), now + 5ms);
  EXPECT_THROW(clock.advance(-1ns), ContractViolation);
  EXPECT_EQ(clock.now(), now + 5ms);
}

TEST(ManualClock, AddsUpTheStepsOfManyThreads) {
  ManualClock clock;
  const TimePoint start = clock.now();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&clock, start] {
      for (int i = 0; i < 1000; ++i) {
        clock.advance(1ns);
        clock.advance_to(start + 1ns);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GE(clock.now() - start, 4000ns);
  EXPECT_LE(clock.now() - start, 4001ns);
}

TEST(SystemClock, GoesForward) {
  const SystemClock clock;
  const TimePoint first = clock.now();
  EXPECT_GE(clock.now(), first);
  EXPECT_GT(clock.wall_time(), WallTime(std::chrono::sys_days(std::chrono::year(2024) / 1 / 1)));
}

TEST(SaturatingAdd, StopsAtNever) {
  const TimePoint start{1h};
  EXPECT_EQ(saturating_add(start, 5s), start + 5s);
  EXPECT_EQ(saturating_add(start, -5s), start - 5s);
  EXPECT_EQ(saturating_add(start, Duration::max()), kNever);
  EXPECT_EQ(saturating_add(kNever, 0ns), kNever);
  EXPECT_EQ(saturating_add(kNever, 1ns), kNever);
}

}  // namespace
}  // namespace kvbm
