// SPDX-License-Identifier: Apache-2.0
// The counters of the leader.
#pragma once

#include <array>
#include <optional>
#include <vector>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/ids.hpp"
#include "kvbm/base/metrics.hpp"

namespace kvbm {

/// Counts what moves from one tier to another, and for how long anything was under way.
/// Threads: started() and ended() owner thread only; values may be read from any thread.
class RouteMetrics {
 public:
  RouteMetrics(MetricsRegistry& registry, TierId from, TierId to);

  void started(TimePoint now);
  /// Units: `blocks` and `bytes` that arrived, bytes over all ranks.
  void ended(TimePoint now, uint64_t blocks, uint64_t failed_blocks, uint64_t bytes);

  [[nodiscard]] TierId from() const noexcept { return from_; }
  [[nodiscard]] TierId to() const noexcept { return to_; }
  [[nodiscard]] uint64_t blocks() const noexcept { return blocks_.value(); }
  [[nodiscard]] uint64_t bytes() const noexcept { return bytes_.value(); }
  [[nodiscard]] uint64_t failed_blocks() const noexcept { return failed_blocks_.value(); }
  /// Time in which at least one operation of this route was under way.
  [[nodiscard]] Duration busy() const noexcept {
    return Duration(static_cast<int64_t>(busy_nanoseconds_.value()));
  }

 private:
  TierId from_;
  TierId to_;
  Counter& blocks_;
  Counter& bytes_;
  Counter& failed_blocks_;
  Counter& busy_nanoseconds_;
  uint32_t open_ = 0;
  TimePoint busy_since_{};
};

/// Every counter of a TierManager. Names are in docs/metrics.md.
struct TierMetrics {
  explicit TierMetrics(MetricsRegistry& registry);

  RouteMetrics& route(TierId from, TierId to);
  /// Those that were ever used, by source and then destination.
  [[nodiscard]] std::vector<const RouteMetrics*> routes() const;

  MetricsRegistry& registry;
  std::array<Counter*, kNumTiers> evictions;  ///< blocks that left a tier to make room
  std::array<Counter*, kNumTiers> lost;       ///< blocks forgotten because a rank was lost
  std::array<Counter*, kNumTiers> forgotten;  ///< blocks that left a tier because it was emptied
  Counter& store_dropped_no_room;             ///< blocks not stored: every slot was pinned
  Counter& store_dropped_backlog;             ///< blocks not stored: too many stores under way
  Counter& evicted_unsaved;                   ///< dirty blocks evicted with no room below
  Counter& filtered;                          ///< dirty blocks that the disk filter held back
  Counter& drained_blocks;                    ///< dirty blocks that a drain has written
  Counter& corrupt_or_unreadable;             ///< blocks given up because a load failed
  Counter& loads_timed_out;                   ///< loads that passed their deadline
  Gauge& open_operations;                     ///< copies under way

 private:
  std::array<std::array<std::optional<RouteMetrics>, kNumTiers>, kNumTiers> routes_;
};

}  // namespace kvbm
