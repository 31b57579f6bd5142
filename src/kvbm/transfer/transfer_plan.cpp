// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/transfer_plan.hpp"

#include <algorithm>
#include <string>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/text.hpp"

namespace kvbm {
namespace {

/// Collects what differs between two views.
class Differences {
 public:
  void compare(const char* what, uint64_t src, uint64_t dst) {
    if (src == dst) return;
    if (!text_.empty()) text_ += ", ";
    text_ += format_text("{} {} and {}", what, src, dst);
  }
  [[nodiscard]] Status status() const {
    if (text_.empty()) return {};
    return make_error(ErrorCode::kInvalidArgument,
                      "blocks of source and destination differ: " + text_);
  }

 private:
  std::string text_;
};

/// Whether a chunk of the view is one head of one token, so that nothing in it has an order.
bool has_single_runs(const LayoutView& view) {
  return view.heads().count == 1 && view.layout().config().page_size == 1;
}

Status check_formats(const LayoutView& src, const LayoutView& dst) {
  const KvBlockLayout& from = src.kv_block_layout();
  const KvBlockLayout& to = dst.kv_block_layout();
  if (from.is_known() == to.is_known()) return {};
  if (has_single_runs(from.is_known() ? src : dst)) return {};
  return make_error(
      ErrorCode::kUnsupported,
      format_text("the format of the source is {}, that of the destination {}: a block is only "
                  "copied between two known formats or two unknown ones; say which the unknown "
                  "one is",
                  to_string(from), to_string(to)));
}

/// What is left of the blocks after slices has one shape on both sides.
Status check_shapes(const LayoutView& src, const LayoutView& dst) {
  const LayoutConfig& from = src.layout().config();
  const LayoutConfig& to = dst.layout().config();
  Differences differences;
  differences.compare("num_layers", src.layers().count, dst.layers().count);
  differences.compare("outer_dim", from.outer_dim, to.outer_dim);
  differences.compare("page_size", from.page_size, to.page_size);
  const bool src_known = src.kv_block_layout().is_known();
  const bool dst_known = dst.kv_block_layout().is_known();
  if (src_known && dst_known) {
    differences.compare("num_heads", src.heads().count, dst.heads().count);
    differences.compare("head_dim", from.inner_dim / *from.num_heads, to.inner_dim / *to.num_heads);
  } else {
    differences.compare("inner_dim", src_known ? from.inner_dim / *from.num_heads : from.inner_dim,
                        dst_known ? to.inner_dim / *to.num_heads : to.inner_dim);
    if (src_known == dst_known && from.num_heads && to.num_heads) {
      differences.compare("num_heads", *from.num_heads, *to.num_heads);
    }
  }
  differences.compare("dtype_width_bytes", from.dtype_width_bytes, to.dtype_width_bytes);
  return differences.status();
}

/// What the pieces of maps with equal strides have in common.
struct Steps {
  uint32_t num_layers = 0;
  BlockStrides src = {};
  BlockStrides dst = {};

