// SPDX-License-Identifier: Apache-2.0
// The block manager, whole replays and the worker of an engine with G1 on a GPU.
#include <array>
#include <cstddef>
#include <cstdint>
#include <future>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/log.hpp"
#include "kvbm/base/thread_executor.hpp"
#include "kvbm/base/units.hpp"
#include "kvbm/replay/replay.hpp"
#include "kvbm/replay/trace_generator.hpp"
#include "kvbm/runtime/block_manager.hpp"
#include "kvbm/runtime/devices.hpp"
#include "kvbm/runtime/kvbm_worker.hpp"

#include "tests/support/require.hpp"
#include "tests/support/test_gpu_name.hpp"

namespace kvbm {
namespace {

class CudaReplay : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const auto gpus = find_accelerators(); !gpus) KVBM_SKIP("gpu", gpus.error().message());
  }
};

Trace chats(uint64_t seed) {
  TraceGeneratorOptions options;
  options.seed = seed;
  options.chat.sessions = 40;
  options.agents.sessions = 6;
  return generate_trace(options).value();
}

ReplayOptions three_tiers(std::string device) {
  ReplayOptions options;
  options.device = std::move(device);
  options.g1_blocks = 150;
  options.g2_blocks = 400;
  options.g3_blocks = 1500;
  options.block_bytes = 64 * kKiB;
  options.disk_dir = ::testing::TempDir();
  return options;
}

ReplayReport replay(const Trace& trace, const ReplayOptions& options) {
  SystemClock clock;
  Progress silent(clock);
  auto report = run_replay(trace, options, silent);
  EXPECT_TRUE(report) << report.error();
  if (!report) return {};
  EXPECT_EQ(report->mismatches, 0u) << report->first_mismatch;
  EXPECT_EQ(report->failed_loads, 0u) << report->first_failed_load;
  EXPECT_GT(report->verified_blocks, 0u);
  return *std::move(report);
}

/// What does not depend on times.
auto counts(const ReplayReport& report) {
  return std::tuple(report.accesses, report.hits, report.misses, report.verified_blocks,
                    report.evictions, report.onboarded_blocks, report.stored_blocks, report.events);
}

TEST_F(CudaReplay, CountsWhatTheHostCounts) {
  const Trace trace = chats(1);
  for (const uint32_t ranks : {1U, 2U}) {
    ReplayOptions here = three_tiers("host");
    ReplayOptions there = three_tiers(testing::test_gpu_name());
    here.ranks = there.ranks = ranks;
    here.groups = there.groups = parse_replay_groups("full,window:4").value();
    EXPECT_EQ(counts(replay(trace, here)), counts(replay(trace, there))) << ranks << " ranks";
  }
}

TEST_F(CudaReplay, KeepsEveryByteWhileStoresRun) {
  ReplayOptions options = three_tiers(testing::test_gpu_name());
  options.overlap = ReplayOptions::Overlap::kOn;
  for (uint64_t seed = 1; seed <= 3; ++seed) (void)replay(chats(seed), options);
}

KvBlockManagerConfig small_config() {
  KvBlockManagerConfig config;
  config.device = testing::test_gpu_name();
  config.block_size = 16;
  config.num_blocks = 8;
  config.num_layers = 3;
  config.num_heads = 2;
  config.head_dim = 64;
  config.host_blocks = 32;
  config.enable_offload = true;
  return config;
}

TEST_F(CudaReplay, TellsWhichBytesAreWrong) {
  const auto manager = BlockManager::create(small_config());
  ASSERT_TRUE(manager) << manager.error();
  std::vector<Identity> chain;
  for (uint64_t i = 0; i < 3; ++i) {
    chain.push_back(Identity::from_hashes(SequenceHash(i), BlockHash(i), SequenceHash(9), i));
  }
  const SequenceKeys keys = (*manager)->keys(chain);
  auto blocks = (*manager)->allocate_blocks(3);
  ASSERT_TRUE(blocks);
  const std::vector<uint64_t> seeds = {5, 6, 7};
  const auto written = (*manager)->launch_patterns(
      {.writes = *blocks, .write_seeds = seeds, .reads = {}, .read_seeds = {}});
  ASSERT_TRUE(written) << written.error();
  const std::vector<std::byte> other((*manager)->layout().layer_bytes(), std::byte{0x77});
  const Status stored = (*manager)->store_kv((*blocks)[1], LayerId(2), other);
  ASSERT_TRUE(stored) << stored.error();
  std::vector<CompleteBlock> complete;
  for (size_t i = 0; i < 3; ++i) {
    complete.push_back(std::move((*blocks)[i])
                           .complete(keys.groups[0][i],
                                     i > 0 ? std::optional(keys.groups[0][i - 1]) : std::nullopt));
  }
  const auto held = (*manager)->register_blocks(std::move(complete));
  const auto run = (*manager)->launch_patterns(
      {.writes = {}, .write_seeds = {}, .reads = held, .read_seeds = seeds});
  ASSERT_TRUE(run) << run.error();
  ASSERT_TRUE(run->ended().wait());
  EXPECT_EQ(run->num_compared(), 3u);
  EXPECT_EQ(run->num_wrong(), 1u);
  EXPECT_EQ(run->first_wrong(), (WrongBytes{.read = 1, .rank = RankId(0), .layer = LayerId(2)}));
  const auto loaded = (*manager)->load_kv(held[1], LayerId(2));
  ASSERT_TRUE(loaded) << loaded.error();
  EXPECT_EQ(*loaded, other);
}

