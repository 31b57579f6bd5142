// SPDX-License-Identifier: Apache-2.0
#include "kvbm/tiers/tier_manager.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <map>
#include <set>
#include <string>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/random.hpp"
#include "kvbm/events/recording_sink.hpp"

#include "tests/support/allocation_meter.hpp"
#include "tests/support/block_chains.hpp"
#include "tests/support/recording_log_sink.hpp"
#include "tests/support/seed.hpp"

namespace kvbm {
namespace {

using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::RecordingLogSink;
using testing::test_chain;
using testing::test_key;
using ::testing::UnorderedElementsAre;

constexpr uint64_t kBlockBytes = 4096;
constexpr GroupId kGroup{0};
constexpr GroupId kWindowGroup{1};

struct Shape {
  uint32_t engine_blocks = 32;
  uint32_t host_blocks = 8;  // 0: no such tier
  uint32_t disk_blocks = 16;
  uint32_t num_ranks = 1;
  std::vector<GroupSpec> groups = {{kGroup, Retention::full_prefix()}};
  Duration timeout{0};
  uint32_t max_open_store_blocks = 1000;
  PolicyKind policy = PolicyKind::kLineage;
  bool disk_filter = false;
  EngineIds engine_ids = EngineIds::kByGroup;
};

TierManagerOptions options_of(const Shape& shape) {
  TierManagerOptions options;
  options.groups = shape.groups;
  for (const GroupSpec& group : shape.groups) {
    const auto add = [&](TierId tier, Owner owner, uint32_t num_blocks) {
      if (num_blocks == 0) return;
      options.places.push_back({.place = {tier, group.id},
                                .owner = owner,
                                .spread = Spread::kSharded,
                                .num_blocks = num_blocks,
                                .rank_block_bytes = kBlockBytes});
    };
    add(TierId::kG1, Owner::kEngine, shape.engine_blocks);
    add(TierId::kG2, Owner::kKvbm, shape.host_blocks);
    add(TierId::kG3, Owner::kKvbm, shape.disk_blocks);
  }
  options.num_ranks = shape.num_ranks;
  options.policy = shape.policy;
  options.timeout = shape.timeout;
  options.max_open_store_blocks = shape.max_open_store_blocks;
  options.disk_filter = shape.disk_filter;
  options.worker = WorkerId(9);
  options.engine_ids = shape.engine_ids;
  return options;
}

std::vector<BlockId> ids(std::initializer_list<uint32_t> numbers) {
  std::vector<BlockId> blocks;
  for (const uint32_t number : numbers) blocks.emplace_back(number);
  return blocks;
}

std::vector<BlockId> ids_from(uint32_t first, size_t count) {
  std::vector<BlockId> blocks;
  for (size_t i = 0; i < count; ++i) blocks.emplace_back(first + static_cast<uint32_t>(i));
  return blocks;
}

/// A leader whose workers are played by hand.
class Leader {
 public:
  explicit Leader(const Shape& shape = {}) : num_ranks_(shape.num_ranks) {
    auto created = TierManager::create(options_of(shape), clock, events, metrics, log);
    tiers = std::move(created.value());
  }

  TierManager* operator->() { return tiers.get(); }

  /// Takes the operations that came since the last call; there have to be `count`.
  std::vector<CopyOp> take(size_t count) {
    std::vector<CopyOp> ops = tiers->take_ops();
    EXPECT_EQ(ops.size(), count);
    ops.resize(count);
    return ops;
  }
  CopyOp take_one() { return take(1).front(); }

  void answer(const CopyOp& op, uint16_t rank, Outcome outcome = Outcome::kSucceeded,
              std::vector<uint32_t> failed = {}) {
    uint64_t blocks = op.from.size();
    if (outcome == Outcome::kCancelled) blocks = 0;
    if (outcome == Outcome::kFailed) blocks -= failed.empty() ? blocks : failed.size();
    tiers->on_result({.op = op.op,
                      .rank = RankId(rank),
                      .outcome = outcome,
                      .bytes = blocks * kBlockBytes,
                      .failed = std::move(failed)});
  }
  /// The same answer from every rank.
  void end(const CopyOp& op, Outcome outcome = Outcome::kSucceeded,
           const std::vector<uint32_t>& failed = {}) {
    for (uint16_t rank = 0; rank < num_ranks_; ++rank) answer(op, rank, outcome, failed);
  }
  /// Ends all operations, and those that follow from them.
  void end_all() {
    for (std::vector<CopyOp> ops = tiers->take_ops(); !ops.empty(); ops = tiers->take_ops()) {
      for (const CopyOp& op : ops) end(op);
    }
  }

  StoreReceipt store(std::span<const BlockKey> keys, std::span<const BlockId> blocks,
                     Gate written = Gate::step_end(StepId(1)),
                     std::optional<BlockKey> parent = std::nullopt) {
    return tiers->store({.group = keys.empty() ? kGroup : keys.front().group,
                         .keys = keys,
                         .parent = parent,
                         .blocks = blocks,
                         .written = written});
  }
  /// Stores a chain and all that follows from it, from engine blocks 0, 1, …
  void keep(std::span<const BlockKey> keys) {
    const StoreReceipt receipt = store(keys, ids_from(0, keys.size()));
    EXPECT_EQ(receipt.accepted, keys.size());
    end_all();
  }
  /// Makes a chain live on disk alone. Everything else in host memory goes too. Needs a
  /// `host_blocks` chain that fits the disk as well.
  void keep_on_disk(std::span<const BlockKey> keys, uint32_t host_blocks) {
    keep(keys);
    keep(test_chain(9'000'000, host_blocks, keys.front().group));
    for (const BlockKey& key : keys) {
      const Match found = find({&key, 1});
      EXPECT_EQ(found.num_blocks, 1U);
      EXPECT_EQ(found.groups.front().blocks.front().tier(), TierId::kG3);
    }
  }

  Match find(std::span<const BlockKey> keys, uint32_t computed = 0) {
    const GroupKeys asked{keys.front().group, keys};
    return tiers->find({&asked, 1}, computed);
  }
  uint32_t num_findable(std::span<const BlockKey> keys) { return find(keys).num_blocks; }

  LoadId load(Match match, std::vector<std::vector<BlockId>> destinations,
              Gate free = Gate::step_end(StepId(0))) {
    std::vector<EngineBlocks> into;
    for (size_t i = 0; i < match.groups.size(); ++i) {
      into.push_back({match.groups[i].group, match.groups[i].first, destinations.at(i)});
    }
    return tiers->load(std::move(match), into, free).value();
  }
  LoadOutcome take_outcome() {
    std::vector<LoadOutcome> outcomes = tiers->take_loads();
    EXPECT_EQ(outcomes.size(), 1U);
    if (outcomes.empty()) return {};
    return std::move(outcomes.front());
  }

  const RouteMetrics& route(TierId from, TierId to) {
    for (const RouteMetrics* route : tiers->metrics().routes()) {
      if (route->from() == from && route->to() == to) return *route;
    }
    throw std::logic_error("nothing ever took this route");
  }
  int64_t events_say(TierId tier) { return events.tally().of(tier).resident(); }
  void expect_events_agree() {
    for (TierId tier : {TierId::kG2, TierId::kG3}) {
      EXPECT_EQ(events_say(tier), static_cast<int64_t>(tiers->resident_blocks(tier))) << tier;
    }
  }

  ManualClock clock;
  RecordingSink events{std::nullopt};
  MetricsRegistry metrics;
  RecordingLogSink log;
  std::unique_ptr<TierManager> tiers;

