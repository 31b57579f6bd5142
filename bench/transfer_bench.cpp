// SPDX-License-Identifier: Apache-2.0
// What a TransferManager adds to the copies it makes, host memory to host memory, in blocks of 64
// KiB.
//
// Each iteration moves the same pieces of the same blocks by plain memcpy and through the manager.
// `ratio` is the manager's speed as a part of memcpy's: 1 costs nothing.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <span>
#include <vector>

#include <benchmark/benchmark.h>

#include "kvbm/base/log.hpp"
#include "kvbm/base/random.hpp"
#include "kvbm/base/thread_executor.hpp"
#include "kvbm/device/host_device.hpp"
#include "kvbm/memory/system_memory.hpp"
#include "kvbm/transfer/transfer_manager.hpp"
#include "kvbm/transfer/transfer_plan.hpp"

#include "tests/support/allocation_meter.hpp"
#include "tests/support/wrapped_device.hpp"

namespace kvbm {
namespace {

constexpr uint32_t kNumBlocks = 2048;
constexpr LayoutConfig kConfig{.num_blocks = kNumBlocks,
                               .num_layers = 8,
                               .outer_dim = 2,
                               .page_size = 16,
                               .inner_dim = 128,
                               .dtype_width_bytes = 2};
static_assert(kConfig.num_layers * kConfig.outer_dim * kConfig.page_size * kConfig.inner_dim *
                  kConfig.dtype_width_bytes ==
              64 * 1024);

/// A layout in memory of its own, all pages touched.
struct Place {
  explicit Place(LayoutKind kind, const LayoutConfig& config = kConfig) {
    const MemoryNeed need = required_memory(config, kind).value();
    memory = SystemMemory::create({.size_bytes = need.num_regions * need.region_bytes}).value();
    std::memset(memory.data(), 1, memory.size_bytes());
    std::vector<MemoryRegion> regions;
    for (size_t i = 0; i < need.num_regions; ++i) {
      regions.push_back(memory.region().slice(i * need.region_bytes, need.region_bytes));
    }
    layout = std::make_unique<PhysicalLayout>(
        (kind == LayoutKind::kFullyContiguous
             ? PhysicalLayout::fully_contiguous(config, regions.front())
             : PhysicalLayout::layer_separate(config,
                                              kind == LayoutKind::kLayerSeparateBlockFirst
                                                  ? BlockDimension::kBlockIsFirst
                                                  : BlockDimension::kBlockIsSecond,
                                              regions))
            .value());
  }

