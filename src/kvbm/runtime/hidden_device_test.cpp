// SPDX-License-Identifier: Apache-2.0
// The block manager and the worker of an engine on a device whose memory the host cannot address.
#include "tests/support/hidden_device.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/thread_executor.hpp"
#include "kvbm/base/units.hpp"
#include "kvbm/device/host_device.hpp"
#include "kvbm/runtime/block_manager.hpp"
#include "kvbm/runtime/config.hpp"
#include "kvbm/runtime/internal/rank_devices.hpp"
#include "kvbm/runtime/kvbm_worker.hpp"

#include "tests/support/error_code.hpp"
#include "tests/support/recording_log_sink.hpp"

namespace kvbm {
namespace {

using testing::code_of;
using testing::HiddenDevice;

class HiddenDeviceTest : public ::testing::Test {
 protected:
  [[nodiscard]] OpenedDevice open(size_t rank) {
    HiddenDevice& device = *hidden_.at(rank);
    return {.device = device.share(),
            .pinner = device.pinner(),
            .adopt_stream = [&device](uintptr_t, std::string_view name) {
              return device.create_stream(name);
            }};
  }

  [[nodiscard]] BlockManagerParts parts() {
    BlockManagerParts parts;
    parts.executor = &executor_;
    parts.log = &log_;
    parts.open_device = [this](const OpenDeviceOptions& options) -> Result<OpenedDevice> {
      opened_.emplace_back(options.name, options.cuda_ring_size);
      return open(static_cast<size_t>(options.host_ordinal));
    };
    return parts;
  }

  [[nodiscard]] static KvBlockManagerConfig config() {
    KvBlockManagerConfig config;
    config.device = "cuda";
    config.block_size = 4;
    config.num_blocks = 4;
    config.num_layers = 2;
    config.num_heads = 2;
    config.head_dim = 8;
    config.num_ranks = 2;
    config.host_blocks = 16;
    config.disk_blocks = 32;
    config.enable_offload = true;
    config.offload_path = ::testing::TempDir();
    return config;
  }