TEST_F(CudaReplay, TakesAShareOfTheFreeMemory) {
  KvBlockManagerConfig config = small_config();
  config.num_blocks = 0;
  config.gpu_memory_fraction = 0.001;
  const auto manager = BlockManager::create(config);
  ASSERT_TRUE(manager) << manager.error();
  EXPECT_GT((*manager)->gpu_occupancy().num_free, 100u);
}

TEST_F(CudaReplay, TheRingOfEachRankIsAsLargeAsConfigured) {
  std::vector<DeviceCapabilities> opened;
  const DeviceOpener note = [&opened](const OpenDeviceOptions& options) {
    auto device = open_device(options);
    if (device) opened.push_back(device->device->info().capabilities);
    return device;
  };
  KvBlockManagerConfig config = small_config();
  config.num_ranks = 2;
  for (const uint64_t ring_bytes : {uint64_t{0}, 16 * kMiB}) {
    config.cuda_ring_size = ring_bytes;
    const auto manager = BlockManager::create(config, {.open_device = note});
    ASSERT_TRUE(manager) << manager.error();
  }
  ASSERT_EQ(opened.size(), 4u);
  for (size_t i = 0; i < opened.size(); ++i) {
    EXPECT_FALSE(opened[i].ring_is_missing);
    EXPECT_EQ(opened[i].ring_block_bytes, i < 2 ? 0 : 8 * kMiB) << "half of the ring is a slot";
  }
}

KvbmWorkerOptions worker_of(std::byte* tensor) {
  KvbmWorkerOptions options;
  options.device = testing::test_gpu_name();
  options.num_blocks = 4;
  options.groups = {{.run_bytes = 4096, .runs = {{.base = tensor, .block_stride = 4096}}}};
  return options;
}

TEST_F(CudaReplay, AWorkerMovesTheTensorsOfAnEngine) {
  NullLogSink log;
  ThreadExecutor executor(log);
  const auto engine = open_device({.name = testing::test_gpu_name(), .executor = executor});
  ASSERT_TRUE(engine) << engine.error();
  Device& device = *engine->device;
  const DeviceMemory tensor = device.allocate(uint64_t{4} * 4096, 256).value();
  const auto worker = KvbmWorker::create(worker_of(tensor.data()), log);
  ASSERT_TRUE(worker) << worker.error();
  PlaceSpec host = (*worker)->engine_places().front();
  const Place g1 = host.place;
  host.place.tier = TierId::kG2;
  host.owner = Owner::kKvbm;
  ASSERT_TRUE((*worker)->worker().provide(host));

  PatternBatch pattern{.blocks = {BlockId(1)},
                       .seeds = {77},
                       .pieces = {{.data = tensor.data(), .block_stride = 4096, .bytes = 4096}}};
  const StreamRef stream = device.create_stream("engine").value();
  ASSERT_TRUE(device.pattern(stream, pattern));
  ASSERT_TRUE(device.synchronize(stream));

  std::promise<void> both;
  std::vector<Outcome> outcomes;
  (*worker)->worker().on_result([&](OpResult&& result) {
    outcomes.push_back(result.outcome);
    if (outcomes.size() == 2) both.set_value();
  });
  CopyOp down;
  down.op = OpId(1);
  down.src = g1;
  down.dst = host.place;
  down.from = {BlockId(1)};
  down.to = {BlockId(3)};
  CopyOp up;
  up.op = OpId(2);
  up.src = host.place;
  up.dst = g1;
  up.from = {BlockId(3)};
  up.to = {BlockId(0)};
  up.after = {Gate::op_done(OpId(1))};
  (*worker)->worker().submit(std::array{down, up});
  both.get_future().wait();
  EXPECT_EQ(outcomes, std::vector(2, Outcome::kSucceeded));
  pattern.blocks = {BlockId(0)};
  pattern.findings = std::make_shared<PatternFindings>(1);
  ASSERT_TRUE(device.pattern(stream, pattern));
  ASSERT_TRUE(device.synchronize(stream));
  EXPECT_EQ(pattern.findings->num_compared(), 1u);
  EXPECT_EQ(pattern.findings->num_wrong(), 0u);
  EXPECT_TRUE((*worker)->stop());
}

TEST_F(CudaReplay, AWorkerRefusesAddressesThatAreNotTheGpus) {
  NullLogSink log;
  std::vector<std::byte> heap(size_t{4} * 4096);
  const auto worker = KvbmWorker::create(worker_of(heap.data()), log);
  ASSERT_FALSE(worker);
  EXPECT_EQ(worker.error().code(), ErrorCode::kInvalidArgument) << worker.error();
}

}  // namespace
}  // namespace kvbm
