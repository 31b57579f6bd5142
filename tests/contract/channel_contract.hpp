// SPDX-License-Identifier: Apache-2.0
// The contract of channels: a cluster keeps its promises over any of them, with real workers.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/executor.hpp"
#include "kvbm/base/random.hpp"
#include "kvbm/cluster/channel.hpp"
#include "kvbm/cluster/cluster.hpp"
#include "kvbm/events/recording_sink.hpp"

#include "tests/support/block_chains.hpp"
#include "tests/support/faulty_file_engine.hpp"
#include "tests/support/losing_channel.hpp"
#include "tests/support/pinner_double.hpp"
#include "tests/support/rank_rig.hpp"
#include "tests/support/recording_log_sink.hpp"
#include "tests/support/seed.hpp"

namespace kvbm::testing {

using std::chrono::milliseconds;
using std::chrono::seconds;

inline constexpr GroupId kGroup{0};

[[nodiscard]] inline std::vector<BlockId> ids_from(uint32_t first, size_t count) {
  std::vector<BlockId> blocks;
  for (size_t i = 0; i < count; ++i) blocks.emplace_back(first + static_cast<uint32_t>(i));
  return blocks;
}

/// What a rank's shard of a block is filled with.
[[nodiscard]] inline uint64_t shard_of(const BlockKey& key, uint16_t rank) {
  return hash_of(key) + rank;
}

struct ClusterOptions {
  uint16_t num_ranks = 2;
  RankRigOptions rank = {};
  Duration timeout{0};
  /// Changes the options of one rank.
  std::function<void(RankRigOptions&)> change = nullptr;
};

/// workers[i] is rank i.
using Connect = std::function<std::unique_ptr<Channel>(std::vector<Worker*> workers)>;

/// Ranks with real workers, and an engine that fills its blocks with shards.
class ClusterRig {
 public:
  ClusterRig(Executor& the_executor, LogSink& log, const ClusterOptions& options,
             const Connect& connect)
      : executor(the_executor), num_ranks(options.num_ranks) {
    std::vector<Worker*> workers;
    for (uint16_t rank = 0; rank < num_ranks; ++rank) {
      RankRigOptions of_rank = options.rank;
      of_rank.rank = rank;
      if (options.change) options.change(of_rank);
      ranks.push_back(std::make_unique<RankRig>(executor, log, of_rank));
      workers.push_back(ranks.back()->worker.get());
    }
    connection = connect(std::move(workers));
    channel = std::make_unique<LosingChannel>(*connection);
    auto leader = TierManager::create({.groups = {{kGroup, Retention::full_prefix()}},
                                       .places = ranks.front()->specs,
                                       .num_ranks = num_ranks,
                                       .timeout = options.timeout},
                                      executor.clock(), events, metrics, log);
    cluster = std::make_unique<Cluster>(std::move(leader).value(), *channel, executor.clock());
  }

  TierManager& leader() { return cluster->leader(); }
  TimePoint soon() const { return executor.clock().now() + seconds(10); }

  /// A step of the engine on every rank: it overwrites the blocks, once nobody touches them any
  /// more.
  Gate compute(std::span<const BlockKey> keys, std::span<const BlockId> blocks) {
    StepPlan plan;
    plan.step = StepId(++num_steps);
    plan.fences = leader().touching(kGroup, blocks);
    for (uint16_t rank = 0; rank < num_ranks; ++rank) {
      RankRig& of = *ranks[rank];
      of.worker->begin_step(plan, of.compute);
      for (size_t i = 0; i < keys.size(); ++i) {
        const uint64_t shard = shard_of(keys[i], rank);
        const uint32_t block = blocks[i].value();
        EXPECT_TRUE(of.device->launch(of.compute, [&of, block, shard]() -> Status {
          of.fill(block, shard);
          return {};
        }));
      }
      of.worker->end_step(of.compute);
    }
    return Gate::step_end(plan.step);
  }

