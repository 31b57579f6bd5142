// SPDX-License-Identifier: Apache-2.0
// What CudaDevice has beside its contract: adopted streams, pinned memory, many events, a lost GPU.
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/adapters/cuda/cuda_device.hpp"
#include "kvbm/base/latch.hpp"
#include "kvbm/base/log.hpp"
#include "kvbm/base/random.hpp"
#include "kvbm/base/thread_executor.hpp"
#include "kvbm/base/units.hpp"
#include "kvbm/device/host_pages.hpp"
#include "kvbm/memory/pinned_memory.hpp"

#include "tests/support/allocation_meter.hpp"
#include "tests/support/error_code.hpp"
#include "tests/support/require.hpp"
#include "tests/support/test_gpu.hpp"

namespace kvbm {
namespace {

using std::chrono::seconds;
using testing::code_of;

/// An engine's own stream.
class EngineStream {
 public:
  EngineStream() {
    EXPECT_EQ(::cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
  }
  ~EngineStream() { ::cudaStreamDestroy(stream_); }
  EngineStream(const EngineStream&) = delete;
  EngineStream& operator=(const EngineStream&) = delete;

  [[nodiscard]] cudaStream_t native() const { return stream_; }
  [[nodiscard]] uintptr_t handle() const { return reinterpret_cast<uintptr_t>(stream_); }
  void fill(const DeviceMemory& memory, int value) {
    ASSERT_EQ(::cudaMemsetAsync(memory.data(), value, memory.size_bytes(), stream_), cudaSuccess);
  }
  [[nodiscard]] bool idle() const { return ::cudaStreamQuery(stream_) == cudaSuccess; }

 private:
  cudaStream_t stream_ = nullptr;
};

class CudaDeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto device = CudaDevice::create({.executor = executor_, .ordinal = testing::test_gpu()});
    if (!device) KVBM_SKIP("gpu", device.error().message());
    device_ = *std::move(device);
    ASSERT_EQ(::cudaSetDevice(testing::test_gpu()), cudaSuccess);
  }

  [[nodiscard]] TimePoint soon() const { return executor_.clock().now() + seconds(60); }

  [[nodiscard]] PinnedMemory pinned(uint64_t size_bytes, uint64_t slice_bytes = 256 * kMiB) {
    auto memory = PinnedMemory::create({.executor = executor_,
                                        .pinner = device_->pinner(),
                                        .size_bytes = size_bytes,
                                        .slice_bytes = slice_bytes})
                      .value();
    const Status ready = memory.wait_for(size_bytes, soon());
    EXPECT_TRUE(ready) << ready.error();
    return memory;
  }

  [[nodiscard]] DeviceMemory memory(uint64_t size_bytes) {
    return device_->allocate(size_bytes, 256).value();
  }

  [[nodiscard]] std::vector<StreamRef> own_streams(size_t count) {
    std::vector<StreamRef> streams;
    while (streams.size() < count) streams.push_back(device_->create_stream("own").value());
    return streams;
  }

  [[nodiscard]] static StridedCopyBatch plain_copy(const std::byte* from, std::byte* to,
                                                   uint64_t bytes) {
    return {.pairs = make_block_pairs({BlockId(0)}),
            .pieces = {{.src = from, .dst = to, .bytes = bytes}},
            .bytes_moved = std::make_shared<std::atomic<uint64_t>>(0)};
  }

  /// Of its one piece.
  static void set_block_strides(StridedCopyBatch& batch, uint64_t src, uint64_t dst) {
    StridedPiece piece = batch.pieces[0];
    piece.src_block_stride = src;
    piece.dst_block_stride = dst;
    batch.pieces = {piece};
  }

  [[nodiscard]] static std::vector<std::byte> content(const DeviceMemory& memory) {
    std::vector<std::byte> bytes(memory.size_bytes());
    EXPECT_EQ(::cudaMemcpy(bytes.data(), memory.data(), bytes.size(), cudaMemcpyDeviceToHost),
              cudaSuccess);
    EXPECT_EQ(::cudaStreamSynchronize(nullptr), cudaSuccess);  // for memcheck
    return bytes;
  }

