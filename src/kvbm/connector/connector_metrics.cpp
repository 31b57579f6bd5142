// SPDX-License-Identifier: Apache-2.0
#include "kvbm/connector/connector_metrics.hpp"

namespace kvbm {

ConnectorMetrics::ConnectorMetrics(MetricsRegistry& registry)
    : bypass_open(registry.gauge(
          {"kvbm_bypass_open",
           "1 while nothing is offered to the engine because loads kept failing, and until one has "
           "succeeded again; 0 otherwise.",
           "",
           {}})),
      bypassed(registry.counter({"kvbm_bypassed_lookups_total",
                                 "Look-ups of a request's prefix that were not made for that "
                                 "reason.",
                                 "",
                                 {}})),
      matched_tokens(registry.counter({"kvbm_matched_tokens",
                                       "Tokens that the engine loads instead of computing them, "
                                       "beyond its own prefix cache.",
                                       "tokens",
                                       {}})),
      host_hit_rate_(registry.real_gauge(
          {"kvbm_host_cache_hit_rate",
           "Of the blocks that the last 1000 look-ups could have loaded the share that was in host "
           "memory, 0 to 1. Blocks that the engine had itself are not asked for.",
           "",
           {}})),
      disk_hit_rate_(registry.real_gauge(
          {"kvbm_disk_cache_hit_rate", "The same share that was on disk.", "", {}})) {}

void ConnectorMetrics::looked_up(const PrefixLookup& lookup) {
  if (lookup.blocks == 0) return;
  last_.push_back(lookup);
  blocks_ += lookup.blocks;
  on_host_ += lookup.on_host;
  on_disk_ += lookup.on_disk;
  if (last_.size() > kWindow) {
    blocks_ -= last_.front().blocks;
    on_host_ -= last_.front().on_host;
    on_disk_ -= last_.front().on_disk;
    last_.pop_front();
  }
  host_hit_rate_.set(static_cast<double>(on_host_) / static_cast<double>(blocks_));
  disk_hit_rate_.set(static_cast<double>(on_disk_) / static_cast<double>(blocks_));
}

}  // namespace kvbm
