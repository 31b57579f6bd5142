// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/transfer_plan.hpp"

#include "kvbm/base/contract.hpp"
#include "kvbm/base/text.hpp"

namespace kvbm {
namespace {

/// Joins `piece` to the one before if that makes one contiguous piece on both sides.
bool extend(PlanPiece& last, const PlanPiece& piece) {
  if (last.src_map != piece.src_map || last.dst_map != piece.dst_map ||
      last.src_offset + last.bytes != piece.src_offset ||
      last.dst_offset + last.bytes != piece.dst_offset) {
    return false;
  }
  last.bytes += piece.bytes;
  return true;
}

/// Counts `piece` as one more repetition of `last` if it lies at the same distance on both sides.
bool repeat(PlanPiece& last, const PlanPiece& piece) {
  const uint64_t src_end = last.src_offset + (last.count - 1) * last.src_stride;
  const uint64_t dst_end = last.dst_offset + (last.count - 1) * last.dst_stride;
  if (last.src_map != piece.src_map || last.dst_map != piece.dst_map || last.bytes != piece.bytes ||
      piece.src_offset <= src_end || piece.dst_offset <= dst_end) {
    return false;
  }
  const uint64_t src_stride = piece.src_offset - src_end;
  const uint64_t dst_stride = piece.dst_offset - dst_end;
  if (last.count > 1 && (last.src_stride != src_stride || last.dst_stride != dst_stride)) {
    return false;
  }
  last.src_stride = src_stride;
  last.dst_stride = dst_stride;
  ++last.count;
  return true;
}

}  // namespace

Result<TransferPlan> TransferPlan::create(const PhysicalLayout& src, const PhysicalLayout& dst,
                                          LayerRange layers) {
  const LayoutConfig& config = src.config();
  KVBM_TRY(check_same_block_shape(config, dst.config()));
  KVBM_TRY(check_layer_range(config, layers));

  std::vector<PlanPiece> contiguous;
  for (uint32_t index = layers.begin(); index < layers.end(); ++index) {
    const LayerId layer(static_cast<uint16_t>(index));
    const uint32_t src_map = src.page_map_of(layer);
    const uint32_t dst_map = dst.page_map_of(layer);
    for (uint32_t outer = 0; outer < config.outer_dim; ++outer) {
      const PlanPiece chunk{.src_map = src_map,
                            .dst_map = dst_map,
                            .src_offset = src.page_maps()[src_map].offset(BlockId{0}, layer, outer),
                            .dst_offset = dst.page_maps()[dst_map].offset(BlockId{0}, layer, outer),
                            .bytes = config.chunk_bytes()};
      if (contiguous.empty() || !extend(contiguous.back(), chunk)) contiguous.push_back(chunk);
    }
  }

  TransferPlan plan;
  plan.bytes_per_block_ = config.layer_bytes() * layers.count;
  for (const PlanPiece& piece : contiguous) {
    if (plan.pieces_.empty() || !repeat(plan.pieces_.back(), piece)) plan.pieces_.push_back(piece);
  }
  return plan;
}

std::vector<StridedPiece> TransferPlan::with_addresses(const PhysicalLayout& src,
                                                       const PhysicalLayout& dst) const {
  std::vector<StridedPiece> pieces;
  pieces.reserve(pieces_.size());
  for (const PlanPiece& piece : pieces_) {
    KVBM_CONTRACT(piece.src_map < src.page_maps().size() && piece.dst_map < dst.page_maps().size(),
                  "a plan was used with layouts that it was not made for");
    const PageMap& src_map = src.page_maps()[piece.src_map];
    const PageMap& dst_map = dst.page_maps()[piece.dst_map];
    pieces.push_back({.src = src_map.region().base() + piece.src_offset,
                      .dst = dst_map.region().base() + piece.dst_offset,
                      .src_block_stride = src_map.block_stride(),
                      .dst_block_stride = dst_map.block_stride(),
                      .bytes = piece.bytes,
                      .axes = {{{.count = piece.count,
                                 .src_stride = piece.src_stride,
                                 .dst_stride = piece.dst_stride}}}});
  }
  return pieces;
}

}  // namespace kvbm
