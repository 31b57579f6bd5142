// SPDX-License-Identifier: Apache-2.0
// Every series that kvbm registers moves, and is documented.
#include <algorithm>
#include <array>
#include <chrono>
#include <iterator>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/random.hpp"
#include "kvbm/connector/connector_leader.hpp"
#include "kvbm/events/event_sink.hpp"
#include "kvbm/runtime/block_manager.hpp"
#include "kvbm/runtime/kvbm_leader.hpp"
#include "kvbm/runtime/kvbm_worker.hpp"
#include "kvbm/runtime/metrics_doc.hpp"
#include "kvbm/transfer/loopback_agent.hpp"
#include "kvbm/transfer/transfer_manager.hpp"

#include "tests/support/faulty_device.hpp"
#include "tests/support/faulty_file_engine.hpp"
#include "tests/support/faulty_remote_agent.hpp"
#include "tests/support/guarded_place.hpp"
#include "tests/support/recording_log_sink.hpp"
#include "tests/support/seed.hpp"
#include "tests/support/transfer_rig.hpp"

namespace kvbm {
namespace {

using std::chrono::milliseconds;
using testing::GuardedPlace;
using testing::TransferRig;

constexpr GroupId kGroup{0};
constexpr uint32_t kTokens = 4;
constexpr uint64_t kBlockBytes = 64;

std::string name_of(const MetricInfo& info) {
  std::string name = info.name;
  for (const MetricLabel& label : info.labels) name += " " + label.key + "=" + label.value;
  return name;
}

std::set<std::string> without(const std::set<std::string>& all, const std::set<std::string>& some) {
  std::set<std::string> rest;
  std::ranges::set_difference(all, some, std::inserter(rest, rest.end()));
  return rest;
}

/// Remembers which series have had two different values.
class Watch {
 public:
  void look_at(const MetricsRegistry& registry) {
    struct Visitor final : StatisticsVisitor {
      explicit Visitor(Watch& the_watch, const MetricsRegistry& the_registry)
          : watch(the_watch), registry(the_registry) {}
      void visit_counter(const MetricInfo& info, uint64_t value) override {
        see(info, static_cast<double>(value));
      }
      void visit_gauge(const MetricInfo& info, int64_t value) override {
        see(info, static_cast<double>(value));
      }
      void visit_real_gauge(const MetricInfo& info, double value) override { see(info, value); }
      void visit_histogram(const MetricInfo& info, const HistogramSnapshot& value) override {
        see(info, static_cast<double>(value.count));
      }
      void see(const MetricInfo& info, double value) {
        const std::string name = name_of(info);
        watch.all.insert(name);
        const auto [first, is_new] = watch.first_.try_emplace({&registry, name}, value);
        if (!is_new && first->second != value) watch.moved.insert(name);
      }
      Watch& watch;
      const MetricsRegistry& registry;
    } visitor(*this, registry);
    registry.visit(visitor);
  }
  [[nodiscard]] std::set<std::string> still() const { return without(all, moved); }

  std::set<std::string> all;
  std::set<std::string> moved;

 private:
  std::map<std::pair<const MetricsRegistry*, std::string>, double> first_;
};

/// Keeps operations, and answers them as the test says.
class HandChannel final : public Channel {
 public:
  void send(std::span<const CopyOp> ops, std::span<const OpId> /*cancels*/) override {
    open.insert(open.end(), ops.begin(), ops.end());
  }
  [[nodiscard]] ChannelInbox receive() override { return std::exchange(inbox, {}); }
  [[nodiscard]] bool wait(TimePoint /*deadline*/) override { return !inbox.empty(); }

  void answer(const CopyOp& op, Outcome outcome) {
    const bool arrived = outcome == Outcome::kSucceeded;
    inbox.results.push_back({.op = op.op,
                             .rank = RankId(0),
                             .outcome = outcome,
                             .bytes = arrived ? op.from.size() * kBlockBytes : 0,
                             .failed = {}});
  }

