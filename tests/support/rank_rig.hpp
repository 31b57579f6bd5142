// SPDX-License-Identifier: Apache-2.0
// RankRig: a worker and everything under it, with an engine's tensors that tests fill and look at.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/executor.hpp"
#include "kvbm/base/mutex.hpp"
#include "kvbm/device/host_device.hpp"
#include "kvbm/memory/posix_file_engine.hpp"
#include "kvbm/worker/worker.hpp"

#include "tests/support/faulty_device.hpp"
#include "tests/support/pattern.hpp"
#include "tests/support/temporary_folder.hpp"

namespace kvbm::testing {

/// Keeps what workers answer. Threads: any thread.
class ResultInbox {
 public:
  void take(OpResult&& result) {
    std::shared_ptr<Latch> arrival;
    {
      const MutexLock lock(mutex_);
      results_.push_back(std::move(result));
      arrival = std::exchange(arrival_, nullptr);
    }
    if (arrival) arrival->set();
  }

  [[nodiscard]] std::vector<OpResult> all() const {
    const MutexLock lock(mutex_);
    return results_;
  }

  /// The only result of an operation, if it has come.
  [[nodiscard]] std::optional<OpResult> find(OpId op) const {
    const MutexLock lock(mutex_);
    std::optional<OpResult> found;
    for (const OpResult& result : results_) {
      if (result.op != op) continue;
      EXPECT_FALSE(found) << "operation " << op << " has two results";
      found = result;
    }
    return found;
  }

  /// The order in which operations ended.
  [[nodiscard]] std::vector<OpId> order() const {
    std::vector<OpId> ops;
    for (const OpResult& result : all()) ops.push_back(result.op);
    return ops;
  }

  /// Waits for it, for ten seconds at most.
  OpResult await(Executor& executor, OpId op) {
    const TimePoint deadline = executor.clock().now() + std::chrono::seconds(10);
    for (;;) {
      if (auto found = find(op)) return *found;
      const auto arrival = std::make_shared<Latch>();
      {
        const MutexLock lock(mutex_);
        arrival_ = arrival;
      }
      if (auto found = find(op)) return *found;
      if (!executor.wait(*arrival, deadline)) {
        throw std::runtime_error("operation " + to_string(op) + " has no result");
      }
    }
  }

