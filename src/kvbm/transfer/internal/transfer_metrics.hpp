// SPDX-License-Identifier: Apache-2.0
// The counters of a TransferManager.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "kvbm/base/metrics.hpp"
#include "kvbm/transfer/transfer_route.hpp"

namespace kvbm::internal {

struct RouteCounters {
  Counter& blocks;  ///< that arrived
  Counter& bytes;   ///< of those
  Counter& failed;  ///< blocks that did not
};

/// Counts into a registry of its own if it is given none.
/// Threads: any thread.
class TransferMetrics {
 public:
  explicit TransferMetrics(MetricsRegistry* registry);

  [[nodiscard]] const RouteCounters& route(TransferRoute route) const {
    return routes_[static_cast<size_t>(route)];
  }
  /// Blocks read from a file that were not what was written.
  [[nodiscard]] Counter& corrupt_blocks() const noexcept { return corrupt_blocks_; }

 private:
  TransferMetrics(std::unique_ptr<MetricsRegistry> own, MetricsRegistry* registry);

  std::unique_ptr<MetricsRegistry> own_;
  std::array<RouteCounters, kNumTransferRoutes> routes_;
  Counter& corrupt_blocks_;
};

}  // namespace kvbm::internal