  StoreReceipt store(std::span<const BlockKey> keys, std::span<const BlockId> blocks,
                     Gate written) {
    const StoreReceipt receipt = leader().store({.group = kGroup,
                                                 .keys = keys,
                                                 .parent = std::nullopt,
                                                 .blocks = blocks,
                                                 .written = written});
    cluster->exchange();
    return receipt;
  }
  /// Computes and stores a chain, and waits for it.
  void keep(std::span<const BlockKey> keys, uint32_t first_block) {
    const auto blocks = ids_from(first_block, keys.size());
    EXPECT_EQ(store(keys, blocks, compute(keys, blocks)).accepted, keys.size());
    const Status idle = cluster->wait_idle(soon());
    EXPECT_TRUE(idle);
  }

  Match find(std::span<const BlockKey> keys) {
    const GroupKeys asked{kGroup, keys};
    return leader().find({&asked, 1}, 0);
  }
  LoadId start_load(std::span<const BlockKey> keys, uint32_t first_block,
                    Gate free = Gate::step_end(StepId(0))) {
    Match match = find(keys);
    std::vector<EngineBlocks> into;
    for (const MatchedGroup& part : match.groups) {
      into.push_back({kGroup, part.first, ids_from(first_block, part.blocks.size())});
    }
    return leader().load(std::move(match), into, free).value();
  }
  LoadOutcome load(std::span<const BlockKey> keys, uint32_t first_block) {
    return cluster->wait_for(start_load(keys, first_block));
  }

  /// Whether every rank has its shards of the keys in its engine blocks.
  void expect_blocks(std::span<const BlockKey> keys, uint32_t first_block) {
    for (uint16_t rank = 0; rank < num_ranks; ++rank) {
      for (uint32_t i = 0; i < keys.size(); ++i) {
        EXPECT_TRUE(ranks[rank]->holds(first_block + i, shard_of(keys[i], rank)))
            << "rank " << rank << " block " << i;
      }
    }
  }

  Executor& executor;
  uint16_t num_ranks;
  RecordingSink events;
  MetricsRegistry metrics;
  std::vector<std::unique_ptr<RankRig>> ranks;
  std::unique_ptr<Channel> connection;
  std::unique_ptr<LosingChannel> channel;
  std::unique_ptr<Cluster> cluster;
  uint64_t num_steps = 0;
};

/// `Wiring` is default constructible: a LogSink& goes to make_executor(), which is called once, and
/// connect(executor, log, workers) gives a channel to these.
template <class Wiring>
class ChannelContract : public ::testing::Test {
 protected:
  ClusterRig& use(const ClusterOptions& options) {
    rig_ = nullptr;
    rig_ = std::make_unique<ClusterRig>(
        *executor_, log_, options, [this](std::vector<Worker*> workers) {
          return wiring_.connect(*executor_, log_, std::move(workers));
        });
    return *rig_;
  }

