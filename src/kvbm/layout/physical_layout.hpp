// SPDX-License-Identifier: Apache-2.0
// PhysicalLayout: where every byte of every block of one place is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvbm/base/ids.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/layout/kv_block_layout.hpp"
#include "kvbm/layout/layout_config.hpp"
#include "kvbm/layout/page_map.hpp"
#include "kvbm/layout/slot_format.hpp"
#include "kvbm/memory/memory_region.hpp"

namespace kvbm {

class LayoutBuilder;
class LayoutBuildStage;
struct LayoutDescriptor;

/// The order of axes in one layer's memory.
enum class BlockDimension : uint8_t {
  kBlockIsFirst,   ///< [num_blocks, outer_dim, chunk]
  kBlockIsSecond,  ///< [outer_dim, num_blocks, chunk]
};

enum class LayoutKind : uint8_t {
  kFullyContiguous,           ///< one region, [num_blocks, block]
  kLayerSeparateBlockFirst,   ///< a region a layer, see BlockDimension::kBlockIsFirst
  kLayerSeparateBlockSecond,  ///< a region a layer, see BlockDimension::kBlockIsSecond
  kFileSlots,                 ///< one region of a file: a slot a block
  kPageMaps,                  ///< any other: the tensors of an engine
};

/// "fully_contiguous", "layer_separate_block_first", "layer_separate_block_second", "file_slots",
/// "page_maps".
[[nodiscard]] std::string_view to_string(LayoutKind kind) noexcept;

/// Where registered memory is, in the words of remote agents.
enum class MemoryType : uint8_t { kDram, kVram, kFile };

/// "dram", "vram", "file".
[[nodiscard]] std::string_view to_string(MemoryType type) noexcept;

/// What a remote agent is told about the memory of a layout.
struct RegistrationMetadata {
  std::string agent_name = {};  ///< empty: made without an agent
  MemoryType memory_type = MemoryType::kDram;
  uint64_t device_id = 0;  ///< the ordinal of a device, the descriptor of a file, else 0

  friend bool operator==(const RegistrationMetadata&, const RegistrationMetadata&) = default;
};

/// What a kind of layout needs: `num_regions` regions of `region_bytes` each.
struct MemoryNeed {
  size_t num_regions = 0;
  uint64_t region_bytes = 0;
};

/// Errors: kInvalidArgument (a config that is not valid; kPageMaps, which needs what it was given).
[[nodiscard]] Result<MemoryNeed> required_memory(const LayoutConfig& config, LayoutKind kind,
                                                 const SlotOptions& slots = {});
/// All regions together.
[[nodiscard]] Result<uint64_t> required_bytes(const LayoutConfig& config, LayoutKind kind,
                                              const SlotOptions& slots = {});

/// A part of every block that is contiguous, `count` times. Piece k of block b starts in the region
/// of its page map at
///   offset + b * block_stride of the map + k * stride.
/// Units: bytes, apart from `page_map` and `count`.
struct BlockRun {
  uint32_t page_map = 0;  ///< index into page_maps()
  uint64_t offset = 0;
  uint64_t bytes = 0;
  uint32_t count = 1;
  uint64_t stride = 0;  ///< 0 if count is 1

  friend bool operator==(const BlockRun&, const BlockRun&) = default;
};

/// Its format is an order of axes that becomes strides here. Without a format a chunk is opaque:
/// the block is copied to the same shape only.
/// Ownership: borrows the bytes of its regions, unless its builder gave it their owner; a value
/// otherwise. Threads: any thread; immutable.
class PhysicalLayout {
 public:
  /// Config, kind, memory, build: see layout_builder.hpp.
  [[nodiscard]] static LayoutBuilder builder(std::string agent_name);

  /// Block after block. Errors: kInvalidArgument (the config, a format whose heads it does not
  /// know, a region that is too small, overlaps or is not aligned, a file: see file_slots).
  [[nodiscard]] static Result<PhysicalLayout> fully_contiguous(
      const LayoutConfig& config, const MemoryRegion& region,
      const KvBlockLayout& format = KvBlockLayout::kUnknown);

  /// One region a layer, in their order. Errors: as above, and another number of regions, regions
  /// of different kinds, or a known format that is not operational.
  [[nodiscard]] static Result<PhysicalLayout> layer_separate(
      const LayoutConfig& config, BlockDimension dimension, std::span<const MemoryRegion> regions,
      const KvBlockLayout& format = KvBlockLayout::kUnknown);

