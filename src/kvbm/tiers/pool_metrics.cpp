// SPDX-License-Identifier: Apache-2.0
#include "kvbm/tiers/pool_metrics.hpp"

#include <chrono>

#include "kvbm/tiers/internal/tier_label.hpp"

namespace kvbm {
namespace {

MetricInfo of_pool(TierId tier, const char* name, const char* help, const char* unit = "blocks") {
  return {name, help, unit, {{"pool", internal::tier_label(tier)}}};
}

Counter* same_key_counter(MetricsRegistry& registry, TierId tier, SameKey same_key) {
  switch (same_key) {
    case SameKey::kDuplicate:
      return &registry.counter(of_pool(tier, "kvbm_duplicate_blocks_total",
                                       "Blocks registered beside another one with the same key."));
    case SameKey::kDropped:
      return &registry.counter(
          of_pool(tier, "kvbm_registration_dedup_total",
                  "Blocks freed when they were to be registered, as the tier had their key."));
    case SameKey::kImpossible:
      break;
  }
  return nullptr;
}

}  // namespace

PoolMetrics::PoolMetrics(MetricsRegistry& registry, TierId tier, SameKey same_key)
    : allocations_(registry.counter(
          of_pool(tier, "kvbm_allocations_total", "Blocks allocated, to be filled."))),
      allocations_from_free_(registry.counter(
          of_pool(tier, "kvbm_allocations_from_reset_total",
                  "Of the allocated blocks those that were free: nothing was evicted for them."))),
      evictions_(registry.counter(of_pool(tier, "kvbm_evictions_total",
                                          "Blocks that left the tier to make room for others."))),
      evictions_by_old_name_(registry.counter(
          of_pool(tier, "kvbm_eviction_count", "The same as kvbm_evictions_total."))),
      registrations_(registry.counter(
          of_pool(tier, "kvbm_registrations_total", "Blocks that became findable by their key."))),
      same_key_(same_key_counter(registry, tier, same_key)),
      stagings_(registry.counter(
          of_pool(tier, "kvbm_stagings_total", "Filled blocks that were given their key."))),
      keys_asked_(registry.counter(of_pool(
          tier, "kvbm_match_hashes_requested_total",
          "Keys that look-ups asked of the tier. A look-up asks all tiers below the engine."))),
      blocks_matched_(registry.counter(
          of_pool(tier, "kvbm_match_blocks_returned_total",
                  "Blocks that look-ups found and pinned, in the nearest tier that has them."))),
      mutable_(registry.gauge(
          of_pool(tier, "kvbm_inflight_mutable", "Blocks that are allocated and not registered."))),
      active_(registry.gauge(
          of_pool(tier, "kvbm_inflight_immutable", "Registered blocks that somebody holds."))),
      free_(registry.gauge(of_pool(tier, "kvbm_reset_pool_size", "Blocks without content."))),
      idle_(registry.gauge(of_pool(tier, "kvbm_inactive_pool_size",
                                   "Registered blocks that nobody holds: the cache proper."))),
      held_(registry.gauge(
          of_pool(tier, "kvbm_blocks_allocated",
                  "Blocks in use: kvbm_inflight_mutable and kvbm_inflight_immutable."))),
      available_(registry.gauge(of_pool(
          tier, "kvbm_blocks_free",
          "Blocks that can be allocated: kvbm_reset_pool_size and kvbm_inactive_pool_size."))),
      allocation_seconds_(registry.histogram(
          of_pool(tier, "kvbm_allocation_latency",
                  "Time of an allocation of any number of blocks, evictions included.", "seconds"),
          exponential_bounds(1e-6, 4, 8))) {}

void PoolMetrics::show(const PoolOccupancy& occupancy, const PoolStatistics& statistics) {
  allocations_.add(statistics.allocated - shown_.allocated);
  allocations_from_free_.add(statistics.from_free - shown_.from_free);
  registrations_.add(statistics.registered - shown_.registered);
  if (same_key_ != nullptr) {
    same_key_->add(statistics.duplicates + statistics.rejected - shown_.duplicates -
                   shown_.rejected);
  }
  stagings_.add(statistics.completed - shown_.completed);
  keys_asked_.add(statistics.asked - shown_.asked);
  blocks_matched_.add(statistics.matched - shown_.matched);
  shown_ = statistics;
  mutable_.set(occupancy.num_mutable);
  active_.set(occupancy.num_active);
  free_.set(occupancy.num_free);
  idle_.set(occupancy.num_idle);
  held_.set(int64_t{occupancy.num_mutable} + occupancy.num_active);
  available_.set(int64_t{occupancy.num_free} + occupancy.num_idle);
}

void PoolMetrics::evicted(uint64_t num_blocks) noexcept {
  evictions_.add(num_blocks);
  evictions_by_old_name_.add(num_blocks);
}

void PoolMetrics::allocation_took(Duration time) noexcept {
  allocation_seconds_.observe(std::chrono::duration<double>(time).count());
}

void add_to(PoolOccupancy& sum, const PoolOccupancy& pool) noexcept {
  sum.num_free += pool.num_free;
  sum.num_idle += pool.num_idle;
  sum.num_active += pool.num_active;
  sum.num_mutable += pool.num_mutable;
}

void add_to(PoolStatistics& sum, const PoolStatistics& pool) noexcept {
  sum.allocated += pool.allocated;
  sum.from_free += pool.from_free;
  sum.refused += pool.refused;
  sum.evicted += pool.evicted;
  sum.completed += pool.completed;
  sum.registered += pool.registered;
  sum.duplicates += pool.duplicates;
  sum.rejected += pool.rejected;
  sum.asked += pool.asked;
  sum.matched += pool.matched;
  sum.touched += pool.touched;
  sum.parent_conflicts += pool.parent_conflicts;
}

}  // namespace kvbm
