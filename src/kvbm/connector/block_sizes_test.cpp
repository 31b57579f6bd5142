// SPDX-License-Identifier: Apache-2.0
// Both halves of a connector with layer groups whose blocks hold different numbers of tokens.
#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/thread_executor.hpp"
#include "kvbm/cluster/inproc_channel.hpp"
#include "kvbm/connector/connector_leader.hpp"
#include "kvbm/connector/connector_worker.hpp"
#include "kvbm/events/recording_sink.hpp"

#include "tests/support/error_code.hpp"
#include "tests/support/rank_rig.hpp"
#include "tests/support/recording_log_sink.hpp"

namespace kvbm {
namespace {

using testing::code_of;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using testing::RankRig;
using testing::RecordingLogSink;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAre;
using Blocks = std::vector<std::vector<BlockId>>;

constexpr uint32_t kSmall = 4;
constexpr uint32_t kLarge = 8;
constexpr uint32_t kNullBlock = 31;  // what an engine names where a window has no block any more

/// An engine on the host with blocks of one pool for all groups. Group 0 has blocks of kLarge
/// tokens, group 1 of kSmall.
class BlockSizesTest : public ::testing::Test {
 protected:
  void use(Retention of_small, LoadMode mode = LoadMode::kAuto) {
    const std::vector<LayerGroup> groups = {{kLarge}, {kSmall, of_small}};
    const SplitGroups split = split_groups(groups).value();
    rig_ = std::make_unique<RankRig>(
        executor_, log_,
        testing::RankRigOptions{.num_groups = static_cast<uint16_t>(split.parts.size()),
                                .one_pool = true,
                                .disk_blocks = 0});
    channel_ = std::make_unique<InprocChannel>(executor_, std::vector{rig_->worker.get()});
    cluster_ = std::make_unique<Cluster>(
        TierManager::create(
            {.groups = split.specs(), .places = rig_->specs, .engine_ids = EngineIds::kOfOnePool},
            executor_.clock(), events_, metrics_, log_)
            .value(),
        *channel_, executor_.clock(), EngineOperations::kBySteps);
    leader_ = ConnectorLeader::create(
                  {.groups = groups, .ns = NamespaceId(1), .load_mode = mode, .min_priority = 30},
                  *cluster_, executor_.clock(), metrics_, log_)
                  .value();
    worker_ = std::make_unique<ConnectorWorker>(*rig_->worker, *rig_->device, rig_->compute,
                                                EngineCompute::kOnHost);
    rig_->fill(kNullBlock, kNullBlock);
  }

  /// Of the kSmall tokens from `index` on.
  static Identity identity(uint64_t name, uint32_t index) {
    return Identity::from_hashes(SequenceHash(name), BlockHash(index), SequenceHash(0), index);
  }
  static uint64_t content(uint64_t name, uint32_t group, uint32_t block) {
    return name * 10'000 + group * 1000 + block;
  }
  void extend(const std::string& request, uint64_t name, uint32_t num_tokens) {
    for (uint32_t i = leader_->num_identities(request); i < num_tokens / kSmall; ++i) {
      const Identity next = identity(name, i);
      leader_->extend(request, {&next, 1});
    }
  }
  static std::vector<BlockId> ids(std::initializer_list<uint32_t> numbers) {
    return {numbers.begin(), numbers.end()};
  }
  static ScheduledRequest scheduled(std::string_view request, Blocks blocks, uint32_t computed,
                                    uint32_t count) {
    return {.request = request,
            .blocks = std::move(blocks),
            .replaces_blocks = true,
            .num_computed_tokens = computed,
            .num_scheduled_tokens = count};
  }
  void begin(const std::vector<ScheduledRequest>& requests) {
    EXPECT_TRUE(worker_->begin_step(leader_->build_step(requests)));
    EXPECT_TRUE(worker_->all_layers_needed());
  }
  /// A request that computes so many tokens in one step, and ends.
  void run(const std::string& request, uint64_t name, const Blocks& blocks, uint32_t num_tokens) {
    extend(request, name, num_tokens);
    begin({scheduled(request, blocks, 0, num_tokens)});
    for (uint32_t group = 0; group < 2; ++group) {
      for (uint32_t i = 0; i < blocks[group].size(); ++i) {
        rig_->fill(blocks[group][i].value(), content(name, group, i));
      }
    }
    worker_->end_step();
    EXPECT_FALSE(leader_->finished(request));
    settle();
  }
  std::vector<EndedLoad> steps_until_a_load_ends() {
    std::vector<EndedLoad> ended;
    const TimePoint deadline = executor_.clock().now() + std::chrono::seconds(10);
    while (ended.empty() && executor_.clock().now() < deadline) {
      begin({});
      worker_->end_step();
      ended = worker_->take_ended_loads();
    }
    return ended;
  }
  void settle() {
    EXPECT_TRUE(cluster_->wait_idle(executor_.clock().now() + std::chrono::seconds(10)));
  }
  uint64_t stored() { return cluster_->leader().resident_blocks(TierId::kG2); }

