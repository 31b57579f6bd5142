// SPDX-License-Identifier: Apache-2.0
#include "kvbm/tiers/tier_metrics.hpp"

#include <string>

namespace kvbm {
namespace {

std::string lower_name(TierId tier) {
  std::string name(to_string(tier));
  name[0] = 'g';
  return name;
}

MetricInfo route_info(const char* name, const char* help, const char* unit, TierId from,
                      TierId to) {
  return {name, help, unit, {{"route", lower_name(from) + "_to_" + lower_name(to)}}};
}

}  // namespace

RouteMetrics::RouteMetrics(MetricsRegistry& registry, TierId from, TierId to)
    : from_(from),
      to_(to),
      blocks_(registry.counter(route_info("kvbm_transfer_blocks_total",
                                          "Blocks that arrived in a tier from another one.",
                                          "blocks", from, to))),
      bytes_(registry.counter(route_info("kvbm_transfer_bytes_total",
                                         "Payload bytes moved between tiers, over all ranks.",
                                         "bytes", from, to))),
      failed_blocks_(registry.counter(route_info("kvbm_transfer_failed_blocks_total",
                                                 "Blocks whose copy failed or was cancelled.",
                                                 "blocks", from, to))),
      busy_nanoseconds_(
          registry.counter(route_info("kvbm_transfer_busy_nanoseconds_total",
                                      "Time in which at least one copy of the route was under way.",
                                      "nanoseconds", from, to))) {}

void RouteMetrics::started(TimePoint now) {
  if (open_++ == 0) busy_since_ = now;
}

void RouteMetrics::ended(TimePoint now, uint64_t blocks, uint64_t failed_blocks, uint64_t bytes) {
  blocks_.add(blocks);
  failed_blocks_.add(failed_blocks);
  bytes_.add(bytes);
  if (--open_ == 0) busy_nanoseconds_.add(static_cast<uint64_t>((now - busy_since_).count()));
}

TierMetrics::TierMetrics(MetricsRegistry& metrics)
    : registry(metrics),
      evictions{},
      lost{},
      forgotten{},
      store_dropped_no_room(metrics.counter({"kvbm_store_dropped_blocks_total",
                                             "Blocks that were not stored below the GPU.",
                                             "blocks",
                                             {{"reason", "no_room"}}})),
      store_dropped_backlog(metrics.counter({"kvbm_store_dropped_blocks_total",
                                             "Blocks that were not stored below the GPU.",
                                             "blocks",
                                             {{"reason", "backlog"}}})),
      evicted_unsaved(
          metrics.counter({"kvbm_evicted_unsaved_blocks_total",
                           "Blocks evicted from host memory that the disk had no room for.",
                           "blocks",
                           {}})),
      filtered(metrics.counter({"kvbm_disk_filtered_blocks_total",
                                "Blocks of host memory that the disk filter kept off the disk.",
                                "blocks",
                                {}})),
      drained_blocks(metrics.counter({"kvbm_drained_blocks_total",
                                      "Blocks written down because the manager stopped.",
                                      "blocks",
                                      {}})),
      corrupt_or_unreadable(metrics.counter(
          {"kvbm_given_up_blocks_total",
           "Stored blocks given up because reading them failed or gave other bytes.",
           "blocks",
           {}})),
      loads_timed_out(metrics.counter(
          {"kvbm_loads_timed_out_total", "Loads that passed their deadline.", "", {}})),
      open_operations(
          metrics.gauge({"kvbm_open_operations", "Copies under way between tiers.", "", {}})) {
  for (size_t tier = 0; tier < kNumTiers; ++tier) {
    evictions[tier] = &metrics.counter({"kvbm_evictions_total",
                                        "Blocks that left a tier to make room.",
                                        "blocks",
                                        {{"tier", lower_name(static_cast<TierId>(tier))}}});
    lost[tier] = &metrics.counter({"kvbm_lost_blocks_total",
                                   "Blocks forgotten because a rank was lost.",
                                   "blocks",
                                   {{"tier", lower_name(static_cast<TierId>(tier))}}});
    forgotten[tier] = &metrics.counter({"kvbm_forgotten_blocks_total",
                                        "Blocks that left a tier because it was emptied on demand.",
                                        "blocks",
                                        {{"tier", lower_name(static_cast<TierId>(tier))}}});
  }
}

RouteMetrics& TierMetrics::route(TierId from, TierId to) {
  auto& route = routes_[static_cast<size_t>(from)][static_cast<size_t>(to)];
  if (!route) route.emplace(registry, from, to);
  return *route;
}

std::vector<const RouteMetrics*> TierMetrics::routes() const {
  std::vector<const RouteMetrics*> used;
  for (const auto& from : routes_) {
    for (const auto& route : from) {
      if (route) used.push_back(&*route);
    }
  }
  return used;
}

}  // namespace kvbm