  NullLogSink log_;
  ThreadExecutor executor_{log_};
  std::deque<EngineStream> engines_;  // outlive the device
  std::unique_ptr<CudaDevice> device_;
};

TEST_F(CudaDeviceTest, DescribesTheGpu) {
  const auto all = CudaDevice::find_all().value();
  ASSERT_FALSE(all.empty());
  const auto& gpu = all[static_cast<size_t>(testing::test_gpu())];
  EXPECT_EQ(gpu.name, device_->info().name);
  EXPECT_EQ(device_->info().ordinal, testing::test_gpu());
  EXPECT_GE(gpu.sm, 70);
  EXPECT_GT(gpu.total_bytes, kGiB);
  EXPECT_EQ(gpu.pci_address.size(), 12u);
  EXPECT_GE(gpu.driver_version, 12000);
  EXPECT_EQ(device_->info().kind, DeviceKind::kCuda);
  EXPECT_FALSE(device_->info().capabilities.host_accessible);
  EXPECT_EQ(code_of(CudaDevice::create(
                {.executor = executor_, .ordinal = static_cast<int32_t>(all.size())})),
            ErrorCode::kNotFound);
  EXPECT_EQ(code_of(CudaDevice::create({.executor = executor_, .ordinal = -1})),
            ErrorCode::kNotFound);
}

TEST_F(CudaDeviceTest, LeavesTheContextOfTheCallerAlone) {
  int ordinal = -1;
  ASSERT_EQ(::cudaSetDevice(0), cudaSuccess);
  const StreamRef stream = device_->create_stream("s").value();
  static_cast<void>(memory(64));
  EXPECT_TRUE(device_->synchronize(stream, soon()));
  EXPECT_EQ(::cudaGetDevice(&ordinal), cudaSuccess);
  EXPECT_EQ(ordinal, 0);
  EXPECT_EQ(::cudaGetLastError(), cudaSuccess);
}

TEST_F(CudaDeviceTest, IsMadeWithoutATraceOnTheThread) {
  void* const library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  ASSERT_NE(library, nullptr);
  const auto current = reinterpret_cast<int (*)(void**)>(::dlsym(library, "cuCtxGetCurrent"));
  ASSERT_NE(current, nullptr);
  std::thread([&] {
    void* context = nullptr;
    ASSERT_EQ(current(&context), 0);
    ASSERT_EQ(context, nullptr) << "a thread that has done nothing";
    ASSERT_TRUE(CudaDevice::create({.executor = executor_, .ordinal = testing::test_gpu()}));
    EXPECT_EQ(current(&context), 0);
    EXPECT_EQ(context, nullptr) << "the next call of an engine would be for this GPU";
  }).join();
}

TEST_F(CudaDeviceTest, MemoryOfAllSizesComesBack) {
  const uint64_t before = device_->info().free_bytes;
  for (int round = 0; round < 3; ++round) {
    std::vector<DeviceMemory> all;
    for (const uint64_t size : {kKiB, 3 * kMiB, 64 * kMiB, 65 * kMiB, kGiB}) {
      all.push_back(memory(size));
      const auto bytes = content(all.back());
      EXPECT_TRUE(std::ranges::all_of(bytes, [](std::byte b) { return b == std::byte{0}; }));
      ASSERT_EQ(::cudaMemset(all.back().data(), 0xff, size), cudaSuccess);
    }
    EXPECT_LT(device_->info().free_bytes, before - kGiB);
  }
  EXPECT_GE(device_->info().free_bytes + 256 * kMiB, before);
}

TEST_F(CudaDeviceTest, PinnedMemoryIsCopiedAcrossItsSlices) {
  constexpr uint64_t kSize = 24 * kMiB;
  const PinnedMemory host = pinned(kSize, 2 * kMiB);
  const PinnedMemory back = pinned(kSize, 4 * kMiB);
  Random random(1);
  for (uint64_t at = 0; at < kSize; at += 8) {
    const uint64_t word = random.uniform(UINT64_MAX);
    std::memcpy(host.data() + at, &word, 8);
  }
  const DeviceMemory device = memory(kSize);
  const StreamRef stream = device_->create_stream("s").value();
  const StridedCopyBatch down = plain_copy(host.data(), device.data(), kSize);
  ASSERT_TRUE(device_->copy(stream, down));
  // Rows that straddle every end of a slice.
  StridedCopyBatch up = plain_copy(device.data(), back.data(), 4000);
  set_block_strides(up, 5000, 5000);
  std::vector<BlockId> ids;
  for (uint32_t i = 0; i < kSize / 5000; ++i) ids.emplace_back(i);
  up.pairs = make_block_pairs(ids);
  ASSERT_TRUE(device_->copy(stream, up));
  const Status done = device_->synchronize(stream, soon());
  ASSERT_TRUE(done) << done.error();
  EXPECT_EQ(*down.bytes_moved, kSize);
  EXPECT_EQ(*up.bytes_moved, 4000 * ids.size());
  const std::vector<std::byte> landed = content(device);
  EXPECT_EQ(std::memcmp(landed.data(), host.data(), kSize), 0);
  for (const BlockId id : ids) {
    const uint64_t at = id.value() * 5000;
    ASSERT_EQ(std::memcmp(back.data() + at, host.data() + at, 4000), 0) << id.value();
    ASSERT_EQ(back.data()[at + 4000], std::byte{0}) << id.value();
  }
}

TEST_F(CudaDeviceTest, PinnedMemoryIsUsedBeforeItsLastSliceIsPinned) {
  constexpr uint64_t kSize = 4 * kGiB;
  auto memory = PinnedMemory::create({.executor = executor_,
                                      .pinner = device_->pinner(),
                                      .size_bytes = kSize,
                                      .slice_bytes = 32 * kMiB})
                    .value();
  const DeviceMemory device = this->memory(kMiB);
  const StreamRef stream = device_->create_stream("s").value();
  ASSERT_TRUE(memory.wait_for(kMiB, soon()));
  EXPECT_LT(memory.ready_bytes(), kSize) << "4 GiB were pinned at once";
  std::memset(memory.data(), 0x5a, kMiB);
  ASSERT_TRUE(device_->copy(stream, plain_copy(memory.data(), device.data(), kMiB)));
  ASSERT_TRUE(device_->synchronize(stream, soon()));
  EXPECT_EQ(content(device), std::vector<std::byte>(kMiB, std::byte{0x5a}));
  ASSERT_TRUE(memory.wait_for(kSize, soon()));
}

TEST_F(CudaDeviceTest, MemoryIsUnpinnedAtTheEnd) {
  PinnedMemory first = pinned(4 * kMiB, 2 * kMiB);
  std::byte* const data = first.data();
  cudaPointerAttributes attributes{};
  ASSERT_EQ(::cudaPointerGetAttributes(&attributes, data), cudaSuccess);
  EXPECT_EQ(attributes.type, cudaMemoryTypeHost);
  first = PinnedMemory();
  ASSERT_EQ(::cudaPointerGetAttributes(&attributes, data), cudaSuccess);
  EXPECT_EQ(attributes.type, cudaMemoryTypeUnregistered);
}

TEST_F(CudaDeviceTest, PinnedMemoryOutlivesItsDevice) {
  PinnedMemory host = pinned(4 * kMiB);
  device_.reset();
  host = PinnedMemory();
}

TEST_F(CudaDeviceTest, ARefusedCopyComesBackFromTheCall) {
  const StreamRef stream = device_->create_stream("s").value();
  const DeviceMemory small = memory(65 * kMiB);
  const DeviceMemory large = memory(512 * kMiB);
  // Beyond the end of what it begins in.
  const Status refused =
      device_->copy(stream, plain_copy(small.data(), large.data(), large.size_bytes()));
  EXPECT_EQ(code_of(refused), ErrorCode::kInvalidArgument);
  EXPECT_TRUE(device_->synchronize(stream, soon()));
  EXPECT_EQ(::cudaGetLastError(), cudaSuccess) << "the engine would find our error";
}

TEST_F(CudaDeviceTest, ABatchThatTheDriverRefusesFailsTheEventBehindIt) {
  const StreamRef stream = device_->create_stream("s").value();
  const DeviceMemory small = memory(65 * kMiB);
  const DeviceMemory large = memory(512 * kMiB);
  const PinnedMemory host = pinned(kMiB);
  // Of three runs the last one leads out of what it begins in; the driver has the others by then.
  StridedCopyBatch batch = plain_copy(host.data(), large.data(), kKiB);
  batch.pieces = {{.src = host.data(), .dst = large.data(), .bytes = kKiB},
                  {.src = host.data() + 8 * kKiB, .dst = large.data() + 4 * kKiB, .bytes = kKiB},
                  {.src = small.data(), .dst = large.data() + kMiB, .bytes = 400 * kMiB}};
  const auto moved = batch.bytes_moved;
  ASSERT_TRUE(device_->copy(stream, std::move(batch)));
  EXPECT_EQ(code_of(device_->synchronize(stream, soon())), ErrorCode::kInvalidArgument);
  EXPECT_EQ(*moved, 0u);
  EXPECT_EQ(::cudaGetLastError(), cudaSuccess) << "the engine would find our error";
  EXPECT_TRUE(device_->copy(stream, plain_copy(host.data(), large.data(), kMiB)));
  EXPECT_TRUE(device_->synchronize(stream, soon()));
}

TEST_F(CudaDeviceTest, TheEndOfCopiesIsToldWithoutAnEventToo) {
  const StreamRef stream = device_->create_stream("s").value();
  const PinnedMemory host = pinned(kMiB);
  const DeviceMemory device = memory(kMiB);
  StridedCopyBatch copy = plain_copy(host.data(), device.data(), kMiB);
  EventSource ended = device_->create_event();
  struct End {
    EventSource* source;
    std::atomic<uint64_t> moved{0};
    ~End() { source->signal(); }
  };
  auto end = std::make_shared<End>();
  end->source = &ended;
  const Event event = ended.event();
  copy.bytes_moved = std::shared_ptr<std::atomic<uint64_t>>(end, &end->moved);
  const std::weak_ptr<End> weak = end;
  end.reset();
  ASSERT_TRUE(device_->copy(stream, std::move(copy)));
  EXPECT_TRUE(event.wait(soon()));
  EXPECT_TRUE(weak.expired());
}

TEST_F(CudaDeviceTest, AnyNumberOfTransfersIsOnItsWay) {
  constexpr size_t kStreams = 8;
  constexpr uint32_t kCopies = 4000;  // of each stream
  constexpr uint64_t kBytes = 4096;
  const PinnedMemory host = pinned(kStreams * kCopies * kBytes);
  const DeviceMemory device = memory(kStreams * kCopies * kBytes);
  for (uint64_t at = 0; at < host.size_bytes(); at += 8) std::memcpy(host.data() + at, &at, 8);
  std::vector<StreamRef> streams;
  for (size_t i = 0; i < kStreams; ++i) streams.push_back(device_->create_stream("s").value());
  std::vector<Event> events;
  std::atomic<size_t> told{0};
  for (uint32_t k = 0; k < kCopies; ++k) {
    for (size_t i = 0; i < kStreams; ++i) {
      const uint64_t at = (i * kCopies + k) * kBytes;
      ASSERT_TRUE(
          device_->copy(streams[i], plain_copy(host.data() + at, device.data() + at, kBytes)));
      events.push_back(device_->record(streams[i]));
      events.back().on_done([&told](const Status& status) noexcept { told += status ? 1 : 0; });
    }
  }
  for (const Event& event : events) ASSERT_TRUE(event.wait(soon()));
  for (const StreamRef stream : streams) ASSERT_TRUE(device_->synchronize(stream, soon()));
  EXPECT_EQ(told, kStreams * kCopies);
  const std::vector<std::byte> landed = content(device);
  EXPECT_EQ(std::memcmp(landed.data(), host.data(), landed.size()), 0);
}

// --- copies by kernels
// ---------------------------------------------------------------------------------

/// Memory ends in a turn of a stream's queue, a little later in each round, and is there again when
/// the turn of another stream comes.
TEST_F(CudaDeviceTest, WithoutMemoryAQueueOnTheHostGoesOn) {
  constexpr int kCopies = 4;
  device_ =
      CudaDevice::create({.executor = executor_, .ordinal = testing::test_gpu(), .num_threads = 1})
          .value();
  const PinnedMemory host = pinned(kMiB);
  const DeviceMemory device = memory(kMiB);
  size_t num_refused = 0;
  size_t num_failed = 0;
  for (size_t after = 0; after < 12; ++after) {
    SCOPED_TRACE(std::to_string(after) + " allocations");
    const StreamRef stream = device_->create_stream("without").value();
    const StreamRef other = device_->create_stream("other").value();
    EventSource first = device_->create_event();
    EventSource second = device_->create_event();
    std::optional<testing::AllocationFailure> no_memory;
    Latch ends;
    std::atomic<int> tasks = 0;
    std::vector<Event> events;
    ASSERT_TRUE(device_->wait(stream, first.event()));
    ASSERT_TRUE(device_->launch(stream, [&]() -> Status {
      no_memory.emplace(after);
      ends.set();
      return {};
    }));
    for (int i = 0; i < kCopies; ++i) {
      StridedCopyBatch copy = plain_copy(host.data(), device.data(), kMiB);
      if (i % 2 == 1) copy.method = CopyMethod::kKernel;
      ASSERT_TRUE(device_->copy(stream, std::move(copy)));
      events.push_back(device_->record(stream));
    }
    ASSERT_TRUE(device_->launch(stream, [&]() -> Status {
      ++tasks;
      return {};
    }));
    ASSERT_TRUE(device_->wait(stream, second.event()));
    events.push_back(device_->record(stream));
    first.signal();
    ASSERT_TRUE(ends.block_until(soon()));
    second.signal();
    ASSERT_TRUE(device_->launch(other, [&]() -> Status {
      num_refused += no_memory->num_refused();
      no_memory.reset();  // of the device's one thread
      return {};
    }));
    for (const Event& event : events) {
      if (const Status outcome = event.wait(soon()); !outcome) {
        ++num_failed;
        ASSERT_NE(code_of(outcome), ErrorCode::kTimeout);
      }
    }
    static_cast<void>(device_->synchronize(stream, soon()));
    EXPECT_EQ(tasks, 1);
    ASSERT_TRUE(device_->synchronize(other, soon()));
    // As good as before.
    std::memset(host.data(), static_cast<int>(after + 1), kMiB);
    ASSERT_TRUE(device_->copy(stream, plain_copy(host.data(), device.data(), kMiB)));
    ASSERT_TRUE(device_->synchronize(stream, soon()));
    ASSERT_EQ(content(device), std::vector<std::byte>(kMiB, std::byte(after + 1)));
    ASSERT_TRUE(device_->destroy_stream(stream));
    ASSERT_TRUE(device_->destroy_stream(other));
  }
  EXPECT_GT(num_refused, 0u);
  EXPECT_LT(num_failed, 12u * (kCopies + 1));
}

TEST_F(CudaDeviceTest, AKernelKeepsItsPace) {
  constexpr uint64_t kSize = 64 * kMiB;
  constexpr uint64_t kPace = 4'000'000'000;  // bytes per second, fewer than a link takes
  const PinnedMemory host = pinned(kSize);
  const DeviceMemory device = memory(kSize);
  const StreamRef stream = device_->create_stream("s").value();
  const BlockPairList one = make_block_pairs({BlockId(0)});
  const auto start = std::chrono::steady_clock::now();
  ASSERT_TRUE(
      device_->copy(stream, {.pairs = one,
                             .pieces = {{.src = device.data(), .dst = host.data(), .bytes = kSize}},
                             .method = CopyMethod::kKernel,
                             .max_bytes_per_second = kPace}));
  ASSERT_TRUE(device_->synchronize(stream, soon()));
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  EXPECT_GT(took.count(), 0.9 * static_cast<double>(kSize) / static_cast<double>(kPace));
}

TEST_F(CudaDeviceTest, KernelsOnTwoStreamsKeepThePaceOfOne) {
  constexpr uint64_t kSize = 64 * kMiB;
  constexpr uint64_t kPace = 4'000'000'000;
  const PinnedMemory host = pinned(2 * kSize);
  const DeviceMemory device = memory(2 * kSize);
  const std::vector<StreamRef> streams = own_streams(2);
  const BlockPairList one = make_block_pairs({BlockId(0)});
  for (uint64_t at = 0; at < 2 * kSize; at += kSize) {
    ASSERT_EQ(::cudaMemset(device.data() + at, at == 0 ? 1 : 2, kSize), cudaSuccess);
  }
  ASSERT_EQ(::cudaDeviceSynchronize(), cudaSuccess);
  const auto start = std::chrono::steady_clock::now();
  for (uint64_t i = 0; i < 2; ++i) {
    ASSERT_TRUE(device_->copy(streams[i], {.pairs = one,
                                           .pieces = {{.src = device.data() + i * kSize,
                                                       .dst = host.data() + i * kSize,
                                                       .bytes = kSize}},
                                           .method = CopyMethod::kKernel,
                                           .max_bytes_per_second = kPace}));
  }
  for (const StreamRef stream : streams) ASSERT_TRUE(device_->synchronize(stream, soon()));
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  EXPECT_GT(took.count(), 0.9 * static_cast<double>(2 * kSize) / static_cast<double>(kPace));
  const std::span<const std::byte> landed(host.data(), 2 * kSize);
  EXPECT_EQ(std::ranges::count(landed, std::byte{1}), kSize);
  EXPECT_EQ(std::ranges::count(landed, std::byte{2}), kSize);
}

TEST_F(CudaDeviceTest, KernelsGatherAndScatterLayersInPinnedMemory) {
  ASSERT_TRUE(device_->info().capabilities.kernel_copies);
  constexpr uint64_t kChunk = 4 * kKiB;
  constexpr uint32_t kLayers = 200;  // more than one launch
  constexpr uint32_t kBlocks = 24;
  constexpr uint64_t kSize = kChunk * kLayers * kBlocks;
  const PinnedMemory host = pinned(kSize, 2 * kMiB);  // runs that straddle the ends of slices
  const PinnedMemory back = pinned(kSize, 4 * kMiB);
  Random random(3);
  for (uint64_t at = 0; at < kSize; at += 8) {
    const uint64_t word = random.uniform(UINT64_MAX);
    std::memcpy(host.data() + at, &word, 8);
  }
  const DeviceMemory device = memory(kSize);
  std::vector<BlockId> from;
  std::vector<BlockId> to;
  for (uint32_t i = 0; i < kBlocks; ++i) {
    from.emplace_back(i);
    to.emplace_back(kBlocks - 1 - i);
  }
  // Blocks outermost in the host's memory, layers on the GPU.
  StridedCopyBatch down{.pairs = make_block_pairs(from, to),
                        .method = CopyMethod::kKernel,
                        .bytes_moved = std::make_shared<std::atomic<uint64_t>>(0)};
  StridedCopyBatch up{.pairs = make_block_pairs(to, from),
                      .method = CopyMethod::kKernel,
                      .max_ctas = 2,
                      .bytes_moved = std::make_shared<std::atomic<uint64_t>>(0)};
  std::vector<StridedPiece> down_pieces;
  std::vector<StridedPiece> up_pieces;
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    const uint64_t in_block = layer * kChunk;
    const uint64_t in_layer = layer * kBlocks * kChunk;
    down_pieces.push_back({.src = host.data() + in_block,
                           .dst = device.data() + in_layer,
                           .src_block_stride = kLayers * kChunk,
                           .dst_block_stride = kChunk,
                           .bytes = kChunk});
    up_pieces.push_back({.src = device.data() + in_layer,
                         .dst = back.data() + in_block,
                         .src_block_stride = kChunk,
                         .dst_block_stride = kLayers * kChunk,
                         .bytes = kChunk});
  }
  down.pieces = std::move(down_pieces);
  up.pieces = std::move(up_pieces);
  const StreamRef stream = device_->create_stream("s").value();
  ASSERT_TRUE(device_->copy(stream, down));
  ASSERT_TRUE(device_->copy(stream, up));
  const Status done = device_->synchronize(stream, soon());
  ASSERT_TRUE(done) << done.error();
  EXPECT_EQ(*down.bytes_moved, kSize);
  EXPECT_EQ(*up.bytes_moved, kSize);
  EXPECT_EQ(std::memcmp(back.data(), host.data(), kSize), 0);
  const std::vector<std::byte> landed = content(device);
  for (uint32_t i = 0; i < kBlocks; ++i) {
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      ASSERT_EQ(std::memcmp(landed.data() + (layer * kBlocks + to[i].value()) * kChunk,
                            host.data() + (i * kLayers + layer) * kChunk, kChunk),
                0)
          << i << " " << layer;
    }
  }
}