  RecordingLogSink log_{LogLevel::kError};
  Wiring wiring_;
  std::unique_ptr<Executor> executor_ = wiring_.make_executor(log_);
  std::unique_ptr<ClusterRig> rig_;
};

TYPED_TEST_SUITE_P(ChannelContract);

TYPED_TEST_P(ChannelContract, WhatWasStoredComesBackFromHostMemoryOnEveryRank) {
  for (const uint16_t num_ranks : {uint16_t{1}, uint16_t{2}, uint16_t{4}}) {
    ClusterRig& rig = this->use({.num_ranks = num_ranks});
    const auto keys = test_chain(1, 5);
    rig.keep(keys, 0);
    EXPECT_EQ(rig.leader().resident_blocks(TierId::kG2), 5U);
    const LoadOutcome outcome = rig.load(keys, 16);
    EXPECT_TRUE(outcome.status);
    EXPECT_EQ(outcome.num_blocks, 5U);
    rig.expect_blocks(keys, 16);
  }
}

TYPED_TEST_P(ChannelContract, WhatWasEvictedToDiskComesBackByteForByte) {
  ClusterRig& rig = this->use({.num_ranks = 3, .rank = {.host_blocks = 4, .disk_blocks = 8}});
  const auto first = test_chain(1, 4);
  const auto second = test_chain(100, 4);
  rig.keep(first, 0);
  rig.keep(second, 4);
  EXPECT_EQ(rig.leader().resident_blocks(TierId::kG3), 4U);
  for (const BlockKey& key : first) {
    EXPECT_EQ(rig.find({&key, 1}).groups.front().blocks.front().tier(), TierId::kG3);
  }
  EXPECT_EQ(rig.load(first, 16).num_blocks, 4U);
  rig.expect_blocks(first, 16);
  // And once more the other way round.
  EXPECT_EQ(rig.load(second, 20).num_blocks, 4U);
  rig.expect_blocks(second, 20);
  EXPECT_EQ(rig.load(first, 24).num_blocks, 4U);
  rig.expect_blocks(first, 24);
  EXPECT_THAT(this->log_.messages(LogLevel::kError), ::testing::IsEmpty());
}

TYPED_TEST_P(ChannelContract, AnEngineBlockThatIsReusedAtOnceIsStoredAsItWas) {
  ClusterRig& rig = this->use({.num_ranks = 2, .rank = {.host_blocks = 8}});
  std::vector<BlockKey> all;
  for (uint64_t round = 0; round < 8; ++round) {
    const auto key = test_chain(100 * round, 1);
    all.push_back(key.front());
    const auto block = ids_from(0, 1);  // always the same, with a store of it still open
    EXPECT_EQ(rig.store(key, block, rig.compute(key, block)).accepted, 1U);
  }
  EXPECT_TRUE(rig.cluster->wait_idle(rig.soon()));
  for (uint32_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(rig.load({&all[i], 1}, 16 + i).num_blocks, 1U);
  }
  rig.expect_blocks(all, 16);
}

/// Fails the requests that it is told to, counted from 0.
class FailingFiles final : public FileEngine {
 public:
  FailingFiles(std::unique_ptr<FileEngine> inner, Executor& executor, std::vector<uint64_t> which)
      : inner_(std::move(inner)), executor_(executor), which_(std::move(which)) {}

  [[nodiscard]] FileEngineCapabilities capabilities() const override {
    return inner_->capabilities();
  }
  [[nodiscard]] Status reach_device(const FileRef& file) override {
    return inner_->reach_device(file);
  }
  [[nodiscard]] Result<FileBatch> submit(std::vector<FileRequest> requests) override {
    const FileBatchSource source(executor_, requests.size());
    for (size_t i = 0; i < requests.size(); ++i) {
      if (std::find(which_.begin(), which_.end(), next_++) != which_.end()) {
        source.finish(i, {make_error(ErrorCode::kIo, "told to fail"), 0});
        continue;
      }
      KVBM_ASSIGN_OR_RETURN(const FileBatch one, inner_->submit({requests[i]}));
      one.completion().on_done(
          [source, i, one](const Status&) noexcept { source.finish(i, one.result(0)); });
    }
    return source.batch();
  }

