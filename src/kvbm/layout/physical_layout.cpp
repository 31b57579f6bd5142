// SPDX-License-Identifier: Apache-2.0
#include "kvbm/layout/physical_layout.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <string>
#include <tuple>
#include <utility>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/text.hpp"
#include "kvbm/layout/internal/format_rules.hpp"
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

/// Requires: known heads.
uint64_t count_of(const LayoutConfig& config, BlockAxis axis) {
  switch (axis) {
    case BlockAxis::kLayer:
      return config.num_layers;
    case BlockAxis::kOuter:
      return config.outer_dim;
    case BlockAxis::kHead:
      return *config.num_heads;
    case BlockAxis::kPage:
      break;
  }
  return config.page_size;
}

/// Requires: a valid config, for the format too.
PageMapSpec contiguous_spec(const LayoutConfig& config, const KvBlockLayout& format) {
  const BlockStrides strides = internal::packed_strides(config, format);
  PageMapSpec spec{.num_blocks = config.num_blocks,
                   .block_stride = round_up(config.block_bytes(), config.alignment),
                   .layers = config.all_layers(),
                   .layer_stride = strides.layer,
                   .outer_dim = config.outer_dim,
                   .outer_stride = strides.outer,
                   .head_stride = strides.head,
                   .page_stride = strides.page,
                   .run_bytes = config.chunk_bytes()};
  if (format.is_known()) {
    spec.num_heads = *config.num_heads;
    spec.page_size = config.page_size;
    spec.run_bytes = config.head_bytes();
  }
  return spec;
}

/// Of one layer, which the caller fills in. Requires: as above, and an operational or unknown
/// format.
PageMapSpec layer_spec(const LayoutConfig& config, BlockDimension dimension,
                       const KvBlockLayout& format) {
  PageMapSpec spec = contiguous_spec(config, format);
  spec.layers.count = 1;
  if (dimension == BlockDimension::kBlockIsFirst) {
    spec.block_stride = round_up(config.layer_bytes(), config.alignment);
  } else {
    spec.block_stride = round_up(config.chunk_bytes(), config.alignment);
    spec.outer_stride = spec.block_stride * config.num_blocks;
  }
  return spec;
}

/// The next permutation, in the order of the enumerators.
bool next_order(BlockAxisOrder& order) { return std::ranges::next_permutation(order).found; }

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
constexpr int kOtherWorker = -2;

/// Where a region starts in its file or address space.
uint64_t start_of(const MemoryRegion& region) {
  if (region.is_file()) return region.file_offset();
  return region.is_remote() ? region.remote_address() : reinterpret_cast<uintptr_t>(region.base());
}

int space_of(const MemoryRegion& region) {
  if (region.is_file()) return region.file().fd;
  return region.is_remote() ? kOtherWorker : kAddressSpace;
}

Extent extent_of(const PageMap& map) {
  const MemoryRegion& region = map.region();
  Extent extent;
  extent.map = &map;
  extent.space = space_of(region);
  const uint64_t start = start_of(region);
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

/// Extents may be interleaved, as those of layers in one tensor are; runs may not overlap.
Status check_disjoint(std::span<const PageMap> maps) {
  const std::vector<Extent> extents = sorted_extents(maps);
  internal::SearchSteps steps;
  for (size_t i = 0; i < extents.size(); ++i) {
    if (extents.size() > 1 && extents[i].end > internal::kFarthestEnd) {
      return invalid(
          format_text("the page map of layer {} ends beyond 2^60", extents[i].map->layers().first));
    }
  }
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
      KVBM_ASSIGN_OR_RETURN(
          const bool found,
          internal::overlap(a, b, static_cast<int64_t>(extents[j].begin - extents[i].begin),
                            steps));
      if (found) {
        return invalid(format_text("page maps of layers {} and {} overlap", a.layers().first,
                                   b.layers().first));
      }
    }
  }
  return {};
}