TEST_F(CudaDeviceTest, AKernelIsGivenNoMemoryThatItCannotReach) {
  const StreamRef stream = device_->create_stream("s").value();
  const DeviceMemory device = memory(65 * kMiB);
  // What follows the pinned part is pageable for certain.
  const HostPages host = HostPages::map({.size_bytes = 128 * kMiB, .alignment = 4096}).value();
  ASSERT_TRUE(device_->pinner()->pin(host.data(), 4 * kMiB));
  std::byte* const pageable = host.data() + 8 * kMiB;
  const auto refused = [&](StridedCopyBatch batch) {
    batch.method = CopyMethod::kKernel;
    return code_of(device_->copy(stream, std::move(batch)));
  };
  EXPECT_EQ(refused(plain_copy(pageable, device.data(), kMiB)), ErrorCode::kInvalidArgument);
  EXPECT_EQ(refused(plain_copy(device.data(), pageable, kMiB)), ErrorCode::kInvalidArgument);
  EXPECT_EQ(refused(plain_copy(device.data(), host.data(), 64 * kMiB)),
            ErrorCode::kInvalidArgument);
  // A list that leads out of it, whose first id does not.
  StridedCopyBatch beyond = plain_copy(device.data(), host.data(), kKiB);
  beyond.pairs = make_block_pairs({BlockId(0), BlockId(1)}, {BlockId(0), BlockId(100)});
  set_block_strides(beyond, kKiB, kMiB);
  EXPECT_EQ(refused(beyond), ErrorCode::kInvalidArgument);
  StridedCopyBatch huge = plain_copy(device.data(), device.data() + 1, 1);
  StridedPiece piece = huge.pieces[0];
  piece.axes[0] = {.count = uint64_t{1} << 31, .src_stride = 0, .dst_stride = 0};
  huge.pieces = {piece};
  EXPECT_EQ(refused(huge), ErrorCode::kInvalidArgument);
  EXPECT_TRUE(device_->synchronize(stream, soon()));
  EXPECT_EQ(::cudaGetLastError(), cudaSuccess) << "the engine would find our error";
  EXPECT_TRUE(device_->copy(stream, plain_copy(host.data(), device.data(), 4 * kMiB)));
  EXPECT_TRUE(device_->synchronize(stream, soon())) << "the context is lost";
  device_->pinner()->unpin(host.data(), 4 * kMiB);
}

