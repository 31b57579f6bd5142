// SPDX-License-Identifier: Apache-2.0
// Random layouts against the plainest possible arithmetic: sets of byte numbers.
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/random.hpp"
#include "kvbm/layout/internal/overlap.hpp"
#include "kvbm/layout/physical_layout.hpp"

#include "tests/support/guarded_place.hpp"
#include "tests/support/seed.hpp"

namespace kvbm {
namespace {

LayoutConfig random_config(Random& random) {
  return {.num_blocks = static_cast<uint32_t>(random.uniform_between(1, 6)),
          .num_layers = static_cast<uint32_t>(random.uniform_between(1, 5)),
          .outer_dim = static_cast<uint32_t>(random.uniform_between(1, 2)),
          .page_size = static_cast<uint32_t>(random.uniform_between(1, 4)),
          .inner_dim = static_cast<uint32_t>(random.uniform_between(1, 9)),
          .dtype_width_bytes = 1U << random.uniform(4),
          .num_heads = std::nullopt,
          .alignment = uint64_t{1} << random.uniform(8)};
}

/// The first byte of every chunk.
std::vector<uint64_t> chunk_starts(const PageMapSpec& spec) {
  std::vector<uint64_t> starts;
  for (uint64_t block = 0; block < spec.num_blocks; ++block) {
    for (uint64_t layer = 0; layer < spec.layers.count; ++layer) {
      for (uint64_t outer = 0; outer < spec.outer_dim; ++outer) {
        starts.push_back(spec.base_offset + block * spec.block_stride + layer * spec.layer_stride +
                         outer * spec.outer_stride);
      }
    }
  }
  return starts;
}

/// False if one of the bytes was there before.
bool add_bytes(std::set<uint64_t>& bytes, uint64_t start, uint64_t count) {
  bool all_new = true;
  for (uint64_t i = 0; i < count; ++i) all_new = bytes.insert(start + i).second && all_new;
  return all_new;
}

PageMapSpec random_spec(Random& random, const MemoryRegion& region) {
  return {.region = region,
          .base_offset = random.uniform(20),
          .num_blocks = static_cast<uint32_t>(random.uniform_between(1, 4)),
          .block_stride = random.uniform(30),
          .layers = {LayerId{0}, static_cast<uint32_t>(random.uniform_between(1, 3))},
          .layer_stride = random.uniform(30),
          .outer_dim = static_cast<uint32_t>(random.uniform_between(1, 2)),
          .outer_stride = random.uniform(30),
          .chunk_bytes = random.uniform_between(1, 6)};
}

TEST(LayoutProperty, APageMapIsAcceptedExactlyIfItsChunksFitAndAreDisjoint) {
  Random random(testing::test_seed(11));
  std::vector<std::byte> memory(200);
  int accepted = 0;
  for (int round = 0; round < 5000; ++round) {
    const MemoryRegion region = MemoryRegion::of_bytes(StorageKind::kSystem, memory.data(),
                                                       random.uniform_between(20, 200));
    const PageMapSpec spec = random_spec(random, region);
    bool good = true;
    std::set<uint64_t> bytes;
    for (const uint64_t start : chunk_starts(spec)) {
      good = add_bytes(bytes, start, spec.chunk_bytes) && good;
    }
    good = good && *bytes.rbegin() < region.size_bytes();
    const Result<PageMap> map = PageMap::create(spec);
    ASSERT_EQ(map.has_value(), good)
        << "round " << round << ": " << (map ? "accepted" : map.error().message());
    if (!map) continue;
    ++accepted;
    EXPECT_EQ(map->first_byte(), *bytes.begin());
    EXPECT_EQ(map->end_byte(), *bytes.rbegin() + 1);
  }
  EXPECT_GT(accepted, 200);
}

TEST(LayoutProperty, TwoPageMapsOverlapExactlyIfTheyShareAByte) {
  Random random(testing::test_seed(12));
  std::vector<std::byte> memory(400);
  const MemoryRegion region = MemoryRegion::of_bytes(StorageKind::kSystem, memory.data(), 400);
  int compared = 0;
  int overlapping = 0;
  while (compared < 2000) {
    const PageMapSpec spec_a = random_spec(random, region);
    PageMapSpec spec_b = random_spec(random, region);
    spec_b.block_stride = spec_a.block_stride;
    const Result<PageMap> a = PageMap::create(spec_a);
    const Result<PageMap> b = PageMap::create(spec_b);
    if (!a || !b) continue;
    ++compared;
    std::set<uint64_t> bytes;
    for (const uint64_t start : chunk_starts(spec_a)) add_bytes(bytes, start, spec_a.chunk_bytes);
    bool shared = false;
    for (const uint64_t start : chunk_starts(spec_b)) {
      shared = !add_bytes(bytes, start, spec_b.chunk_bytes) || shared;
    }
    overlapping += shared;
    const auto distance =
        static_cast<int64_t>(spec_b.base_offset) - static_cast<int64_t>(spec_a.base_offset);
    ASSERT_EQ(internal::overlap(*a, *b, distance), shared) << "pair " << compared;
  }
  EXPECT_GT(overlapping, 200);
  EXPECT_LT(overlapping, 1900);
}

TEST(LayoutProperty, ChunksOfEveryKindAreDisjointAndInsideTheRequiredMemory) {
  Random random(testing::test_seed(13));
  for (int round = 0; round < 100; ++round) {
    const LayoutConfig config = random_config(random);
    for (const LayoutKind kind :
         {LayoutKind::kFullyContiguous, LayoutKind::kLayerSeparateBlockFirst,
          LayoutKind::kLayerSeparateBlockSecond, LayoutKind::kFileSlots}) {
      testing::GuardedPlace place(config, kind);
      for (uint32_t block = 0; block < config.num_blocks; ++block) {
        place.fill(BlockId{block}, 1000 + block);
      }
      // Had two chunks a byte in common, the later fill would have spoiled the earlier one.
      for (uint32_t block = 0; block < config.num_blocks; ++block) {
        ASSERT_TRUE(place.holds(BlockId{block}, 1000 + block)) << to_string(kind);
      }
      ASSERT_TRUE(place.guards_hold()) << to_string(kind);
    }
  }
}

TEST(LayoutProperty, RunsCoverABlockInCanonicalOrder) {
  Random random(testing::test_seed(14));
  for (int round = 0; round < 300; ++round) {
    const LayoutConfig config = random_config(random);
    for (const LayoutKind kind :
         {LayoutKind::kFullyContiguous, LayoutKind::kLayerSeparateBlockFirst,
          LayoutKind::kLayerSeparateBlockSecond}) {
      testing::GuardedPlace place(config, kind);
      const BlockId block(static_cast<uint32_t>(random.uniform(config.num_blocks)));
      place.fill(block, 7);
      const auto first = static_cast<uint32_t>(random.uniform(config.num_layers));
      const LayerRange layers{
          LayerId(static_cast<uint16_t>(first)),
          static_cast<uint32_t>(random.uniform_between(1, config.num_layers - first))};
      std::vector<std::byte> bytes;
      const std::vector<BlockRun> runs = place.layout().runs(layers);
      EXPECT_LE(runs.size(), layers.count);
      for (const BlockRun& run : runs) {
        const PageMap& map = place.layout().page_maps()[run.page_map];
        EXPECT_EQ(run.stride == 0, run.count == 1);
        for (uint32_t k = 0; k < run.count; ++k) {
          const uint64_t start = run.offset + block.value() * map.block_stride() + k * run.stride;
          const std::vector<std::byte> piece = place.read(map.region().slice(start, run.bytes));
          bytes.insert(bytes.end(), piece.begin(), piece.end());
        }
      }
      ASSERT_TRUE(testing::same_block(config, bytes, testing::pattern_block(config, 7, layers)));
    }
  }
}

}  // namespace
}  // namespace kvbm
