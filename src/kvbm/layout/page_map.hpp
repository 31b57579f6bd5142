// SPDX-License-Identifier: Apache-2.0
// PageMap: (block, layer, outer) -> bytes of one region, by strides.
#pragma once

#include <cstdint>

#include "kvbm/base/ids.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/layout/layout_config.hpp"
#include "kvbm/memory/memory_region.hpp"

namespace kvbm {

/// The chunk of (block, layer, outer) is the `chunk_bytes` bytes of `region` from
///   base_offset + block * block_stride + (layer - layers.first) * layer_stride + outer *
///   outer_stride.
/// The stride of an axis with one entry is not used.
/// Units: bytes.
struct PageMapSpec {
  MemoryRegion region = {};
  uint64_t base_offset = 0;
  uint32_t num_blocks = 0;
  uint64_t block_stride = 0;
  LayerRange layers = {};  ///< of the layout, that this map holds
  uint64_t layer_stride = 0;
  uint32_t outer_dim = 0;
  uint64_t outer_stride = 0;
  uint64_t chunk_bytes = 0;
};

/// Chunks lie inside the region and do not overlap: proved at creation for all of them.
/// Ownership: borrows the bytes of the region.
/// Threads: a value.
class PageMap {
 public:
  /// Errors: kInvalidArgument, naming what is wrong: an axis without entries, outer_dim not 1 or 2,
  /// a chunk that ends outside the region (with both numbers), chunks that overlap (with an
  /// example).
  [[nodiscard]] static Result<PageMap> create(const PageMapSpec& spec);

  [[nodiscard]] const MemoryRegion& region() const noexcept { return spec_.region; }
  [[nodiscard]] uint64_t base_offset() const noexcept { return spec_.base_offset; }
  [[nodiscard]] uint32_t num_blocks() const noexcept { return spec_.num_blocks; }
  [[nodiscard]] uint64_t block_stride() const noexcept { return spec_.block_stride; }
  [[nodiscard]] LayerRange layers() const noexcept { return spec_.layers; }
  [[nodiscard]] uint64_t layer_stride() const noexcept { return spec_.layer_stride; }
  [[nodiscard]] uint32_t outer_dim() const noexcept { return spec_.outer_dim; }
  [[nodiscard]] uint64_t outer_stride() const noexcept { return spec_.outer_stride; }
  [[nodiscard]] uint64_t chunk_bytes() const noexcept { return spec_.chunk_bytes; }

  [[nodiscard]] bool holds(LayerId layer) const noexcept {
    return layer.value() >= spec_.layers.begin() && layer.value() < spec_.layers.end();
  }

  /// Where a chunk starts in the region. Contract: the map holds it.
  [[nodiscard]] uint64_t offset(BlockId block, LayerId layer, uint32_t outer) const;
  [[nodiscard]] MemoryRegion chunk(BlockId block, LayerId layer, uint32_t outer) const;

  /// From the first byte of any chunk to the end of the last one, as offsets in the region.
  [[nodiscard]] uint64_t first_byte() const noexcept { return spec_.base_offset; }
  [[nodiscard]] uint64_t end_byte() const noexcept;

 private:
  explicit PageMap(const PageMapSpec& spec) noexcept : spec_(spec) {}

  PageMapSpec spec_;
};

}  // namespace kvbm
