// SPDX-License-Identifier: Apache-2.0
// How the blocks of a staged transfer are cut into groups and laid into slots.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kvbm/base/ids.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/layout/layout_view.hpp"
#include "kvbm/transfer/internal/staged_transfer.hpp"
#include "kvbm/transfer/transfer_strategy.hpp"

namespace kvbm::internal {

/// Ownership: borrows all of it.
struct StagingSides {
  const TransferStrategy& strategy;  ///< of two hops
  const LayoutView& from;
  const LayoutView& to;
  size_t num_blocks = 0;
};

/// Without ids and tags, through slots of the manager's own. Between a file and anything else a
/// bounce block is a block of the file; between two places in memory what is copied of a block, in
/// the format of the side that is a device's.
/// Errors: kUnsupported (a block is larger than a slot; says what to set).
[[nodiscard]] Result<StagedSpec> stage_through(const StagingSides& sides,
                                               std::shared_ptr<BounceMemory> memory);

/// The same through blocks that the caller lends, in up to `max_slots` slots.
/// Errors: kInvalidArgument (blocks of another shape or format than has to be between the hops).
[[nodiscard]] Result<StagedSpec> stage_through(const StagingSides& sides,
                                               const std::shared_ptr<const PhysicalLayout>& bounce,
                                               const std::vector<BlockId>& ids, uint32_t max_slots);

}  // namespace kvbm::internal
