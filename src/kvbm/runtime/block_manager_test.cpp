// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/block_manager.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <future>
#include <new>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/contract.hpp"
#include "kvbm/events/counting_sink.hpp"
#include "kvbm/layout/physical_layout.hpp"
#include "kvbm/runtime/devices.hpp"

#include "tests/support/recording_log_sink.hpp"

namespace kvbm {
namespace {

KvBlockManagerConfig small_config() {
  KvBlockManagerConfig config;
  config.block_size = 4;
  config.num_blocks = 4;
  config.num_layers = 2;
  config.num_heads = 2;
  config.head_dim = 8;
  config.host_blocks = 4;
  config.disk_blocks = 16;
  config.enable_offload = true;
  config.offload_path = ::testing::TempDir();
  return config;
}

std::unique_ptr<BlockManager> make(const KvBlockManagerConfig& config,
                                   BlockManagerParts parts = {}) {
  auto manager = BlockManager::create(config, std::move(parts));
  EXPECT_TRUE(manager) << manager.error();
  return std::move(*manager);
}

std::vector<Identity> chain(uint64_t name, uint64_t length) {
  std::vector<Identity> identities;
  for (uint64_t i = 0; i < length; ++i) {
    identities.push_back(
        Identity::from_hashes(SequenceHash(name * 1000 + i), BlockHash(i), SequenceHash(name), i));
  }
  return identities;
}

std::vector<std::byte> layer_bytes(const BlockManager& manager, uint64_t name) {
  std::vector<std::byte> bytes(manager.layout().layer_bytes());
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(name * 31 + i * 7);
  return bytes;
}

/// Computes a whole chain and lets it go. Block i of layer l holds layer_bytes(name * 100 + i * 10
/// + l).
void compute(BlockManager& manager, uint64_t name, uint64_t length) {
  const SequenceKeys keys = manager.keys(chain(name, length));
  auto blocks = manager.allocate_blocks(length);
  ASSERT_TRUE(blocks) << blocks.error();
  std::vector<CompleteBlock> complete;
  for (uint64_t i = 0; i < length; ++i) {
    for (uint16_t layer = 0; layer < manager.config().num_layers; ++layer) {
      const Status stored = manager.store_kv((*blocks)[i], LayerId(layer),
                                             layer_bytes(manager, name * 100 + i * 10 + layer));
      ASSERT_TRUE(stored) << stored.error();
    }
    complete.push_back(std::move((*blocks)[i])
                           .complete(keys.groups[0][i],
                                     i > 0 ? std::optional(keys.groups[0][i - 1]) : std::nullopt));
  }
  manager.release(manager.register_blocks(std::move(complete)));
  ASSERT_TRUE(manager.wait_idle());
}

/// Brings a chain back to G1 and compares every byte; returns how many blocks it got.
uint32_t restore_and_check(BlockManager& manager, uint64_t name, uint64_t length) {
  PrefixHit hit = manager.match(manager.keys(chain(name, length)));
  auto destinations = manager.allocate_blocks(hit.num_destinations(0));
  EXPECT_TRUE(destinations) << destinations.error();
  std::vector<std::vector<MutableBlock>> into;
  into.push_back(std::move(*destinations));
  Onboarded onboarded = manager.onboard(std::move(hit), std::move(into));
  EXPECT_TRUE(onboarded.status) << onboarded.status.error();
  for (size_t i = 0; i < onboarded.groups[0].blocks.size(); ++i) {
    for (uint16_t layer = 0; layer < manager.config().num_layers; ++layer) {
      const auto bytes = manager.load_kv(onboarded.groups[0].blocks[i], LayerId(layer));
      EXPECT_TRUE(bytes) << bytes.error();
      EXPECT_EQ(*bytes, layer_bytes(manager, name * 100 + i * 10 + layer)) << "block " << i;
    }
  }
  const uint32_t restored = onboarded.num_blocks;
  manager.release(std::move(onboarded.groups[0].blocks));
  return restored;
}

TEST(BlockManager, FindsNothingAfterAReset) {
  CountingSink events;
  auto manager = make(small_config(), {.events = &events});
  for (const uint64_t name : {1, 2, 3}) compute(*manager, name, 4);
  const auto resident = [&] {
    return std::array{manager->resident_blocks(TierId::kG1), manager->resident_blocks(TierId::kG2),
                      manager->resident_blocks(TierId::kG3)};
  };
  const auto before = resident();
  EXPECT_GT(*std::ranges::min_element(before), 0u);
  const auto refused_because = [&](const std::string& why) {
    const Status emptied = manager->reset();
    return !emptied && emptied.error().code() == ErrorCode::kUnavailable &&
           emptied.error().message().find(why) != std::string::npos;
  };
  {
    const PrefixHit in_g1 = manager->match(manager->keys(chain(3, 4)));
    ASSERT_EQ(in_g1.num_gpu_blocks(), 4u);
    EXPECT_TRUE(refused_because("4 blocks of G1 are held"));
    EXPECT_EQ(resident(), before);
  }
  {
    const PrefixHit below = manager->match(manager->keys(chain(1, 4)));
    ASSERT_EQ(below.num_gpu_blocks(), 0u);
    EXPECT_TRUE(refused_because("hits pin 4 blocks below G1"));
  }
  EXPECT_TRUE(manager->reset());
  EXPECT_EQ(resident(), (std::array<uint64_t, 3>{}));
  for (const uint64_t name : {1, 2, 3}) {
    EXPECT_EQ(manager->match(manager->keys(chain(name, 4))).num_blocks(), 0u);
  }
  for (const TierId tier : {TierId::kG1, TierId::kG2, TierId::kG3}) {
    EXPECT_EQ(events.tally().of(tier).resident(), 0) << tier;
  }
  compute(*manager, 1, 4);
  EXPECT_EQ(restore_and_check(*manager, 1, 4), 4u);
}

TEST(BlockManager, FindsInG1WhatWasRegistered) {
  auto manager = make(small_config());
  compute(*manager, 1, 3);
  const PrefixHit hit = manager->match(manager->keys(chain(1, 4)));
  EXPECT_EQ(hit.num_blocks(), 3u);
  EXPECT_EQ(hit.num_gpu_blocks(), 3u);
  EXPECT_EQ(hit.tier(2), TierId::kG1);
  EXPECT_EQ(hit.num_destinations(0), 0u);
}

TEST(BlockManager, BringsBackFromHostWhatLeftG1) {
  auto manager = make(small_config());
  compute(*manager, 1, 3);
  compute(*manager, 2, 1);  // fills G1
  auto all = manager->allocate_blocks(4);
  ASSERT_TRUE(all) << all.error();
  all->clear();
  const PrefixHit hit = manager->match(manager->keys(chain(1, 3)));
  EXPECT_EQ(hit.num_gpu_blocks(), 0u);
  EXPECT_EQ(hit.num_blocks(), 3u);
  EXPECT_EQ(hit.tier(0), TierId::kG2);
  EXPECT_EQ(restore_and_check(*manager, 1, 3), 3u);
}

TEST(BlockManager, BringsBackFromDiskWhatLeftTheHost) {
  auto manager = make(small_config());
  compute(*manager, 1, 4);
  compute(*manager, 2, 4);
  compute(*manager, 3, 4);
  EXPECT_EQ(manager->match(manager->keys(chain(1, 4))).tier(3), TierId::kG3);
  EXPECT_EQ(restore_and_check(*manager, 1, 4), 4u);
  EXPECT_EQ(restore_and_check(*manager, 2, 4), 4u);
  EXPECT_EQ(restore_and_check(*manager, 3, 4), 4u);
}

/// Begins to bring back a chain that is below G1 alone.
OnboardingId begin_onboard(BlockManager& manager, uint64_t name, uint64_t length) {
  (void)manager.allocate_blocks(4);  // evicts all from G1
  PrefixHit hit = manager.match(manager.keys(chain(name, length)));
  EXPECT_EQ(hit.num_gpu_blocks(), 0u);
  std::vector<std::vector<MutableBlock>> into;
  into.push_back(*manager.allocate_blocks(hit.num_destinations(0)));
  return manager.begin_onboard(std::move(hit), std::move(into));
}

TEST(BlockManager, OnboardsWithoutAWaitAndGivesTheResultOnce) {
  auto manager = make(small_config());
  compute(*manager, 1, 3);
  const OnboardingId id = begin_onboard(*manager, 1, 3);
  std::optional<Onboarded> onboarded;
  while (!onboarded) onboarded = manager->finish_onboard(id, manager->clock().now());
  EXPECT_EQ(onboarded->num_blocks, 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(manager->load_kv(onboarded->groups[0].blocks[i], LayerId(1)).value(),
              layer_bytes(*manager, 100 + i * 10 + 1));
  }
  EXPECT_THROW((void)manager->finish_onboard(id, kNever), ContractViolation);
}

TEST(BlockManager, WhatAForgottenOnboardingBroughtIsFoundInG1) {
  auto manager = make(small_config());
  compute(*manager, 1, 3);
  const OnboardingId id = begin_onboard(*manager, 1, 3);
  manager->forget_onboard(id);
  ASSERT_TRUE(manager->wait_idle());
  manager->poll();
  EXPECT_EQ(manager->gpu_occupancy().num_mutable, 0u);
  EXPECT_EQ(manager->match(manager->keys(chain(1, 3))).num_gpu_blocks(), 3u);
}

TEST(BlockManager, SaysWhereTheBlocksOfARankAre) {
  KvBlockManagerConfig config = small_config();
  config.num_ranks = 2;
  auto manager = make(config);
  auto blocks = manager->allocate_blocks(1);
  ASSERT_TRUE(blocks);
  const BlockId block = blocks->front().block_id();
  for (uint16_t rank = 0; rank < 2; ++rank) {
    const auto bytes = layer_bytes(*manager, rank);
    ASSERT_TRUE(manager->store_kv(blocks->front(), LayerId(1), bytes, RankId(rank)));
    const MemoryRegion keys = manager->gpu_layout(RankId(rank)).region(block, LayerId(1), 0);
    EXPECT_TRUE(std::equal(keys.base(), keys.base() + keys.size_bytes(), bytes.begin()));
  }
  EXPECT_THROW((void)manager->gpu_layout(RankId(2)), ContractViolation);
}

TEST(BlockManager, ServesSeveralRanksEachWithItsOwnBytes) {
  KvBlockManagerConfig config = small_config();
  config.num_ranks = 3;
  auto manager = make(config);
  const SequenceKeys keys = manager->keys(chain(1, 1));
  auto blocks = manager->allocate_blocks(1);
  ASSERT_TRUE(blocks);
  for (uint16_t rank = 0; rank < 3; ++rank) {
    ASSERT_TRUE(
        manager->store_kv(blocks->front(), LayerId(1), layer_bytes(*manager, rank), RankId(rank)));
  }
  std::vector<CompleteBlock> complete;
  complete.push_back(std::move(blocks->front()).complete(keys.groups[0][0], std::nullopt));
  manager->release(manager->register_blocks(std::move(complete)));
  ASSERT_TRUE(manager->wait_idle());
  (void)manager->allocate_blocks(4);  // evicts it from G1

  PrefixHit hit = manager->match(keys);
  EXPECT_EQ(hit.tier(0), TierId::kG2);
  std::vector<std::vector<MutableBlock>> into;
  into.push_back(*manager->allocate_blocks(1));
  Onboarded onboarded = manager->onboard(std::move(hit), std::move(into));
  ASSERT_EQ(onboarded.num_blocks, 1u);
  for (uint16_t rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(manager->load_kv(onboarded.groups[0].blocks[0], LayerId(1), RankId(rank)).value(),
              layer_bytes(*manager, rank));
  }
}

TEST(BlockManager, WithoutOffloadKeepsOnlyG1) {
  KvBlockManagerConfig config = small_config();
  config.enable_offload = false;
  config.host_blocks = 0;
  config.disk_blocks = 0;
  config.offload_path = KvBlockManagerConfig().offload_path;
  auto manager = make(config);
  compute(*manager, 1, 4);
  compute(*manager, 2, 4);
  EXPECT_EQ(manager->match(manager->keys(chain(1, 4))).num_blocks(), 0u);
  EXPECT_EQ(manager->match(manager->keys(chain(2, 4))).num_gpu_blocks(), 4u);
}

TEST(BlockManager, DiskAloneServesAsWell) {
  KvBlockManagerConfig config = small_config();
  config.host_blocks = 0;
  auto manager = make(config);
  compute(*manager, 1, 4);
  compute(*manager, 2, 4);
  EXPECT_EQ(restore_and_check(*manager, 1, 4), 4u);
}

TEST(BlockManager, EventsSayWhatIsResident) {
  CountingSink events;
  BlockManagerParts parts;
  parts.events = &events;
  auto manager = make(small_config(), parts);
  for (uint64_t name = 1; name <= 6; ++name) compute(*manager, name, 1 + name % 4);
  EXPECT_EQ(restore_and_check(*manager, 2, 3), 3u);
  for (TierId tier : {TierId::kG1, TierId::kG2, TierId::kG3}) {
    EXPECT_EQ(events.tally().of(tier).resident(),
              static_cast<int64_t>(manager->resident_blocks(tier)))
        << tier;
  }
  EXPECT_GT(manager->resident_blocks(TierId::kG3), 0u);
}

TEST(BlockManager, StopWritesDirtyHostBlocksToDisk) {
  auto manager = make(small_config());
  compute(*manager, 1, 3);
  EXPECT_EQ(manager->resident_blocks(TierId::kG3), 0u);
  ASSERT_TRUE(manager->stop());
  EXPECT_EQ(manager->resident_blocks(TierId::kG3), 3u);
  EXPECT_EQ(manager->tier_metrics().drained_blocks.value(), 3u);
  EXPECT_TRUE(manager->stop());
}

TEST(BlockManager, WhatAFailedTaskLeftUnwrittenGoesNowhere) {
  auto manager = make(small_config());
  const SequenceKeys keys = manager->keys(chain(1, 2));
  auto blocks = manager->allocate_blocks(2);
  ASSERT_TRUE(blocks);
  const auto fails = [](const KvView&) -> Status {
    return make_error(ErrorCode::kDevice, "the kernel failed");
  };
  const auto succeeds = [](const KvView&) -> Status { return {}; };
  const auto first = manager->launch({&(*blocks)[0], 1}, {}, fails);
  const auto second = manager->launch({&(*blocks)[1], 1}, {}, succeeds);
  ASSERT_TRUE(first && second);
  std::vector<CompleteBlock> complete;
  complete.push_back(std::move((*blocks)[0]).complete(keys.groups[0][0], std::nullopt));
  complete.push_back(std::move((*blocks)[1]).complete(keys.groups[0][1], keys.groups[0][0]));
  manager->release(manager->register_blocks(std::move(complete)));
  EXPECT_TRUE(manager->wait_idle());
  EXPECT_FALSE(first->status());
  EXPECT_TRUE(second->status());
  EXPECT_EQ(manager->resident_blocks(TierId::kG2), 0U);
}

TEST(BlockManager, IsDestroyedAfterWhatRunsOnItsBlocks) {
  auto manager = make(small_config());
  auto blocks = manager->allocate_blocks(1);
  ASSERT_TRUE(blocks);
  std::promise<void> started;
  std::promise<void> go_on;
  const auto task = [&, going_on = go_on.get_future().share()](const KvView& view) -> Status {
    started.set_value();
    going_on.wait();
    std::ranges::fill(view.writable(0, LayerId(1), 1), std::byte{1});
    return {};
  };
  const auto running = manager->launch(*blocks, {}, task);
  ASSERT_TRUE(running);
  started.get_future().wait();
  std::thread slow([&go_on] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    go_on.set_value();
  });
  manager.reset();
  slow.join();
}

TEST(BlockManager, StoreAndLoadCheckTheirBounds) {
  auto manager = make(small_config());
  auto blocks = manager->allocate_blocks(1);
  ASSERT_TRUE(blocks);
  const auto bytes = layer_bytes(*manager, 1);
  const auto short_bytes = std::span(bytes).first(bytes.size() - 1);
  EXPECT_THROW((void)manager->store_kv(blocks->front(), LayerId(2), bytes), ContractViolation);
  EXPECT_THROW((void)manager->store_kv(blocks->front(), LayerId(0), short_bytes),
               ContractViolation);
  EXPECT_THROW((void)manager->store_kv(blocks->front(), LayerId(0), bytes, RankId(1)),
               ContractViolation);
}

TEST(BlockManager, TellsWhichBytesOfAPatternAreWrong) {
  KvBlockManagerConfig config = small_config();
  config.num_ranks = 2;
  auto manager = make(config);
  const SequenceKeys keys = manager->keys(chain(1, 3));
  auto blocks = manager->allocate_blocks(3);
  ASSERT_TRUE(blocks);
  const std::vector<uint64_t> seeds = {5, 6, 7};
  const auto written = manager->launch_patterns(
      {.writes = *blocks, .write_seeds = seeds, .reads = {}, .read_seeds = {}});
  ASSERT_TRUE(written) << written.error();
  ASSERT_TRUE(written->ended().wait());
  EXPECT_EQ(written->num_compared(), 0u);

  // No two chunks of it are alike.
  std::set<std::vector<std::byte>> chunks;
  for (uint16_t rank = 0; rank < 2; ++rank) {
    for (const MutableBlock& block : *blocks) {
      for (uint16_t layer = 0; layer < 2; ++layer) {
        for (uint32_t outer = 0; outer < 2; ++outer) {
          const MemoryRegion part =
              manager->gpu_layout(RankId(rank)).region(block.block_id(), LayerId(layer), outer);
          chunks.emplace(part.base(), part.base() + part.size_bytes());
        }
      }
    }
  }
  EXPECT_EQ(chunks.size(), 2u * 3 * 2 * 2);

  // The values of the last layer of one block, on the second rank.
  const uint64_t chunk = manager->layout().layer_bytes() / 2;
  const PhysicalLayout& second = manager->gpu_layout(RankId(1));
  second.region((*blocks)[2].block_id(), LayerId(1), 1).base()[chunk - 1] ^= std::byte{1};
  std::vector<CompleteBlock> complete;
  for (size_t i = 0; i < 3; ++i) {
    complete.push_back(std::move((*blocks)[i])
                           .complete(keys.groups[0][i],
                                     i > 0 ? std::optional(keys.groups[0][i - 1]) : std::nullopt));
  }
  const auto held = manager->register_blocks(std::move(complete));
  const auto compare = [&](std::vector<uint64_t> expected) {
    const auto run = manager->launch_patterns(
        {.writes = {}, .write_seeds = {}, .reads = held, .read_seeds = expected});
    EXPECT_TRUE(run) << run.error();
    EXPECT_TRUE(run->ended().wait()) << "wrong bytes are no failure";
    EXPECT_EQ(run->num_compared(), 3u);
    return *run;
  };
  const KvPatternRun last_byte = compare(seeds);
  EXPECT_EQ(last_byte.num_wrong(), 1u);
  EXPECT_EQ(
      last_byte.first_wrong(),
      (WrongBytes{
          .read = 2, .rank = RankId(1), .layer = LayerId(1), .outer = 1, .offset = chunk - 1}));
  const KvPatternRun exchanged = compare({6, 5, 7});
  EXPECT_EQ(exchanged.num_wrong(), 3u);
  EXPECT_EQ(exchanged.first_wrong(), WrongBytes{});
  EXPECT_THROW((void)manager->launch_patterns(
                   {.writes = {}, .write_seeds = {}, .reads = held, .read_seeds = {}}),
               ContractViolation);
}

TEST(BlockManager, RefusesAnAllocationLargerThanG1) {
  auto manager = make(small_config());
  const auto blocks = manager->allocate_blocks(5);
  ASSERT_FALSE(blocks);
  EXPECT_EQ(blocks.error().code(), ErrorCode::kExhausted);
}

TEST(BlockManager, LogicalWorkersMoveNoBytes) {
  BlockManagerParts parts;
  parts.workers = BlockManagerParts::Workers::kLogical;
  auto manager = make(small_config(), parts);
  auto blocks = manager->allocate_blocks(1);
  ASSERT_TRUE(blocks);
  const auto launched = manager->launch(*blocks, {}, [](const KvView&) -> Status { return {}; });
  ASSERT_FALSE(launched);
  EXPECT_EQ(launched.error().code(), ErrorCode::kUnsupported);
}

TEST(BlockManager, HasNoShareOfTheHostsMemoryToTake) {
  KvBlockManagerConfig config = small_config();
  config.num_blocks = 0;
  const auto manager = BlockManager::create(config);
  ASSERT_FALSE(manager);
  EXPECT_EQ(manager.error().code(), ErrorCode::kInvalidArgument);
  EXPECT_NE(manager.error().message().find("device = host has no GPU memory"), std::string::npos)
      << manager.error();
}

TEST(BlockManager, WithoutAGpuItSaysWhatToDo) {
  if (find_accelerators()) GTEST_SKIP() << "there is a GPU here";
  KvBlockManagerConfig config = small_config();
  config.device = "cuda";
  const auto manager = BlockManager::create(config);
  ASSERT_FALSE(manager);
  for (const char* word : {"device = cuda", "kvbm doctor", "device = host"}) {
    EXPECT_NE(manager.error().describe().find(word), std::string::npos) << manager.error();
  }
}

TEST(BlockManager, AMissingOffloadDirectoryIsOneClearError) {
  KvBlockManagerConfig config = small_config();
  config.offload_path = ::testing::TempDir() + "does/not/exist";
  const auto manager = BlockManager::create(config);
  ASSERT_FALSE(manager);
  EXPECT_NE(manager.error().message().find("does/not/exist"), std::string::npos);
}

TEST(BlockManager, WithoutMemoryForItsBlocksItIsNotMade) {
  for (const bool is_length : {false, true}) {
    BlockManagerParts parts;
    parts.wrap_channel = [&](std::unique_ptr<Channel> /*channel*/) -> std::unique_ptr<Channel> {
      if (is_length) throw std::length_error("vector::reserve");
      throw std::bad_alloc();
    };
    const auto manager = BlockManager::create(small_config(), parts);
    ASSERT_FALSE(manager);
    EXPECT_EQ(manager.error().code(), ErrorCode::kExhausted);
    EXPECT_NE(manager.error().message().find("blocks"), std::string::npos) << manager.error();
  }
}

/// Answers, once, an operation that nobody asked for, which the leader warns of.
class Talkative final : public Channel {
 public:
  explicit Talkative(std::unique_ptr<Channel> channel) : channel_(std::move(channel)) {}