 private:
  uint32_t num_ranks_;
};

Place host(GroupId group = kGroup) { return {TierId::kG2, group}; }
Place disk(GroupId group = kGroup) { return {TierId::kG3, group}; }
Place engine(GroupId group = kGroup) { return {TierId::kG1, group}; }

// --- set-up
// -----------------------------------------------------------------------------------------

Error refused(TierManagerOptions options) {
  ManualClock clock;
  NullSink events;
  MetricsRegistry metrics;
  NullLogSink log;
  auto created = TierManager::create(std::move(options), clock, events, metrics, log);
  if (created) return Error(ErrorCode::kInternal, "it was taken");
  return created.error();
}

TEST(TierManager, CreateRefusesWhatItCannotHonour) {
  const TierManagerOptions good = options_of({});
  {
    TierManagerOptions options = good;
    options.groups.clear();
    EXPECT_EQ(refused(options).code(), ErrorCode::kInvalidArgument);
  }
  {
    TierManagerOptions options = good;
    options.num_ranks = 0;
    EXPECT_EQ(refused(options).code(), ErrorCode::kInvalidArgument);
  }
  {
    TierManagerOptions options = good;
    options.places.erase(options.places.begin());
    EXPECT_THAT(refused(options).message(), HasSubstr("no place in G1"));
  }
  {
    TierManagerOptions options = good;
    options.places.push_back(options.places.front());
    EXPECT_THAT(refused(options).message(), HasSubstr("two places in G1"));
  }
  {
    TierManagerOptions options = good;
    options.places.push_back(options.places.back());
    EXPECT_EQ(refused(options).code(), ErrorCode::kInvalidArgument);
  }
  {
    TierManagerOptions options = good;
    options.places.back().num_blocks = 0;
    EXPECT_THAT(refused(options).message(), HasSubstr("no blocks or no bytes"));
  }
  {
    TierManagerOptions options = good;
    options.places.back().rank_block_bytes = 0;
    EXPECT_THAT(refused(options).message(), HasSubstr("no blocks or no bytes"));
  }
  {
    TierManagerOptions options = good;
    options.places.back().rank_block_bytes *= 2;
    EXPECT_THAT(refused(options).message(), HasSubstr("4096 and of 8192 bytes"));
  }
  {
    TierManagerOptions options = good;
    options.places.back().place.group = GroupId(7);
    EXPECT_THAT(refused(options).message(), HasSubstr("belongs to no group"));
  }
  {
    TierManagerOptions options = good;
    options.places.back().place.tier = TierId::kG4;
    EXPECT_EQ(refused(options).code(), ErrorCode::kUnsupported);
  }
  {
    TierManagerOptions options =
        options_of({.groups = {{kGroup, Retention::full_prefix()},
                               {kWindowGroup, Retention::last_window(2)}}});
    options.places.pop_back();
    EXPECT_THAT(refused(options).message(), HasSubstr("for some layer groups only"));
  }
}

// --- store
// ------------------------------------------------------------------------------------------

TEST(TierManager, AStoredBlockIsFindableOnlyWhenEveryRankHasConfirmedIt) {
  Leader leader({.num_ranks = 3});
  const auto keys = test_chain(1, 4);
  const StoreReceipt receipt = leader.store(keys, ids_from(10, 4));
  EXPECT_EQ(receipt.accepted, 4U);
  EXPECT_EQ(receipt.present, 0U);
  EXPECT_EQ(receipt.dropped, 0U);

  const CopyOp op = leader.take_one();
  EXPECT_EQ(op.src, engine());
  EXPECT_EQ(op.dst, host());
  EXPECT_EQ(op.from, ids_from(10, 4));
  EXPECT_EQ(op.to.size(), 4U);
  EXPECT_THAT(op.after, ElementsAre(Gate::step_end(StepId(1))));
  EXPECT_EQ(op.priority, Priority::kOffload);
  EXPECT_FALSE(leader->idle());

  for (const uint16_t rank : {uint16_t{2}, uint16_t{0}, uint16_t{1}}) {
    EXPECT_EQ(leader.num_findable(keys), 0U);
    EXPECT_EQ(leader->resident_blocks(TierId::kG2), 0U);
    EXPECT_EQ(leader.events.tally().total(), TierTally{});
    leader.answer(op, rank);
  }
  EXPECT_EQ(leader.num_findable(keys), 4U);
  EXPECT_EQ(leader->resident_blocks(TierId::kG2), 4U);
  EXPECT_TRUE(leader->idle());
  EXPECT_THAT(leader->take_ops(), IsEmpty());
  EXPECT_EQ(leader.route(TierId::kG1, TierId::kG2).blocks(), 4U);
  EXPECT_EQ(leader.route(TierId::kG1, TierId::kG2).bytes(), 3 * 4 * kBlockBytes);
  leader.expect_events_agree();
}

TEST(TierManager, ABlockThatOneRankFailedToStoreIsNeverFindable) {
  Leader leader({.num_ranks = 2});
  const auto keys = test_chain(1, 4);
  leader.store(keys, ids_from(0, 4));
  const CopyOp op = leader.take_one();
  leader.answer(op, 0, Outcome::kFailed, {3});
  leader.answer(op, 1, Outcome::kFailed, {1});
  EXPECT_EQ(leader.num_findable(keys), 1U);
  EXPECT_EQ(leader.num_findable(std::span(keys).subspan(1)), 0U);
  EXPECT_EQ(leader.num_findable(std::span(keys).subspan(2)), 1U);
  EXPECT_EQ(leader->resident_blocks(TierId::kG2), 2U);
  EXPECT_EQ(leader.route(TierId::kG1, TierId::kG2).failed_blocks(), 2U);
  leader.expect_events_agree();

  // What failed can be stored again.
  const StoreReceipt again = leader.store(keys, ids_from(0, 4));
  EXPECT_EQ(again.present, 2U);
  EXPECT_EQ(again.accepted, 2U);
  leader.end_all();
  EXPECT_EQ(leader.num_findable(keys), 4U);
}

TEST(TierManager, AStoreThatFailsWithoutSayingWhereHasFailedAltogether) {
  Leader leader({.num_ranks = 2});
  const auto keys = test_chain(1, 4);
  leader.store(keys, ids_from(0, 4));
  const CopyOp op = leader.take_one();
  leader.answer(op, 0);
  leader.answer(op, 1, Outcome::kFailed);
  EXPECT_EQ(leader->resident_blocks(TierId::kG2), 0U);
  EXPECT_TRUE(leader->idle());
  EXPECT_THAT(leader.log.messages(LogLevel::kError), IsEmpty());
}

TEST(TierManager, AStoreThatOneRankCancelledIsNeverFindable) {
  Leader leader({.num_ranks = 2});
  const auto keys = test_chain(1, 4);
  leader.store(keys, ids_from(0, 4));
  const CopyOp op = leader.take_one();
  leader.answer(op, 0, Outcome::kCancelled);
  leader.answer(op, 1);
  EXPECT_EQ(leader.num_findable(keys), 0U);
  EXPECT_EQ(leader->resident_blocks(TierId::kG2), 0U);
}

TEST(TierManager, AStoreWithoutAllItsBytesIsNeverFindable) {
  for (const uint64_t bytes : {uint64_t{0}, 4 * kBlockBytes - 1, 4 * kBlockBytes + 1}) {
    Leader leader;
    const auto keys = test_chain(1, 4);
    leader.store(keys, ids_from(0, 4));
    const CopyOp op = leader.take_one();
    leader->on_result({op.op, RankId(0), Outcome::kSucceeded, bytes, {}});
    EXPECT_EQ(leader.num_findable(keys), 0U);
    EXPECT_EQ(leader->resident_blocks(TierId::kG2), 0U);
    EXPECT_THAT(leader.log.messages(LogLevel::kError), ElementsAre(HasSubstr("instead of 16384")));
  }
}

TEST(TierManager, AFailureWhosePositionsMakeNoSenseIsOneOfTheWholeOperation) {
  const std::vector<std::vector<uint32_t>> nonsense = {{1, 1}, {99}, {2, 4}};
  for (const auto& failed : nonsense) {
    Leader leader;
    const auto keys = test_chain(1, 4);
    leader.store(keys, ids_from(0, 4));
    const CopyOp op = leader.take_one();
    leader.answer(op, 0, Outcome::kFailed, failed);
    EXPECT_EQ(leader->resident_blocks(TierId::kG2), 0U);
  }
  Leader leader;
  leader.store(test_chain(1, 4), ids_from(0, 4));
  const CopyOp op = leader.take_one();
  leader->on_result({op.op, RankId(0), Outcome::kFailed, 4 * kBlockBytes, {99}});
  EXPECT_EQ(leader->resident_blocks(TierId::kG2), 0U);
}

TEST(TierManager, WhatIsStoredOrBeingStoredIsNotStoredAgain) {
  Leader leader;
  const auto keys = test_chain(1, 6);
  leader.keep(std::span(keys).first(2));
  leader.store(std::span(keys).subspan(2, 2), ids({2, 3}), Gate::step_end(StepId(1)), keys[1]);
  const CopyOp open = leader.take_one();
  const StoreReceipt receipt = leader.store(keys, ids_from(0, 6));
  EXPECT_EQ(receipt.present, 4U);
  EXPECT_EQ(receipt.accepted, 2U);
  EXPECT_EQ(receipt.dropped, 0U);
  const CopyOp rest = leader.take_one();
  EXPECT_EQ(rest.from, ids({4, 5}));
  leader.end(rest);
  EXPECT_EQ(leader.num_findable(keys), 2U);  // the middle is not there yet
  leader.end(open);
  EXPECT_EQ(leader.num_findable(keys), 6U);
}

TEST(TierManager, StoresAboveTheBudgetAreDroppedAndCounted) {
  Leader leader({.max_open_store_blocks = 3});
  const auto keys = test_chain(1, 5);
  const StoreReceipt first = leader.store(keys, ids_from(0, 5));
  EXPECT_EQ(first.accepted, 3U);
  EXPECT_EQ(first.dropped, 2U);
  const CopyOp op = leader.take_one();
  EXPECT_EQ(op.from, ids_from(0, 3));  // first positions first

  const auto others = test_chain(100, 2);
  const StoreReceipt second = leader.store(others, ids({8, 9}));
  EXPECT_EQ(second.accepted, 0U);
  EXPECT_EQ(second.dropped, 2U);
  EXPECT_THAT(leader->take_ops(), IsEmpty());
  EXPECT_EQ(leader->metrics().store_dropped_backlog.value(), 4U);
  EXPECT_EQ(leader->metrics().store_dropped_no_room.value(), 0U);

  leader.end(op, Outcome::kFailed);
  const StoreReceipt third = leader.store(keys, ids_from(0, 5));  // the budget is free again
  EXPECT_EQ(third.accepted, 3U);
}

TEST(TierManager, TheDefaultBudgetIsWhatTheNearestTierHolds) {
  Leader leader({.host_blocks = 8, .max_open_store_blocks = 0});
  EXPECT_EQ(leader.store(test_chain(1, 9), ids_from(0, 9)).accepted, 8U);
  EXPECT_EQ(leader->metrics().store_dropped_backlog.value(), 1U);
}

TEST(TierManager, StoresForWhichEverySlotIsPinnedAreDroppedAndCounted) {
  Leader leader({.host_blocks = 4});
  const auto pinned = test_chain(1, 3);
  leader.keep(pinned);
  const Match pin = leader.find(pinned);
  const StoreReceipt receipt = leader.store(test_chain(100, 3), ids_from(4, 3));
  EXPECT_EQ(receipt.accepted, 1U);
  EXPECT_EQ(receipt.dropped, 2U);
  EXPECT_EQ(leader->metrics().store_dropped_no_room.value(), 2U);
  EXPECT_EQ(leader->metrics().store_dropped_backlog.value(), 0U);
  EXPECT_EQ(leader.num_findable(pinned), 3U);
}

TEST(TierManager, EveryReceiptAddsUp) {
  const uint64_t seed = testing::test_seed();
  Random random(seed);
  Leader leader({.host_blocks = 6, .disk_blocks = 6, .max_open_store_blocks = 5});
  std::vector<Match> pins;
  for (int round = 0; round < 500; ++round) {
    const auto count = static_cast<size_t>(random.uniform_between(1, 8));
    const auto keys = test_chain(random.uniform(40), count);
    const StoreReceipt receipt = leader.store(keys, ids_from(0, count));
    EXPECT_EQ(receipt.accepted + receipt.present + receipt.dropped, count);
    if (random.chance(0.3)) pins.push_back(leader.find(keys));
    if (random.chance(0.3)) pins.clear();
    if (random.chance(0.5)) leader.end_all();
  }
}

TEST(TierManager, AChainThatIsStoredInPartsIsOneChain) {
  Leader leader({.host_blocks = 3, .disk_blocks = 0});
  const auto keys = test_chain(1, 3);
  leader.store(std::span(keys).first(2), ids({0, 1}));
  leader.end_all();
  leader.store(std::span(keys).subspan(2), ids({2}), Gate::step_end(StepId(1)), keys[1]);
  leader.end_all();
  leader.keep(test_chain(100, 1));
  EXPECT_EQ(leader.num_findable(keys), 2U);  // the leaf went, though it came last
}

TEST(TierManager, AStoreTouchesItsSourcesUntilItHasEnded) {
  Leader leader({.num_ranks = 2});
  const auto keys = test_chain(1, 3);
  leader.store(keys, ids({5, 6, 7}));
  const CopyOp op = leader.take_one();
  EXPECT_THAT(leader->touching(kGroup, ids({4, 8})), IsEmpty());
  EXPECT_THAT(leader->touching(kGroup, ids({7, 5, 6})), ElementsAre(op.op));
  leader.answer(op, 0);
  EXPECT_THAT(leader->touching(kGroup, ids({5})), ElementsAre(op.op));
  leader.answer(op, 1);
  EXPECT_THAT(leader->touching(kGroup, ids({5, 6, 7})), IsEmpty());
}

TEST(TierManager, ABlockOfOnePoolIsTheSameInAllGroups) {
  for (const EngineIds ids_are : {EngineIds::kByGroup, EngineIds::kOfOnePool}) {
    const bool is_one = ids_are == EngineIds::kOfOnePool;
    Leader leader({.groups = {{kGroup}, {kWindowGroup}}, .engine_ids = ids_are});
    const std::vector<std::vector<BlockKey>> chains = {test_chain(1, 2),
                                                       test_chain(1, 2, kWindowGroup)};
    leader.keep(chains[0]);
    leader.keep(chains[1]);
    leader.store(test_chain(50, 2, kWindowGroup), ids({5, 6}));
    const CopyOp reader = leader.take_one();
    EXPECT_EQ(leader->touching(kGroup, ids({6, 7})).size(), is_one ? 1U : 0U);
    EXPECT_THAT(leader->touching(kWindowGroup, ids({6, 7})), ElementsAre(reader.op));

    const std::vector<GroupKeys> asked = {{kGroup, chains[0]}, {kWindowGroup, chains[1]}};
    leader.load(leader->find(asked, 0), {ids({6, 7}), ids({8, 9})}, Gate::step_end(StepId(3)));
    const auto loads = leader.take(2);
    EXPECT_EQ(loads[0].after.size(), is_one ? 2U : 1U);
    EXPECT_EQ(loads[0].after.back(), is_one ? Gate::op_done(reader.op) : Gate::step_end(StepId(3)));
    EXPECT_THAT(loads[1].after, ElementsAre(Gate::step_end(StepId(3))));
    for (const CopyOp& op : {reader, loads[0], loads[1]}) leader.end(op);
    EXPECT_THAT(leader->touching(kGroup, ids({5, 6, 7, 8, 9})), IsEmpty());
  }
}

TEST(TierManager, GroupsOfOnePoolHaveAsManyEngineBlocks) {
  TierManagerOptions options =
      options_of({.groups = {{kGroup}, {kWindowGroup}}, .engine_ids = EngineIds::kOfOnePool});
  for (PlaceSpec& place : options.places) {
    if (place.place == Place{TierId::kG1, kWindowGroup}) place.num_blocks = 31;
  }
  ManualClock clock;
  RecordingSink events{std::nullopt};
  MetricsRegistry metrics;
  RecordingLogSink log;
  const auto refused = TierManager::create(options, clock, events, metrics, log);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), ErrorCode::kInvalidArgument);
  EXPECT_THAT(refused.error().message(), HasSubstr("31 and 32 blocks of one pool"));
}

TEST(TierManager, BrokenContractsChangeNothing) {
  Leader leader;
  const auto keys = test_chain(1, 2);
  EXPECT_THROW(leader.store(keys, ids({1})), ContractViolation);
  EXPECT_THROW(leader.store(keys, ids({1, 32})), ContractViolation);
  const std::vector<BlockKey> mixed = {test_key(1, kGroup), test_key(2, kWindowGroup)};
  EXPECT_THROW(leader.store(mixed, ids({1, 2})), ContractViolation);
  EXPECT_THROW((void)leader->touching(kGroup, ids({32})), ContractViolation);
  EXPECT_THROW((void)leader->find({}, 0), ContractViolation);
  EXPECT_THROW((void)leader.find(keys, 3), ContractViolation);
  leader.keep(keys);
  for (const auto& wrong : {ids({1}), ids({1, 2, 3}), ids({1, 32})}) {
    Match match = leader.find(keys);
    const std::vector<EngineBlocks> into = {{kGroup, 0, wrong}};
    EXPECT_THROW((void)leader->load(std::move(match), into, Gate{}), ContractViolation);
  }
  EXPECT_TRUE(leader->idle());
  EXPECT_THAT(leader->take_ops(), IsEmpty());
  EXPECT_THAT(leader->take_loads(), IsEmpty());
}

