// SPDX-License-Identifier: Apache-2.0
// LayoutView: the blocks of a layout, or a slice of each, in the layout's format or another.
#pragma once

#include <cstdint>

#include "kvbm/base/result.hpp"
#include "kvbm/layout/kv_block_layout.hpp"
#include "kvbm/layout/layout_config.hpp"
#include "kvbm/layout/page_map.hpp"
#include "kvbm/layout/physical_layout.hpp"

namespace kvbm {

/// The same memory with other counts, a moved base or other strides; nothing is copied.
/// Ownership: borrows the layout. Threads: a value.
class LayoutView {
 public:
  /// All of it. Implicit, so that a layout can stand wherever a view can.
  LayoutView(const PhysicalLayout& layout);  // NOLINT(google-explicit-constructor)

  /// Errors: kInvalidArgument (no layer, or one outside of the layout).
  [[nodiscard]] Result<LayoutView> slice(LayerRange layers) const;
  /// Errors: kInvalidArgument (heads or format unknown, no head, or one outside of the layout).
  [[nodiscard]] Result<LayoutView> slice(HeadRange heads) const;
  /// The bytes read in another format. Errors: kInvalidArgument (unknown; not operational where
  /// layers lie apart or chunks are opaque; heads that the config does not know; tensors of an
  /// engine whose strides say another format).
  [[nodiscard]] Result<LayoutView> as(const KvBlockLayout& format) const;

  [[nodiscard]] const PhysicalLayout& layout() const noexcept { return *layout_; }
  [[nodiscard]] const KvBlockLayout& kv_block_layout() const noexcept { return format_; }
  [[nodiscard]] LayerRange layers() const noexcept { return layers_; }
  /// All heads as one, if the format is unknown.
  [[nodiscard]] HeadRange heads() const noexcept { return heads_; }
  /// All tokens as one, if the format is unknown.
  [[nodiscard]] uint32_t page_size() const noexcept {
    return format_.is_known() ? layout_->config().page_size : 1;
  }
  /// The bytes of a head, or of an opaque chunk.
  [[nodiscard]] uint64_t run_bytes() const noexcept { return run_bytes_; }
  /// The bytes of a block that the view has.
  [[nodiscard]] uint64_t block_bytes() const noexcept {
    return run_bytes_ * heads_.count * page_size() * layout_->config().outer_dim * layers_.count;
  }

  /// Inside a block, in this format. Those of an axis with one entry say nothing. Contract: an
  /// index into page_maps().
  [[nodiscard]] BlockStrides strides(uint32_t page_map) const;
  /// Where the view's first head of a layer starts in block 0, outer 0, page 0: an offset in the
  /// region of the layer's map. Contract: a layer of the layout.
  [[nodiscard]] uint64_t offset(LayerId layer) const {
    return offset(layer, strides(layout_->page_map_of(layer)));
  }
  /// The same for whoever has the strides of the layer's map.
  [[nodiscard]] uint64_t offset(LayerId layer, const BlockStrides& strides) const;

 private:
  const PhysicalLayout* layout_;
  KvBlockLayout format_;
  LayerRange layers_;
  HeadRange heads_;
  uint64_t run_bytes_;
};

}  // namespace kvbm
