// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/resolved_config.hpp"

#include <functional>
#include <limits>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kvbm {
namespace {

using ::testing::HasSubstr;
using Config = KvBlockManagerConfig;

Config model() {
  Config config;
  config.block_size = 16;
  config.num_blocks = 100;
  config.num_layers = 4;
  config.num_heads = 8;
  config.head_dim = 128;
  return config;
}

// As many bytes a block as single values can say: 2^54 on each rank.
Config largest_blocks() {
  Config config = model();
  config.block_size = 65536;
  config.num_heads = 8192;
  config.head_dim = 65536;
  config.dtype_width_bytes = 8;
  config.num_layers = 32;
  config.num_blocks = 1;
  return config;
}

// What resolve() says after `change`, of kInvalidArgument alone.
std::string refusal(Config config, const std::function<void(Config&)>& change,
                    uint64_t device_free_bytes = 0) {
  change(config);
  EXPECT_TRUE(config.validate()) << config.validate().error();
  const auto resolved = resolve(config, device_free_bytes);
  if (resolved) return "resolved";
  EXPECT_EQ(resolved.error().code(), ErrorCode::kInvalidArgument);
  return resolved.error().message();
}

TEST(ResolvedConfig, SizesInBytesAreSharedByAllGroupsAndRanks) {
  Config config = model();
  config.num_ranks = 2;
  config.enable_offload = true;
  const uint64_t position = 2 * 4 * 2 * 16 * 8 * 128 * 2;  // ranks, layers, K and V, tokens, ...
  config.host_bytes = 10 * position + position / 2;
  config.disk_blocks = 7;
  const auto resolved = resolve(config, 0);
  ASSERT_TRUE(resolved) << resolved.error();
  ASSERT_EQ(resolved->places.size(), 3U);
  EXPECT_EQ(resolved->places[0].num_blocks, 100U);
  EXPECT_EQ(resolved->places[1].num_blocks, 10U);
  EXPECT_EQ(resolved->places[2].num_blocks, 7U);
  EXPECT_EQ(resolved->places[1].rank_block_bytes, position / 2);
}

TEST(ResolvedConfig, ASizeThatHoldsNoBlockIsRefused) {
  EXPECT_THAT(refusal(model(),
                      [](Config& c) {
                        c.enable_offload = true;
                        c.host_bytes = 1000;
                      }),
              HasSubstr("host_bytes is 1000 B, less than one block"));
}

TEST(ResolvedConfig, ASizeThatHoldsMoreBlocksThanThereAreNumbersIsRefused) {
  const auto small = [](Config& c) {
    c.block_size = 1;
    c.num_layers = 1;
    c.num_heads = 1;
    c.head_dim = 1;
    c.enable_offload = true;
    c.host_bytes = uint64_t{1} << 40;
  };
  EXPECT_THAT(refusal(model(), small), HasSubstr("more than 1073741824 blocks"));
}

TEST(ResolvedConfig, BlocksThatNoNumberCountsAreRefusedInsteadOfWrapping) {
  EXPECT_THAT(refusal(largest_blocks(),
                      [](Config& c) {
                        c.num_ranks = 1024;  // 2^64 bytes over all ranks
                        c.enable_offload = true;
                        c.host_bytes = uint64_t{1} << 20;
                      }),
              HasSubstr("one block over all groups and 1024 ranks"));
}

TEST(ResolvedConfig, GroupsThatTogetherAreTooLargeAreRefused) {
  EXPECT_THAT(refusal(largest_blocks(),
                      [](Config& c) {
                        c.num_layers = 0;
                        for (int i = 0; i < 4; ++i) {
                          GroupConfig& group = c.groups.emplace_back();
                          group.name = "g" + std::to_string(i);
                          group.num_layers = 16'000;  // about 2^63 bytes: more than half of all
                        }
                      }),
              HasSubstr("2^63 bytes"));
}

TEST(ResolvedConfig, ATierThatNoFileOffsetReachesIsRefused) {
  for (const auto blocks : {&Config::host_blocks, &Config::disk_blocks}) {
    EXPECT_THAT(refusal(largest_blocks(),
                        [blocks](Config& c) {
                          c.enable_offload = true;
                          c.*blocks = 1U << 30;
                        }),
                HasSubstr("2^63 bytes"));
  }
  EXPECT_THAT(
      refusal(
          model(), [](Config& c) { c.num_blocks = 0; }, std::numeric_limits<uint64_t>::max()),
      HasSubstr("more than 1073741824 blocks"));
}

}  // namespace
}  // namespace kvbm
