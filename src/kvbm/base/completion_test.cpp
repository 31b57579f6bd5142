// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/completion.hpp"

#include <array>
#include <atomic>
#include <optional>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/log.hpp"
#include "kvbm/base/stepped_executor.hpp"
#include "kvbm/base/thread_executor.hpp"

namespace kvbm {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

Error timeout_error() { return Error(ErrorCode::kTimeout, "late"); }
Error io_error() { return Error(ErrorCode::kIo, "bad disk"); }

TEST(Completion, ReadyOnesAreDone) {
  const Completion good = Completion::ready();
  EXPECT_TRUE(good.done());
  EXPECT_TRUE(good.status());
  EXPECT_TRUE(good.wait());
  const Completion bad = Completion::ready(make_error(io_error()));
  EXPECT_EQ(bad.status().error(), io_error());
  EXPECT_EQ(bad.wait_for(seconds(1)).error(), io_error());
}

TEST(Completion, IsDoneOnceItsSourceHasResolved) {
  SteppedExecutor executor(1);
  CompletionSource source(executor);
  const Completion completion = source.completion();
  const Completion copy = completion;
  EXPECT_FALSE(completion.done());
  EXPECT_THROW(static_cast<void>(completion.status()), ContractViolation);
  source.resolve({});
  EXPECT_TRUE(completion.done());
  EXPECT_TRUE(copy.done());
  EXPECT_TRUE(source.completion().done());
}

TEST(Completion, ResolvesOnce) {
  SteppedExecutor executor(1);
  CompletionSource source(executor);
  source.resolve({});
  EXPECT_THROW(source.resolve(make_error(io_error())), ContractViolation);
  EXPECT_FALSE(source.try_resolve(make_error(io_error())));
  EXPECT_TRUE(source.completion().status());
  const CompletionSource taken = std::move(source);
  EXPECT_THROW(source.resolve({}), ContractViolation);  // NOLINT(bugprone-use-after-move)
  EXPECT_THROW(static_cast<void>(source.completion()), ContractViolation);
  EXPECT_FALSE(source.try_resolve({}));
}

TEST(Completion, ADroppedSourceResolvesAsFailed) {
  SteppedExecutor executor(1);
  std::optional<CompletionSource> source(std::in_place, executor);
  const Completion first = source->completion();
  source.reset();
  ASSERT_TRUE(first.done());
  EXPECT_EQ(first.status().error().code(), ErrorCode::kInternal);

  CompletionSource overwritten(executor);
  const Completion second = overwritten.completion();
  overwritten = CompletionSource(executor);
  ASSERT_TRUE(second.done());
  EXPECT_EQ(second.status().error().code(), ErrorCode::kInternal);
}

TEST(Completion, CallbacksRunOnceInOrderAndAfterDone) {
  SteppedExecutor executor(1);
  CompletionSource source(executor);
  const Completion completion = source.completion();
  std::string order;
  completion.on_done([&order, completion](const Status& status) noexcept {
    order += completion.done() && !status ? "1" : "x";
  });
  completion.on_done([&order](const Status&) noexcept { order += "2"; });
  EXPECT_EQ(order, "");
  source.resolve(make_error(io_error()));
  EXPECT_EQ(order, "12");
  completion.on_done([&order](const Status& status) noexcept { order += status ? "x" : "3"; });
  EXPECT_EQ(order, "123");
  Completion::ready().on_done(
      [&order](const Status& status) noexcept { order += status ? "4" : "x"; });
  EXPECT_EQ(order, "1234");
}

TEST(Completion, ACallbackMayDestroyTheSource) {
  SteppedExecutor executor(1);
  auto source = std::make_unique<CompletionSource>(executor);
  source->completion().on_done([&source](const Status&) noexcept { source.reset(); });
  bool second = false;
  source->completion().on_done([&second](const Status&) noexcept { second = true; });
  source->resolve({});
  EXPECT_EQ(source, nullptr);
  EXPECT_TRUE(second);
}

TEST(Completion, WaitStepsTasksUntilDone) {
  SteppedExecutor executor(1);
  const auto queue = std::move(executor.create_queue({.name = "q"}).value());
  CompletionSource source(executor);
  const Completion completion = source.completion();
  ASSERT_TRUE(queue->post_after(seconds(2), [&source] { source.resolve({}); }));
  EXPECT_EQ(completion.wait_for(seconds(1)).error().code(), ErrorCode::kTimeout);
  EXPECT_FALSE(completion.done());
  EXPECT_TRUE(completion.wait());
}

TEST(Completion, AWaitThatNothingCanEndTimesOut) {
  SteppedExecutor executor(1);
  CompletionSource source(executor);
  EXPECT_EQ(source.completion().wait().error().code(), ErrorCode::kTimeout);
}

TEST(Completion, WaitBlocksAThreadUntilDone) {
  NullLogSink log;
  ThreadExecutor executor(log);
  const auto queue = std::move(executor.create_queue({.name = "q"}).value());
  CompletionSource source(executor);
  const Completion completion = source.completion();
  EXPECT_EQ(completion.wait_for(milliseconds(5)).error().code(), ErrorCode::kTimeout);
  ASSERT_TRUE(queue->post([&source] { source.resolve(make_error(timeout_error())); }));
  EXPECT_EQ(completion.wait().error(), timeout_error());
}

TEST(Completion, OneOfManyRacingResolversWins) {
  NullLogSink log;
  ThreadExecutor executor(log);
  for (int round = 0; round < 200; ++round) {
    CompletionSource source(executor);
    const Completion completion = source.completion();
    std::atomic<int> wins = 0;
    std::atomic<int> calls = 0;
    std::vector<std::thread> threads;
    threads.emplace_back(
        [&] { completion.on_done([&calls](const Status&) noexcept { ++calls; }); });
    for (int i = 0; i < 3; ++i) {
      threads.emplace_back([&] { wins += source.try_resolve({}) ? 1 : 0; });
    }
    EXPECT_TRUE(completion.wait());
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(wins, 1);
    EXPECT_EQ(calls, 1);
  }
}

TEST(CompletionAll, OfNothingOrOfReadyOnesIsReady) {
  EXPECT_TRUE(Completion::all({}).status());
  const std::array<Completion, 3> parts = {Completion::ready(),
                                           Completion::ready(make_error(io_error())),
                                           Completion::ready(make_error(timeout_error()))};
  EXPECT_TRUE(Completion::all(std::span(parts).first(1)).status());
  EXPECT_EQ(Completion::all(parts).status().error(), io_error());
}

TEST(CompletionAll, WaitsForEveryPartAndReportsTheFirstFailureInOrder) {
  SteppedExecutor executor(1);
  std::vector<CompletionSource> sources;
  std::vector<Completion> parts = {Completion::ready()};
  for (int i = 0; i < 3; ++i) {
    sources.emplace_back(executor);
    parts.push_back(sources.back().completion());
  }
  const Completion all = Completion::all(parts);
  sources[2].resolve(make_error(timeout_error()));
  sources[1].resolve(make_error(io_error()));
  EXPECT_FALSE(all.done());
  sources[0].resolve({});
  ASSERT_TRUE(all.done());
  EXPECT_EQ(all.status().error(), io_error());
}

TEST(CompletionAll, CountsPartsResolvedByManyThreads) {
  NullLogSink log;
  ThreadExecutor executor(log);
  const auto queue = std::move(executor.create_queue({.name = "wide", .num_threads = 4}).value());
  for (int round = 0; round < 100; ++round) {
    std::vector<Completion> parts;
    for (int i = 0; i < 16; ++i) {
      CompletionSource source(executor);
      parts.push_back(source.completion());
      ASSERT_TRUE(queue->post([source = std::move(source)]() mutable { source.resolve({}); }));
    }
    const Completion all = Completion::all(parts);
    EXPECT_TRUE(all.wait());
    for (const Completion& part : parts) EXPECT_TRUE(part.done());
  }
}

}  // namespace
}  // namespace kvbm