/// `count` blocks of 16 bytes, the first of them the last.
StridedCopyBatch reversed_by_kernel(const std::byte* from, std::byte* to, uint32_t count) {
  std::vector<BlockId> sources;
  std::vector<BlockId> destinations;
  for (uint32_t i = 0; i < count; ++i) {
    sources.emplace_back(i);
    destinations.emplace_back(count - 1 - i);
  }
  return {
      .pairs = make_block_pairs(sources, destinations),
      .pieces =
          {{.src = from, .dst = to, .src_block_stride = 16, .dst_block_stride = 16, .bytes = 16}},
      .method = CopyMethod::kKernel,
      .bytes_moved = std::make_shared<std::atomic<uint64_t>>(0)};
}

TEST_F(CudaDeviceTest, KernelCopiesHaveTheirIdsWhateverTheirNumber) {
  // Few travel with a launch (476), or with two; from 513 on they lie in memory.
  constexpr uint32_t kMost = 1000;
  const PinnedMemory host = pinned(kMost * 16);
  for (uint64_t i = 0; i < kMost; ++i) std::memcpy(host.data() + 16 * i, &i, 8);
  const StreamRef stream = device_->create_stream("s").value();
  for (const uint32_t count : {1U, 2U, 476U, 477U, 512U, 513U, kMost}) {
    const DeviceMemory landed = memory(kMost * 16);
    StridedCopyBatch batch = reversed_by_kernel(host.data(), landed.data(), count);
    const auto moved = batch.bytes_moved;
    ASSERT_TRUE(device_->copy(stream, std::move(batch)));
    ASSERT_TRUE(device_->synchronize(stream, soon()));
    EXPECT_EQ(*moved, count * 16);
    const std::vector<std::byte> bytes = content(landed);
    for (uint64_t i = 0; i < kMost; ++i) {
      uint64_t found = 0;
      std::memcpy(&found, bytes.data() + 16 * i, 8);
      ASSERT_EQ(found, i < count ? count - 1 - i : 0) << i << " of " << count;
    }
  }
}

TEST_F(CudaDeviceTest, LargeBlocksOnTheDeviceHaveTheirIdsInAnyNumber) {
  constexpr uint32_t kCount = 1100;
  constexpr uint64_t kBlock = 64 * kKiB;
  const DeviceMemory a = memory(kCount * kBlock);
  const DeviceMemory b = memory(kCount * kBlock);
  std::vector<std::byte> image(kCount * kBlock);
  for (uint64_t at = 0; at < image.size(); at += 8) std::memcpy(image.data() + at, &at, 8);
  ASSERT_EQ(::cudaMemcpy(a.data(), image.data(), image.size(), cudaMemcpyHostToDevice),
            cudaSuccess);
  StridedCopyBatch batch = reversed_by_kernel(a.data(), b.data(), kCount);
  batch.pieces = {{.src = a.data(),
                   .dst = b.data(),
                   .src_block_stride = kBlock,
                   .dst_block_stride = kBlock,
                   .bytes = kBlock}};
  const auto moved = batch.bytes_moved;
  const StreamRef stream = device_->create_stream("s").value();
  ASSERT_TRUE(device_->copy(stream, std::move(batch)));
  ASSERT_TRUE(device_->synchronize(stream, soon()));
  EXPECT_EQ(*moved, kCount * kBlock);
  const std::vector<std::byte> landed = content(b);
  for (uint64_t i = 0; i < kCount; ++i) {
    ASSERT_EQ(
        std::memcmp(landed.data() + i * kBlock, image.data() + (kCount - 1 - i) * kBlock, kBlock),
        0)
        << i;
  }
}

TEST_F(CudaDeviceTest, AnEngineStreamTakesAnyNumberOfKernelCopiesOfFewIds) {
  const EngineStream& engine = engines_.emplace_back();
  const StreamRef stream = device_->adopt_stream(engine.handle(), "engine").value();
  const DeviceMemory a = memory(512 * 16);
  const DeviceMemory b = memory(512 * 16);
  EventSource gate = device_->create_event();
  ASSERT_TRUE(device_->wait(stream, gate.event()));
  for (int i = 0; i < 150; ++i) {  // more ids than there is room for in memory
    ASSERT_TRUE(device_->copy(stream, reversed_by_kernel(a.data(), b.data(), 512))) << i;
  }
  gate.signal();
  EXPECT_TRUE(device_->synchronize(stream, soon()));
}

TEST_F(CudaDeviceTest, KernelCopiesOfMoreIdsThanThereIsRoomForGoOnInOrder) {
  constexpr uint32_t kCount = 300'001;  // an odd number of reversals ends reversed
  constexpr int kRounds = 5;
  const PinnedMemory host = pinned(kCount * 16);
  for (uint64_t i = 0; i < kCount; ++i) std::memcpy(host.data() + 16 * i, &i, 8);
  const DeviceMemory a = memory(kCount * 16);
  const DeviceMemory b = memory(kCount * 16);
  const StreamRef stream = device_->create_stream("s").value();
  std::vector<std::shared_ptr<std::atomic<uint64_t>>> moved;
  const std::byte* last = host.data();
  for (int round = 0; round < kRounds; ++round) {
    std::byte* const next = round % 2 == 0 ? a.data() : b.data();
    StridedCopyBatch batch = reversed_by_kernel(last, next, kCount);
    moved.push_back(batch.bytes_moved);
    ASSERT_TRUE(device_->copy(stream, std::move(batch)));
    last = next;
  }
  const Event event = device_->record(stream);
  EXPECT_TRUE(event.wait(soon()));
  for (const auto& bytes : moved) EXPECT_EQ(*bytes, kCount * 16);
  const std::vector<std::byte> landed = content(a);
  for (uint64_t i = 0; i < kCount; ++i) {
    uint64_t found = 0;
    std::memcpy(&found, landed.data() + 16 * i, 8);
    ASSERT_EQ(found, kCount - 1 - i);
  }
}

TEST_F(CudaDeviceTest, ADeviceThatIsDestroyedDropsKernelCopiesThatWaitForRoom) {
  constexpr uint32_t kCount = 300'000;
  const DeviceMemory a = memory(kCount * 16);
  const DeviceMemory b = memory(kCount * 16);
  const StreamRef stream = device_->create_stream("s").value();
  std::vector<std::weak_ptr<std::atomic<uint64_t>>> moved;
  for (int round = 0; round < 20; ++round) {
    StridedCopyBatch batch = reversed_by_kernel(a.data(), b.data(), kCount);
    moved.push_back(batch.bytes_moved);
    ASSERT_TRUE(device_->copy(stream, std::move(batch)));
  }
  const Event event = device_->record(stream);
  device_.reset();
  EXPECT_TRUE(event.done());
  for (const auto& counter : moved) EXPECT_TRUE(counter.expired());
}

TEST_F(CudaDeviceTest, AnEngineStreamRefusesKernelCopiesOfMoreIdsThanThereIsRoomFor) {
  constexpr uint32_t kCount = 60'000;
  const EngineStream& engine = engines_.emplace_back();
  const StreamRef stream = device_->adopt_stream(engine.handle(), "engine").value();
  const DeviceMemory a = memory(kCount * 16);
  const DeviceMemory b = memory(kCount * 16);
  EventSource gate = device_->create_event();
  ASSERT_TRUE(device_->wait(stream, gate.event()));
  EXPECT_TRUE(device_->copy(stream, reversed_by_kernel(a.data(), b.data(), kCount)));
  StridedCopyBatch second = reversed_by_kernel(a.data(), b.data(), kCount);
  const auto moved = second.bytes_moved;
  EXPECT_EQ(code_of(device_->copy(stream, std::move(second))), ErrorCode::kExhausted);
  EXPECT_EQ(moved.use_count(), 1) << "a refused call left a trace";
  gate.signal();
  ASSERT_TRUE(device_->synchronize(stream, soon()));
  EXPECT_TRUE(device_->copy(stream, reversed_by_kernel(a.data(), b.data(), kCount)));
  EXPECT_TRUE(device_->synchronize(stream, soon()));
}

