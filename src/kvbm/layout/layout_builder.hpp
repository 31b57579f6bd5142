// SPDX-License-Identifier: Apache-2.0
// LayoutBuilder: makes a PhysicalLayout that owns its memory, in steps that are types.
//
//   PhysicalLayout::builder("worker-0")
//       .with_config(config)                                     // LayoutBuilder
//       .fully_contiguous()                                      // LayoutKindStage
//       .with_block_layout(KvBlockLayout::kUniversalTP)          // LayoutMemoryStage, optional
//       .allocate_system()
//       .build();                                                // LayoutBuildStage
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kvbm/base/result.hpp"
#include "kvbm/device/device.hpp"
#include "kvbm/layout/external_tensor.hpp"
#include "kvbm/layout/kv_block_layout.hpp"
#include "kvbm/layout/layout_config.hpp"
#include "kvbm/layout/owned_region.hpp"
#include "kvbm/layout/physical_layout.hpp"
#include "kvbm/layout/slot_format.hpp"
#include "kvbm/memory/file_memory.hpp"
#include "kvbm/memory/system_memory.hpp"

namespace kvbm {

namespace internal {

/// What the steps have collected.
struct LayoutRecipe {
  std::string agent_name = {};
  LayoutConfig config = {};
  LayoutKind kind = LayoutKind::kFullyContiguous;
  KvBlockLayout format = {};
  uint64_t device_id = 0;
  // One of these three.
  RegionAllocator allocator = {};
  std::vector<OwnedRegion> regions = {};
  std::vector<ExternalTensor> tensors = {};

  std::optional<StorageKind> storage = std::nullopt;  ///< what the regions have to be
  SlotOptions slots = {};
};

}  // namespace internal

/// The last step.
class LayoutBuildStage {
 public:
  explicit LayoutBuildStage(internal::LayoutRecipe recipe) noexcept : recipe_(std::move(recipe)) {}

  /// Allocates, and checks everything. The layout, and every copy of it, keeps the memory alive.
  /// Errors: those of the layout's kind, of the memory asked for, and kInvalidArgument (memory of
  /// another kind than the step says, or too little).
  [[nodiscard]] Result<PhysicalLayout> build() &&;

 private:
  internal::LayoutRecipe recipe_;
};

/// Takes the memory of a fully contiguous layout (kHasDisk) or of one whose layers lie apart. One
/// reservation serves all layers, each of which starts at a multiple of 512 and of the config's
/// alignment.
template <bool kHasDisk>
class LayoutMemoryStage {
 public:
  explicit LayoutMemoryStage(internal::LayoutRecipe recipe) noexcept : recipe_(std::move(recipe)) {}

  /// The order of axes of a block; unknown without this step.
  [[nodiscard]] LayoutMemoryStage with_block_layout(const KvBlockLayout& format) && {
    recipe_.format = format;
    return std::move(*this);
  }

  /// Pageable host memory that reads as zero.
  [[nodiscard]] LayoutBuildStage allocate_system(HugePages huge_pages = HugePages::kDefault) && {
    return std::move(*this).allocate_from(
        [huge_pages](uint64_t size_bytes, uint64_t alignment) -> Result<OwnedRegion> {
          KVBM_ASSIGN_OR_RETURN(
              SystemMemory memory,
              SystemMemory::create(
                  {.size_bytes = size_bytes, .alignment = alignment, .huge_pages = huge_pages}));
          return OwnedRegion::of(std::move(memory));
        },
        StorageKind::kSystem);
  }

  /// Host memory that a device reaches by itself, from whoever has it.
  [[nodiscard]] LayoutBuildStage allocate_pinned(RegionAllocator allocator) && {
    return std::move(*this).allocate_from(std::move(allocator), StorageKind::kPinned);
  }

  /// Memory of a device, which stays until build(). The layout may outlive it.
  [[nodiscard]] LayoutBuildStage allocate_device(Device& device) && {
    recipe_.device_id = static_cast<uint64_t>(device.info().ordinal);
    return std::move(*this).allocate_from(
        [&device](uint64_t size_bytes, uint64_t alignment) -> Result<OwnedRegion> {
          KVBM_ASSIGN_OR_RETURN(DeviceMemory memory, device.allocate(size_bytes, alignment));
          return OwnedRegion::of(std::move(memory));
        },
        StorageKind::kDevice);
  }

