// SPDX-License-Identifier: Apache-2.0
// kvbm_record_corpus <folder>: makes the folder, with the record of a short run in several files,
// and damaged copies of one of them. For record_fuzz, and for the test of kvbm replay.
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvbm/base/thread_executor.hpp"
#include "kvbm/cluster/logical_channel.hpp"
#include "kvbm/connector/recording_leader.hpp"
#include "kvbm/events/event_sink.hpp"

#include "tests/support/losing_channel.hpp"
#include "tests/support/random_scheduler.hpp"

namespace {

using kvbm::TierId;
using kvbm::testing::RandomScheduler;

constexpr uint32_t kActions = 60;

kvbm::RecordHeader header_of_run(const kvbm::Clock& clock) {
  kvbm::RecordHeader header;
  header.run = 1;
  header.started = clock.wall_time();
  header.connector.groups = {{.block_tokens = 4},
                             {.block_tokens = 8, .retention = kvbm::Retention::last_window(2)}};
  header.connector.ns = kvbm::NamespaceId(7);
  header.tiers.groups = kvbm::split_groups(header.connector.groups)->specs();
  header.tiers.engine_ids = kvbm::EngineIds::kOfOnePool;
  header.tiers.timeout = std::chrono::seconds(30);
  for (const kvbm::GroupSpec& group : header.tiers.groups) {
    for (const auto& [tier, num_blocks] :
         {std::pair(TierId::kG1, 64U), std::pair(TierId::kG2, 8U), std::pair(TierId::kG3, 16U)}) {
      header.tiers.places.push_back(
          {.place = {tier, group.id},
           .owner = tier == TierId::kG1 ? kvbm::Owner::kEngine : kvbm::Owner::kKvbm,
           .num_blocks = num_blocks,
           .rank_block_bytes = 4096});
    }
  }
  return header;
}

void record_a_run(const std::filesystem::path& folder) {
  kvbm::NullLogSink log;
  kvbm::ThreadExecutor executor(log);
  kvbm::ManualClock clock;
  kvbm::HeldClock held(clock);
  kvbm::NullSink events;
  kvbm::MetricsRegistry metrics;
  const kvbm::RecordHeader header = header_of_run(clock);
  kvbm::LogicalChannel logical(1, header.tiers.places);
  kvbm::testing::LosingChannel losing(logical);
  kvbm::RecordingChannel channel(losing, held);
  auto tiers = kvbm::TierManager::create(header.tiers, held, events, metrics, log).value();
  kvbm::Cluster cluster(std::move(tiers), channel, held, kvbm::EngineOperations::kBySteps);
  const auto leader =
      kvbm::ConnectorLeader::create(header.connector, cluster, held, metrics, log).value();
  const auto writer = kvbm::RecordWriter::create({.folder = folder, .max_file_bytes = 12'288},
                                                 header, executor, metrics, log)
                          .value();
  kvbm::RecordingLeader recording(*leader, channel, held, cluster.leader().metrics(), *writer);
  RandomScheduler scheduler(recording,
                            {.block_tokens = {4, 8}, .engine_blocks = 64, .num_chains = 3}, 1,
                            [&](std::span<const std::byte> bytes) {
                              kvbm::ConnectorStep step = kvbm::decode_connector_step(bytes).value();
                              logical.send(step.plan.loads, {});
                              logical.send(step.plan.stores, {});
                              return std::move(step.ended_loads);
                            });
  for (uint32_t i = 0; i < kActions; ++i) {
    clock.advance(std::chrono::milliseconds(10));
    if (i == kActions / 4) losing.shrink({kvbm::RankId(0), {TierId::kG2, kvbm::GroupId(0)}, 5});
    scheduler.act();
  }
  static_cast<void>(recording.wait_idle(clock.now()));
}

void write(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s <folder that is not there yet>\n", argv[0]);
    return 2;
  }
  const std::filesystem::path folder = argv[1];
  record_a_run(folder);
  std::ifstream first(folder / kvbm::record_file_name(0), std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(first), {}};
  write(folder / "cut_off", bytes.substr(0, bytes.size() - 5));
  std::string newer = bytes.substr(0, 1000);
  newer[4] = 4;
  write(folder / "newer_version", newer);
  std::string damaged = bytes;
  damaged[damaged.size() / 2] ^= 1;
  write(folder / "damaged", damaged);
  return 0;
}
