// SPDX-License-Identifier: Apache-2.0
// start_hop: one hop of a strategy, as a transfer of its own.
#pragma once

#include <memory>
#include <optional>
#include <span>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/ids.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/device/event.hpp"
#include "kvbm/device/stream.hpp"
#include "kvbm/layout/physical_layout.hpp"
#include "kvbm/layout/slot_format.hpp"
#include "kvbm/transfer/copy_choice.hpp"
#include "kvbm/transfer/internal/transfer.hpp"
#include "kvbm/transfer/internal/transfer_blocks.hpp"
#include "kvbm/transfer/internal/transfer_context.hpp"
#include "kvbm/transfer/transfer_notification.hpp"
#include "kvbm/transfer/transfer_options.hpp"
#include "kvbm/transfer/transfer_plan.hpp"
#include "kvbm/transfer/transfer_strategy.hpp"

namespace kvbm::internal {

/// Ownership: what it refers to is read during the call alone; layouts are kept.
struct HopRequest {
  TransferHop hop = {};
  std::shared_ptr<const PhysicalLayout> src = nullptr;
  std::shared_ptr<const PhysicalLayout> dst = nullptr;
  const TransferPlan* plan = nullptr;  ///< of copies and remote hops: from src to dst
  PieceList pieces = {};               ///< of a copy: the plan with addresses, if they are there
  std::shared_ptr<TransferBlocks> blocks = nullptr;  ///< with the pairs; never null
  std::span<const SlotTag> tags = {};                ///< with a file: one a block
  std::optional<StreamRef> stream = std::nullopt;
  std::span<const Event> wait_for = {};                       ///< of a whole transfer
  std::optional<uint64_t> write_notification = std::nullopt;  ///< with a remote hop
  TimePoint deadline = kNever;
  TransferPriority priority = TransferPriority::kNormal;
  TransferKind kind = TransferKind::kWhole;
};

/// Requires: everything that is checked of a transfer was.
/// Errors: those of a start, for a whole transfer. A part that cannot start ends with the error
/// instead; only one that is not taken at all is an error: kExhausted, kUnavailable.
[[nodiscard]] Result<TransferCompleteNotification> start_hop(
    const std::shared_ptr<TransferContext>& context, const HopRequest& request);

/// What moves the bytes of a copy on a stream of the manager's own.
[[nodiscard]] MethodChoice choose_method_of(const TransferContext& context,
                                            std::span<const StridedPiece> pieces,
                                            const BlockPairs& pairs, TransferRoute route);

/// Opens, admits and starts it; after an error it has been forgotten, unless it is a part.
template <class T, class Start>
Result<TransferCompleteNotification> launch(TransferContext& context,
                                            const std::shared_ptr<T>& transfer, Start&& start) {
  transfer->open();
  KVBM_TRY(context.admit(transfer));
  if (Status status = guarded([&] { return start(*transfer); }); !status) {
    if (transfer->kind() == TransferKind::kPart) {
      transfer->fail_all(status.error());
    } else {
      context.ending();
      context.forget(*transfer);
      return make_error(std::move(status).error());
    }
  }
  return transfer->notification();
}

}  // namespace kvbm::internal
