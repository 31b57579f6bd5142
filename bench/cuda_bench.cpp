// SPDX-License-Identifier: Apache-2.0
// What a CudaDevice costs over the calls of CUDA that it makes, and pinned memory over
// cudaMallocHost. Each iteration does both ways, in turns, so that every figure is a ratio of one
// run.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include "kvbm/base/log.hpp"
#include "kvbm/base/random.hpp"
#include "kvbm/base/thread_executor.hpp"
#include "kvbm/base/units.hpp"
#include "kvbm/memory/pinned_memory.hpp"
#include "kvbm/runtime/devices.hpp"
#include "kvbm/transfer/transfer_manager.hpp"

namespace kvbm {
namespace {

using WallClock = std::chrono::steady_clock;
using Microseconds = std::chrono::duration<double, std::micro>;

double microseconds_since(WallClock::time_point start) {
  return Microseconds(WallClock::now() - start).count();
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// A device for one benchmark; none, with the reason as the benchmark's error, where there is no
/// GPU.
struct Rig {
  explicit Rig(benchmark::State& state) {
    auto opened = open_device({.name = "cuda", .executor = executor});
    if (!opened) {
      state.SkipWithError(opened.error().message().c_str());
      return;
    }
    device = std::move(opened->device);
    pinner = std::move(opened->pinner);
    static_cast<void>(::cudaSetDevice(0));
  }

  NullLogSink log;
  ThreadExecutor executor{log};
  std::shared_ptr<HostPinner> pinner;
  std::unique_ptr<Device> device;
};

// --- pinned memory
// ---------------------------------------------------------------------------------

/// Argument: GiB. `ratio`: how many times as fast as cudaMallocHost all of it is usable;
/// `first_ms`: until the first block is.
void BM_PinnedMemory(benchmark::State& state) {
  Rig rig(state);
  if (rig.device == nullptr) return;
  const uint64_t size = static_cast<uint64_t>(state.range(0)) * kGiB;
  const auto ours = [&](double* first_us) {
    const auto start = WallClock::now();
    auto memory =
        PinnedMemory::create({.executor = rig.executor, .pinner = rig.pinner, .size_bytes = size});
    if (memory && memory->wait_for(5 * kMiB) && first_us != nullptr) {
      *first_us = microseconds_since(start);
    }
    if (!memory || !memory->wait_for(size)) state.SkipWithError("no pinned memory");
    return microseconds_since(start);
  };
  const auto theirs = [&] {
    void* data = nullptr;
    const auto start = WallClock::now();
    if (::cudaMallocHost(&data, size) != cudaSuccess) state.SkipWithError("no memory");
    const double us = microseconds_since(start);
    static_cast<void>(::cudaFreeHost(data));
    return us;
  };
  ours(nullptr);  // a machine whose memory grows on its first touch gets it here
  std::vector<double> ratios;
  std::vector<double> firsts;
  bool ours_first = true;
  for (auto _ : state) {
    double first = 0;
    const double before = ours_first ? ours(&first) : theirs();
    const double after = ours_first ? theirs() : ours(&first);
    const double our_us = ours_first ? before : after;
    ratios.push_back((ours_first ? after : before) / our_us);
    firsts.push_back(first);
    ours_first = !ours_first;
    state.SetIterationTime(our_us * 1e-6);
  }
  if (ratios.empty()) return;
  state.counters["ratio"] = median(ratios);
  state.counters["first_ms"] = median(firsts) / 1000;
}
BENCHMARK(BM_PinnedMemory)->Arg(32)->Iterations(2)->UseManualTime()->Unit(benchmark::kMillisecond);

// --- transfers
// -------------------------------------------------------------------------------------

constexpr uint32_t kNumBlocks = 512;
/// One block of Llama 3.1 70B on one GPU, 16 tokens in bf16: 80 layers, 160 chunks of 32 KiB.
constexpr LayoutConfig kConfig{.num_blocks = kNumBlocks,
                               .num_layers = 80,
                               .outer_dim = 2,
                               .page_size = 16,
                               .inner_dim = 8 * 128,
                               .dtype_width_bytes = 2};
constexpr uint64_t kBlockBytes = uint64_t{160} * 32 * kKiB;

enum Way : int64_t { kDown, kUp };  // to the GPU, from the GPU
enum Shape : int64_t {
  kContiguous,
  kShuffled,
  kLayersApart,
  kChunksApart  // layers, and keys from values: 160 runs of 32 KiB in a block
};              // of ids, and of the place on the GPU
enum Mover : int64_t { kByEngine, kByKernel, kAsChosen };

LayoutKind kind_of(Shape shape) {
  if (shape == kLayersApart) return LayoutKind::kLayerSeparateBlockFirst;
  if (shape == kChunksApart) return LayoutKind::kLayerSeparateBlockSecond;
  return LayoutKind::kFullyContiguous;
}

/// Kernels for everything.
Calibration only_kernels() {
  const auto all = [](double bytes_per_second) {
    return FormCost{.rates = {{.run_bytes = 1, .bytes_per_second = bytes_per_second}}};
  };
  Calibration calibration;
  for (const TransferRoute route : {TransferRoute::kHostToDevice, TransferRoute::kDeviceToHost}) {
    calibration.set(route, {all(1), all(1), all(1e12)});
  }
  return calibration;
}

/// Empty for the engine. `calibration_ms`: what the measurement took.
Calibration calibration_for(Rig& rig, Mover mover, benchmark::State& state) {
  if (mover == kByEngine) return {};
  if (mover == kByKernel) return only_kernels();
  const auto start = WallClock::now();
  auto measured =
      measure_calibration({.device = *rig.device, .executor = rig.executor, .pinner = rig.pinner});
  if (!measured) {
    state.SkipWithError(measured.error().message().c_str());
    return {};
  }
  state.counters["calibration_ms"] = microseconds_since(start) / 1000;
  return *std::move(measured);
}

/// `share`: of the rate of one plain pinned copy of as many bytes; `submit_us`: until
/// execute_transfer() returns.
void run_transfer(benchmark::State& state, size_t num_blocks, Way way, Shape shape, Mover mover) {
  Rig rig(state);
  if (rig.device == nullptr) return;
  const LayoutKind kind = kind_of(shape);
  const MemoryNeed need = required_memory(kConfig, kind).value();
  const uint64_t host_bytes = required_bytes(kConfig, LayoutKind::kFullyContiguous).value();
  const DeviceMemory gpu = rig.device->allocate(need.num_regions * need.region_bytes, 256).value();
  auto host = PinnedMemory::create(
                  {.executor = rig.executor, .pinner = rig.pinner, .size_bytes = host_bytes})
                  .value();
  if (!host.wait_for(host_bytes)) return state.SkipWithError("no pinned memory");
  std::memset(host.data(), 1, host_bytes);
  std::vector<MemoryRegion> regions;
  for (size_t i = 0; i < need.num_regions; ++i) {
    regions.push_back(MemoryRegion::of(gpu).slice(i * need.region_bytes, need.region_bytes));
  }
  const auto manager = TransferManager::create({.device = *rig.device,
                                                .executor = rig.executor,
                                                .log = rig.log,
                                                .calibration = calibration_for(rig, mover, state),
                                                .streams_per_direction = 4})
                           .value();
  const LayoutHandle on_host =
      manager->register_layout(PhysicalLayout::fully_contiguous(kConfig, host.region()).value())
          .value();
  const LayoutHandle on_gpu =
      manager
          ->register_layout((kind == LayoutKind::kFullyContiguous
                                 ? PhysicalLayout::fully_contiguous(kConfig, regions.front())
                                 : PhysicalLayout::layer_separate(
                                       kConfig,
                                       shape == kLayersApart ? BlockDimension::kBlockIsFirst
                                                             : BlockDimension::kBlockIsSecond,
                                       regions))
                                .value())
          .value();
  std::vector<BlockId> ids;
  for (uint32_t i = 0; i < kNumBlocks; ++i) ids.emplace_back(i);
  if (shape != kContiguous) Random(1).shuffle(std::span(ids));
  const std::span<const BlockId> used(ids.data(), num_blocks);
  const uint64_t bytes = num_blocks * kBlockBytes;

  cudaStream_t stream = nullptr;
  static_cast<void>(::cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  void* plain_host = nullptr;  // one piece, not in slices
  if (::cudaMallocHost(&plain_host, bytes) != cudaSuccess) return state.SkipWithError("no memory");
  const auto plain = [&] {
    const auto start = WallClock::now();
    void* const to = way == kDown ? static_cast<void*>(gpu.data()) : plain_host;
    const void* const from = way == kDown ? plain_host : static_cast<const void*>(gpu.data());
    static_cast<void>(::cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream));
    static_cast<void>(::cudaStreamSynchronize(stream));
    return microseconds_since(start);
  };
  std::vector<double> submits;
  const auto managed = [&] {
    const auto start = WallClock::now();
    const auto copied = manager->execute_transfer({.src = way == kDown ? on_host : on_gpu,
                                                   .src_ids = used,
                                                   .dst = way == kDown ? on_gpu : on_host,
                                                   .dst_ids = used});
    submits.push_back(microseconds_since(start));
    if (!copied || !copied->wait()) state.SkipWithError("the transfer failed");
    return microseconds_since(start);
  };
  for (int i = 0; i < 10; ++i) {
    plain();
    managed();
  }
  submits.clear();
  std::vector<double> plains;
  std::vector<double> manageds;
  bool plain_first = true;
  for (auto _ : state) {
    if (plain_first) plains.push_back(plain());
    manageds.push_back(managed());
    if (!plain_first) plains.push_back(plain());
    plain_first = !plain_first;
    state.SetIterationTime(manageds.back() * 1e-6);
  }
  static_cast<void>(::cudaStreamDestroy(stream));
  static_cast<void>(::cudaFreeHost(plain_host));
  if (manageds.empty()) return;
  state.counters["gbps"] = static_cast<double>(bytes) / median(manageds) / 1000;
  state.counters["plain_gbps"] = static_cast<double>(bytes) / median(plains) / 1000;
  state.counters["share"] = median(plains) / median(manageds);
  state.counters["added_us"] = median(manageds) - median(plains);
  state.counters["submit_us"] = median(submits);
}

/// Arguments: blocks, way, shape. By the copy engine.
void BM_CudaTransfer(benchmark::State& state) {
  run_transfer(state, static_cast<size_t>(state.range(0)), static_cast<Way>(state.range(1)),
               static_cast<Shape>(state.range(2)), kByEngine);
}
BENCHMARK(BM_CudaTransfer)
    ->ArgsProduct({{1, 16, 256}, {kDown, kUp}, {kContiguous, kShuffled, kLayersApart}})
    ->Iterations(30)
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

/// Arguments: blocks, way, mover. 160 runs of 32 KiB in a block, in any order of blocks.
void BM_CudaChunks(benchmark::State& state) {
  run_transfer(state, static_cast<size_t>(state.range(0)), static_cast<Way>(state.range(1)),
               kChunksApart, static_cast<Mover>(state.range(2)));
}
BENCHMARK(BM_CudaChunks)
    ->ArgsProduct({{1, 16, 128}, {kDown, kUp}, {kByEngine, kByKernel, kAsChosen}})
    ->Iterations(30)
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

/// Argument: bytes. From the call to the end of one copy: how much later than cudaStreamSynchronize
/// returns does the callback of the device's event come, and the thread that waits for it go on.
void BM_CudaCompletion(benchmark::State& state) {
  Rig rig(state);
  if (rig.device == nullptr) return;
  const auto bytes = static_cast<uint64_t>(state.range(0));
  const DeviceMemory gpu = rig.device->allocate(bytes, 256).value();
  auto host =
      PinnedMemory::create({.executor = rig.executor, .pinner = rig.pinner, .size_bytes = bytes})
          .value();
  if (!host.wait_for(bytes)) return state.SkipWithError("no pinned memory");
  const StreamRef stream = rig.device->create_stream("s").value();
  cudaStream_t native = nullptr;
  static_cast<void>(::cudaStreamCreateWithFlags(&native, cudaStreamNonBlocking));
  const BlockList one = make_block_list({BlockId(0)});
  std::vector<double> plains;
  std::vector<double> ours;
  std::vector<double> callbacks;
  for (auto _ : state) {
    auto start = WallClock::now();
    static_cast<void>(::cudaMemcpyAsync(gpu.data(), host.data(), bytes, cudaMemcpyDefault, native));
    static_cast<void>(::cudaStreamSynchronize(native));
    plains.push_back(microseconds_since(start));
    start = WallClock::now();
    const Status copied = rig.device->copy(
        stream, {.from = one,
                 .to = one,
                 .pieces = {{.src = host.data(), .dst = gpu.data(), .bytes = bytes}}});
    std::atomic<double> told = 0;
    const Event event = rig.device->record(stream);
    event.on_done([&told, start](const Status&) noexcept { told = microseconds_since(start); });
    if (!copied || !event.wait()) state.SkipWithError("the copy failed");
    ours.push_back(microseconds_since(start));
    while (told == 0) std::this_thread::yield();
    callbacks.push_back(told);
    state.SetIterationTime(ours.back() * 1e-6);
  }
  static_cast<void>(::cudaStreamDestroy(native));
  if (ours.empty()) return;
  state.counters["plain_us"] = median(plains);
  state.counters["callback_added_us"] = median(callbacks) - median(plains);
  state.counters["added_us"] = median(ours) - median(plains);
}
BENCHMARK(BM_CudaCompletion)
    ->Arg(4096)
    ->Arg(5 << 20)
    ->Arg(80 << 20)
    ->Iterations(200)
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace kvbm
