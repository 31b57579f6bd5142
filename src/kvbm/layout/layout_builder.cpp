// SPDX-License-Identifier: Apache-2.0
#include "kvbm/layout/layout_builder.hpp"

#include <algorithm>
#include <span>

#include "kvbm/base/text.hpp"
#include "kvbm/layout/internal/format_rules.hpp"

namespace kvbm {
namespace {

/// Of each layer's part of a reservation.
constexpr uint64_t kPartAlignment = 512;
/// Of a reservation: files that go around the page cache take buffers from such addresses.
constexpr uint64_t kReservationAlignment = 4096;

tl::unexpected<Error> invalid(std::string message) {
  return make_error(ErrorCode::kInvalidArgument, std::move(message));
}

/// One reservation for all regions of the layout.
Status reserve(internal::LayoutRecipe& recipe, std::vector<MemoryRegion>& regions) {
  KVBM_ASSIGN_OR_RETURN(const MemoryNeed need,
                        required_memory(recipe.config, recipe.kind, recipe.slots));
  const uint64_t alignment = recipe.config.alignment;
  // Of a single region nothing is rounded up.
  const auto each =
      need.num_regions == 1
          ? need.region_bytes
          : internal::checked_round_up(need.region_bytes, std::max(alignment, kPartAlignment));
  const auto total = each ? internal::checked_mul(*each, need.num_regions) : std::nullopt;
  if (!total) return invalid("the layout takes 2^64 bytes or more");
  KVBM_ASSIGN_OR_RETURN(OwnedRegion memory,
                        recipe.allocator(*total, std::max(alignment, kReservationAlignment)));
  if (memory.region.kind() != *recipe.storage) {
    return invalid(format_text("the allocator gave {} memory instead of {}", memory.region.kind(),
                               *recipe.storage));
  }
  if (memory.region.size_bytes() < *total) {
    return invalid(
        format_text("the allocator gave {} of {} bytes", memory.region.size_bytes(), *total));
  }
  for (size_t i = 0; i < need.num_regions; ++i) {
    regions.push_back(memory.region.slice(i * *each, need.region_bytes));
  }
  recipe.regions.push_back(std::move(memory));
  return {};
}

Result<PhysicalLayout> make(const internal::LayoutRecipe& recipe,
                            std::span<const MemoryRegion> regions) {
  switch (recipe.kind) {
    case LayoutKind::kFullyContiguous:
    case LayoutKind::kFileSlots:
      if (regions.size() != 1) {
        return invalid(format_text("{} regions for a layout of the kind {}, which takes one",
                                   regions.size(), recipe.kind));
      }
      if (recipe.kind == LayoutKind::kFullyContiguous) {
        return PhysicalLayout::fully_contiguous(recipe.config, regions.front(), recipe.format);
      }
      return PhysicalLayout::file_slots(recipe.config, regions.front(), recipe.slots,
                                        recipe.format);
    case LayoutKind::kLayerSeparateBlockFirst:
      return PhysicalLayout::layer_separate(recipe.config, BlockDimension::kBlockIsFirst, regions,
                                            recipe.format);
    case LayoutKind::kLayerSeparateBlockSecond:
      return PhysicalLayout::layer_separate(recipe.config, BlockDimension::kBlockIsSecond, regions,
                                            recipe.format);
    case LayoutKind::kPageMaps:
      break;
  }
  KVBM_ASSIGN_OR_RETURN(std::vector<PageMap> maps, page_maps_of(recipe.config, recipe.tensors));
  return PhysicalLayout::from_page_maps(recipe.config, std::move(maps));
}

}  // namespace

LayoutBuilder PhysicalLayout::builder(std::string agent_name) {
  return LayoutBuilder(std::move(agent_name));
}

Result<PhysicalLayout> LayoutBuildStage::build() && {
  KVBM_TRY(recipe_.config.validate());
  // Before anything is allocated.
  KVBM_TRY(check_kv_block_layout(recipe_.config, recipe_.format));
  if (recipe_.kind == LayoutKind::kLayerSeparateBlockFirst ||
      recipe_.kind == LayoutKind::kLayerSeparateBlockSecond) {
    KVBM_TRY(internal::check_layers_apart(recipe_.format));
  }
  std::vector<MemoryRegion> regions;
  if (recipe_.storage) {
    KVBM_TRY(reserve(recipe_, regions));
  } else {
    for (const OwnedRegion& memory : recipe_.regions) regions.push_back(memory.region);
  }
  KVBM_ASSIGN_OR_RETURN(PhysicalLayout layout, make(recipe_, regions));
  layout.registration_.agent_name = std::move(recipe_.agent_name);
  if (layout.storage_kind() == StorageKind::kDevice) {
    layout.registration_.device_id = recipe_.device_id;
  } else if (recipe_.device_id != 0) {
    return invalid(format_text("device {} is named for {} memory: leave device_id at 0",
                               recipe_.device_id, layout.storage_kind()));
  }
  for (OwnedRegion& memory : recipe_.regions) {
    if (memory.owner != nullptr) layout.owners_.push_back(std::move(memory.owner));
  }
  return layout;
}

}  // namespace kvbm
