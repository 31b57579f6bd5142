// SPDX-License-Identifier: Apache-2.0
// RemoteTransfer: blocks between a layout of this worker and one of another, by a remote agent.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "kvbm/base/ids.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/layout/physical_layout.hpp"
#include "kvbm/transfer/internal/transfer.hpp"
#include "kvbm/transfer/remote_agent.hpp"
#include "kvbm/transfer/transfer_plan.hpp"

namespace kvbm::internal {

/// The operation that moves pairs of blocks from one layout to the other.
/// Without any it has no piece. Contract: a plan of these layouts, exactly one of them remote.
[[nodiscard]] RemoteRequest remote_request(const TransferPlan& plan, const PhysicalLayout& src,
                                           const PhysicalLayout& dst, const BlockPairs& pairs);

/// Waits for its events, then hands the operation to the agent; one that is full is asked again.
/// All blocks arrive or none. Threads: see Transfer.
class RemoteTransfer final : public Transfer {
 public:
  /// `request` without deadline and bytes_moved.
  RemoteTransfer(TransferFrame frame, RemoteAgent& agent, RemoteRequest request);

  void run() noexcept override;

 private:
  void stop() noexcept override { stopped_.store(true); }
  Status hand_over();
  void ended(const Status& status) noexcept;

  RemoteAgent& agent_;
  RemoteRequest request_;
  std::atomic<bool> stopped_{false};
};

}  // namespace kvbm::internal
