// SPDX-License-Identifier: Apache-2.0
// BlockManagerRank: one rank of a BlockManager: its device, its G1, its worker.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "kvbm/base/executor.hpp"
#include "kvbm/base/log.hpp"
#include "kvbm/base/metrics.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/device/device.hpp"
#include "kvbm/layout/physical_layout.hpp"
#include "kvbm/memory/host_memory.hpp"
#include "kvbm/memory/posix_file_engine.hpp"
#include "kvbm/runtime/devices.hpp"
#include "kvbm/runtime/kv_block_manager_config.hpp"
#include "kvbm/runtime/resolved_config.hpp"
#include "kvbm/worker/worker.hpp"

namespace kvbm::internal {

/// Members are destroyed in reverse order: the worker's copies end first, then what runs on the
/// device, and memory goes last.
struct BlockManagerRank {
  enum class LayerCopy : uint8_t { kStore, kLoad };

  std::vector<DeviceMemory> gpu_memory;             // by group
  std::vector<PhysicalLayout> gpu_layouts;          // by group
  std::vector<std::vector<PatternPiece>> patterns;  // by group
  HostMemory staging;                               // of copy_layer(), once it is used
  OpenedDevice device;
  std::unique_ptr<PosixFileEngine> files;  // null without a disk tier
  StreamRef compute;
  std::unique_ptr<Worker> worker;

  /// Host memory that the device copies.
  [[nodiscard]] Result<std::span<std::byte>> staging_bytes(uint64_t size_bytes);
  /// Queues the copy between `bytes` of staging_bytes(), [outer, chunk], and a layer of a block.
  Status copy_layer(LayerCopy way, size_t group, BlockId block, LayerId layer,
                    std::span<std::byte> bytes);
};

struct RankOptions {
  const KvBlockManagerConfig& config;
  Executor& executor;
  LogSink& log;
  MetricsRegistry& metrics;
  const DeviceOpener& open_device;  ///< null: as configured
};

/// All ranks of the configuration, without memory and workers.
/// Errors: those of open_device().
[[nodiscard]] Result<std::vector<BlockManagerRank>> make_ranks(const RankOptions& options);

/// What gpu_memory_fraction is a part of, for each rank.
/// Errors: kInvalidArgument (a device without memory to take a share of; no rank has a device).
[[nodiscard]] Result<uint64_t> gpu_bytes_to_share(std::span<const BlockManagerRank> ranks);

/// Takes the memory of G1 and starts the worker with all places.
/// Errors: those of Device::allocate, Worker::create and Worker::provide.
Status start_rank(BlockManagerRank& rank, RankId id, const ResolvedConfig& resolved,
                  const RankOptions& options);

}  // namespace kvbm::internal
