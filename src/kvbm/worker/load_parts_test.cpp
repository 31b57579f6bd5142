// SPDX-License-Identifier: Apache-2.0
#include "kvbm/worker/load_parts.hpp"

#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kvbm {
namespace {

using ::testing::ElementsAre;

constexpr uint64_t kMiB = uint64_t{1} << 20;

std::vector<uint32_t> counts(const std::vector<LayerRange>& parts) {
  std::vector<uint32_t> counts;
  for (const LayerRange part : parts) counts.push_back(part.count);
  return counts;
}

TEST(SplitLoad, ASmallLoadIsOnePart) {
  // 8 blocks of 32 KiB a layer.
  EXPECT_THAT(counts(split_load(4, uint64_t{8} << 15, 4 * kMiB)), ElementsAre(4));
  EXPECT_THAT(counts(split_load(80, uint64_t{1} << 15, 4 * kMiB)), ElementsAre(80));
  EXPECT_THAT(counts(split_load(1, 1000 * kMiB, 4 * kMiB)), ElementsAre(1));
}

TEST(SplitLoad, ALargeOneBeginsWithAFewLayers) {
  // 1000 blocks of 32 KiB a layer.
  EXPECT_THAT(counts(split_load(80, uint64_t{1000} << 15, 4 * kMiB)),
              ElementsAre(3, 6, 12, 12, 11, 12, 12, 12));
  EXPECT_THAT(counts(split_load(4, uint64_t{1000} << 15, 4 * kMiB)), ElementsAre(1, 1, 1, 1));
}

TEST(SplitLoad, PartsComeOneByOneAsTheLoadGrows) {
  EXPECT_THAT(counts(split_load(12, kMiB - 1, 4 * kMiB)), ElementsAre(12));
  EXPECT_THAT(counts(split_load(12, kMiB, 4 * kMiB)), ElementsAre(4, 8));
  EXPECT_THAT(counts(split_load(14, 2 * kMiB, 4 * kMiB)), ElementsAre(2, 4, 8));
}

TEST(SplitLoad, PartsHoldEveryLayerOnceInOrder) {
  for (uint32_t num_layers = 1; num_layers <= 200; ++num_layers) {
    for (const uint64_t layer_bytes : {0, 1, 3, 10, 100}) {
      const std::vector<LayerRange> parts = split_load(num_layers, layer_bytes, 7);
      ASSERT_LE(parts.size(), kMaxLoadParts);
      uint64_t end = 0;
      for (const LayerRange part : parts) {
        ASSERT_EQ(part.begin(), end);
        ASSERT_GT(part.count, 0U);
        end = part.end();
      }
      ASSERT_EQ(end, num_layers);
    }
  }
  EXPECT_EQ(split_load(65536, 100, 7).back().end(), 65536U);
}

}  // namespace
}  // namespace kvbm
