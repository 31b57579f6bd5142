// SPDX-License-Identifier: Apache-2.0
// What every Executor keeps, with threads or without.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/completion.hpp"
#include "kvbm/base/executor.hpp"
#include "kvbm/base/mutex.hpp"

#include "tests/support/recording_log_sink.hpp"

namespace kvbm::testing {

/// `Harness` is default constructible and has executor(), log(), freeze(queue, name) and
/// thaw(name): a frozen queue accepts tasks and starts none.
template <class Harness>
class ExecutorContract : public ::testing::Test {
 protected:
  static constexpr auto kLong = std::chrono::seconds(60);
  static constexpr auto kShort = std::chrono::milliseconds(20);

  [[nodiscard]] Executor& executor() { return harness_.executor(); }

  [[nodiscard]] std::unique_ptr<TaskQueue> queue(QueueOptions options) {
    Result<std::unique_ptr<TaskQueue>> created = executor().create_queue(std::move(options));
    if (!created) throw std::runtime_error(created.error().describe());
    return std::move(*created);
  }

  [[nodiscard]] bool wait(const Latch& latch) {
    return executor().wait(latch, executor().clock().now() + kLong);
  }

  /// A number per task, in the order they ran.
  class Trail {
   public:
    void add(int step) {
      const MutexLock lock(mutex_);
      steps_.push_back(step);
    }
    [[nodiscard]] std::vector<int> steps() const {
      const MutexLock lock(mutex_);
      return steps_;
    }

   private:
    mutable Mutex mutex_{LockRank::kReplay, "tests.trail"};
    std::vector<int> steps_ KVBM_GUARDED_BY(mutex_);
  };

  Harness harness_;
  Trail trail_;
};

TYPED_TEST_SUITE_P(ExecutorContract);

TYPED_TEST_P(ExecutorContract, AQueueNeedsANameAThreadAndCapacity) {
  for (const QueueOptions& options :
       {QueueOptions{.name = ""}, QueueOptions{.name = "q", .num_threads = 0},
        QueueOptions{.name = "q", .capacity = 0}}) {
    const auto created = this->executor().create_queue(options);
    ASSERT_FALSE(created);
    EXPECT_EQ(created.error().code(), ErrorCode::kInvalidArgument);
  }
}

TYPED_TEST_P(ExecutorContract, OneThreadRunsTasksInTheOrderTheyWerePosted) {
  const auto queue = this->queue({.name = "q"});
  Latch last;
  std::vector<int> expected;
  for (int i = 0; i < 100; ++i) {
    expected.push_back(i);
    ASSERT_TRUE(queue->post([this, i] { this->trail_.add(i); }));
  }
  ASSERT_TRUE(queue->post([&last] { last.set(); }));
  ASSERT_TRUE(this->wait(last));
  EXPECT_EQ(this->trail_.steps(), expected);
}

TYPED_TEST_P(ExecutorContract, StopRunsWhatWaitsAndThenRefusesTasks) {
  const auto queue = this->queue({.name = "q"});
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(queue->post([this, i] { this->trail_.add(i); }));
  }
  queue->stop();
  EXPECT_EQ(this->trail_.steps().size(), 10U);
  EXPECT_EQ(queue->pending(), 0U);

  Task untouched = [] {};
  EXPECT_EQ(queue->post([] {}).error().code(), ErrorCode::kUnavailable);
  EXPECT_EQ(queue->post_after(Duration::zero(), [] {}).error().code(), ErrorCode::kUnavailable);
  EXPECT_EQ(queue->try_post(std::move(untouched)).error().code(), ErrorCode::kUnavailable);
  EXPECT_TRUE(untouched);
  queue->stop();
}

TYPED_TEST_P(ExecutorContract, ARefusedOrDroppedTaskResolvesTheCompletionItHolds) {
  auto queue = this->queue({.name = "q"});
  CompletionSource delayed_source(this->executor());
  const Completion delayed = delayed_source.completion();
  ASSERT_TRUE(queue->post_after(this->kLong, [source = std::move(delayed_source)] {}));
  queue->stop();
  ASSERT_TRUE(delayed.done());
  EXPECT_EQ(delayed.status().error().code(), ErrorCode::kInternal);

  CompletionSource refused_source(this->executor());
  const Completion refused = refused_source.completion();
  EXPECT_FALSE(queue->post([source = std::move(refused_source)] {}));
  EXPECT_TRUE(refused.done());
}

