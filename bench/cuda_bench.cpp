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
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>
#include <kvbm/kernels.h>

#include "kvbm/base/log.hpp"
#include "kvbm/base/random.hpp"
#include "kvbm/base/thread_executor.hpp"
#include "kvbm/base/units.hpp"
#include "kvbm/memory/pinned_memory.hpp"
#include "kvbm/runtime/devices.hpp"
#include "kvbm/transfer/transfer_manager.hpp"
#include "kvbm/transfer/transfer_plan.hpp"

#include "kernels/bench/matrix_product.hpp"
#include "tests/support/allocation_meter.hpp"

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
  explicit Rig(benchmark::State& state, std::optional<uint64_t> ring_bytes = std::nullopt) {
    auto opened = open_device({.name = "cuda", .executor = executor, .cuda_ring_size = ring_bytes});
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

constexpr uint32_t kNumBlocks = 256;
/// One block of Llama 3.1 70B on one GPU, 16 tokens in bf16: 80 layers, 160 chunks of 32 KiB.
constexpr LayoutConfig kConfig{.num_blocks = kNumBlocks,
                               .num_layers = 80,
                               .outer_dim = 2,
                               .page_size = 16,
                               .inner_dim = 8 * 128,
                               .dtype_width_bytes = 2};
/// Many small ones, of 64 KiB.
constexpr LayoutConfig kSmallConfig{.num_blocks = 1024,
                                    .num_layers = 8,
                                    .outer_dim = 2,
                                    .page_size = 16,
                                    .inner_dim = 128,
                                    .dtype_width_bytes = 2};

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

/// That form for everything, at a pace that no link has.
Calibration only(CopyForm form) {
  RouteCost costs;
  for (size_t i = 0; i < costs.size(); ++i) {
    costs[i] = {.submission = CopyCost(i == static_cast<size_t>(form) ? 0 : 1e12),
                .rates = {{.run_bytes = 1, .bytes_per_second = 1e12}}};
  }
  Calibration calibration;
  for (const TransferRoute route : {TransferRoute::kHostToDevice, TransferRoute::kDeviceToHost}) {
    calibration.set(route, costs);
  }
  return calibration;
}

/// Empty for the engine. `calibration_ms`: what the measurement took.
Calibration calibration_for(Rig& rig, Mover mover, benchmark::State& state) {
  if (mover == kByEngine) return {};
  if (mover == kByKernel) return only(CopyForm::kKernel);
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

/// A layout in pinned memory, contiguous unless it is said otherwise, and one on the GPU.
struct Ends {
  Ends(Rig& rig, const LayoutConfig& config, Shape shape, Shape host_shape = kContiguous)
      : host_memory(pinned(rig, config)), gpu_memory(on_gpu(rig, config, kind_of(shape))) {
    std::memset(host_memory.data(), 1, host_memory.size_bytes());
    host = layout(config, host_shape, host_memory.region());
    gpu = layout(config, shape, MemoryRegion::of(gpu_memory));
    for (uint32_t i = 0; i < config.num_blocks; ++i) ids.emplace_back(i);
    if (shape != kContiguous) Random(1).shuffle(std::span(ids));
  }

  static std::unique_ptr<PhysicalLayout> layout(const LayoutConfig& config, Shape shape,
                                                const MemoryRegion& memory) {
    const LayoutKind kind = kind_of(shape);
    if (kind == LayoutKind::kFullyContiguous) {
      return std::make_unique<PhysicalLayout>(
          PhysicalLayout::fully_contiguous(config, memory).value());
    }
    const MemoryNeed need = required_memory(config, kind).value();
    std::vector<MemoryRegion> regions;
    for (size_t i = 0; i < need.num_regions; ++i) {
      regions.push_back(memory.slice(i * need.region_bytes, need.region_bytes));
    }
    const BlockDimension blocks =
        shape == kLayersApart ? BlockDimension::kBlockIsFirst : BlockDimension::kBlockIsSecond;
    return std::make_unique<PhysicalLayout>(
        PhysicalLayout::layer_separate(config, blocks, regions).value());
  }

  static PinnedMemory pinned(Rig& rig, const LayoutConfig& config) {
    const uint64_t bytes = required_bytes(config, LayoutKind::kFullyContiguous).value();
    auto memory =
        PinnedMemory::create({.executor = rig.executor, .pinner = rig.pinner, .size_bytes = bytes})
            .value();
    static_cast<void>(memory.wait_for(bytes));
    return memory;
  }
  static DeviceMemory on_gpu(Rig& rig, const LayoutConfig& config, LayoutKind kind) {
    const MemoryNeed need = required_memory(config, kind).value();
    return rig.device->allocate(need.num_regions * need.region_bytes, 256).value();
  }

  PinnedMemory host_memory;
  DeviceMemory gpu_memory;
  std::unique_ptr<PhysicalLayout> host;
  std::unique_ptr<PhysicalLayout> gpu;
  std::vector<BlockId> ids;
};

/// Both ends with a manager.
struct Scene {
  Scene(Rig& rig, Ends& ends, const Calibration& calibration, size_t streams_per_direction = 4)
      : manager(TransferManager::create({.device = *rig.device,
                                         .executor = rig.executor,
                                         .log = rig.log,
                                         .calibration = calibration,
                                         .streams_per_direction = streams_per_direction})
                    .value()),
        host(manager->register_layout(*ends.host).value()),
        gpu(manager->register_layout(*ends.gpu).value()) {}

  [[nodiscard]] Result<TransferCompleteNotification> start(Way way,
                                                           std::span<const BlockId> ids) const {
    return manager->execute_transfer({.src = way == kDown ? host : gpu,
                                      .src_ids = ids,
                                      .dst = way == kDown ? gpu : host,
                                      .dst_ids = ids});
  }

  std::unique_ptr<TransferManager> manager;
  LayoutHandle host;
  LayoutHandle gpu;
};

/// One piece of pinned memory, not in slices, and plain copies of it.
struct Plain {
  Plain(Ends& ends, uint64_t size_bytes) : gpu(ends.gpu_memory.data()), bytes(size_bytes) {
    static_cast<void>(::cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    if (::cudaMallocHost(&host, bytes) != cudaSuccess) host = nullptr;
  }
  ~Plain() {
    static_cast<void>(::cudaStreamDestroy(stream));
    static_cast<void>(::cudaFreeHost(host));
  }
  Plain(const Plain&) = delete;
  Plain& operator=(const Plain&) = delete;

  void start(Way way) const {
    void* const to = way == kDown ? gpu : host;
    const void* const from = way == kDown ? host : gpu;
    static_cast<void>(::cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream));
  }
  void finish() const { static_cast<void>(::cudaStreamSynchronize(stream)); }

  void* gpu;
  void* host = nullptr;
  uint64_t bytes;
  cudaStream_t stream = nullptr;
};

/// Runs `ways` in turns, warmed up; the median time of each in microseconds.
std::vector<double> medians(benchmark::State& state,
                            const std::vector<std::function<void()>>& ways) {
  for (int i = 0; i < 5; ++i) {
    for (const auto& way : ways) way();
  }
  std::vector<std::vector<double>> times(ways.size());
  for (auto _ : state) {
    for (size_t i = 0; i < ways.size(); ++i) {
      const auto start = WallClock::now();
      ways[i]();
      times[i].push_back(microseconds_since(start));
    }
    state.SetIterationTime(times.back().back() * 1e-6);
  }
  std::vector<double> result;
  for (auto& each : times) result.push_back(each.empty() ? 0 : median(std::move(each)));
  return result;
}

double gbps(uint64_t bytes, double us) { return static_cast<double>(bytes) / us / 1000; }

/// Waits as a server's loop does.
void spin_until_done(benchmark::State& state,
                     const Result<TransferCompleteNotification>& transfer) {
  if (!transfer) return state.SkipWithError(transfer.error().message().c_str());
  while (!transfer->done()) {
  }
  if (!transfer->result().status) state.SkipWithError("the transfer failed");
}

/// `share`: of the rate of one plain pinned copy of as many bytes, with a thread that looks at
/// done(); `waiting_share`: with one that blocks in wait(). `added_us`: to the plain copy's time.
/// `submit_us`: until execute_transfer() returns, on a thread that was awake before (the plain copy
/// before it is waited for by spinning); `submit_after_sleep_us`: on one that had slept;
/// `allocations`: in there.
void run_transfer(benchmark::State& state, const LayoutConfig& config, size_t num_blocks, Way way,
                  Shape shape, Mover mover) {
  Rig rig(state);
  if (rig.device == nullptr) return;
  Ends ends(rig, config, shape);
  const Scene scene(rig, ends, calibration_for(rig, mover, state));
  const std::span<const BlockId> used(ends.ids.data(), num_blocks);
  const uint64_t bytes = num_blocks * config.block_bytes();
  const Plain plain(ends, bytes);
  if (plain.host == nullptr) return state.SkipWithError("no memory");
  std::vector<double> submits_after_sleep;
  std::vector<double> submits;
  size_t allocations = 0;
  const auto start = [&](std::vector<double>& times) {
    const testing::AllocationMeter meter;
    const auto begin = WallClock::now();
    auto transfer = scene.start(way, used);
    const double us = microseconds_since(begin);
    allocations = meter.count();
    times.push_back(us);
    return transfer;
  };
  const std::vector<double> us =
      medians(state, {[&] {
                        plain.start(way);
                        plain.finish();
                      },
                      [&] {
                        const auto transfer = start(submits);
                        if (!transfer || !transfer->wait()) {
                          state.SkipWithError("the transfer failed");
                        }
                      },
                      [&] { spin_until_done(state, start(submits_after_sleep)); }});
  state.counters["gbps"] = gbps(bytes, us[2]);
  state.counters["plain_gbps"] = gbps(bytes, us[0]);
  state.counters["share"] = us[0] / us[2];
  state.counters["waiting_share"] = us[0] / us[1];
  state.counters["added_us"] = us[2] - us[0];
  state.counters["submit_us"] = median(submits);
  state.counters["submit_after_sleep_us"] = median(submits_after_sleep);
  state.counters["allocations"] = static_cast<double>(allocations);
}

/// Arguments: blocks, way, shape. By the copy engine.
void BM_CudaTransfer(benchmark::State& state) {
  run_transfer(state, kConfig, static_cast<size_t>(state.range(0)),
               static_cast<Way>(state.range(1)), static_cast<Shape>(state.range(2)), kByEngine);
}
BENCHMARK(BM_CudaTransfer)
    ->ArgsProduct({{1, 16, 256}, {kDown, kUp}, {kContiguous, kShuffled, kLayersApart}})
    ->Iterations(30)
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

/// Arguments: way, shape, mover. 1,024 contiguous blocks, one after another or in any order.
void BM_CudaContiguous(benchmark::State& state) {
  run_transfer(state, kSmallConfig, kSmallConfig.num_blocks, static_cast<Way>(state.range(0)),
               static_cast<Shape>(state.range(1)), static_cast<Mover>(state.range(2)));
}
BENCHMARK(BM_CudaContiguous)
    ->ArgsProduct({{kDown, kUp}, {kContiguous, kShuffled}, {kByEngine, kAsChosen}})
    ->Iterations(60)
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

/// A processor that has slept comes to its pace within some tenths of a second of work.
void come_to_pace() {
  const auto begin = WallClock::now();
  while (microseconds_since(begin) < 300'000) {
  }
}

/// Arguments: way, mover, transfers under way at a time. Each of 1,024 contiguous blocks, one after
/// another, by a thread that never sleeps. `submit_us`: until execute_transfer() returns;
/// `driver_us`: what the driver takes for such a copy and an event behind it, in turns with ours.
void BM_CudaSubmission(benchmark::State& state) {
  Rig rig(state);
  if (rig.device == nullptr) return;
  const auto way = static_cast<Way>(state.range(0));
  const auto at_a_time = static_cast<uint32_t>(state.range(2));
  const uint32_t num_blocks = kSmallConfig.num_blocks;
  LayoutConfig config = kSmallConfig;
  config.num_blocks *= at_a_time;
  Ends ends(rig, config, kContiguous);
  const Scene scene(rig, ends, calibration_for(rig, static_cast<Mover>(state.range(1)), state));
  const Plain plain(ends, num_blocks * config.block_bytes());
  cudaEvent_t event = nullptr;
  static_cast<void>(::cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  if (plain.host == nullptr || event == nullptr) return state.SkipWithError("no memory");
  const std::span<const BlockId> ids(ends.ids);
  std::vector<double> submits;
  std::vector<double> driver;
  const auto round = [&] {
    for (uint32_t i = 0; i < at_a_time; ++i) {
      const auto begin = WallClock::now();
      plain.start(way);
      static_cast<void>(::cudaEventRecord(event, plain.stream));
      driver.push_back(microseconds_since(begin));
    }
    while (::cudaEventQuery(event) == cudaErrorNotReady) {
    }
    std::vector<Result<TransferCompleteNotification>> transfers;
    transfers.reserve(at_a_time);
    for (uint32_t i = 0; i < at_a_time; ++i) {
      const auto begin = WallClock::now();
      transfers.push_back(scene.start(way, ids.subspan(size_t{i} * num_blocks, num_blocks)));
      submits.push_back(microseconds_since(begin));
    }
    for (const auto& transfer : transfers) spin_until_done(state, transfer);
  };
  come_to_pace();
  for (int i = 0; i < 20; ++i) round();
  submits.clear();
  driver.clear();
  for (auto _ : state) {
    round();
    state.SetIterationTime(submits.back() * 1e-6);
  }
  static_cast<void>(::cudaEventDestroy(event));
  if (submits.empty()) return;
  state.counters["submit_us"] = median(std::move(submits));
  state.counters["driver_us"] = median(std::move(driver));
}
BENCHMARK(BM_CudaSubmission)
    ->ArgsProduct({{kDown, kUp}, {kByEngine, kAsChosen}, {1, 4}})
    ->Iterations(300)
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

/// Arguments: blocks, way, mover. 160 runs of 32 KiB in a block, in any order of blocks.
void BM_CudaChunks(benchmark::State& state) {
  run_transfer(state, kConfig, static_cast<size_t>(state.range(0)),
               static_cast<Way>(state.range(1)), kChunksApart, static_cast<Mover>(state.range(2)));
}
BENCHMARK(BM_CudaChunks)
    ->ArgsProduct({{1, 16, 128}, {kDown, kUp}, {kByEngine, kByKernel, kAsChosen}})
    ->Iterations(30)
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

#if CUDART_VERSION >= 13000
/// Arguments: KiB of a copy, copies, how many the driver is given in one batch; 0: all. To the GPU,
/// by the driver alone. `share`: of the rate of one plain copy; `call_us`: until the calls return.
void BM_CudaDriverBatches(benchmark::State& state) {
  Rig rig(state);
  if (rig.device == nullptr) return;
  const auto run = static_cast<uint64_t>(state.range(0)) * kKiB;
  const auto count = static_cast<size_t>(state.range(1));
  const size_t most = state.range(2) == 0 ? count : static_cast<size_t>(state.range(2));
  auto host = PinnedMemory::create(
      {.executor = rig.executor, .pinner = rig.pinner, .size_bytes = count * run});
  const auto gpu = rig.device->allocate(count * run, 256);
  if (!host || !gpu || !host->wait_for(count * run)) return state.SkipWithError("no memory");
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), size_t{0});
  Random(1).shuffle(std::span(order));
  std::vector<const void*> src;
  std::vector<void*> dst;
  const std::vector<size_t> sizes(count, run);
  for (size_t i = 0; i < count; ++i) {
    src.push_back(host->data() + i * run);
    dst.push_back(gpu->data() + order[i] * run);
  }
  cudaStream_t stream = nullptr;
  static_cast<void>(::cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const auto finish = [&] {
    while (::cudaStreamQuery(stream) == cudaErrorNotReady) {
    }
  };
  std::vector<double> calls;
  const auto batches = [&] {
    const auto begin = WallClock::now();
    cudaMemcpyAttributes attributes{};
    attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
    size_t with_these = 0;
    for (size_t first = 0; first < count; first += most) {
      const cudaError_t code = ::cudaMemcpyBatchAsync(
          dst.data() + first, src.data() + first, sizes.data() + first,
          std::min(most, count - first), &attributes, &with_these, 1, stream);
      if (code != cudaSuccess) return state.SkipWithError("the driver refused a batch");
    }
    calls.push_back(microseconds_since(begin));
    finish();
  };
  const auto plain = [&] {
    constexpr uint64_t kSlice = PinnedMemoryOptions::kSliceBytes;  // no copy goes across its end
    for (uint64_t at = 0; at < count * run; at += kSlice) {
      const cudaError_t code =
          ::cudaMemcpyAsync(gpu->data() + at, host->data() + at, std::min(kSlice, count * run - at),
                            cudaMemcpyDefault, stream);
      if (code != cudaSuccess) return state.SkipWithError("the driver refused a copy");
    }
    finish();
  };
  const std::vector<double> us = medians(state, {plain, batches});
  static_cast<void>(::cudaStreamDestroy(stream));
  state.counters["share"] = us[0] / us[1];
  state.counters["call_us"] = median(std::move(calls));
}
BENCHMARK(BM_CudaDriverBatches)
    ->ArgsProduct({{32, 128}, {160, 2560, 10240}, {16, 64, 256, 0}})
    ->Iterations(10)
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);
#endif

// --- where the time of a transfer goes
// --------------------------------------------------------------

kvbm_strided_piece native(const StridedPiece& piece) {
  kvbm_strided_piece native{.src = piece.src,
                            .dst = piece.dst,
                            .src_block_stride = piece.src_block_stride,
                            .dst_block_stride = piece.dst_block_stride,
                            .bytes = piece.bytes,
                            .axes = {}};
  for (size_t i = 0; i < kStridedAxes; ++i) {
    native.axes[i] = {.count = piece.axes[i].count,
                      .src_stride = piece.axes[i].src_stride,
                      .dst_stride = piece.axes[i].dst_stride};
  }
  return native;
}

/// Arguments: blocks, way, mover. Contiguous blocks by the engine, or blocks of 160 runs by a
/// kernel, on the levels that a transfer goes through, each until a spinning thread sees its end:
/// `raw_us`, the call of the runtime or of the kernels' library, with ids in device memory, and
/// cudaStreamSynchronize; `device_us`, CudaDevice::copy_and_record; `managed_us`,
/// execute_transfer. `…_call_us`: until the call returns.
void BM_CudaLevels(benchmark::State& state) {
  Rig rig(state);
  if (rig.device == nullptr) return;
  const auto way = static_cast<Way>(state.range(1));
  const bool by_kernel = state.range(2) == kByKernel;
  Ends ends(rig, kConfig, by_kernel ? kChunksApart : kContiguous);
  std::ranges::sort(ends.ids);
  const std::vector<BlockId> used(ends.ids.begin(), ends.ids.begin() + state.range(0));
  const uint64_t bytes = used.size() * kConfig.block_bytes();
  const Scene scene(rig, ends, by_kernel ? only(CopyForm::kKernel) : Calibration());
  const Plain plain(ends, bytes);
  if (plain.host == nullptr) return state.SkipWithError("no memory");
  const PhysicalLayout& src = way == kDown ? *ends.host : *ends.gpu;
  const PhysicalLayout& dst = way == kDown ? *ends.gpu : *ends.host;
  const std::vector<StridedPiece> pieces =
      TransferPlan::create(src, dst, kConfig.all_layers()).value().with_addresses(src, dst);
  std::vector<kvbm_strided_piece> natives;
  for (const StridedPiece& piece : pieces) natives.push_back(native(piece));
  const DeviceMemory ids = rig.device->allocate(used.size() * sizeof(uint32_t), 256).value();
  std::vector<uint32_t> numbers(used.size());
  std::iota(numbers.begin(), numbers.end(), 0U);
  static_cast<void>(::cudaMemcpy(ids.data(), numbers.data(), ids.size_bytes(), cudaMemcpyDefault));
  const BlockPairList list = make_block_pairs(used);
  const PieceList shared = pieces;
  const StreamRef stream = rig.device->create_stream("s").value();
  std::map<std::string, std::vector<double>> calls;
  const auto timed = [&](const char* name, const auto& call) {
    const auto begin = WallClock::now();
    auto result = call();
    calls[name].push_back(microseconds_since(begin));
    return result;
  };
  const auto raw = [&] {
    if (!by_kernel) {
      return static_cast<int>(::cudaMemcpyAsync(pieces.front().dst, pieces.front().src, bytes,
                                                cudaMemcpyDefault, plain.stream));
    }
    const auto* const id = reinterpret_cast<const uint32_t*>(ids.data());
    return ::kvbm_kernels_launch_strided_copy(natives.data(), natives.size(), id, id, used.size(),
                                              nullptr, plain.stream);
  };
  const std::vector<double> us = medians(
      state,
      {[&] {
         plain.start(way);
         plain.finish();
       },
       [&] {
         if (timed("raw_call_us", raw) != 0) state.SkipWithError("the copy was refused");
         plain.finish();
       },
       [&] {
         StridedCopyBatch batch{.pairs = list,
                                .pieces = shared,
                                .method = by_kernel ? CopyMethod::kKernel : CopyMethod::kEngine};
         const Result<Event> event = timed("device_call_us", [&] {
           return rig.device->copy_and_record(stream, std::move(batch));
         });
         if (!event) return state.SkipWithError("the copy failed");
         while (!event->done()) {
         }
       },
       [&] {
         spin_until_done(state, timed("managed_call_us", [&] { return scene.start(way, used); }));
       }});
  const char* const names[] = {"plain_us", "raw_us", "device_us", "managed_us"};
  for (size_t i = 0; i < us.size(); ++i) state.counters[names[i]] = us[i];
  for (auto& [name, values] : calls) state.counters[name] = median(std::move(values));
  state.counters["share"] = us[0] / us[3];
  state.counters["raw_share"] = us[0] / us[1];
}
BENCHMARK(BM_CudaLevels)
    ->ArgsProduct({{1, 16, 128}, {kDown, kUp}, {kByKernel}})
    ->ArgsProduct({{1, 16}, {kDown, kUp}, {kByEngine}})  // within one slice of pinned memory
    ->Iterations(60)
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

/// Argument: allocations that are looked up in turn. `lookup_us`: one of them.
void BM_CudaPointerLookup(benchmark::State& state) {
  Rig rig(state);
  if (rig.device == nullptr) return;
  std::vector<void*> all(static_cast<size_t>(state.range(0)));
  for (void*& each : all) {
    if (::cudaMalloc(&each, 32 << 20) != cudaSuccess) return state.SkipWithError("no memory");
  }
  for (auto _ : state) {
    const auto begin = WallClock::now();
    for (void* const each : all) {
      cudaPointerAttributes attributes;
      benchmark::DoNotOptimize(::cudaPointerGetAttributes(&attributes, each));
    }
    state.SetIterationTime(microseconds_since(begin) * 1e-6 / static_cast<double>(all.size()));
  }
  for (void* const each : all) static_cast<void>(::cudaFree(each));
}
BENCHMARK(BM_CudaPointerLookup)
    ->Arg(80)
    ->Iterations(50)
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

/// What measure_calibration() finds, time after time. Counters: gigabytes per second of the kernel,
/// the engine's rows and the ring for runs of 4 KiB and 256 KiB, least and most.
void BM_CudaCalibration(benchmark::State& state) {
  Rig rig(state);
  if (rig.device == nullptr) return;
  std::map<std::string, std::vector<double>> seen;
  for (auto _ : state) {
    const auto begin = WallClock::now();
    const auto measured = measure_calibration(
        {.device = *rig.device, .executor = rig.executor, .pinner = rig.pinner});
    state.SetIterationTime(microseconds_since(begin) * 1e-6);
    if (!measured) return state.SkipWithError(measured.error().message().c_str());
    const std::pair<TransferRoute, const char*> routes[] = {
        {TransferRoute::kHostToDevice, "h2d"},
        {TransferRoute::kDeviceToHost, "d2h"},
        {TransferRoute::kDeviceToDevice, "d2d"}};
    for (const auto& [route, name] : routes) {
      const RouteCost* const cost = measured->find(route);
      if (cost == nullptr) return state.SkipWithError("a route was left out");
      const std::pair<CopyForm, const char*> forms[] = {{CopyForm::kEngineRows, ".rows"},
                                                        {CopyForm::kKernel, ".kernel"},
                                                        {CopyForm::kRing, ".ring"}};
      for (const auto& [form, word] : forms) {
        const FormCost& of = (*cost)[static_cast<size_t>(form)];
        if (of.rates.empty()) continue;  // no ring on the device
        const std::string key = std::string(name) + word;
        seen[key + ".4k"].push_back(of.bytes_per_second(4 * kKiB) * 1e-9);
        seen[key + ".256k"].push_back(of.bytes_per_second(256 * kKiB) * 1e-9);
      }
    }
  }
  for (const auto& [name, values] : seen) {
    const auto [least, most] = std::ranges::minmax(values);
    state.counters[name + ".least"] = least;
    state.counters[name + ".most"] = most;
  }
}
BENCHMARK(BM_CudaCalibration)->Iterations(8)->UseManualTime()->Unit(benchmark::kMillisecond);

// --- through the ring in device memory, and both ways at a time
// ---------------------------------------

/// Arguments: blocks, way, MiB of the ring. 160 runs of 32 KiB in a block. `share`: of the rate of
/// one plain pinned copy of as many bytes, through the ring; `kernel_share`: by a kernel straight
/// from one memory to the other, at full speed; `chosen_share`: as choose_method() has it.
/// `submit_us`: until execute_transfer() returns, through the ring.
void BM_CudaRing(benchmark::State& state) {
  Rig rig(state, static_cast<uint64_t>(state.range(2)) * kMiB);
  if (rig.device == nullptr) return;
  const auto way = static_cast<Way>(state.range(1));
  Ends ends(rig, kConfig, kChunksApart);
  const Scene ring(rig, ends, only(CopyForm::kRing));
  const Scene kernels(rig, ends, only(CopyForm::kKernel));
  const Scene chosen(rig, ends, calibration_for(rig, kAsChosen, state));
  const std::span<const BlockId> used(ends.ids.data(), static_cast<size_t>(state.range(0)));
  const uint64_t bytes = used.size() * kConfig.block_bytes();
  const Plain plain(ends, bytes);
  if (plain.host == nullptr) return state.SkipWithError("no memory");
  std::vector<double> submits;
  const std::vector<double> us =
      medians(state, {[&] {
                        plain.start(way);
                        plain.finish();
                      },
                      [&] { spin_until_done(state, kernels.start(way, used)); },
                      [&] { spin_until_done(state, chosen.start(way, used)); },
                      [&] {
                        const auto begin = WallClock::now();
                        const auto transfer = ring.start(way, used);
                        submits.push_back(microseconds_since(begin));
                        spin_until_done(state, transfer);
                      }});
  state.counters["gbps"] = gbps(bytes, us[3]);
  state.counters["plain_gbps"] = gbps(bytes, us[0]);
  state.counters["share"] = us[0] / us[3];
  state.counters["kernel_share"] = us[0] / us[1];
  state.counters["chosen_share"] = us[0] / us[2];
  state.counters["submit_us"] = median(submits);
}
BENCHMARK(BM_CudaRing)
    ->ArgsProduct({{128}, {kDown, kUp}, {20, 40, 80, 160}})
    ->ArgsProduct({{1, 2, 4, 16}, {kDown, kUp}, {80}})
    ->Iterations(15)
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

/// Arguments: way, CTAs of the ring's kernels. 128 blocks, by CudaDevice::copy. `share`: as above.
void BM_CudaRingCtas(benchmark::State& state) {
  Rig rig(state);
  if (rig.device == nullptr) return;
  const auto way = static_cast<Way>(state.range(0));
  Ends ends(rig, kConfig, kChunksApart);
  const std::vector<BlockId> used(ends.ids.begin(), ends.ids.begin() + 128);
  const uint64_t bytes = used.size() * kConfig.block_bytes();
  const Plain plain(ends, bytes);
  if (plain.host == nullptr) return state.SkipWithError("no memory");
  const PhysicalLayout& src = way == kDown ? *ends.host : *ends.gpu;
  const PhysicalLayout& dst = way == kDown ? *ends.gpu : *ends.host;
  const BlockPairList ids = make_block_pairs(used);
  const StridedCopyBatch batch{
      .pairs = ids,
      .pieces =
          TransferPlan::create(src, dst, kConfig.all_layers()).value().with_addresses(src, dst),
      .method = CopyMethod::kRing,
      .max_ctas = static_cast<uint32_t>(state.range(1))};
  const StreamRef stream = rig.device->create_stream("s").value();
  const std::vector<double> us = medians(state, {[&] {
                                                   plain.start(way);
                                                   plain.finish();
                                                 },
                                                 [&] {
                                                   if (!rig.device->copy(stream, batch))
                                                     return state.SkipWithError("refused");
                                                   const Event event = rig.device->record(stream);
                                                   while (!event.done()) {
                                                   }
                                                 }});
  state.counters["share"] = us[0] / us[1];
}
BENCHMARK(BM_CudaRingCtas)
    ->ArgsProduct({{kDown, kUp}, {2, 4, 8, 16, 32}})
    ->Iterations(10)
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

/// Arguments: blocks, MiB of the ring. Both ways at the same time, each with memory of its own.
/// `share`: of the rate of both plain copies at the same time, through the ring; `kernel_share`,
/// `chosen_share`, `engine_share`: by kernels, as choose_method() has it, and by the engine.
void BM_CudaBothWays(benchmark::State& state) {
  Rig rig(state, static_cast<uint64_t>(state.range(1)) * kMiB);
  if (rig.device == nullptr) return;
  Ends down_ends(rig, kConfig, kChunksApart);
  Ends up_ends(rig, kConfig, kChunksApart);
  const Calibration measured = calibration_for(rig, kAsChosen, state);
  const Calibration ring = only(CopyForm::kRing);
  const Calibration kernels = only(CopyForm::kKernel);
  const Scene scenes[4][2] = {{{rig, down_ends, ring}, {rig, up_ends, ring}},
                              {{rig, down_ends, kernels}, {rig, up_ends, kernels}},
                              {{rig, down_ends, measured}, {rig, up_ends, measured}},
                              {{rig, down_ends, {}}, {rig, up_ends, {}}}};
  const std::span<const BlockId> used(down_ends.ids.data(), static_cast<size_t>(state.range(0)));
  const uint64_t bytes = used.size() * kConfig.block_bytes();
  const Plain down_plain(down_ends, bytes);
  const Plain up_plain(up_ends, bytes);
  if (down_plain.host == nullptr || up_plain.host == nullptr) {
    return state.SkipWithError("no memory");
  }
  const auto managed = [&](const Scene(&pair)[2]) {
    const auto down = pair[0].start(kDown, used);
    const auto up = pair[1].start(kUp, used);
    spin_until_done(state, down);
    spin_until_done(state, up);
  };
  const std::vector<double> us =
      medians(state, {[&] {
                        down_plain.start(kDown);
                        up_plain.start(kUp);
                        down_plain.finish();
                        up_plain.finish();
                      },
                      [&] { managed(scenes[0]); }, [&] { managed(scenes[1]); },
                      [&] { managed(scenes[2]); }, [&] { managed(scenes[3]); }});
  state.counters["plain_gbps"] = gbps(2 * bytes, us[0]);
  state.counters["gbps"] = gbps(2 * bytes, us[1]);
  state.counters["share"] = us[0] / us[1];
  state.counters["kernel_share"] = us[0] / us[2];
  state.counters["chosen_share"] = us[0] / us[3];
  state.counters["engine_share"] = us[0] / us[4];
}
BENCHMARK(BM_CudaBothWays)
    ->ArgsProduct({{128}, {40, 80, 160}})
    ->Args({16, 80})
    ->Iterations(15)
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

// --- the end of a copy
// ----------------------------------------------------------------------------------

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
  const BlockPairList one = make_block_pairs({BlockId(0)});
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
        stream,
        {.pairs = one, .pieces = {{.src = host.data(), .dst = gpu.data(), .bytes = bytes}}});
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