  /// Slots of a nameless file (LayoutKind::kFileSlots). `options.size_bytes` is the layout's affair
  /// and stays 0. Without `slots`: kDirectSlots where direct I/O is tried, else the default.
  [[nodiscard]] LayoutBuildStage allocate_disk(
      FileOptions options, const std::optional<SlotOptions>& slots = std::nullopt) &&
      requires kHasDisk {
    recipe_.kind = LayoutKind::kFileSlots;
    recipe_.slots = slots.value_or(options.direct == DirectIo::kOff ? SlotOptions{} : kDirectSlots);
    return std::move(*this).allocate_from(
        [options = std::move(options)](uint64_t size_bytes, uint64_t) -> Result<OwnedRegion> {
          if (options.size_bytes != 0) {
            return make_error(ErrorCode::kInvalidArgument,
                              "the layout says how large its file is: leave size_bytes at 0");
          }
          FileOptions sized = options;
          sized.size_bytes = size_bytes;
          KVBM_ASSIGN_OR_RETURN(FileMemory memory, FileMemory::create(sized));
          return OwnedRegion::of(std::move(memory));
        },
        StorageKind::kFile);
  }

  /// Memory of the caller's: one region, or one a layer. `device_id` is the ordinal of the device
  /// that has it; build() refuses another than 0 for memory of the host.
  [[nodiscard]] LayoutBuildStage with_regions(std::vector<OwnedRegion> regions,
                                              uint64_t device_id = 0) && {
    recipe_.regions = std::move(regions);
    recipe_.device_id = device_id;
    return LayoutBuildStage(std::move(recipe_));
  }

 private:
  [[nodiscard]] LayoutBuildStage allocate_from(RegionAllocator allocator, StorageKind storage) && {
    recipe_.allocator = std::move(allocator);
    recipe_.storage = storage;
    return LayoutBuildStage(std::move(recipe_));
  }

  internal::LayoutRecipe recipe_;
};

/// Takes the tensors of an engine.
class LayoutTensorStage {
 public:
  explicit LayoutTensorStage(internal::LayoutRecipe recipe) noexcept : recipe_(std::move(recipe)) {}

  /// Not owned: they stay as long as the layout is used. Shapes and strides are checked; the format
  /// is what they say. `device_id` is the ordinal of the device that has them; build() refuses
  /// another than 0 for memory of the host.
  [[nodiscard]] LayoutBuildStage with_external_device_regions(std::vector<ExternalTensor> tensors,
                                                              uint64_t device_id = 0) && {
    recipe_.tensors = std::move(tensors);
    recipe_.device_id = device_id;
    return LayoutBuildStage(std::move(recipe_));
  }

 private:
  internal::LayoutRecipe recipe_;
};

/// Takes the kind.
class LayoutKindStage {
 public:
  explicit LayoutKindStage(internal::LayoutRecipe recipe) noexcept : recipe_(std::move(recipe)) {}

  [[nodiscard]] LayoutMemoryStage<true> fully_contiguous() && {
    recipe_.kind = LayoutKind::kFullyContiguous;
    return LayoutMemoryStage<true>(std::move(recipe_));
  }
  [[nodiscard]] LayoutMemoryStage<false> layer_separate(BlockDimension dimension) && {
    recipe_.kind = dimension == BlockDimension::kBlockIsFirst
                       ? LayoutKind::kLayerSeparateBlockFirst
                       : LayoutKind::kLayerSeparateBlockSecond;
    return LayoutMemoryStage<false>(std::move(recipe_));
  }
  /// Tensors of an engine, whatever their order.
  [[nodiscard]] LayoutTensorStage page_maps() && {
    recipe_.kind = LayoutKind::kPageMaps;
    return LayoutTensorStage(std::move(recipe_));
  }

 private:
  internal::LayoutRecipe recipe_;
};

/// The first step, from PhysicalLayout::builder.
/// Threads: one thread at a time, as all stages.
class LayoutBuilder {
 public:
  explicit LayoutBuilder(std::string agent_name) { recipe_.agent_name = std::move(agent_name); }

  [[nodiscard]] LayoutKindStage with_config(const LayoutConfig& config) && {
    recipe_.config = config;
    return LayoutKindStage(std::move(recipe_));
  }

 private:
  internal::LayoutRecipe recipe_;
};

}  // namespace kvbm
