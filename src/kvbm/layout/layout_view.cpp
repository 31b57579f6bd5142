// SPDX-License-Identifier: Apache-2.0
#include "kvbm/layout/layout_view.hpp"

#include "kvbm/base/contract.hpp"
#include "kvbm/base/text.hpp"
#include "kvbm/layout/internal/format_rules.hpp"

namespace kvbm {
namespace {

tl::unexpected<Error> invalid(std::string message) {
  return make_error(ErrorCode::kInvalidArgument, std::move(message));
}

/// Whether only the chunks of a layout are packed, not its blocks.
bool only_chunks_are_packed(LayoutKind kind) {
  return kind != LayoutKind::kFullyContiguous && kind != LayoutKind::kFileSlots;
}

}  // namespace

LayoutView::LayoutView(const PhysicalLayout& layout)
    : layout_(&layout),
      format_(layout.kv_block_layout()),
      layers_(layout.config().all_layers()),
      heads_(format_.is_known() ? layout.config().all_heads() : HeadRange{0, 1}),
      run_bytes_(format_.is_known() ? layout.config().head_bytes()
                                    : layout.config().chunk_bytes()) {}

Result<LayoutView> LayoutView::slice(LayerRange layers) const {
  KVBM_TRY(check_layer_range(layout_->config(), layers));
  LayoutView view = *this;
  view.layers_ = layers;
  return view;
}

Result<LayoutView> LayoutView::slice(HeadRange heads) const {
  if (!format_.is_known()) {
    return invalid("heads are asked of a layout whose format is unknown: say which it is");
  }
  KVBM_TRY(check_head_range(layout_->config(), heads));
  LayoutView view = *this;
  view.heads_ = heads;
  return view;
}

Result<LayoutView> LayoutView::as(const KvBlockLayout& format) const {
  if (!format.is_known()) return invalid("a layout cannot be read in an unknown format");
  KVBM_TRY(check_kv_block_layout(layout_->config(), format));
  if (!format_.requires_transform(format)) return *this;
  if (only_chunks_are_packed(layout_->kind()) && !format.is_operational()) {
    return invalid(format_text("a layout of the kind {} cannot be read as {}: its layers lie apart",
                               layout_->kind(), to_string(format)));
  }
  if (layout_->kind() == LayoutKind::kPageMaps && layout_->kv_block_layout().is_known()) {
    return invalid(format_text("the strides of the engine's tensors make the format {}, not {}",
                               to_string(layout_->kv_block_layout()), to_string(format)));
  }
  LayoutView view = *this;
  view.format_ = format;
  if (!format_.is_known()) view.heads_ = layout_->config().all_heads();
  view.run_bytes_ = layout_->config().head_bytes();
  return view;
}

BlockStrides LayoutView::strides(uint32_t page_map) const {
  KVBM_CONTRACT(page_map < layout_->page_maps().size(),
                format_text("page map {} of {}", page_map, layout_->page_maps().size()));
  const BlockStrides stored = layout_->page_maps()[page_map].strides();
  if (!layout_->kv_block_layout().requires_transform(format_)) return stored;
  BlockStrides strides = internal::packed_strides(layout_->config(), format_);
  if (only_chunks_are_packed(layout_->kind())) {
    strides.layer = stored.layer;
    strides.outer = stored.outer;
  }
  return strides;
}

uint64_t LayoutView::offset(LayerId layer, const BlockStrides& strides) const {
  const PageMap& map = layout_->page_maps()[layout_->page_map_of(layer)];
  return map.base_offset() + (layer.value() - map.layers().begin()) * strides.layer +
         heads_.first * strides.head;
}

}  // namespace kvbm
