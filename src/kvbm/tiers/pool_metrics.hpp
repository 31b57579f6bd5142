// SPDX-License-Identifier: Apache-2.0
// PoolMetrics: the series of a tier's pools.
#pragma once

#include <cstdint>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/ids.hpp"
#include "kvbm/base/metrics.hpp"
#include "kvbm/blocks/block_pool.hpp"

namespace kvbm {

/// What becomes of a block that is to be registered where its key is.
enum class SameKey : uint8_t {
  kDuplicate,  ///< both stay
  kDropped,    ///< the new one goes
  kImpossible  ///< it does not happen
};

/// What the pools of one tier have done, over all layer groups. Pools count under their own lock;
/// their owner shows what they say here, so that whoever reads the series takes no lock of theirs.
/// Threads: owner thread only; values may be read from any thread.
class PoolMetrics {
 public:
  PoolMetrics(MetricsRegistry& registry, TierId tier, SameKey same_key);

  /// Shows the sums over the tier's pools. Contract: `statistics` never shrink.
  void show(const PoolOccupancy& occupancy, const PoolStatistics& statistics);
  /// Blocks that left the tier to make room.
  void evicted(uint64_t num_blocks) noexcept;
  void allocation_took(Duration time) noexcept;

  [[nodiscard]] uint64_t evictions() const noexcept { return evictions_.value(); }

 private:
  Counter& allocations_;
  Counter& allocations_from_free_;
  Counter& evictions_;
  Counter& evictions_by_old_name_;
  Counter& registrations_;
  Counter* same_key_;  // none: it does not happen
  Counter& stagings_;
  Counter& keys_asked_;
  Counter& blocks_matched_;
  Gauge& mutable_;
  Gauge& active_;
  Gauge& free_;
  Gauge& idle_;
  Gauge& held_;
  Gauge& available_;
  Histogram& allocation_seconds_;
  PoolStatistics shown_;
};

/// Adds up the pools of a tier.
void add_to(PoolOccupancy& sum, const PoolOccupancy& pool) noexcept;
void add_to(PoolStatistics& sum, const PoolStatistics& pool) noexcept;

}  // namespace kvbm
