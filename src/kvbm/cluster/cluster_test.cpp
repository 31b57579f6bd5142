// SPDX-License-Identifier: Apache-2.0
// The contract of channels, kept by InprocChannel in steps and on threads; and what is left of
// Cluster, InprocChannel and LogicalChannel.
#include "kvbm/cluster/cluster.hpp"

#include <chrono>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/stepped_executor.hpp"
#include "kvbm/base/thread_executor.hpp"
#include "kvbm/cluster/inproc_channel.hpp"
#include "kvbm/cluster/logical_channel.hpp"

#include "tests/contract/channel_contract.hpp"

namespace kvbm {
namespace testing {
namespace {

class InprocWiring {
 public:
  static std::unique_ptr<Channel> connect(Executor& executor, LogSink& /*log*/,
                                          std::vector<Worker*> workers) {
    return std::make_unique<InprocChannel>(executor, std::move(workers));
  }
};

struct Stepped : InprocWiring {
  static std::unique_ptr<Executor> make_executor(LogSink& log) {
    return std::make_unique<SteppedExecutor>(5, log);
  }
};
struct Threads : InprocWiring {
  static std::unique_ptr<Executor> make_executor(LogSink& log) {
    return std::make_unique<ThreadExecutor>(log);
  }
};

class WiringNames {
 public:
  template <class T>
  static std::string GetName(int) {
    return std::is_same_v<T, Stepped> ? "Stepped" : "Threads";
  }
};

using BothExecutors = ::testing::Types<Stepped, Threads>;
INSTANTIATE_TYPED_TEST_SUITE_P(Inproc, ChannelContract, BothExecutors, WiringNames);

}  // namespace
}  // namespace testing

namespace {

using std::chrono::milliseconds;
using testing::ids_from;
using ::testing::IsEmpty;
using testing::kGroup;
using testing::RankRig;
using testing::RecordingLogSink;
using testing::test_chain;

std::vector<PlaceSpec> places(uint32_t host_blocks, uint32_t disk_blocks) {
  const auto place = [](TierId tier, Owner owner, uint32_t num_blocks) {
    return PlaceSpec{.place = {tier, kGroup},
                     .owner = owner,
                     .spread = Spread::kSharded,
                     .num_blocks = num_blocks,
                     .rank_block_bytes = 1 << 20};
  };
  return {place(TierId::kG1, Owner::kEngine, 64), place(TierId::kG2, Owner::kKvbm, host_blocks),
          place(TierId::kG3, Owner::kKvbm, disk_blocks)};
}

TEST(LogicalChannel, RunsTheLeaderWithoutMovingAByte) {
  ManualClock clock;
  RecordingLogSink log(LogLevel::kWarning);
  RecordingSink events;
  MetricsRegistry metrics;
  const auto specs = places(16, 64);
  LogicalChannel channel(4, specs);
  auto leader = TierManager::create(
      {.groups = {{kGroup, Retention::full_prefix()}}, .places = specs, .num_ranks = 4}, clock,
      events, metrics, log);
  Cluster cluster(std::move(leader).value(), channel, clock);
  EXPECT_FALSE(channel.wait(kNever));
  EXPECT_TRUE(channel.receive().empty());

  const auto keys = test_chain(1, 16);
  const auto others = test_chain(100, 16);
  for (const auto& chain : {keys, others}) {
    EXPECT_EQ(cluster.leader()
                  .store({.group = kGroup,
                          .keys = chain,
                          .parent = std::nullopt,
                          .blocks = ids_from(0, 16),
                          .written = Gate::step_end(StepId(1))})
                  .accepted,
              16U);
    cluster.exchange();
    EXPECT_TRUE(cluster.leader().idle());
  }
  EXPECT_EQ(cluster.leader().resident_blocks(TierId::kG3), 16U);

  const GroupKeys asked{kGroup, keys};
  Match match = cluster.leader().find({&asked, 1}, 0);
  const std::vector<EngineBlocks> into = {{kGroup, 0, ids_from(20, 16)}};
  const LoadId load = cluster.leader().load(std::move(match), into, Gate{}).value();
  const LoadOutcome outcome = cluster.wait_for(load);
  EXPECT_TRUE(outcome.status);
  EXPECT_EQ(outcome.num_blocks, 16U);
  EXPECT_TRUE(cluster.drain(kNever));
  EXPECT_EQ(cluster.leader().resident_blocks(TierId::kG3), 32U);
  EXPECT_THAT(log.records(), IsEmpty());
  for (const RouteMetrics* route : cluster.leader().metrics().routes()) {
    EXPECT_EQ(route->failed_blocks(), 0U);
    EXPECT_EQ(route->bytes(), route->blocks() * 4 * (1 << 20));
  }
}

/// Takes everything and never answers.
class SilentChannel final : public Channel {
 public:
  void send(std::span<const CopyOp> ops, std::span<const OpId>) override { sent += ops.size(); }
  [[nodiscard]] ChannelInbox receive() override { return {}; }
  [[nodiscard]] bool wait(TimePoint) override { return false; }

