// SPDX-License-Identifier: Apache-2.0
#include "kvbm/replay/block_shape.hpp"

#include <gtest/gtest.h>

#include "kvbm/base/units.hpp"
#include "kvbm/runtime/config_schema.hpp"

namespace kvbm {
namespace {

// Whether the shape has that many bytes and suits the configuration.
bool is_good(uint64_t bytes) {
  const auto shape = block_shape_of(bytes);
  if (!shape) return false;
  for (const auto& [name, value] :
       {std::pair("num_layers", shape->num_layers), std::pair("outer_dim", shape->outer_dim),
        std::pair("num_heads", shape->num_heads), std::pair("head_dim", shape->head_dim)}) {
    EXPECT_GE(value, 1U) << name << " of " << bytes;
    EXPECT_LE(value, config_schema().find(name)->max) << name << " of " << bytes;
  }
  EXPECT_LE(shape->num_layers * 64, config_schema().find("num_layers")->max) << bytes;
  return uint64_t{shape->num_layers} * shape->outer_dim * shape->num_heads * shape->head_dim ==
         bytes;
}

TEST(BlockShape, HasHalvesAndLayersWhereItCan) {
  EXPECT_EQ(block_shape_of(64 * kKiB), (BlockShape{4, 2, 1, 8192}));
  EXPECT_EQ(block_shape_of(20 * kMiB), (BlockShape{4, 2, 40, 65536}));
  EXPECT_EQ(block_shape_of(7), (BlockShape{1, 1, 1, 7}));
}

TEST(BlockShape, IsThereForEverySmallSize) {
  for (uint64_t bytes = 1; bytes <= 64 * kKiB; ++bytes) ASSERT_TRUE(is_good(bytes)) << bytes;
}

TEST(BlockShape, IsThereForMultiplesOfAPage) {
  for (uint64_t pages = 1; pages <= 65536; pages += pages < 1000 ? 1 : 97) {
    ASSERT_TRUE(is_good(pages * 4 * kKiB)) << pages;
  }
  EXPECT_TRUE(is_good(65521 * 4 * kKiB));  // a prime
  EXPECT_TRUE(is_good(512 * kGiB));
}

TEST(BlockShape, IsNotThereForLargePrimesAndNothing) {
  for (const uint64_t bytes :
       {uint64_t{0}, uint64_t{65'537}, uint64_t{1'000'003}, 8 * uint64_t{1'000'003}, kTiB}) {
    EXPECT_FALSE(block_shape_of(bytes)) << bytes;
  }
}

}  // namespace
}  // namespace kvbm
