// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/kvbm_leader.hpp"

#include <unistd.h>

#include <filesystem>
#include <utility>

#include <fmt/chrono.h>

#include "kvbm/base/text.hpp"
#include "kvbm/base/thread_executor.hpp"
#include "kvbm/blocks/eviction_policy.hpp"
#include "kvbm/cluster/cluster.hpp"
#include "kvbm/cluster/inproc_channel.hpp"
#include "kvbm/connector/record_writer.hpp"
#include "kvbm/connector/recording_leader.hpp"
#include "kvbm/events/event_sink.hpp"
#include "kvbm/events/recording_sink.hpp"
#include "kvbm/layout/slot_format.hpp"
#include "kvbm/runtime/config_schema.hpp"
#include "kvbm/runtime/connector_config.hpp"
#include "kvbm/runtime/internal/rank_link.hpp"
#include "kvbm/runtime/internal/tier_size.hpp"
#include "kvbm/runtime/metrics_endpoint.hpp"

namespace kvbm {

struct KvbmLeader::Impl {
  explicit Impl(LogSink& log) : executor(log) {}

  ThreadExecutor executor;
  NullSink no_events;
  std::unique_ptr<RecordingSink> events;  // none: nobody takes them
  MetricsRegistry metrics;
  Counter& dropped_events = metrics.counter(
      {"kvbm_events_dropped_total", "Block events lost because nobody took them in time.", "", {}});
  std::unique_ptr<Channel> channel;
  // What is in front of clock, channel and requests for a flight record; none without one.
  std::unique_ptr<HeldClock> held_clock;
  std::unique_ptr<RecordingChannel> recording_channel;
  std::unique_ptr<Cluster> cluster;
  std::unique_ptr<ConnectorLeader> requests;
  std::unique_ptr<RecordWriter> writer;
  std::unique_ptr<RecordingLeader> recording;
  std::vector<GroupPart> parts;
  std::unique_ptr<MetricsEndpoint> endpoint;  // reads what is above
};

namespace {

tl::unexpected<Error> invalid(std::string message) {
  return make_error(ErrorCode::kInvalidArgument, std::move(message));
}

/// An engine does not fail because nobody can look at it.
std::unique_ptr<MetricsEndpoint> serve_metrics(Executor& executor, uint16_t port,
                                               std::vector<const MetricsRegistry*> registries,
                                               LogSink& log) {
  auto started = MetricsEndpoint::start(executor, port, std::move(registries));
  if (started) return *std::move(started);
  KVBM_LOG_WARNING(log, "metrics",
                   "no metrics are served: {} (DYN_KVBM_METRICS_PORT names the port, "
                   "DYN_KVBM_METRICS=false asks for none)",
                   started.error().describe());
  return nullptr;
}

/// A folder that no other run has.
std::filesystem::path record_folder(const std::string& directory, WallTime now) {
  const auto seconds = std::chrono::time_point_cast<std::chrono::seconds>(
      std::chrono::time_point_cast<std::chrono::system_clock::duration>(now));
  return std::filesystem::path(directory) /
         fmt::format("kvbm-record-{}-{:%Y%m%dT%H%M%S}.{:09}", ::getpid(), seconds,
                     now.time_since_epoch().count() % 1'000'000'000);
}

}  // namespace

Result<std::unique_ptr<KvbmLeader>> KvbmLeader::create(const KvbmLeaderOptions& options,
                                                       std::span<KvbmWorker* const> workers,
                                                       LogSink& log) {
  if (workers.empty()) return invalid("a leader needs at least one worker");
  auto impl = std::make_unique<Impl>(log);
  internal::LeaderLink link;
  std::vector<Worker*> ranks;
  for (KvbmWorker* worker : workers) {
    ranks.push_back(&worker->worker());
    link.engine_places.push_back(worker->engine_places());
    link.registries.push_back(&worker->metrics());
  }
  link.provide = [ranks](std::span<const PlaceSpec> places) -> Status {
    for (const PlaceSpec& place : places) {
      for (Worker* rank : ranks) KVBM_TRY(rank->provide(place));
    }
    return {};
  };
  link.channel = std::make_unique<InprocChannel>(impl->executor, std::move(ranks));
  return build(std::move(impl), options, std::move(link), log);
}

Result<std::unique_ptr<KvbmLeader>> KvbmLeader::create(const KvbmLeaderOptions& options,
                                                       const RemoteWorkers& workers, LogSink& log) {
  auto impl = std::make_unique<Impl>(log);
  auto link = internal::wait_for_ranks(
      {.endpoint = workers.endpoint,
       .num_ranks = workers.num_ranks,
       .secret = workers.secret,
       .place_timeout = workers.place_timeout,
       .keep_waiting = workers.keep_waiting},
      saturating_add(impl->executor.clock().now(), workers.init_timeout), impl->executor, log);
  if (!link) {
    if (link.error().code() != ErrorCode::kTimeout) return make_error(std::move(link).error());
    const auto limit = std::chrono::duration<double>(workers.init_timeout);
    return make_error(ErrorCode::kTimeout,
                      format_text("{}; {} sets the limit, which was {} s", link.error().message(),
                                  kInitTimeoutVariable, limit.count()));
  }
  link->provide = [made = std::move(link->provide)](std::span<const PlaceSpec> places) {
    Status provided = made(places);
    if (provided || provided.error().code() != ErrorCode::kTimeout) return provided;
    return Status(make_error(ErrorCode::kTimeout,
                             provided.error().message() + "; place_timeout sets the limit"));
  };
  return build(std::move(impl), options, *std::move(link), log);
}

/// `impl` has an executor.
Result<std::unique_ptr<KvbmLeader>> KvbmLeader::build(std::unique_ptr<Impl> impl,
                                                      const KvbmLeaderOptions& options,
                                                      internal::LeaderLink link, LogSink& log) {
  impl->channel = std::move(link.channel);
  const size_t num_ranks = link.engine_places.size();
  std::vector<PlaceSpec> places = link.engine_places.front();
  KVBM_ASSIGN_OR_RETURN(SplitGroups split, split_groups(options.groups));
  if (places.size() != split.parts.size()) {
    return invalid(format_text("the workers have {} layer groups or parts of them, the leader {}",
                               places.size(), split.parts.size()));
  }
  for (const auto& of_rank : link.engine_places) {
    if (of_rank != places) return invalid("the workers' KV tensors differ");
  }
  uint64_t host_bytes = 0;
  uint64_t disk_bytes = 0;
  for (const PlaceSpec& place : places) {
    // The workers may or may not use direct I/O: these are the larger slots.
    KVBM_ASSIGN_OR_RETURN(const SlotGeometry slot,
                          slot_geometry(place.rank_block_bytes, kDirectSlots));
    host_bytes += place.rank_block_bytes * num_ranks;
    disk_bytes += slot.slot_bytes * num_ranks;
  }
  KVBM_ASSIGN_OR_RETURN(
      const uint32_t host_blocks,
      internal::tier_blocks("host memory", options.host_blocks, options.host_bytes, host_bytes));
  KVBM_ASSIGN_OR_RETURN(
      const uint32_t disk_blocks,
      internal::tier_blocks("the disk", options.disk_blocks, options.disk_bytes, disk_bytes));
  if (host_blocks == 0 && disk_blocks == 0) {
    return invalid("there is nowhere to keep blocks: give host memory or disk space");
  }
  if (options.store_budget && !(*options.store_budget > 0 && *options.store_budget <= 1)) {
    return invalid(format_text("store_budget is {}, and not a number above 0, at most 1",
                               *options.store_budget));
  }
  const size_t num_groups = places.size();
  // The groups' block ids are of one pool of the engine, the slots of the tier are each group's.
  const uint64_t nearest_blocks =
      uint64_t{host_blocks > 0 ? host_blocks : disk_blocks} * num_groups;
  const uint32_t max_open_store_blocks = internal::store_budget_blocks(
      options.store_budget, places.front().num_blocks, nearest_blocks);
  for (const auto& [tier, num_blocks] :
       {std::pair(TierId::kG2, host_blocks), std::pair(TierId::kG3, disk_blocks)}) {
    if (num_blocks == 0) continue;
    for (size_t i = 0; i < num_groups; ++i) {
      PlaceSpec place = places[i];
      place.place.tier = tier;
      place.owner = Owner::kKvbm;
      place.num_blocks = num_blocks;
      places.push_back(place);
    }
  }
  KVBM_TRY(link.provide(std::span(places).subspan(num_groups)));
  if (options.max_events > 0) {
    impl->events = std::make_unique<RecordingSink>(options.max_events);
  }
  EventSink& events = impl->events ? static_cast<EventSink&>(*impl->events)
                                   : static_cast<EventSink&>(impl->no_events);
  KVBM_ASSIGN_OR_RETURN(const PolicyKind policy, parse_policy(options.policy));
  const TierManagerOptions tier_options{.groups = split.specs(),
                                        .places = places,
                                        .num_ranks = static_cast<uint32_t>(num_ranks),
                                        .policy = policy,
                                        .timeout = options.timeout,
                                        .max_open_store_blocks = max_open_store_blocks,
                                        .disk_filter = options.disk_filter,
                                        .worker = WorkerId{0},
                                        .engine_ids = EngineIds::kOfOnePool};
  impl->parts = std::move(split.parts);
  const ConnectorLeaderOptions request_options{.groups = options.groups,
                                               .ns = options.ns.id(),
                                               .load_mode = options.load_mode,
                                               .min_priority = options.min_priority};
  const bool records = !options.record_directory.empty();
  if (records) {
    impl->held_clock = std::make_unique<HeldClock>(impl->executor.clock());
    impl->recording_channel = std::make_unique<RecordingChannel>(*impl->channel, *impl->held_clock);
  }
  const Clock& clock = records ? *impl->held_clock : impl->executor.clock();
  Channel& channel = records ? *impl->recording_channel : *impl->channel;
  KVBM_ASSIGN_OR_RETURN(auto tiers,
                        TierManager::create(tier_options, clock, events, impl->metrics, log));
  impl->cluster =
      std::make_unique<Cluster>(std::move(tiers), channel, clock, EngineOperations::kBySteps);
  KVBM_ASSIGN_OR_RETURN(impl->requests, ConnectorLeader::create(request_options, *impl->cluster,
                                                                clock, impl->metrics, log));
  if (records) {
    const WallTime now = clock.wall_time();
    const std::filesystem::path folder = record_folder(options.record_directory, now);
    RecordHeader header;
    header.run = static_cast<uint64_t>(now.time_since_epoch().count());
    header.started = now;
    header.connector = request_options;
    header.tiers = tier_options;
    KVBM_ASSIGN_OR_RETURN(impl->writer, RecordWriter::create({.folder = folder}, std::move(header),
                                                             impl->executor, impl->metrics, log));
    impl->recording = std::make_unique<RecordingLeader>(
        *impl->requests, *impl->recording_channel, *impl->held_clock,
        impl->cluster->leader().metrics(), *impl->writer);
    // A warning: it takes disk, and nobody leaves it on.
    KVBM_LOG_WARNING(log, "connector", "every call is recorded: kvbm replay {}", folder.native());
  }
  if (options.metrics_port) {
    link.registries.insert(link.registries.begin(), &impl->metrics);
    impl->endpoint =
        serve_metrics(impl->executor, *options.metrics_port, std::move(link.registries), log);
  }
  return std::unique_ptr<KvbmLeader>(new KvbmLeader(std::move(impl)));
}

KvbmLeader::KvbmLeader(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
KvbmLeader::~KvbmLeader() = default;

SchedulerHalf& KvbmLeader::requests() noexcept {
  if (impl_->recording) return *impl_->recording;
  return *impl_->requests;
}
uint32_t KvbmLeader::num_host_blocks() const {
  return impl_->cluster->leader().blocks_per_group(TierId::kG2);
}
uint32_t KvbmLeader::num_disk_blocks() const {
  return impl_->cluster->leader().blocks_per_group(TierId::kG3);
}
uint64_t KvbmLeader::resident_blocks(TierId tier) const {
  return impl_->cluster->leader().resident_blocks(tier);
}
const TierMetrics& KvbmLeader::tier_metrics() const noexcept {
  return impl_->cluster->leader().metrics();
}
MetricsRegistry& KvbmLeader::metrics() noexcept { return impl_->metrics; }
std::vector<KvEvent> KvbmLeader::take_events() {
  if (!impl_->events) return {};
  std::vector<KvEvent> taken = impl_->events->take();
  for (KvEvent& event : taken) {
    event.key.group = GroupId(static_cast<uint16_t>(impl_->parts[event.key.group.value()].group));
  }
  impl_->dropped_events.add(impl_->events->dropped() - impl_->dropped_events.value());
  return taken;
}
std::optional<uint16_t> KvbmLeader::metrics_port() const noexcept {
  return impl_->endpoint ? std::optional(impl_->endpoint->port()) : std::nullopt;
}
void KvbmLeader::poll() { requests().poll(); }
Status KvbmLeader::wait_idle(TimePoint deadline) { return requests().wait_idle(deadline); }

}  // namespace kvbm
