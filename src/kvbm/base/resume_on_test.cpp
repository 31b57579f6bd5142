// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/resume_on.hpp"

#include <optional>
#include <thread>

#include <gtest/gtest.h>

#include "kvbm/base/completion.hpp"
#include "kvbm/base/log.hpp"
#include "kvbm/base/stepped_executor.hpp"
#include "kvbm/base/thread_executor.hpp"

#include "tests/support/coroutine.hpp"

namespace kvbm {
namespace {

using testing::Coroutine;

Coroutine hop(TaskQueue& queue, std::optional<Status>& moved) { moved = co_await resume_on(queue); }

TEST(ResumeOn, GoesOnInATaskOfTheQueue) {
  SteppedExecutor executor(1);
  const auto queue = std::move(executor.create_queue({.name = "q"}).value());
  std::optional<Status> moved;
  hop(*queue, moved);
  EXPECT_FALSE(moved);
  EXPECT_EQ(executor.run_until_idle(), 1U);
  ASSERT_TRUE(moved);
  EXPECT_TRUE(*moved);
}

TEST(ResumeOn, GoesOnWhereItWasIfTheQueueRefuses) {
  SteppedExecutor executor(1);
  const auto queue = std::move(executor.create_queue({.name = "q", .capacity = 1}).value());
  std::optional<Status> first;
  std::optional<Status> second;
  hop(*queue, first);
  hop(*queue, second);
  ASSERT_TRUE(second);
  EXPECT_EQ(second->error().code(), ErrorCode::kExhausted);
  EXPECT_FALSE(first);
  queue->stop();
  ASSERT_TRUE(first);
  EXPECT_TRUE(*first);
  std::optional<Status> third;
  hop(*queue, third);
  ASSERT_TRUE(third);
  EXPECT_EQ(third->error().code(), ErrorCode::kUnavailable);
}

/// Takes tasks and drops them.
class DroppingQueue final : public TaskQueue {
 public:
  Status post(Task task) override { return try_post(std::move(task)); }
  Status try_post(Task&& task) override {
    const Task dropped = std::move(task);
    return {};
  }
  Status post_after(Duration /*delay*/, Task task) override { return try_post(std::move(task)); }
  void stop() override {}
  [[nodiscard]] size_t pending() const override { return 0; }
  [[nodiscard]] QueueStatistics statistics() const override { return {}; }
};

TEST(ResumeOn, GoesOnWithAnErrorIfTheTaskIsDropped) {
  DroppingQueue queue;
  std::optional<Status> moved;
  hop(queue, moved);
  ASSERT_TRUE(moved);
  EXPECT_EQ(moved->error().code(), ErrorCode::kUnavailable);
}

TEST(ResumeOn, TakesWhatFollowsACompletionToAnotherThread) {
  NullLogSink log;
  ThreadExecutor executor(log);
  const auto resolvers = std::move(executor.create_queue({.name = "resolver"}).value());
  const auto workers = std::move(executor.create_queue({.name = "worker"}).value());
  for (int round = 0; round < 200; ++round) {
    CompletionSource source(executor);
    CompletionSource ended(executor);
    const Completion whole = ended.completion();
    std::thread::id resolver;
    std::thread::id before;
    std::thread::id after;
    [](Completion awaited, TaskQueue& queue, std::thread::id& first, std::thread::id& then,
       CompletionSource end) -> Coroutine {
      const Status outcome = co_await awaited;
      first = std::this_thread::get_id();
      const Status moved = co_await resume_on(queue);
      then = std::this_thread::get_id();
      end.resolve(outcome ? moved : outcome);
    }(source.completion(), *workers, before, after, std::move(ended));
    ASSERT_TRUE(resolvers->post([&] {
      resolver = std::this_thread::get_id();
      source.resolve({});
    }));
    ASSERT_TRUE(whole.wait());
    EXPECT_EQ(before, resolver);
    EXPECT_NE(after, resolver);
  }
}

}  // namespace
}  // namespace kvbm
