// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/thread_executor.hpp"

#include <pthread.h>
#include <signal.h>

#include <array>
#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/log.hpp"

namespace kvbm {
namespace {

std::unique_ptr<TaskQueue> make_queue(Executor& executor, QueueOptions options) {
  return std::move(executor.create_queue(std::move(options)).value());
}

TEST(ThreadExecutor, NamesItsThreadsAfterTheQueue) {
  NullLogSink log;
  ThreadExecutor executor(log);
  const auto name_in = [&](QueueOptions options) {
    std::array<char, 16> name{};
    const auto queue = make_queue(executor, std::move(options));
    EXPECT_TRUE(
        queue->post([&name] { pthread_getname_np(pthread_self(), name.data(), name.size()); }));
    queue->stop();
    return std::string(name.data());
  };
  EXPECT_EQ(name_in({.name = "worker.disk"}), "worker.disk");
  EXPECT_EQ(name_in({.name = "a.very.long.queue.name"}), "a.very.long.que");
  const std::string wide = name_in({.name = "a.very.long.queue.name", .num_threads = 2});
  EXPECT_TRUE(wide == "a.very.long.q/0" || wide == "a.very.long.q/1") << wide;
}

TEST(ThreadExecutor, LeavesAsynchronousSignalsToTheProcess) {
  NullLogSink log;
  ThreadExecutor executor(log);
  sigset_t blocked;
  sigemptyset(&blocked);
  const auto queue = make_queue(executor, {.name = "q"});
  ASSERT_TRUE(queue->post([&blocked] { pthread_sigmask(SIG_BLOCK, nullptr, &blocked); }));
  queue->stop();
  EXPECT_EQ(sigismember(&blocked, SIGINT), 1);
  EXPECT_EQ(sigismember(&blocked, SIGTERM), 1);
  EXPECT_EQ(sigismember(&blocked, SIGSEGV), 0);
  sigset_t own;
  pthread_sigmask(SIG_BLOCK, nullptr, &own);
  EXPECT_EQ(sigismember(&own, SIGINT), 0);
}

TEST(ThreadExecutor, RunsAsManyTasksAtOnceAsItHasThreads) {
  NullLogSink log;
  ThreadExecutor executor(log);
  const auto queue = make_queue(executor, {.name = "wide", .num_threads = 3});
  // Each task waits for the other two: only three threads at once get through.
  std::array<Latch, 3> arrived;
  for (size_t i = 0; i < arrived.size(); ++i) {
    ASSERT_TRUE(queue->post([&arrived, i] {
      arrived[i].set();
      for (const Latch& other : arrived) static_cast<void>(other.block_until(kNever));
    }));
  }
  queue->stop();
  EXPECT_EQ(queue->statistics().finished, 3U);
}

TEST(ThreadExecutor, ADelayedTaskIsNotLateBecauseAnotherThreadIsBusy) {
  NullLogSink log;
  ThreadExecutor executor(log);
  const auto queue = make_queue(executor, {.name = "wide", .num_threads = 2});
  Latch release;
  Latch delayed_ran;
  ASSERT_TRUE(queue->post_after(std::chrono::milliseconds(5), [&] { delayed_ran.set(); }));
  ASSERT_TRUE(queue->post([&] { static_cast<void>(release.block_until(kNever)); }));
  EXPECT_TRUE(executor.wait(delayed_ran, executor.clock().now() + std::chrono::seconds(30)));
  release.set();
}

TEST(ThreadExecutor, StopWakesAPosterThatWaitsForRoom) {
  NullLogSink log;
  ThreadExecutor executor(log);
  const auto queue = make_queue(executor, {.name = "q", .capacity = 1});
  Latch release;
  Latch started;
  ASSERT_TRUE(queue->post([&] {
    started.set();
    static_cast<void>(release.block_until(kNever));
  }));
  ASSERT_TRUE(started.block_until(kNever));
  ASSERT_TRUE(queue->post([] {}));
  Status outcome;
  std::thread poster([&] { outcome = queue->post([] {}); });
  while (queue->statistics().blocked == 0) std::this_thread::yield();
  std::thread stopper([&] { queue->stop(); });
  poster.join();
  release.set();
  stopper.join();
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().code(), ErrorCode::kUnavailable);
}

TEST(ThreadExecutor, ASecondStopWaitsForTheFirst) {
  NullLogSink log;
  ThreadExecutor executor(log);
  const auto queue = make_queue(executor, {.name = "q"});
  Latch release;
  ASSERT_TRUE(queue->post([&] { static_cast<void>(release.block_until(kNever)); }));
  std::thread first([&] { queue->stop(); });
  const auto is_stopping = [&queue] {
    const Status posted = queue->try_post([] {});
    return !posted && posted.error().code() == ErrorCode::kUnavailable;
  };
  while (!is_stopping()) std::this_thread::yield();
  Latch second_ended;
  std::thread second([&] {
    queue->stop();
    second_ended.set();
  });
  EXPECT_FALSE(second_ended.block_until(executor.clock().now() + std::chrono::milliseconds(20)));
  release.set();
  first.join();
  second.join();
}

TEST(ThreadExecutor, ManyThreadsPostToOneQueue) {
  NullLogSink log;
  ThreadExecutor executor(log);
  const auto queue = make_queue(executor, {.name = "q", .num_threads = 2, .capacity = 4});
  std::atomic<int> ran = 0;
  std::vector<std::thread> posters;
  for (int t = 0; t < 4; ++t) {
    posters.emplace_back([&] {
      for (int i = 0; i < 500; ++i) {
        if (i % 5 == 0) {
          static_cast<void>(queue->post_after(std::chrono::microseconds(i), [&ran] { ++ran; }));
        } else {
          EXPECT_TRUE(queue->post([&ran] { ++ran; }));
        }
      }
    });
  }
  for (std::thread& poster : posters) poster.join();
  queue->stop();
  EXPECT_GE(ran, 4 * 400);
  EXPECT_EQ(queue->statistics().finished, static_cast<uint64_t>(ran));
}

}  // namespace
}  // namespace kvbm
