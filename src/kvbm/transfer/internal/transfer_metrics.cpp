// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/internal/transfer_metrics.hpp"

#include <string>
#include <utility>

namespace kvbm::internal {
namespace {

RouteCounters route_counters(MetricsRegistry& registry, size_t index) {
  const std::vector<MetricLabel> labels{
      {"route", std::string(to_string(static_cast<TransferRoute>(index)))}};
  return {
      .blocks = registry.counter({"kvbm_copied_blocks_total",
                                  "Blocks copied between layouts, here or of another worker, once "
                                  "for each range of layers that they went in.",
                                  "blocks", labels}),
      .bytes = registry.counter(
          {"kvbm_copied_bytes_total",
           "Payload of the blocks copied between layouts, here or of another worker.", "bytes",
           labels}),
      .failed = registry.counter({"kvbm_copy_failed_blocks_total",
                                  "Blocks that a copy between layouts did not bring over.",
                                  "blocks", labels})};
}

template <size_t... kIndices>
std::array<RouteCounters, sizeof...(kIndices)> all_routes(MetricsRegistry& registry,
                                                          std::index_sequence<kIndices...>) {
  return {route_counters(registry, kIndices)...};
}

}  // namespace

TransferMetrics::TransferMetrics(MetricsRegistry* registry)
    : TransferMetrics(registry ? nullptr : std::make_unique<MetricsRegistry>(), registry) {}

TransferMetrics::TransferMetrics(std::unique_ptr<MetricsRegistry> own, MetricsRegistry* registry)
    : own_(std::move(own)),
      routes_(
          all_routes(registry ? *registry : *own_, std::make_index_sequence<kNumTransferRoutes>())),
      corrupt_blocks_((registry ? *registry : *own_)
                          .counter({"kvbm_corrupt_blocks_total",
                                    "Blocks read from a file that were not what was written.",
                                    "blocks",
                                    {}})) {}

}  // namespace kvbm::internal
