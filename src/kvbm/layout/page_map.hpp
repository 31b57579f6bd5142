// SPDX-License-Identifier: Apache-2.0
// PageMap: (block, layer, outer, head, page) -> bytes of one region, by strides.
#pragma once

#include <cstdint>

#include "kvbm/base/ids.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/layout/kv_block_layout.hpp"
#include "kvbm/layout/layout_config.hpp"
#include "kvbm/memory/memory_region.hpp"

namespace kvbm {

/// The steps inside a block. Units: bytes.
struct BlockStrides {
  uint64_t layer = 0;
  uint64_t outer = 0;
  uint64_t head = 0;
  uint64_t page = 0;

  [[nodiscard]] uint64_t& operator[](BlockAxis axis) noexcept;
  [[nodiscard]] uint64_t operator[](BlockAxis axis) const noexcept;
  friend bool operator==(const BlockStrides&, const BlockStrides&) = default;
};

/// The run of (block, layer, outer, head, page) is the `run_bytes` bytes of `region` from
///   base_offset + block * block_stride + (layer - layers.first) * layer_stride + outer *
///   outer_stride + head * head_stride + page * page_stride.
/// An opaque chunk is one run: one head, one page. The stride of an axis with one entry is not
/// used. Units: bytes.
struct PageMapSpec {
  MemoryRegion region = {};
  uint64_t base_offset = 0;
  uint32_t num_blocks = 0;
  uint64_t block_stride = 0;
  LayerRange layers = {};  ///< of the layout, that this map holds
  uint64_t layer_stride = 0;
  uint32_t outer_dim = 0;
  uint64_t outer_stride = 0;
  uint32_t num_heads = 1;
  uint64_t head_stride = 0;
  uint32_t page_size = 1;  ///< tokens of a block
  uint64_t page_stride = 0;
  uint64_t run_bytes = 0;
};

namespace internal {
struct SearchSteps;
}

/// Runs lie inside the region and do not overlap: proved at creation for all of them.
/// Ownership: borrows the bytes of the region.
/// Threads: a value.
class PageMap {
 public:
  /// Errors: kInvalidArgument, naming what is wrong: an axis without entries, outer_dim not 1 or 2,
  /// a run that ends outside the region (with both numbers), runs that overlap (with an example).
  /// kUnsupported: strides so entangled that it takes too long to tell.
  [[nodiscard]] static Result<PageMap> create(const PageMapSpec& spec);
  /// The same for one of many: they share what it may take to tell.
  [[nodiscard]] static Result<PageMap> create(const PageMapSpec& spec,
                                              internal::SearchSteps& steps);

  [[nodiscard]] const MemoryRegion& region() const noexcept { return spec_.region; }
  [[nodiscard]] uint64_t base_offset() const noexcept { return spec_.base_offset; }
  [[nodiscard]] uint32_t num_blocks() const noexcept { return spec_.num_blocks; }
  [[nodiscard]] uint64_t block_stride() const noexcept { return spec_.block_stride; }
  [[nodiscard]] LayerRange layers() const noexcept { return spec_.layers; }
  [[nodiscard]] uint32_t outer_dim() const noexcept { return spec_.outer_dim; }
  [[nodiscard]] uint32_t num_heads() const noexcept { return spec_.num_heads; }
  [[nodiscard]] uint32_t page_size() const noexcept { return spec_.page_size; }
  [[nodiscard]] uint64_t run_bytes() const noexcept { return spec_.run_bytes; }
  /// Of all axes inside a block; 0 for one with a single entry.
  [[nodiscard]] BlockStrides strides() const noexcept {
    return {spec_.layer_stride, spec_.outer_stride, spec_.head_stride, spec_.page_stride};
  }
  /// The entries of an axis in this map.
  [[nodiscard]] uint32_t count(BlockAxis axis) const noexcept;

  /// All heads and pages of (block, layer, outer).
  [[nodiscard]] uint64_t chunk_bytes() const noexcept {
    return spec_.run_bytes * spec_.num_heads * spec_.page_size;
  }
  /// Whether a chunk is one run of bytes.
  [[nodiscard]] bool chunks_are_contiguous() const noexcept;

  [[nodiscard]] bool holds(LayerId layer) const noexcept {
    return layer.value() >= spec_.layers.begin() && layer.value() < spec_.layers.end();
  }

  /// Where a run starts in the region. Contract: the map holds it.
  [[nodiscard]] uint64_t offset(BlockId block, LayerId layer, uint32_t outer, uint32_t head = 0,
                                uint32_t page = 0) const;
  [[nodiscard]] MemoryRegion run(BlockId block, LayerId layer, uint32_t outer, uint32_t head,
                                 uint32_t page) const {
    return spec_.region.slice(offset(block, layer, outer, head, page), spec_.run_bytes);
  }
  /// Contract: chunks are contiguous, and the map holds this one.
  [[nodiscard]] MemoryRegion chunk(BlockId block, LayerId layer, uint32_t outer) const;

  /// From the first byte of any run to the end of the last one, as offsets in the region.
  [[nodiscard]] uint64_t first_byte() const noexcept { return spec_.base_offset; }
  [[nodiscard]] uint64_t end_byte() const noexcept;

 private:
  explicit PageMap(const PageMapSpec& spec) noexcept : spec_(spec) {}

  PageMapSpec spec_;
};

}  // namespace kvbm