/// One head of one token has no order either.
bool is_opaque(const PageMap& map) { return map.num_heads() == 1 && map.page_size() == 1; }

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
  if (!is_opaque(map)) {
    if (!config.num_heads) {
      return invalid(
          format_text("the page map of layer {} has heads and pages, and the config "
                      "has no num_heads",
                      map.layers().first));
    }
    if (map.num_heads() != *config.num_heads) {
      return differs("num_heads", map.num_heads(), *config.num_heads);
    }
    if (map.page_size() != config.page_size) {
      return differs("page_size", map.page_size(), config.page_size);
    }
  }
  if (map.chunk_bytes() != config.chunk_bytes()) {
    return differs("chunk_bytes", map.chunk_bytes(), config.chunk_bytes());
  }
  if (map.layers().end() > config.num_layers) {
    return differs("layers up to", map.layers().end(), config.num_layers);
  }
  return {};
}

/// Whether the strides of a map fall in this order; an axis of one entry may be anywhere. Where
/// layers are in several maps, they are outermost.
bool falls_in_order(const PageMap& map, const BlockAxisOrder& order, bool layers_are_apart) {
  uint64_t last = std::numeric_limits<uint64_t>::max();
  for (const BlockAxis axis : order) {
    if (layers_are_apart && axis == BlockAxis::kLayer) {
      if (axis != order.front()) return false;
      continue;
    }
    if (map.count(axis) == 1) continue;
    if (map.strides()[axis] >= last) return false;
    last = map.strides()[axis];
  }
  return true;
}

/// The format that the strides of an engine's tensors make. Requires: maps of the config's shape.
Result<KvBlockLayout> format_of(std::span<const PageMap> maps) {
  const auto opaque = static_cast<size_t>(std::ranges::count_if(maps, is_opaque));
  if (opaque == maps.size()) return KvBlockLayout::kUnknown;
  if (opaque > 0) {
    return invalid("some page maps have heads and pages, others opaque chunks");
  }
  const bool apart = maps.size() > 1;
  const auto fits_all = [&](const BlockAxisOrder& order) {
    return std::ranges::all_of(
        maps, [&](const PageMap& map) { return falls_in_order(map, order, apart); });
  };
  for (const KvBlockLayout& named : {KvBlockLayout::kOperationalNHD, KvBlockLayout::kOperationalHND,
                                     KvBlockLayout::kUniversalPP, KvBlockLayout::kUniversalTP}) {
    if (fits_all(named.order())) return named;
  }
  BlockAxisOrder order = KvBlockLayout::kOperationalNHD.order();
  do {
    if (fits_all(order)) return KvBlockLayout::custom(order);
  } while (next_order(order));
  return invalid("the page maps of different layers have their axes in different orders");
}

/// Every run that is stored apart starts at a multiple of the config's alignment.
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

