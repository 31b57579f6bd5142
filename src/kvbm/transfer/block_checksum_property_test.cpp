// SPDX-License-Identifier: Apache-2.0
// Checksums of random layouts and slices against that of the same bytes in one run.
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/random.hpp"
#include "kvbm/transfer/block_checksum.hpp"

#include "tests/support/guarded_place.hpp"
#include "tests/support/pattern.hpp"
#include "tests/support/seed.hpp"

namespace kvbm {
namespace {

using testing::GuardedPlace;

uint32_t between(Random& random, uint64_t low, uint64_t high) {
  return static_cast<uint32_t>(random.uniform_between(low, high));
}

KvBlockLayout random_format(Random& random, bool operational) {
  BlockAxisOrder order{BlockAxis::kLayer, BlockAxis::kOuter, BlockAxis::kHead, BlockAxis::kPage};
  random.shuffle(std::span<BlockAxis>(order));
  const KvBlockLayout any = KvBlockLayout::custom(order).value();
  if (!operational || any.is_operational()) return any;
  return random.chance(0.5) ? KvBlockLayout::kOperationalNHD : KvBlockLayout::kOperationalHND;
}

/// The checksum of bytes that lie in one run.
BlockChecksum checksum_of_run(const std::vector<std::byte>& bytes) {
  GuardedPlace opaque({.num_blocks = 1,
                       .num_layers = 1,
                       .outer_dim = 1,
                       .page_size = 1,
                       .inner_dim = static_cast<uint32_t>(bytes.size()),
                       .dtype_width_bytes = 1,
                       .alignment = 1},
                      LayoutKind::kFullyContiguous);
  opaque.write(opaque.layout().region(BlockId{0}, LayerId{0}, 0), bytes);
  return block_checksum(opaque.layout(), BlockId{0}).value();
}

/// Some heads of layers in canonical order.
std::vector<std::byte> heads_of(const LayoutConfig& config, const std::vector<std::byte>& layers,
                                HeadRange heads) {
  std::vector<std::byte> bytes;
  const uint64_t token_bytes = config.head_bytes() * *config.num_heads;
  for (uint64_t at = 0; at < layers.size(); at += token_bytes) {
    const auto first =
        layers.begin() + static_cast<ptrdiff_t>(at + heads.first * config.head_bytes());
    bytes.insert(bytes.end(), first,
                 first + static_cast<ptrdiff_t>(heads.count * config.head_bytes()));
  }
  return bytes;
}

TEST(BlockChecksumProperty, IsThatOfTheCanonicalBytesInEveryFormatAndSlice) {
  Random random(testing::test_seed());
  size_t num_opaque = 0;
  size_t num_of_some_heads = 0;
  for (int round = 0; round < 400; ++round) {
    const bool known = random.chance(0.8);
    LayoutConfig config{.num_blocks = between(random, 1, 4),
                        .num_layers = between(random, 1, 5),
                        .outer_dim = between(random, 1, 2),
                        .page_size = between(random, 1, 20),
                        .inner_dim = 0,
                        .dtype_width_bytes = 1U << random.uniform(4),
                        .num_heads = between(random, 1, 5),
                        .alignment = 1};
    config.inner_dim = *config.num_heads * between(random, 1, 64);
    const auto kind = static_cast<LayoutKind>(random.uniform(3));
    GuardedPlace place(config, kind, StorageKind::kSystem, {},
                       known ? random_format(random, kind != LayoutKind::kFullyContiguous)
                             : KvBlockLayout::kUnknown);
    const BlockId block{between(random, 0, config.num_blocks - 1)};
    const uint64_t key = random.next();
    place.fill(block, key);

    const uint32_t first = between(random, 0, config.num_layers - 1);
    const LayerRange layers{LayerId(static_cast<uint16_t>(first)),
                            between(random, 1, config.num_layers - first)};
    std::vector<std::byte> bytes = testing::pattern_block(config, key, layers);
    ASSERT_EQ(block_checksum(place.layout(), block, layers).value(), checksum_of_run(bytes));
    LayoutView view = LayoutView(place.layout()).slice(layers).value();
    if (known) {
      const uint32_t head = between(random, 0, *config.num_heads - 1);
      const HeadRange heads{head, between(random, 1, *config.num_heads - head)};
      view = view.slice(heads).value();
      bytes = heads_of(config, bytes, heads);
      num_of_some_heads += heads.count < *config.num_heads;
    }
    num_opaque += !known;
    const BlockChecksum checksum = block_checksum(view, block).value();
    ASSERT_EQ(checksum, checksum_of_run(bytes));
    ASSERT_TRUE(place.holds(block, key));

    // One other bit anywhere in it shows.
    bytes[random.uniform(bytes.size())] ^= static_cast<std::byte>(1U << random.uniform(8));
    ASSERT_NE(checksum, checksum_of_run(bytes));
  }
  EXPECT_GT(num_opaque, 40U);
  EXPECT_GT(num_of_some_heads, 100U);
}

}  // namespace
}  // namespace kvbm