  SystemMemory memory;
  std::unique_ptr<PhysicalLayout> layout;
};

void copy_plainly(std::span<const StridedPiece> pieces, std::span<const BlockId> from,
                  std::span<const BlockId> to) {
  for (const StridedPiece& piece : pieces) {
    for (size_t i = 0; i < from.size(); ++i) {
      const StridedAxis& axis = piece.axes[3];  // a plan has folded the others away
      for (uint64_t k = 0; k < axis.count; ++k) {
        std::memcpy(piece.dst + to[i].value() * piece.dst_block_stride + k * axis.dst_stride,
                    piece.src + from[i].value() * piece.src_block_stride + k * axis.src_stride,
                    piece.bytes);
      }
    }
  }
}

std::vector<BlockId> shuffled_ids(Random& random) {
  std::vector<uint32_t> numbers(kNumBlocks);
  std::iota(numbers.begin(), numbers.end(), 0U);
  random.shuffle(std::span(numbers));
  return {numbers.begin(), numbers.end()};
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// Arguments: blocks of a transfer, kind of the destination.
void BM_TransferHostToHost(benchmark::State& state) {
  using WallClock = std::chrono::steady_clock;
  const auto num_blocks = static_cast<size_t>(state.range(0));
  NullLogSink log;
  ThreadExecutor executor(log);
  const auto device = HostDevice::create({.executor = executor}).value();
  const auto manager =
      TransferManager::create({.device = *device, .executor = executor, .log = log}).value();
  const Place src(LayoutKind::kFullyContiguous);
  const Place dst(static_cast<LayoutKind>(state.range(1)));
  const LayoutHandle src_handle = manager->register_layout(*src.layout).value();
  const LayoutHandle dst_handle = manager->register_layout(*dst.layout).value();
  const std::vector<StridedPiece> pieces =
      TransferPlan::create(*src.layout, *dst.layout, kConfig.all_layers())
          .value()
          .with_addresses(*src.layout, *dst.layout);
  Random random(1);
  const std::vector<BlockId> all_from = shuffled_ids(random);
  const std::vector<BlockId> all_to = shuffled_ids(random);

  std::vector<double> plain;
  std::vector<double> managed;
  size_t at = 0;
  bool managed_first = false;
  for (auto _ : state) {
    // Other blocks each time, and both ways on the same ones: neither finds them in a cache that
    // the other does not.
    if (at + 2 * num_blocks > kNumBlocks) at = 0;
    const auto from = [&](size_t half) {
      return std::span(all_from).subspan((at + half * num_blocks) % kNumBlocks, num_blocks);
    };
    const auto to = [&](size_t half) {
      return std::span(all_to).subspan((at + half * num_blocks) % kNumBlocks, num_blocks);
    };
    const auto run_plain = [&](size_t half) {
      const auto start = WallClock::now();
      copy_plainly(pieces, from(half), to(half));
      plain.push_back(std::chrono::duration<double>(WallClock::now() - start).count());
    };
    const auto run_managed = [&](size_t half) {
      const auto start = WallClock::now();
      const auto copied = manager->execute_transfer(
          {.src = src_handle, .src_ids = from(half), .dst = dst_handle, .dst_ids = to(half)});
      if (!copied || !copied->wait()) state.SkipWithError("the transfer failed");
      const std::chrono::duration<double> elapsed = WallClock::now() - start;
      managed.push_back(elapsed.count());
      state.SetIterationTime(elapsed.count());
    };
    managed_first = !managed_first;
    if (managed_first) {
      run_managed(0);
      run_plain(1);
    } else {
      run_plain(0);
      run_managed(1);
    }
    at += 2 * num_blocks;
  }
  state.SetBytesProcessed(state.iterations() *
                          static_cast<int64_t>(num_blocks * kConfig.block_bytes()));
  state.counters["ratio"] = median(plain) / median(managed);
}

BENCHMARK(BM_TransferHostToHost)
    ->ArgNames({"blocks", "layout"})
    ->ArgsProduct({{1, 16, 64, 256, 1024},
                   {static_cast<int64_t>(LayoutKind::kFullyContiguous),
                    static_cast<int64_t>(LayoutKind::kLayerSeparateBlockFirst),
                    static_cast<int64_t>(LayoutKind::kLayerSeparateBlockSecond)}})
    ->UseManualTime();

/// Moves nothing, and has always done so already: what is left of a transfer is the manager's.
class IdleDevice final : public testing::WrappedDevice {
 public:
  using WrappedDevice::WrappedDevice;

  Status copy(StreamRef /*stream*/, StridedCopyBatch batch) override {
    batch.bytes_moved->fetch_add(planned_bytes(batch).value());
    return {};
  }
  [[nodiscard]] Event record(StreamRef /*stream*/) override { return Event::ready(); }
};

/// Arguments: blocks, kind of the destination, of 80 layers, whether ids come in any order. A
/// transfer that is like the one before, on a device that costs nothing. `allocations`: of all
/// threads.
void BM_TransferSubmission(benchmark::State& state) {
  NullLogSink log;
  ThreadExecutor executor(log);
  const auto host = HostDevice::create({.executor = executor}).value();
  IdleDevice device(*host);
  const auto manager =
      TransferManager::create({.device = device, .executor = executor, .log = log}).value();
  LayoutConfig config = kConfig;
  config.num_layers = 80;
  config.inner_dim = 1;
  const Place src(LayoutKind::kFullyContiguous, config);
  const Place dst(static_cast<LayoutKind>(state.range(1)), config);
  const LayoutHandle from = manager->register_layout(*src.layout).value();
  const LayoutHandle to = manager->register_layout(*dst.layout).value();
  std::vector<uint32_t> numbers(static_cast<size_t>(state.range(0)));
  std::iota(numbers.begin(), numbers.end(), 0U);
  if (state.range(2) != 0) Random(1).shuffle(std::span(numbers));
  const std::vector<BlockId> ids(numbers.begin(), numbers.end());
  const auto run = [&] {
    const auto copied = manager->execute_transfer(
        {.src = from, .src_ids = ids, .dst = to, .dst_ids = ids, .options = {}});
    if (!copied || !copied->wait()) state.SkipWithError("the transfer failed");
  };
  run();
  run();
  const testing::ProcessAllocationMeter meter;
  for (auto _ : state) run();
  state.counters["allocations"] =
      static_cast<double>(meter.count()) / static_cast<double>(state.iterations());
}

BENCHMARK(BM_TransferSubmission)
    ->ArgNames({"blocks", "layout", "shuffled"})
    ->ArgsProduct({{1, 16, 1024},
                   {static_cast<int64_t>(LayoutKind::kFullyContiguous),
                    static_cast<int64_t>(LayoutKind::kLayerSeparateBlockSecond)},
                   {0, 1}});

/// What it costs to plan: per plan, whatever the number of blocks. Argument: kind of the
/// destination, of 80 layers.
void BM_TransferPlan(benchmark::State& state) {
  LayoutConfig config = kConfig;
  config.num_blocks = 16;
  config.num_layers = 80;
  const Place src(LayoutKind::kFullyContiguous, config);
  const Place dst(static_cast<LayoutKind>(state.range(0)), config);
  for (auto _ : state) {
    const Result<TransferPlan> plan =
        TransferPlan::create(*src.layout, *dst.layout, config.all_layers());
    benchmark::DoNotOptimize(plan->with_addresses(*src.layout, *dst.layout));
  }
}

BENCHMARK(BM_TransferPlan)
    ->ArgName("layout")
    ->DenseRange(static_cast<int64_t>(LayoutKind::kFullyContiguous),
                 static_cast<int64_t>(LayoutKind::kLayerSeparateBlockSecond));

}  // namespace
}  // namespace kvbm