 private:
  mutable Mutex mutex_{LockRank::kCluster, "tests.result_inbox"};
  std::vector<OpResult> results_ KVBM_GUARDED_BY(mutex_);
  std::shared_ptr<Latch> arrival_ KVBM_GUARDED_BY(mutex_);
};

struct RankRigOptions {
  uint16_t rank = 0;
  uint16_t num_groups = 1;
  bool one_pool = false;  ///< an engine block is the same memory in all groups
  uint32_t engine_blocks = 32;
  uint32_t host_blocks = 8;  ///< 0: no such place
  uint32_t disk_blocks = 8;  ///< 0: no such place
  uint32_t max_running_operations = 8;
  uint32_t pieces_per_layer = 1;     ///< of the engine's; see Worker::attach
  uint64_t min_load_part_bytes = 1;  ///< each of these layers is a part
  DirectIo direct_io = DirectIo::kOff;
  std::shared_ptr<HostPinner> pinner = nullptr;
  uint64_t pin_slice_bytes = PinnedMemoryOptions::kSliceBytes;
  std::optional<DeviceFaults> faults = std::nullopt;
  /// Puts something between the worker and the device; then there are no faults.
  std::function<std::unique_ptr<Device>(Device&)> wrap_device = nullptr;
  /// Puts something in front of the file engine.
  std::function<std::unique_ptr<FileEngine>(std::unique_ptr<FileEngine>)> wrap_files = nullptr;
};

/// Blocks of [2 layers, 2, 4 tokens, 8] 16-bit elements.
inline constexpr LayoutConfig kRigBlock{.num_blocks = 1,
                                        .num_layers = 2,
                                        .outer_dim = 2,
                                        .page_size = 4,
                                        .inner_dim = 8,
                                        .dtype_width_bytes = 2,
                                        .num_heads = std::nullopt,
                                        .alignment = 1};
inline constexpr uint64_t kRigBlockBytes = uint64_t{2} * 2 * 4 * 8 * 2;

[[nodiscard]] inline ModelLayout rig_model(uint16_t num_groups) {
  ModelLayout model;
  for (uint16_t group = 0; group < num_groups; ++group) {
    model.groups.push_back({.id = GroupId(group), .config = kRigBlock});
  }
  return model;
}

/// Ownership: borrows executor and log. Members go in reverse order, the worker first.
class RankRig {
 public:
  explicit RankRig(Executor& the_executor, LogSink& log, const RankRigOptions& options = {})
      : executor(the_executor) {
    device = HostDevice::create({.executor = executor}).value();
    if (options.faults) faulty = std::make_unique<FaultyDevice>(*device, *options.faults);
    files = PosixFileEngine::create({.executor = executor}).value();
    if (options.wrap_files) files = options.wrap_files(std::move(files));
    compute = device->create_stream("compute").value();
    if (options.wrap_device) wrapped = options.wrap_device(*device);
    Device& used = wrapped ? *wrapped : faulty ? static_cast<Device&>(*faulty) : *device;
    worker = Worker::create({.rank = RankId(options.rank),
                             .worker = WorkerId(options.rank),
                             .model = rig_model(options.num_groups),
                             .disk_directory = folder.path().string(),
                             .direct_io = options.direct_io,
                             .max_running_operations = options.max_running_operations,
                             .min_load_part_bytes = options.min_load_part_bytes,
                             .pinner = options.pinner,
                             .pin_slice_bytes = options.pin_slice_bytes},
                            used, files.get(), executor, log)
                 .value();
    for (uint16_t group = 0; group < options.num_groups; ++group) {
      LayoutConfig config = kRigBlock;
      config.num_blocks = options.engine_blocks;
      if (group == 0 || !options.one_pool) {
        memory.push_back(device->allocate(config.num_blocks * config.block_bytes(), 64).value());
      }
      const auto tensors =
          PhysicalLayout::fully_contiguous(config, MemoryRegion::of(memory.back())).value();
      specs.push_back(
          worker->attach({TierId::kG1, GroupId(group)}, tensors, options.pieces_per_layer).value());
      const auto provide = [&](TierId tier, uint32_t num_blocks) {
        if (num_blocks == 0) return;
        specs.push_back({.place = {tier, GroupId(group)},
                         .owner = Owner::kKvbm,
                         .spread = Spread::kSharded,
                         .num_blocks = num_blocks,
                         .rank_block_bytes = config.block_bytes()});
        const Status provided = worker->provide(specs.back());
        if (!provided) throw std::runtime_error(provided.error().describe());
      };
      provide(TierId::kG2, options.host_blocks);
      provide(TierId::kG3, options.disk_blocks);
    }
    worker->on_result([this](OpResult&& result) { results.take(std::move(result)); });
  }

  [[nodiscard]] std::span<std::byte> engine_block(uint32_t block, uint16_t group = 0) {
    return {memory.at(group).data() + block * kRigBlockBytes, kRigBlockBytes};
  }
  /// Only while nothing runs on the block.
  void fill(uint32_t block, uint64_t key, uint16_t group = 0) {
    const auto bytes = pattern_block(kRigBlock, key);
    std::copy(bytes.begin(), bytes.end(), engine_block(block, group).begin());
  }
  [[nodiscard]] ::testing::AssertionResult holds(uint32_t block, uint64_t key, uint16_t group = 0) {
    return same_block(kRigBlock, engine_block(block, group), pattern_block(kRigBlock, key));
  }

  OpResult await(OpId op) { return results.await(executor, op); }

  Executor& executor;
  TemporaryFolder folder;
  std::unique_ptr<HostDevice> device;
  std::unique_ptr<FaultyDevice> faulty;
  std::unique_ptr<Device> wrapped;
  std::unique_ptr<FileEngine> files;
  StreamRef compute;
  std::vector<DeviceMemory> memory;  ///< of the engine, by group; of one pool: one for all
  std::vector<PlaceSpec> specs;
  ResultInbox results;
  std::unique_ptr<Worker> worker;
};

}  // namespace kvbm::testing
