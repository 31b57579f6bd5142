// SPDX-License-Identifier: Apache-2.0
#include "kvbm/connector/connector_leader.hpp"

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/thread_executor.hpp"
#include "kvbm/cluster/inproc_channel.hpp"
#include "kvbm/connector/connector_worker.hpp"
#include "kvbm/events/recording_sink.hpp"

#include "tests/support/hooked_device.hpp"
#include "tests/support/pattern.hpp"
#include "tests/support/rank_rig.hpp"
#include "tests/support/recording_log_sink.hpp"

namespace kvbm {
namespace {

using std::chrono::milliseconds;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using testing::RankRig;
using testing::RankRigOptions;
using testing::RecordingLogSink;
using ::testing::UnorderedElementsAre;

constexpr GroupId kGroup{0};
constexpr uint32_t kTokens = 4;

/// Both halves around a real worker, and an engine on the host whose blocks hold their identity.
class ConnectorTest : public ::testing::Test {
 protected:
  void SetUp() override { use({}); }

  void use(const RankRigOptions& options, LoadMode mode = LoadMode::kAuto) {
    leader_.reset();
    worker_.reset();
    cluster_.reset();
    channel_.reset();
    rig_.reset();
    rig_ = std::make_unique<RankRig>(executor_, log_, options);
    channel_ = std::make_unique<InprocChannel>(executor_, std::vector{rig_->worker.get()});
    auto tiers = TierManager::create(
        {.groups = {{kGroup, retention_}}, .places = rig_->specs, .num_ranks = 1},
        executor_.clock(), events_, metrics_, log_);
    cluster_ = std::make_unique<Cluster>(std::move(tiers).value(), *channel_, executor_.clock(),
                                         EngineOperations::kBySteps);
    leader_ = ConnectorLeader::create({.groups = {{kTokens, retention_}},
                                       .ns = NamespaceId(1),
                                       .load_mode = mode,
                                       .min_priority = 30,
                                       .breaker = {.max_failures = 2, .pause = milliseconds(50)}},
                                      *cluster_, clock_, metrics_, log_)
                  .value();
    worker_ = std::make_unique<ConnectorWorker>(*rig_->worker, *rig_->device, rig_->compute,
                                                EngineCompute::kOnHost);
  }

  /// Block `position` of the sequence `name`.
  static Identity identity(uint64_t name, uint32_t position) {
    return Identity::from_hashes(SequenceHash(name), BlockHash(position), SequenceHash(0),
                                 position);
  }
  static uint64_t content(uint64_t name, uint32_t position) { return name * 1000 + position; }
  void extend(const std::string& request, uint64_t name, uint32_t num_blocks) {
    for (uint32_t i = leader_->num_identities(request); i < num_blocks; ++i) {
      const Identity next = identity(name, i);
      leader_->extend(request, {&next, 1});
    }
  }
  static std::vector<BlockId> blocks(uint32_t first, uint32_t count) {
    std::vector<BlockId> ids;
    for (uint32_t i = 0; i < count; ++i) ids.emplace_back(first + i);
    return ids;
  }

  /// One step of the engine with one request, which computes the blocks from `computed` on.
  void step(const ScheduledRequest& request, uint64_t name) {
    begin({request});
    EXPECT_TRUE(worker_->all_layers_needed());
    const auto& ids = request.blocks.at(0);
    const uint32_t first = request.num_computed_tokens / kTokens;
    const uint32_t end = (request.num_computed_tokens + request.num_scheduled_tokens) / kTokens;
    for (uint32_t i = first; i < end; ++i) rig_->fill(ids.at(i).value(), content(name, i));
    worker_->end_step();
  }
  void begin(const std::vector<ScheduledRequest>& requests) {
    EXPECT_TRUE(worker_->begin_step(leader_->build_step(requests)));
  }
  void empty_step() {
    begin({});
    worker_->end_step();
  }
  /// A request that computes all its blocks at once, and ends.
  void run(const std::string& request, uint64_t name, uint32_t first_block, uint32_t num_blocks) {
    extend(request, name, num_blocks);
    step({.request = request,
          .blocks = {blocks(first_block, num_blocks)},
          .replaces_blocks = true,
          .num_computed_tokens = 0,
          .num_scheduled_tokens = num_blocks * kTokens},
         name);
    EXPECT_FALSE(leader_->finished(request));
    settle();
  }
  void settle() {
    EXPECT_TRUE(cluster_->wait_idle(executor_.clock().now() + std::chrono::seconds(10)));
  }
  std::string metrics() const {
    std::ostringstream text;
    write_prometheus_text(metrics_, text);
    return text.str();
  }
  uint64_t stored() { return cluster_->leader().resident_blocks(TierId::kG2); }

