// SPDX-License-Identifier: Apache-2.0
// KvBlocks: blocks of a layout, perhaps read in another format.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kvbm/base/ids.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/layout/kv_block_layout.hpp"
#include "kvbm/layout/layout_view.hpp"
#include "kvbm/layout/physical_layout.hpp"

namespace kvbm {

/// Ownership: shares the layout.
/// Threads: any thread; immutable.
class KvBlocks {
 public:
  /// An override of the layout's own order is none.
  /// Errors: kInvalidArgument (an id out of range, with the number of blocks; an override that
  /// LayoutView::as refuses). Contract: a layout.
  [[nodiscard]] static Result<KvBlocks> create(
      std::shared_ptr<const PhysicalLayout> layout, std::vector<BlockId> ids,
      const std::optional<KvBlockLayout>& format_override = std::nullopt);

  [[nodiscard]] const std::shared_ptr<const PhysicalLayout>& layout() const noexcept {
    return layout_;
  }
  [[nodiscard]] std::span<const BlockId> ids() const noexcept { return ids_; }

  [[nodiscard]] bool has_override() const noexcept { return override_.has_value(); }
  /// The override, or the layout's own.
  [[nodiscard]] const KvBlockLayout& kv_block_layout() const noexcept {
    return override_ ? *override_ : layout_->kv_block_layout();
  }
  [[nodiscard]] bool requires_transform_to(const KvBlocks& other) const noexcept {
    return kv_block_layout().requires_transform(other.kv_block_layout());
  }

  /// Of the layout, in this format: what plans take.
  [[nodiscard]] LayoutView view() const;

 private:
  KvBlocks(std::shared_ptr<const PhysicalLayout> layout, std::vector<BlockId> ids,
           std::optional<KvBlockLayout> format_override) noexcept;

  std::shared_ptr<const PhysicalLayout> layout_;
  std::vector<BlockId> ids_;
  std::optional<KvBlockLayout> override_;
};

}  // namespace kvbm
