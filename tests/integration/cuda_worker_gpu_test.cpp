// SPDX-License-Identifier: Apache-2.0
// KvbmWorker beside an engine that computes on its own stream of a GPU: the hooks of its steps, and
// nothing else, order copies and compute.
#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/completion.hpp"
#include "kvbm/base/log.hpp"
#include "kvbm/base/thread_executor.hpp"
#include "kvbm/base/units.hpp"
#include "kvbm/connector/connector_step.hpp"
#include "kvbm/runtime/devices.hpp"
#include "kvbm/runtime/kvbm_worker.hpp"

#include "tests/support/require.hpp"
#include "tests/support/test_gpu.hpp"
#include "tests/support/test_gpu_name.hpp"

namespace kvbm {
namespace {

constexpr uint32_t kLayers = 4;
constexpr uint32_t kBlocks = 8;
constexpr uint64_t kRunBytes = kMiB;  // of one layer of one block: loads go by layers
constexpr size_t kBusyBytes = size_t{512} * kMiB;

std::byte* gpu_memory(size_t size_bytes) {
  void* memory = nullptr;
  EXPECT_EQ(::cudaMalloc(&memory, size_bytes), cudaSuccess);
  return static_cast<std::byte*>(memory);
}

/// Blocks of an engine with a tensor for each layer, and its stream.
class CudaWorker : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const auto gpus = find_accelerators(); !gpus) KVBM_SKIP("gpu", gpus.error().message());
    ASSERT_EQ(::cudaSetDevice(testing::test_gpu()), cudaSuccess);
    ASSERT_EQ(::cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
    busy_ = gpu_memory(kBusyBytes);
    ASSERT_NE(busy_, nullptr);
    KvbmWorkerOptions options;
    options.device = testing::test_gpu_name();
    options.compute_stream = reinterpret_cast<uintptr_t>(stream_);
    options.num_blocks = kBlocks;
    EngineGroup group{.run_bytes = kRunBytes, .runs = {}, .runs_per_layer = 1};
    for (std::byte*& layer : layers_) {
      layer = gpu_memory(kBlocks * kRunBytes);
      ASSERT_NE(layer, nullptr);
      group.runs.push_back({.base = layer, .block_stride = kRunBytes});
    }
    options.groups = {std::move(group)};
    auto worker = KvbmWorker::create(std::move(options), log_);
    ASSERT_TRUE(worker) << worker.error();
    worker_ = *std::move(worker);
    PlaceSpec host = worker_->engine_places().front();
    g1_ = host.place;
    host.place.tier = TierId::kG2;
    host.owner = Owner::kKvbm;
    g2_ = host.place;
    ASSERT_TRUE(worker_->worker().provide(host));
  }
  void TearDown() override {
    if (worker_) {
      EXPECT_TRUE(worker_->stop());
    }
    worker_.reset();
    for (std::byte* const layer : layers_) static_cast<void>(::cudaFree(layer));
    static_cast<void>(::cudaFree(busy_));
    if (stream_ != nullptr) static_cast<void>(::cudaStreamDestroy(stream_));
  }

  [[nodiscard]] std::byte* at(uint32_t layer, uint32_t block) const {
    return layers_[layer] + block * kRunBytes;
  }
  /// Keeps the engine's stream at work for milliseconds.
  void be_busy() {
    for (int i = 0; i < 8; ++i) {
      ASSERT_EQ(::cudaMemsetAsync(busy_, i, kBusyBytes, stream_), cudaSuccess);
    }
  }
  [[nodiscard]] CopyOp copy(uint64_t op, Place src, uint32_t from, Place dst, uint32_t to) const {
    CopyOp made;
    made.op = OpId(op);
    made.src = src;
    made.dst = dst;
    made.from = {BlockId(from)};
    made.to = {BlockId(to)};
    return made;
  }

  NullLogSink log_;
  cudaStream_t stream_ = nullptr;
  std::byte* busy_ = nullptr;
  std::array<std::byte*, kLayers> layers_ = {};
  std::unique_ptr<KvbmWorker> worker_;
  Place g1_;
  Place g2_;
};

