// SPDX-License-Identifier: Apache-2.0
// The leader alone: a whole trace through the pretended engine, with workers that answer at once.
//
// KVBM_BENCH_TRACE names a trace in Mooncake's format; without it a generated one is played.
#include <cstdlib>
#include <string>

#include <benchmark/benchmark.h>

#include "kvbm/base/clock.hpp"
#include "kvbm/replay/replay.hpp"
#include "kvbm/replay/trace.hpp"
#include "kvbm/replay/trace_generator.hpp"

namespace kvbm {
namespace {

const Trace& trace() {
  static const Trace loaded = [] {
    const char* path = std::getenv("KVBM_BENCH_TRACE");
    return path != nullptr ? read_trace(path).value() : generate_trace({}).value();
  }();
  return loaded;
}

void BM_ReplayWithoutBytes(benchmark::State& state) {
  ReplayOptions options;
  options.bytes = ReplayOptions::Bytes::kNone;
  options.g1_blocks = static_cast<uint64_t>(state.range(0));
  options.g2_blocks = static_cast<uint64_t>(state.range(1));
  options.g3_blocks = static_cast<uint64_t>(state.range(2));
  SystemClock clock;
  Progress silent(clock);
  double hit_share = 0;
  uint64_t accesses = 0;
  for (auto _ : state) {
    const ReplayReport report = run_replay(trace(), options, silent).value();
    hit_share = report.hit_share().total();
    accesses += report.accesses;
  }
  state.SetItemsProcessed(static_cast<int64_t>(accesses));
  state.counters["hit_share"] = hit_share;
}

BENCHMARK(BM_ReplayWithoutBytes)
    ->Args({18'279, 0, 0})
    ->Args({1'827, 9'139, 36'558})
    ->Unit(benchmark::kMillisecond)
    ->MeasureProcessCPUTime();

}  // namespace
}  // namespace kvbm
