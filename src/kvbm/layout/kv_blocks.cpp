// SPDX-License-Identifier: Apache-2.0
#include "kvbm/layout/kv_blocks.hpp"

#include <utility>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/text.hpp"

namespace kvbm {

Result<KvBlocks> KvBlocks::create(std::shared_ptr<const PhysicalLayout> layout,
                                  std::vector<BlockId> ids,
                                  const std::optional<KvBlockLayout>& format_override) {
  KVBM_CONTRACT(layout != nullptr, "blocks are of a layout");
  const uint32_t num_blocks = layout->config().num_blocks;
  for (const BlockId id : ids) {
    if (id.value() >= num_blocks) {
      return make_error(ErrorCode::kInvalidArgument,
                        format_text("block {} of a layout of {} blocks", id, num_blocks));
    }
  }
  std::optional<KvBlockLayout> kept;
  if (format_override) {
    KVBM_ASSIGN_OR_RETURN(const LayoutView view, LayoutView(*layout).as(*format_override));
    if (view.kv_block_layout().requires_transform(layout->kv_block_layout())) {
      kept = *format_override;
    }
  }
  return KvBlocks(std::move(layout), std::move(ids), kept);
}

KvBlocks::KvBlocks(std::shared_ptr<const PhysicalLayout> layout, std::vector<BlockId> ids,
                   std::optional<KvBlockLayout> format_override) noexcept
    : layout_(std::move(layout)), ids_(std::move(ids)), override_(format_override) {}

LayoutView KvBlocks::view() const {
  const LayoutView view(*layout_);
  // It was checked when it was made.
  return override_ ? view.as(*override_).value() : view;
}

}  // namespace kvbm