  std::vector<CopyOp> open;
  ChannelInbox inbox;
};

/// A connector's leader over tiers too small for what an engine computes, whose copies go wrong
/// again and again.
class Connector {
 public:
  Connector(uint32_t host_blocks, uint32_t disk_blocks, uint32_t backlog, bool disk_filter,
            uint64_t seed, Watch& watch)
      : random_(seed), watch_(watch) {
    TierManagerOptions options;
    options.groups = {{kGroup, Retention::full_prefix()}};
    options.timeout = milliseconds(50);
    options.max_open_store_blocks = backlog;
    options.disk_filter = disk_filter;
    for (const auto& [tier, num_blocks] : {std::pair(TierId::kG1, kEngineBlocks),
                                           {TierId::kG2, host_blocks},
                                           {TierId::kG3, disk_blocks}}) {
      if (num_blocks == 0) continue;
      options.places.push_back({.place = {tier, kGroup},
                                .owner = tier == TierId::kG1 ? Owner::kEngine : Owner::kKvbm,
                                .spread = Spread::kSharded,
                                .num_blocks = num_blocks,
                                .rank_block_bytes = kBlockBytes});
    }
    auto tiers = TierManager::create(options, clock_, events_, metrics_, log_).value();
    cluster_ =
        std::make_unique<Cluster>(std::move(tiers), channel_, clock_, EngineOperations::kBySteps);
    leader_ = ConnectorLeader::create({.groups = {{.block_tokens = kTokens}},
                                       .ns = NamespaceId(1),
                                       .load_mode = LoadMode::kBetweenSteps,
                                       .breaker = {.max_failures = 2, .pause = milliseconds(5)}},
                                      *cluster_, clock_, metrics_, log_)
                  .value();
    watch_.look_at(metrics_);
  }

  /// A request looks up, loads or not, computes the rest, and ends.
  void serve() {
    const std::string request = std::to_string(next_request_++);
    const uint64_t prompt = random_.uniform(12);
    const auto num_blocks = static_cast<uint32_t>(2 + random_.uniform(5));
    for (uint32_t i = 0; i < num_blocks; ++i) {
      const Identity identity =
          Identity::from_hashes(SequenceHash(prompt * 100 + i), BlockHash(i), SequenceHash(0), i);
      leader_->extend(request, {&identity, 1});
    }
    const ExternalMatch offer = leader_->match(request, 0, num_blocks * kTokens);
    std::vector<BlockId> blocks;
    const auto first = static_cast<uint32_t>(random_.uniform(kEngineBlocks - num_blocks));
    for (uint32_t i = 0; i < num_blocks; ++i) blocks.emplace_back(first + i);
    EXPECT_TRUE(leader_->allocated(request, {blocks}, offer.num_tokens));
    watch_.look_at(metrics_);
    for (int i = 0; i < 4 && leader_->num_open_loads() > 0; ++i) step({});
    step({{.request = request,
           .blocks = {blocks},
           .replaces_blocks = true,
           .num_computed_tokens = offer.num_tokens,
           .num_scheduled_tokens = num_blocks * kTokens - offer.num_tokens}});
    static_cast<void>(leader_->finished(request));
    step({});
  }
  void drain() {
    static_cast<void>(cluster_->leader().drain(4));
    step({});
  }
  void reset() {
    leader_->reset();
    watch_.look_at(metrics_);
  }
  void lose_the_rank() {
    channel_.inbox.lost.push_back(RankId(0));
    cluster_->exchange();
    watch_.look_at(metrics_);
  }

 private:
  static constexpr uint32_t kEngineBlocks = 16;

  void step(const std::vector<ScheduledRequest>& scheduled) {
    const ConnectorStep built = decode_connector_step(leader_->build_step(scheduled)).value();
    for (const auto* ops : {&built.plan.loads, &built.plan.stores}) {
      channel_.open.insert(channel_.open.end(), ops->begin(), ops->end());
    }
    watch_.look_at(metrics_);
    clock_.advance(milliseconds(random_.chance(0.05) ? 60 : 1));
    for (CopyOp& op : std::exchange(channel_.open, {})) {
      if (random_.chance(0.3)) {
        channel_.open.push_back(std::move(op));  // later
        continue;
      }
      const bool fails = random_.chance(0.25);
      channel_.answer(op, !fails                ? Outcome::kSucceeded
                          : random_.chance(0.5) ? Outcome::kFailed
                                                : Outcome::kCancelled);
    }
    cluster_->exchange();
    watch_.look_at(metrics_);
  }

