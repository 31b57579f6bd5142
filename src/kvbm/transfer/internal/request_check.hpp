// SPDX-License-Identifier: Apache-2.0
// What is checked of a transfer before a byte moves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kvbm/base/ids.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/layout/layout_view.hpp"
#include "kvbm/layout/physical_layout.hpp"
#include "kvbm/transfer/transfer_options.hpp"
#include "kvbm/transfer/transfer_strategy.hpp"

namespace kvbm::internal {

/// Errors: kInvalidArgument (an id out of range; a destination twice; a destination that is also a
/// source, if both are one layout). `scratch` is memory for it.
[[nodiscard]] Status check_pairs(const PhysicalLayout& src, const PhysicalLayout& dst,
                                 const BlockPairs& pairs, std::vector<uint32_t>& scratch);

/// The part of the blocks that an option names, in the format that one names.
/// Errors: those of LayoutView.
[[nodiscard]] Result<LayoutView> view_of(const PhysicalLayout& layout,
                                         const std::optional<KvBlockLayout>& format,
                                         const std::optional<LayerRange>& layers,
                                         const std::optional<HeadRange>& heads);

/// Requires: views that a plan has taken.
[[nodiscard]] BlockMatch match_of(const LayoutView& src, const LayoutView& dst);

/// The strategy with bounce blocks of this kind instead of its own.
/// Errors: kUnsupported (a hop does not reach them; says which).
[[nodiscard]] Result<TransferStrategy> with_bounce_in(StorageKind kind,
                                                      const TransferStrategy& strategy,
                                                      const DeviceCapabilities& device);

/// Whether the options go with the strategy, and with `num_blocks` blocks.
/// Errors: kInvalidArgument (tags missing, too many or without a file), kUnsupported (an option
/// that this way cannot honour; says why).
[[nodiscard]] Status check_options(const TransferOptions& options, const TransferStrategy& strategy,
                                   size_t num_blocks);

}  // namespace kvbm::internal