TYPED_TEST_P(ExecutorContract, AFullQueueRefusesTryPostAndLeavesTheTask) {
  const auto queue = this->queue({.name = "q", .capacity = 2});
  this->harness_.freeze(*queue, "q");
  ASSERT_TRUE(queue->post([] {}));
  ASSERT_TRUE(queue->post([] {}));
  EXPECT_EQ(queue->pending(), 2U);
  Task third = [this] { this->trail_.add(3); };
  const Status refused = queue->try_post(std::move(third));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), ErrorCode::kExhausted);
  ASSERT_TRUE(third);
  this->harness_.thaw("q");
  ASSERT_TRUE(queue->post(std::move(third)));
  queue->stop();
  EXPECT_EQ(this->trail_.steps(), std::vector<int>{3});
}

TYPED_TEST_P(ExecutorContract, PostOnAFullQueueWaitsForRoom) {
  const auto queue = this->queue({.name = "q", .capacity = 1});
  std::vector<int> expected;
  for (int i = 0; i < 200; ++i) {
    expected.push_back(i);
    ASSERT_TRUE(queue->post([this, i] { this->trail_.add(i); }));
    ASSERT_LE(queue->pending(), 1U);
  }
  queue->stop();
  EXPECT_EQ(this->trail_.steps(), expected);
}

TYPED_TEST_P(ExecutorContract, ATaskMayPostToItsOwnFullQueue) {
  const auto queue = this->queue({.name = "q", .capacity = 1});
  Latch last;
  std::atomic<bool> accepted = true;
  ASSERT_TRUE(queue->post([&] {
    for (int i = 0; i < 5; ++i) {
      accepted = accepted && queue->post([this, i] { this->trail_.add(i); }).has_value();
    }
    accepted = accepted && queue->post([&last] { last.set(); }).has_value();
  }));
  ASSERT_TRUE(this->wait(last));
  EXPECT_TRUE(accepted);
  EXPECT_EQ(this->trail_.steps(), (std::vector<int>{0, 1, 2, 3, 4}));
}

TYPED_TEST_P(ExecutorContract, DelayedTasksRunInTheOrderOfTheirTimes) {
  const auto queue = this->queue({.name = "q"});
  const TimePoint start = this->executor().clock().now();
  Latch last;
  TimePoint ran{};
  ASSERT_TRUE(queue->post_after(3 * this->kShort, [&] {
    this->trail_.add(3);
    ran = this->executor().clock().now();
    last.set();
  }));
  ASSERT_TRUE(queue->post_after(this->kShort, [this] { this->trail_.add(1); }));
  ASSERT_TRUE(queue->post_after(2 * this->kShort, [this] { this->trail_.add(2); }));
  ASSERT_TRUE(queue->post_after(Duration::zero(), [this] { this->trail_.add(0); }));
  ASSERT_TRUE(this->wait(last));
  EXPECT_EQ(this->trail_.steps(), (std::vector<int>{0, 1, 2, 3}));
  EXPECT_GE(ran - start, 3 * this->kShort);
}

TYPED_TEST_P(ExecutorContract, DelayedTasksAreBoundedApart) {
  const auto queue = this->queue({.name = "q", .capacity = 2});
  this->harness_.freeze(*queue, "q");
  ASSERT_TRUE(queue->post_after(this->kLong, [] {}));
  ASSERT_TRUE(queue->post_after(this->kLong, [] {}));
  EXPECT_EQ(queue->post_after(this->kLong, [] {}).error().code(), ErrorCode::kExhausted);
  EXPECT_EQ(queue->pending(), 0U);
  EXPECT_EQ(queue->statistics().delayed, 2U);
  EXPECT_TRUE(queue->try_post([] {}));
  this->harness_.thaw("q");
}

TYPED_TEST_P(ExecutorContract, AnExceptionIsCountedAndLoggedAndTheQueueGoesOn) {
  const auto queue = this->queue({.name = "q"});
  Latch last;
  ASSERT_TRUE(queue->post([] { throw std::runtime_error("the disk is on fire"); }));
  ASSERT_TRUE(queue->post([] { throw 7; }));
  ASSERT_TRUE(queue->post([&last] { last.set(); }));
  ASSERT_TRUE(this->wait(last));
  queue->stop();
  EXPECT_EQ(queue->statistics().failed, 2U);
  EXPECT_GE(queue->statistics().finished, 3U);
  EXPECT_EQ(queue->statistics().running, 0U);
  EXPECT_THAT(this->harness_.log().messages(LogLevel::kError),
              ::testing::ElementsAre(::testing::AllOf(::testing::HasSubstr("'q'"),
                                                      ::testing::HasSubstr("the disk is on fire")),
                                     ::testing::HasSubstr("no std::exception")));
}