TEST(TierManager, AFindNeedsAsManyKeysOfEveryGroup) {
  Leader leader(
      {.groups = {{kGroup, Retention::full_prefix()}, {kWindowGroup, Retention::last_window(2)}}});
  const auto full = test_chain(1, 3, kGroup);
  const auto window = test_chain(1, 2, kWindowGroup);
  const std::vector<GroupKeys> asked = {{kGroup, full}, {kWindowGroup, window}};
  EXPECT_THROW((void)leader->find(asked, 0), ContractViolation);
  EXPECT_THROW((void)leader->find(std::span(asked).first(1), 0), ContractViolation);
}

// --- eviction and write-back
// ------------------------------------------------------------------------

TEST(TierManager, ADirtyVictimIsWrittenDownBeforeItsSlotIsOverwritten) {
  Leader leader({.host_blocks = 4});
  const auto old = test_chain(1, 4);
  leader.keep(old);
  ASSERT_EQ(leader->resident_blocks(TierId::kG3), 0U);

  const auto fresh = test_chain(100, 2);
  leader.store(fresh, ids({8, 9}), Gate::step_end(StepId(5)));
  const auto ops = leader.take(2);
  const CopyOp& save = ops[0];
  const CopyOp& store = ops[1];
  EXPECT_EQ(save.src, host());
  EXPECT_EQ(save.dst, disk());
  EXPECT_THAT(save.after, IsEmpty());
  EXPECT_EQ(save.tags.size(), 2U);
  EXPECT_EQ(save.priority, Priority::kOffload);
  EXPECT_EQ(save.from, store.to);  // the slots of the victims
  EXPECT_EQ(store.dst, host());
  EXPECT_THAT(store.after, UnorderedElementsAre(Gate::step_end(StepId(5)), Gate::op_done(save.op)));
  EXPECT_EQ(leader->metrics().evictions(TierId::kG2), 2U);

  // The leaves went; they cannot be found until they are on disk.
  EXPECT_EQ(leader.num_findable(old), 2U);
  leader.end(save);
  EXPECT_EQ(leader.num_findable(old), 4U);
  EXPECT_EQ(leader.num_findable(fresh), 0U);
  leader.end(store);
  EXPECT_EQ(leader.num_findable(fresh), 2U);
  EXPECT_EQ(leader->resident_blocks(TierId::kG2), 4U);
  EXPECT_EQ(leader->resident_blocks(TierId::kG3), 2U);
  leader.expect_events_agree();
}

TEST(TierManager, TheSlotsOfVictimsStayTakenUntilTheirSaveHasEnded) {
  Leader leader({.host_blocks = 2, .num_ranks = 2});
  leader.keep(test_chain(1, 2));
  leader.store(test_chain(100, 2), ids({8, 9}));
  const auto ops = leader.take(2);
  leader.end(ops[1], Outcome::kCancelled);  // the store is gone, its slots are still being read
  const StoreReceipt refused = leader.store(test_chain(200, 2), ids({10, 11}));
  EXPECT_EQ(refused.accepted, 0U);
  EXPECT_EQ(refused.dropped, 2U);
  leader.answer(ops[0], 0);
  EXPECT_EQ(leader.store(test_chain(200, 2), ids({10, 11})).accepted, 0U);
  leader.answer(ops[0], 1);
  EXPECT_EQ(leader.store(test_chain(200, 2), ids({10, 11})).accepted, 2U);
}

TEST(TierManager, AStoreThatEndsBeforeTheResultOfItsSaveIsKept) {
  Leader leader({.host_blocks = 2});
  leader.keep(test_chain(1, 2));
  const auto fresh = test_chain(100, 2);
  leader.store(fresh, ids({8, 9}));
  const auto ops = leader.take(2);
  leader.end(ops[1]);
  EXPECT_EQ(leader.num_findable(fresh), 2U);
  leader.end(ops[0]);
  EXPECT_EQ(leader.num_findable(fresh), 2U);
  EXPECT_EQ(leader->resident_blocks(TierId::kG3), 2U);
  leader.expect_events_agree();
}

TEST(TierManager, AVictimWhoseSaveFailedIsGoneAndItsSlotIsUsedAllTheSame) {
  Leader leader({.host_blocks = 2});
  const auto old = test_chain(1, 2);
  leader.keep(old);
  const auto fresh = test_chain(100, 2);
  leader.store(fresh, ids({8, 9}));
  const auto ops = leader.take(2);
  leader.end(ops[0], Outcome::kFailed);
  leader.end(ops[1]);
  EXPECT_EQ(leader.num_findable(old), 0U);
  EXPECT_EQ(leader.num_findable(fresh), 2U);
  EXPECT_EQ(leader->resident_blocks(TierId::kG3), 0U);
  EXPECT_EQ(leader.route(TierId::kG2, TierId::kG3).failed_blocks(), 2U);
  leader.expect_events_agree();
}

TEST(TierManager, AVictimThatIsBeingSavedIsNotSavedAgain) {
  Leader leader({.host_blocks = 2, .disk_blocks = 8});
  const auto old = test_chain(1, 2);
  leader.keep(old);
  leader.store(test_chain(100, 2), ids({8, 9}));
  const auto first = leader.take(2);  // saves `old`
  leader.end(first[1]);
  leader.store(old, ids({0, 1}));  // back again, while the save is still open
  const auto second = leader.take(2);
  EXPECT_EQ(second[0].src, host());
  leader.end(second[0]);
  leader.end(second[1]);
  leader.store(test_chain(200, 2), ids({10, 11}));  // evicts `old` once more
  const CopyOp store = leader.take_one();
  EXPECT_EQ(store.src, engine());
  EXPECT_EQ(store.after.size(), 1U);
  leader.end(first[0]);
  EXPECT_EQ(leader.num_findable(old), 2U);
  leader.end(store);
  leader.expect_events_agree();
}

TEST(TierManager, VictimsThatDiskHasNoRoomForAreCounted) {
  Leader leader({.host_blocks = 2, .disk_blocks = 2});
  const auto on_disk = test_chain(1, 2);
  leader.keep(on_disk);
  leader.keep(test_chain(100, 2));
  const Match pin = leader.find(on_disk);  // all of the disk
  ASSERT_EQ(pin.num_blocks, 2U);
  leader.store(test_chain(200, 2), ids({8, 9}));
  const CopyOp store = leader.take_one();
  EXPECT_EQ(store.after.size(), 1U);
  EXPECT_EQ(leader->metrics().evicted_unsaved.value(), 2U);
  leader.end(store);
  EXPECT_EQ(leader.num_findable(on_disk), 2U);
  leader.expect_events_agree();
}

TEST(TierManager, TheDiskFilterWritesDownWhatWasSeenTwice) {
  Leader leader({.host_blocks = 4, .disk_filter = true});
  const auto seen_once = test_chain(1, 2);
  const auto seen_twice = test_chain(100, 2);
  leader.keep(seen_once);
  leader.keep(seen_twice);
  EXPECT_EQ(leader.store(seen_twice, ids_from(0, 2)).present, 2U);
  leader.keep(test_chain(200, 4));
  EXPECT_EQ(leader.num_findable(seen_once), 0U);
  EXPECT_EQ(leader.num_findable(seen_twice), 2U);
  EXPECT_EQ(leader->metrics().filtered.value(), 2U);
  // Evicted and computed again, a block has been seen twice.
  leader.keep(seen_once);
  leader.keep(test_chain(300, 4));
  EXPECT_EQ(leader.num_findable(seen_once), 2U);
}

TEST(TierManager, WhatTheDiskFilterHoldsBackInADrainCountsOnce) {
  Leader leader({.host_blocks = 4, .disk_filter = true});
  leader.keep(test_chain(1, 3));
  EXPECT_EQ(leader->drain(64), 0U);
  EXPECT_EQ(leader->metrics().filtered.value(), 3U);
  leader.keep(test_chain(100, 1));
  EXPECT_EQ(leader->metrics().filtered.value(), 3U);  // nothing was evicted
}

TEST(TierManager, ForTheDiskFilterALoadIsASight) {
  Leader leader({.host_blocks = 4, .disk_filter = true});
  const auto chain = test_chain(1, 2);
  leader.keep(chain);
  leader.load(leader.find(chain), {ids({10, 11})});
  leader.end_all();
  EXPECT_TRUE(leader.take_outcome().status);
  leader.keep(test_chain(100, 2));
  EXPECT_EQ(leader->drain(100), 2U);
  leader.end_all();
  EXPECT_EQ(leader->resident_blocks(TierId::kG3), 2U);
  leader.keep(test_chain(200, 4));
  EXPECT_EQ(leader.num_findable(chain), 2U);
}

TEST(TierManager, APromotedBlockKeepsItsDiskCopyAndIsNotWrittenAgain) {
  Leader leader({.host_blocks = 4});
  const auto keys = test_chain(1, 2);
  leader.keep_on_disk(keys, 4);
  leader.load(leader.find(keys), {ids({20, 21})});
  leader.end_all();
  EXPECT_EQ(leader.take_outcome().num_blocks, 2U);
  {
    const Match promoted = leader.find(keys);
    EXPECT_EQ(promoted.groups.front().blocks.front().tier(), TierId::kG2);
  }
  const uint64_t written = leader.route(TierId::kG2, TierId::kG3).blocks();
  const uint64_t on_disk = leader->resident_blocks(TierId::kG3);

  // Everything else first, so that the promoted blocks are the only victims left.
  leader.keep(test_chain(200, 2));
  leader.keep(test_chain(300, 2));
  leader.store(test_chain(400, 4), ids_from(0, 4));
  leader.end_all();
  const Match found = leader.find(keys);
  EXPECT_EQ(found.num_blocks, 2U);
  EXPECT_EQ(found.groups.front().blocks.front().tier(), TierId::kG3);
  // 2 dirty blocks went for each of the first two chains (the filler's rest among them), and 4 for
  // the last.
  EXPECT_EQ(leader->resident_blocks(TierId::kG3) - on_disk,
            leader.route(TierId::kG2, TierId::kG3).blocks() - written);
  for (const CopyOp& op : leader->take_ops()) ADD_FAILURE() << op.op;
}

TEST(TierManager, EvictingACleanBlockWritesNothing) {
  Leader leader({.host_blocks = 2});
  const auto keys = test_chain(1, 2);
  leader.keep_on_disk(keys, 2);
  leader.load(leader.find(keys), {ids({20, 21})});
  leader.end_all();
  leader.store(test_chain(200, 2), ids({8, 9}));  // evicts the two promoted blocks
  const CopyOp store = leader.take_one();
  EXPECT_EQ(store.src, engine());
  EXPECT_THAT(store.after, ElementsAre(Gate::step_end(StepId(1))));
  leader.end(store);
  EXPECT_EQ(leader.num_findable(keys), 2U);
}

TEST(TierManager, SavedBlocksLeaveTheDiskInTheOrderInWhichTheyLeftHostMemory) {
  Leader leader({.host_blocks = 4, .disk_blocks = 4, .policy = PolicyKind::kLru});
  const auto keys = test_chain(1, 4);
  leader.keep(keys);
  leader.keep(test_chain(100, 4));
  leader.keep(test_chain(200, 1));  // saves one more, for which the deepest of `keys` makes room
  EXPECT_EQ(leader.num_findable(keys), 3U);
}

TEST(TierManager, ALoadedChainLeavesItsTierDeepestBlockFirst) {
  Leader leader({.host_blocks = 0, .disk_blocks = 3, .policy = PolicyKind::kLru});
  const auto keys = test_chain(1, 3);
  leader.keep(keys);
  leader.load(leader.find(keys), {ids({20, 21, 22})});
  leader.end_all();
  leader.keep(test_chain(100, 1));
  EXPECT_EQ(leader.num_findable(keys), 2U);
}

TEST(TierManager, ABlockHasOneTagAndNoOtherBlockHasIt) {
  Leader leader(
      {.host_blocks = 2,
       .groups = {{kGroup, Retention::full_prefix()}, {kWindowGroup, Retention::full_prefix()}}});
  std::vector<CopyOp> saves;
  for (const GroupId group : {kGroup, kWindowGroup}) {
    leader.keep(test_chain(1, 2, group));
    leader.store(test_chain(100, 2, group), ids({8, 9}));
    saves.push_back(leader->take_ops().at(0));
    ASSERT_EQ(saves.back().dst, disk(group));
    leader.end(saves.back());
  }
  std::set<std::array<std::byte, 32>> tags;
  for (const CopyOp& save : saves) {
    for (const Tag& tag : save.tags) tags.insert(tag.bytes);
  }
  EXPECT_EQ(tags.size(), 4U);  // same numbers, other groups

  auto other_namespace = test_chain(1, 2);
  for (BlockKey& key : other_namespace) key.ns = NamespaceId(1);
  Leader other({.host_blocks = 0});
  other.store(other_namespace, ids({0, 1}));
  for (const Tag& tag : other.take_one().tags) tags.insert(tag.bytes);
  EXPECT_EQ(tags.size(), 6U);
}

