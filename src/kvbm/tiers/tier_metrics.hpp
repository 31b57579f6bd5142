// SPDX-License-Identifier: Apache-2.0
// The series of the leader.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/ids.hpp"
#include "kvbm/base/metrics.hpp"
#include "kvbm/tiers/pool_metrics.hpp"

namespace kvbm {

/// How an operation ended, over all ranks.
struct RouteEnd {
  Duration time{0};  ///< since it was decided
  uint64_t blocks = 0;
  uint64_t failed_blocks = 0;
  uint64_t bytes = 0;  ///< over all ranks
  bool cancelled = false;
};

/// Counts what moves from one tier to another, and for how long anything was under way.
/// Threads: started() and ended() owner thread only; values may be read from any thread.
class RouteMetrics {
 public:
  RouteMetrics(MetricsRegistry& registry, TierId from, TierId to);

  void started(TimePoint now);
  void ended(TimePoint now, const RouteEnd& end);

  /// Copies that not every rank has answered. Owner thread only.
  [[nodiscard]] uint32_t num_open() const noexcept { return open_; }
  [[nodiscard]] TierId from() const noexcept { return from_; }
  [[nodiscard]] TierId to() const noexcept { return to_; }
  [[nodiscard]] bool was_used() const noexcept { return used_; }
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
  Counter& blocks_by_old_name_;
  Counter& bytes_;
  Counter& failed_blocks_;
  Counter& busy_nanoseconds_;
  Counter& failures_;
  Counter& cancels_;
  Histogram& succeeded_seconds_;
  Histogram& failed_seconds_;
  Gauge& in_flight_;  // shared by the routes of a direction
  bool used_ = false;
  uint32_t open_ = 0;
  TimePoint busy_since_{};
};

/// Every series of a TierManager, all there from the start. Names are in docs/metrics.md.
struct TierMetrics {
  explicit TierMetrics(MetricsRegistry& registry);

  RouteMetrics& route(TierId from, TierId to);
  /// Those that were ever used, by source and then destination.
  [[nodiscard]] std::vector<const RouteMetrics*> routes() const;
  /// Of a tier below the engine.
  [[nodiscard]] PoolMetrics& pool(TierId tier);
  [[nodiscard]] uint64_t evictions(TierId tier) const noexcept;

  std::array<Counter*, kNumTiers> hits;  ///< G2 and G3: blocks that loads found there
  std::array<Counter*, kNumTiers> lost;  ///< G2 and G3: blocks forgotten because a rank was lost
  std::array<Counter*, kNumTiers>
      forgotten;                   ///< G2 and G3: blocks that left because it was emptied
  Counter& store_dropped_no_room;  ///< blocks not stored: every slot was pinned
  Counter& store_dropped_backlog;  ///< blocks not stored: too many stores under way
  Gauge& open_store_blocks;        ///< blocks of the engine that stores under way read
  Gauge& store_budget_blocks;      ///< how many that may be
  Counter& evicted_unsaved;        ///< dirty blocks evicted with no room below
  Counter& filtered;               ///< dirty blocks that the disk filter held back
  Counter& drained_blocks;         ///< dirty blocks that a drain has written
  Counter& corrupt_or_unreadable;  ///< blocks given up because a load failed
  Counter& loads_timed_out;        ///< loads that passed their deadline

 private:
  std::array<std::array<std::optional<RouteMetrics>, kNumTiers>, kNumTiers> routes_;
  std::array<std::optional<PoolMetrics>, kNumTiers> pools_;
};

}  // namespace kvbm