  size_t sent = 0;
};

TEST(Cluster, AWaitThatNothingCanEndEnds) {
  ManualClock clock;
  NullLogSink log;
  NullSink events;
  MetricsRegistry metrics;
  const auto specs = places(16, 64);
  SilentChannel channel;
  auto leader = TierManager::create(
      {.groups = {{kGroup, Retention::full_prefix()}}, .places = specs, .num_ranks = 1}, clock,
      events, metrics, log);
  Cluster cluster(std::move(leader).value(), channel, clock);
  const auto keys = test_chain(1, 1);
  (void)cluster.leader().store({.group = kGroup,
                                .keys = keys,
                                .parent = std::nullopt,
                                .blocks = ids_from(0, 1),
                                .written = Gate{}});
  EXPECT_EQ(cluster.wait_idle(kNever).error().code(), ErrorCode::kTimeout);
  EXPECT_EQ(channel.sent, 1U);
  EXPECT_EQ(cluster.wait_for(LoadId(77)).status.error().code(), ErrorCode::kInternal);
}

TEST(InprocChannel, WaitsForTheNextResultAndForgetsItsWorkersWhenItGoes) {
  RecordingLogSink log(LogLevel::kError);
  SteppedExecutor executor(1, log);
  RankRig rank(executor, log);
  auto channel = std::make_unique<InprocChannel>(executor, std::vector<Worker*>{rank.worker.get()});
  EXPECT_FALSE(channel->wait(executor.clock().now() + milliseconds(1)));
  EXPECT_FALSE(channel->wait(kNever));  // nothing can come
  const CopyOp op{.op = OpId(1),
                  .src = {TierId::kG1, kGroup},
                  .dst = {TierId::kG2, kGroup},
                  .from = ids_from(0, 1),
                  .to = ids_from(0, 1),
                  .tags = {},
                  .after = {},
                  .timeout = {},
                  .priority = Priority::kOffload};
  channel->send({&op, 1}, {});
  EXPECT_TRUE(channel->wait(kNever));
  EXPECT_TRUE(channel->wait(kNever));  // still there
  const ChannelInbox inbox = channel->receive();
  ASSERT_EQ(inbox.results.size(), 1U);
  EXPECT_EQ(inbox.results.front().op, OpId(1));
  EXPECT_TRUE(channel->receive().empty());

  CopyOp gated = op;
  gated.op = OpId(2);
  gated.after = {Gate::step_end(StepId(1))};
  const OpId cancelled(2);
  channel->send({&gated, 1}, {});
  EXPECT_EQ(rank.worker->num_open(), 1U);
  channel->send({}, {&cancelled, 1});
  EXPECT_EQ(channel->receive().results.front().outcome, Outcome::kCancelled);

  CopyOp last = op;
  last.op = OpId(3);
  channel->send({&last, 1}, {});
  channel.reset();
  executor.run_until_idle();  // its result goes nowhere
  EXPECT_EQ(rank.worker->num_open(), 0U);
}

}  // namespace
}  // namespace kvbm