RegistrationMetadata registration_of(const MemoryRegion& region) {
  switch (region.kind()) {
    case StorageKind::kSystem:
    case StorageKind::kPinned:
    case StorageKind::kRemote:  // its worker says
      break;
    case StorageKind::kDevice:
      return {.memory_type = MemoryType::kVram};
    case StorageKind::kFile:
      return {.memory_type = MemoryType::kFile,
              .device_id = static_cast<uint64_t>(region.file().fd)};
  }
  return {.memory_type = MemoryType::kDram};
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

std::string_view to_string(MemoryType type) noexcept {
  switch (type) {
    case MemoryType::kDram:
      return "dram";
    case MemoryType::kVram:
      return "vram";
    case MemoryType::kFile:
      return "file";
  }
  return "unknown";
}

namespace internal {

BlockStrides packed_strides(const LayoutConfig& config, const KvBlockLayout& format) {
  BlockStrides strides;
  if (!format.is_known()) {
    strides.layer = config.layer_bytes();
    strides.outer = config.chunk_bytes();
    return strides;
  }
  uint64_t bytes = config.head_bytes();
  for (size_t i = kNumBlockAxes; i > 0; --i) {
    const BlockAxis axis = format.order()[i - 1];
    strides[axis] = bytes;
    bytes *= count_of(config, axis);
  }
  return strides;
}

Status check_layers_apart(const KvBlockLayout& format) {
  if (!format.is_known() || format.is_operational()) return {};
  return invalid(format_text(
      "the format {} has something outside of layer and outer, so its layers cannot "
      "lie apart: take operational_nhd or operational_hnd, or a fully contiguous layout",
      to_string(format)));
}

}  // namespace internal

Result<MemoryNeed> required_memory(const LayoutConfig& config, LayoutKind kind,
                                   const SlotOptions& slots) {
  KVBM_TRY(config.validate());
  switch (kind) {
    case LayoutKind::kFullyContiguous:
      return MemoryNeed{1, contiguous_spec(config, {}).block_stride * config.num_blocks};
    case LayoutKind::kLayerSeparateBlockFirst:
      return MemoryNeed{
          config.num_layers,
          layer_spec(config, BlockDimension::kBlockIsFirst, {}).block_stride * config.num_blocks};
    case LayoutKind::kLayerSeparateBlockSecond:
      return MemoryNeed{config.num_layers,
                        layer_spec(config, BlockDimension::kBlockIsSecond, {}).block_stride *
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
                               const KvBlockLayout& format, std::vector<PageMap> maps)
    : config_(config),
      kind_(kind),
      format_(format),
      maps_(std::move(maps)),
      map_of_layer_(config.num_layers, kNoMap),
      has_regions_(std::ranges::all_of(
          maps_, [](const PageMap& map) { return map.chunks_are_contiguous(); })),
      registration_(registration_of(maps_.front().region())) {}

Result<PhysicalLayout> PhysicalLayout::checked(const LayoutConfig& config, LayoutKind kind,
                                               const KvBlockLayout& format,
                                               std::vector<PageMap> maps) {
  PhysicalLayout layout(config, kind, format, std::move(maps));
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
  if (kind == LayoutKind::kPageMaps) {
    KVBM_ASSIGN_OR_RETURN(layout.format_, format_of(layout.maps_));
  }
  if (kind != LayoutKind::kFileSlots) KVBM_TRY(check_alignment(layout));
  return layout;
}

Result<PhysicalLayout> PhysicalLayout::fully_contiguous(const LayoutConfig& config,
                                                        const MemoryRegion& region,
                                                        const KvBlockLayout& format) {
  KVBM_TRY(config.validate());
  KVBM_TRY(check_kv_block_layout(config, format));
  if (region.is_file()) {
    return invalid("a fully contiguous layout is in memory; blocks in a file are file_slots");
  }
  PageMapSpec spec = contiguous_spec(config, format);
  spec.region = region;
  KVBM_ASSIGN_OR_RETURN(PageMap map, PageMap::create(spec));
  return checked(config, LayoutKind::kFullyContiguous, format, {std::move(map)});
}

Result<PhysicalLayout> PhysicalLayout::layer_separate(const LayoutConfig& config,
                                                      BlockDimension dimension,
                                                      std::span<const MemoryRegion> regions,
                                                      const KvBlockLayout& format) {
  KVBM_TRY(config.validate());
  KVBM_TRY(check_kv_block_layout(config, format));
  KVBM_TRY(internal::check_layers_apart(format));
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
    PageMapSpec spec = layer_spec(config, dimension, format);
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
                 format, std::move(maps));
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
  return checked(config, LayoutKind::kPageMaps, {}, std::move(maps));
}

Result<PhysicalLayout> PhysicalLayout::file_slots(const LayoutConfig& config,
                                                  const MemoryRegion& region,
                                                  const SlotOptions& options,
                                                  const KvBlockLayout& format) {
  KVBM_TRY(config.validate());
  KVBM_TRY(check_kv_block_layout(config, format));
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
  PageMapSpec spec = contiguous_spec(config, format);
  spec.region = region;
  spec.base_offset = geometry.header_bytes;
  spec.block_stride = geometry.slot_bytes;
  KVBM_ASSIGN_OR_RETURN(PageMap map, PageMap::create(spec));
  KVBM_ASSIGN_OR_RETURN(PhysicalLayout layout,
                        checked(config, LayoutKind::kFileSlots, format, {std::move(map)}));
  layout.slots_ = geometry;
  return layout;
}

uint32_t PhysicalLayout::page_map_of(LayerId layer) const {
  KVBM_CONTRACT(layer.value() < config_.num_layers,
                format_text("layer {} of a layout of {} layers", layer, config_.num_layers));
  return map_of_layer_[layer.value()];
}

MemoryRegion PhysicalLayout::region(BlockId block, LayerId layer, uint32_t outer) const {
  KVBM_CONTRACT(has_regions_, format_text("a chunk of the format {} is not one run of bytes",
                                          to_string(format_)));
  return maps_[page_map_of(layer)].chunk(block, layer, outer);
}

MemoryRegion PhysicalLayout::head_region(BlockId block, LayerId layer, uint32_t outer,
                                         uint32_t head, uint32_t page) const {
  KVBM_CONTRACT(format_.is_known(), "heads are asked of a layout whose format is unknown");
  return maps_[page_map_of(layer)].run(block, layer, outer, head, page);
}

std::vector<BlockRun> PhysicalLayout::runs(LayerRange layers) const {
  KVBM_CONTRACT(check_layer_range(config_, layers).has_value(),
                format_text("{} layers from layer {} on in a layout of {}", layers.count,
                            layers.first, config_.num_layers));
  const BlockAxisOrder order =
      format_.is_known() ? format_.order() : KvBlockLayout::kOperationalNHD.order();
  const PageMap& first = maps_[map_of_layer_[layers.begin()]];
  std::array<uint32_t, kNumBlockAxes> counts{};  // by place in the order
  for (size_t i = 0; i < kNumBlockAxes; ++i) {
    counts[i] = order[i] == BlockAxis::kLayer ? layers.count : first.count(order[i]);
  }
  // The innermost axes that are packed in every map make one piece.
  const bool one_map = layers.end() <= first.layers().end();
  uint64_t bytes = first.run_bytes();
  size_t inner = kNumBlockAxes;
  for (; inner > 0; --inner) {
    const BlockAxis axis = order[inner - 1];
    const auto is_packed = [&](const PageMap& map) { return map.strides()[axis] == bytes; };
    if (counts[inner - 1] > 1) {
      if (axis == BlockAxis::kLayer && !one_map) break;
      if (one_map ? !is_packed(first) : !std::ranges::all_of(maps_, is_packed)) break;
    }
    bytes *= counts[inner - 1];
  }

  // Contiguous pieces first, then equal pieces at equal distances.
  std::vector<BlockRun> pieces;
  std::array<uint32_t, kNumBlockAxes> at{};  // by axis
  const auto visit = [&](auto&& self, size_t place) -> void {
    if (place < inner) {
      uint32_t& index = at[static_cast<size_t>(order[place])];
      for (index = 0; index < counts[place]; ++index) self(self, place + 1);
      index = 0;
      return;
    }
    const uint32_t layer = layers.begin() + at[static_cast<size_t>(BlockAxis::kLayer)];
    const uint32_t map = map_of_layer_[layer];
    const uint64_t offset = maps_[map].offset(BlockId{0}, LayerId(static_cast<uint16_t>(layer)),
                                              at[static_cast<size_t>(BlockAxis::kOuter)],
                                              at[static_cast<size_t>(BlockAxis::kHead)],
                                              at[static_cast<size_t>(BlockAxis::kPage)]);
    if (!pieces.empty() && pieces.back().page_map == map &&
        pieces.back().offset + pieces.back().bytes == offset) {
      pieces.back().bytes += bytes;
    } else {
      pieces.push_back({.page_map = map, .offset = offset, .bytes = bytes});
    }
  };
  visit(visit, 0);

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