// --- beside compute
// ----------------------------------------------------------------------------------

/// Copies one way without an end, two at a time, by a thread of its own.
class EndlessCopies {
 public:
  EndlessCopies(const Scene& scene, Way way, std::span<const BlockId> ids)
      : thread_([this, &scene, way, ids] { run(scene, way, ids); }) {}
  ~EndlessCopies() {
    stop_ = true;
    thread_.join();
  }
  EndlessCopies(const EndlessCopies&) = delete;
  EndlessCopies& operator=(const EndlessCopies&) = delete;

  [[nodiscard]] uint64_t blocks() const { return blocks_; }
  [[nodiscard]] bool is_good() const { return good_; }

 private:
  void run(const Scene& scene, Way way, std::span<const BlockId> ids) {
    std::optional<TransferCompleteNotification> before;
    while (!stop_ && good_) {
      auto next = scene.start(way, ids);
      if (!next) {
        good_ = false;
        break;
      }
      finish(before, ids.size());
      before = *std::move(next);
    }
    finish(before, ids.size());
  }
  void finish(const std::optional<TransferCompleteNotification>& transfer, size_t num_blocks) {
    if (!transfer) return;
    if (!transfer->wait()) good_ = false;
    blocks_ += num_blocks;
  }

  std::atomic<bool> stop_{false};
  std::atomic<bool> good_{true};
  std::atomic<uint64_t> blocks_{0};
  std::thread thread_;
};