/// Each step overwrites block 0 and stores it, and loads into block 1 what the step before has
/// stored; the engine reads block 1, layer by layer, and the host waits for nothing.
TEST_F(CudaWorker, StepsOrderCopiesAndTheEnginesOwnStream) {
  constexpr uint64_t kSteps = 24;
  constexpr uint32_t kWritten = 0;
  constexpr uint32_t kLoaded = 1;
  std::byte* const seen = gpu_memory(kSteps * kLayers * kRunBytes);  // by the engine
  ASSERT_NE(seen, nullptr);
  const auto seen_at = [seen](uint64_t step, uint32_t layer) {
    return seen + ((step - 1) * kLayers + layer) * kRunBytes;
  };
  const auto store_of = [](uint64_t step) { return 2 * step - 1; };
  const auto load_of = [](uint64_t step) { return 2 * (step - 1); };
  const auto value_of = [](uint64_t step, uint32_t layer) {
    return static_cast<uint8_t>(1 + step * kLayers + layer);
  };
  ConnectorWorker& hooks = worker_->hooks();
  for (uint64_t step = 1; step <= kSteps; ++step) {
    ConnectorStep work;
    work.plan.step = StepId(step);
    const auto slot = static_cast<uint32_t>(step % 3);
    CopyOp store = copy(store_of(step), g1_, kWritten, g2_, slot);
    store.after = {Gate::step_end(StepId(step))};
    work.plan.stores = {std::move(store)};
    if (step > 1) {
      const auto before = static_cast<uint32_t>((step - 1) % 3);
      CopyOp load = copy(load_of(step), g2_, before, g1_, kLoaded);
      load.priority = Priority::kOnboard;
      load.after = {Gate::op_done(OpId(store_of(step - 1)))};
      // The engine has read this block in the step before.
      load.after.push_back(Gate::step_end(StepId(step - 1)));
      work.plan.loads = {std::move(load)};
      work.plan.fences = {OpId(store_of(step - 1))};
    }
    ASSERT_TRUE(hooks.begin_step(encode(work)));
    // Overwrites at once what is being stored, reads at once what is being loaded, and writes late:
    // who does not wait comes too early.
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      ASSERT_EQ(::cudaMemsetAsync(at(layer, kWritten), 0xFF, kRunBytes, stream_), cudaSuccess);
    }
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      if (hooks.has_loads()) {
        ASSERT_TRUE(hooks.layer_needed(LayerId(static_cast<uint16_t>(layer))));
      }
      ASSERT_EQ(::cudaMemcpyAsync(seen_at(step, layer), at(layer, kLoaded), kRunBytes,
                                  cudaMemcpyDeviceToDevice, stream_),
                cudaSuccess);
    }
    be_busy();
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      ASSERT_EQ(::cudaMemsetAsync(at(layer, kWritten), value_of(step, layer), kRunBytes, stream_),
                cudaSuccess);
    }
    hooks.end_step();
  }
  // Nothing above has waited: the engine is far behind.
  EXPECT_EQ(::cudaStreamQuery(stream_), cudaErrorNotReady);
  ASSERT_EQ(::cudaStreamSynchronize(stream_), cudaSuccess);
  std::vector<uint8_t> bytes(kRunBytes);
  for (uint64_t step = 2; step <= kSteps; ++step) {
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      ASSERT_EQ(::cudaMemcpy(bytes.data(), seen_at(step, layer), kRunBytes, cudaMemcpyDeviceToHost),
                cudaSuccess);
      const std::vector<uint8_t> expected(kRunBytes, value_of(step - 1, layer));
      ASSERT_EQ(bytes, expected) << "step " << step << ", layer " << layer;
    }
  }
  EXPECT_THAT(hooks.take_failed_blocks(), ::testing::IsEmpty());
  EXPECT_EQ(::cudaFree(seen), cudaSuccess);
}

}  // namespace
}  // namespace kvbm
