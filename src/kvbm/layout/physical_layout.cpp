// SPDX-License-Identifier: Apache-2.0
#include "kvbm/layout/physical_layout.hpp"

#include <algorithm>
#include <limits>
#include <string>
#include <tuple>
#include <utility>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/text.hpp"
#include "kvbm/layout/internal/overlap.hpp"

namespace kvbm {
namespace {

constexpr uint32_t kNoMap = std::numeric_limits<uint32_t>::max();

tl::unexpected<Error> invalid(std::string message) {
  return make_error(ErrorCode::kInvalidArgument, std::move(message));
}

uint64_t round_up(uint64_t value, uint64_t alignment) {
  return (value + alignment - 1) & ~(alignment - 1);
}

/// Requires: a valid config.
PageMapSpec contiguous_spec(const LayoutConfig& config) {
  return {.num_blocks = config.num_blocks,
          .block_stride = round_up(config.block_bytes(), config.alignment),
          .layers = config.all_layers(),
          .layer_stride = config.layer_bytes(),
          .outer_dim = config.outer_dim,
          .outer_stride = config.chunk_bytes(),
          .chunk_bytes = config.chunk_bytes()};
}

/// Of one layer, which the caller fills in. Requires: a valid config.
PageMapSpec layer_spec(const LayoutConfig& config, BlockDimension dimension) {
  PageMapSpec spec = contiguous_spec(config);
  spec.layers.count = 1;
  if (dimension == BlockDimension::kBlockIsFirst) {
    spec.block_stride = round_up(config.layer_bytes(), config.alignment);
  } else {
    spec.block_stride = round_up(config.chunk_bytes(), config.alignment);
    spec.outer_stride = spec.block_stride * config.num_blocks;
  }
  return spec;
}

/// The bytes of a page map among all bytes of its storage: addresses, or offsets in a file.
struct Extent {
  int space = 0;  ///< a file, or the one address space
  uint64_t begin = 0;
  uint64_t end = 0;
  const PageMap* map = nullptr;