  /// Name and ring of each device that was asked for.
  using Opened = std::vector<std::pair<std::string, std::optional<uint64_t>>>;
  Opened opened_;
  testing::RecordingLogSink log_{LogLevel::kInfo};
  ThreadExecutor executor_{log_};
  std::array<std::unique_ptr<HostDevice>, 2> hosts_ = {
      HostDevice::create({.executor = executor_}).value(),
      HostDevice::create({.executor = executor_}).value()};
  std::array<std::unique_ptr<HiddenDevice>, 2> hidden_ = {
      std::make_unique<HiddenDevice>(*hosts_[0], 0), std::make_unique<HiddenDevice>(*hosts_[1], 1)};
};

SequenceKeys keys_of(const BlockManager& manager, uint64_t name, uint64_t length) {
  std::vector<Identity> chain;
  for (uint64_t i = 0; i < length; ++i) {
    chain.push_back(
        Identity::from_hashes(SequenceHash(name * 1000 + i), BlockHash(i), SequenceHash(name), i));
  }
  return manager.keys(chain);
}

std::vector<uint64_t> seeds_of(uint64_t name, uint64_t length) {
  std::vector<uint64_t> seeds;
  for (uint64_t i = 0; i < length; ++i) seeds.push_back(name * 1000 + i);
  return seeds;
}

/// Computes a chain of blocks, whose copies down are under way then.
void compute(BlockManager& manager, uint64_t name, uint64_t length) {
  const SequenceKeys keys = keys_of(manager, name, length);
  auto blocks = manager.allocate_blocks(length);
  ASSERT_TRUE(blocks) << blocks.error();
  const std::vector<uint64_t> seeds = seeds_of(name, length);
  const auto run = manager.launch_patterns(
      {.writes = *blocks, .write_seeds = seeds, .reads = {}, .read_seeds = {}});
  ASSERT_TRUE(run) << run.error();
  std::vector<CompleteBlock> complete;
  for (uint64_t i = 0; i < length; ++i) {
    complete.push_back(std::move((*blocks)[i])
                           .complete(keys.groups[0][i],
                                     i > 0 ? std::optional(keys.groups[0][i - 1]) : std::nullopt));
  }
  manager.release(manager.register_blocks(std::move(complete)));
  ASSERT_TRUE(manager.wait_idle());
}

/// Brings a chain back and compares it; how many blocks came back right.
uint64_t restore(BlockManager& manager, uint64_t name, uint64_t length) {
  PrefixHit hit = manager.match(keys_of(manager, name, length));
  auto into = manager.allocate_blocks(hit.num_destinations(0));
  EXPECT_TRUE(into) << into.error();
  std::vector<std::vector<MutableBlock>> destinations;
  destinations.push_back(std::move(*into));
  Onboarded onboarded = manager.onboard(std::move(hit), std::move(destinations));
  EXPECT_TRUE(onboarded.status) << onboarded.status.error();
  auto& blocks = onboarded.groups[0].blocks;
  const std::vector<uint64_t> seeds = seeds_of(name, blocks.size());
  const auto run = manager.launch_patterns(
      {.writes = {}, .write_seeds = {}, .reads = blocks, .read_seeds = seeds});
  EXPECT_TRUE(run) << run.error();
  EXPECT_TRUE(run->ended().wait());
  const uint64_t right = run->num_compared() - run->num_wrong();
  manager.release(std::move(blocks));
  return right;
}

TEST_F(HiddenDeviceTest, EveryByteComesBackFromHostAndDisk) {
  const auto manager = BlockManager::create(config(), parts());
  ASSERT_TRUE(manager) << manager.error();
  for (uint64_t name = 1; name <= 8; ++name) compute(**manager, name, 4);
  EXPECT_GT((*manager)->resident_blocks(TierId::kG3), 0u);
  for (uint64_t name = 1; name <= 8; ++name) {
    EXPECT_EQ(restore(**manager, name, 4), 4u) << "chain " << name;
  }
  EXPECT_TRUE((*manager)->stop());
}

TEST_F(HiddenDeviceTest, HostBlocksArePinnedAndTheLogTellsOfIt) {
  const auto manager = BlockManager::create(config(), parts());
  ASSERT_TRUE(manager) << manager.error();
  for (const auto& device : hidden_) {
    uint64_t pinned = 0;
    for (const auto& slice : device->pinner()->pinned()) pinned += slice.size_bytes;
    EXPECT_EQ(pinned, 16 * (*manager)->layout().block_bytes());
  }
  const auto told = log_.messages(LogLevel::kInfo);
  EXPECT_EQ(std::ranges::count_if(told,
                                  [](const std::string& text) {
                                    return text.find("of host memory are pinned") !=
                                           std::string::npos;
                                  }),
            2)
      << ::testing::PrintToString(told);
}

TEST_F(HiddenDeviceTest, AnEngineStoresAndLoadsItsOwnBytes) {
  const auto manager = BlockManager::create(config(), parts());
  ASSERT_TRUE(manager) << manager.error();
  auto blocks = (*manager)->allocate_blocks(1);
  ASSERT_TRUE(blocks);
  std::vector<std::byte> bytes((*manager)->layout().layer_bytes());
  for (uint16_t rank = 0; rank < 2; ++rank) {
    for (uint16_t layer = 0; layer < 2; ++layer) {
      std::ranges::fill(bytes, static_cast<std::byte>(rank * 16 + layer + 1));
      const Status stored =
          (*manager)->store_kv(blocks->front(), LayerId(layer), bytes, RankId(rank));
      ASSERT_TRUE(stored) << stored.error();
    }
  }
  std::vector<CompleteBlock> complete;
  complete.push_back(
      std::move(blocks->front()).complete(keys_of(**manager, 1, 1).groups[0][0], std::nullopt));
  const auto held = (*manager)->register_blocks(std::move(complete));
  for (uint16_t rank = 0; rank < 2; ++rank) {
    for (uint16_t layer = 0; layer < 2; ++layer) {
      std::ranges::fill(bytes, static_cast<std::byte>(rank * 16 + layer + 1));
      const auto loaded = (*manager)->load_kv(held[0], LayerId(layer), RankId(rank));
      ASSERT_TRUE(loaded) << loaded.error();
      EXPECT_EQ(*loaded, bytes);
    }
  }
}

TEST_F(HiddenDeviceTest, ATaskOfTheHostIsRefusedWithWhatToUse) {
  const auto manager = BlockManager::create(config(), parts());
  ASSERT_TRUE(manager) << manager.error();
  auto blocks = (*manager)->allocate_blocks(1);
  ASSERT_TRUE(blocks);
  const auto launched = (*manager)->launch(*blocks, {}, [](const KvView&) -> Status { return {}; });
  ASSERT_EQ(code_of(launched), ErrorCode::kUnsupported);
  EXPECT_NE(launched.error().message().find("launch_patterns"), std::string::npos);
}

TEST_F(HiddenDeviceTest, TakesAShareOfTheFreeMemory) {
  KvBlockManagerConfig share = config();
  share.num_blocks = 0;
  share.gpu_memory_fraction = 0.001;
  const auto manager = BlockManager::create(share, parts());
  ASSERT_TRUE(manager) << manager.error();
  const uint64_t bytes = (*manager)->gpu_occupancy().num_free * (*manager)->layout().block_bytes();
  const uint64_t free_bytes = hidden_[0]->info().free_bytes;
  EXPECT_GT(bytes, free_bytes / 2000);
  EXPECT_LT(bytes, free_bytes / 500);
}

TEST_F(HiddenDeviceTest, EachRankIsOpenedWithTheRingOfTheConfiguration) {
  const std::string file =
      "device = \"cuda\"\nnum_ranks = 2\nnum_blocks = 4\nnum_layers = 1\nnum_heads = 2\nhead_dim = "
      "8\n";
  const auto opened = [&](const std::string& more) {
    opened_.clear();
    const Config read = Config::load({.file = ConfigFile{"kvbm.toml", file + more}}).value();
    EXPECT_TRUE(BlockManager::create(read.values(), parts()));
    return opened_;
  };
  for (const auto& [line, ring_bytes] : {std::pair("", kDefaultRingBytes),
                                         {"cuda_ring_size = 0", 0},
                                         {"cuda_ring_size = \"160 MiB\"", 160 * kMiB}}) {
    EXPECT_EQ(opened(line), (Opened{{"cuda", ring_bytes}, {"cuda", ring_bytes}})) << line;
  }
}

TEST_F(HiddenDeviceTest, AHostIsAskedForNoRing) {
  KvBlockManagerConfig on_host = config();
  on_host.device = "host";
  ASSERT_TRUE(BlockManager::create(on_host, parts()));
  EXPECT_EQ(opened_, (Opened{{"host", std::nullopt}, {"host", std::nullopt}}));
}

TEST_F(HiddenDeviceTest, EveryByteComesBackFromADiskRightBelowIt) {
  KvBlockManagerConfig no_host = config();
  no_host.host_blocks = 0;
  const auto manager = BlockManager::create(no_host, parts());
  ASSERT_TRUE(manager) << manager.error();
  for (uint64_t name = 1; name <= 6; ++name) compute(**manager, name, 4);
  EXPECT_EQ((*manager)->resident_blocks(TierId::kG3), 24u);
  for (uint64_t name = 1; name <= 6; ++name) {
    EXPECT_EQ(restore(**manager, name, 4), 4u) << "chain " << name;
  }
  EXPECT_TRUE((*manager)->stop());
}

TEST_F(HiddenDeviceTest, AnEnginesTensorsGoToTheHostAndBack) {
  constexpr uint64_t kRun = 1024;
  constexpr uint32_t kBlocks = 4;
  HiddenDevice& device = *hidden_[0];
  const DeviceMemory tensor = device.allocate(kBlocks * kRun, 256).value();
  KvbmWorkerOptions options;
  options.device = "cuda";
  options.num_blocks = kBlocks;
  options.groups = {{.run_bytes = kRun, .runs = {{.base = tensor.data(), .block_stride = kRun}}}};
  options.cuda_ring_size = 5 << 20;
  options.open_device = parts().open_device;
  const auto worker = KvbmWorker::create(std::move(options), log_);
  ASSERT_TRUE(worker) << worker.error();
  EXPECT_EQ(opened_, (Opened{{"cuda", 5 << 20}}));
  PlaceSpec host = (*worker)->engine_places().front();
  host.place.tier = TierId::kG2;
  host.owner = Owner::kKvbm;
  ASSERT_TRUE((*worker)->worker().provide(host));

  fill_pattern(1, {device.behind(tensor.data()) + kRun, kRun});
  std::promise<void> both;
  std::vector<Outcome> outcomes;
  (*worker)->worker().on_result([&](OpResult&& result) {
    outcomes.push_back(result.outcome);
    if (outcomes.size() == 2) both.set_value();
  });
  const Place g1 = (*worker)->engine_places().front().place;
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
  const std::array ops = {down, up};
  (*worker)->worker().submit(ops);
  both.get_future().wait();
  EXPECT_EQ(outcomes, std::vector(2, Outcome::kSucceeded));
  EXPECT_EQ(first_wrong_byte(1, {device.behind(tensor.data()), kRun}), std::nullopt);
  EXPECT_TRUE((*worker)->stop());
}

TEST(RankDevices, EachRankHasAGpuOfItsOwnWhereThereAreEnough) {
  using Names = std::vector<std::string>;
  EXPECT_EQ(internal::rank_device_names("cuda", 2, 8), (Names{"cuda:0", "cuda:1"}));
  EXPECT_EQ(internal::rank_device_names("cuda:6", 2, 8), (Names{"cuda:6", "cuda:7"}));
  EXPECT_EQ(internal::rank_device_names("cuda:7", 2, 8), (Names{"cuda:7", "cuda:7"}));
  EXPECT_EQ(internal::rank_device_names("cuda:1", 3, 2), (Names{"cuda:1", "cuda:1", "cuda:1"}));
  EXPECT_EQ(internal::rank_device_names("cuda:9", 1, 2), Names{"cuda:9"});
  EXPECT_EQ(internal::rank_device_names("host", 2, 8), (Names{"host", "host"}));
}

}  // namespace
}  // namespace kvbm
