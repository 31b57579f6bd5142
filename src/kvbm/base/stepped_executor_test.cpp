// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/stepped_executor.hpp"

#include <chrono>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kvbm {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::ElementsAre;

std::unique_ptr<TaskQueue> make_queue(Executor& executor, QueueOptions options) {
  return std::move(executor.create_queue(std::move(options)).value());
}

/// The order in which 3 queues of 8 tasks run.
std::string order_of(uint64_t seed) {
  SteppedExecutor executor(seed);
  std::string order;
  std::vector<std::unique_ptr<TaskQueue>> queues;
  for (const std::string name : {"a", "b", "c"}) {
    queues.push_back(make_queue(executor, {.name = name}));
    for (int i = 0; i < 8; ++i) {
      EXPECT_TRUE(queues.back()->post([&order, name] { order += name; }));
    }
  }
  EXPECT_EQ(executor.run_until_idle(), 24U);
  return order;
}

TEST(SteppedExecutor, RunsNothingUntilItIsStepped) {
  SteppedExecutor executor(1);
  const auto queue = make_queue(executor, {.name = "q"});
  int ran = 0;
  ASSERT_TRUE(queue->post([&ran] { ++ran; }));
  ASSERT_TRUE(queue->post([&ran] { ++ran; }));
  EXPECT_FALSE(executor.idle());
  EXPECT_EQ(ran, 0);
  EXPECT_TRUE(executor.step());
  EXPECT_EQ(ran, 1);
  EXPECT_TRUE(executor.step());
  EXPECT_FALSE(executor.step());
  EXPECT_EQ(ran, 2);
  EXPECT_TRUE(executor.idle());
}

TEST(SteppedExecutor, TheSeedDecidesTheOrderAmongQueues) {
  std::set<std::string> orders;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    EXPECT_EQ(order_of(seed), order_of(seed)) << "seed " << seed;
    orders.insert(order_of(seed));
  }
  EXPECT_GT(orders.size(), 15U);
}

TEST(SteppedExecutor, SeveralThreadsMayOvertakeButNoFurtherThanTheirNumber) {
  std::set<int> first_tasks;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    SteppedExecutor executor(seed);
    const auto queue = make_queue(executor, {.name = "wide", .num_threads = 3});
    int ran = -1;
    for (int i = 0; i < 10; ++i) ASSERT_TRUE(queue->post([&ran, i] { ran = i; }));
    executor.step();
    first_tasks.insert(ran);
  }
  EXPECT_THAT(first_tasks, ElementsAre(0, 1, 2));
}

TEST(SteppedExecutor, HeldQueueDoesNotRunUntilReleased) {
  SteppedExecutor executor(1);
  const auto slow = make_queue(executor, {.name = "slow"});
  const auto fast = make_queue(executor, {.name = "fast"});
  executor.hold("slow");
  std::string order;
  ASSERT_TRUE(slow->post([&order] { order += "s"; }));
  ASSERT_TRUE(fast->post([&order] { order += "f"; }));
  EXPECT_EQ(executor.run_until_idle(), 1U);
  EXPECT_EQ(order, "f");
  EXPECT_EQ(slow->pending(), 1U);
  executor.release("slow");
  EXPECT_EQ(executor.run_until_idle(), 1U);
  EXPECT_EQ(order, "fs");
}

TEST(SteppedExecutor, HoldCoversQueuesCreatedLater) {
  SteppedExecutor executor(1);
  executor.hold("q");
  const auto queue = make_queue(executor, {.name = "q"});
  ASSERT_TRUE(queue->post([] {}));
  ASSERT_TRUE(queue->post_after(seconds(1), [] {}));
  EXPECT_FALSE(executor.step());
  EXPECT_EQ(executor.next_due(), std::nullopt);
  executor.release("q");
  EXPECT_TRUE(executor.step());
}

TEST(SteppedExecutor, AdvanceMakesDueTasksReadyAndRunsNothing) {
  SteppedExecutor executor(1);
  const auto queue = make_queue(executor, {.name = "q"});
  std::string order;
  ASSERT_TRUE(queue->post_after(milliseconds(20), [&order] { order += "2"; }));
  ASSERT_TRUE(queue->post_after(milliseconds(10), [&order] { order += "1"; }));
  ASSERT_TRUE(queue->post_after(milliseconds(31), [&order] { order += "3"; }));
  EXPECT_FALSE(executor.step());
  executor.advance(milliseconds(30));
  EXPECT_EQ(order, "");
  EXPECT_EQ(executor.run_until_idle(), 2U);
  EXPECT_EQ(order, "12");
  EXPECT_EQ(executor.next_due(), executor.clock().now() + milliseconds(1));
}

TEST(SteppedExecutor, RunForGoesFromOneDelayedTaskToTheNext) {
  SteppedExecutor executor(1);
  const auto queue = make_queue(executor, {.name = "q"});
  const TimePoint start = executor.clock().now();
  std::vector<Duration> ticks;
  std::function<void()> tick = [&] {
    ticks.push_back(executor.clock().now() - start);
    ASSERT_TRUE(queue->post_after(seconds(1), [&] { tick(); }));
  };
  ASSERT_TRUE(queue->post_after(seconds(1), [&] { tick(); }));
  EXPECT_EQ(executor.run_for(milliseconds(3500)), 3U);
  EXPECT_THAT(ticks, ElementsAre(seconds(1), seconds(2), seconds(3)));
  EXPECT_EQ(executor.clock().now() - start, milliseconds(3500));
}