TEST_F(CudaDeviceTest, KernelCopiesGoOnWhileAnEngineStreamWaitsForTheHost) {
  // A worker has one such stream. Ours are more than there are hardware queues, and made before: a
  // driver may not come back from making one while something waits.
  const std::vector<StreamRef> own = own_streams(32);
  EventSource gate = device_->create_event();
  const EngineStream& engine = engines_.emplace_back();
  const StreamRef waiting = device_->adopt_stream(engine.handle(), "engine").value();
  ASSERT_TRUE(device_->wait(waiting, gate.event()));
  const DeviceMemory a = memory(kMiB);
  const DeviceMemory b = memory(kMiB);
  for (const StreamRef stream : own) {
    ASSERT_TRUE(device_->copy(stream, reversed_by_kernel(a.data(), b.data(), 1000)));
    EXPECT_TRUE(device_->synchronize(stream, executor_.clock().now() + seconds(10)));
  }
  EXPECT_FALSE(engine.idle());
  gate.signal();
  EXPECT_EQ(::cudaStreamSynchronize(engine.native()), cudaSuccess);
}

// --- copies through the ring
// ---------------------------------------------------------------------------

/// Blocks of `kChunks` runs: apart on the GPU, one after another on the host.
class CudaRingTest : public CudaDeviceTest {
 protected:
  static constexpr uint64_t kRun = 1000;  // bytes; accesses of 8
  static constexpr uint32_t kChunks = 7;
  static constexpr uint64_t kBlock = kRun * kChunks;

  /// Instead of the device of the fixture.
  void open(uint64_t ring_bytes) {
    device_.reset();
    device_ = CudaDevice::create(
                  {.executor = executor_, .ordinal = testing::test_gpu(), .ring_bytes = ring_bytes})
                  .value();
  }

  static void fill(const PinnedMemory& memory, uint64_t seed) {
    Random random(seed);
    for (uint64_t at = 0; at + 8 <= memory.size_bytes(); at += 8) {
      const uint64_t word = random.uniform(UINT64_MAX);
      std::memcpy(memory.data() + at, &word, 8);
    }
  }

  /// Block i of one side to block i of the other, in any order, of `count` blocks from the bases
  /// on.
  static StridedCopyBatch ring_copy(std::byte* host, std::byte* device, uint32_t count,
                                    bool to_host) {
    std::vector<BlockId> ids;
    for (uint32_t i = 0; i < count; ++i) ids.emplace_back(i);
    Random(count).shuffle(std::span(ids));
    const StridedAxis axis = {.count = kChunks,
                              .src_stride = to_host ? count * kRun : kRun,
                              .dst_stride = to_host ? kRun : count * kRun};
    return {.pairs = make_block_pairs(ids),
            .pieces = {{.src = to_host ? device : host,
                        .dst = to_host ? host : device,
                        .src_block_stride = to_host ? kRun : kBlock,
                        .dst_block_stride = to_host ? kBlock : kRun,
                        .bytes = kRun,
                        .axes = {{{}, {}, {}, axis}}}},
            .method = CopyMethod::kRing,
            .bytes_moved = std::make_shared<std::atomic<uint64_t>>(0)};
  }

  [[nodiscard]] Status copy(StreamRef stream, StridedCopyBatch batch) {
    return device_->copy(stream, std::move(batch));
  }
};

TEST_F(CudaRingTest, BlocksGoDownAndUpAcrossTheSlicesOfPinnedMemory) {
  constexpr uint32_t kCount = 4000;
  open(kMiB);  // 74 blocks in a slot
  const PinnedMemory host = pinned(kCount * kBlock, 2 * kMiB);
  const PinnedMemory back = pinned(kCount * kBlock, 4 * kMiB);
  fill(host, 1);
  const DeviceMemory device = memory(kCount * kBlock);
  const StreamRef stream = device_->create_stream("s").value();
  StridedCopyBatch down = ring_copy(host.data(), device.data(), kCount, false);
  StridedCopyBatch up = ring_copy(back.data(), device.data(), kCount, true);
  const auto moved_down = down.bytes_moved;
  const auto moved_up = up.bytes_moved;
  ASSERT_TRUE(copy(stream, std::move(down)));
  ASSERT_TRUE(copy(stream, std::move(up)));
  ASSERT_TRUE(device_->synchronize(stream, soon()));
  EXPECT_EQ(*moved_down, kCount * kBlock);
  EXPECT_EQ(*moved_up, kCount * kBlock);
  EXPECT_EQ(std::memcmp(back.data(), host.data(), kCount * kBlock), 0);
  const std::vector<std::byte> landed = content(device);
  for (uint32_t i = 0; i < kCount; ++i) {
    for (uint32_t k = 0; k < kChunks; ++k) {
      ASSERT_EQ(std::memcmp(landed.data() + (uint64_t{k} * kCount + i) * kRun,
                            host.data() + i * kBlock + k * kRun, kRun),
                0)
          << "chunk " << k << " of block " << i;
    }
  }
}