  RecordingLogSink log_{LogLevel::kError};
  ThreadExecutor executor_{log_};
  RecordingSink events_{256};
  MetricsRegistry metrics_;
  std::unique_ptr<RankRig> rig_;
  std::unique_ptr<InprocChannel> channel_;
  std::unique_ptr<Cluster> cluster_;
  std::unique_ptr<ConnectorLeader> leader_;
  std::unique_ptr<ConnectorWorker> worker_;
};

TEST_F(BlockSizesTest, EveryBlockOfAPositionGoesDownAndComesBack) {
  use(Retention::full_prefix());
  run("a", 1, {ids({0, 1}), ids({2, 3, 4, 5})}, 2 * kLarge);
  EXPECT_EQ(stored(), 6U);

  extend("b", 1, 2 * kLarge);
  const ExternalMatch offer = leader_->match("b", 0, 2 * kLarge + 1);
  EXPECT_EQ(offer.num_tokens, 2 * kLarge);
  const Blocks into = {ids({10, 11, 20}), ids({15, 12, 14, 13, 21})};
  EXPECT_TRUE(leader_->allocated("b", into, offer.num_tokens));
  begin({scheduled("b", into, 2 * kLarge, 1)});
  for (uint32_t group = 0; group < 2; ++group) {
    for (uint32_t i = 0; i + 1 < into[group].size(); ++i) {
      EXPECT_TRUE(rig_->holds(into[group][i].value(), content(1, group, i)))
          << "group " << group << ", block " << i;
    }
  }
  worker_->end_step();
}

TEST_F(BlockSizesTest, WhatIsOfferedIsWholePositionsBelowTheLastToken) {
  use(Retention::full_prefix());
  run("a", 1, {ids({0, 1, 2}), ids({3, 4, 5, 6, 7, 8})}, 3 * kLarge - kSmall);
  EXPECT_EQ(stored(), 6U);  // the third position is not full
  extend("b", 1, 3 * kLarge);
  EXPECT_EQ(leader_->match("b", 0, 3 * kLarge).num_tokens, 2 * kLarge);
  EXPECT_EQ(leader_->match("b", kLarge, 3 * kLarge).num_tokens, kLarge);
  EXPECT_EQ(leader_->match("b", kSmall, 3 * kLarge).num_tokens, 0U);  // inside a position
  EXPECT_EQ(leader_->match("b", 0, 2 * kLarge).num_tokens, kLarge);
  EXPECT_EQ(leader_->match("b", 0, 2 * kLarge + kSmall).num_tokens, 2 * kLarge);
}

TEST_F(BlockSizesTest, APositionIsStoredWithItsLastTokenAndOnlyWhenAllAreAccepted) {
  use(Retention::full_prefix());
  extend("a", 1, kLarge + kSmall);
  begin({scheduled("a", {ids({0, 1}), ids({2, 3, 4, 5})}, 0, kLarge - 1)});
  worker_->end_step();
  settle();
  EXPECT_EQ(stored(), 0U);
  const auto go_on = [this](uint32_t computed, uint32_t count) {
    begin({{.request = "a",
            .blocks = {{}, {}},
            .replaces_blocks = false,
            .num_computed_tokens = computed,
            .num_scheduled_tokens = count}});
    worker_->end_step();
    settle();
  };
  go_on(kLarge - 1, kLarge + 1);  // half of the second position is of drafts
  EXPECT_EQ(stored(), 3U);
  extend("a", 1, 2 * kLarge);
  go_on(2 * kLarge, 1);
  EXPECT_EQ(stored(), 6U);
}

TEST_F(BlockSizesTest, OfAWindowNothingIsTouchedThatItDoesNotReach) {
  use(Retention::last_window(3));
  run("a", 1, {ids({0, 1, 2}), ids({3, 4, 5, 6, 7, 8})}, 3 * kLarge);
  extend("b", 1, 3 * kLarge);
  const ExternalMatch offer = leader_->match("b", 0, 3 * kLarge + 1);
  ASSERT_EQ(offer.num_tokens, 3 * kLarge);
  const Blocks into = {ids({10, 11, 12}), ids({kNullBlock, kNullBlock, kNullBlock, 13, 14, 15})};
  EXPECT_TRUE(leader_->allocated("b", into, offer.num_tokens));
  begin({scheduled("b", into, 3 * kLarge, 1)});
  worker_->end_step();
  for (uint32_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(rig_->holds(10 + i, content(1, 0, i)));
    EXPECT_TRUE(rig_->holds(13 + i, content(1, 1, 3 + i)));
  }
  EXPECT_TRUE(rig_->holds(kNullBlock, kNullBlock));
}

TEST_F(BlockSizesTest, WhatNoWindowReachesIsNotStored) {
  use(Retention::last_window(1));
  run("a", 1, {ids({0, 1}), ids({2, 3, 4, 5})}, 2 * kLarge);
  EXPECT_EQ(stored(), 4U);
  extend("b", 1, 2 * kLarge);
  const ExternalMatch offer = leader_->match("b", 0, 2 * kLarge + 1);
  const Blocks into = {ids({10, 11}), ids({kNullBlock, kNullBlock, kNullBlock, 12})};
  EXPECT_TRUE(leader_->allocated("b", into, offer.num_tokens));
  begin({scheduled("b", into, 2 * kLarge, 1)});
  worker_->end_step();
  EXPECT_TRUE(rig_->holds(12, content(1, 1, 3)));
  EXPECT_TRUE(rig_->holds(kNullBlock, kNullBlock));
}

TEST_F(BlockSizesTest, ABlockIsNamedByTheLastIdentityInIt) {
  use(Retention::full_prefix());
  run("a", 1, {ids({0, 1}), ids({2, 3, 4, 5})}, 2 * kLarge);
  std::vector<std::vector<Identity>> named(3);  // by part
  for (const KvEvent& event : events_.take()) {
    named.at(event.key.group.value()).push_back(event.key.identity);
  }
  EXPECT_THAT(named, ElementsAre(ElementsAre(identity(1, 1), identity(1, 3)),
                                 ElementsAre(identity(1, 0), identity(1, 2)),
                                 ElementsAre(identity(1, 1), identity(1, 3))));
}

TEST_F(BlockSizesTest, AStepFencesABlockThatAnotherPartOrGroupStillReads) {
  use(Retention::full_prefix());
  extend("a", 1, kLarge);
  // No worker hears of it, so that no store ends.
  const ScheduledRequest a = scheduled("a", {ids({0}), ids({1, 2})}, 0, kLarge);
  const ConnectorStep first = decode_connector_step(leader_->build_step({&a, 1})).value();
  ASSERT_THAT(first.plan.stores, SizeIs(3));
  std::vector<OpId> readers(3);  // by engine block
  for (const CopyOp& store : first.plan.stores) readers.at(store.from[0].value()) = store.op;
  EXPECT_FALSE(leader_->finished("a"));
  const auto fences_of = [this](const std::string& request, Blocks blocks) {
    const ScheduledRequest next = scheduled(request, std::move(blocks), 0, 1);
    return decode_connector_step(leader_->build_step({&next, 1})).value().plan.fences;
  };
  EXPECT_THAT(fences_of("part", {ids({3}), ids({2})}), ElementsAre(readers[2]));
  EXPECT_THAT(fences_of("group", {ids({1}), ids({0})}),
              UnorderedElementsAre(readers[0], readers[1]));
}

TEST_F(BlockSizesTest, ALoadWaitsForWhatAnotherPartOrGroupStillReads) {
  use(Retention::full_prefix());
  run("a", 1, {ids({0}), ids({1, 2})}, kLarge);
  extend("b", 2, kLarge);
  const ScheduledRequest b = scheduled("b", {ids({5}), ids({6, 7})}, 0, kLarge);
  const ConnectorStep first = decode_connector_step(leader_->build_step({&b, 1})).value();
  std::vector<OpId> readers(8);  // by engine block
  for (const CopyOp& store : first.plan.stores) readers.at(store.from[0].value()) = store.op;
  EXPECT_FALSE(leader_->finished("b"));
  extend("c", 1, kLarge);
  const Blocks into = {ids({6}), ids({7, 5})};
  EXPECT_TRUE(leader_->allocated("c", into, leader_->match("c", 0, kLarge + 1).num_tokens));
  const ScheduledRequest c = scheduled("c", into, kLarge, 1);
  const ConnectorStep second = decode_connector_step(leader_->build_step({&c, 1})).value();
  ASSERT_THAT(second.plan.loads, SizeIs(3));
  for (const CopyOp& load : second.plan.loads) {
    EXPECT_THAT(load.after, Contains(Gate::op_done(readers.at(load.to[0].value()))));
  }
}

TEST_F(BlockSizesTest, FromTheFirstPositionThatDoesNotArriveOnEveryGroupsBlocksHaveFailed) {
  use(Retention::full_prefix(), LoadMode::kBetweenSteps);
  run("a", 1, {ids({0, 1}), ids({2, 3, 4, 5})}, 2 * kLarge);
  extend("b", 1, 2 * kLarge);
  const ExternalMatch offer = leader_->match("b", 0, 2 * kLarge + 1);
  ASSERT_TRUE(offer.between_steps);
  EXPECT_TRUE(leader_->allocated("b", {ids({10, 11}), ids({12, 13, 14, 15})}, offer.num_tokens));
  ConnectorStep broken = decode_connector_step(leader_->build_step({})).value();
  ASSERT_THAT(broken.plan.stores, SizeIs(3));
  // The operation of one part names a block that the host does not have.
  broken.plan.stores[2].from[1] = BlockId(1 << 20);
  EXPECT_TRUE(worker_->begin_step(encode(broken)));
  EXPECT_TRUE(worker_->all_layers_needed());
  worker_->end_step();
  const std::vector<EndedLoad> ended = steps_until_a_load_ends();
  ASSERT_THAT(ended, SizeIs(1));
  // The worker refuses the operation as a whole, so that no position is complete.
  EXPECT_THAT(ended[0].failed, UnorderedElementsAre(BlockId(10), BlockId(11), BlockId(12),
                                                    BlockId(13), BlockId(14), BlockId(15)));
}

TEST_F(BlockSizesTest, AfterAResetNothingOldIsOffered) {
  use(Retention::full_prefix());
  run("a", 1, {ids({0}), ids({1, 2})}, kLarge);
  extend("b", 1, kLarge);
  leader_->reset();
  EXPECT_EQ(leader_->match("b", 0, kLarge + 1).num_tokens, 0U);
  run("c", 1, {ids({3}), ids({4, 5})}, kLarge);
  EXPECT_EQ(leader_->match("b", 0, kLarge + 1).num_tokens, kLarge);
}

TEST_F(BlockSizesTest, APriorityEndsStoringWithThePositionThatItIsIn) {
  use(Retention::full_prefix());
  const std::vector<Identity> chain = {identity(1, 0), identity(1, 1), identity(1, 2),
                                       identity(1, 3)};
  leader_->extend("a", std::span(chain).first(3), 30);
  leader_->extend("a", std::span(chain).subspan(3), 29);
  run("a", 1, {ids({0, 1}), ids({2, 3, 4, 5})}, 2 * kLarge);
  EXPECT_EQ(stored(), 3U);
}

TEST_F(BlockSizesTest, ALeaderWithBlocksByGroupIsRefused) {
  use(Retention::full_prefix());
  const std::vector<LayerGroup> groups = {{kLarge}, {kSmall}};
  Cluster by_group(
      TierManager::create({.groups = split_groups(groups)->specs(), .places = rig_->specs},
                          executor_.clock(), events_, metrics_, log_)
          .value(),
      *channel_, executor_.clock(), EngineOperations::kBySteps);
  EXPECT_EQ(code_of(ConnectorLeader::create({.groups = groups, .ns = NamespaceId(1)}, by_group,
                                            executor_.clock(), metrics_, log_)),
            ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace kvbm