TEST(TierManager, WhatIsReadBackHasTheTagThatItWasWrittenWith) {
  Leader leader({.host_blocks = 0});
  const auto keys = test_chain(1, 3);
  leader.store(keys, ids_from(0, 3));
  const CopyOp store = leader.take_one();
  ASSERT_EQ(store.tags.size(), 3U);
  leader.end(store);
  leader.load(leader.find(keys), {ids({20, 21, 22})});
  const CopyOp load = leader.take_one();
  EXPECT_EQ(load.tags, store.tags);
  EXPECT_EQ(load.from, store.to);
}

// --- loads
// ------------------------------------------------------------------------------------------

TEST(TierManager, AHostHitGoesStraightToTheEngine) {
  Leader leader({.num_ranks = 2});
  const auto keys = test_chain(1, 4);
  leader.keep(keys);
  Match match = leader.find(keys, 1);  // the engine has the first block
  EXPECT_EQ(match.first_block, 1U);
  EXPECT_EQ(match.num_blocks, 4U);
  ASSERT_EQ(match.groups.size(), 1U);
  EXPECT_EQ(match.groups[0].first, 1U);
  EXPECT_EQ(match.groups[0].blocks.size(), 3U);
  EXPECT_EQ(match.groups[0].parent, keys[0]);

  const LoadId load = leader.load(std::move(match), {ids({20, 21, 22})}, Gate::step_end(StepId(3)));
  const CopyOp op = leader.take_one();
  EXPECT_EQ(op.src, host());
  EXPECT_EQ(op.dst, engine());
  EXPECT_EQ(op.to, ids({20, 21, 22}));
  EXPECT_THAT(op.after, ElementsAre(Gate::step_end(StepId(3))));
  EXPECT_EQ(op.priority, Priority::kOnboard);
  EXPECT_THAT(leader->touching(kGroup, ids({20, 21, 22})), ElementsAre(op.op));
  EXPECT_THAT(leader->take_loads(), IsEmpty());
  leader.answer(op, 0);
  EXPECT_THAT(leader->take_loads(), IsEmpty());
  leader.answer(op, 1);

  const LoadOutcome outcome = leader.take_outcome();
  EXPECT_EQ(outcome.load, load);
  EXPECT_TRUE(outcome.status);
  EXPECT_EQ(outcome.num_blocks, 4U);
  EXPECT_TRUE(leader->idle());
  EXPECT_THAT(leader->touching(kGroup, ids({20, 21, 22})), IsEmpty());
  EXPECT_THAT(leader->take_loads(), IsEmpty());
  EXPECT_EQ(leader.route(TierId::kG2, TierId::kG1).bytes(), 2 * 3 * kBlockBytes);
  leader.expect_events_agree();
}

TEST(TierManager, ALoadOfNothingEndsAtOnce) {
  Leader leader;
  const auto keys = test_chain(1, 4);
  Match match = leader.find(keys, 2);
  EXPECT_TRUE(match.empty());
  EXPECT_THAT(match.groups, IsEmpty());
  leader.load(std::move(match), {});
  const LoadOutcome outcome = leader.take_outcome();
  EXPECT_TRUE(outcome.status);
  EXPECT_EQ(outcome.num_blocks, 2U);
  EXPECT_TRUE(leader->idle());
}

TEST(TierManager, ADiskHitIsStagedThroughHostMemory) {
  Leader leader({.host_blocks = 4, .num_ranks = 2});
  const auto keys = test_chain(1, 2);
  leader.keep_on_disk(keys, 4);
  leader.load(leader.find(keys), {ids({20, 21})}, Gate::step_end(StepId(3)));
  const auto ops = leader.take(2);
  const CopyOp& save = ops[0];
  const CopyOp& stage = ops[1];
  EXPECT_EQ(save.dst, disk());
  EXPECT_EQ(save.priority, Priority::kOnboard);  // the load waits for it
  EXPECT_EQ(stage.src, disk());
  EXPECT_EQ(stage.dst, host());
  EXPECT_EQ(stage.tags.size(), 2U);
  EXPECT_EQ(stage.priority, Priority::kOnboard);
  EXPECT_THAT(stage.after, ElementsAre(Gate::op_done(save.op)));
  EXPECT_THAT(leader->touching(kGroup, ids({20, 21})), IsEmpty());

  leader.end(save);
  leader.answer(stage, 0);
  EXPECT_THAT(leader->take_ops(), IsEmpty());
  leader.answer(stage, 1);
  const CopyOp load = leader.take_one();
  EXPECT_EQ(load.src, host());
  EXPECT_EQ(load.from, stage.to);
  EXPECT_EQ(load.to, ids({20, 21}));
  EXPECT_THAT(load.after, ElementsAre(Gate::step_end(StepId(3))));
  EXPECT_THAT(leader->touching(kGroup, ids({20, 21})), ElementsAre(load.op));
  EXPECT_THAT(leader->take_loads(), IsEmpty());
  leader.end(load);
  EXPECT_EQ(leader.take_outcome().num_blocks, 2U);

  // It is in both tiers now.
  EXPECT_EQ(leader.find(keys).groups.front().blocks.front().tier(), TierId::kG2);
  EXPECT_EQ(leader.route(TierId::kG3, TierId::kG2).blocks(), 2U);
  leader.expect_events_agree();
}

TEST(TierManager, AMatchOverTwoTiersIsLoadedFromBoth) {
  Leader leader({.host_blocks = 4});
  const auto keys = test_chain(1, 4);
  leader.keep_on_disk(std::span(keys).first(4), 4);
  leader.load(leader.find(std::span(keys).first(2)), {ids({10, 11})});
  leader.end_all();
  EXPECT_EQ(leader.take_outcome().num_blocks, 2U);
  Match match = leader.find(keys);
  ASSERT_EQ(match.num_blocks, 4U);
  EXPECT_EQ(match.groups[0].blocks[1].tier(), TierId::kG2);
  EXPECT_EQ(match.groups[0].blocks[2].tier(), TierId::kG3);
  leader.load(std::move(match), {ids({20, 21, 22, 23})});
  std::vector<CopyOp> ops = leader->take_ops();
  const auto from_host = std::find_if(ops.begin(), ops.end(), [](const CopyOp& op) {
    return op.src == host() && op.dst == engine();
  });
  ASSERT_NE(from_host, ops.end());
  EXPECT_EQ(from_host->to, ids({20, 21}));
  const auto staged =
      std::find_if(ops.begin(), ops.end(), [](const CopyOp& op) { return op.src == disk(); });
  ASSERT_NE(staged, ops.end());
  for (const CopyOp& op : ops) leader.end(op);
  EXPECT_THAT(leader->take_loads(), IsEmpty());
  const CopyOp rest = leader.take_one();
  EXPECT_EQ(rest.to, ids({22, 23}));
  leader.end(rest);
  EXPECT_EQ(leader.take_outcome().num_blocks, 4U);
}

TEST(TierManager, WithoutRoomInHostMemoryADiskHitGoesStraightToTheEngine) {
  Leader leader({.host_blocks = 3});
  const auto keys = test_chain(1, 3);
  leader.keep_on_disk(keys, 3);
  Match match = leader.find(keys);
  const auto filler = test_chain(9'000'000, 2);
  const Match pin = leader.find(filler);  // one slot of three is left
  ASSERT_EQ(pin.num_blocks, 2U);
  leader.load(std::move(match), {ids({20, 21, 22})}, Gate::step_end(StepId(3)));
  const auto ops = leader.take(3);
  EXPECT_EQ(ops[0].src, disk());
  EXPECT_EQ(ops[0].dst, engine());
  EXPECT_EQ(ops[0].to, ids({21, 22}));
  EXPECT_EQ(ops[0].tags.size(), 2U);
  EXPECT_THAT(ops[0].after, ElementsAre(Gate::step_end(StepId(3))));
  EXPECT_EQ(ops[1].dst, disk());
  EXPECT_EQ(ops[2].dst, host());
  EXPECT_EQ(ops[2].to.size(), 1U);
  for (const CopyOp& op : ops) leader.end(op);
  const CopyOp last = leader.take_one();
  EXPECT_EQ(last.to, ids({20}));
  leader.end(last);
  EXPECT_EQ(leader.take_outcome().num_blocks, 3U);
  leader.expect_events_agree();
}

TEST(TierManager, HostMemoryMayBeLeftOut) {
  Leader leader({.host_blocks = 0, .disk_blocks = 4});
  EXPECT_FALSE(leader->has_tier(TierId::kG2));
  EXPECT_TRUE(leader->has_tier(TierId::kG3));
  const auto keys = test_chain(1, 4);
  leader.store(keys, ids_from(0, 4));
  const CopyOp store = leader.take_one();
  EXPECT_EQ(store.dst, disk());
  EXPECT_EQ(store.tags.size(), 4U);
  leader.end(store);
  EXPECT_EQ(leader.num_findable(keys), 4U);
  leader.load(leader.find(keys), {ids_from(20, 4)});
  const CopyOp load = leader.take_one();
  EXPECT_EQ(load.src, disk());
  EXPECT_EQ(load.dst, engine());
  leader.end(load);
  EXPECT_EQ(leader.take_outcome().num_blocks, 4U);

  leader.store(test_chain(100, 1), ids({5}));  // evicts without a word to the workers
  const CopyOp evicting = leader.take_one();
  EXPECT_THAT(evicting.after, ElementsAre(Gate::step_end(StepId(1))));
  leader.end(evicting);
  EXPECT_EQ(leader->drain(100), 0U);
  leader.expect_events_agree();
}

TEST(TierManager, DiskMayBeLeftOut) {
  Leader leader({.host_blocks = 4, .disk_blocks = 0});
  EXPECT_FALSE(leader->has_tier(TierId::kG3));
  const auto keys = test_chain(1, 4);
  leader.keep(keys);
  leader.store(test_chain(100, 2), ids({5, 6}));
  const CopyOp store = leader.take_one();
  EXPECT_THAT(store.tags, IsEmpty());
  EXPECT_EQ(store.after.size(), 1U);
  leader.end(store);
  EXPECT_EQ(leader.num_findable(keys), 2U);
  EXPECT_EQ(leader->drain(100), 0U);
  EXPECT_EQ(leader->metrics().evicted_unsaved.value(), 0U);
  leader.expect_events_agree();
}

TEST(TierManager, WithNothingBelowTheEngineNothingIsStoredOrFound) {
  Leader leader({.host_blocks = 0, .disk_blocks = 0});
  const auto keys = test_chain(1, 4);
  const StoreReceipt receipt = leader.store(keys, ids_from(0, 4));
  EXPECT_EQ(receipt.dropped, 4U);
  EXPECT_EQ(receipt.accepted + receipt.present, 0U);
  EXPECT_THAT(leader->take_ops(), IsEmpty());
  EXPECT_TRUE(leader.find(keys, 1).empty());
  EXPECT_EQ(leader->drain(100), 0U);
  EXPECT_EQ(leader->resident_blocks(TierId::kG2), 0U);
  EXPECT_TRUE(leader->idle());
}

TEST(TierManager, ALoadWaitsForWhatStillReadsOrWritesItsDestinations) {
  Leader leader({.timeout = milliseconds(10)});
  const auto keys = test_chain(1, 2);
  leader.keep(keys);
  leader.store(test_chain(100, 2), ids({20, 21}), Gate::step_end(StepId(2)));
  const CopyOp reader = leader.take_one();
  leader.load(leader.find(keys), {ids({21, 22})});
  const CopyOp first = leader.take_one();
  EXPECT_THAT(first.after,
              UnorderedElementsAre(Gate::step_end(StepId(0)), Gate::op_done(reader.op)));
  leader.clock.advance(milliseconds(10));
  leader->tick();  // the engine has its blocks back, but the copy may go on
  leader.load(leader.find(keys), {ids({22, 23})});
  const CopyOp second = leader.take_one();
  EXPECT_THAT(second.after,
              UnorderedElementsAre(Gate::step_end(StepId(0)), Gate::op_done(first.op)));
}

TEST(TierManager, AStagedLoadWaitsForWhatReadsItsDestinationsBySoFar) {
  Leader leader({.host_blocks = 2});
  const auto keys = test_chain(1, 1);
  leader.keep_on_disk(keys, 2);
  leader.load(leader.find(keys), {ids({20})});
  const auto staging = leader.take(2);
  leader.store(test_chain(100, 1), ids({20}), Gate::step_end(StepId(2)));
  const auto storing = leader.take(2);
  for (const CopyOp& op : staging) leader.end(op);
  const CopyOp load = leader.take_one();
  EXPECT_THAT(load.after, ::testing::Contains(Gate::op_done(storing[1].op)));
}