  /// An engine's tensors. The format is the one that the strides make, unknown if each chunk is one
  /// run. Errors: kInvalidArgument (a layer that no map or more than one holds; a map of
  /// another block count or outer_dim, or whose chunks are neither opaque nor all heads and tokens
  /// of the config; maps of different kinds or orders, or of files; maps whose runs overlap; a run
  /// that breaks the config's alignment), kUnsupported (see PageMap).
  [[nodiscard]] static Result<PhysicalLayout> from_page_maps(const LayoutConfig& config,
                                                             std::vector<PageMap> maps);

  /// Block i is the payload of slot i of a file, in the order of its format; the config's alignment
  /// says nothing about it, `options` do. Errors: kInvalidArgument (the config, the format, the
  /// options, a region that is no file or too small).
  [[nodiscard]] static Result<PhysicalLayout> file_slots(
      const LayoutConfig& config, const MemoryRegion& region, const SlotOptions& options = {},
      const KvBlockLayout& format = KvBlockLayout::kUnknown);

  [[nodiscard]] const LayoutConfig& config() const noexcept { return config_; }
  [[nodiscard]] LayoutKind kind() const noexcept { return kind_; }
  [[nodiscard]] const KvBlockLayout& kv_block_layout() const noexcept { return format_; }
  [[nodiscard]] StorageKind storage_kind() const noexcept { return maps_.front().region().kind(); }
  [[nodiscard]] const RegistrationMetadata& registration() const noexcept { return registration_; }
  [[nodiscard]] std::span<const PageMap> page_maps() const noexcept { return maps_; }
  /// The index of the page map that holds a layer. Contract: a layer of the config.
  [[nodiscard]] uint32_t page_map_of(LayerId layer) const;

  /// Whether each chunk is one run of bytes, so that region() may be asked: not so where heads are
  /// outside of layers.
  [[nodiscard]] bool has_regions() const noexcept { return has_regions_; }
  /// The chunk of (block, layer, outer). Contract: has_regions(), and all three are in range.
  [[nodiscard]] MemoryRegion region(BlockId block, LayerId layer, uint32_t outer) const;

  /// The bytes of one head of one token. Contract: a known format, all five in range.
  [[nodiscard]] MemoryRegion head_region(BlockId block, LayerId layer, uint32_t outer,
                                         uint32_t head, uint32_t page) const;

  /// One block as the fewest contiguous pieces in the order of its format, equal ones at equal
  /// distances folded into one run. Pieces do not reach over page maps. Contract: a range inside
  /// the config's layers.
  [[nodiscard]] std::vector<BlockRun> runs(LayerRange layers) const;
  [[nodiscard]] std::vector<BlockRun> runs() const { return runs(config_.all_layers()); }

  /// Null unless kind() is kFileSlots.
  [[nodiscard]] const SlotGeometry* slots() const noexcept { return slots_ ? &*slots_ : nullptr; }
  /// The whole slot of a block, header and padding included. Contract: file slots, a block in
  /// range.
  [[nodiscard]] MemoryRegion slot(BlockId block) const;

 private:
  friend class LayoutBuildStage;   // gives it an agent and owners
  friend struct LayoutDescriptor;  // gives the layout of another worker that worker's agent

  PhysicalLayout(const LayoutConfig& config, LayoutKind kind, const KvBlockLayout& format,
                 std::vector<PageMap> maps);
  [[nodiscard]] static Result<PhysicalLayout> checked(const LayoutConfig& config, LayoutKind kind,
                                                      const KvBlockLayout& format,
                                                      std::vector<PageMap> maps);

  LayoutConfig config_;
  LayoutKind kind_;
  KvBlockLayout format_;
  std::vector<PageMap> maps_;
  std::vector<uint32_t> map_of_layer_;
  std::optional<SlotGeometry> slots_;
  bool has_regions_ = false;
  RegistrationMetadata registration_;
  std::vector<std::shared_ptr<const void>> owners_;  ///< of the memory; empty: borrowed
};

/// Whether a byte may belong to both: their extents, page map by page map, overlap. No is certain.
[[nodiscard]] bool may_share_bytes(const PhysicalLayout& a, const PhysicalLayout& b);

}  // namespace kvbm
