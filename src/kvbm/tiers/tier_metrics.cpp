// SPDX-License-Identifier: Apache-2.0
#include "kvbm/tiers/tier_metrics.hpp"

#include <chrono>
#include <string>
#include <utility>

#include "kvbm/base/contract.hpp"
#include "kvbm/tiers/internal/tier_label.hpp"

namespace kvbm {
namespace {

using internal::tier_label;

struct Route {
  TierId from;
  TierId to;
  const char* old_name;  // in Dynamo's KVBM, where d is the GPU or the disk, h the host
  const char* help;
};

constexpr Route kRoutes[] = {
    {TierId::kG1, TierId::kG2, "kvbm_offload_blocks_d2h",
     "Blocks stored from the GPU to host memory."},
    {TierId::kG2, TierId::kG3, "kvbm_offload_blocks_h2d",
     "Blocks written from host memory to disk."},
    {TierId::kG1, TierId::kG3, "kvbm_offload_blocks_d2d",
     "Blocks stored from the GPU to disk, where there is no host memory."},
    {TierId::kG2, TierId::kG1, "kvbm_onboard_blocks_h2d",
     "Blocks loaded from host memory to the GPU, those that came from disk before among them."},
    {TierId::kG3, TierId::kG1, "kvbm_onboard_blocks_d2d",
     "Blocks loaded from disk straight to the GPU, as host memory had no room."},
    {TierId::kG3, TierId::kG2, "kvbm_onboard_blocks_d2h",
     "Blocks staged from disk in host memory, on their way to the GPU."},
};

const Route& route_of(TierId from, TierId to) {
  for (const Route& route : kRoutes) {
    if (route.from == from && route.to == to) return route;
  }
  KVBM_CONTRACT(false, "no copies go from " + std::string(to_string(from)) + " to " +
                           std::string(to_string(to)));
  std::abort();
}

const char* operation_of(TierId from, TierId to) { return from < to ? "offload" : "onboard"; }

MetricLabel route_label(TierId from, TierId to) {
  return {"route", tier_label(from) + "_to_" + tier_label(to)};
}

MetricInfo route_info(const char* name, const char* help, const char* unit, TierId from,
                      TierId to) {
  return {name, help, unit, {route_label(from, to)}};
}

MetricInfo failures_info(TierId from, TierId to, const char* reason) {
  return {"kvbm_transfer_failures_total",
          "Copies between tiers, of any number of blocks, that did not bring all of them.",
          "",
          {route_label(from, to), {"operation", operation_of(from, to)}, {"reason", reason}}};
}

Histogram& duration_of(MetricsRegistry& registry, TierId from, TierId to, const char* outcome) {
  return registry.histogram(
      {"kvbm_transfer_duration_seconds",
       "Time of a copy between tiers from the decision to the answer of the last rank, waiting "
       "included.",
       "seconds",
       {route_label(from, to), {"operation", operation_of(from, to)}, {"outcome", outcome}}},
      exponential_bounds(1e-4, 4, 10));
}

Counter& dropped(MetricsRegistry& registry, const char* reason) {
  return registry.counter({"kvbm_store_dropped_blocks_total",
                           "New blocks of the GPU that were not stored below, see the labels.",
                           "blocks",
                           {{"reason", reason}}});
}

}  // namespace

RouteMetrics::RouteMetrics(MetricsRegistry& registry, TierId from, TierId to)
    : from_(from),
      to_(to),
      blocks_(registry.counter(route_info("kvbm_transfer_blocks_total",
                                          "Blocks that arrived from one tier in another, on every "
                                          "rank.",
                                          "blocks", from, to))),
      blocks_by_old_name_(
          registry.counter({route_of(from, to).old_name, route_of(from, to).help, "blocks", {}})),
      bytes_(registry.counter(route_info("kvbm_transfer_bytes_total",
                                         "Payload bytes that all ranks reported, those of failed "
                                         "copies among them.",
                                         "bytes", from, to))),
      failed_blocks_(registry.counter(route_info(
          "kvbm_transfer_failed_blocks_total",
          "Blocks whose copy failed or was cancelled, on any rank.", "blocks", from, to))),
      busy_nanoseconds_(registry.counter(
          route_info("kvbm_transfer_busy_nanoseconds_total",
                     "Time in which a copy of the route was open. Added when the last open one "
                     "ends.",
                     "nanoseconds", from, to))),
      failures_(registry.counter(failures_info(from, to, "failed"))),
      cancels_(registry.counter(failures_info(from, to, "cancelled"))),
      succeeded_seconds_(duration_of(registry, from, to, "succeeded")),
      failed_seconds_(duration_of(registry, from, to, "failed")),
      in_flight_(registry.gauge({"kvbm_transfer_inflight",
                                 "Copies between tiers that not every rank has answered.",
                                 "",
                                 {{"operation", operation_of(from, to)}}})) {}

void RouteMetrics::started(TimePoint now) {
  used_ = true;
  in_flight_.add();
  if (open_++ == 0) busy_since_ = now;
}

void RouteMetrics::ended(TimePoint now, const RouteEnd& end) {
  in_flight_.sub();
  blocks_.add(end.blocks);
  blocks_by_old_name_.add(end.blocks);
  failed_blocks_.add(end.failed_blocks);
  bytes_.add(end.bytes);
  if (end.failed_blocks > 0) (end.cancelled ? cancels_ : failures_).add();
  (end.failed_blocks > 0 ? failed_seconds_ : succeeded_seconds_)
      .observe(std::chrono::duration<double>(end.time).count());
  if (--open_ == 0) busy_nanoseconds_.add(static_cast<uint64_t>((now - busy_since_).count()));
}

TierMetrics::TierMetrics(MetricsRegistry& metrics)
    : hits{},
      lost{},
      forgotten{},
      store_dropped_no_room(dropped(metrics, "no_room")),
      store_dropped_backlog(dropped(metrics, "backlog")),
      open_store_blocks(metrics.gauge({"kvbm_store_open_blocks",
                                       "Blocks of the GPU whose stores are under way: a step that "
                                       "reuses one waits for its store.",
                                       "blocks",
                                       {}})),
      store_budget_blocks(metrics.gauge({"kvbm_store_budget_blocks",
                                         "How many blocks may be stored at a time; what is beyond "
                                         "it is dropped as backlog. Falls when "
                                         "the nearest tier shrinks below it; 0 when "
                                         "a rank is lost.",
                                         "blocks",
                                         {}})),
      evicted_unsaved(metrics.counter(
          {"kvbm_evicted_unsaved_blocks_total",
           "Blocks that host memory evicted, that were not on disk, and for which the disk had no "
           "slot. Without a disk nothing is counted.",
           "blocks",
           {}})),
      filtered(metrics.counter({"kvbm_disk_filtered_blocks_total",
                                "Blocks that host memory evicted, or a drain looked at, and that "
                                "the disk filter kept off "
                                "the disk: they were seen once only.",
                                "blocks",
                                {}})),
      drained_blocks(metrics.counter(
          {"kvbm_drained_blocks_total",
           "Blocks of host memory that were written to disk because the manager stops. Counted "
           "when every rank has confirmed them.",
           "blocks",
           {}})),
      corrupt_or_unreadable(metrics.counter(
          {"kvbm_given_up_blocks_total",
           "Blocks on disk that were dropped because reading them failed or gave other bytes.",
           "blocks",
           {}})),
      loads_timed_out(metrics.counter(
          {"kvbm_loads_timed_out_total", "Loads that passed their deadline.", "", {}})) {
  for (const Route& route : kRoutes) {
    routes_[static_cast<size_t>(route.from)][static_cast<size_t>(route.to)].emplace(
        metrics, route.from, route.to);
  }
  for (const TierId tier : {TierId::kG2, TierId::kG3}) {
    const auto index = static_cast<size_t>(tier);
    // What is on its way to G3 is not sent there again.
    pools_[index].emplace(metrics, tier,
                          tier == TierId::kG2 ? SameKey::kDropped : SameKey::kImpossible);
    hits[index] = &metrics.counter({"kvbm_cache_blocks_hit_total",
                                    "Blocks that loads found, in the nearest tier that has them.",
                                    "blocks",
                                    {{"tier", tier_label(tier)}}});
    lost[index] = &metrics.counter(
        {"kvbm_lost_blocks_total",
         "Blocks forgotten because a rank was lost: those that were in the tier, and those of "
         "stores and write-backs on their way into it. What was being staged or drained counts in "
         "the tier it was read from.",
         "blocks",
         {{"tier", tier_label(tier)}}});
    forgotten[index] =
        &metrics.counter({"kvbm_forgotten_blocks_total",
                          "Blocks that left a tier because it was emptied on demand.",
                          "blocks",
                          {{"tier", tier_label(tier)}}});
  }
}

RouteMetrics& TierMetrics::route(TierId from, TierId to) {
  auto& route = routes_[static_cast<size_t>(from)][static_cast<size_t>(to)];
  KVBM_CONTRACT(route, "no copies take this route");
  return *route;
}

std::vector<const RouteMetrics*> TierMetrics::routes() const {
  std::vector<const RouteMetrics*> used;
  for (const auto& from : routes_) {
    for (const auto& route : from) {
      if (route && route->was_used()) used.push_back(&*route);
    }
  }
  return used;
}

PoolMetrics& TierMetrics::pool(TierId tier) {
  auto& pool = pools_[static_cast<size_t>(tier)];
  KVBM_CONTRACT(pool, "the pools of G1 are the engine's");
  return *pool;
}

uint64_t TierMetrics::evictions(TierId tier) const noexcept {
  const auto& pool = pools_[static_cast<size_t>(tier)];
  return pool ? pool->evictions() : 0;
}

}  // namespace kvbm