TEST(TierManager, AFailedLoadEndsAtTheFirstPositionThatIsMissing) {
  Leader leader({.num_ranks = 2});
  const auto keys = test_chain(1, 6);
  leader.keep(keys);
  leader.load(leader.find(keys, 1), {ids_from(20, 5)});
  const CopyOp op = leader.take_one();
  leader.answer(op, 0, Outcome::kFailed, {3, 4});
  leader.answer(op, 1, Outcome::kFailed, {2});
  const LoadOutcome outcome = leader.take_outcome();
  ASSERT_FALSE(outcome.status);
  EXPECT_EQ(outcome.status.error().code(), ErrorCode::kIo);
  EXPECT_EQ(outcome.num_blocks, 3U);         // position 1 + 2 of the operation
  EXPECT_EQ(leader.num_findable(keys), 6U);  // host memory is not at fault
}

TEST(TierManager, AFailedLoadIsAllOrNothingWithALastWindowGroup) {
  Leader leader(
      {.groups = {{kGroup, Retention::full_prefix()}, {kWindowGroup, Retention::last_window(2)}}});
  const auto full = test_chain(1, 6, kGroup);
  const auto window = test_chain(1, 6, kWindowGroup);
  leader.keep(full);
  leader.keep(window);
  const std::vector<GroupKeys> asked = {{kGroup, full}, {kWindowGroup, window}};
  Match match = leader->find(asked, 1);
  ASSERT_EQ(match.num_blocks, 6U);
  ASSERT_EQ(match.groups.size(), 2U);
  EXPECT_EQ(match.groups[0].blocks.size(), 5U);
  EXPECT_EQ(match.groups[1].first, 4U);
  EXPECT_EQ(match.groups[1].blocks.size(), 2U);
  EXPECT_EQ(match.groups[1].parent, window[3]);
  leader.load(std::move(match), {ids_from(20, 5), ids({20, 21})});
  const auto ops = leader.take(2);
  EXPECT_EQ(ops[1].dst, engine(kWindowGroup));
  leader.end(ops[1]);
  leader.end(ops[0], Outcome::kFailed, {4});
  const LoadOutcome outcome = leader.take_outcome();
  EXPECT_FALSE(outcome.status);
  EXPECT_EQ(outcome.num_blocks, 1U);
}

TEST(TierManager, ABadDiskCopyIsNotOfferedAgain) {
  Leader leader({.host_blocks = 4, .num_ranks = 2});
  const auto keys = test_chain(1, 3);
  leader.keep_on_disk(keys, 4);
  const uint64_t on_disk = leader->resident_blocks(TierId::kG3);
  leader.load(leader.find(keys), {ids({20, 21, 22})});
  const auto ops = leader.take(2);
  leader.end(ops[0]);
  const uint64_t saved = ops[0].to.size();
  leader.answer(ops[1], 0);
  leader.answer(ops[1], 1, Outcome::kFailed, {1});
  const CopyOp rest = leader.take_one();  // the blocks that did arrive go on
  EXPECT_EQ(rest.to, ids({20, 22}));
  leader.end(rest);
  const LoadOutcome outcome = leader.take_outcome();
  EXPECT_EQ(outcome.status.error().code(), ErrorCode::kIo);
  EXPECT_EQ(outcome.num_blocks, 1U);
  EXPECT_EQ(leader.num_findable(keys), 1U);
  EXPECT_EQ(leader.num_findable(std::span(keys).subspan(1, 1)), 0U);
  EXPECT_EQ(leader->resident_blocks(TierId::kG3), on_disk + saved - 1);
  EXPECT_EQ(leader->metrics().corrupt_or_unreadable.value(), 1U);
  leader.expect_events_agree();

  // The slot is free again: the block can be stored anew.
  leader.keep(std::span(keys).subspan(1, 1));
  EXPECT_EQ(leader.num_findable(keys), 3U);
}

TEST(TierManager, ACancelledReadSaysNothingAboutTheDiskCopy) {
  Leader leader({.host_blocks = 0});
  const auto keys = test_chain(1, 3);
  leader.keep(keys);
  leader.load(leader.find(keys), {ids({20, 21, 22})});
  leader.end(leader.take_one(), Outcome::kCancelled);
  EXPECT_EQ(leader.take_outcome().num_blocks, 0U);
  EXPECT_EQ(leader.num_findable(keys), 3U);
  EXPECT_EQ(leader->metrics().corrupt_or_unreadable.value(), 0U);
}

TEST(TierManager, ABadDiskCopyThatSomebodyElsePinsIsGivenUpByTheLast) {
  Leader leader({.host_blocks = 0});
  const auto keys = test_chain(1, 2);
  leader.keep(keys);
  leader.load(leader.find(keys), {ids({20, 21})});
  leader.load(leader.find(keys), {ids({22, 23})});
  const auto ops = leader.take(2);
  leader.end(ops[0], Outcome::kFailed, {1});
  leader.end(ops[1], Outcome::kFailed, {1});
  EXPECT_EQ(leader.num_findable(keys), 1U);
  EXPECT_EQ(leader->resident_blocks(TierId::kG3), 1U);
  EXPECT_EQ(leader->metrics().corrupt_or_unreadable.value(), 1U);
  leader.expect_events_agree();
}

TEST(TierManager, TwoLoadsOfTheSameDiskBlockLeaveOneCopy) {
  Leader leader({.host_blocks = 4});
  const auto keys = test_chain(1, 1);
  leader.keep_on_disk(keys, 4);
  leader.load(leader.find(keys), {ids({20})});
  leader.load(leader.find(keys), {ids({21})});
  leader.end_all();
  std::vector<LoadOutcome> outcomes = leader->take_loads();
  ASSERT_EQ(outcomes.size(), 2U);
  for (const LoadOutcome& outcome : outcomes) EXPECT_EQ(outcome.num_blocks, 1U);
  EXPECT_TRUE(leader->idle());
  leader.expect_events_agree();
}

TEST(TierManager, AMatchPinsWhatItFound) {
  Leader leader({.host_blocks = 4, .disk_blocks = 0});
  const auto keys = test_chain(1, 4);
  leader.keep(keys);
  {
    const Match match = leader.find(keys);
    EXPECT_EQ(leader.store(test_chain(100, 4), ids_from(4, 4)).accepted, 0U);
    const Match again = leader.find(keys);
    EXPECT_EQ(again.num_blocks, 4U);
  }
  EXPECT_EQ(leader.store(test_chain(100, 4), ids_from(4, 4)).accepted, 4U);
}

TEST(TierManager, ALoadPinsItsSourcesUntilItHasEnded) {
  Leader leader({.host_blocks = 2, .disk_blocks = 0, .num_ranks = 2});
  const auto keys = test_chain(1, 2);
  leader.keep(keys);
  leader.load(leader.find(keys), {ids({20, 21})});
  const CopyOp op = leader.take_one();
  leader.answer(op, 0);
  EXPECT_EQ(leader.store(test_chain(100, 2), ids({8, 9})).accepted, 0U);
  leader.answer(op, 1);
  EXPECT_EQ(leader.store(test_chain(100, 2), ids({8, 9})).accepted, 2U);
}

// --- deadlines
// --------------------------------------------------------------------------------------

TEST(TierManager, ALoadThatPassesItsDeadlineEndsOnceAndItsCopiesAreCancelled) {
  Leader leader({.host_blocks = 2, .disk_blocks = 0, .timeout = milliseconds(100)});
  const auto keys = test_chain(1, 2);
  leader.keep(keys);
  EXPECT_EQ(leader->next_deadline(), kNever);
  const LoadId load = leader.load(leader.find(keys, 1), {ids({20})});
  const CopyOp op = leader.take_one();
  EXPECT_EQ(op.timeout, milliseconds(100));
  EXPECT_EQ(leader->next_deadline(), leader.clock.now() + milliseconds(100));

  leader.clock.advance(milliseconds(99));
  leader->tick();
  EXPECT_THAT(leader->take_loads(), IsEmpty());
  leader.clock.advance(milliseconds(1));
  leader->tick();
  leader->tick();
  const LoadOutcome outcome = leader.take_outcome();
  EXPECT_EQ(outcome.load, load);
  EXPECT_EQ(outcome.status.error().code(), ErrorCode::kTimeout);
  EXPECT_EQ(outcome.num_blocks, 1U);
  EXPECT_THAT(leader->take_cancels(), ElementsAre(op.op));
  EXPECT_THAT(leader->take_cancels(), IsEmpty());
  EXPECT_EQ(leader->next_deadline(), kNever);
  EXPECT_EQ(leader->metrics().loads_timed_out.value(), 1U);

  // The copy may go on: its blocks are held, on both sides.
  EXPECT_FALSE(leader->idle());
  EXPECT_THAT(leader->touching(kGroup, ids({20})), ElementsAre(op.op));
  EXPECT_EQ(leader.store(test_chain(100, 2), ids({8, 9})).accepted, 1U);
  leader.end_all();
  leader.end(op);
  EXPECT_TRUE(leader->idle());
  EXPECT_THAT(leader->touching(kGroup, ids({20})), IsEmpty());
  EXPECT_THAT(leader->take_loads(), IsEmpty());
  EXPECT_THAT(leader.log.messages(LogLevel::kWarning), IsEmpty());
}

TEST(TierManager, AStageThatEndsAfterTheDeadlineIsKeptButGoesNoFurther) {
  Leader leader({.host_blocks = 2, .timeout = milliseconds(100)});
  const auto keys = test_chain(1, 2);
  leader.keep_on_disk(keys, 2);
  leader.load(leader.find(keys), {ids({20, 21})});
  const auto ops = leader.take(2);
  leader.end(ops[0]);
  leader.clock.advance(milliseconds(100));
  leader->tick();
  EXPECT_EQ(leader.take_outcome().status.error().code(), ErrorCode::kTimeout);
  EXPECT_THAT(leader->take_cancels(), ElementsAre(ops[1].op));
  leader.end(ops[1]);
  EXPECT_THAT(leader->take_ops(), IsEmpty());
  EXPECT_THAT(leader->take_loads(), IsEmpty());
  EXPECT_TRUE(leader->idle());
  EXPECT_EQ(leader.find(keys).groups.front().blocks.front().tier(), TierId::kG2);
  leader.expect_events_agree();
}

TEST(TierManager, DeadlinesPassInTheOrderOfTheLoads) {
  Leader leader({.timeout = milliseconds(100)});
  const auto keys = test_chain(1, 1);
  leader.keep(keys);
  std::vector<LoadId> loads;
  for (uint32_t i = 0; i < 20; ++i) loads.push_back(leader.load(leader.find(keys), {ids({i})}));
  leader.clock.advance(milliseconds(100));
  leader->tick();
  std::vector<LoadId> ended;
  for (const LoadOutcome& outcome : leader->take_loads()) ended.push_back(outcome.load);
  EXPECT_EQ(ended, loads);
}

TEST(TierManager, WithoutATimeoutNothingHasADeadline) {
  Leader leader;
  const auto keys = test_chain(1, 1);
  leader.keep(keys);
  leader.load(leader.find(keys), {ids({20})});
  EXPECT_EQ(leader->next_deadline(), kNever);
  EXPECT_EQ(leader.take_one().timeout.count(), 0);
  leader.clock.advance(std::chrono::hours(1000));
  leader->tick();
  EXPECT_THAT(leader->take_loads(), IsEmpty());
}

// --- results that should not be, and ranks that are not
// ----------------------------------------------

TEST(TierManager, UnknownAndSecondResultsAreIgnoredWithAWarning) {
  Leader leader({.num_ranks = 2});
  const auto keys = test_chain(1, 2);
  leader.store(keys, ids({0, 1}));
  const CopyOp op = leader.take_one();
  leader.answer(op, 0);
  leader.answer(op, 0);                    // twice
  leader.answer(op, 0, Outcome::kFailed);  // twice, and otherwise
  leader.answer(op, 2);                    // no such rank
  CopyOp unknown = op;
  unknown.op = OpId(4711);
  leader.answer(unknown, 0);
  EXPECT_EQ(leader.log.messages(LogLevel::kWarning).size(), 4U);
  EXPECT_EQ(leader.num_findable(keys), 0U);
  leader.answer(op, 1);
  EXPECT_EQ(leader.num_findable(keys), 2U);
  leader.answer(op, 1);  // too late
  EXPECT_EQ(leader.log.messages(LogLevel::kWarning).size(), 5U);
  EXPECT_EQ(leader.route(TierId::kG1, TierId::kG2).bytes(), 2 * 2 * kBlockBytes);
}

// --- places that shrink
// -----------------------------------------------------------------------------

