// SPDX-License-Identifier: Apache-2.0
#include "apps/kvbench/bench_place.hpp"

#include <algorithm>
#include <cstring>
#include <functional>
#include <thread>
#include <utility>

#include "kvbm/base/random.hpp"
#include "kvbm/base/text.hpp"
#include "kvbm/layout/layout_view.hpp"
#include "kvbm/memory/pinned_memory.hpp"
#include "kvbm/memory/system_memory.hpp"
#include "kvbm/transfer/fill.hpp"

namespace kvbm {
namespace {

constexpr uint64_t kAlignment = 4096;
constexpr unsigned kMostThreads = 16;
constexpr uint64_t kClearedAtOnce = uint64_t{16} << 20;
const FillPattern kPattern = FillPattern::position(0x6b76'6265'6e63'68);

/// Calls work(begin, end) for parts of [0, count), on as many threads as the machine has; the first
/// error.
Status in_parallel(Executor& executor, uint64_t count,
                   const std::function<Status(uint64_t begin, uint64_t end)>& work) {
  const uint64_t num_parts =
      std::min<uint64_t>(count, std::clamp(std::thread::hardware_concurrency(), 1U, kMostThreads));
  std::vector<Status> outcomes(num_parts);
  KVBM_ASSIGN_OR_RETURN(const auto queue,
                        executor.create_queue({.name = "kvbench-fill", .num_threads = num_parts}));
  for (uint64_t i = 0; i < num_parts; ++i) {
    const uint64_t begin = count * i / num_parts;
    const uint64_t end = count * (i + 1) / num_parts;
    KVBM_TRY(
        queue->post([&work, &outcome = outcomes[i], begin, end] { outcome = work(begin, end); }));
  }
  queue->stop();
  for (const Status& outcome : outcomes) KVBM_TRY(Status(outcome));
  return {};
}

LayerRange layers_from(uint64_t begin, uint64_t end) {
  return {LayerId(static_cast<uint16_t>(begin)), static_cast<uint32_t>(end - begin)};
}

std::vector<BlockId> all_blocks(uint32_t num_blocks) {
  std::vector<BlockId> ids;
  ids.reserve(num_blocks);
  for (uint32_t i = 0; i < num_blocks; ++i) ids.emplace_back(i);
  return ids;
}

}  // namespace

Result<OwnedRegion> BenchMemory::take_host(uint64_t size_bytes) {
  for (const OwnedRegion& range : ranges_) {
    if (range.owner.use_count() == 1 && range.region.size_bytes() >= size_bytes) return range;
  }
  KVBM_ASSIGN_OR_RETURN(OwnedRegion range, allocate(std::max(size_bytes, largest_bytes_)));
  ranges_.push_back(range);
  return range;
}

Result<OwnedRegion> BenchMemory::allocate(uint64_t size_bytes) {
  if (device_.pinner == nullptr) {
    KVBM_ASSIGN_OR_RETURN(SystemMemory memory, SystemMemory::create({.size_bytes = size_bytes}));
    return OwnedRegion::of(std::move(memory));
  }
  // In one slice: the raw calls take no copy across the end of one.
  KVBM_ASSIGN_OR_RETURN(PinnedMemory memory, PinnedMemory::create({.executor = executor_,
                                                                   .pinner = device_.pinner,
                                                                   .size_bytes = size_bytes,
                                                                   .slice_bytes = size_bytes}));
  KVBM_TRY(memory.wait_for(size_bytes));
  return OwnedRegion::of(std::move(memory));
}

uint64_t host_bytes_of(const BenchShape& shape, uint64_t total_bytes) noexcept {
  return total_bytes + 2 * kAlignment * shape.layers;
}

Result<BenchPlace> BenchPlace::create(BenchMemory& memory, const LayoutConfig& config,
                                      const BenchSide& side) {
  KVBM_ASSIGN_OR_RETURN(const MemoryNeed need, required_memory(config, side.kind));
  std::vector<OwnedRegion> owned;
  owned.reserve(need.num_regions);
  if (side.on_device) {
    for (size_t i = 0; i < need.num_regions; ++i) {
      KVBM_ASSIGN_OR_RETURN(DeviceMemory layer,
                            memory.device().allocate(need.region_bytes, kAlignment));
      owned.push_back(OwnedRegion::of(std::move(layer)));
    }
  } else {
    // Layers do not touch, so that no copy can join two of them.
    const uint64_t step = need.num_regions == 1
                              ? need.region_bytes
                              : (need.region_bytes + 2 * kAlignment - 1) / kAlignment * kAlignment;
    KVBM_ASSIGN_OR_RETURN(const OwnedRegion all, memory.take_host(step * need.num_regions));
    for (size_t i = 0; i < need.num_regions; ++i) {
      owned.push_back({all.region.slice(i * step, need.region_bytes), all.owner});
    }
  }
  std::vector<MemoryRegion> regions;
  regions.reserve(owned.size());
  for (const OwnedRegion& each : owned) regions.push_back(each.region);
  auto layout = side.kind == LayoutKind::kFullyContiguous
                    ? PhysicalLayout::fully_contiguous(config, regions.front(), side.format)
                    : PhysicalLayout::layer_separate(config, BlockDimension::kBlockIsSecond,
                                                     regions, side.format);
  if (!layout) return make_error(std::move(layout).error());
  return BenchPlace{.memory = std::move(owned), .layout = *std::move(layout)};
}

BenchPlaces::BenchPlaces(BenchMemory& memory, BenchPlace source, BenchPlace destination)
    : memory_(&memory), source_(std::move(source)), destination_(std::move(destination)) {}

Result<BenchPlaces> BenchPlaces::create(BenchMemory& memory, const LayoutConfig& config,
                                        const BenchCell& cell, bool sequential_ids) {
  KVBM_ASSIGN_OR_RETURN(BenchPlace source, BenchPlace::create(memory, config, cell.source()));
  KVBM_ASSIGN_OR_RETURN(BenchPlace destination,
                        BenchPlace::create(memory, config, cell.destination()));
  BenchPlaces places(memory, std::move(source), std::move(destination));
  places.from_ = all_blocks(config.num_blocks);
  places.to_ = places.from_;
  if (!sequential_ids) {
    Random random(1);
    random.shuffle(std::span(places.from_));
    random.shuffle(std::span(places.to_));
  }
  KVBM_TRY(places.fill_source(config, cell.source()));
  if (cell.destination().on_device) {
    BenchSide side = cell.destination();
    side.on_device = false;
    KVBM_ASSIGN_OR_RETURN(places.image_, BenchPlace::create(memory, config, side));
  }
  return places;
}

Status BenchPlaces::fill_source(const LayoutConfig& config, const BenchSide& side) {
  std::optional<BenchPlace> image;
  if (side.on_device) {
    BenchSide on_host = side;
    on_host.on_device = false;
    KVBM_ASSIGN_OR_RETURN(image, BenchPlace::create(*memory_, config, on_host));
  }
  const BenchPlace& filled = image ? *image : source_;
  const std::vector<BlockId> ids = all_blocks(config.num_blocks);
  KVBM_TRY(in_parallel(
      memory_->executor(), config.num_layers, [&](uint64_t begin, uint64_t end) -> Status {
        KVBM_ASSIGN_OR_RETURN(const LayoutView view,
                              LayoutView(filled.layout).slice(layers_from(begin, end)));
        return fill(view, ids, kPattern);
      }));
  if (image) KVBM_TRY(copy_all(*image, source_));
  return {};
}

/// Region by region, as they are.
Status BenchPlaces::copy_all(const BenchPlace& src, const BenchPlace& dst) {
  Device& device = memory_->device();
  KVBM_ASSIGN_OR_RETURN(const StreamRef stream, device.create_stream("kvbench-image"));
  std::vector<StridedPiece> pieces;
  for (size_t i = 0; i < src.memory.size(); ++i) {
    pieces.push_back({.src = src.memory[i].region.base(),
                      .dst = dst.memory[i].region.base(),
                      .bytes = src.memory[i].region.size_bytes()});
  }
  Status copied =
      device.copy(stream, {.pairs = make_block_pairs({BlockId(0)}), .pieces = std::move(pieces)});
  if (copied) copied = device.synchronize(stream);
  static_cast<void>(device.destroy_stream(stream));
  return copied;
}

Status BenchPlaces::clear() {
  const BenchPlace& cleared = image_ ? *image_ : destination_;
  for (const OwnedRegion& each : cleared.memory) {
    KVBM_TRY(in_parallel(memory_->executor(), each.region.size_bytes() / kClearedAtOnce + 1,
                         [&](uint64_t begin, uint64_t end) -> Status {
                           const uint64_t size = each.region.size_bytes();
                           const uint64_t from = begin * kClearedAtOnce;
                           std::memset(each.region.base() + from, 0,
                                       std::min(size, end * kClearedAtOnce) - from);
                           return {};
                         }));
  }
  return image_ ? copy_all(*image_, destination_) : Status();
}

Status BenchPlaces::check() {
  if (image_) KVBM_TRY(copy_all(destination_, *image_));
  const PhysicalLayout& layout = image_ ? image_->layout : destination_.layout;
  return in_parallel(
      memory_->executor(), layout.config().num_layers, [&](uint64_t begin, uint64_t end) -> Status {
        KVBM_ASSIGN_OR_RETURN(const LayoutView view,
                              LayoutView(layout).slice(layers_from(begin, end)));
        KVBM_ASSIGN_OR_RETURN(const auto wrong, find_fill_mismatch(view, to_, from_, kPattern));
        if (!wrong) return {};
        return make_error(
            ErrorCode::kCorrupt,
            format_text("wrong bytes in block {}, layer {}, outer {}, head {}, token {}",
                        wrong->block, wrong->layer, wrong->outer, wrong->head, wrong->page));
      });
}

}  // namespace kvbm