  friend bool operator==(const Steps&, const Steps&) = default;
};

/// The four axes by falling steps in the destination, folded: in this order whatever can be joined
/// stands side by side.
StridedPiece folded(const Steps& steps, const LayoutView& view) {
  const auto axis = [&](BlockAxis of, uint64_t count) {
    return StridedAxis{.count = count, .src_stride = steps.src[of], .dst_stride = steps.dst[of]};
  };
  StridedPiece piece{.bytes = view.run_bytes(),
                     .axes = {axis(BlockAxis::kLayer, steps.num_layers),
                              axis(BlockAxis::kOuter, view.layout().config().outer_dim),
                              axis(BlockAxis::kHead, view.heads().count),
                              axis(BlockAxis::kPage, view.page_size())}};
  std::ranges::sort(piece.axes, [](const StridedAxis& a, const StridedAxis& b) {
    return a.dst_stride > b.dst_stride;
  });
  return fold(piece);
}

/// Layers from `layer` on that are in the same map.
uint32_t layers_left(const LayoutView& view, uint32_t map, uint32_t layer) {
  return static_cast<uint32_t>(view.layout().page_maps()[map].layers().end() - layer);
}

}  // namespace

Result<TransferPlan> TransferPlan::create(const LayoutView& src, const LayoutView& dst) {
  KVBM_TRY(check_formats(src, dst));
  KVBM_TRY(check_shapes(src, dst));

  TransferPlan plan;
  plan.bytes_per_block_ = src.block_bytes();
  const uint32_t num_layers = src.layers().count;
  plan.pieces_.reserve(std::min<size_t>(
      num_layers, src.layout().page_maps().size() + dst.layout().page_maps().size() - 1));
  Steps last;
  StridedPiece shape;
  for (uint32_t done = 0; done < num_layers;) {
    const LayerId src_layer(static_cast<uint16_t>(src.layers().begin() + done));
    const LayerId dst_layer(static_cast<uint16_t>(dst.layers().begin() + done));
    const uint32_t src_map = src.layout().page_map_of(src_layer);
    const uint32_t dst_map = dst.layout().page_map_of(dst_layer);
    const Steps steps{
        .num_layers = std::min({num_layers - done, layers_left(src, src_map, src_layer.value()),
                                layers_left(dst, dst_map, dst_layer.value())}),
        .src = src.strides(src_map),
        .dst = dst.strides(dst_map)};
    if (steps != last) {
      shape = folded(steps, src);
      last = steps;
    }
    plan.pieces_.push_back({.src_map = src_map,
                            .dst_map = dst_map,
                            .src_offset = src.offset(src_layer, steps.src),
                            .dst_offset = dst.offset(dst_layer, steps.dst),
                            .bytes = shape.bytes,
                            .axes = shape.axes});
    done += steps.num_layers;
  }
  return plan;
}

Result<TransferPlan> TransferPlan::create(const LayoutView& src, const LayoutView& dst,
                                          LayerRange layers) {
  KVBM_ASSIGN_OR_RETURN(const LayoutView from, src.slice(layers));
  KVBM_ASSIGN_OR_RETURN(const LayoutView to, dst.slice(layers));
  return create(from, to);
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
                      .axes = piece.axes});
  }
  return pieces;
}

std::vector<RemotePiece> TransferPlan::with_remote_addresses(const PhysicalLayout& src,
                                                             const PhysicalLayout& dst) const {
  const bool reads = src.storage_kind() == StorageKind::kRemote;
  KVBM_CONTRACT(reads != (dst.storage_kind() == StorageKind::kRemote),
                "a plan with remote addresses has one side of another worker");
  std::vector<RemotePiece> pieces;
  pieces.reserve(pieces_.size());
  for (const PlanPiece& piece : pieces_) {
    KVBM_CONTRACT(piece.src_map < src.page_maps().size() && piece.dst_map < dst.page_maps().size(),
                  "a plan was used with layouts that it was not made for");
    const PageMap& src_map = src.page_maps()[piece.src_map];
    const PageMap& dst_map = dst.page_maps()[piece.dst_map];
    const PageMap& here = reads ? dst_map : src_map;
    const PageMap& there = reads ? src_map : dst_map;
    RemotePiece made{
        .local = here.region().base() + (reads ? piece.dst_offset : piece.src_offset),
        .remote = there.region().remote_address() + (reads ? piece.src_offset : piece.dst_offset),
        .local_block_stride = here.block_stride(),
        .remote_block_stride = there.block_stride(),
        .bytes = piece.bytes};
    for (size_t i = 0; i < kStridedAxes; ++i) {
      const StridedAxis& axis = piece.axes[i];
      made.axes[i] = {.count = axis.count,
                      .local_stride = reads ? axis.dst_stride : axis.src_stride,
                      .remote_stride = reads ? axis.src_stride : axis.dst_stride};
    }
    pieces.push_back(made);
  }
  return pieces;
}

}  // namespace kvbm