TYPED_TEST_P(ExecutorContract, ATaskCannotStopItsOwnQueue) {
  const auto queue = this->queue({.name = "q"});
  std::atomic<bool> refused = false;
  ASSERT_TRUE(queue->post([&] {
    try {
      queue->stop();
    } catch (const ContractViolation&) {
      refused = true;
    }
  }));
  queue->stop();
  EXPECT_TRUE(refused);
}

TYPED_TEST_P(ExecutorContract, ATaskThatDestroysItsOwnQueueIsReportedAndSurvived) {
  const auto holder = std::make_shared<std::unique_ptr<TaskQueue>>(this->queue({.name = "q"}));
  Latch destroyed;
  // Through a queue of its own: the first post must have returned before the queue goes.
  const auto starter = this->queue({.name = "starter"});
  Latch posted;
  ASSERT_TRUE((*holder)->post([&, holder] {
    static_cast<void>(this->executor().wait(posted, kNever));
    holder->reset();
    destroyed.set();
  }));
  ASSERT_TRUE(starter->post([&posted] { posted.set(); }));
  ASSERT_TRUE(this->wait(destroyed));
  EXPECT_THAT(this->harness_.log().messages(LogLevel::kError),
              ::testing::ElementsAre(::testing::HasSubstr("destroyed by one of its own tasks")));
}

TYPED_TEST_P(ExecutorContract, WaitEndsWithTheLatchOrAtTheDeadline) {
  const auto queue = this->queue({.name = "q"});
  Latch never_set;
  const TimePoint deadline = this->executor().clock().now() + this->kShort;
  EXPECT_FALSE(this->executor().wait(never_set, deadline));
  EXPECT_GE(this->executor().clock().now(), deadline);

  Latch set;
  ASSERT_TRUE(queue->post_after(this->kShort, [&set] { set.set(); }));
  EXPECT_TRUE(this->executor().wait(set, kNever));
  EXPECT_TRUE(this->executor().wait(set, TimePoint::min()));
}

TYPED_TEST_P(ExecutorContract, ATaskMayWaitForAnotherQueue) {
  const auto lower = this->queue({.name = "lower"});
  const auto upper = this->queue({.name = "upper"});
  Latch last;
  ASSERT_TRUE(upper->post([&] {
    Latch inner;
    if (!lower->post([&inner] { inner.set(); })) return;
    if (this->executor().wait(inner, kNever)) last.set();
  }));
  EXPECT_TRUE(this->wait(last));
}

TYPED_TEST_P(ExecutorContract, SeveralThreadsRunAllTasks) {
  const auto queue = this->queue({.name = "wide", .num_threads = 4, .capacity = 8});
  std::atomic<int> sum = 0;
  for (int i = 1; i <= 1000; ++i) ASSERT_TRUE(queue->post([&sum, i] { sum += i; }));
  queue->stop();
  EXPECT_EQ(sum, 500500);
  EXPECT_EQ(queue->statistics().finished, 1000U);
}

REGISTER_TYPED_TEST_SUITE_P(
    ExecutorContract, AQueueNeedsANameAThreadAndCapacity,
    OneThreadRunsTasksInTheOrderTheyWerePosted, StopRunsWhatWaitsAndThenRefusesTasks,
    ARefusedOrDroppedTaskResolvesTheCompletionItHolds, AFullQueueRefusesTryPostAndLeavesTheTask,
    PostOnAFullQueueWaitsForRoom, ATaskMayPostToItsOwnFullQueue,
    DelayedTasksRunInTheOrderOfTheirTimes, DelayedTasksAreBoundedApart,
    AnExceptionIsCountedAndLoggedAndTheQueueGoesOn, ATaskCannotStopItsOwnQueue,
    ATaskThatDestroysItsOwnQueueIsReportedAndSurvived, WaitEndsWithTheLatchOrAtTheDeadline,
    ATaskMayWaitForAnotherQueue, SeveralThreadsRunAllTasks);

}  // namespace kvbm::testing
