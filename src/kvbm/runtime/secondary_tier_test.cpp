// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/secondary_tier.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/random.hpp"

#include "tests/support/error_code.hpp"
#include "tests/support/recording_log_sink.hpp"
#include "tests/support/seed.hpp"
#include "tests/support/temporary_folder.hpp"

namespace kvbm {
namespace {

using testing::code_of;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr uint32_t kChunks = 16;
constexpr uint64_t kBytes = 3000;
constexpr uint64_t kStride = 3500;

using Key = std::vector<std::byte>;

Key key_of(uint32_t number, uint8_t group = 0, size_t hash_bytes = 32) {
  Key key(hash_bytes + 4);
  for (size_t i = 0; i < 4; ++i) key[i] = static_cast<std::byte>(number >> (8 * i));
  key.back() = std::byte{group};
  return key;
}

class SecondaryTierTest : public ::testing::Test {
 protected:
  SecondaryTierOptions options(uint32_t disk_blocks = 8) {
    return {.memory = pool_.data(),
            .num_chunks = kChunks,
            .chunk_bytes = kBytes,
            .chunk_stride = kStride,
            .model = "m",
            .disk_blocks = disk_blocks,
            .disk_directory = folder_.path().string()};
  }
  void use(const SecondaryTierOptions& options) {
    tier_ = SecondaryTier::create(options, log_).value();
  }

  std::span<std::byte> chunk(uint32_t i) { return std::span(pool_).subspan(i * kStride, kBytes); }
  void fill(uint32_t i, uint64_t content) {
    Random random(content);
    for (std::byte& byte : chunk(i)) byte = static_cast<std::byte>(random.next());
  }
  bool holds(uint32_t i, uint64_t content) {
    Random random(content);
    return std::ranges::all_of(chunk(i), [&random](std::byte byte) {
      return byte == static_cast<std::byte>(random.next());
    });
  }

  Status store(uint64_t job, const std::vector<Key>& keys, const std::vector<uint32_t>& chunks) {
    const std::vector<std::span<const std::byte>> raw(keys.begin(), keys.end());
    return tier_->store(job, raw, chunks);
  }
  Status load(uint64_t job, const std::vector<Key>& keys, const std::vector<uint32_t>& chunks) {
    const std::vector<std::span<const std::byte>> raw(keys.begin(), keys.end());
    return tier_->load(job, raw, chunks);
  }
  FinishedTierJob await() {
    EXPECT_TRUE(tier_->drain());
    std::vector<FinishedTierJob> finished = tier_->take_finished();
    EXPECT_EQ(finished.size(), 1U);
    return finished.empty() ? FinishedTierJob{} : std::move(finished.front());
  }
  /// One chunk, all the way.
  void keep(uint32_t number, uint64_t content) {
    fill(0, content);
    EXPECT_TRUE(store(1000 + number, {key_of(number)}, {0}));
    EXPECT_TRUE(await().succeeded);
  }