/// How the copies go beside a matrix product.
struct Beside {
  Mover mover = kAsChosen;
  Shape host = kContiguous;
  size_t streams = 4;  ///< each way; with one, copies follow each other
};

/// Arguments: blocks, way (2: both at a time), whether each multiprocessor has one thread block of
/// the product. A matrix product in bf16 while blocks of 160 runs of 32 KiB are copied. `slowed`:
/// by which share its time grows; `gbps`: of the copies.
void run_beside(benchmark::State& state, const Beside& how) {
  Rig rig(state);
  if (rig.device == nullptr) return;
  constexpr int64_t kBothWays = 2;
  constexpr int kProducts = 16;
  const Calibration measured = calibration_for(rig, how.mover, state);
  std::vector<std::unique_ptr<Ends>> ends;
  std::vector<std::pair<std::unique_ptr<Scene>, Way>> scenes;
  for (const Way way : {kDown, kUp}) {
    if (state.range(1) != kBothWays && state.range(1) != way) continue;
    ends.push_back(std::make_unique<Ends>(rig, kConfig, kChunksApart, how.host));
    scenes.emplace_back(std::make_unique<Scene>(rig, *ends.back(), measured, how.streams), way);
  }
  cudaStream_t stream = nullptr;
  static_cast<void>(::cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  MatrixProduct product(stream);
  const auto products_us = [&] {
    const auto start = WallClock::now();
    for (int i = 0; i < kProducts; ++i) product.start(stream, state.range(2) != 0);
    static_cast<void>(::cudaStreamSynchronize(stream));
    return microseconds_since(start);
  };
  products_us();
  std::vector<double> alone;
  std::vector<double> beside;
  std::vector<double> rates;
  for (auto _ : state) {
    alone.push_back(products_us());
    std::vector<std::unique_ptr<EndlessCopies>> copies;
    for (const auto& [scene, way] : scenes) {
      copies.push_back(std::make_unique<EndlessCopies>(
          *scene, way,
          std::span<const BlockId>(ends.front()->ids.data(), static_cast<size_t>(state.range(0)))));
    }
    const auto moved = [&] {
      uint64_t blocks = 0;
      for (const auto& each : copies) blocks += each->blocks();
      return blocks;
    };
    while (moved() == 0) std::this_thread::yield();
    const uint64_t before = moved();
    const auto start = WallClock::now();
    beside.push_back(products_us());
    beside.push_back(products_us());
    rates.push_back(gbps((moved() - before) * kConfig.block_bytes(), microseconds_since(start)));
    state.SetIterationTime(beside.back() * 1e-6);
    for (const auto& each : copies) {
      if (!each->is_good()) state.SkipWithError("a transfer failed");
    }
  }
  static_cast<void>(::cudaStreamDestroy(stream));
  if (alone.empty()) return;
  const double alone_us = median(alone);
  state.counters["slowed"] = median(beside) / alone_us - 1;
  state.counters["gbps"] = median(rates);
  state.counters["tflops"] = kProducts * MatrixProduct::kOperations / alone_us * 1e-6;
}

/// As choose_method() has it.
void BM_CudaBeside(benchmark::State& state) { run_beside(state, {}); }
BENCHMARK(BM_CudaBeside)
    ->ArgsProduct({{16, 128}, {kDown, kUp, 2}, {0, 1}})
    ->Iterations(9)
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

/// Where layers lie apart on the host as well, so that kernels write there, each with its pace: one
/// at a time, and two on two streams.
void BM_CudaBesideOneStream(benchmark::State& state) {
  run_beside(state, {.host = kChunksApart, .streams = 1});
}
void BM_CudaBesideTwoStreams(benchmark::State& state) {
  run_beside(state, {.host = kChunksApart, .streams = 2});
}
BENCHMARK(BM_CudaBesideOneStream)
    ->ArgsProduct({{1, 16, 128}, {kUp}, {0, 1}})
    ->Iterations(9)
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);
BENCHMARK(BM_CudaBesideTwoStreams)
    ->ArgsProduct({{1, 16, 128}, {kUp}, {0, 1}})
    ->Iterations(9)
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

/// By kernels at full speed: what the pace of a kernel to the host is for, few blocks or many.
void BM_CudaBesideUnpaced(benchmark::State& state) { run_beside(state, {.mover = kByKernel}); }
BENCHMARK(BM_CudaBesideUnpaced)
    ->ArgsProduct({{1, 16}, {kUp}, {0, 1}})
    ->Iterations(9)
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace kvbm
