// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/internal/block_manager_rank.hpp"

#include <algorithm>
#include <limits>
#include <string_view>
#include <utility>

#include "kvbm/base/text.hpp"
#include "kvbm/runtime/calibration_cache.hpp"
#include "kvbm/runtime/internal/rank_devices.hpp"
#include "kvbm/runtime/kv_pattern.hpp"

namespace kvbm::internal {
namespace {

constexpr uint64_t kGpuAlignment = 4096;  // of the memory of a group

Status add_engine_place(BlockManagerRank& rank, RankId id, const PlaceSpec& place,
                        LayoutConfig layout) {
  layout.num_blocks = place.num_blocks;
  KVBM_ASSIGN_OR_RETURN(const uint64_t bytes, required_bytes(layout, LayoutKind::kFullyContiguous));
  KVBM_ASSIGN_OR_RETURN(DeviceMemory memory, rank.device.device->allocate(bytes, kGpuAlignment));
  KVBM_ASSIGN_OR_RETURN(PhysicalLayout tensors,
                        PhysicalLayout::fully_contiguous(layout, MemoryRegion::of(memory)));
  rank.gpu_memory.push_back(std::move(memory));
  rank.patterns.push_back(pattern_pieces(tensors, id));
  rank.gpu_layouts.push_back(tensors);
  KVBM_TRY(rank.worker->attach(place.place, std::move(tensors)));
  return {};
}

}  // namespace

Result<std::span<std::byte>> BlockManagerRank::staging_bytes(uint64_t size_bytes) {
  if (staging.size_bytes() < size_bytes) {
    staging = {};
    KVBM_ASSIGN_OR_RETURN(staging, HostMemory::create({.executor = device.device->executor(),
                                                       .pinner = device.pinner,
                                                       .size_bytes = size_bytes}));
  }
  return staging.bytes().first(size_bytes);
}

Status BlockManagerRank::copy_layer(LayerCopy way, size_t group, BlockId block, LayerId layer,
                                    std::span<std::byte> bytes) {
  std::vector<StridedPiece> pieces;
  for (uint32_t outer = 0; !bytes.empty(); ++outer) {
    const MemoryRegion chunk = gpu_layouts[group].region(block, layer, outer);
    std::byte* const host = bytes.data();
    pieces.push_back({.src = way == LayerCopy::kStore ? host : chunk.base(),
                      .dst = way == LayerCopy::kStore ? chunk.base() : host,
                      .bytes = chunk.size_bytes()});
    bytes = bytes.subspan(chunk.size_bytes());
  }
  return device.device->copy(
      compute, {.pairs = make_block_pairs({BlockId(0)}), .pieces = std::move(pieces)});
}

Result<std::vector<BlockManagerRank>> make_ranks(const RankOptions& options) {
  const KvBlockManagerConfig& config = options.config;
  std::vector<BlockManagerRank> ranks(config.num_ranks);
  KVBM_ASSIGN_OR_RETURN(std::vector<OpenedDevice> devices,
                        open_rank_devices({.device = config.device,
                                           .num_ranks = config.num_ranks,
                                           .num_threads = config.copy_threads,
                                           .cuda_ring_size = config.cuda_ring_size,
                                           .executor = options.executor,
                                           .log = options.log,
                                           .open_device = options.open_device}));
  for (size_t i = 0; i < ranks.size(); ++i) {
    BlockManagerRank& rank = ranks[i];
    rank.device = std::move(devices[i]);
    if (config.has_disk_tier()) {
      KVBM_ASSIGN_OR_RETURN(rank.files,
                            PosixFileEngine::create({.executor = options.executor,
                                                     .num_threads = config.disk_threads,
                                                     .name = format_text("kvbm-disk-{}", i)}));
    }
    KVBM_ASSIGN_OR_RETURN(rank.compute, rank.device.device->create_stream("compute"));
  }
  return ranks;
}

Result<uint64_t> gpu_bytes_to_share(std::span<const BlockManagerRank> ranks) {
  const auto refused = [](std::string_view who) {
    return make_error(
        ErrorCode::kInvalidArgument,
        format_text("num_blocks is not set, and {} no GPU memory to take a share of: set it", who));
  };
  if (ranks.empty()) return refused("logical workers have");
  std::vector<DeviceInfo> devices;
  for (const BlockManagerRank& rank : ranks) devices.push_back(rank.device.device->info());
  uint64_t least = std::numeric_limits<uint64_t>::max();
  for (const DeviceInfo& device : devices) {
    if (device.kind == DeviceKind::kHost) return refused("device = host has");
    const auto sharing = std::ranges::count(devices, device.ordinal, &DeviceInfo::ordinal);
    least = std::min(least, device.free_bytes / static_cast<uint64_t>(sharing));
  }
  return least;
}

Status start_rank(BlockManagerRank& rank, RankId id, const ResolvedConfig& resolved,
                  const RankOptions& options) {
  KVBM_ASSIGN_OR_RETURN(CalibrationFound costs,
                        calibrate({.device = *rank.device.device,
                                   .executor = options.executor,
                                   .log = options.log,
                                   .pinner = rank.device.pinner,
                                   .identity = rank.device.identity,
                                   .folder = calibration_folder(options.config.calibration_dir)}));
  KVBM_ASSIGN_OR_RETURN(rank.worker, Worker::create({.rank = id,
                                                     .worker = WorkerId(id.value()),
                                                     .model = resolved.model,
                                                     .disk_directory = options.config.offload_path,
                                                     .zero_fill = options.config.disk_zero_fill,
                                                     .metrics = &options.metrics,
                                                     .pinner = rank.device.pinner,
                                                     .calibration = std::move(costs.calibration)},
                                                    *rank.device.device, rank.files.get(),
                                                    options.executor, options.log));
  for (const PlaceSpec& place : resolved.places) {
    if (place.place.tier == TierId::kG1) {
      KVBM_TRY(add_engine_place(rank, id, place, *resolved.model.find(place.place.group)));
    } else {
      KVBM_TRY(rank.worker->provide(place));
    }
  }
  return {};
}

}  // namespace kvbm::internal
