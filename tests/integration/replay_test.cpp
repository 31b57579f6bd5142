// SPDX-License-Identifier: Apache-2.0
// Whole replays: against a naive simulator, over ranks and groups, racing, and with bytes gone
// wrong.
#include "kvbm/replay/replay.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <list>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/log.hpp"
#include "kvbm/replay/pretend_engine.hpp"
#include "kvbm/replay/trace_generator.hpp"

namespace kvbm {
namespace {

Trace chats(uint64_t seed) {
  TraceGeneratorOptions options;
  options.seed = seed;
  options.chat.sessions = 40;
  options.agents.sessions = 6;
  return generate_trace(options).value();
}

ReplayReport replay(const Trace& trace, const ReplayOptions& options) {
  SystemClock clock;
  Progress silent(clock);
  auto report = run_replay(trace, options, silent);
  EXPECT_TRUE(report) << report.error();
  return report ? *std::move(report) : ReplayReport{};
}

/// The hits of one tier with leaf-first eviction, in the plainest words: a list with the most
/// recent block first. As every use of a block is a use of its whole prefix, taking a request's
/// blocks as used from the last to the first makes a plain LRU leaf-first.
uint64_t simulate(const Trace& trace, uint64_t capacity) {
  std::list<uint64_t> recent;
  std::unordered_map<uint64_t, std::list<uint64_t>::iterator> where;
  uint64_t hits = 0;
  for (const TraceRequest& request : trace.requests) {
    const auto& ids = request.hash_ids;
    size_t matched = 0;
    while (matched < ids.size() && where.contains(ids[matched])) ++matched;
    hits += matched;
    const size_t used = std::min<size_t>(ids.size(), capacity);
    for (size_t i = used; i-- > 0;) {
      if (auto it = where.find(ids[i]); it != where.end()) recent.erase(it->second);
      recent.push_front(ids[i]);
      where[ids[i]] = recent.begin();
    }
    while (recent.size() > capacity) {
      where.erase(recent.back());
      recent.pop_back();
    }
  }
  return hits;
}

ReplayOptions three_tiers() {
  ReplayOptions options;
  options.g1_blocks = 150;
  options.g2_blocks = 400;
  options.g3_blocks = 1500;
  options.block_bytes = 4096;
  options.disk_dir = testing::TempDir();
  return options;
}

/// What has to be equal in two runs that did the same; times and folders need not be.
auto counts(const ReplayReport& report) {
  std::vector<uint64_t> moved;
  for (const MovedBlocks& route : report.moved) moved.push_back(route.blocks);
  return std::tuple(report.accesses, report.hits, report.misses, report.verified_blocks,
                    report.evictions, report.disk_writes_blocks, report.drained_blocks,
                    report.onboarded_blocks, report.stored_blocks, report.dropped_stores, moved,
                    report.events);
}

void expect_sound(const ReplayReport& report) {
  EXPECT_EQ(report.mismatches, 0u) << report.first_mismatch;
  EXPECT_GT(report.verified_blocks, 0u);
  EXPECT_EQ(report.failed_loads, 0u) << report.first_failed_load;
  EXPECT_EQ(report.hits.total() + report.misses, report.accesses);
  for (TierId tier : {TierId::kG1, TierId::kG2, TierId::kG3}) {
    const TierEvents& events = report.events.of(tier);
    EXPECT_EQ(events.created + events.migrated - events.deleted, events.resident) << tier;
  }
}

TEST(Replay, HasTheHitsOfANaiveSimulator) {
  const Trace trace = chats(1);
  for (uint64_t capacity : {1, 7, 60, 150, 500, 2'000, 100'000}) {
    ReplayOptions options;
    options.bytes = ReplayOptions::Bytes::kNone;
    options.g1_blocks = capacity;
    EXPECT_EQ(replay(trace, options).hits.g1, simulate(trace, capacity)) << capacity << " blocks";
  }
}

TEST(Replay, HasTheHitSharesOfTheConversationTrace) {
  const char* path = std::getenv("KVBM_CONVERSATION_TRACE");
  if (path == nullptr) {
    GTEST_SKIP() << "set KVBM_CONVERSATION_TRACE to Mooncake's conversation_trace.jsonl";
  }
  const auto trace = read_trace(path);
  ASSERT_TRUE(trace) << trace.error();
  const std::pair<uint64_t, double> expected[] = {{1'827, .0525},  {3'655, .0793},
                                                  {9'139, .1958},  {18'279, .2789},
                                                  {36'558, .3453}, {200'000, .3664}};
  for (const auto& [blocks, share] : expected) {
    ReplayOptions options;
    options.bytes = ReplayOptions::Bytes::kNone;
    options.g1_blocks = blocks;
    EXPECT_NEAR(replay(*trace, options).hit_share().total(), share, .0002) << blocks << " blocks";
  }
  ReplayOptions options;
  options.bytes = ReplayOptions::Bytes::kNone;
  options.g1_blocks = 1'827;
  options.g2_blocks = 9'139;
  options.g3_blocks = 36'558;
  const ReplayReport report = replay(*trace, options);
  EXPECT_GE(report.hit_share().total(), .350);
  EXPECT_LE(report.disk_writes_blocks, 181'000u);
}

TEST(Replay, CountsTheSameTwiceAndForEveryNumberOfRanks) {
  const Trace trace = chats(2);
  ReplayOptions options = three_tiers();
  const ReplayReport first = replay(trace, options);
  expect_sound(first);
  EXPECT_GT(first.hits.g2, 0u);
  EXPECT_GT(first.hits.g3, 0u);
  EXPECT_EQ(counts(first), counts(replay(trace, options)));
  for (uint32_t ranks : {2, 4}) {
    options.ranks = ranks;
    EXPECT_EQ(counts(first), counts(replay(trace, options))) << ranks << " ranks";
  }
}

TEST(Replay, CountsTheSameWithoutBytes) {
  const Trace trace = chats(3);
  ReplayOptions options = three_tiers();
  const ReplayReport with_bytes = replay(trace, options);
  options.bytes = ReplayOptions::Bytes::kNone;
  options.disk_dir.clear();
  const ReplayReport without = replay(trace, options);
  EXPECT_EQ(with_bytes.hits, without.hits);
  EXPECT_EQ(with_bytes.evictions, without.evictions);
  EXPECT_EQ(with_bytes.events, without.events);
  EXPECT_EQ(without.verified_blocks, 0u);
}

TEST(Replay, StaysSoundWhileBackgroundWorkRaces) {
  const Trace trace = chats(4);
  ReplayOptions options = three_tiers();
  options.overlap = ReplayOptions::Overlap::kOn;
  for (uint32_t ranks : {1, 2}) {
    options.ranks = ranks;
    expect_sound(replay(trace, options));
  }
}

TEST(Replay, ServesSeveralLayerGroups) {
  const Trace trace = chats(5);
  ReplayOptions options = three_tiers();
  options.groups = parse_replay_groups("full,window:8").value();
  for (const auto overlap : {ReplayOptions::Overlap::kOff, ReplayOptions::Overlap::kOn}) {
    options.overlap = overlap;
    const ReplayReport report = replay(trace, options);
    expect_sound(report);
    EXPECT_GT(report.hits.g3, 0u);
  }
}

TEST(Replay, WorksWithEachTierLeftOut) {
  const Trace trace = chats(6);
  ReplayOptions options = three_tiers();
  options.g2_blocks = 0;
  const ReplayReport no_host = replay(trace, options);
  expect_sound(no_host);
  EXPECT_GT(no_host.hits.g3, 0u);
  EXPECT_EQ(no_host.hits.g2, 0u);

  options = three_tiers();
  options.g3_blocks = 0;
  options.disk_dir.clear();
  const ReplayReport no_disk = replay(trace, options);
  expect_sound(no_disk);
  EXPECT_GT(no_disk.hits.g2, 0u);
  EXPECT_EQ(no_disk.disk_writes_blocks + no_disk.drained_blocks, 0u);
}

TEST(Replay, SurvivesAnEngineWithOneBlock) {
  ReplayOptions options = three_tiers();
  options.g1_blocks = 1;
  const ReplayReport report = replay(chats(7), options);
  EXPECT_EQ(report.mismatches, 0u);
  EXPECT_EQ(report.events.g1.resident, 1u);
}

TEST(Replay, PlaysBlocksOfAnySize) {
  Trace trace;
  trace.requests = {{.hash_ids = {1, 2, 3}}, {.hash_ids = {4, 5, 6}}, {.hash_ids = {1, 2, 3}}};
  ReplayOptions options;
  options.g1_blocks = 3;
  options.g2_blocks = 6;
  for (const uint64_t bytes : {uint64_t{1}, uint64_t{7}, uint64_t{65'521}, uint64_t{99'999}, kMiB,
                               2 * kMiB, uint64_t{3'000'001 * 3}, 20 * kMiB}) {
    options.block_bytes = bytes;
    const ReplayReport report = replay(trace, options);
    expect_sound(report);
    EXPECT_EQ(report.hits.g2, 3u) << bytes;
    EXPECT_EQ(report.configured_bytes, 9 * bytes);
  }
  options.bytes = ReplayOptions::Bytes::kNone;
  for (const uint64_t bytes : {kGiB, 48 * kGiB, 512 * kGiB}) {
    options.block_bytes = bytes;
    EXPECT_EQ(replay(trace, options).hits.g2, 3u) << bytes;
  }
}

/// Makes zeros of all that the nameless files of this process in `folder` hold.
void erase_files_in(const std::filesystem::path& folder) {
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code error;
    const std::filesystem::path target = std::filesystem::read_symlink(entry.path(), error);
    if (error || target.parent_path() != folder) continue;
    const int fd = ::open(entry.path().c_str(), O_RDWR | O_CLOEXEC);
    ASSERT_GE(fd, 0) << entry.path();
    struct stat file {};
    EXPECT_EQ(::fstat(fd, &file), 0);
    EXPECT_EQ(::ftruncate(fd, 0), 0);
    EXPECT_EQ(::ftruncate(fd, file.st_size), 0);
    ::close(fd);
  }
}

TEST(Replay, RefusesARingWithoutAGpu) {
  ReplayOptions options = three_tiers();
  options.cuda_ring_size = 0;
  SystemClock clock;
  Progress silent(clock);
  const auto report = run_replay(chats(1), options, silent);
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().message(),
            "cuda_ring_size = 0 has no effect with device = \"host\", which is no GPU: drop one");
}

TEST(Replay, CountsLoadsThatFail) {
  const std::filesystem::path folder = std::filesystem::canonical(testing::TempDir());
  ReplayOptions options = three_tiers();
  options.disk_dir = folder;
  ManualClock clock;
  uint64_t looks = 0;
  // Called some thousand times during the replay, between two requests.
  const auto shake = [&](std::string_view /*bar*/) {
    clock.advance(std::chrono::seconds(1));
    ++looks;
    erase_files_in(folder);
  };
  Progress progress({.style = ProgressStyle::kBar}, shake, clock);
  NullLogSink log;
  const auto report = run_replay(chats(9), options, progress, &log);
  ASSERT_TRUE(report) << report.error();
  EXPECT_GT(looks, 100u);
  EXPECT_EQ(report->mismatches, 0u) << report->first_mismatch;
  EXPECT_GT(report->failed_loads, 0u);
  EXPECT_NE(report->first_failed_load.find("did not arrive"), std::string::npos)
      << report->first_failed_load;
}

/// Sends every store of more than one block with two of its blocks exchanged.
class Exchanging final : public Channel {
 public:
  explicit Exchanging(std::unique_ptr<Channel> channel) : channel_(std::move(channel)) {}

