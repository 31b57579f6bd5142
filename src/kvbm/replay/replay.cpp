// SPDX-License-Identifier: Apache-2.0
#include "kvbm/replay/replay.hpp"

#include <sys/resource.h>

#include <sstream>
#include <string>
#include <utility>

#include "kvbm/base/text.hpp"
#include "kvbm/events/counting_sink.hpp"
#include "kvbm/replay/block_shape.hpp"
#include "kvbm/replay/pretend_engine.hpp"
#include "kvbm/runtime/block_manager.hpp"

namespace kvbm {
namespace {

constexpr TierId kReplayTiers[] = {TierId::kG1, TierId::kG2, TierId::kG3};

GroupConfig group_of(const ReplayGroup& group, uint64_t rank_block_bytes, size_t index) {
  GroupConfig shape;
  shape.name = "group" + std::to_string(index);
  shape.retention = group.retention;
  const BlockShape bytes = block_shape_of(rank_block_bytes).value();  // validate() has seen to it
  shape.num_layers = bytes.num_layers;
  shape.outer_dim = bytes.outer_dim;
  shape.num_heads = bytes.num_heads;
  shape.head_dim = bytes.head_dim;
  return shape;
}

KvBlockManagerConfig config_of(const ReplayOptions& options) {
  KvBlockManagerConfig config;
  config.block_size = 1;
  config.dtype_width_bytes = 1;
  config.num_heads = 1;
  config.device = options.device;
  config.cuda_ring_size = options.cuda_ring_size;
  config.num_blocks = static_cast<uint32_t>(options.g1_blocks);
  config.host_blocks = static_cast<uint32_t>(options.g2_blocks);
  config.disk_blocks = static_cast<uint32_t>(options.g3_blocks);
  config.enable_offload = options.g2_blocks > 0 || options.g3_blocks > 0;
  if (!options.disk_dir.empty()) config.offload_path = options.disk_dir.string();
  config.num_ranks = static_cast<uint16_t>(options.ranks);
  config.policy = std::string(to_string(options.policy));
  config.model = "replay";
  for (const ReplayGroup& group : options.groups) {
    const uint64_t bytes = group.block_bytes != 0 ? group.block_bytes : options.block_bytes;
    config.groups.push_back(group_of(group, bytes / options.ranks, config.groups.size()));
  }
  return config;
}

uint64_t peak_rss_bytes() {
  rusage usage{};
  if (getrusage(RUSAGE_SELF, &usage) != 0) return 0;
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;
}

/// What must hold at the end of every replay, whatever raced.
Status check_invariants(const ReplayReport& report, const BlockManager& manager) {
  const auto broken = [](std::string what) {
    return make_error(ErrorCode::kInternal,
                      "the replay's counters do not add up: " + std::move(what));
  };
  if (report.hits.total() + report.misses != report.accesses) {
    return broken(format_text("{} hits + {} misses != {} accesses", report.hits.total(),
                              report.misses, report.accesses));
  }
  for (TierId tier : kReplayTiers) {
    const TierEvents& events = report.events.of(tier);
    const uint64_t resident = manager.resident_blocks(tier);
    if (events.created + events.migrated - events.deleted != resident) {
      return broken(format_text("{}: {} created + {} migrated - {} deleted != {} resident", tier,
                                events.created, events.migrated, events.deleted, resident));
    }
  }
  return {};
}

void add_moved(ReplayReport& report, const BlockManager& manager) {
  const bool bytes = report.options.bytes == ReplayOptions::Bytes::kVerified;
  for (const RouteMetrics* route : manager.tier_metrics().routes()) {
    // Logical workers answer with the bytes that real ones would have moved; they moved none.
    report.moved.push_back({.from = route->from(),
                            .to = route->to(),
                            .blocks = route->blocks(),
                            .bytes = bytes ? route->bytes() : 0,
                            .busy = bytes ? route->busy() : Duration(0)});
    if (route->to() == TierId::kG1) report.onboarded_blocks += route->blocks();
    if (route->from() == TierId::kG1) report.stored_blocks += route->blocks();
    if (route->to() == TierId::kG3) report.disk_writes_blocks += route->blocks();
  }
}

}  // namespace

Result<ReplayReport> run_replay(const Trace& trace, const ReplayOptions& options,
                                Progress& progress, LogSink* log) {
  KVBM_TRY(options.validate());
  const bool bytes = options.bytes == ReplayOptions::Bytes::kVerified;
  CountingSink events;
  BlockManagerParts parts;
  parts.events = &events;
  parts.log = log;
  if (!bytes) parts.workers = BlockManagerParts::Workers::kLogical;
  KVBM_ASSIGN_OR_RETURN(const auto manager, BlockManager::create(config_of(options), parts));
  PretendEngine engine(*manager, {.bytes = bytes,
                                  .overlap = options.overlap == ReplayOptions::Overlap::kOn,
                                  .seed = options.seed});

  ReplayReport report;
  report.options = options;
  uint64_t total = 0;
  for (const TraceRequest& request : trace.requests) total += request.hash_ids.size();
  Timeline timeline(total);
  const auto sample = [&report] {
    return TimelineSample{.accesses = report.accesses, .hits = report.hits};
  };
  struct Finisher {
    Progress& progress;
    ~Finisher() { progress.finish(); }
  } const finisher{progress};

  progress.start(total);
  const TimePoint start = manager->clock().now();
  Status failed;
  for (const TraceRequest& request : trace.requests) {
    if (progress.interrupted()) return make_error(ErrorCode::kCancelled, "interrupted");
    Result<Served> served = engine.serve(request);
    if (!served) {
      failed = tl::unexpected(served.error());
      break;
    }
    ++report.requests;
    report.accesses += request.hash_ids.size();
    report.misses += served->misses;
    for (TierId tier : kReplayTiers) {
      report.hits.of(tier) += served->hits[static_cast<size_t>(tier)];
    }
    timeline.record(sample());
    progress.update(report.accesses);
  }
  if (failed) failed = engine.finish();
  if (failed) failed = manager->wait_idle();
  report.wall_time = manager->clock().now() - start;
  report.timeline = timeline.take(sample());
  report.verified_blocks = engine.verified_blocks();
  report.mismatches = engine.mismatches();
  report.failed_loads = engine.failed_loads();
  report.first_failed_load = engine.first_failed_load();
  if (!failed) {
    if (report.mismatches == 0) return make_error(std::move(failed).error());
    report.first_mismatch = failed.error().message();
  }
  add_moved(report, *manager);

  KVBM_TRY(manager->stop());
  const TierMetrics& counters = manager->tier_metrics();
  report.drained_blocks = counters.drained_blocks.value();
  report.dropped_stores =
      counters.store_dropped_backlog.value() + counters.store_dropped_no_room.value();
  const EventTally tally = events.tally();
  for (TierId tier : kReplayTiers) {
    report.evictions.of(tier) = manager->evictions(tier);
    const TierTally& of_tier = tally.of(tier);
    report.events.of(tier) = {.created = of_tier.created,
                              .migrated = of_tier.migrated,
                              .deleted = of_tier.deleted,
                              .resident = static_cast<uint64_t>(of_tier.resident())};
    report.configured_bytes += options.tier_bytes(tier);
  }
  std::ostringstream metrics;
  write_prometheus_text(manager->metrics(), metrics);
  report.metrics_text = std::move(metrics).str();
  report.peak_rss_bytes = peak_rss_bytes();
  if (report.mismatches == 0) KVBM_TRY(check_invariants(report, *manager));
  return report;
}

}  // namespace kvbm
