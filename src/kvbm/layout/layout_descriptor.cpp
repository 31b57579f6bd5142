// SPDX-License-Identifier: Apache-2.0
#include "kvbm/layout/layout_descriptor.hpp"

#include <limits>
#include <span>
#include <string>
#include <utility>

#include "kvbm/base/text.hpp"
#include "kvbm/layout/internal/overlap.hpp"

namespace kvbm {
namespace {

tl::unexpected<Error> invalid(std::string message) {
  return make_error(ErrorCode::kInvalidArgument, "layout descriptor: " + std::move(message));
}

/// Whose addresses an image has.
enum class Owner { kThisProcess, kOtherWorker };

Result<MemoryRegion> region_of(StorageKind storage, const PageMapDescriptor& map, Owner owner) {
  if (storage == StorageKind::kRemote) {
    return invalid("memory of another worker is described by that worker");
  }
  if (storage == StorageKind::kFile) {
    constexpr auto kLast = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
    if (map.address > kLast || map.size_bytes > kLast - map.address) {
      return invalid(format_text("{} bytes from {} on in a file end beyond 2^63", map.size_bytes,
                                 map.address));
    }
    // Any descriptor will do: nothing is read.
    return MemoryRegion::of_file({.fd = 0}, map.address, map.size_bytes);
  }
  if (map.address == 0) return invalid("a region has no address");
  // No machine has addresses there, and what is computed with the others has no overflow.
  if (map.address > internal::kFarthestEnd ||
      map.size_bytes > internal::kFarthestEnd - map.address) {
    return invalid(
        format_text("{} bytes at {} end beyond 2^60", map.size_bytes, HexText{map.address}));
  }
  if (owner == Owner::kOtherWorker) return MemoryRegion::of_remote(map.address, map.size_bytes);
  return MemoryRegion::of_bytes(
      storage,
      reinterpret_cast<std::byte*>(map.address),  // NOLINT(performance-no-int-to-ptr)
      map.size_bytes);
}

/// The options that give these slots: slot_bytes is a multiple of their alignment, and less than
/// one more than it has to be.
SlotOptions options_of(const SlotGeometry& slots) {
  return {.header_bytes = slots.header_bytes,
          .alignment = slots.slot_bytes & (~slots.slot_bytes + 1)};
}

Result<PhysicalLayout> from_maps(const LayoutDescriptor& layout,
                                 std::span<const MemoryRegion> regions) {
  std::vector<PageMap> maps;
  maps.reserve(regions.size());
  internal::SearchSteps steps;
  for (size_t i = 0; i < regions.size(); ++i) {
    const PageMapDescriptor& map = layout.page_maps[i];
    PageMapSpec spec{.region = regions[i],
                     .base_offset = map.base_offset,
                     .num_blocks = layout.config.num_blocks,
                     .block_stride = map.block_stride,
                     .layers = map.layers,
                     .layer_stride = map.strides.layer,
                     .outer_dim = layout.config.outer_dim,
                     .outer_stride = map.strides.outer,
                     .head_stride = map.strides.head,
                     .page_stride = map.strides.page,
                     .run_bytes = layout.config.chunk_bytes()};
    if (layout.format.is_known()) {
      spec.num_heads = *layout.config.num_heads;
      spec.page_size = layout.config.page_size;
      spec.run_bytes = layout.config.head_bytes();
    }
    KVBM_ASSIGN_OR_RETURN(PageMap made, PageMap::create(spec, steps));
    maps.push_back(std::move(made));
  }
  return PhysicalLayout::from_page_maps(layout.config, std::move(maps));
}

/// A layout that is nothing but addresses: no byte of it may be touched.
Result<PhysicalLayout> image_of(const LayoutDescriptor& layout, Owner owner) {
  KVBM_TRY(layout.config.validate());
  KVBM_TRY(check_kv_block_layout(layout.config, layout.format));
  std::vector<MemoryRegion> regions;
  regions.reserve(layout.page_maps.size());
  for (const PageMapDescriptor& map : layout.page_maps) {
    KVBM_ASSIGN_OR_RETURN(const MemoryRegion region, region_of(layout.storage, map, owner));
    regions.push_back(region);
  }
  const bool takes_one =
      layout.kind == LayoutKind::kFullyContiguous || layout.kind == LayoutKind::kFileSlots;
  if (takes_one && regions.size() != 1) {
    return invalid(format_text("{} page maps of a layout of the kind {}, which has one",
                               regions.size(), layout.kind));
  }
  if (layout.slots.has_value() != (layout.kind == LayoutKind::kFileSlots)) {
    return invalid(format_text("a layout of the kind {} {} slots", layout.kind,
                               layout.slots ? "has no" : "needs"));
  }
  switch (layout.kind) {
    case LayoutKind::kFullyContiguous:
      return PhysicalLayout::fully_contiguous(layout.config, regions.front(), layout.format);
    case LayoutKind::kLayerSeparateBlockFirst:
      return PhysicalLayout::layer_separate(layout.config, BlockDimension::kBlockIsFirst, regions,
                                            layout.format);
    case LayoutKind::kLayerSeparateBlockSecond:
      return PhysicalLayout::layer_separate(layout.config, BlockDimension::kBlockIsSecond, regions,
                                            layout.format);
    case LayoutKind::kFileSlots:
      return PhysicalLayout::file_slots(layout.config, regions.front(), options_of(*layout.slots),
                                        layout.format);
    case LayoutKind::kPageMaps:
      break;
  }
  return from_maps(layout, regions);
}

uint64_t address_of(const MemoryRegion& region) {
  if (region.is_file()) return region.file_offset();
  return region.is_remote() ? region.remote_address() : reinterpret_cast<uintptr_t>(region.base());
}

}  // namespace

LayoutDescriptor LayoutDescriptor::of(const PhysicalLayout& layout) {
  LayoutDescriptor described{.config = layout.config(),
                             .kind = layout.kind(),
                             .format = layout.kv_block_layout(),
                             .storage = layout.storage_kind(),
                             .registration = layout.registration()};
  if (layout.slots() != nullptr) described.slots = *layout.slots();
  described.page_maps.reserve(layout.page_maps().size());
  for (const PageMap& map : layout.page_maps()) {
    const MemoryRegion& region = map.region();
    described.page_maps.push_back({.address = address_of(region),
                                   .size_bytes = region.size_bytes(),
                                   .base_offset = map.base_offset(),
                                   .block_stride = map.block_stride(),
                                   .layers = map.layers(),
                                   .strides = map.strides()});
  }
  return described;
}

Status LayoutDescriptor::validate() const {
  KVBM_ASSIGN_OR_RETURN(const PhysicalLayout image, image_of(*this, Owner::kThisProcess));
  LayoutDescriptor expected = of(image);
  if (registration.memory_type != expected.registration.memory_type) {
    return invalid(format_text("{} memory is registered as {}", storage, registration.memory_type));
  }
  expected.registration = registration;
  if (*this == expected) return {};
  if (format != expected.format) {
    return invalid(format_text("its format is {}, its strides make {}", to_string(format),
                               to_string(expected.format)));
  }
  return invalid(
      format_text("its slots or strides are not those of a {} layout of its shape and "
                  "format, or not zero where an axis has one entry",
                  kind));
}

Result<PhysicalLayout> LayoutDescriptor::as_remote(const std::string& agent_name) const {
  if (storage == StorageKind::kFile) {
    return make_error(ErrorCode::kUnsupported,
                      "the slots of a file are reached by the worker that has the file");
  }
  KVBM_TRY(validate());
  KVBM_ASSIGN_OR_RETURN(PhysicalLayout image, image_of(*this, Owner::kOtherWorker));
  image.registration_ = registration;
  image.registration_.agent_name = agent_name;
  return image;
}

}  // namespace kvbm