  Retention retention_ = Retention::full_prefix();
  RecordingLogSink log_{LogLevel::kWarning};
  ManualClock clock_;  // the leader's
  ThreadExecutor executor_{log_};
  RecordingSink events_{256};
  MetricsRegistry metrics_;
  std::unique_ptr<RankRig> rig_;
  std::unique_ptr<InprocChannel> channel_;
  std::unique_ptr<Cluster> cluster_;
  std::unique_ptr<ConnectorLeader> leader_;
  std::unique_ptr<ConnectorWorker> worker_;
};

TEST_F(ConnectorTest, AStepBeginsWithWhatTheHostHas) {
  run("a", 1, 0, 3);
  EXPECT_EQ(stored(), 3U);

  extend("b", 1, 3);
  const ExternalMatch offer = leader_->match("b", 0, 3 * kTokens + 1);
  EXPECT_EQ(offer.num_tokens, 3 * kTokens);
  EXPECT_FALSE(offer.between_steps);
  const std::vector<BlockId> into = blocks(10, 4);
  EXPECT_TRUE(leader_->allocated("b", {into}, offer.num_tokens));
  step({.request = "b",
        .blocks = {into},
        .replaces_blocks = true,
        .num_computed_tokens = 3 * kTokens,
        .num_scheduled_tokens = 1},
       1);
  for (uint32_t i = 0; i < 3; ++i) EXPECT_TRUE(rig_->holds(10 + i, content(1, i)));
  EXPECT_THAT(worker_->take_failed_blocks(), IsEmpty());
  EXPECT_THAT(worker_->take_ended_loads(), IsEmpty());
}

/// The second part of the load of a step is held back.
class LayerByLayerTest : public ConnectorTest {
 protected:
  void SetUp() override {
    testing::HookedDevice* device = nullptr;
    use({.wrap_device = [&](Device& inner) {
      auto hooked = std::make_unique<testing::HookedDevice>(inner);
      device = hooked.get();
      return hooked;
    }});
    run("a", 1, 0, 2);
    held_.emplace(rig_->device->create_event());
    device->hook([this](StreamRef stream, size_t number) -> Status {
      return number == 1 ? rig_->device->wait(stream, held_->event()) : Status();
    });
    extend("b", 1, 2);
    const ExternalMatch offer = leader_->match("b", 0, 2 * kTokens);
    ASSERT_TRUE(leader_->allocated("b", {blocks(10, 2)}, offer.num_tokens));
    begin({{.request = "b",
            .blocks = {blocks(10, 2)},
            .replaces_blocks = true,
            .num_computed_tokens = kTokens,
            .num_scheduled_tokens = kTokens}});
  }
  bool is_loaded(size_t layer) {
    const auto found = rig_->engine_block(10).subspan(layer * kLayerBytes, kLayerBytes);
    const auto whole = testing::pattern_block(testing::kRigBlock, content(1, 0));
    return std::equal(found.begin(), found.end(),
                      whole.begin() + static_cast<ptrdiff_t>(layer * kLayerBytes));
  }