  [[nodiscard]] bool meets(const Extent& other) const noexcept {
    return space == other.space && begin < other.end && other.begin < end;
  }
};

constexpr int kAddressSpace = -1;

Extent extent_of(const PageMap& map) {
  const MemoryRegion& region = map.region();
  Extent extent;
  extent.map = &map;
  extent.space = region.is_file() ? region.file().fd : kAddressSpace;
  const uint64_t start =
      region.is_file() ? region.file_offset() : reinterpret_cast<uintptr_t>(region.base());
  extent.begin = start + map.first_byte();
  extent.end = start + map.end_byte();
  return extent;
}

std::vector<Extent> sorted_extents(std::span<const PageMap> maps) {
  std::vector<Extent> extents;
  extents.reserve(maps.size());
  for (const PageMap& map : maps) extents.push_back(extent_of(map));
  std::ranges::sort(extents, [](const Extent& a, const Extent& b) {
    return std::tie(a.space, a.begin) < std::tie(b.space, b.begin);
  });
  return extents;
}

/// Extents may be interleaved, as those of layers in one tensor are; chunks may not overlap.
Status check_disjoint(std::span<const PageMap> maps) {
  const std::vector<Extent> extents = sorted_extents(maps);
  for (size_t i = 0; i < extents.size(); ++i) {
    for (size_t j = i + 1; j < extents.size() && extents[i].meets(extents[j]); ++j) {
      const PageMap& a = *extents[i].map;
      const PageMap& b = *extents[j].map;
      if (a.num_blocks() > 1 && a.block_stride() != b.block_stride()) {
        return invalid(format_text(
            "page maps of layers {} and {} are interleaved with different block strides {} and "
            "{}: give them memory of their own",
            a.layers().first, b.layers().first, a.block_stride(), b.block_stride()));
      }
      if (internal::overlap(a, b, static_cast<int64_t>(extents[j].begin - extents[i].begin))) {
        return invalid(format_text("page maps of layers {} and {} overlap", a.layers().first,
                                   b.layers().first));
      }
    }
  }
  return {};
}

/// What a page map has to have in common with the config.
Status check_shape(const LayoutConfig& config, const PageMap& map) {
  const auto differs = [&](const char* what, uint64_t found, uint64_t expected) {
    return invalid(format_text("the page map of layer {} has {} {}, the config {}",
                               map.layers().first, what, found, expected));
  };
  if (map.num_blocks() != config.num_blocks) {
    return differs("num_blocks", map.num_blocks(), config.num_blocks);
  }
  if (map.outer_dim() != config.outer_dim) {
    return differs("outer_dim", map.outer_dim(), config.outer_dim);
  }
  if (map.chunk_bytes() != config.chunk_bytes()) {
    return differs("chunk_bytes", map.chunk_bytes(), config.chunk_bytes());
  }
  if (map.layers().end() > config.num_layers) {
    return differs("layers up to", map.layers().end(), config.num_layers);
  }
  return {};
}

/// Every piece that is stored apart starts at a multiple of the config's alignment.
Status check_alignment(const PhysicalLayout& layout) {
  const uint64_t alignment = layout.config().alignment;
  if (alignment == 1) return {};
  for (const BlockRun& run : layout.runs()) {
    const PageMap& map = layout.page_maps()[run.page_map];
    const uint64_t start = extent_of(map).begin - map.first_byte() + run.offset;
    if (((start | map.block_stride() | run.stride) & (alignment - 1)) != 0) {
      return invalid(format_text(
          "layer {}: address {}, block stride {} and stride {} are not all "
          "multiples of the alignment {}",
          map.layers().first, HexText{start}, map.block_stride(), run.stride, alignment));
    }
  }
  return {};
}

}  // namespace

std::string_view to_string(LayoutKind kind) noexcept {
  switch (kind) {
    case LayoutKind::kFullyContiguous:
      return "fully_contiguous";
    case LayoutKind::kLayerSeparateBlockFirst:
      return "layer_separate_block_first";
    case LayoutKind::kLayerSeparateBlockSecond:
      return "layer_separate_block_second";
    case LayoutKind::kFileSlots:
      return "file_slots";
    case LayoutKind::kPageMaps:
      return "page_maps";
  }
  return "unknown";
}

Result<MemoryNeed> required_memory(const LayoutConfig& config, LayoutKind kind,
                                   const SlotOptions& slots) {
  KVBM_TRY(config.validate());
  switch (kind) {
    case LayoutKind::kFullyContiguous:
      return MemoryNeed{1, contiguous_spec(config).block_stride * config.num_blocks};
    case LayoutKind::kLayerSeparateBlockFirst:
      return MemoryNeed{
          config.num_layers,
          layer_spec(config, BlockDimension::kBlockIsFirst).block_stride * config.num_blocks};
    case LayoutKind::kLayerSeparateBlockSecond:
      return MemoryNeed{config.num_layers,
                        layer_spec(config, BlockDimension::kBlockIsSecond).block_stride *
                            config.num_blocks * config.outer_dim};
    case LayoutKind::kFileSlots: {
      KVBM_ASSIGN_OR_RETURN(const SlotGeometry geometry,
                            slot_geometry(config.block_bytes(), slots));
      const auto bytes = internal::checked_mul(geometry.slot_bytes, config.num_blocks);
      if (!bytes || *bytes > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        return invalid(format_text("{} slots of {} bytes are 2^63 bytes or more", config.num_blocks,
                                   geometry.slot_bytes));
      }
      return MemoryNeed{1, *bytes};
    }
    case LayoutKind::kPageMaps:
      break;
  }
  return invalid("a layout of page maps takes the memory that its maps name");
}

Result<uint64_t> required_bytes(const LayoutConfig& config, LayoutKind kind,
                                const SlotOptions& slots) {
  KVBM_ASSIGN_OR_RETURN(const MemoryNeed need, required_memory(config, kind, slots));
  const auto bytes = internal::checked_mul(need.region_bytes, need.num_regions);
  if (!bytes) return invalid("the layout takes 2^64 bytes or more");
  return *bytes;
}

PhysicalLayout::PhysicalLayout(const LayoutConfig& config, LayoutKind kind,
                               std::vector<PageMap> maps)
    : config_(config),
      kind_(kind),
      maps_(std::move(maps)),
      map_of_layer_(config.num_layers, kNoMap) {}

Result<PhysicalLayout> PhysicalLayout::checked(const LayoutConfig& config, LayoutKind kind,
                                               std::vector<PageMap> maps) {
  PhysicalLayout layout(config, kind, std::move(maps));
  for (uint32_t index = 0; index < layout.maps_.size(); ++index) {
    const PageMap& map = layout.maps_[index];
    KVBM_TRY(check_shape(config, map));
    if (map.region().kind() != layout.storage_kind()) {
      return invalid(format_text("layer {} is in {} memory, layer {} in {} memory",
                                 layout.maps_.front().layers().first, layout.storage_kind(),
                                 map.layers().first, map.region().kind()));
    }
    for (uint32_t layer = map.layers().begin(); layer < map.layers().end(); ++layer) {
      if (layout.map_of_layer_[layer] != kNoMap) {
        return invalid(format_text("layer {} is in two page maps", layer));
      }
      layout.map_of_layer_[layer] = index;
    }
  }
  const auto missing = std::ranges::find(layout.map_of_layer_, kNoMap);
  if (missing != layout.map_of_layer_.end()) {
    return invalid(
        format_text("no page map holds layer {}", missing - layout.map_of_layer_.begin()));
  }
  KVBM_TRY(check_disjoint(layout.maps_));
  if (kind != LayoutKind::kFileSlots) KVBM_TRY(check_alignment(layout));
  return layout;
}

Result<PhysicalLayout> PhysicalLayout::fully_contiguous(const LayoutConfig& config,
                                                        const MemoryRegion& region) {
  KVBM_TRY(config.validate());
  if (region.is_file()) {
    return invalid("a fully contiguous layout is in memory; blocks in a file are file_slots");
  }
  PageMapSpec spec = contiguous_spec(config);
  spec.region = region;
  KVBM_ASSIGN_OR_RETURN(PageMap map, PageMap::create(spec));
  return checked(config, LayoutKind::kFullyContiguous, {std::move(map)});
}

Result<PhysicalLayout> PhysicalLayout::layer_separate(const LayoutConfig& config,
                                                      BlockDimension dimension,
                                                      std::span<const MemoryRegion> regions) {
  KVBM_TRY(config.validate());
  if (regions.size() != config.num_layers) {
    return invalid(format_text("{} regions for the {} layers of a layer separate layout",
                               regions.size(), config.num_layers));
  }
  std::vector<PageMap> maps;
  maps.reserve(regions.size());
  for (uint32_t layer = 0; layer < config.num_layers; ++layer) {
    if (regions[layer].is_file()) {
      return invalid("a layer separate layout is in memory; blocks in a file are file_slots");
    }
    PageMapSpec spec = layer_spec(config, dimension);
    spec.region = regions[layer];
    spec.layers.first = LayerId(static_cast<uint16_t>(layer));
    Result<PageMap> map = PageMap::create(spec);
    if (!map) {
      return make_error(std::move(map).error().with_context(format_text("layer {}", layer)));
    }
    maps.push_back(*std::move(map));
  }
  return checked(config,
                 dimension == BlockDimension::kBlockIsFirst ? LayoutKind::kLayerSeparateBlockFirst
                                                            : LayoutKind::kLayerSeparateBlockSecond,
                 std::move(maps));
}

Result<PhysicalLayout> PhysicalLayout::from_page_maps(const LayoutConfig& config,
                                                      std::vector<PageMap> maps) {
  KVBM_TRY(config.validate());
  if (maps.empty()) return invalid("a layout needs a page map");
  for (const PageMap& map : maps) {
    if (map.region().is_file()) {
      return invalid("page maps of a layout are in memory; blocks in a file are file_slots");
    }
  }
  return checked(config, LayoutKind::kPageMaps, std::move(maps));
}

Result<PhysicalLayout> PhysicalLayout::file_slots(const LayoutConfig& config,
                                                  const MemoryRegion& region,
                                                  const SlotOptions& options) {
  KVBM_TRY(config.validate());
  if (!region.is_file()) {
    return invalid(format_text("file slots are in a file, not in {} memory", region.kind()));
  }
  KVBM_ASSIGN_OR_RETURN(const SlotGeometry geometry, slot_geometry(config.block_bytes(), options));
  KVBM_ASSIGN_OR_RETURN(const MemoryNeed need,
                        required_memory(config, LayoutKind::kFileSlots, options));
  if (region.size_bytes() < need.region_bytes) {
    return invalid(format_text("{} slots of {} bytes do not fit into {} bytes", config.num_blocks,
                               geometry.slot_bytes, region.size_bytes()));
  }
  PageMapSpec spec = contiguous_spec(config);
  spec.region = region;
  spec.base_offset = geometry.header_bytes;
  spec.block_stride = geometry.slot_bytes;
  KVBM_ASSIGN_OR_RETURN(PageMap map, PageMap::create(spec));
  KVBM_ASSIGN_OR_RETURN(PhysicalLayout layout,
                        checked(config, LayoutKind::kFileSlots, {std::move(map)}));
  layout.slots_ = geometry;
  return layout;
}

uint32_t PhysicalLayout::page_map_of(LayerId layer) const {
  KVBM_CONTRACT(layer.value() < config_.num_layers,
                format_text("layer {} of a layout of {} layers", layer, config_.num_layers));
  return map_of_layer_[layer.value()];
}

MemoryRegion PhysicalLayout::region(BlockId block, LayerId layer, uint32_t outer) const {
  return maps_[page_map_of(layer)].chunk(block, layer, outer);
}

std::vector<BlockRun> PhysicalLayout::runs(LayerRange layers) const {
  KVBM_CONTRACT(check_layer_range(config_, layers).has_value(),
                format_text("{} layers from layer {} on in a layout of {}", layers.count,
                            layers.first, config_.num_layers));
  // Contiguous pieces first, then equal pieces at equal distances.
  std::vector<BlockRun> pieces;
  for (uint32_t layer = layers.begin(); layer < layers.end(); ++layer) {
    const uint32_t index = map_of_layer_[layer];
    for (uint32_t outer = 0; outer < config_.outer_dim; ++outer) {
      const uint64_t offset =
          maps_[index].offset(BlockId{0}, LayerId(static_cast<uint16_t>(layer)), outer);
      if (!pieces.empty() && pieces.back().page_map == index &&
          pieces.back().offset + pieces.back().bytes == offset) {
        pieces.back().bytes += config_.chunk_bytes();
      } else {
        pieces.push_back({.page_map = index, .offset = offset, .bytes = config_.chunk_bytes()});
      }
    }
  }
  std::vector<BlockRun> runs;
  for (const BlockRun& piece : pieces) {
    if (!runs.empty()) {
      BlockRun& run = runs.back();
      const uint64_t last = run.offset + (run.count - 1) * run.stride;
      if (run.page_map == piece.page_map && run.bytes == piece.bytes && piece.offset > last &&
          (run.count == 1 || run.stride == piece.offset - last)) {
        run.stride = piece.offset - last;
        ++run.count;
        continue;
      }
    }
    runs.push_back(piece);
  }
  return runs;
}

MemoryRegion PhysicalLayout::slot(BlockId block) const {
  KVBM_CONTRACT(slots_.has_value(), "slots are asked of a layout that is not in a file");
  KVBM_CONTRACT(block.value() < config_.num_blocks,
                format_text("slot {} of {}", block, config_.num_blocks));
  return maps_.front().region().slice(block.value() * slots_->slot_bytes, slots_->slot_bytes);
}

bool may_share_bytes(const PhysicalLayout& a, const PhysicalLayout& b) {
  for (const PageMap& map : a.page_maps()) {
    for (const PageMap& other : b.page_maps()) {
      if (extent_of(map).meets(extent_of(other))) return true;
    }
  }
  return false;
}

}  // namespace kvbm
