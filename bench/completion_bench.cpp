// SPDX-License-Identifier: Apache-2.0
// Completions: how soon whoever waits goes on, and what ready ones cost.
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include "kvbm/base/completion.hpp"
#include "kvbm/base/log.hpp"
#include "kvbm/base/resume_on.hpp"
#include "kvbm/base/thread_executor.hpp"
#include "kvbm/transfer/transfer_notification.hpp"

#include "tests/support/coroutine.hpp"

namespace kvbm {
namespace {

using testing::Coroutine;
using WallClock = std::chrono::steady_clock;

double seconds_since(WallClock::time_point start) {
  return std::chrono::duration<double>(WallClock::now() - start).count();
}

/// Half of the values are not above `median_us`, 99 of 100 not above `p99_us`.
void report(benchmark::State& state, std::vector<double> seconds) {
  std::ranges::sort(seconds);
  state.counters["median_us"] = 1e6 * seconds[seconds.size() / 2];
  state.counters["p99_us"] = 1e6 * seconds[seconds.size() * 99 / 100];
}

Coroutine note_time(Completion completion, WallClock::time_point& resumed) {
  static_cast<void>(co_await completion);
  resumed = WallClock::now();
}

Coroutine note_time_on(TaskQueue& queue, Completion completion, WallClock::time_point& resumed,
                       CompletionSource end) {
  static_cast<void>(co_await completion);
  static_cast<void>(co_await resume_on(queue));
  resumed = WallClock::now();
  end.resolve({});
}

/// From resolve() to the return of wait() in a thread that has been blocked in it for a while.
void BM_CompletionWakesAThread(benchmark::State& state) {
  NullLogSink log;
  ThreadExecutor executor(log);
  const auto queue = std::move(executor.create_queue({.name = "resolver"}).value());
  std::vector<double> seconds;
  for (auto _ : state) {
    CompletionSource source(executor);
    const Completion completion = source.completion();
    WallClock::time_point resolved;
    if (!queue->post_after(std::chrono::milliseconds(1), [&source, &resolved] {
          resolved = WallClock::now();
          source.resolve({});
        })) {
      state.SkipWithError("the task was refused");
    }
    if (!completion.wait()) state.SkipWithError("the completion failed");
    seconds.push_back(seconds_since(resolved));
    state.SetIterationTime(seconds.back());
  }
  report(state, std::move(seconds));
}
BENCHMARK(BM_CompletionWakesAThread)->UseManualTime()->Iterations(1000);

/// From resolve() to what follows co_await: on the thread that resolves.
void BM_CompletionResumesACoroutine(benchmark::State& state) {
  NullLogSink log;
  ThreadExecutor executor(log);
  std::vector<double> seconds;
  for (auto _ : state) {
    CompletionSource source(executor);
    WallClock::time_point resumed;
    note_time(source.completion(), resumed);
    const auto resolved = WallClock::now();
    source.resolve({});
    seconds.push_back(std::chrono::duration<double>(resumed - resolved).count());
    state.SetIterationTime(seconds.back());
  }
  report(state, std::move(seconds));
}
BENCHMARK(BM_CompletionResumesACoroutine)->UseManualTime()->Iterations(100'000);

/// From resolve() to what follows resume_on(), in a thread of another queue that had nothing to do.
void BM_CompletionResumesACoroutineOnAQueue(benchmark::State& state) {
  NullLogSink log;
  ThreadExecutor executor(log);
  const auto queue = std::move(executor.create_queue({.name = "worker"}).value());
  std::vector<double> seconds;
  for (auto _ : state) {
    CompletionSource source(executor);
    CompletionSource end(executor);
    const Completion ended = end.completion();
    WallClock::time_point resumed;
    note_time_on(*queue, source.completion(), resumed, std::move(end));
    const auto resolved = WallClock::now();
    source.resolve({});
    if (!ended.wait()) state.SkipWithError("the coroutine did not end");
    seconds.push_back(std::chrono::duration<double>(resumed - resolved).count());
    state.SetIterationTime(seconds.back());
  }
  report(state, std::move(seconds));
}
BENCHMARK(BM_CompletionResumesACoroutineOnAQueue)->UseManualTime()->Iterations(5000);

/// Argument: notifications that are done already.
void BM_AggregateOfReadyNotifications(benchmark::State& state) {
  const std::vector<TransferCompleteNotification> parts(
      static_cast<size_t>(state.range(0)), TransferCompleteNotification::ready({.bytes = 1}));
  for (auto _ : state) {
    benchmark::DoNotOptimize(TransferCompleteNotification::aggregate(parts));
  }
}
BENCHMARK(BM_AggregateOfReadyNotifications)->ArgName("parts")->Arg(1)->Arg(64);

/// Made, ended and asked for. Argument: notifications that are not done.
void BM_AggregateOfOpenNotifications(benchmark::State& state) {
  NullLogSink log;
  ThreadExecutor executor(log);
  for (auto _ : state) {
    std::vector<TransferSource> sources;
    std::vector<TransferCompleteNotification> parts;
    for (int64_t i = 0; i < state.range(0); ++i) {
      parts.push_back(sources.emplace_back(executor).notification());
    }
    const auto whole = TransferCompleteNotification::aggregate(parts);
    for (TransferSource& source : sources) source.resolve({.bytes = 1});
    benchmark::DoNotOptimize(whole.result().bytes);
  }
}
BENCHMARK(BM_AggregateOfOpenNotifications)->ArgName("parts")->Arg(1)->Arg(64);

}  // namespace
}  // namespace kvbm