  static constexpr size_t kLayerBytes = testing::kRigBlockBytes / 2;
  std::optional<EventSource> held_;
};

TEST_F(LayerByLayerTest, AHookReturnsWhenItsLayerIsThere) {
  EXPECT_TRUE(worker_->layer_needed(LayerId(0)));
  EXPECT_TRUE(is_loaded(0));
  EXPECT_FALSE(is_loaded(1));
  EXPECT_TRUE(worker_->has_loads());
  held_->signal();
  EXPECT_TRUE(worker_->layer_needed(LayerId(1)));
  EXPECT_TRUE(is_loaded(1));
  EXPECT_FALSE(worker_->has_loads());
  worker_->end_step();
  EXPECT_THAT(worker_->take_failed_blocks(), IsEmpty());
}

TEST_F(LayerByLayerTest, APartThatFailsIsKnownWhenTheLastLayersHookReturns) {
  EXPECT_TRUE(worker_->layer_needed(LayerId(0)));
  EXPECT_THAT(worker_->take_failed_blocks(), IsEmpty());
  held_->signal(make_error(ErrorCode::kDevice, "the copy failed"));
  EXPECT_TRUE(worker_->layer_needed(LayerId(1)));
  EXPECT_THAT(worker_->take_failed_blocks(), ElementsAre(BlockId(10)));
  worker_->end_step();
}

TEST_F(LayerByLayerTest, TheNextStepWaitsForLayersThatNobodyHasAskedFor) {
  const auto later = executor_.create_queue({.name = "later", .num_threads = 1, .capacity = 1});
  EXPECT_TRUE(worker_->layer_needed(LayerId(0)));
  worker_->end_step();
  ASSERT_TRUE((*later)->post_after(milliseconds(20), [this] { held_->signal(); }));
  begin({});
  EXPECT_TRUE(is_loaded(1));
  worker_->end_step();
}

TEST_F(ConnectorTest, TheBlockOfTheLastTokenIsNotLoaded) {
  run("a", 1, 0, 3);
  extend("b", 1, 3);
  EXPECT_EQ(leader_->match("b", 0, 3 * kTokens).num_tokens, 2 * kTokens);
  EXPECT_EQ(leader_->match("b", 2 * kTokens, 3 * kTokens).num_tokens, 0U);
  EXPECT_EQ(leader_->match("b", kTokens, 3 * kTokens).num_tokens, kTokens);
  EXPECT_EQ(leader_->match("b", 1, 3 * kTokens).num_tokens, 0U);  // inside a block
}

TEST_F(ConnectorTest, OnlyAcceptedTokensAreStored) {
  extend("a", 1, 2);
  // Three blocks are computed, but the third is of drafts that may be dropped.
  step({.request = "a",
        .blocks = {blocks(0, 3)},
        .replaces_blocks = true,
        .num_computed_tokens = 0,
        .num_scheduled_tokens = 3 * kTokens},
       1);
  settle();
  EXPECT_EQ(stored(), 2U);
  extend("a", 1, 3);
  begin({{.request = "a",
          .blocks = {{}},
          .replaces_blocks = false,
          .num_computed_tokens = 3 * kTokens,
          .num_scheduled_tokens = 1}});
  worker_->end_step();
  settle();
  EXPECT_EQ(stored(), 3U);
}

TEST_F(ConnectorTest, AChunkedPromptIsStoredChunkByChunk) {
  extend("a", 1, 4);
  step({.request = "a",
        .blocks = {blocks(0, 4)},
        .replaces_blocks = true,
        .num_computed_tokens = 0,
        .num_scheduled_tokens = 6},
       1);
  settle();
  EXPECT_EQ(stored(), 1U);
}

TEST_F(ConnectorTest, WhatComesFromDiskIsLoadedBetweenSteps) {
  use({.host_blocks = 4, .disk_blocks = 16});
  run("a", 1, 0, 3);
  run("b", 2, 4, 4);  // pushes the first chain to disk
  settle();
  extend("c", 1, 3);
  const ExternalMatch offer = leader_->match("c", 0, 3 * kTokens + 1);
  EXPECT_EQ(offer.num_tokens, 3 * kTokens);
  EXPECT_TRUE(offer.between_steps);
  EXPECT_TRUE(leader_->allocated("c", {blocks(10, 3)}, offer.num_tokens));
  std::vector<EndedLoad> ended;
  for (int i = 0; i < 1000 && ended.empty(); ++i) {
    empty_step();
    ended = worker_->take_ended_loads();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_THAT(ended, ElementsAre(EndedLoad{"c", {}}));
  EXPECT_THAT(worker_->take_failed_blocks(), IsEmpty());
  for (uint32_t i = 0; i < 3; ++i) EXPECT_TRUE(rig_->holds(10 + i, content(1, i)));
  EXPECT_TRUE(leader_->allocated("c", {blocks(10, 4)}, 0));
  EXPECT_EQ(leader_->num_open_loads(), 0U);
}

TEST_F(ConnectorTest, AFailedLoadInAStepIsToldAndWhatWasComputedOnItIsNotStored) {
  run("a", 1, 0, 3);
  extend("b", 1, 5);
  const ExternalMatch offer = leader_->match("b", 0, 5 * kTokens);
  EXPECT_TRUE(leader_->allocated("b", {blocks(10, 5)}, offer.num_tokens));
  const ScheduledRequest request{.request = "b",
                                 .blocks = {blocks(10, 5)},
                                 .replaces_blocks = true,
                                 .num_computed_tokens = 3 * kTokens,
                                 .num_scheduled_tokens = 2 * kTokens};
  std::vector<std::byte> bytes = leader_->build_step({&request, 1});
  // The load names a block that the host does not have: the worker refuses it.
  ConnectorStep broken = decode_connector_step(bytes).value();
  ASSERT_EQ(broken.plan.loads.size(), 1U);
  broken.plan.loads[0].from[0] = BlockId(1 << 20);
  EXPECT_TRUE(worker_->begin_step(encode(broken)));
  EXPECT_TRUE(worker_->all_layers_needed());
  EXPECT_THAT(worker_->take_failed_blocks(),
              UnorderedElementsAre(BlockId(10), BlockId(11), BlockId(12)));
  worker_->end_step();
  settle();
  EXPECT_EQ(stored(), 3U);

  // The engine computes everything again, and now it is stored.
  step({.request = "b",
        .blocks = {blocks(10, 5)},
        .replaces_blocks = true,
        .num_computed_tokens = 0,
        .num_scheduled_tokens = 5 * kTokens},
       1);
  settle();
  EXPECT_EQ(stored(), 5U);
}

TEST_F(ConnectorTest, AStepDoesNotOverwriteWhatAStoreStillReads) {
  // The store of the first request waits for its step, which ends late; the second request gets the
  // same blocks at once.
  extend("a", 1, 2);
  const ScheduledRequest first{.request = "a",
                               .blocks = {blocks(0, 2)},
                               .replaces_blocks = true,
                               .num_computed_tokens = 0,
                               .num_scheduled_tokens = 2 * kTokens};
  begin({first});
  for (uint32_t i = 0; i < 2; ++i) rig_->fill(i, content(1, i));
  worker_->end_step();
  EXPECT_FALSE(leader_->finished("a"));
  extend("b", 2, 2);
  step({.request = "b",
        .blocks = {blocks(0, 2)},
        .replaces_blocks = true,
        .num_computed_tokens = 0,
        .num_scheduled_tokens = 2 * kTokens},
       2);
  settle();
  extend("c", 1, 2);
  const ExternalMatch offer = leader_->match("c", 0, 2 * kTokens + 1);
  ASSERT_EQ(offer.num_tokens, 2 * kTokens);
  EXPECT_TRUE(leader_->allocated("c", {blocks(20, 3)}, offer.num_tokens));
  step({.request = "c",
        .blocks = {blocks(20, 3)},
        .replaces_blocks = true,
        .num_computed_tokens = 2 * kTokens,
        .num_scheduled_tokens = 1},
       1);
  for (uint32_t i = 0; i < 2; ++i) EXPECT_TRUE(rig_->holds(20 + i, content(1, i)));
}

TEST_F(ConnectorTest, AnAbortDuringALoadHoldsTheBlocksUntilItHasStopped) {
  use({}, LoadMode::kBetweenSteps);
  run("a", 1, 0, 3);
  extend("b", 1, 3);
  const ExternalMatch offer = leader_->match("b", 0, 3 * kTokens + 1);
  ASSERT_TRUE(offer.between_steps);
  EXPECT_TRUE(leader_->allocated("b", {blocks(10, 3)}, offer.num_tokens));
  EXPECT_TRUE(leader_->finished("b"));
  EXPECT_EQ(leader_->num_requests(), 0U);
  std::vector<EndedLoad> ended;
  for (int i = 0; i < 1000 && ended.empty(); ++i) {
    empty_step();
    ended = worker_->take_ended_loads();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_THAT(ended, ElementsAre(EndedLoad{"b", {}}));
  EXPECT_EQ(leader_->num_open_loads(), 0U);
}

TEST_F(ConnectorTest, NoStepWaitsForALoadBetweenSteps) {
  use({}, LoadMode::kBetweenSteps);
  run("a", 1, 0, 3);
  extend("b", 1, 3);
  const ExternalMatch offer = leader_->match("b", 0, 3 * kTokens + 1);
  ASSERT_TRUE(offer.between_steps);
  EXPECT_TRUE(leader_->allocated("b", {blocks(10, 4)}, offer.num_tokens));
  ConnectorStep late = decode_connector_step(leader_->build_step({})).value();
  EXPECT_THAT(late.plan.loads, IsEmpty());
  ASSERT_EQ(late.plan.stores.size(), 1U);
  EXPECT_EQ(late.plan.stores[0].dst.tier, TierId::kG1);
  // It waits for an operation that has not come.
  const OpId missing(late.plan.stores[0].op.value() + 1000);
  late.plan.stores[0].after.push_back(Gate::op_done(missing));
  EXPECT_TRUE(worker_->begin_step(encode(late)));
  ASSERT_FALSE(worker_->has_loads());
  EXPECT_TRUE(worker_->all_layers_needed());
  worker_->end_step();
  // Nor does the next step, which computes another request.
  extend("c", 2, 1);
  step({.request = "c",
        .blocks = {blocks(20, 1)},
        .replaces_blocks = true,
        .num_computed_tokens = 0,
        .num_scheduled_tokens = kTokens},
       2);
  EXPECT_FALSE(leader_->finished("c"));
  EXPECT_THAT(worker_->take_ended_loads(), IsEmpty());
  EXPECT_EQ(leader_->num_open_loads(), 1U);
  rig_->worker->expect_only_steps();  // nor does it any more
  std::vector<EndedLoad> ended;
  for (int i = 0; i < 1000 && ended.empty(); ++i) {
    empty_step();
    ended = worker_->take_ended_loads();
    std::this_thread::sleep_for(milliseconds(1));
  }
  EXPECT_THAT(ended, ElementsAre(EndedLoad{"b", blocks(10, 3)}));
  EXPECT_THAT(worker_->take_failed_blocks(), IsEmpty()) << "they are told with its end";
}

TEST_F(ConnectorTest, WhatKeepsFailingIsLeftAloneForAWhile) {
  run("a", 1, 0, 3);
  const auto fail_a_load = [this](const std::string& request) {
    extend(request, 1, 3);
    const ExternalMatch offer = leader_->match(request, 0, 3 * kTokens + 1);
    ASSERT_GT(offer.num_tokens, 0U);
    EXPECT_TRUE(leader_->allocated(request, {blocks(10, 4)}, offer.num_tokens));
    const ScheduledRequest scheduled{.request = request,
                                     .blocks = {blocks(10, 4)},
                                     .replaces_blocks = true,
                                     .num_computed_tokens = 3 * kTokens,
                                     .num_scheduled_tokens = 1};
    ConnectorStep broken = decode_connector_step(leader_->build_step({&scheduled, 1})).value();
    broken.plan.loads.at(0).from[0] = BlockId(1 << 20);
    EXPECT_TRUE(worker_->begin_step(encode(broken)));
    EXPECT_TRUE(worker_->all_layers_needed());
    worker_->end_step();
    settle();
    empty_step();
    EXPECT_FALSE(leader_->finished(request));
  };
  fail_a_load("b");
  EXPECT_THAT(log_.messages(LogLevel::kError), Not(Contains(HasSubstr("in a row"))));
  fail_a_load("c");
  EXPECT_THAT(log_.messages(LogLevel::kError),
              Contains(HasSubstr("2 loads in a row have failed: nothing is offered")));
  EXPECT_THAT(metrics(), HasSubstr("\nkvbm_bypass_open 1\n"));
  EXPECT_EQ(leader_->match("short", 0, 2).num_tokens, 0U);  // has nothing to look up
  extend("d", 1, 3);
  EXPECT_EQ(leader_->match("d", 0, 3 * kTokens + 1).num_tokens, 0U);
  EXPECT_THAT(metrics(), HasSubstr("\nkvbm_bypassed_lookups_total 1\n"));
  clock_.advance(milliseconds(50));
  const ExternalMatch offer = leader_->match("d", 0, 3 * kTokens + 1);
  EXPECT_EQ(offer.num_tokens, 3 * kTokens);
  EXPECT_TRUE(leader_->allocated("d", {blocks(10, 4)}, offer.num_tokens));
  step({.request = "d",
        .blocks = {blocks(10, 4)},
        .replaces_blocks = true,
        .num_computed_tokens = 3 * kTokens,
        .num_scheduled_tokens = 1},
       1);
  settle();
  empty_step();
  EXPECT_THAT(metrics(), HasSubstr("\nkvbm_bypass_open 0\n"));
  EXPECT_THAT(log_.messages(LogLevel::kWarning),
              Contains(HasSubstr("loads succeed again: blocks are offered as before")));
}

TEST_F(ConnectorTest, BlocksFromTheFirstOneOfALowPriorityOnAreNotStored) {
  const std::vector<Identity> chain = {identity(1, 0), identity(1, 1), identity(1, 2),
                                       identity(1, 3)};
  leader_->extend("a", std::span(chain).first(1), 30);
  leader_->extend("a", std::span(chain).subspan(1, 1));
  leader_->extend("a", std::span(chain).subspan(2, 1), 29);
  leader_->extend("a", std::span(chain).subspan(3, 1), 100);
  run("a", 1, 0, 4);
  EXPECT_EQ(stored(), 2U);
}

TEST_F(ConnectorTest, AfterAResetNothingOldIsOfferedAndWhatIsComputedAnewIs) {
  run("a", 1, 0, 3);
  extend("b", 1, 3);
  EXPECT_GT(leader_->match("b", 0, 3 * kTokens + 1).num_tokens, 0U);  // pinned
  leader_->reset();
  EXPECT_EQ(stored(), 0U);
  EXPECT_EQ(leader_->match("b", 0, 3 * kTokens + 1).num_tokens, 0U);
  EXPECT_FALSE(leader_->finished("b"));
  run("c", 1, 4, 3);
  extend("d", 1, 3);
  EXPECT_EQ(leader_->match("d", 0, 3 * kTokens + 1).num_tokens, 3 * kTokens);
}

TEST_F(ConnectorTest, AStoreThatAResetOvertakesIsNotKept) {
  extend("a", 1, 3);
  const ScheduledRequest scheduled{.request = "a",
                                   .blocks = {blocks(0, 3)},
                                   .replaces_blocks = true,
                                   .num_computed_tokens = 0,
                                   .num_scheduled_tokens = 3 * kTokens};
  begin({scheduled});
  leader_->reset();
  extend("b", 1, 3);
  worker_->end_step();
  settle();
  EXPECT_EQ(leader_->match("b", 0, 3 * kTokens + 1).num_tokens, 0U);
  EXPECT_EQ(stored(), 0U);
}

TEST_F(ConnectorTest, WhatWasComputedBeforeAResetIsNotStoredAfterIt) {
  extend("a", 1, 4);
  const auto compute = [this](uint32_t computed, uint32_t count, bool replaces) {
    begin({{.request = "a",
            .blocks = {replaces ? blocks(0, 4) : blocks(0, 0)},
            .replaces_blocks = replaces,
            .num_computed_tokens = computed,
            .num_scheduled_tokens = count}});
    worker_->end_step();
    settle();
  };
  compute(0, 2 * kTokens, true);
  EXPECT_EQ(stored(), 2U);
  leader_->reset();
  compute(2 * kTokens, kTokens, false);
  EXPECT_EQ(stored(), 0U);
  // Preempted: the engine computes all of it again.
  EXPECT_EQ(leader_->match("a", 0, 4 * kTokens).num_tokens, 0U);
  compute(0, 4 * kTokens, true);
  EXPECT_EQ(stored(), 4U);
}

/// The engine keeps its own prefix cache, as vLLM does while requests hold blocks.
TEST_F(ConnectorTest, WhatTheEngineKeepsOverAResetIsNotStored) {
  const auto schedule = [this](const std::string& request, std::vector<BlockId> ids,
                               uint32_t computed, uint32_t count, uint64_t name = 1) {
    extend(request, name, 4);
    EXPECT_EQ(leader_->match(request, computed * kTokens, 5 * kTokens).num_tokens, 0U);
    begin({{.request = request,
            .blocks = {std::move(ids)},
            .replaces_blocks = true,
            .num_computed_tokens = computed * kTokens,
            .num_scheduled_tokens = count * kTokens}});
    worker_->end_step();
    settle();
  };
  schedule("a", blocks(0, 2), 0, 2);
  EXPECT_EQ(stored(), 2U);
  leader_->reset();
  // Block 2 is computed from old ones, by who has them and by who is given them.
  begin({{.request = "a",
          .blocks = {blocks(2, 1)},
          .replaces_blocks = false,
          .num_computed_tokens = 2 * kTokens,
          .num_scheduled_tokens = kTokens}});
  worker_->end_step();
  schedule("b", blocks(0, 4), 2, 2);
  schedule("c", {BlockId(0), BlockId(1), BlockId(4)}, 2, 1);
  settle();
  EXPECT_EQ(stored(), 0U);
  // And so is what is computed from that, though its own blocks are all younger than the reset.
  schedule("d", blocks(2, 2), 1, 1, 2);
  EXPECT_EQ(stored(), 0U);
  // New is what is computed anew, in whatever blocks, and who is given that goes on with it.
  schedule("e", blocks(0, 2), 0, 2, 3);
  EXPECT_EQ(stored(), 2U);
  schedule("f", blocks(0, 3), 2, 1, 3);
  EXPECT_EQ(stored(), 3U);
  // The next reset makes it old.
  leader_->reset();
  schedule("g", blocks(0, 3), 2, 1, 3);
  EXPECT_EQ(stored(), 0U);
  // In part is enough.
  extend("h", 3, 1);
  begin({{.request = "h",
          .blocks = {blocks(0, 1)},
          .replaces_blocks = true,
          .num_computed_tokens = 1,
          .num_scheduled_tokens = kTokens - 1}});
  worker_->end_step();
  settle();
  EXPECT_EQ(stored(), 0U);
}

TEST_F(ConnectorTest, OfAWindowOnlyWhatItReachesIsLookedAt) {
  retention_ = Retention::last_window(1);
  use({});
  leader_->reset();
  run("a", 1, 5, 2);
  EXPECT_EQ(stored(), 2U);
  extend("b", 1, 3);
  begin({{.request = "b",
          .blocks = {{BlockId(0), BlockId(6), BlockId(7)}},  // the first is out of reach: none
          .replaces_blocks = true,
          .num_computed_tokens = 2 * kTokens,
          .num_scheduled_tokens = kTokens}});
  worker_->end_step();
  settle();
  EXPECT_EQ(stored(), 3U);
}

/// While a load of a step is open, blocks are offered a step late; the engine may have given away
/// what no window reaches by then.
TEST_F(ConnectorTest, WhatAWindowHasLeftBehindIsNotOfferedLate) {
  retention_ = Retention::last_window(1);
  use({});
  run("a", 1, 0, 1);
  ASSERT_EQ(stored(), 1U);
  extend("loads", 1, 1);
  const ExternalMatch offer = leader_->match("loads", 0, kTokens + 1);
  ASSERT_EQ(offer.num_tokens, kTokens);
  ASSERT_FALSE(offer.between_steps);
  ASSERT_TRUE(leader_->allocated("loads", {blocks(8, 2)}, offer.num_tokens));
  extend("computes", 2, 3);
  begin({{.request = "loads",
          .blocks = {blocks(8, 2)},
          .replaces_blocks = true,
          .num_computed_tokens = kTokens,
          .num_scheduled_tokens = 1},
         {.request = "computes",
          .blocks = {blocks(4, 3)},
          .replaces_blocks = true,
          .num_computed_tokens = 0,
          .num_scheduled_tokens = 3 * kTokens}});
  EXPECT_TRUE(worker_->all_layers_needed());
  for (uint32_t i = 0; i < 3; ++i) rig_->fill(4 + i, content(2, i));
  worker_->end_step();
  settle();
  EXPECT_EQ(stored(), 1U) << "offered before the load was known to have arrived";
  // Blocks 4 and 5 are somebody else's from here on.
  begin({{.request = "computes",
          .blocks = {{BlockId(7)}},
          .replaces_blocks = false,
          .num_computed_tokens = 3 * kTokens,
          .num_scheduled_tokens = 1},
         {.request = "other",
          .blocks = {blocks(4, 2)},
          .replaces_blocks = true,
          .num_computed_tokens = 0,
          .num_scheduled_tokens = 2}});
  worker_->end_step();
  settle();
  EXPECT_EQ(stored(), 2U);
}

TEST_F(ConnectorTest, WhatIsLoadedAfterAResetIsNew) {
  leader_->reset();
  run("a", 1, 0, 2);
  extend("b", 1, 3);
  const ExternalMatch offer = leader_->match("b", 0, 3 * kTokens);
  ASSERT_EQ(offer.num_tokens, 2 * kTokens);
  ASSERT_TRUE(leader_->allocated("b", {blocks(10, 3)}, offer.num_tokens));
  step({.request = "b",
        .blocks = {blocks(10, 3)},
        .replaces_blocks = true,
        .num_computed_tokens = 2 * kTokens,
        .num_scheduled_tokens = kTokens},
       1);
  empty_step();
  step({.request = "b",
        .blocks = {{}},
        .replaces_blocks = false,
        .num_computed_tokens = 3 * kTokens,
        .num_scheduled_tokens = 1},
       1);
  settle();
  EXPECT_EQ(stored(), 3U);
}

TEST_F(ConnectorTest, ALoadThatAResetOvertakesArrivesAndIsNotStoredAgain) {
  use({}, LoadMode::kBetweenSteps);
  run("a", 1, 0, 3);
  extend("b", 1, 3);
  const ExternalMatch offer = leader_->match("b", 0, 3 * kTokens + 1);
  EXPECT_TRUE(leader_->allocated("b", {blocks(10, 3)}, offer.num_tokens));
  leader_->reset();
  std::vector<EndedLoad> ended;
  for (int i = 0; i < 1000 && ended.empty(); ++i) {
    empty_step();
    ended = worker_->take_ended_loads();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_THAT(ended, ElementsAre(EndedLoad{"b", {}}));
  for (uint32_t i = 0; i < 3; ++i) EXPECT_TRUE(rig_->holds(10 + i, content(1, i)));
  EXPECT_TRUE(leader_->allocated("b", {blocks(10, 4)}, 0));
  begin({{.request = "b",
          .blocks = {blocks(10, 4)},
          .replaces_blocks = true,
          .num_computed_tokens = 3 * kTokens,
          .num_scheduled_tokens = 1}});
  worker_->end_step();
  settle();
  EXPECT_EQ(stored(), 0U);
}

TEST_F(ConnectorTest, AnOfferThatIsNotTakenLeavesNothingPinned) {
  run("a", 1, 0, 3);
  extend("b", 1, 3);
  EXPECT_GT(leader_->match("b", 0, 3 * kTokens).num_tokens, 0U);
  EXPECT_TRUE(leader_->allocated("b", {blocks(10, 3)}, 0));
  EXPECT_GT(leader_->match("b", 0, 3 * kTokens).num_tokens, 0U);
  EXPECT_FALSE(leader_->finished("b"));
  run("c", 2, 0, 8);  // all of the host
  EXPECT_EQ(stored(), 8U);
  EXPECT_EQ(leader_->num_requests(), 0U);
}

}  // namespace
}  // namespace kvbm
