// SPDX-License-Identifier: Apache-2.0
#include "kvbm/replay/replay_options.hpp"

#include <functional>
#include <limits>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kvbm {
namespace {

using ::testing::HasSubstr;

TEST(ReplayGroups, AreReadAndWritten) {
  const auto groups = parse_replay_groups("full,window:8@64KiB,full@1MB");
  ASSERT_TRUE(groups.has_value()) << groups.error();
  EXPECT_EQ(*groups, (std::vector<ReplayGroup>{{Retention::full_prefix(), 0},
                                               {Retention::last_window(8), 64 * kKiB},
                                               {Retention::full_prefix(), 1'000'000}}));
  EXPECT_EQ(format_replay_groups(*groups), "full,window:8@65536,full@1000000");
  EXPECT_EQ(parse_replay_groups(format_replay_groups(*groups)), *groups);
}

TEST(ReplayGroups, AreRefusedWithTheGroupThatIsWrong) {
  for (const char* text :
       {"", ",", "full,", ",full", "window", "window:", "window:0", "window:-1", "window:1x",
        "window:4294967295", "Full", "full ", "full@", "full@0", "full@1K", "window:1@4KiB@4KiB"}) {
    const auto groups = parse_replay_groups(text);
    ASSERT_FALSE(groups.has_value()) << text;
    EXPECT_EQ(groups.error().code(), ErrorCode::kInvalidArgument);
  }
  EXPECT_THAT(parse_replay_groups("full,half").error().message(), HasSubstr("'half'"));
}

TEST(ReplayOptions, AreValidByDefault) { EXPECT_TRUE(ReplayOptions{}.validate().has_value()); }

TEST(ReplayOptions, AreRefusedWithAReason) {
  const auto refused = [](const std::function<void(ReplayOptions&)>& change, const char* reason) {
    ReplayOptions options;
    change(options);
    const auto status = options.validate();
    ASSERT_FALSE(status.has_value()) << reason;
    EXPECT_EQ(status.error().code(), ErrorCode::kInvalidArgument);
    EXPECT_THAT(status.error().message(), HasSubstr(reason));
  };
  using Options = ReplayOptions;
  refused([](Options& o) { o.device = "cuda:"; }, "device is cuda:: say host, cuda or cuda:N");
  refused(
      [](Options& o) {
        o.device = "cuda";
        o.bytes = Options::Bytes::kNone;
      },
      "without bytes nothing is put on device cuda");
  refused([](Options& o) { o.g1_blocks = 0; }, "g1-blocks is 0");
  refused([](Options& o) { o.g2_blocks = (uint64_t{1} << 30) + 1; },
          "G2 is given 1073741825 blocks: at most 1073741824 are possible");
  refused([](Options& o) { o.block_bytes = 0; }, "block-bytes is 0");
  refused([](Options& o) { o.ranks = 0; }, "ranks is 0");
  refused([](Options& o) { o.ranks = 3; }, "65536 bytes cannot be shared evenly by 3 ranks");
  refused([](Options& o) { o.groups.clear(); }, "0 layer groups");
  refused([](Options& o) { o.groups.resize(65); }, "65 layer groups");
  refused([](Options& o) { o.block_bytes = std::numeric_limits<uint64_t>::max(); },
          "block-bytes is too large");
  refused(
      [](Options& o) {
        o.block_bytes = uint64_t{1} << 61;
        o.groups.resize(3);
      },
      "block-bytes is too large");
  refused([](Options& o) { o.block_bytes = 1'000'003; },
          "a block of 1000003 bytes on one rank cannot be split into layers and heads");
  refused(
      [](Options& o) {
        o.block_bytes = 4 * 1'000'003;
        o.ranks = 4;
      },
      "a block of 1000003 bytes on one rank");
  refused([](Options& o) { o.block_bytes = uint64_t{1} << 60; }, "more than any machine has");
  refused([](Options& o) { o.g3_blocks = 1; }, "name a folder");
  refused([](Options& o) { o.disk_dir = "/tmp"; }, "G3 has no blocks");
  refused(
      [](Options& o) {
        o.bytes = Options::Bytes::kNone;
        o.g3_blocks = 1;
        o.disk_dir = "/tmp";
      },
      "without bytes");
}

TEST(ReplayOptions, NeedNoFolderForADiskTierWithoutBytes) {
  ReplayOptions options;
  options.bytes = ReplayOptions::Bytes::kNone;
  options.g3_blocks = 10;
  EXPECT_TRUE(options.validate().has_value());
  EXPECT_EQ(options.tier_bytes(TierId::kG1), 0U);
}

TEST(ReplayOptions, AddUpTheBytesOfAllGroups) {
  ReplayOptions options;
  options.g1_blocks = 10;
  options.g2_blocks = 20;
  options.block_bytes = 1000;
  options.groups = {{Retention::full_prefix(), 0}, {Retention::last_window(2), 24}};
  EXPECT_EQ(options.position_bytes(), 1024U);
  EXPECT_EQ(options.tier_bytes(TierId::kG1), 10'240U);
  EXPECT_EQ(options.tier_bytes(TierId::kG2), 20'480U);
  EXPECT_EQ(options.tier_bytes(TierId::kG3), 0U);
}

TEST(ReplayOptions, CountHeadersAndPaddingOnDisk) {
  ReplayOptions options;
  options.ranks = 4;
  options.g3_blocks = 10;
  options.disk_dir = "/disk";
  options.block_bytes = 4 * 4032;  // with its header of 64 bytes a share fills 4 KiB exactly
  options.groups = {{Retention::full_prefix(), 0}, {Retention::last_window(2), 4 * 4036}};
  EXPECT_EQ(options.tier_bytes(TierId::kG3), 10 * 4 * (4096U + 8192U));
  options.bytes = ReplayOptions::Bytes::kNone;
  EXPECT_EQ(options.tier_bytes(TierId::kG3), 0U);
}

TEST(CheckFits, ComparesMemoryWithG1AndG2) {
  ReplayOptions options;
  options.g1_blocks = 10;
  options.g2_blocks = 6;
  options.block_bytes = kMiB;
  EXPECT_TRUE(check_fits(options, {.memory_bytes = 16 * kMiB}).has_value());
  const auto status = check_fits(options, {.memory_bytes = 15 * kMiB});
  ASSERT_FALSE(status.has_value());
  EXPECT_EQ(status.error().code(), ErrorCode::kExhausted);
  EXPECT_THAT(status.error().message(), HasSubstr("need 16 MiB of memory and 15 MiB are free"));
  options.device = "cuda:1";  // which has room for G1, or says so itself
  EXPECT_TRUE(check_fits(options, {.memory_bytes = 6 * kMiB}).has_value());
  const auto host_tier = check_fits(options, {.memory_bytes = 5 * kMiB});
  ASSERT_FALSE(host_tier.has_value());
  EXPECT_THAT(host_tier.error().message(), HasSubstr("G2 needs 6 MiB of memory and 5 MiB are"));
  options.device = "host";
  options.bytes = ReplayOptions::Bytes::kNone;
  EXPECT_TRUE(check_fits(options, {}).has_value());
}

TEST(CheckFits, ComparesTheDiskWithG3) {
  ReplayOptions options;
  options.g1_blocks = 1;
  options.g3_blocks = 8;
  options.block_bytes = kMiB;
  options.disk_dir = "/disk";
  const uint64_t needed = 8 * (kMiB + 4 * kKiB);
  EXPECT_TRUE(check_fits(options, {.memory_bytes = kMiB, .disk_bytes = needed}).has_value());
  EXPECT_FALSE(check_fits(options, {.memory_bytes = kMiB, .disk_bytes = needed - 1}).has_value());
  EXPECT_TRUE(check_fits(options, {.memory_bytes = kMiB, .disk_bytes = {}}).has_value());
  const auto status = check_fits(options, {.memory_bytes = kMiB, .disk_bytes = 4 * kMiB});
  ASSERT_FALSE(status.has_value());
  EXPECT_THAT(status.error().message(), HasSubstr("8.03 MiB in /disk and 4 MiB are free"));
}

}  // namespace
}  // namespace kvbm