ShrunkPlace host_of(uint16_t rank, uint32_t num_blocks, GroupId group = kGroup) {
  return {RankId(rank), {TierId::kG2, group}, num_blocks};
}

/// Slots of host memory that an operation names.
std::vector<uint32_t> host_slots(const CopyOp& op) {
  std::vector<uint32_t> slots;
  for (const BlockId block : op.dst.tier == TierId::kG2 ? op.to : op.from) {
    slots.push_back(block.value());
  }
  return slots;
}

TEST(TierManager, APlaceThatShrankGoesOnWithTheRestAndLosesNothing) {
  Leader leader({.host_blocks = 8, .disk_blocks = 0, .num_ranks = 2});
  const auto kept = test_chain(1, 3);  // in slots 0, 1, 2
  leader.keep(kept);
  leader->on_place_shrunk(host_of(1, 5));
  EXPECT_EQ(leader->blocks_per_group(TierId::kG2), 5U);
  EXPECT_EQ(leader.num_findable(kept), 3U);
  EXPECT_THAT(leader.log.messages(LogLevel::kWarning),
              ElementsAre(HasSubstr("layer group 0 goes on with 5 of 8 blocks in G2 on every rank, "
                                    "as rank 1 has no more: its log says why. Stored blocks that "
                                    "are lost: 0")));
  // However much is stored from now on, no other slot is asked for, and what is new is kept.
  for (uint64_t round = 1; round < 20; ++round) {
    const auto keys = test_chain(100 * round, 4);
    EXPECT_EQ(leader.store(keys, ids_from(0, 4)).accepted, 4U);
    const CopyOp store = leader.take_one();
    EXPECT_THAT(host_slots(store), ::testing::Each(::testing::Lt(5U)));
    leader.end(store);
    EXPECT_EQ(leader.num_findable(keys), 4U);
  }
  leader->show_pools();
  EXPECT_EQ(leader->resident_blocks(TierId::kG2), 5U);
  leader.expect_events_agree();
}

TEST(TierManager, ABlockOnItsWayIntoWhatAPlaceLostIsGivenUpAndItsSlotNotUsedAgain) {
  Leader leader({.host_blocks = 4, .disk_blocks = 0, .num_ranks = 2});
  const auto keys = test_chain(1, 2);
  leader.keep(keys);
  const auto late = test_chain(50, 2);
  leader.store(late, ids({8, 9}));  // slots 2 and 3
  const CopyOp store = leader.take_one();
  leader.answer(store, 0);
  leader->on_place_shrunk(host_of(1, 3));
  leader.answer(store, 1, Outcome::kCancelled);
  EXPECT_EQ(leader.num_findable(late), 0U);
  EXPECT_TRUE(leader->idle());
  for (int round = 0; round < 3; ++round) {
    leader.store(late, ids({8, 9}));
    const CopyOp again = leader.take_one();
    EXPECT_THAT(host_slots(again), ::testing::Each(::testing::Lt(3U)));
    leader.end(again);
    EXPECT_EQ(leader.num_findable(late), 2U);
    leader->forget();
  }
  leader.expect_events_agree();
}

TEST(TierManager, WhatARankDoesNotHaveIsNeverServedWhateverItAnswers) {
  Leader leader({.host_blocks = 4, .disk_blocks = 0});
  const auto keys = test_chain(1, 4);
  leader.store(keys, ids_from(0, 4));
  const CopyOp store = leader.take_one();
  leader->on_place_shrunk(host_of(0, 2));
  leader.end(store);
  EXPECT_EQ(leader.num_findable(keys), 2U);
  EXPECT_EQ(leader->resident_blocks(TierId::kG2), 2U);
  // Nor what it has answered for before.
  leader->on_place_shrunk(host_of(0, 1));
  EXPECT_EQ(leader.num_findable(keys), 1U);
  EXPECT_THAT(leader.log.messages(LogLevel::kWarning),
              ::testing::Contains(HasSubstr("that are lost: 1")));
  leader.expect_events_agree();
}

TEST(TierManager, OfSeveralRanksTheOneWithTheFewestBlocksCounts) {
  Leader leader({.host_blocks = 8, .num_ranks = 3, .max_open_store_blocks = 0});
  EXPECT_EQ(leader->metrics().store_budget_blocks.value(), 8);
  leader->on_place_shrunk(host_of(0, 6));
  leader->on_place_shrunk(host_of(2, 3));
  leader->on_place_shrunk(host_of(1, 5));
  leader->on_place_shrunk(host_of(2, 3));
  EXPECT_EQ(leader->blocks_per_group(TierId::kG2), 3U);
  EXPECT_EQ(leader->blocks_per_group(TierId::kG3), 16U);
  EXPECT_EQ(leader->blocks_per_group(TierId::kG4), 0U);
  // Of what was asked for, whatever there was in between.
  EXPECT_THAT(leader.log.messages(LogLevel::kWarning),
              ElementsAre(HasSubstr("goes on with 6 of 8 blocks in G2 on every rank, as rank 0 "),
                          HasSubstr("goes on with 3 of 8 blocks in G2 on every rank, as rank 2 ")));
  // The budget is what the nearest tier holds.
  EXPECT_EQ(leader->metrics().store_budget_blocks.value(), 3);
  EXPECT_EQ(leader.store(test_chain(1, 5), ids_from(0, 5)).accepted, 3U);
  EXPECT_EQ(leader->metrics().store_dropped_backlog.value(), 2U);
}

TEST(TierManager, EachLayerGroupHasAPlaceOfItsOwnThatMayShrink) {
  Leader leader(
      {.host_blocks = 8,
       .groups = {{kGroup, Retention::full_prefix()}, {kWindowGroup, Retention::last_window(2)}}});
  leader->on_place_shrunk(host_of(0, 5, kWindowGroup));
  EXPECT_EQ(leader->blocks_per_group(TierId::kG2), 5U);
  EXPECT_EQ(leader.store(test_chain(1, 8), ids_from(0, 8)).accepted, 8U);
  EXPECT_EQ(leader.store(test_chain(1, 8, kWindowGroup), ids_from(0, 8)).accepted, 5U);
}

TEST(TierManager, WhereHostMemoryHasShrunkToNothingLoadsComeStraightFromDisk) {
  Leader leader({.host_blocks = 4, .disk_blocks = 8});
  const auto keys = test_chain(1, 3);
  leader.keep_on_disk(keys, 4);
  leader->on_place_shrunk(host_of(0, 0));
  EXPECT_EQ(leader->blocks_per_group(TierId::kG2), 0U);
  EXPECT_EQ(leader->resident_blocks(TierId::kG2), 0U);
  leader.expect_events_agree();
  leader.load(leader.find(keys), {ids_from(20, 3)});
  const CopyOp load = leader.take_one();
  EXPECT_EQ(load.src.tier, TierId::kG3);
  EXPECT_EQ(load.dst.tier, TierId::kG1);
  leader.end(load);
  EXPECT_EQ(leader.take_outcome().num_blocks, 3U);
  EXPECT_EQ(leader.store(test_chain(100, 2), ids({0, 1})).dropped, 2U);
}

TEST(TierManager, APlaceThatIsUnknownIsIgnoredWithAWarning) {
  Leader leader({.host_blocks = 8, .disk_blocks = 0, .num_ranks = 2});
  leader->on_place_shrunk(host_of(2, 1));
  leader->on_place_shrunk(host_of(0, 1, kWindowGroup));
  leader->on_place_shrunk({RankId(0), {TierId::kG1, kGroup}, 1});
  leader->on_place_shrunk({RankId(0), {TierId::kG3, kGroup}, 1});
  leader->on_place_shrunk({RankId(0), {TierId::kG4, kGroup}, 1});
  EXPECT_EQ(leader.log.messages(LogLevel::kWarning).size(), 5U);
  EXPECT_EQ(leader->blocks_per_group(TierId::kG2), 8U);
}

TEST(TierManager, ALostRankTakesEverythingWithIt) {
  Leader leader({.num_ranks = 2});
  const auto keys = test_chain(1, 4);
  leader.keep(keys);
  leader.load(leader.find(keys), {ids_from(20, 4)});
  const CopyOp load = leader.take_one();
  leader.store(test_chain(100, 2), ids({8, 9}));
  const CopyOp store = leader.take_one();
  leader.answer(store, 0);  // rank 1 still owes both

  leader->on_rank_lost(RankId(1));
  EXPECT_EQ(leader.num_findable(keys), 0U);
  EXPECT_EQ(leader.num_findable(test_chain(100, 2)), 0U);
  EXPECT_THAT(leader->take_loads(), IsEmpty());  // rank 0 may still write the destinations
  EXPECT_THAT(leader->touching(kGroup, ids({20})), ElementsAre(load.op));
  leader.answer(load, 0);
  const LoadOutcome outcome = leader.take_outcome();
  EXPECT_EQ(outcome.status.error().code(), ErrorCode::kUnavailable);
  EXPECT_EQ(outcome.num_blocks, 0U);
  EXPECT_TRUE(leader->idle());

  // From now on nothing is stored or loaded.
  EXPECT_EQ(leader.store(keys, ids_from(0, 4)).dropped, 4U);
  EXPECT_EQ(leader->drain(100), 0U);
  EXPECT_EQ(leader->load(Match{}, {}, Gate{}).error().code(), ErrorCode::kUnavailable);
  EXPECT_THAT(leader->take_ops(), IsEmpty());
  leader->tick();
  EXPECT_EQ(leader->resident_blocks(TierId::kG2), 0U);
  EXPECT_EQ(leader->resident_blocks(TierId::kG3), 0U);
  leader.expect_events_agree();
}

TEST(TierManager, ALoadThatALostRankHadAnsweredHasFailedAllTheSame) {
  Leader leader({.num_ranks = 2});
  const auto keys = test_chain(1, 2);
  leader.keep(keys);
  leader.keep(test_chain(100, 2));
  leader.load(leader.find(keys), {ids({20, 21})});
  const CopyOp load = leader.take_one();
  leader.answer(load, 1);
  leader->on_rank_lost(RankId(1));
  EXPECT_EQ(leader->resident_blocks(TierId::kG2), 2U);  // those that the load holds
  leader.answer(load, 0);
  const LoadOutcome outcome = leader.take_outcome();
  EXPECT_FALSE(outcome.status);
  EXPECT_EQ(outcome.num_blocks, 0U);
}

TEST(TierManager, WhatIsPinnedWhenARankIsLostGoesLater) {
  Leader leader({.num_ranks = 2});
  const auto keys = test_chain(1, 4);
  leader.keep(keys);
  {
    const Match pin = leader.find(keys);
    leader->on_rank_lost(RankId(0));
    EXPECT_EQ(leader->resident_blocks(TierId::kG2), 4U);
    leader->tick();
    EXPECT_EQ(leader->resident_blocks(TierId::kG2), 4U);
  }
  leader->tick();
  EXPECT_EQ(leader->resident_blocks(TierId::kG2), 0U);
  leader.expect_events_agree();
}

TEST(TierManager, TheLastRankToBeLostEndsWhatIsOpen) {
  Leader leader({.num_ranks = 2, .timeout = milliseconds(1)});
  const auto keys = test_chain(1, 2);
  leader.keep(keys);
  leader.load(leader.find(keys), {ids({20, 21})});
  (void)leader.take_one();
  leader->on_rank_lost(RankId(0));
  leader->on_rank_lost(RankId(0));
  EXPECT_FALSE(leader->idle());
  leader->on_rank_lost(RankId(1));
  EXPECT_TRUE(leader->idle());
  EXPECT_EQ(leader.take_outcome().status.error().code(), ErrorCode::kUnavailable);
  EXPECT_THROW(leader->on_rank_lost(RankId(2)), ContractViolation);
}

TEST(TierManager, BlocksThatALostRankTookAreCountedAsLostAndNotAsEvicted) {
  Leader leader({.host_blocks = 4, .disk_blocks = 8, .num_ranks = 2});
  const auto evictions = [&](TierId tier) { return leader->metrics().evictions(tier); };
  const auto lost = [&](TierId tier) {
    return leader->metrics().lost[static_cast<size_t>(tier)]->value();
  };
  leader.keep(test_chain(1, 3));
  leader.keep(test_chain(50, 4));                 // 1, 2, 3 are on disk alone
  leader.store(test_chain(100, 2), ids({8, 9}));  // pushes two out, which are being saved
  const std::vector<CopyOp> open = leader.take(2);
  leader.answer(open[1], 0, Outcome::kFailed, {1});  // one of the two is not stored anyway
  EXPECT_EQ(evictions(TierId::kG2), 5U);
  leader->on_rank_lost(RankId(1));
  EXPECT_EQ(lost(TierId::kG2), 2U + 1U);  // what was there, and a store under way
  EXPECT_EQ(lost(TierId::kG3), 3U + 2U);
  leader.answer(open[0], 0);
  leader->on_rank_lost(RankId(0));
  leader->tick();
  EXPECT_TRUE(leader->idle());
  EXPECT_EQ(lost(TierId::kG2), 3U);
  EXPECT_EQ(lost(TierId::kG3), 5U);
  EXPECT_EQ(evictions(TierId::kG2), 5U);
  EXPECT_EQ(evictions(TierId::kG3), 0U);
  leader.expect_events_agree();
}