  testing::TemporaryFolder folder_;
  testing::RecordingLogSink log_{LogLevel::kError};
  std::vector<std::byte> pool_ = std::vector<std::byte>(kChunks * kStride);
  std::unique_ptr<SecondaryTier> tier_;
};

TEST_F(SecondaryTierTest, WhatWasStoredComesBack) {
  use(options());
  fill(3, 30);
  fill(5, 50);
  EXPECT_FALSE(tier_->contains(key_of(1)).value());
  ASSERT_TRUE(store(1, {key_of(1), key_of(2)}, {3, 5}));
  EXPECT_EQ(tier_->num_open_jobs(), 1U);
  FinishedTierJob stored = await();
  EXPECT_EQ(stored.job, 1U);
  EXPECT_TRUE(stored.succeeded);
  EXPECT_EQ(stored.bytes, 2 * kBytes);
  EXPECT_TRUE(tier_->contains(key_of(1)).value());
  EXPECT_EQ(tier_->resident_blocks(), 2U);

  ASSERT_TRUE(load(2, {key_of(2), key_of(1)}, {8, 9}));
  const FinishedTierJob loaded = await();
  EXPECT_TRUE(loaded.succeeded);
  EXPECT_THAT(loaded.arrived, ElementsAre(0, 1));
  EXPECT_EQ(loaded.bytes, 2 * kBytes);
  EXPECT_TRUE(holds(8, 50));
  EXPECT_TRUE(holds(9, 30));
  EXPECT_EQ(tier_->num_open_jobs(), 0U);
}

TEST_F(SecondaryTierTest, KeysOfOtherGroupsAndOtherLengthsAreOthers) {
  use(options());
  fill(0, 1);
  ASSERT_TRUE(store(1, {key_of(7, 0)}, {0}));
  EXPECT_TRUE(await().succeeded);
  EXPECT_FALSE(tier_->contains(key_of(7, 1)).value());
  EXPECT_FALSE(tier_->contains(key_of(7, 0, 16)).value());
  EXPECT_TRUE(tier_->contains(key_of(7, 0)).value());
}

TEST_F(SecondaryTierTest, TheLeastRecentlyUsedChunkMakesRoom) {
  use(options(2));
  keep(1, 10);
  keep(2, 20);
  EXPECT_TRUE(tier_->contains(key_of(1)).value());
  keep(3, 30);
  EXPECT_TRUE(tier_->contains(key_of(1)).value());
  EXPECT_FALSE(tier_->contains(key_of(2)).value());

  // What is gone by the time of the load is not loaded; the others are.
  fill(4, 0);
  ASSERT_TRUE(load(1, {key_of(2), key_of(3)}, {4, 5}));
  const FinishedTierJob loaded = await();
  EXPECT_FALSE(loaded.succeeded);
  EXPECT_THAT(loaded.arrived, ElementsAre(1));
  EXPECT_TRUE(holds(4, 0));
  EXPECT_TRUE(holds(5, 30));
  ASSERT_TRUE(load(2, {key_of(2)}, {4}));
  EXPECT_THAT(await().arrived, IsEmpty());
}

TEST_F(SecondaryTierTest, MistakesAreRefusedAndChangeNothing) {
  use(options());
  EXPECT_EQ(code_of(store(1, {Key(4)}, {0})), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of(store(1, {Key(40)}, {0})), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of(store(1, {key_of(1)}, {0, 1})), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of(load(1, {key_of(1)}, {kChunks})), ErrorCode::kInvalidArgument);
  EXPECT_FALSE(tier_->contains(Key(4)));
  EXPECT_EQ(tier_->num_open_jobs(), 0U);
  EXPECT_TRUE(store(1, {key_of(1)}, {0}));
  EXPECT_EQ(code_of(store(1, {key_of(2)}, {1})), ErrorCode::kInvalidArgument);
  EXPECT_TRUE(await().succeeded);

  SecondaryTierOptions wrong = options(0);
  EXPECT_EQ(code_of(SecondaryTier::create(wrong, log_)), ErrorCode::kInvalidArgument);
  wrong.disk_bytes = 100;
  EXPECT_EQ(code_of(SecondaryTier::create(wrong, log_)), ErrorCode::kInvalidArgument);
  wrong = options();
  wrong.memory = nullptr;
  EXPECT_EQ(code_of(SecondaryTier::create(wrong, log_)), ErrorCode::kInvalidArgument);
  wrong = options();
  wrong.disk_directory += "/missing";
  EXPECT_EQ(code_of(SecondaryTier::create(wrong, log_)), ErrorCode::kNotFound);
}

TEST_F(SecondaryTierTest, RandomJobsNeverGiveAWrongByte) {
  use(options(24));
  Random random(testing::test_seed());
  // A chunk belongs to one job at a time, as in the engine.
  std::map<uint64_t, std::vector<std::pair<uint32_t, uint32_t>>> open;  // job: (key, chunk)
  std::map<uint64_t, bool> loads;
  std::vector<bool> busy(kChunks);
  uint64_t next_job = 1;
  uint64_t num_loaded = 0;
  const auto take = [&] {
    for (const FinishedTierJob& end : tier_->take_finished()) {
      const auto job = open.extract(end.job);
      ASSERT_FALSE(job.empty());
      for (const auto& [key, chunk] : job.mapped()) busy[chunk] = false;
      if (!loads.at(end.job)) continue;
      for (const uint32_t position : end.arrived) {
        const auto& [key, chunk] = job.mapped().at(position);
        ASSERT_TRUE(holds(chunk, key)) << "key " << key << " in chunk " << chunk;
        ++num_loaded;
      }
    }
  };
  for (int i = 0; i < 3000; ++i) {
    take();
    std::vector<std::pair<uint32_t, uint32_t>> job;
    const bool is_load = random.chance(0.5);
    for (uint32_t n = 1 + static_cast<uint32_t>(random.uniform(4)); n > 0; --n) {
      const auto chunk = static_cast<uint32_t>(random.uniform(kChunks));
      if (busy[chunk]) continue;
      busy[chunk] = true;
      const auto key = static_cast<uint32_t>(random.uniform(48));
      if (!is_load) fill(chunk, key);
      job.emplace_back(key, chunk);
    }
    std::vector<Key> keys;
    std::vector<uint32_t> chunks;
    for (const auto& [key, chunk] : job) {
      keys.push_back(key_of(key));
      chunks.push_back(chunk);
    }
    if (job.empty()) {
      ASSERT_TRUE(tier_->drain());
    }
    const uint64_t id = next_job++;
    loads[id] = is_load;
    ASSERT_TRUE(is_load ? load(id, keys, chunks) : store(id, keys, chunks));
    open.emplace(id, std::move(job));
  }
  ASSERT_TRUE(tier_->drain());
  take();
  EXPECT_TRUE(open.empty());
  EXPECT_EQ(tier_->num_open_jobs(), 0U);
  EXPECT_GT(num_loaded, 500U);
}

}  // namespace
}  // namespace kvbm
