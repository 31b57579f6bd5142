// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/thread_executor.hpp"
#include "kvbm/cluster/inproc_channel.hpp"
#include "kvbm/connector/connector_worker.hpp"
#include "kvbm/connector/recording_leader.hpp"
#include "kvbm/events/event_sink.hpp"
#include "kvbm/replay/record_replay.hpp"

#include "tests/support/faulty_file_engine.hpp"
#include "tests/support/losing_channel.hpp"
#include "tests/support/random_scheduler.hpp"
#include "tests/support/rank_rig.hpp"
#include "tests/support/seed.hpp"
#include "tests/support/temporary_folder.hpp"

namespace kvbm {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using testing::FaultyFileEngine;
using testing::LosingChannel;
using testing::RandomScheduler;
using testing::RankRig;
using testing::TemporaryFolder;
using testing::test_seed;

constexpr uint32_t kPrograms = 40;
constexpr uint32_t kActions = 150;

/// A connector over a real worker with a faulty disk, that is recorded while a random scheduler
/// uses it. What the programs are for differs by their seed.
class RecordedProgram {
 public:
  RecordedProgram(uint64_t seed, const std::filesystem::path& folder) : random_(seed) {
    // One group, two that are alike, and two of which the one's blocks are parts of the other's.
    const std::vector<LayerGroup> groups = std::vector<std::vector<LayerGroup>>{
        {{4}},
        {{4}, {4, Retention::last_window(2)}},
        {{4}, {8, Retention::last_window(2)}},
        {{16}, {4, Retention::last_window(3)}}}[random_.uniform(4)];
    const SplitGroups split = split_groups(groups).value();
    const bool has_disk = random_.chance(0.8);
    const bool has_faults = random_.chance(0.5);
    rig_ = std::make_unique<RankRig>(
        executor_, log_,
        testing::RankRigOptions{
            .num_groups = static_cast<uint16_t>(split.parts.size()),
            .engine_blocks = kEngineBlocks,
            .host_blocks = random_.chance(0.9) || !has_disk ? 12U : 0U,
            .disk_blocks = has_disk ? 24U : 0U,
            .wrap_files = [&](std::unique_ptr<FileEngine> inner) -> std::unique_ptr<FileEngine> {
              if (!has_faults) return inner;
              return std::make_unique<FaultyFileEngine>(
                  std::move(inner), executor_,
                  testing::FileFaults{.seed = seed, .fail = 0.1, .bit_flip = 0.1, .delay = 0.2});
            }});
    inproc_ = std::make_unique<InprocChannel>(executor_, std::vector{rig_->worker.get()});
    losing_ = std::make_unique<LosingChannel>(*inproc_);
    channel_ = std::make_unique<RecordingChannel>(*losing_, clock_);
    RecordHeader header;
    header.run = seed;
    header.connector.groups = groups;
    header.connector.ns = NamespaceId(7);
    header.connector.load_mode = random_.chance(0.3) ? LoadMode::kBetweenSteps : LoadMode::kAuto;
    header.connector.min_priority = 30;
    header.connector.breaker = {.max_failures = 2, .pause = milliseconds(1)};
    header.tiers = {.groups = split.specs(),
                    .places = rig_->specs,
                    .num_ranks = 1,
                    .policy = static_cast<PolicyKind>(random_.uniform(3)),
                    .timeout = random_.chance(0.3) ? Duration(microseconds(400)) : Duration(0),
                    .disk_filter = random_.chance(0.5),
                    .worker = WorkerId(3),
                    .engine_ids = EngineIds::kOfOnePool};
    auto tiers = TierManager::create(header.tiers, clock_, events_, metrics_, log_);
    cluster_ = std::make_unique<Cluster>(std::move(tiers).value(), *channel_, clock_,
                                         EngineOperations::kBySteps);
    leader_ = ConnectorLeader::create(header.connector, *cluster_, clock_, metrics_, log_).value();
    writer_ = RecordWriter::create({.folder = folder, .max_files = 1000, .max_file_bytes = 4096},
                                   header, executor_, metrics_, log_)
                  .value();
    recording_ = std::make_unique<RecordingLeader>(*leader_, *channel_, clock_,
                                                   cluster_->leader().metrics(), *writer_);
    worker_ = std::make_unique<ConnectorWorker>(*rig_->worker, *rig_->device, rig_->compute,
                                                EngineCompute::kOnHost);
    std::vector<uint32_t> block_tokens;
    for (const LayerGroup& group : groups) block_tokens.push_back(group.block_tokens);
    scheduler = std::make_unique<RandomScheduler>(
        *recording_,
        RandomScheduler::Options{.block_tokens = block_tokens, .engine_blocks = kEngineBlocks},
        random_.next(), [this](std::span<const std::byte> step) { return run_step(step); });
  }

  void run() {
    const uint64_t shrinks_at = random_.chance(0.3) ? random_.uniform(kActions) : kActions;
    const uint64_t lost_at = random_.chance(0.2) ? random_.uniform(kActions) : kActions;
    for (uint32_t i = 0; i < kActions; ++i) {
      if (i == lost_at) losing_->lose(RankId(0));
      if (i == shrinks_at) {
        const auto left = static_cast<uint32_t>(random_.uniform(12));
        losing_->shrink({RankId(0), {TierId::kG2, GroupId(0)}, left});
      }
      scheduler->act();
      if (random_.chance(0.1)) {
        static_cast<void>(
            recording_->wait_idle(executor_.clock().now() + microseconds(random_.uniform(3000))));
      }
      if (random_.chance(0.01)) break_a_contract();
    }
    counts = counts_of(cluster_->leader().metrics());
    writer_.reset();  // everything is on disk
  }