// --- drain
// ------------------------------------------------------------------------------------------

TEST(TierManager, DrainWritesEveryDirtyBlockOnceInBoundedBatches) {
  Leader leader({.host_blocks = 10, .disk_blocks = 32});
  const auto clean = test_chain(1, 2);
  leader.keep_on_disk(clean, 10);
  leader.load(leader.find(clean), {ids({20, 21})});
  leader.end_all();
  (void)leader.take_outcome();
  const uint64_t before = leader.route(TierId::kG2, TierId::kG3).blocks();

  uint32_t total = 0;
  std::vector<uint32_t> batches;
  std::set<BlockId> written;
  for (;;) {
    const uint32_t started = leader->drain(3);
    if (started == 0) break;
    batches.push_back(started);
    total += started;
    const CopyOp op = leader.take_one();
    EXPECT_EQ(op.src, host());
    EXPECT_EQ(op.dst, disk());
    EXPECT_EQ(op.from.size(), started);
    for (const BlockId block : op.from) EXPECT_TRUE(written.insert(block).second);
    leader.end(op);
  }
  EXPECT_THAT(batches, ElementsAre(3, 3, 2));  // 8 of the filler; the two promoted ones are clean
  EXPECT_EQ(leader.route(TierId::kG2, TierId::kG3).blocks() - before, total);
  EXPECT_EQ(leader->metrics().drained_blocks.value(), total);
  EXPECT_EQ(leader->drain(3), 0U);
  EXPECT_EQ(leader->resident_blocks(TierId::kG2), 10U);  // all still there
  leader.expect_events_agree();

  // What is stored afterwards is found by the next drain.
  leader.keep(test_chain(500, 1));
  EXPECT_EQ(leader->drain(3), 1U);
  leader.end_all();
  EXPECT_EQ(leader->drain(3), 0U);
}

TEST(TierManager, DrainingTakesEveryGroup) {
  Leader leader(
      {.groups = {{kGroup, Retention::full_prefix()}, {kWindowGroup, Retention::last_window(2)}}});
  leader.keep(test_chain(1, 3, kGroup));
  leader.keep(test_chain(1, 3, kWindowGroup));
  EXPECT_EQ(leader->drain(4), 4U);
  const auto first = leader.take(2);
  EXPECT_EQ(first[0].src, host(kGroup));
  EXPECT_EQ(first[0].from.size(), 3U);
  EXPECT_EQ(first[1].src, host(kWindowGroup));
  EXPECT_EQ(first[1].from.size(), 1U);
  EXPECT_EQ(leader->drain(4), 2U);
  for (const CopyOp& op : first) leader.end(op);
  leader.end_all();
  EXPECT_EQ(leader->resident_blocks(TierId::kG3), 6U);
}

TEST(TierManager, ADrainedBlockThatCouldNotBeWrittenIsStillInHostMemory) {
  Leader leader;
  const auto keys = test_chain(1, 2);
  leader.keep(keys);
  EXPECT_EQ(leader->drain(10), 2U);
  leader.end(leader.take_one(), Outcome::kFailed);
  EXPECT_EQ(leader->drain(10), 0U);  // not again in the same pass
  EXPECT_EQ(leader.num_findable(keys), 2U);
  EXPECT_EQ(leader->resident_blocks(TierId::kG3), 0U);
  EXPECT_EQ(leader->drain(10), 2U);  // but in the next one
}

TEST(TierManager, ADrainedChainWithoutRoomOnDiskKeepsItsBeginning) {
  Leader leader({.host_blocks = 4, .disk_blocks = 2});
  const auto keys = test_chain(1, 4);
  leader.keep(keys);
  for (uint32_t started = leader->drain(2); started > 0; started = leader->drain(2))
    leader.end_all();
  EXPECT_EQ(leader->resident_blocks(TierId::kG3), 2U);
  const auto on_disk = leader.events.events({.type = KvEventType::kMigrated, .tier = TierId::kG3});
  ASSERT_EQ(on_disk.size(), 2U);
  EXPECT_EQ(on_disk[0].key, keys[1]);
  EXPECT_EQ(on_disk[1].key, keys[0]);
  leader.expect_events_agree();
}

TEST(TierManager, ADrainOfManyGroupsIntoASmallDiskWritesEachBlockOnceAtMost) {
  for (const uint16_t num_groups : {uint16_t{1}, uint16_t{2}, uint16_t{3}}) {
    constexpr uint32_t kHost = 100;
    constexpr uint32_t kDisk = 10;
    Shape shape{.engine_blocks = kHost, .host_blocks = kHost, .disk_blocks = kDisk, .groups = {}};
    for (uint16_t group = 0; group < num_groups; ++group) {
      shape.groups.push_back({GroupId(group), Retention::full_prefix()});
    }
    Leader leader(shape);
    for (const GroupSpec& group : shape.groups) leader.keep(test_chain(1, kHost, group.id));
    std::set<std::pair<GroupId, BlockId>> written;
    uint32_t total = 0;
    for (uint32_t started = leader->drain(7); started > 0; started = leader->drain(7)) {
      total += started;
      ASSERT_LE(total, num_groups * kDisk);
      uint32_t in_operations = 0;
      for (const CopyOp& op : leader->take_ops()) {
        in_operations += static_cast<uint32_t>(op.from.size());
        for (const BlockId block : op.from) {
          EXPECT_TRUE(written.emplace(op.src.group, block).second);
        }
        leader.end(op);
      }
      EXPECT_EQ(in_operations, started);
    }
    EXPECT_EQ(total, num_groups * kDisk);
    EXPECT_EQ(leader->metrics().drained_blocks.value(), total);
    EXPECT_EQ(leader->metrics().evictions(TierId::kG3), 0U);  // none pushed another one out
    EXPECT_EQ(leader->resident_blocks(TierId::kG3), total);
    // The blocks that host memory would have kept longest: the beginning of each chain.
    const auto less = [](const KvEvent& a, const KvEvent& b) {
      return std::pair(a.key.group, a.block_id) < std::pair(b.key.group, b.block_id);
    };
    auto events = leader.events.events({.type = KvEventType::kMigrated, .tier = TierId::kG3});
    std::sort(events.begin(), events.end(), less);
    ASSERT_EQ(events.size(), total);
    for (uint16_t group = 0; group < num_groups; ++group) {
      for (uint32_t i = 0; i < kDisk; ++i) {
        // Deepest first, and the slots of an empty disk are taken in order.
        EXPECT_EQ(events[group * kDisk + i].key, test_key(kDisk - i, GroupId(group)));
      }
    }
    leader.expect_events_agree();
  }
}

TEST(TierManager, ADrainListsEachGroupOnceThoughOneEndsBeforeTheOther) {
  // The disk of the first group is as large as its host memory, so that the drain is done with it
  // while the other one still has much to write; what came since is for the next drain.
  Leader leader(
      {.engine_blocks = 64,
       .host_blocks = 40,
       .disk_blocks = 40,
       .groups = {{kGroup, Retention::full_prefix()}, {kWindowGroup, Retention::last_window(2)}}});
  leader.keep(test_chain(1, 4, kGroup));
  leader.keep(test_chain(1, 40, kWindowGroup));
  EXPECT_EQ(leader->drain(8), 8U);
  leader.end_all();
  leader.keep(test_chain(100, 4, kGroup));
  uint32_t total = 8;
  for (uint32_t started = leader->drain(8); started > 0; started = leader->drain(8)) {
    for (const CopyOp& op : leader->take_ops()) {
      EXPECT_EQ(op.src, host(kWindowGroup));
      leader.end(op);
    }
    total += started;
  }
  EXPECT_EQ(total, 44U);
  EXPECT_EQ(leader->drain(8), 4U);
}

TEST(TierManager, WhatADrainHasNoRoomForNowItWritesLater) {
  Leader leader({.host_blocks = 4, .disk_blocks = 4});
  leader.keep(test_chain(50, 4));
  const auto keys = test_chain(1, 4);
  leader.keep(keys);  // 50 … 53 are on disk alone
  std::optional<Match> pin = leader.find(test_chain(50, 2));
  EXPECT_EQ(leader->drain(4), 2U);
  leader.end(leader.take_one());
  pin.reset();
  EXPECT_EQ(leader->drain(4), 2U);
  leader.end(leader.take_one());
  EXPECT_EQ(leader->drain(4), 0U);
  EXPECT_EQ(leader->metrics().drained_blocks.value(), 4U);
  leader.expect_events_agree();

  // All four made it: they are there without host memory.
  leader.keep(test_chain(50, 4));
  EXPECT_EQ(leader.num_findable(keys), 4U);
}

TEST(TierManager, ADrainEndsWhenNothingHasRoom) {
  Leader leader({.host_blocks = 4, .disk_blocks = 4});
  leader.keep(test_chain(50, 4));
  leader.keep(test_chain(1, 4));
  {
    const Match pin = leader.find(test_chain(50, 4));
    EXPECT_EQ(leader->drain(4), 0U);
  }
  EXPECT_EQ(leader->drain(0), 0U);
  EXPECT_EQ(leader->drain(4), 4U);
}

TEST(TierManager, ADrainKeepsTheDiskCopyOfWhatHostMemoryHolds) {
  Leader leader({.host_blocks = 4, .disk_blocks = 4});
  const auto keep = [&](std::initializer_list<uint64_t> numbers) {
    for (const uint64_t number : numbers) leader.keep(test_chain(number, 1));
  };
  keep({1, 10, 20, 30, 40});  // 1 is on disk alone
  const auto promoted = test_chain(1, 1);
  leader.load(leader.find(promoted), {ids({20})});
  leader.end_all();
  ASSERT_TRUE(leader.take_outcome().status);
  keep({50, 60});  // 1 is in host memory and on disk, where it is older than 20 and 30
  while (leader->drain(1) > 0) leader.end_all();
  EXPECT_EQ(leader->metrics().drained_blocks.value(), 3U);
  // All four are on disk now, so that host memory gives them up without a write.
  const uint64_t written = leader.route(TierId::kG2, TierId::kG3).blocks();
  keep({70, 80, 90, 100});
  EXPECT_EQ(leader.route(TierId::kG2, TierId::kG3).blocks(), written);
  for (const uint64_t number : {uint64_t{1}, uint64_t{40}, uint64_t{50}, uint64_t{60}}) {
    EXPECT_EQ(leader.num_findable(test_chain(number, 1)), 1U) << number;
  }
}

TEST(TierManager, DrainedBlocksAreThoseThatWereWritten) {
  Leader leader({.num_ranks = 2});
  leader.keep(test_chain(1, 6));
  EXPECT_EQ(leader->drain(3), 3U);
  const CopyOp first = leader.take_one();
  EXPECT_EQ(leader->metrics().drained_blocks.value(), 0U);
  leader.answer(first, 0);
  leader.answer(first, 1, Outcome::kFailed, {1});
  EXPECT_EQ(leader->metrics().drained_blocks.value(), 2U);
  EXPECT_EQ(leader->drain(3), 3U);
  leader.end(leader.take_one(), Outcome::kCancelled);
  EXPECT_EQ(leader->metrics().drained_blocks.value(), 2U);
  EXPECT_EQ(leader->resident_blocks(TierId::kG3), 2U);
}

TEST(TierManager, EveryQuantityThatIsCountedHasAUnit) {
  Leader leader;
  leader.keep(test_chain(1, 2));
  struct Units : StatisticsVisitor {
    std::map<std::string, std::string> of;
    void visit_counter(const MetricInfo& info, uint64_t /*value*/) override {
      of[info.name] = info.unit;
    }
    void visit_gauge(const MetricInfo&, int64_t) override {}
    void visit_real_gauge(const MetricInfo&, double) override {}
    void visit_histogram(const MetricInfo&, const HistogramSnapshot&) override {}
  } units;
  leader.metrics.visit(units);
  EXPECT_EQ(units.of.at("kvbm_transfer_busy_nanoseconds_total"), "nanoseconds");
  for (const auto& [name, unit] : units.of) {
    for (const char* quantity : {"blocks", "bytes", "nanoseconds"}) {
      if (name.find(quantity) == std::string::npos) continue;
      EXPECT_EQ(unit, quantity) << name;
    }
  }
}