TEST(SteppedExecutor, RunWhileStopsWithTheConditionOrWithoutWork) {
  SteppedExecutor executor(1);
  const auto queue = make_queue(executor, {.name = "q"});
  int ran = 0;
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(queue->post([&ran] { ++ran; }));
  EXPECT_FALSE(executor.run_while([&ran] { return ran < 3; }));
  EXPECT_EQ(ran, 3);
  EXPECT_TRUE(executor.run_while([] { return true; }));
  EXPECT_EQ(ran, 5);
}

TEST(SteppedExecutor, WaitMovesTheClockOnlyAsFarAsNeeded) {
  SteppedExecutor executor(1);
  const auto queue = make_queue(executor, {.name = "q"});
  const TimePoint start = executor.clock().now();
  Latch latch;
  ASSERT_TRUE(queue->post_after(seconds(2), [&latch] { latch.set(); }));
  ASSERT_TRUE(queue->post_after(seconds(9), [] {}));
  EXPECT_FALSE(executor.wait(latch, start + seconds(1)));
  EXPECT_EQ(executor.clock().now(), start + seconds(1));
  EXPECT_TRUE(executor.wait(latch, kNever));
  EXPECT_EQ(executor.clock().now(), start + seconds(2));
}

TEST(SteppedExecutor, AWaitWhoseDeadlineHasComeRunsNothing) {
  SteppedExecutor executor(1);
  const auto queue = make_queue(executor, {.name = "q"});
  Latch latch;
  ASSERT_TRUE(queue->post([&latch] { latch.set(); }));
  EXPECT_FALSE(executor.wait(latch, executor.clock().now()));
  EXPECT_EQ(queue->pending(), 1U);
}

TEST(SteppedExecutor, TheNextDelayedTaskIsTheEarliestOfAllQueues) {
  SteppedExecutor executor(1);
  const TimePoint start = executor.clock().now();
  std::vector<std::unique_ptr<TaskQueue>> queues;
  for (const int delay : {30, 10, 20}) {
    queues.push_back(make_queue(executor, {.name = "q"}));
    ASSERT_TRUE(queues.back()->post_after(milliseconds(delay), [] {}));
  }
  EXPECT_EQ(executor.next_due(), start + milliseconds(10));
}

TEST(SteppedExecutor, AWaitThatNothingCanEndReturnsFalse) {
  SteppedExecutor executor(1);
  const auto queue = make_queue(executor, {.name = "q"});
  const TimePoint start = executor.clock().now();
  Latch latch;
  executor.hold("q");
  ASSERT_TRUE(queue->post([&latch] { latch.set(); }));
  EXPECT_FALSE(executor.wait(latch, kNever));
  EXPECT_EQ(executor.clock().now(), start);
}

TEST(SteppedExecutor, PostOnAFullQueueThatCannotMoveIsRefused) {
  SteppedExecutor executor(1);
  const auto queue = make_queue(executor, {.name = "q", .capacity = 1});
  executor.hold("q");
  ASSERT_TRUE(queue->post([] {}));
  EXPECT_EQ(queue->post([] {}).error().code(), ErrorCode::kExhausted);
}

TEST(SteppedExecutor, AWaitInATaskLeavesItsOwnQueueAlone) {
  SteppedExecutor executor(1);
  const auto queue = make_queue(executor, {.name = "q"});
  Latch latch;
  bool waited = true;
  ASSERT_TRUE(queue->post([&] { waited = executor.wait(latch, kNever); }));
  ASSERT_TRUE(queue->post([&latch] { latch.set(); }));
  EXPECT_EQ(executor.run_until_idle(), 2U);
  EXPECT_FALSE(waited) << "the second task ran while the first was running";
  EXPECT_TRUE(latch.is_set());
}

TEST(SteppedExecutor, AWaitInATaskOfTwoThreadsLetsTheOtherOneRun) {
  SteppedExecutor executor(1);
  const auto queue = make_queue(executor, {.name = "q", .num_threads = 2});
  Latch latch;
  bool waited = false;
  ASSERT_TRUE(queue->post([&] { waited = executor.wait(latch, kNever); }));
  ASSERT_TRUE(queue->post([&latch] { latch.set(); }));
  executor.run_until_idle();
  EXPECT_TRUE(waited);
}

TEST(SteppedExecutor, StopRunsAlsoWhatIsHeld) {
  SteppedExecutor executor(1);
  const auto queue = make_queue(executor, {.name = "q"});
  executor.hold("q");
  int ran = 0;
  ASSERT_TRUE(queue->post([&ran] { ++ran; }));
  queue->stop();
  EXPECT_EQ(ran, 1);
}

TEST(SteppedExecutor, TasksThatPostEachOtherForEverAreFoundOut) {
  SteppedExecutor executor(1);
  const auto queue = make_queue(executor, {.name = "q"});
  std::function<void()> again = [&] { static_cast<void>(queue->post([&] { again(); })); };
  ASSERT_TRUE(queue->post([&] { again(); }));
  EXPECT_THROW(executor.run_until_idle(100), ContractViolation);
  EXPECT_THROW(executor.run_while([] { return true; }, 100), ContractViolation);
  EXPECT_THROW(executor.run_for(seconds(1), 100), ContractViolation);
}

}  // namespace
}  // namespace kvbm
