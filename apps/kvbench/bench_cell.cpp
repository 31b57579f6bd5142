// SPDX-License-Identifier: Apache-2.0
#include "apps/kvbench/bench_cell.hpp"

namespace kvbm {

std::string_view to_string(CopyPattern pattern) noexcept {
  switch (pattern) {
    case CopyPattern::kFcToFc:
      return "fc_to_fc";
    case CopyPattern::kLwToFc:
      return "lw_to_fc";
    case CopyPattern::kFcToLw:
      return "fc_to_lw";
    case CopyPattern::kNhdToUniversal:
      return "nhd_to_universal";
    case CopyPattern::kUniversalToNhd:
      return "universal_to_nhd";
  }
  return "unknown";
}

std::string_view to_string(CopyDirection direction) noexcept {
  switch (direction) {
    case CopyDirection::kH2d:
      return "h2d";
    case CopyDirection::kD2h:
      return "d2h";
    case CopyDirection::kD2d:
      return "d2d";
  }
  return "unknown";
}

std::string_view to_string(CopyBackend backend) noexcept {
  switch (backend) {
    case CopyBackend::kVectorized:
      return "vectorized";
    case CopyBackend::kBatched:
      return "batched";
    case CopyBackend::kMemcpyAsync:
      return "memcpy_async";
    case CopyBackend::kAuto:
      return "auto";
    case CopyBackend::kTransferMgr:
      return "transfer_mgr";
  }
  return "unknown";
}

LayoutConfig BenchShape::config(uint32_t tokens_per_block, uint32_t num_blocks) const noexcept {
  return {.num_blocks = num_blocks,
          .num_layers = layers,
          .outer_dim = outer_dim,
          .page_size = tokens_per_block,
          .inner_dim = kv_heads * head_dim,
          .dtype_width_bytes = dtype_width_bytes,
          .num_heads = kv_heads};
}

bool BenchCell::permutes() const noexcept {
  return pattern == CopyPattern::kNhdToUniversal || pattern == CopyPattern::kUniversalToNhd;
}

BenchSide BenchCell::source() const noexcept {
  BenchSide side{.on_device = direction != CopyDirection::kH2d};
  if (pattern == CopyPattern::kLwToFc || pattern == CopyPattern::kNhdToUniversal) {
    side.kind = LayoutKind::kLayerSeparateBlockSecond;
  }
  if (pattern == CopyPattern::kUniversalToNhd) side.format = KvBlockLayout::kUniversalTP;
  return side;
}

BenchSide BenchCell::destination() const noexcept {
  BenchSide side{.on_device = direction != CopyDirection::kD2h};
  if (pattern == CopyPattern::kFcToLw || pattern == CopyPattern::kUniversalToNhd) {
    side.kind = LayoutKind::kLayerSeparateBlockSecond;
  }
  if (pattern == CopyPattern::kNhdToUniversal) side.format = KvBlockLayout::kUniversalTP;
  return side;
}

CellSizes sizes_of(const BenchShape& shape, const BenchCell& cell) noexcept {
  const LayoutConfig config = shape.config(cell.tokens_per_block, cell.num_blocks);
  CellSizes sizes;
  sizes.inner = config.chunk_bytes();
  sizes.block = config.block_bytes();
  sizes.total = sizes.block * cell.num_blocks;
  sizes.copy = sizes.inner;
  if (cell.pattern == CopyPattern::kFcToFc) sizes.copy = sizes.block;
  if (cell.permutes()) sizes.copy = uint64_t{shape.head_dim} * shape.dtype_width_bytes;
  sizes.num_copies = sizes.total / sizes.copy;
  return sizes;
}

}  // namespace kvbm