// --- cost
// -------------------------------------------------------------------------------------------

TEST(TierManager, TheBlocksOfAnEngineCostNothingUntilAnOperationUsesThem) {
  ManualClock clock;
  NullSink events;
  MetricsRegistry metrics;
  NullLogSink log;
  const testing::AllocationMeter meter;
  const auto leader =
      TierManager::create(options_of({.engine_blocks = 10'000'000}), clock, events, metrics, log);
  ASSERT_TRUE(leader);
  EXPECT_LT(meter.largest_bytes(), 100'000U);
}

TEST(TierManager, AStoreRemembersItsSourcesInOnePiece) {
  constexpr size_t kBlocks = 2000;
  Leader leader(
      {.engine_blocks = kBlocks, .host_blocks = kBlocks, .max_open_store_blocks = kBlocks});
  const auto keys = test_chain(1, kBlocks);
  const auto blocks = ids_from(0, kBlocks);
  const testing::AllocationMeter meter;
  EXPECT_EQ(leader.store(keys, blocks).accepted, kBlocks);
  EXPECT_LT(meter.count(), kBlocks + 200);  // one for each key that is being filled
  EXPECT_EQ(leader->touching(kGroup, blocks).size(), 1U);
}

// --- events
// -----------------------------------------------------------------------------------------

TEST(TierManager, EventsNameTheBlockItsTierAndWhereItCameFrom) {
  Leader leader({.host_blocks = 1, .disk_blocks = 1});
  leader.keep(test_chain(1, 1));
  leader.keep(test_chain(2, 1));
  std::vector<std::tuple<KvEventType, uint64_t, TierId, TierId>> seen;
  for (const KvEvent& event : leader.events.events()) {
    EXPECT_EQ(event.worker_id, WorkerId(9));
    EXPECT_EQ(event.timestamp, leader.clock.wall_time());
    EXPECT_EQ(event.block_id, 0U);
    const uint64_t number = event.key == test_key(1) ? 1 : 2;
    seen.emplace_back(event.type, number, event.tier,
                      event.type == KvEventType::kMigrated ? event.from_tier : event.tier);
  }
  using enum KvEventType;
  EXPECT_THAT(seen, ElementsAre(std::tuple(kMigrated, 1, TierId::kG2, TierId::kG1),
                                std::tuple(kDeleted, 1, TierId::kG2, TierId::kG2),
                                std::tuple(kMigrated, 1, TierId::kG3, TierId::kG2),
                                std::tuple(kMigrated, 2, TierId::kG2, TierId::kG1)));
}

// --- emptying on demand
// -----------------------------------------------------------------------------------------

TEST(TierManager, ForgettingEmptiesEveryTierAndFreesItsSlots) {
  Leader leader({.host_blocks = 4, .disk_blocks = 8});
  const auto cold = test_chain(1, 4);
  const auto warm = test_chain(100, 4);
  leader.keep(cold);
  leader.keep(warm);  // pushes the first one to disk
  EXPECT_EQ(leader->forget(), 8U);
  for (const TierId tier : {TierId::kG2, TierId::kG3}) {
    EXPECT_EQ(leader->resident_blocks(tier), 0U);
    EXPECT_EQ(leader->metrics().forgotten[static_cast<size_t>(tier)]->value(), 4U);
  }
  EXPECT_EQ(leader.num_findable(cold), 0U);
  EXPECT_EQ(leader.num_findable(warm), 0U);
  leader.expect_events_agree();
  leader.keep(cold);
  EXPECT_EQ(leader.num_findable(cold), 4U);
  EXPECT_EQ(leader->metrics().evictions(TierId::kG2), 4U);
  EXPECT_EQ(leader->metrics().lost[static_cast<size_t>(TierId::kG2)]->value(), 0U);
}

TEST(TierManager, AStoreThatIsUnderWayWhenAllIsForgottenIsNotKept) {
  Leader leader;
  const auto chain = test_chain(1, 3);
  leader.store(chain, ids_from(0, 3));
  const CopyOp store = leader.take_one();
  EXPECT_EQ(leader->forget(), 0U);
  EXPECT_THAT(leader->touching(kGroup, ids_from(0, 3)), ElementsAre(store.op));
  leader.end(store);
  EXPECT_EQ(leader.num_findable(chain), 0U);
  EXPECT_EQ(leader->resident_blocks(TierId::kG2), 0U);
  leader.expect_events_agree();
}

/// Who follows the events by identity alone must not take the end of the old for that of the new.
TEST(TierManager, EventsOfWhatIsForgottenComeBeforeThoseOfWhatIsStoredAnew) {
  Leader leader;
  const auto chain = test_chain(1, 2);
  leader.keep(chain);
  leader.load(leader.find(chain), {ids_from(20, 2)});
  const CopyOp load = leader.take_one();  // reads the old ones
  const auto other = test_chain(50, 1);
  leader.store(other, ids_from(9, 1));
  const CopyOp store = leader.take_one();
  leader->forget();
  const auto anew = [](std::vector<BlockKey> keys) {
    for (BlockKey& key : keys) key.ns = NamespaceId(77);
    return keys;
  };
  leader.keep(anew(chain));
  leader.keep(anew(other));
  leader.end(load);
  leader.end(store);
  std::map<std::array<std::byte, Identity::kSize>, bool> is_there;  // as the events tell it
  for (const KvEvent& event : leader.events.take()) {
    const bool is_stored = event.type != KvEventType::kDeleted;
    auto [there, first] = is_there.try_emplace(event.key.identity.bytes, is_stored);
    EXPECT_TRUE(first || there->second != is_stored) << event;
    there->second = is_stored;
  }
  EXPECT_EQ(is_there.size(), 3U);
  for (const auto& [identity, there] : is_there) EXPECT_TRUE(there);
  EXPECT_EQ(leader->resident_blocks(TierId::kG2), 3U);
  leader.expect_events_agree();
}

TEST(TierManager, ABlockThatIsReadWhileItsPlaceShrinksAndAllIsForgottenIsDeletedOnce) {
  for (const bool shrinks_first : {true, false}) {
    Leader leader({.host_blocks = 4, .disk_blocks = 0});
    const auto chain = test_chain(1, 4);
    leader.keep(chain);
    leader.load(leader.find(chain), {ids_from(20, 4)});
    const CopyOp load = leader.take_one();
    static_cast<void>(leader.events.take());
    if (!shrinks_first) leader->forget();
    leader->on_place_shrunk(host_of(0, 2));
    if (shrinks_first) leader->forget();
    leader.end(load);
    std::map<uint64_t, int> num_deleted;
    for (const KvEvent& event : leader.events.take()) {
      if (event.type == KvEventType::kDeleted) ++num_deleted[event.block_id];
    }
    EXPECT_THAT(num_deleted, ElementsAre(::testing::Pair(0, 1), ::testing::Pair(1, 1),
                                         ::testing::Pair(2, 1), ::testing::Pair(3, 1)));
    EXPECT_EQ(leader->resident_blocks(TierId::kG2), 0U);
  }
}

TEST(TierManager, ALoadThatIsUnderWayWhenAllIsForgottenArrivesAndItsSourcesGo) {
  Leader leader({.host_blocks = 4, .disk_blocks = 8});
  const auto chain = test_chain(1, 2);
  leader.keep_on_disk(chain, 4);
  const LoadId load = leader.load(leader.find(chain), {ids_from(20, 2)});
  leader->forget();
  leader.end_all();  // both halves
  const LoadOutcome outcome = leader.take_outcome();
  EXPECT_EQ(outcome.load, load);
  EXPECT_TRUE(outcome.status);
  EXPECT_EQ(outcome.num_blocks, 2U);
  EXPECT_EQ(leader->resident_blocks(TierId::kG2), 0U);
  EXPECT_EQ(leader->resident_blocks(TierId::kG3), 0U);
  leader.expect_events_agree();
}

TEST(TierManager, WhateverIsUnderWayWhenAllIsForgottenNothingIsLeft) {
  const uint64_t seed = testing::test_seed();
  uint64_t forgotten_late = 0;
  for (uint64_t program = 0; program < 200; ++program) {
    Random random(seed * 1'000'003 + program);
    Leader leader({.host_blocks = static_cast<uint32_t>(random.uniform_between(1, 8)),
                   .disk_blocks = static_cast<uint32_t>(random.uniform(9))});
    std::vector<CopyOp> open;
    for (int round = 0; round < 40; ++round) {
      const auto count = static_cast<size_t>(random.uniform_between(1, 4));
      const auto keys = test_chain(random.uniform(12), count);
      if (random.chance(0.5)) {
        leader.store(keys, ids_from(0, count));
      } else if (random.chance(0.8)) {
        Match match = leader.find(keys);
        std::vector<std::vector<BlockId>> into;
        for (const MatchedGroup& part : match.groups) {
          into.push_back(ids_from(8, part.blocks.size()));
        }
        leader.load(std::move(match), into);
      } else {
        leader->drain(2);
      }
      for (CopyOp& op : leader->take_ops()) open.push_back(std::move(op));
      while (!open.empty() && random.chance(0.5)) {
        const auto chosen = open.begin() + static_cast<std::ptrdiff_t>(random.uniform(open.size()));
        const CopyOp op = std::move(*chosen);
        open.erase(chosen);
        leader.end(op, random.chance(0.1) ? Outcome::kFailed : Outcome::kSucceeded);
        for (CopyOp& next : leader->take_ops()) open.push_back(std::move(next));
      }
    }
    const uint64_t at_once = leader->forget();
    for (const TierId tier : {TierId::kG2, TierId::kG3}) EXPECT_EQ(leader.events_say(tier), 0);
    static_cast<void>(leader.events.take());
    if (random.chance(0.2)) leader->forget();  // once more changes nothing
    for (const CopyOp& op : open) {
      leader.end(op, random.chance(0.1) ? Outcome::kFailed : Outcome::kSucceeded);
    }
    leader.end_all();
    EXPECT_TRUE(leader->idle());
    EXPECT_THAT(leader.events.take(), IsEmpty());
    leader.expect_events_agree();
    for (const TierId tier : {TierId::kG2, TierId::kG3}) {
      EXPECT_EQ(leader->resident_blocks(tier), 0U);
      forgotten_late += leader->metrics().forgotten[static_cast<size_t>(tier)]->value();
    }
    forgotten_late -= at_once;
    if (::testing::Test::HasFailure()) {
      FAIL() << "program " << program << " of KVBM_SEED=" << seed;
    }
  }
  EXPECT_GT(forgotten_late, 200U);
}

TEST(TierManager, EventsAddUpToWhatIsResidentThroughRandomChurn) {
  const uint64_t seed = testing::test_seed();
  for (uint64_t program = 0; program < 200; ++program) {
    Random random(seed * 1'000'003 + program);
    Shape shape;
    shape.host_blocks = static_cast<uint32_t>(random.uniform(7));
    shape.disk_blocks = static_cast<uint32_t>(random.uniform(9));
    shape.num_ranks = static_cast<uint32_t>(random.uniform_between(1, 2));
    Leader leader(shape);
    std::vector<CopyOp> open;
    for (int round = 0; round < 60; ++round) {
      const auto count = static_cast<size_t>(random.uniform_between(1, 4));
      const auto keys = test_chain(random.uniform(12), count);
      switch (random.uniform(3)) {
        case 0:
          leader.store(keys, ids_from(0, count));
          break;
        case 1: {
          Match match = leader.find(keys);
          std::vector<std::vector<BlockId>> into;
          for (const MatchedGroup& part : match.groups) {
            into.push_back(ids_from(8, part.blocks.size()));
          }
          leader.load(std::move(match), into);
          break;
        }
        default:
          leader->drain(2);
      }
      for (CopyOp& op : leader->take_ops()) open.push_back(std::move(op));
      while (!open.empty() && random.chance(0.5)) {
        const auto chosen = open.begin() + static_cast<std::ptrdiff_t>(random.uniform(open.size()));
        const CopyOp op = std::move(*chosen);
        open.erase(chosen);
        switch (random.uniform(8)) {
          case 0:
            leader.end(op, Outcome::kFailed);
            break;
          case 1:
            leader.end(op, Outcome::kCancelled);
            break;
          case 2:
            leader.end(op, Outcome::kFailed, {static_cast<uint32_t>(random.uniform(op.to.size()))});
            break;
          default:
            leader.end(op);
        }
      }
      leader.expect_events_agree();
    }
    for (const CopyOp& op : open) leader.end(op);
    leader.end_all();
    EXPECT_TRUE(leader->idle());
    leader.expect_events_agree();
    if (::testing::Test::HasFailure()) {
      FAIL() << "program " << program << " of KVBM_SEED=" << seed;
    }
  }
}

}  // namespace
}  // namespace kvbm