  std::unique_ptr<RandomScheduler> scheduler;
  RecordCounts counts{};

 private:
  static constexpr uint32_t kEngineBlocks = 96;

  std::vector<EndedLoad> run_step(std::span<const std::byte> step) {
    EXPECT_TRUE(worker_->begin_step(step));
    static_cast<void>(worker_->all_layers_needed());
    worker_->end_step();
    static_cast<void>(worker_->take_failed_blocks());
    return worker_->take_ended_loads();
  }

  void break_a_contract() {
    EXPECT_THROW(static_cast<void>(recording_->allocated("nobody", {{}, {}, {}}, 0)),
                 ContractViolation);
    EXPECT_FALSE(recording_->finished("nobody"));
  }

  NullLogSink log_;
  ThreadExecutor executor_{log_};
  HeldClock clock_{executor_.clock()};
  NullSink events_;
  MetricsRegistry metrics_;
  Random random_;
  std::unique_ptr<RankRig> rig_;
  std::unique_ptr<InprocChannel> inproc_;
  std::unique_ptr<LosingChannel> losing_;
  std::unique_ptr<RecordingChannel> channel_;
  std::unique_ptr<Cluster> cluster_;
  std::unique_ptr<ConnectorLeader> leader_;
  std::unique_ptr<RecordWriter> writer_;
  std::unique_ptr<RecordingLeader> recording_;
  std::unique_ptr<ConnectorWorker> worker_;
};

uint64_t of(const RecordCounts& counts, RecordCounter counter) {
  return counts[static_cast<size_t>(counter)];
}

std::vector<std::filesystem::path> files_in(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

TEST(RecordReplayProperty, WhatWasRecordedIsPlayedAgainToEqualOutcomes) {
  const uint64_t first_seed = test_seed();
  RecordCounts all{};
  RecordTally tally;
  uint64_t held = 0;
  uint64_t preempted = 0;
  uint64_t cold_loads = 0;
  for (uint64_t seed = first_seed; seed < first_seed + kPrograms; ++seed) {
    SCOPED_TRACE("run it alone: KVBM_SEED=" + std::to_string(seed));
    const TemporaryFolder temporary;
    const auto folder = temporary.path() / "record";
    RecordedProgram program(seed, folder);
    program.run();
    NullLogSink log;
    const auto report = replay_record(folder, log);
    ASSERT_TRUE(report) << report.error();
    ASSERT_EQ(report->difference, "");
    EXPECT_EQ(report->recorded, report->replayed);
    EXPECT_EQ(report->replayed.counts, program.counts);
    EXPECT_EQ(report->calls, report->compared_calls);
    EXPECT_GE(report->calls, kActions / 2);
    EXPECT_TRUE(report->gaps.empty());
    EXPECT_EQ(report->cut_off_bytes, 0U);

    // A ring that has lost its beginning is played cold, and breaks no contract.
    const auto files = files_in(folder);
    ASSERT_GT(files.size(), 1U);
    for (size_t i = 0; i < (files.size() + 2) / 3; ++i) std::filesystem::remove(files[i]);
    const auto cold = replay_record(folder, log);
    ASSERT_TRUE(cold) << cold.error();
    EXPECT_EQ(cold->difference, "");
    EXPECT_EQ(cold->compared_calls, 0U);
    ASSERT_EQ(cold->gaps.size(), 1U);
    EXPECT_EQ(cold->gaps[0].first, 1U);

    for (size_t i = 0; i < all.size(); ++i) all[i] += program.counts[i];
    tally.loads_begun += report->replayed.loads_begun;
    tally.loads_ended_between_steps += report->replayed.loads_ended_between_steps;
    tally.failed_between_steps += report->replayed.failed_between_steps;
    tally.fences += report->replayed.fences;
    held += program.scheduler->num_held;
    preempted += program.scheduler->num_preempted;
    cold_loads += cold->replayed.loads_begun;
  }
  EXPECT_GT(tally.loads_begun, 100U);
  EXPECT_GT(tally.loads_ended_between_steps, 20U);
  EXPECT_GT(tally.failed_between_steps, 0U);
  EXPECT_GT(tally.fences, 0U);
  EXPECT_GT(held, 0U);
  EXPECT_GT(preempted, 0U);
  EXPECT_GT(cold_loads, 0U);
  for (const RecordCounter counter :
       {RecordCounter::kG1ToG2, RecordCounter::kG1ToG3, RecordCounter::kG2ToG1,
        RecordCounter::kG2ToG3, RecordCounter::kG3ToG1, RecordCounter::kG3ToG2,
        RecordCounter::kFailed, RecordCounter::kEvictedG2, RecordCounter::kEvictedG3,
        RecordCounter::kLostG2, RecordCounter::kFiltered, RecordCounter::kGivenUp,
        RecordCounter::kLoadsTimedOut, RecordCounter::kForgottenG2}) {
    EXPECT_GT(of(all, counter), 0U) << to_string(counter);
  }
}

}  // namespace
}  // namespace kvbm