  Random random_;
  Watch& watch_;
  NullLogSink log_;
  ManualClock clock_;
  NullSink events_;
  MetricsRegistry metrics_;
  HandChannel channel_;
  std::unique_ptr<Cluster> cluster_;
  std::unique_ptr<ConnectorLeader> leader_;
  uint64_t next_request_ = 0;
};

void drive_connectors(Watch& watch) {
  const uint64_t seed = testing::test_seed(1);
  struct Tiers {
    uint32_t host_blocks;
    uint32_t disk_blocks;
    uint32_t backlog;
    bool disk_filter = false;
  };
  for (const Tiers& tiers :
       {Tiers{6, 8, 4}, Tiers{0, 12, 100}, Tiers{10, 24, 100}, Tiers{6, 24, 100, true}}) {
    Connector connector(tiers.host_blocks, tiers.disk_blocks, tiers.backlog, tiers.disk_filter,
                        seed, watch);
    for (int i = 0; i < 1500; ++i) {
      connector.serve();
      if (i % 10 == 0) connector.drain();
      if (tiers.disk_filter && i == 400) connector.reset();
    }
    connector.lose_the_rank();
  }
}

/// A leader whose block events nobody takes in time.
void drive_leader(Watch& watch) {
  constexpr uint64_t kRun = 1024;
  NullLogSink log;
  std::array<std::byte, 4 * kRun> tensor{};
  const auto worker =
      KvbmWorker::create(
          {.rank = 0,
           .num_blocks = 4,
           .groups = {{.run_bytes = kRun, .runs = {{.base = tensor.data(), .block_stride = kRun}}}},
           .disk_directory = ""},
          log)
          .value();
  KvbmLeaderOptions options;
  options.groups = {{.block_tokens = 4}};
  options.host_blocks = 4;
  options.max_events = 1;
  KvbmWorker* const workers[] = {worker.get()};
  const auto leader = KvbmLeader::create(options, workers, log).value();
  watch.look_at(leader->metrics());
  std::vector<BlockId> blocks;
  for (uint32_t i = 0; i < 2; ++i) {
    const Identity identity =
        Identity::from_hashes(SequenceHash(i), BlockHash(i), SequenceHash(0), i);
    leader->requests().extend("a", {&identity, 1});
    blocks.emplace_back(i);
  }
  const ScheduledRequest scheduled{.request = "a",
                                   .blocks = {blocks},
                                   .replaces_blocks = true,
                                   .num_computed_tokens = 0,
                                   .num_scheduled_tokens = 8};
  ASSERT_TRUE(worker->hooks().begin_step(leader->requests().build_step({&scheduled, 1})));
  worker->hooks().end_step();
  ASSERT_TRUE(leader->wait_idle(std::chrono::steady_clock::now() + std::chrono::seconds(10)));
  EXPECT_EQ(leader->take_events().size(), 1U);
  watch.look_at(leader->metrics());
}

void drive_manager(Watch& watch) {
  MetricsRegistry metrics;
  KvBlockManagerConfig config;
  config.block_size = 4;
  config.num_blocks = 4;
  config.num_layers = 2;
  config.num_heads = 2;
  config.head_dim = 8;
  config.host_blocks = 4;
  config.enable_offload = true;
  BlockManagerParts parts;
  parts.metrics = &metrics;
  parts.workers = BlockManagerParts::Workers::kLogical;
  auto manager = BlockManager::create(config, std::move(parts));
  ASSERT_TRUE(manager) << manager.error();
  watch.look_at(metrics);
  std::vector<Identity> chain;
  for (uint64_t i = 0; i < 3; ++i) {
    chain.push_back(Identity::from_hashes(SequenceHash(i), BlockHash(i), SequenceHash(0), i));
  }
  const SequenceKeys keys = (*manager)->keys(chain);
  const auto register_first = [&] {
    auto blocks = (*manager)->allocate_blocks(1).value();
    (*manager)->poll();
    watch.look_at(metrics);
    std::vector<CompleteBlock> complete;
    complete.push_back(std::move(blocks[0]).complete(keys.groups[0][0], std::nullopt));
    return (*manager)->register_blocks(std::move(complete));
  };
  auto held = register_first();
  auto duplicate = register_first();
  (*manager)->poll();
  watch.look_at(metrics);
  (*manager)->release(std::move(duplicate));
  (*manager)->release(std::move(held));
  { const PrefixHit hit = (*manager)->match(keys); }
  (*manager)->poll();
  watch.look_at(metrics);
  auto all = (*manager)->allocate_blocks(4);
  EXPECT_TRUE(all);
  (*manager)->poll();
  watch.look_at(metrics);
}

void drive_transfers(Watch& watch) {
  constexpr LayoutConfig kConfig{.num_blocks = 2,
                                 .num_layers = 1,
                                 .outer_dim = 1,
                                 .page_size = 1,
                                 .inner_dim = 64,
                                 .dtype_width_bytes = 1,
                                 .num_heads = std::nullopt,
                                 .alignment = 1};
  const std::vector<BlockId> ids{BlockId(0), BlockId(1)};
  const std::vector<SlotTag> tags{testing::tag_of(0), testing::tag_of(1)};
  for (const bool faulty : {false, true}) {
    TransferRig rig;
    if (faulty) {
      rig.use_device<testing::FaultyDevice>(
          testing::DeviceFaults{.seed = 1, .copy_fails = 1, .copy_refused = 0});
      rig.use_files<testing::FaultyFileEngine>(
          PosixFileEngine::create({.executor = *rig.executor}).value(), *rig.executor,
          testing::FileFaults{.seed = 1, .fail = 1});
    }
    watch.look_at(rig.metrics);
    std::vector<std::unique_ptr<GuardedPlace>> places;
    std::vector<LayoutHandle> handles;
    for (const auto& [kind, storage] :
         {std::pair(LayoutKind::kFullyContiguous, StorageKind::kSystem),
          {LayoutKind::kFullyContiguous, StorageKind::kDevice},
          {LayoutKind::kFileSlots, StorageKind::kFile}}) {
      for (int i = 0; i < 2; ++i) {
        places.push_back(std::make_unique<GuardedPlace>(kConfig, kind, storage));
        handles.push_back(rig.manager->register_layout(places.back()->layout()).value());
      }
    }
    constexpr size_t kFirstFile = 4;
    for (size_t src = 0; src < handles.size(); ++src) {
      for (size_t dst = 0; dst < handles.size(); ++dst) {
        if (src == dst || (src >= kFirstFile && dst >= kFirstFile)) continue;
        TransferOptions options;
        if (src >= kFirstFile || dst >= kFirstFile) options.tags = tags;
        const auto copied = rig.execute(handles[src], ids, handles[dst], ids, options);
        if (copied) static_cast<void>(copied->wait());
      }
    }
    if (!faulty) {
      const std::vector<SlotTag> other_tags{testing::tag_of(7), testing::tag_of(8)};
      TransferOptions others;
      others.tags = other_tags;
      EXPECT_FALSE(rig.execute(handles[kFirstFile], ids, handles[0], ids, others)->wait());
    }
    watch.look_at(rig.metrics);
  }
}

/// Two managers read and write each other's blocks; then each copy fails.
void drive_remote_transfers(Watch& watch) {
  constexpr LayoutConfig kConfig{.num_blocks = 2,
                                 .num_layers = 1,
                                 .outer_dim = 1,
                                 .page_size = 1,
                                 .inner_dim = 64,
                                 .dtype_width_bytes = 1};
  const std::vector<BlockId> ids{BlockId(0), BlockId(1)};
  for (const bool faulty : {false, true}) {
    TransferRig rig;
    LoopbackNetwork network;
    struct Side {
      std::unique_ptr<RemoteAgent> agent;
      std::unique_ptr<TransferManager> manager;
      LayoutHandle handle;
    };
    std::array<Side, 2> sides;
    std::array<GuardedPlace, 2> places{
        GuardedPlace(kConfig, LayoutKind::kFullyContiguous, StorageKind::kSystem),
        GuardedPlace(kConfig, LayoutKind::kFullyContiguous, StorageKind::kSystem)};
    for (uint64_t i = 0; i < sides.size(); ++i) {
      sides[i].agent =
          LoopbackAgent::create(
              {.network = network, .executor = *rig.executor, .name = "agent-" + std::to_string(i)})
              .value();
      if (faulty) {
        sides[i].agent = std::make_unique<testing::FaultyRemoteAgent>(
            std::move(sides[i].agent), *rig.executor, testing::RemoteFaults{.fail = 1});
      }
      sides[i].manager = TransferManager::create({.worker = WorkerId(i),
                                                  .device = *rig.device,
                                                  .executor = *rig.executor,
                                                  .log = rig.log,
                                                  .metrics = &rig.metrics,
                                                  .remote_agent = sides[i].agent.get()})
                             .value();
      sides[i].handle = sides[i].manager->register_layout(places[i].layout()).value();
      ASSERT_TRUE(
          sides[i].manager->build_logical_descriptor(sides[i].handle, LogicalLayoutHandle::kG2));
    }
    ASSERT_TRUE(sides[0].manager->import_metadata(sides[1].manager->export_metadata().value()));
    ASSERT_TRUE(sides[1].manager->import_metadata(sides[0].manager->export_metadata().value()));
    watch.look_at(rig.metrics);
    for (const auto& [src, dst] : {std::pair<size_t, size_t>(0, 1), {1, 0}}) {
      const auto copied = sides[0].manager->execute_transfer(
          {.src = sides[src].handle, .src_ids = ids, .dst = sides[dst].handle, .dst_ids = ids});
      ASSERT_TRUE(copied) << copied.error();
      EXPECT_EQ(copied->wait().has_value(), !faulty);
    }
    watch.look_at(rig.metrics);
  }
}

TEST(Metrics, EverySeriesMovesAndIsDocumented) {
  Watch watch;
  drive_connectors(watch);
  drive_leader(watch);
  drive_manager(watch);
  drive_transfers(watch);
  drive_remote_transfers(watch);
  EXPECT_THAT(watch.still(), ::testing::IsEmpty()) << "nothing here moves these";

  std::set<std::string> documented;
  const auto series = documented_series();
  ASSERT_TRUE(series) << series.error();
  for (const DocumentedSeries& one : *series) documented.insert(name_of(one.info));
  EXPECT_THAT(without(documented, watch.all), ::testing::IsEmpty())
      << "nothing here registers these";
  EXPECT_THAT(without(watch.all, documented), ::testing::IsEmpty()) << "nothing documents these";
}

}  // namespace
}  // namespace kvbm
