// SPDX-License-Identifier: Apache-2.0
#include "apps/kvbench/copy_bench.hpp"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/log.hpp"
#include "kvbm/base/thread_executor.hpp"

#include "apps/kvbench/bench_place.hpp"
#include "tests/support/error_code.hpp"

namespace kvbm {
namespace {

using testing::code_of;
using ::testing::HasSubstr;

/// All patterns, directions and backends of a small model on the host.
KvbenchOptions small_grid() {
  KvbenchOptions options;
  options.num_blocks = {1, 5};
  options.tokens_per_block = {4};
  options.patterns = {std::begin(kCopyPatterns), std::end(kCopyPatterns)};
  options.warmup = 1;
  options.iters = 3;
  options.shape = {.layers = 3, .kv_heads = 2, .head_dim = 8};
  options.device = "host";
  options.calibration_dir = "off";
  return options;
}

struct Output {
  std::string notes;
  std::string rows;
  std::atomic<bool> interrupted = false;

  Result<BenchReport> run(const KvbenchOptions& options) {
    NullLogSink log;
    return run_copy_bench(options, log,
                          {.note = [this](std::string_view text) { notes += text; },
                           .row = [this](std::string_view text) { rows += text; },
                           .interrupted = &interrupted});
  }
};

TEST(CopyBench, RunsEveryBackendOnTheHost) {
  Output output;
  const KvbenchOptions options = small_grid();
  const auto report = output.run(options);
  ASSERT_TRUE(report) << report.error();
  constexpr size_t kTests = 2 * 5 * 3 * 5;
  EXPECT_EQ(report->results.size(), kTests);
  EXPECT_TRUE(report->not_run.empty());
  EXPECT_EQ(report->device.name, "host");
  EXPECT_FALSE(report->device.has_batch);
  for (const TestResult& each : report->results) {
    EXPECT_EQ(each.timed, 3u);
    EXPECT_GT(each.median_ms, 0);
    EXPECT_GE(each.median_ms, each.min_ms);
    EXPECT_GT(each.bandwidth_gbps, 0);
    EXPECT_GT(each.peak_gbps, 0);
    EXPECT_GT(each.plain_gbps, 0);
    EXPECT_EQ(each.chosen.empty(), each.backend != CopyBackend::kAuto);
  }
  // A row each below the header, which is what the report has.
  std::string expected = csv_header();
  for (const TestResult& each : report->results) expected += csv_row(each);
  EXPECT_EQ(output.rows, expected);
  EXPECT_THAT(output.notes, HasSubstr("  [150/150] "));
  EXPECT_THAT(output.notes, HasSubstr("\nDone.\nauto beside the fastest fixed backend"));
  EXPECT_THAT(output.notes, ::testing::Not(HasSubstr("not run")));
}

TEST(CopyBench, NamesWhatWouldTakeTooLong) {
  Output output;
  KvbenchOptions options = small_grid();
  options.num_blocks = {86};  // of 768 runs
  options.tokens_per_block = {64};
  options.patterns = {CopyPattern::kUniversalToNhd};
  options.directions = {CopyDirection::kD2d};
  const auto report = output.run(options);
  ASSERT_TRUE(report) << report.error();
  EXPECT_EQ(report->results.size(), 3u);
  ASSERT_EQ(report->not_run.size(), 2u);
  EXPECT_EQ(report->not_run[0].backend, CopyBackend::kBatched);
  EXPECT_EQ(report->not_run[1].backend, CopyBackend::kMemcpyAsync);
  EXPECT_THAT(output.notes, HasSubstr("memcpy_async ... not run\n"));
  EXPECT_THAT(output.notes, HasSubstr("not run: batched (1 test): more than 65535 copies"));
}

TEST(CopyBench, ATestEndsAtItsTimeWithTheLeastCopies) {
  Output output;
  KvbenchOptions options = small_grid();
  options.num_blocks = {1};
  options.patterns = {CopyPattern::kFcToFc};
  options.directions = {CopyDirection::kH2d};
  options.backends = {CopyBackend::kAuto};
  options.iters = 1'000'000'000;
  options.test_ms = 1;
  const auto report = output.run(options);
  ASSERT_TRUE(report) << report.error();
  EXPECT_GE(report->results.front().timed, kLeastTimed);
  EXPECT_LT(report->results.front().timed, options.iters);
}

TEST(CopyBench, ASignalEndsIt) {
  Output output;
  output.interrupted = true;
  EXPECT_EQ(code_of(output.run(small_grid())), ErrorCode::kCancelled);
}

TEST(CopyBench, ADeviceThatIsNoneIsRefused) {
  Output output;
  KvbenchOptions options = small_grid();
  options.device = "gpu";
  EXPECT_EQ(code_of(output.run(options)), ErrorCode::kInvalidArgument);
}

/// Of a cell, what a copy has to find and to leave.
TEST(BenchPlaces, KnowWhetherEveryByteHasCome) {
  NullLogSink log;
  ThreadExecutor executor(log);
  const OpenedDevice device = open_device({.name = "host", .executor = executor}).value();
  BenchMemory memory(device, executor, 1 << 20);
  const BenchShape shape{.layers = 3, .kv_heads = 2, .head_dim = 8};
  for (const CopyPattern pattern : kCopyPatterns) {
    for (const CopyDirection direction : kCopyDirections) {
      const BenchCell cell{
          .tokens_per_block = 4, .num_blocks = 4, .pattern = pattern, .direction = direction};
      BenchPlaces places = BenchPlaces::create(memory, shape.config(4, 4), cell, false).value();
      EXPECT_EQ(code_of(places.check()), ErrorCode::kCorrupt) << "nothing was copied";
      const auto copy = [&](std::span<const BlockId> from, std::span<const BlockId> to) {
        for (size_t i = 0; i < from.size(); ++i) {
          for (uint32_t n = 0; n < 3 * 2 * 2 * 4; ++n) {
            const LayerId layer(static_cast<uint16_t>(n / 16));
            const uint32_t outer = n / 8 % 2;
            const uint32_t head = n / 4 % 2;
            const MemoryRegion src =
                places.source().head_region(from[i], layer, outer, head, n % 4);
            const MemoryRegion dst =
                places.destination().head_region(to[i], layer, outer, head, n % 4);
            std::memcpy(dst.base(), src.base(), src.size_bytes());
          }
        }
      };
      copy(places.source_ids(), places.destination_ids());
      EXPECT_TRUE(places.check()) << to_string(pattern) << ' ' << to_string(direction);
      // One byte, then the blocks in another order.
      std::byte& last = *(places.destination().page_maps().back().region().base() +
                          places.destination().page_maps().back().region().size_bytes() - 1);
      last ^= std::byte{1};
      EXPECT_EQ(code_of(places.check()), ErrorCode::kCorrupt);
      ASSERT_TRUE(places.clear());
      EXPECT_EQ(code_of(places.check()), ErrorCode::kCorrupt);
      copy(places.source_ids(), places.source_ids());
      EXPECT_EQ(code_of(places.check()), ErrorCode::kCorrupt);
    }
  }
}

TEST(BenchMemory, ARangeIsUsedAgainOnceNobodyHoldsIt) {
  NullLogSink log;
  ThreadExecutor executor(log);
  const OpenedDevice device = open_device({.name = "host", .executor = executor}).value();
  BenchMemory memory(device, executor, 1 << 20);
  std::optional<OwnedRegion> first = memory.take_host(100).value();
  const std::byte* const base = first->region.base();
  EXPECT_NE(memory.take_host(100).value().region.base(), base);
  first.reset();
  EXPECT_EQ(memory.take_host(1 << 20).value().region.base(), base);
}

TEST(BenchPlaces, LayersLieApart) {
  NullLogSink log;
  ThreadExecutor executor(log);
  const OpenedDevice device = open_device({.name = "host", .executor = executor}).value();
  BenchMemory memory(device, executor, 1 << 20);
  const LayoutConfig config = BenchShape{.layers = 3, .kv_heads = 2, .head_dim = 8}.config(4, 4);
  for (const bool on_device : {false, true}) {
    const BenchPlace place =
        BenchPlace::create(memory, config,
                           {.kind = LayoutKind::kLayerSeparateBlockSecond, .on_device = on_device})
            .value();
    ASSERT_EQ(place.memory.size(), 3u);
    std::set<const void*> owners;
    for (size_t i = 0; i < place.memory.size(); ++i) {
      owners.insert(place.memory[i].owner.get());
      for (size_t k = 0; k < i; ++k) {
        const auto apart = place.memory[i].region.base() - place.memory[k].region.base();
        EXPECT_GT(static_cast<uint64_t>(std::abs(apart)), place.memory[i].region.size_bytes());
      }
    }
    EXPECT_EQ(owners.size(), on_device ? 3u : 1u);
  }
}

}  // namespace
}  // namespace kvbm
