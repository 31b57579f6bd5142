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

#include "tests/support/allocation_meter.hpp"
#include "tests/support/coroutine.hpp"

namespace kvbm {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::AllocationFailure;
using testing::AllocationMeter;
using testing::Coroutine;

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

TEST(CompletionAll, IsDoneWithoutMemoryWhenThePartsAreDone) {
  SteppedExecutor executor(1);
  CompletionSource source(executor);
  const std::array<Completion, 2> parts = {Completion::ready(), source.completion()};
  const Completion all = Completion::all(parts);
  CompletionSource failing(executor);
  const Completion failed = Completion::all(std::array{parts[1], failing.completion()});
  const std::string message(100, 'x');
  source.resolve({});
  EXPECT_TRUE(all.done());
  Status outcome = make_error(ErrorCode::kIo, message);
  {
    const AllocationFailure no_memory;
    failing.resolve(std::move(outcome));
  }
  ASSERT_TRUE(failed.done());
  EXPECT_EQ(failed.status().error().code(), ErrorCode::kIo);
}

TEST(CompletionMemory, ReadyOnesNeedNone) {
  SteppedExecutor executor(1);
  CompletionSource source(executor);
  const std::array<Completion, 3> parts = {Completion::ready(), source.completion(),
                                           Completion::ready()};
  source.resolve({});
  int calls = 0;
  const AllocationMeter meter;
  const Completion ready = Completion::ready();
  const Completion all = Completion::all(parts);
  const Completion copy = all;  // NOLINT(performance-unnecessary-copy-initialization)
  copy.on_done([&calls](const Status&) noexcept { ++calls; });
  EXPECT_TRUE(ready.done() && all.done() && all.wait() && copy.status());
  EXPECT_FALSE(ready.could_yield() || all.could_yield());
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(meter.count(), 0U);
}

Coroutine note_outcome(Completion completion, std::vector<Status>& outcomes) {
  outcomes.push_back(co_await completion);
}

TEST(CompletionAwait, AReadyOneIsNotWaitedFor) {
  std::vector<Status> outcomes;
  note_outcome(Completion::ready(make_error(io_error())), outcomes);
  ASSERT_EQ(outcomes.size(), 1U);
  EXPECT_EQ(outcomes[0].error(), io_error());
}

TEST(CompletionAwait, GoesOnOnceItIsResolvedInTheOrderOfCallbacks) {
  SteppedExecutor executor(1);
  CompletionSource source(executor);
  const Completion completion = source.completion();
  EXPECT_TRUE(completion.could_yield());
  std::vector<Status> outcomes;
  size_t before = 9;
  completion.on_done([&](const Status&) noexcept { before = outcomes.size(); });
  note_outcome(completion, outcomes);
  note_outcome(completion, outcomes);
  EXPECT_TRUE(outcomes.empty());
  source.resolve(make_error(timeout_error()));
  EXPECT_EQ(before, 0U);
  ASSERT_EQ(outcomes.size(), 2U);
  EXPECT_EQ(outcomes[1].error(), timeout_error());
  EXPECT_FALSE(completion.could_yield());
}

TEST(CompletionAwait, GoesOnWithTheErrorOfADroppedSource) {
  SteppedExecutor executor(1);
  std::optional<CompletionSource> source(std::in_place, executor);
  std::vector<Status> outcomes;
  note_outcome(source->completion(), outcomes);
  source.reset();
  ASSERT_EQ(outcomes.size(), 1U);
  EXPECT_EQ(outcomes[0].error().code(), ErrorCode::kInternal);
}

Coroutine count_allocations(Completion completion, std::optional<size_t>& allocations) {
  const AllocationMeter meter;
  const Status outcome = co_await completion;
  allocations = meter.count() + (outcome ? 0 : 1);
}

TEST(CompletionAwait, NeedsNoMemory) {
  SteppedExecutor executor(1);
  CompletionSource source(executor);
  std::optional<size_t> of_ready;
  count_allocations(Completion::ready(), of_ready);
  EXPECT_EQ(of_ready, 0U);
  std::optional<size_t> of_suspended;
  count_allocations(source.completion(), of_suspended);
  EXPECT_FALSE(of_suspended);
  source.resolve({});
  EXPECT_EQ(of_suspended, 0U);
}

TEST(CompletionAwait, ACoroutineMayDestroyTheSourceThatItWaitedFor) {
  SteppedExecutor executor(1);
  auto source = std::make_unique<CompletionSource>(executor);
  bool ended = false;
  [](std::unique_ptr<CompletionSource>& awaited, bool& done) -> Coroutine {
    const Status outcome = co_await awaited->completion();
    awaited.reset();
    done = outcome.has_value();
  }(source, ended);
  source->resolve({});
  EXPECT_TRUE(ended);
}

Coroutine note_thread(Completion completion, std::thread::id& thread, CompletionSource ended) {
  const Status outcome = co_await completion;
  thread = std::this_thread::get_id();
  ended.resolve(outcome);
}

TEST(CompletionAwait, GoesOnOnTheThreadThatResolves) {
  NullLogSink log;
  ThreadExecutor executor(log);
  const auto queue = std::move(executor.create_queue({.name = "resolver"}).value());
  CompletionSource source(executor);
  CompletionSource ended(executor);
  const Completion whole = ended.completion();
  std::thread::id resolver;
  std::thread::id resumed;
  note_thread(source.completion(), resumed, std::move(ended));
  ASSERT_TRUE(queue->post([&] {
    resolver = std::this_thread::get_id();
    source.resolve({});
  }));
  EXPECT_TRUE(whole.wait());
  EXPECT_EQ(resumed, resolver);
  EXPECT_NE(resumed, std::this_thread::get_id());
}

TEST(CompletionAwait, GoesOnOnceWhileSourcesResolveOnOtherThreads) {
  NullLogSink log;
  ThreadExecutor executor(log);
  const auto queue = std::move(executor.create_queue({.name = "q", .num_threads = 2}).value());
  for (int round = 0; round < 500; ++round) {
    std::atomic<int> resumed = 0;
    std::vector<Completion> ends;
    for (int i = 0; i < 4; ++i) {
      CompletionSource source(executor);
      CompletionSource end(executor);
      ends.push_back(end.completion());
      const Completion completion = source.completion();
      ASSERT_TRUE(queue->post([source = std::move(source)]() mutable { source.resolve({}); }));
      [](Completion awaited, std::atomic<int>& count, CompletionSource after) -> Coroutine {
        const Status outcome = co_await awaited;
        ++count;
        after.resolve(outcome);
      }(completion, resumed, std::move(end));
    }
    ASSERT_TRUE(Completion::all(ends).wait());
    ASSERT_EQ(resumed, 4);
  }
}

}  // namespace
}  // namespace kvbm