TEST_F(CudaRingTest, ManyStreamsAndThreadsShareItBothWaysAtATime) {
  constexpr uint32_t kCount = 300;
  constexpr size_t kThreads = 4;
  constexpr int kRounds = 40;
  open(256 * kKiB);
  const uint64_t part = kCount * kBlock;
  const PinnedMemory host = pinned(kThreads * part);
  const PinnedMemory back = pinned(kThreads * part);
  fill(host, 2);
  const DeviceMemory device = memory(kThreads * part);
  std::atomic<int> good{0};
  std::vector<std::thread> threads;
  for (size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      const StreamRef down = device_->create_stream("down").value();
      const StreamRef up = device_->create_stream("up").value();
      std::byte* const here = back.data() + t * part;
      for (int round = 0; round < kRounds; ++round) {
        std::memset(here, 0, part);
        bool right = copy(down, ring_copy(host.data() + t * part, device.data() + t * part, kCount,
                                          false)) &&
                     device_->wait(up, device_->record(down)) &&
                     copy(up, ring_copy(here, device.data() + t * part, kCount, true));
        right = device_->synchronize(up, soon()) && right;
        good += right && std::memcmp(here, host.data() + t * part, part) == 0 ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(good, kThreads * kRounds);
}

/// Holds a stream of the GPU, until it is let go, by a function of the host.
class Plug {
 public:
  explicit Plug(cudaStream_t stream) {
    EXPECT_EQ(::cudaLaunchHostFunc(
                  stream,
                  [](void* open) {
                    while (!static_cast<std::atomic<bool>*>(open)->load()) {
                      std::this_thread::sleep_for(std::chrono::microseconds(100));
                    }
                  },
                  &open_),
              cudaSuccess);
  }
  ~Plug() { pull(); }
  Plug(const Plug&) = delete;
  Plug& operator=(const Plug&) = delete;
  void pull() { open_ = true; }

 private:
  std::atomic<bool> open_{false};
};

TEST_F(CudaRingTest, ACopyBehindALateEventHoldsUpNoOther) {
  constexpr uint32_t kCount = 300;
  const PinnedMemory host = pinned(kCount * kBlock);
  const PinnedMemory back = pinned(kCount * kBlock);
  fill(host, 3);
  const DeviceMemory late_device = memory(kCount * kBlock);
  const DeviceMemory device = memory(kCount * kBlock);
  const EngineStream& engine = engines_.emplace_back();
  const StreamRef adopted = device_->adopt_stream(engine.handle(), "engine").value();
  const StreamRef behind_gpu = device_->create_stream("behind the GPU").value();
  const StreamRef behind_host = device_->create_stream("behind the host").value();
  const StreamRef stream = device_->create_stream("s").value();
  EventSource gate = device_->create_event();
  Plug plug(engine.native());
  ASSERT_TRUE(copy(adopted, plain_copy(late_device.data(), late_device.data() + 64, 64)));
  ASSERT_TRUE(device_->wait(behind_gpu, device_->record(adopted)));
  ASSERT_TRUE(device_->wait(behind_host, gate.event()));
  StridedCopyBatch first = ring_copy(host.data(), late_device.data(), kCount, false);
  StridedCopyBatch second = ring_copy(back.data(), device.data(), kCount, true);
  const auto moved = first.bytes_moved;
  ASSERT_TRUE(copy(behind_gpu, std::move(first)));
  ASSERT_TRUE(copy(behind_host, std::move(second)));
  const Event late = device_->record(behind_gpu);
  const Event later = device_->record(behind_host);
  for (int round = 0; round < 20; ++round) {
    ASSERT_TRUE(copy(stream, ring_copy(host.data(), device.data(), kCount, false)));
    ASSERT_TRUE(copy(stream, ring_copy(back.data(), device.data(), kCount, true)));
    ASSERT_TRUE(device_->synchronize(stream, executor_.clock().now() + seconds(10))) << round;
  }
  EXPECT_EQ(std::memcmp(back.data(), host.data(), kCount * kBlock), 0);
  EXPECT_FALSE(late.done());
  EXPECT_EQ(*moved, 0u);
  std::memset(back.data(), 0, kCount * kBlock);
  plug.pull();
  gate.signal();
  EXPECT_TRUE(late.wait(soon()));
  EXPECT_TRUE(later.wait(soon()));
  EXPECT_EQ(*moved, kCount * kBlock);
  EXPECT_EQ(std::memcmp(back.data(), host.data(), kCount * kBlock), 0);
}

TEST_F(CudaRingTest, BlocksOfASlotAndMoreIdsThanThereIsRoomForGoThrough) {
  constexpr uint64_t kSlot = 8 * kKiB;
  open(2 * kSlot);
  const PinnedMemory host = pinned(4 * kMiB);
  const PinnedMemory back = pinned(4 * kMiB);
  fill(host, 4);
  const DeviceMemory device = memory(4 * kMiB);
  const StreamRef stream = device_->create_stream("s").value();
  const auto there_and_back = [&](uint64_t block_bytes, uint32_t count) {
    std::vector<BlockId> ids;
    for (uint32_t i = 0; i < count; ++i) ids.emplace_back(count - 1 - i);
    StridedCopyBatch batch{.pairs = make_block_pairs(ids),
                           .pieces = {{.src = host.data(),
                                       .dst = device.data(),
                                       .src_block_stride = block_bytes,
                                       .dst_block_stride = block_bytes,
                                       .bytes = block_bytes}},
                           .method = CopyMethod::kRing};
    Status copied = copy(stream, batch);
    if (!copied) return copied;
    batch.pieces = {{.src = device.data(),
                     .dst = back.data(),
                     .src_block_stride = block_bytes,
                     .dst_block_stride = block_bytes,
                     .bytes = block_bytes}};
    copied = copy(stream, std::move(batch));
    if (!copied) return copied;
    return device_->synchronize(stream, soon());
  };
  ASSERT_TRUE(there_and_back(kSlot, 500));
  EXPECT_EQ(std::memcmp(back.data(), host.data(), 500 * kSlot), 0);
  std::memset(back.data(), 0, back.size_bytes());
  ASSERT_TRUE(there_and_back(16, 200'000));
  EXPECT_EQ(std::memcmp(back.data(), host.data(), 200'000 * 16), 0);
  EXPECT_EQ(code_of(there_and_back(kSlot + 1, 1)), ErrorCode::kInvalidArgument);
}

TEST_F(CudaRingTest, WhatIsNoImageBetweenHostAndGpuIsRefused) {
  const PinnedMemory host = pinned(kMiB);
  const DeviceMemory device = memory(kMiB);
  const StreamRef stream = device_->create_stream("s").value();
  const auto refused = [&](StreamRef on, StridedCopyBatch batch) {
    batch.method = CopyMethod::kRing;
    return code_of(copy(on, std::move(batch)));
  };
  StridedPiece apart = {.src = device.data(), .dst = host.data(), .bytes = 64, .axes = {}};
  apart.axes[0] = {.count = 2, .src_stride = 64, .dst_stride = 128};
  StridedCopyBatch gaps = plain_copy(device.data(), host.data(), 64);
  gaps.pieces = {apart};
  EXPECT_EQ(refused(stream, gaps), ErrorCode::kInvalidArgument);
  EXPECT_EQ(refused(stream, plain_copy(device.data(), device.data() + 64, 64)),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(refused(stream, plain_copy(host.data(), host.data() + 64, 64)),
            ErrorCode::kInvalidArgument);
  std::vector<std::byte> pageable(64);
  EXPECT_EQ(refused(stream, plain_copy(device.data(), pageable.data(), 64)),
            ErrorCode::kInvalidArgument);
  const EngineStream& engine = engines_.emplace_back();
  const StreamRef adopted = device_->adopt_stream(engine.handle(), "engine").value();
  EXPECT_EQ(refused(adopted, plain_copy(device.data(), host.data(), 64)),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(::cudaGetLastError(), cudaSuccess) << "the engine would find our error";
  EXPECT_TRUE(copy(stream, ring_copy(host.data(), device.data(), 10, true)));
  EXPECT_TRUE(device_->synchronize(stream, soon()));
}

TEST_F(CudaRingTest, ADriverThatRefusesInTheMiddleFailsTheCopyAndNotTheRing) {
  constexpr uint32_t kCount = 2000;
  open(kMiB);
  const DeviceMemory device = memory(kCount * kBlock);
  const PinnedMemory host = pinned(kCount * kBlock);
  const PinnedMemory back = pinned(kCount * kBlock);
  fill(host, 5);
  const StreamRef stream = device_->create_stream("s").value();
  // Pinned at both ends, and not in between.
  const HostPages holed = HostPages::map({.size_bytes = 16 * kMiB}).value();
  std::byte* const behind = holed.data() + 12 * kMiB;
  ASSERT_EQ(::cudaHostRegister(holed.data(), 4 * kMiB, cudaHostRegisterDefault), cudaSuccess);
  ASSERT_EQ(::cudaHostRegister(behind, 4 * kMiB, cudaHostRegisterDefault), cudaSuccess);
  StridedCopyBatch bad = ring_copy(holed.data(), device.data(), kCount, false);
  std::vector<BlockId> ids;  // one after another: a group begins in there and ends outside
  for (uint32_t i = 0; i < kCount; ++i) ids.emplace_back(i);
  bad.pairs = make_block_pairs(ids);
  const auto moved = bad.bytes_moved;
  Status outcome = copy(stream, std::move(bad));
  if (outcome) outcome = device_->synchronize(stream, soon());
  EXPECT_FALSE(outcome);
  EXPECT_EQ(*moved, 0u);
  EXPECT_EQ(::cudaGetLastError(), cudaSuccess) << "the engine would find our error";
  ASSERT_TRUE(copy(stream, ring_copy(host.data(), device.data(), kCount, false)));
  ASSERT_TRUE(copy(stream, ring_copy(back.data(), device.data(), kCount, true)));
  EXPECT_TRUE(device_->synchronize(stream, soon()));
  EXPECT_EQ(std::memcmp(back.data(), host.data(), kCount * kBlock), 0);
  EXPECT_EQ(::cudaHostUnregister(behind), cudaSuccess);
  EXPECT_EQ(::cudaHostUnregister(holed.data()), cudaSuccess);
}

TEST_F(CudaRingTest, ADeviceThatIsDestroyedDropsCopiesThatWaitForTheirTurn) {
  constexpr uint32_t kCount = 300;
  open(256 * kKiB);
  const PinnedMemory host = pinned(kCount * kBlock);
  const DeviceMemory device = memory(kCount * kBlock);
  std::vector<std::weak_ptr<std::atomic<uint64_t>>> moved;
  std::vector<Event> events;
  for (int i = 0; i < 4; ++i) {
    const StreamRef stream = device_->create_stream("s").value();
    for (int round = 0; round < 20; ++round) {
      StridedCopyBatch batch = ring_copy(host.data(), device.data(), kCount, i % 2 == 0);
      moved.push_back(batch.bytes_moved);
      ASSERT_TRUE(copy(stream, std::move(batch)));
    }
    events.push_back(device_->record(stream));
  }
  device_.reset();
  for (const Event& event : events) EXPECT_TRUE(event.done());
  for (const auto& counter : moved) EXPECT_TRUE(counter.expired());
}

TEST_F(CudaRingTest, WithoutMemoryForItThereIsNone) {
  const PinnedMemory host = pinned(kMiB);
  for (const uint64_t bytes : {uint64_t{0}, uint64_t{1} << 50}) {
    open(bytes);
    const DeviceCapabilities capabilities = device_->info().capabilities;
    EXPECT_FALSE(capabilities.ring_copies);
    EXPECT_EQ(capabilities.ring_is_missing, bytes > 0);
    EXPECT_EQ(::cudaGetLastError(), cudaSuccess);
    const DeviceMemory device = memory(kMiB);
    const StreamRef stream = device_->create_stream("s").value();
    EXPECT_EQ(code_of(copy(stream, ring_copy(host.data(), device.data(), 10, true))),
              ErrorCode::kUnsupported);
    EXPECT_TRUE(copy(stream, plain_copy(host.data(), device.data(), kMiB)));
    EXPECT_TRUE(device_->synchronize(stream, soon()));
  }
  EXPECT_EQ(code_of(CudaDevice::create(
                {.executor = executor_, .ordinal = testing::test_gpu(), .ring_bytes = 4096})),
            ErrorCode::kInvalidArgument);
}

// --- adopted streams
// -------------------------------------------------------------------------------

TEST_F(CudaDeviceTest, AnEngineStreamHasOneNameUntilItIsLetGo) {
  const EngineStream& engine = engines_.emplace_back();
  const EngineStream& other = engines_.emplace_back();
  const StreamRef stream = device_->adopt_stream(engine.handle(), "engine").value();
  EXPECT_EQ(device_->adopt_stream(engine.handle(), "again").value(), stream);
  EXPECT_NE(device_->adopt_stream(other.handle(), "other").value(), stream);
  EXPECT_NE(device_->adopt_stream(0, "default").value(), stream);
  ASSERT_TRUE(device_->destroy_stream(stream));
  EXPECT_EQ(code_of(device_->wait(stream, Event())), ErrorCode::kNotFound);
  EXPECT_NE(device_->adopt_stream(engine.handle(), "engine").value(), stream);
  EXPECT_TRUE(engine.idle()) << "the native stream is still there";
}

TEST_F(CudaDeviceTest, OurWorkOnAnEngineStreamIsInTheOrderOfTheEngine) {
  EngineStream& engine = engines_.emplace_back();
  const StreamRef stream = device_->adopt_stream(engine.handle(), "engine").value();
  constexpr uint64_t kSize = 32 * kMiB;
  const DeviceMemory device = memory(kSize);
  const PinnedMemory host = pinned(kSize);
  for (int round = 1; round < 20; ++round) {
    engine.fill(device, round);
    ASSERT_TRUE(device_->copy(stream, plain_copy(device.data(), host.data(), kSize)));
    const Event copied = device_->record(stream);
    engine.fill(device, 0xee);
    ASSERT_TRUE(copied.wait(soon()));
    ASSERT_EQ(host.data()[0], static_cast<std::byte>(round));
    ASSERT_EQ(host.data()[kSize - 1], static_cast<std::byte>(round));
  }
  EXPECT_EQ(::cudaStreamSynchronize(engine.native()), cudaSuccess);  // before its memory goes
}

TEST_F(CudaDeviceTest, AThreadsDefaultStreamIsNotAdopted) {
  const auto adopted =
      device_->adopt_stream(reinterpret_cast<uintptr_t>(cudaStreamPerThread), "per thread");
  EXPECT_EQ(testing::code_of(adopted), ErrorCode::kInvalidArgument);
}

TEST_F(CudaDeviceTest, AnAdoptedStreamIsForgottenBehindItsLastGate) {
  cudaStream_t native = nullptr;
  ASSERT_EQ(::cudaStreamCreateWithFlags(&native, cudaStreamNonBlocking), cudaSuccess);
  for (int round = 0; round < 200; ++round) {  // there are 64 words for gates
    const auto stream = device_->adopt_stream(reinterpret_cast<uintptr_t>(native),
                                              "engine " + std::to_string(round));
    ASSERT_TRUE(stream) << round << ": " << stream.error();
    EventSource late = device_->create_event();
    ASSERT_TRUE(device_->wait(*stream, late.event()));
    ASSERT_TRUE(device_->destroy_stream(*stream));
    late.signal();
    ASSERT_EQ(::cudaStreamSynchronize(native), cudaSuccess);
  }
  ASSERT_EQ(::cudaStreamDestroy(native), cudaSuccess);
}

TEST_F(CudaDeviceTest, TheDefaultStreamIsAdoptedToo) {
  const StreamRef stream = device_->adopt_stream(0, "default").value();
  const DeviceMemory device = memory(8 * kMiB);
  const PinnedMemory host = pinned(8 * kMiB);
  ASSERT_EQ(::cudaMemsetAsync(device.data(), 7, device.size_bytes(), nullptr), cudaSuccess);
  StridedCopyBatch copy = plain_copy(device.data(), host.data(), 1000);
  set_block_strides(copy, 1024, 1024);
  copy.pairs = make_block_pairs({BlockId(9), BlockId(3), BlockId(7), BlockId(1), BlockId(0)});
  ASSERT_TRUE(device_->copy(stream, copy));
  ASSERT_TRUE(device_->synchronize(stream, soon()));
  for (const BlockId id : copy.pairs->from())
    EXPECT_EQ(host.data()[id.value() * 1024 + 999], std::byte{7});
}

TEST_F(CudaDeviceTest, AnEngineStreamWaitsForTheHostWithoutTheHostWaiting) {
  EngineStream& engine = engines_.emplace_back();
  const StreamRef stream = device_->adopt_stream(engine.handle(), "engine").value();
  const DeviceMemory device = memory(kMiB);
  std::vector<EventSource> gates;
  for (int i = 0; i < 5; ++i) {
    gates.push_back(device_->create_event());
    ASSERT_TRUE(device_->wait(stream, gates.back().event()));
  }
  engine.fill(device, 1);  // the engine's own work waits as well
  const Event end = device_->record(stream);
  // In an order that is not theirs: the stream goes on after the last.
  for (const size_t i : {3, 0, 4, 1}) {
    gates[i].signal();
    EXPECT_FALSE(engine.idle());
    EXPECT_FALSE(end.done());
  }
  gates[2].signal();
  ASSERT_TRUE(end.wait(soon()));
  ASSERT_EQ(::cudaStreamSynchronize(engine.native()), cudaSuccess);
  EXPECT_EQ(content(device), std::vector<std::byte>(kMiB, std::byte{1}));
}

TEST_F(CudaDeviceTest, AFailedWaitOfAnEngineStreamFailsTheEventOfItsTime) {
  EngineStream& engine = engines_.emplace_back();
  const StreamRef stream = device_->adopt_stream(engine.handle(), "engine").value();
  EventSource first = device_->create_event();
  EventSource second = device_->create_event();
  EventSource third = device_->create_event();
  ASSERT_TRUE(device_->wait(stream, first.event()));
  const Event before = device_->record(stream);
  ASSERT_TRUE(device_->wait(stream, second.event()));
  ASSERT_TRUE(device_->wait(stream, third.event()));
  const Event failed = device_->record(stream);
  const Event again = device_->record(stream);
  ASSERT_TRUE(device_->launch(stream, []() -> Status { return {}; }));
  const Event after = device_->record(stream);
  // A stream of ours behind it hears of the failure too.
  const StreamRef own = device_->create_stream("own").value();
  ASSERT_TRUE(device_->wait(own, failed));
  const Event behind = device_->record(own);

  third.signal(make_error(ErrorCode::kCorrupt, "later in the stream, earlier in time"));
  second.signal(make_error(ErrorCode::kIo, "as the test asked"));
  EXPECT_FALSE(before.done());
  first.signal();
  EXPECT_TRUE(before.wait(soon()));
  EXPECT_EQ(code_of(failed.wait(soon())), ErrorCode::kIo);
  EXPECT_EQ(code_of(again.wait(soon())), ErrorCode::kIo);
  EXPECT_TRUE(after.wait(soon()));
  EXPECT_EQ(code_of(behind.wait(soon())), ErrorCode::kIo);
}

TEST_F(CudaDeviceTest, TasksOnAnEngineStreamRunBetweenWhatTheEngineDoes) {
  EngineStream& engine = engines_.emplace_back();
  const StreamRef stream = device_->adopt_stream(engine.handle(), "engine").value();
  constexpr uint64_t kSize = 16 * kMiB;
  const DeviceMemory device = memory(kSize);
  const PinnedMemory host = pinned(kSize);
  std::vector<int> seen;
  for (int round = 1; round <= 30; ++round) {
    engine.fill(device, round);
    ASSERT_EQ(::cudaMemcpyAsync(host.data(), device.data(), kSize, cudaMemcpyDeviceToHost,
                                engine.native()),
              cudaSuccess);
    ASSERT_TRUE(device_->launch(stream, [&]() -> Status {
      seen.push_back(static_cast<int>(host.data()[kSize - 1]));
      return {};
    }));
  }
  ASSERT_TRUE(device_->synchronize(stream, soon()));
  ASSERT_EQ(seen.size(), 30u);
  for (int round = 1; round <= 30; ++round) EXPECT_EQ(seen[static_cast<size_t>(round - 1)], round);
  ASSERT_TRUE(device_->launch(
      stream, []() -> Status { return make_error(ErrorCode::kIo, "as the test asked"); }));
  EXPECT_EQ(code_of(device_->synchronize(stream, soon())), ErrorCode::kIo);
  ASSERT_TRUE(device_->launch(stream, []() -> Status { return {}; }));
  EXPECT_TRUE(device_->synchronize(stream, soon()));
}

TEST_F(CudaDeviceTest, EngineAndOurStreamsOrderEachOtherByEvents) {
  EngineStream& engine = engines_.emplace_back();
  const StreamRef compute = device_->adopt_stream(engine.handle(), "engine").value();
  const StreamRef own = device_->create_stream("own").value();
  constexpr uint64_t kSize = 64 * kMiB;
  const DeviceMemory device = memory(kSize);
  const PinnedMemory host = pinned(kSize);
  for (int round = 1; round < 10; ++round) {
    engine.fill(device, round);  // compute writes, we store, compute writes again
    const Event written = device_->record(compute);
    ASSERT_NE(written.native(), nullptr);
    ASSERT_TRUE(device_->wait(own, written));
    ASSERT_TRUE(device_->copy(own, plain_copy(device.data(), host.data(), kSize)));
    const Event stored = device_->record(own);
    ASSERT_TRUE(device_->wait(compute, stored));
    engine.fill(device, 0xee);
    ASSERT_TRUE(stored.wait(soon()));
    ASSERT_EQ(host.data()[0], static_cast<std::byte>(round));
    ASSERT_EQ(host.data()[kSize - 1], static_cast<std::byte>(round));
  }
}

TEST_F(CudaDeviceTest, EngineStreamsThatWaitForTheHostDoNotHoldUpOurCopies) {
  // What the engine waits for may be a copy of ours: if it were held up, nothing would ever end.
  constexpr size_t kEngines = 40;
  const std::vector<StreamRef> own = own_streams(16);
  EventSource gate = device_->create_event();
  const DeviceMemory device = memory(kMiB);
  const PinnedMemory host = pinned(kMiB);
  for (size_t i = 0; i < kEngines; ++i) {
    const EngineStream& engine = engines_.emplace_back();
    const StreamRef stream = device_->adopt_stream(engine.handle(), "engine").value();
    ASSERT_TRUE(device_->wait(stream, gate.event()));
  }
  for (const StreamRef stream : own) {
    ASSERT_TRUE(device_->copy(stream, plain_copy(host.data(), device.data(), kMiB)));
    ASSERT_TRUE(device_->copy(stream, plain_copy(device.data(), host.data(), kMiB)));
    EXPECT_TRUE(device_->synchronize(stream, executor_.clock().now() + seconds(10)));
  }
  for (const EngineStream& engine : engines_) EXPECT_FALSE(engine.idle());
  gate.signal();
  for (const EngineStream& engine : engines_) {
    EXPECT_EQ(::cudaStreamSynchronize(engine.native()), cudaSuccess);
  }
}

TEST_F(CudaDeviceTest, AStreamThatRecordsAGraphIsRefusedAndTheGraphIsGood) {
  EngineStream& engine = engines_.emplace_back();
  const StreamRef stream = device_->adopt_stream(engine.handle(), "engine").value();
  const StreamRef own = device_->create_stream("own").value();
  const DeviceMemory device = memory(kMiB);
  const PinnedMemory host = pinned(kMiB);
  ASSERT_EQ(::cudaStreamBeginCapture(engine.native(), cudaStreamCaptureModeGlobal), cudaSuccess);
  engine.fill(device, 3);
  EXPECT_EQ(code_of(device_->copy(stream, plain_copy(device.data(), host.data(), 64))),
            ErrorCode::kRejected);
  EXPECT_EQ(code_of(device_->wait(stream, Event())), ErrorCode::kRejected);
  EXPECT_EQ(code_of(device_->record(stream).wait(soon())), ErrorCode::kRejected);
  EXPECT_EQ(code_of(device_->launch(stream, []() -> Status { return {}; })), ErrorCode::kRejected);
  // Work elsewhere goes on meanwhile, and does not break the capture.
  EXPECT_TRUE(device_->copy(own, plain_copy(host.data(), device.data(), 64)));
  EXPECT_TRUE(device_->synchronize(own, soon()));
  static_cast<void>(memory(kMiB));
  cudaGraph_t graph = nullptr;
  EXPECT_EQ(::cudaStreamEndCapture(engine.native(), &graph), cudaSuccess);
  if (graph != nullptr) ::cudaGraphDestroy(graph);
  EXPECT_TRUE(device_->synchronize(stream, soon()));
}

TEST_F(CudaDeviceTest, ADeviceThatIsDestroyedLeavesNoEngineWaiting) {
  EngineStream& engine = engines_.emplace_back();
  const StreamRef stream = device_->adopt_stream(engine.handle(), "engine").value();
  const DeviceMemory device = memory(kMiB);
  std::optional<EventSource> gate(device_->create_event());
  ASSERT_TRUE(device_->wait(stream, gate->event()));
  engine.fill(device, 5);
  const Event end = device_->record(stream);
  device_.reset();
  ASSERT_TRUE(end.done());
  EXPECT_EQ(code_of(end.status()), ErrorCode::kCancelled);
  EXPECT_EQ(::cudaStreamSynchronize(engine.native()), cudaSuccess);
  gate->signal();
}

// --- the end of a GPU
// ------------------------------------------------------------------------------

/// Loses the context: a kernel that traps, from text that the driver compiles.
bool trap() {
  constexpr const char* kSource =
      ".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry stop() { trap; }\n";
  void* const library = ::dlopen("libcuda.so.1", RTLD_NOW);
  const auto load =
      reinterpret_cast<int (*)(void**, const void*)>(::dlsym(library, "cuModuleLoadData"));
  const auto find = reinterpret_cast<int (*)(void**, void*, const char*)>(
      ::dlsym(library, "cuModuleGetFunction"));
  const auto run = reinterpret_cast<int (*)(void*, unsigned, unsigned, unsigned, unsigned, unsigned,
                                            unsigned, unsigned, void*, void**, void**)>(
      ::dlsym(library, "cuLaunchKernel"));
  void* module = nullptr;
  void* kernel = nullptr;
  return load(&module, kSource) == 0 && find(&kernel, module, "stop") == 0 &&
         run(kernel, 1, 1, 1, 1, 1, 1, 0, nullptr, nullptr, nullptr) == 0;
}

/// 0 if all went as it should; runs in a process of its own.
int lose_a_gpu() {
  NullLogSink log;
  ThreadExecutor executor(log);
  auto device = CudaDevice::create({.executor = executor, .ordinal = testing::test_gpu()}).value();
  const TimePoint soon = executor.clock().now() + seconds(60);
  const DeviceMemory memory = device->allocate(kMiB, 256).value();
  const StreamRef stream = device->create_stream("s").value();
  const StreamRef held = device->create_stream("held").value();
  EventSource gate = device->create_event();
  if (!device->wait(held, gate.event())) return 2;
  const Event behind = device->record(held);
  if (::cudaSetDevice(testing::test_gpu()) != cudaSuccess || !trap()) return 3;
  static_cast<void>(::cudaDeviceSynchronize());
  std::vector<Event> events;
  std::atomic<int> told{0};
  for (int i = 0; i < 10; ++i) {
    events.push_back(device->record(stream));
    events.back().on_done([&told](const Status&) noexcept { ++told; });
  }
  for (const Event& event : events) {
    // The first record of an idle stream repeats its outcome without asking the GPU.
    const Status status = event.wait(soon);
    if (!status && status.error().code() != ErrorCode::kDevice) return 4;
  }
  StridedCopyBatch copy{.pairs = make_block_pairs({BlockId(0)}),
                        .pieces = {{.src = memory.data(), .dst = memory.data() + 64, .bytes = 64}}};
  Status copied = device->copy(stream, copy);
  if (copied) copied = device->synchronize(stream, soon);
  if (copied || copied.error().code() != ErrorCode::kDevice) return 5;
  if (told != 10) return 6;
  bool ran = false;
  static_cast<void>(device->launch(held, [&ran]() -> Status {
    ran = true;
    return {};
  }));
  gate.signal();
  static_cast<void>(behind.wait(soon));
  if (!behind.done()) return 7;
  if (device->allocate(64, 1)) return 8;
  device.reset();
  return 0;
}

TEST(CudaDeviceDeathTest, AGpuThatIsLostFailsEverythingOnceAsDevice) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  if (const auto found = CudaDevice::find_all(); !found) KVBM_SKIP("gpu", found.error().message());
  EXPECT_EXIT(std::_Exit(lose_a_gpu()), ::testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace kvbm