  void send(std::span<const CopyOp> ops, std::span<const OpId> cancels) override {
    channel_->send(ops, cancels);
  }
  [[nodiscard]] ChannelInbox receive() override {
    ChannelInbox inbox = channel_->receive();
    if (std::exchange(has_spoken_, true)) return inbox;
    inbox.results.push_back(
        {.op = OpId(999), .rank = RankId(0), .outcome = {}, .bytes = 0, .failed = {}});
    return inbox;
  }
  [[nodiscard]] bool wait(TimePoint deadline) override { return channel_->wait(deadline); }

 private:
  std::unique_ptr<Channel> channel_;
  bool has_spoken_ = false;
};

BlockManagerParts talkative_parts() {
  BlockManagerParts parts;
  parts.wrap_channel = [](std::unique_ptr<Channel> channel) -> std::unique_ptr<Channel> {
    return std::make_unique<Talkative>(std::move(channel));
  };
  return parts;
}

TEST(BlockManager, LogsToStderrFromTheConfiguredLevelOn) {
  const auto logged_at = [](LogLevel level) {
    KvBlockManagerConfig config = small_config();
    config.log_level = level;
    ::testing::internal::CaptureStderr();
    make(config, talkative_parts())->poll();
    return ::testing::internal::GetCapturedStderr();
  };
  EXPECT_NE(logged_at(LogLevel::kWarning).find(" W [tiers] rank 0 answered operation 999"),
            std::string::npos);
  EXPECT_NE(logged_at(KvBlockManagerConfig{}.log_level), "");
  EXPECT_EQ(logged_at(LogLevel::kError), "");
  EXPECT_EQ(logged_at(LogLevel::kOff), "");
}

TEST(BlockManager, LogsToTheSinkThatIsGivenAtTheLevelOfThatSink) {
  KvBlockManagerConfig config = small_config();
  config.log_level = LogLevel::kOff;
  testing::RecordingLogSink log(LogLevel::kWarning);
  BlockManagerParts parts = talkative_parts();
  parts.log = &log;
  ::testing::internal::CaptureStderr();
  make(config, parts)->poll();
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
  EXPECT_EQ(log.messages(LogLevel::kWarning).size(), 1u);
}

TEST(BlockManager, GuardsMayOutliveTheManager) {
  auto manager = make(small_config());
  auto blocks = manager->allocate_blocks(2);
  ASSERT_TRUE(blocks);
  manager.reset();
  blocks->clear();
}

}  // namespace
}  // namespace kvbm
