// SPDX-License-Identifier: Apache-2.0
// What the host does to blocks of its own memory, run by run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "kvbm/base/ids.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/base/text.hpp"
#include "kvbm/layout/layout_view.hpp"

namespace kvbm::internal {

/// Errors: kUnsupported (memory of a device or of a file, which the host does not reach; `verb` is
/// what it does to its own), kInvalidArgument (a block out of range).
[[nodiscard]] inline Status check_host_blocks(const LayoutView& view, std::span<const BlockId> ids,
                                              std::string_view verb) {
  const StorageKind kind = view.layout().storage_kind();
  if (kind != StorageKind::kSystem && kind != StorageKind::kPinned) {
    return make_error(
        ErrorCode::kUnsupported,
        format_text("the host {} its own memory, not {} memory: copy the blocks", verb, kind));
  }
  const uint32_t num_blocks = view.layout().config().num_blocks;
  for (const BlockId id : ids) {
    if (id.value() >= num_blocks) {
      return make_error(ErrorCode::kInvalidArgument,
                        format_text("block {} of a layout of {} blocks", id, num_blocks));
    }
  }
  return {};
}

/// Head and page are 0 if the format is unknown.
struct RunPosition {
  LayerId layer{0};
  uint32_t outer = 0;
  uint32_t page = 0;
  uint32_t head = 0;
  uint64_t first_element = 0;  ///< in the canonical order of the chunk
};

/// Calls visit(position, address) for each run of a block that the view has, in canonical order
/// (layer, outer, page, head) whatever the format is, until it returns false.
/// Requires: check_host_blocks().
template <class F>
void for_each_run(const LayoutView& view, BlockId block, F&& visit) {
  const LayoutConfig& config = view.layout().config();
  const bool known = view.kv_block_layout().is_known();
  const uint64_t head_dim = known ? config.inner_dim / *config.num_heads : 0;
  for (uint64_t index = view.layers().begin(); index < view.layers().end(); ++index) {
    const LayerId layer(static_cast<uint16_t>(index));
    const uint32_t map_index = view.layout().page_map_of(layer);
    const PageMap& map = view.layout().page_maps()[map_index];
    const BlockStrides strides = view.strides(map_index);
    std::byte* base =
        map.region().base() + view.offset(layer, strides) + block.value() * map.block_stride();
    for (uint32_t outer = 0; outer < config.outer_dim; ++outer) {
      for (uint32_t page = 0; page < view.page_size(); ++page) {
        for (uint32_t head = 0; head < view.heads().count; ++head) {
          const uint32_t head_of_layout = view.heads().first + head;
          const RunPosition at{
              .layer = layer,
              .outer = outer,
              .page = page,
              .head = head_of_layout,
              .first_element = uint64_t{page} * config.inner_dim + head_of_layout * head_dim};
          std::byte* run = base + outer * strides.outer + page * strides.page + head * strides.head;
          if (!visit(at, run)) return;
        }
      }
    }
  }
}

}  // namespace kvbm::internal