  void send(std::span<const CopyOp> ops, std::span<const OpId> cancels) override {
    std::vector<CopyOp> changed(ops.begin(), ops.end());
    for (CopyOp& op : changed) {
      if (op.src.tier == TierId::kG1 && op.from.size() > 1) std::swap(op.from[0], op.from[1]);
    }
    channel_->send(changed, cancels);
  }
  [[nodiscard]] ChannelInbox receive() override { return channel_->receive(); }
  [[nodiscard]] bool wait(TimePoint deadline) override { return channel_->wait(deadline); }

 private:
  std::unique_ptr<Channel> channel_;
};

TEST(Replay, FindsTwoBlocksThatWereExchanged) {
  KvBlockManagerConfig config;
  config.block_size = 1;
  config.num_layers = 2;
  config.num_heads = 1;
  config.head_dim = 32;
  config.num_blocks = 4;
  config.host_blocks = 16;
  config.enable_offload = true;
  BlockManagerParts parts;
  parts.wrap_channel = [](std::unique_ptr<Channel> channel) -> std::unique_ptr<Channel> {
    return std::make_unique<Exchanging>(std::move(channel));
  };
  const auto manager = BlockManager::create(config, parts);
  ASSERT_TRUE(manager) << manager.error();
  PretendEngine engine(**manager, {});
  ASSERT_TRUE(engine.serve({.hash_ids = {1, 2, 3}}));
  ASSERT_TRUE(engine.serve({.hash_ids = {11, 12, 13, 14}}));
  const auto again = engine.serve({.hash_ids = {1, 2, 3}});
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().code(), ErrorCode::kCorrupt);
  EXPECT_GT(engine.mismatches(), 0u);
  for (const char* word : {"block", "G2", "rank 0", "offset 0"}) {
    EXPECT_NE(again.error().message().find(word), std::string::npos) << again.error();
  }
}

}  // namespace
}  // namespace kvbm