 private:
  std::unique_ptr<FileEngine> inner_;
  Executor& executor_;
  std::vector<uint64_t> which_;
  std::atomic<uint64_t> next_{0};
};

TYPED_TEST_P(ChannelContract, ABlockThatOneRankCouldNotWriteIsAbsentEverywhere) {
  // Straight to disk, in order: request i of the store is block i.
  ClusterRig& rig = this->use(
      {.num_ranks = 3, .rank = {.host_blocks = 0}, .change = [this](RankRigOptions& options) {
         if (options.rank != 1) return;
         options.wrap_files = [this](std::unique_ptr<FileEngine> inner) {
           return std::make_unique<FailingFiles>(std::move(inner), *this->executor_,
                                                 std::vector<uint64_t>{2});
         };
       }});
  const auto keys = test_chain(1, 4);
  rig.keep(keys, 0);
  EXPECT_EQ(rig.leader().resident_blocks(TierId::kG3), 3U);
  EXPECT_EQ(rig.find(keys).num_blocks, 2U);
  EXPECT_EQ(rig.find(std::span(keys).subspan(2, 1)).num_blocks, 0U);
  const LoadOutcome outcome = rig.load(keys, 16);
  EXPECT_EQ(outcome.num_blocks, 2U);
  rig.expect_blocks(std::span(keys).first(2), 16);
}

TYPED_TEST_P(ChannelContract, ABlockThatOneRankCannotReadIsGivenUpEverywhere) {
  ClusterRig& rig =
      this->use({.num_ranks = 2,
                 .rank = {.host_blocks = 4, .disk_blocks = 8},
                 .change = [this](RankRigOptions& options) {
                   if (options.rank != 1) return;
                   options.wrap_files = [this](std::unique_ptr<FileEngine> inner) {
                     // Requests 0..3 write the first chain, 4..7 the second, then it is
                     // read.
                     return std::make_unique<FailingFiles>(std::move(inner), *this->executor_,
                                                           std::vector<uint64_t>{9});
                   };
                 }});
  const auto keys = test_chain(1, 4);
  rig.keep(keys, 0);
  rig.keep(test_chain(100, 4), 4);
  EXPECT_EQ(rig.leader().drain(100), 4U);
  EXPECT_TRUE(rig.cluster->wait_idle(rig.soon()));
  const LoadOutcome outcome = rig.load(keys, 16);
  ASSERT_FALSE(outcome.status);
  EXPECT_EQ(outcome.status.error().code(), ErrorCode::kIo);
  EXPECT_EQ(outcome.num_blocks, 1U);
  rig.expect_blocks(std::span(keys).first(1), 16);
  EXPECT_EQ(rig.find(keys).num_blocks, 1U);
  EXPECT_EQ(rig.leader().metrics().corrupt_or_unreadable.value(), 1U);
}

TYPED_TEST_P(ChannelContract, WhatOneRankCannotPinIsUsedByNobodyAndTheRestGoesOn) {
  // Rank 1 has the first slice of three, the others have all.
  constexpr uint32_t kBlocksPerSlice = (uint32_t{2} << 20) / kRigBlockBytes;
  ClusterRig& rig = this->use({.num_ranks = 3,
                               .rank = {.engine_blocks = kBlocksPerSlice + 200,
                                        .host_blocks = 3 * kBlocksPerSlice,
                                        .disk_blocks = 0,
                                        .pin_slice_bytes = kBlocksPerSlice * kRigBlockBytes},
                               .change = [](RankRigOptions& options) {
                                 const auto pinner = std::make_shared<PinnerDouble>();
                                 if (options.rank == 1) pinner->refuse_from = 1;
                                 options.pinner = pinner;
                               }});
  EXPECT_EQ(rig.leader().blocks_per_group(TierId::kG2), 3 * kBlocksPerSlice);
  const TimePoint deadline = rig.soon();
  while (rig.leader().blocks_per_group(TierId::kG2) == 3 * kBlocksPerSlice) {
    ASSERT_TRUE(rig.channel->wait(deadline)) << "the leader does not hear of it";
    rig.cluster->exchange();
  }
  EXPECT_EQ(rig.leader().blocks_per_group(TierId::kG2), kBlocksPerSlice);
  EXPECT_THAT(this->log_.messages(LogLevel::kError),
              ::testing::ElementsAre(::testing::HasSubstr("rank 1: no more than 2 MiB of host")));
  // More than there is room for: what is new is kept, and nothing is asked of what is not there.
  const auto first = test_chain(1, kBlocksPerSlice - 10);
  const auto second = test_chain(100'000, 200);
  rig.keep(first, 0);
  rig.keep(second, kBlocksPerSlice);
  EXPECT_EQ(rig.leader().resident_blocks(TierId::kG2), kBlocksPerSlice);
  EXPECT_EQ(rig.load(second, 0).num_blocks, 200U);
  rig.expect_blocks(second, 0);
  EXPECT_EQ(rig.load(std::span(first).first(100), 300).num_blocks, 100U);
  rig.expect_blocks(std::span(first).first(100), 300);
  for (const RouteMetrics* route : rig.leader().metrics().routes()) {
    EXPECT_EQ(route->failed_blocks(), 0U);
  }
}

TYPED_TEST_P(ChannelContract, DrainWritesEverythingDown) {
  ClusterRig& rig = this->use(
      {.num_ranks = 2, .rank = {.engine_blocks = 160, .host_blocks = 150, .disk_blocks = 150}});
  const auto keys = test_chain(1, 150);  // more than one batch
  rig.keep(keys, 0);
  EXPECT_TRUE(rig.cluster->drain(rig.soon()));
  EXPECT_EQ(rig.leader().resident_blocks(TierId::kG3), 150U);
  EXPECT_TRUE(rig.leader().idle());
  EXPECT_TRUE(rig.cluster->drain(rig.soon()));
  EXPECT_EQ(rig.leader().metrics().drained_blocks.value(), 150U);
}

TYPED_TEST_P(ChannelContract, WaitIdleSaysThatItWasNotEnoughTime) {
  ClusterRig& rig = this->use({});
  const auto keys = test_chain(1, 2);
  const auto blocks = ids_from(0, 2);
  rig.compute(keys, blocks);
  rig.store(keys, blocks, Gate::step_end(StepId(rig.num_steps + 1)));  // which has not begun
  const Status idle = rig.cluster->wait_idle(rig.executor.clock().now() + milliseconds(20));
  ASSERT_FALSE(idle);
  EXPECT_EQ(idle.error().code(), ErrorCode::kTimeout);
  EXPECT_EQ(rig.cluster->drain(rig.executor.clock().now() + milliseconds(20)).error().code(),
            ErrorCode::kTimeout);
  rig.compute({}, {});
  EXPECT_TRUE(rig.cluster->wait_idle(rig.soon()));
  EXPECT_EQ(rig.load(keys, 16).num_blocks, 2U);
  rig.expect_blocks(keys, 16);
}

TYPED_TEST_P(ChannelContract, ALoadThatCannotStartEndsAtItsDeadline) {
  ClusterRig& rig = this->use({.timeout = milliseconds(200)});
  const auto keys = test_chain(1, 2);
  rig.keep(keys, 0);
  const LoadId load = rig.start_load(keys, 16, Gate::step_end(StepId(rig.num_steps + 1)));
  const LoadOutcome outcome = rig.cluster->wait_for(load);
  ASSERT_FALSE(outcome.status);
  EXPECT_EQ(outcome.status.error().code(), ErrorCode::kTimeout);
  EXPECT_EQ(outcome.load, load);
  EXPECT_TRUE(rig.cluster->wait_idle(rig.soon()));  // its copies were cancelled
  EXPECT_THAT(rig.leader().touching(kGroup, ids_from(16, 2)), ::testing::IsEmpty());
  EXPECT_EQ(rig.load(keys, 16).num_blocks, 2U);
  rig.expect_blocks(keys, 16);
}

TYPED_TEST_P(ChannelContract, LoadsMayBeWaitedForInAnyOrder) {
  ClusterRig& rig = this->use({});
  const auto keys = test_chain(1, 3);
  rig.keep(keys, 0);
  const LoadId first = rig.start_load(keys, 10);
  const LoadId second = rig.start_load(keys, 14);
  const LoadId third = rig.start_load(keys, 18);
  EXPECT_EQ(rig.cluster->wait_for(third).load, third);
  EXPECT_EQ(rig.cluster->wait_for(first).load, first);
  EXPECT_EQ(rig.cluster->wait_for(second).num_blocks, 3U);
  for (const uint32_t block : {10U, 14U, 18U}) rig.expect_blocks(keys, block);
}

TYPED_TEST_P(ChannelContract, ALostRankEndsLoadsAndDropsWhatWasStored) {
  ClusterRig& rig = this->use({.num_ranks = 3});
  const auto keys = test_chain(1, 4);
  rig.keep(keys, 0);
  const LoadId load = rig.start_load(keys, 16);
  rig.channel->lose(RankId(1));
  const LoadOutcome outcome = rig.cluster->wait_for(load);
  ASSERT_FALSE(outcome.status);
  EXPECT_EQ(outcome.status.error().code(), ErrorCode::kUnavailable);
  EXPECT_EQ(outcome.num_blocks, 0U);
  EXPECT_TRUE(rig.cluster->wait_idle(rig.soon()));
  EXPECT_EQ(rig.find(keys).num_blocks, 0U);
  EXPECT_EQ(rig.store(keys, ids_from(0, 4), Gate::step_end(StepId(0))).dropped, 4U);
  rig.cluster->exchange();
  EXPECT_EQ(rig.leader().resident_blocks(TierId::kG2), 0U);
  EXPECT_EQ(rig.events.tally().of(TierId::kG2).resident(), 0);
}

TYPED_TEST_P(ChannelContract, WhatComesBackIsRightWhateverFails) {
  const uint64_t seed = test_seed();
  uint64_t loaded = 0;
  uint64_t failed = 0;
  for (uint64_t round = 0; round < 6; ++round) {
    Random random(seed * 1000 + round);
    ClusterRig& rig = this->use(
        {.num_ranks = static_cast<uint16_t>(random.uniform_between(1, 3)),
         .rank = {.engine_blocks = 64,
                  .host_blocks = static_cast<uint32_t>(round % 3 == 0 ? 0 : 6),
                  .disk_blocks = static_cast<uint32_t>(round % 3 == 1 ? 6 : 16),
                  .max_running_operations = 2},
         .timeout = round % 2 == 0 ? Duration(0) : milliseconds(50),
         .change = [&](RankRigOptions& options) {
           options.faults =
               DeviceFaults{.seed = random.next(), .copy_fails = 0.05, .copy_refused = 0.05};
           const uint64_t file_seed = random.next();
           options.wrap_files = [this, file_seed](std::unique_ptr<FileEngine> inner) {
             return std::make_unique<FaultyFileEngine>(std::move(inner), *this->executor_,
                                                       FileFaults{.seed = file_seed,
                                                                  .fail = 0.02,
                                                                  .torn = 0.02,
                                                                  .lie = 0.02,
                                                                  .bit_flip = 0.02,
                                                                  .delay = 0.05,
                                                                  .max_delay = milliseconds(1)});
           };
         }});
    this->log_.set_level(LogLevel::kOff);
    // Engine blocks 0..31 are written, 32..63 are loaded into.
    for (int action = 0; action < 200; ++action) {
      const auto count = static_cast<size_t>(random.uniform_between(1, 5));
      const auto keys = test_chain(1000 * random.uniform(10), count);
      if (random.chance(0.5)) {
        const auto blocks = ids_from(static_cast<uint32_t>(random.uniform(28)), count);
        const Gate written = rig.compute(keys, blocks);
        (void)rig.store(keys, blocks, written);
        if (random.chance(0.7)) {
          EXPECT_TRUE(rig.cluster->wait_idle(rig.soon()));
        }
        continue;
      }
      const auto first = static_cast<uint32_t>(random.uniform_between(32, 59));
      const LoadOutcome outcome = rig.load(keys, first);
      loaded += outcome.num_blocks;
      failed += outcome.status ? 0 : 1;
      rig.expect_blocks(std::span(keys).first(outcome.num_blocks), first);
      // A load that ran out of time may still write; later loads of these blocks wait for it.
    }
    EXPECT_TRUE(rig.cluster->wait_idle(rig.soon()));
    for (const TierId tier : {TierId::kG2, TierId::kG3}) {
      EXPECT_EQ(rig.events.tally().of(tier).resident(),
                static_cast<int64_t>(rig.leader().resident_blocks(tier)));
    }
    if (this->HasFailure()) FAIL() << "round " << round << " of KVBM_SEED=" << seed;
  }
  EXPECT_GT(loaded, 100U);
  EXPECT_GT(failed, 10U);
}

REGISTER_TYPED_TEST_SUITE_P(ChannelContract, WhatWasStoredComesBackFromHostMemoryOnEveryRank,
                            WhatWasEvictedToDiskComesBackByteForByte,
                            AnEngineBlockThatIsReusedAtOnceIsStoredAsItWas,
                            ABlockThatOneRankCouldNotWriteIsAbsentEverywhere,
                            ABlockThatOneRankCannotReadIsGivenUpEverywhere,
                            WhatOneRankCannotPinIsUsedByNobodyAndTheRestGoesOn,
                            DrainWritesEverythingDown, WaitIdleSaysThatItWasNotEnoughTime,
                            ALoadThatCannotStartEndsAtItsDeadline, LoadsMayBeWaitedForInAnyOrder,
                            ALostRankEndsLoadsAndDropsWhatWasStored,
                            WhatComesBackIsRightWhateverFails);

}  // namespace kvbm::testing
