// SPDX-License-Identifier: Apache-2.0
// Random layouts against the plainest possible arithmetic: sets of byte numbers.
#include <algorithm>
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

LayoutConfig random_config_with_heads(Random& random) {
  LayoutConfig config = random_config(random);
  config.num_heads = static_cast<uint32_t>(random.uniform_between(1, 4));
  config.inner_dim = *config.num_heads * static_cast<uint32_t>(random.uniform_between(1, 4));
  return config;
}

std::vector<KvBlockLayout> known_formats() {
  std::vector<KvBlockLayout> formats{KvBlockLayout::kUniversalTP, KvBlockLayout::kUniversalPP,
                                     KvBlockLayout::kOperationalHND,
                                     KvBlockLayout::kOperationalNHD};
  BlockAxisOrder order{BlockAxis::kLayer, BlockAxis::kOuter, BlockAxis::kHead, BlockAxis::kPage};
  do {
    formats.push_back(KvBlockLayout::custom(order).value());
  } while (std::ranges::next_permutation(order).found);
  return formats;
}

/// Calls visit(layer, outer, head, page) in the order of a format, innermost last.
template <class F>
void for_each_head(const LayoutConfig& config, const BlockAxisOrder& order, F&& visit) {
  const auto count = [&](BlockAxis axis) -> uint32_t {
    if (axis == BlockAxis::kLayer) return config.num_layers;
    if (axis == BlockAxis::kOuter) return config.outer_dim;
    if (axis == BlockAxis::kHead) return *config.num_heads;
    return config.page_size;
  };
  uint32_t at[4] = {};
  for (uint32_t a = 0; a < count(order[0]); ++a) {
    for (uint32_t b = 0; b < count(order[1]); ++b) {
      for (uint32_t c = 0; c < count(order[2]); ++c) {
        for (uint32_t d = 0; d < count(order[3]); ++d) {
          const uint32_t index[4] = {a, b, c, d};
          for (size_t i = 0; i < 4; ++i) at[static_cast<size_t>(order[i])] = index[i];
          visit(LayerId(static_cast<uint16_t>(at[0])), at[1], at[2], at[3]);
        }
      }
    }
  }
}

/// The first byte of every run.
std::vector<uint64_t> run_starts(const PageMapSpec& spec) {
  std::vector<uint64_t> starts;
  for (uint64_t block = 0; block < spec.num_blocks; ++block) {
    for (uint64_t layer = 0; layer < spec.layers.count; ++layer) {
      for (uint64_t outer = 0; outer < spec.outer_dim; ++outer) {
        for (uint64_t head = 0; head < spec.num_heads; ++head) {
          for (uint64_t page = 0; page < spec.page_size; ++page) {
            starts.push_back(spec.base_offset + block * spec.block_stride +
                             layer * spec.layer_stride + outer * spec.outer_stride +
                             head * spec.head_stride + page * spec.page_stride);
          }
        }
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
          .num_heads = static_cast<uint32_t>(random.uniform_between(1, 2)),
          .head_stride = random.uniform(30),
          .page_size = static_cast<uint32_t>(random.uniform_between(1, 2)),
          .page_stride = random.uniform(30),
          .run_bytes = random.uniform_between(1, 6)};
}

TEST(LayoutProperty, APageMapIsAcceptedExactlyIfItsRunsFitAndAreDisjoint) {
  Random random(testing::test_seed(11));
  std::vector<std::byte> memory(200);
  int accepted = 0;
  for (int round = 0; round < 5000; ++round) {
    const MemoryRegion region = MemoryRegion::of_bytes(StorageKind::kSystem, memory.data(),
                                                       random.uniform_between(20, 200));
    const PageMapSpec spec = random_spec(random, region);
    bool good = true;
    std::set<uint64_t> bytes;
    for (const uint64_t start : run_starts(spec)) {
      good = add_bytes(bytes, start, spec.run_bytes) && good;
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
    if (random.chance(0.5)) spec_b.block_stride = spec_a.block_stride;
    const Result<PageMap> a = PageMap::create(spec_a);
    const Result<PageMap> b = PageMap::create(spec_b);
    if (!a || !b) continue;
    ++compared;
    std::set<uint64_t> bytes;
    for (const uint64_t start : run_starts(spec_a)) add_bytes(bytes, start, spec_a.run_bytes);
    bool shared = false;
    for (const uint64_t start : run_starts(spec_b)) {
      shared = !add_bytes(bytes, start, spec_b.run_bytes) || shared;
    }
    overlapping += shared;
    const auto distance =
        static_cast<int64_t>(spec_b.base_offset) - static_cast<int64_t>(spec_a.base_offset);
    internal::SearchSteps steps;
    ASSERT_EQ(internal::overlap(*a, *b, distance, steps).value(), shared) << "pair " << compared;
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

TEST(LayoutProperty, EveryFormatPutsEveryHeadWhereItsOrderSays) {
  Random random(testing::test_seed(15));
  for (int round = 0; round < 20; ++round) {
    const LayoutConfig config = random_config_with_heads(random);
    for (const KvBlockLayout& format : known_formats()) {
      for (const LayoutKind kind : {LayoutKind::kFullyContiguous, LayoutKind::kFileSlots}) {
        const testing::GuardedPlace place(config, kind, StorageKind::kSystem, {}, format);
        const PhysicalLayout& layout = place.layout();
        const auto start_of = [](const MemoryRegion& region) {
          return region.is_file() ? region.file_offset()
                                  : reinterpret_cast<uintptr_t>(region.base());
        };
        for (uint32_t block = 0; block < config.num_blocks; ++block) {
          // Block after block, each without a gap.
          uint64_t expected =
              start_of(layout.page_maps().front().region()) +
              (layout.slots() != nullptr
                   ? block * layout.slots()->slot_bytes + layout.slots()->header_bytes
                   : block * ((config.block_bytes() + config.alignment - 1) / config.alignment *
                              config.alignment));
          for_each_head(config, format.order(),
                        [&](LayerId layer, uint32_t outer, uint32_t head, uint32_t page) {
                          const MemoryRegion found =
                              layout.head_region(BlockId{block}, layer, outer, head, page);
                          ASSERT_EQ(found.size_bytes(), config.head_bytes());
                          ASSERT_EQ(start_of(found), expected) << to_string(format);
                          expected += config.head_bytes();
                        });
        }
      }
    }
  }
}

TEST(LayoutProperty, ARegionOfAnOperationalFormatIsTheOneOfTheOpaqueChunk) {
  Random random(testing::test_seed(16));
  for (int round = 0; round < 100; ++round) {
    const LayoutConfig config = random_config_with_heads(random);
    for (const LayoutKind kind :
         {LayoutKind::kFullyContiguous, LayoutKind::kLayerSeparateBlockFirst,
          LayoutKind::kLayerSeparateBlockSecond}) {
      const testing::GuardedPlace opaque(config, kind);
      for (const KvBlockLayout& format : known_formats()) {
        if (!format.is_operational()) continue;
        const testing::GuardedPlace place(config, kind, StorageKind::kSystem, {}, format);
        ASSERT_TRUE(place.layout().has_regions());
        const auto relative = [](const testing::GuardedPlace& of, const MemoryRegion& region) {
          return region.base() - of.layout().page_maps().front().region().base();
        };
        const BlockId block(static_cast<uint32_t>(random.uniform(config.num_blocks)));
        const LayerId layer(static_cast<uint16_t>(random.uniform(config.num_layers)));
        const auto outer = static_cast<uint32_t>(random.uniform(config.outer_dim));
        const MemoryRegion chunk = place.layout().region(block, layer, outer);
        ASSERT_EQ(relative(place, chunk),
                  relative(opaque, opaque.layout().region(block, layer, outer)));
        // And every head of it lies inside, where the order of head and page says.
        const auto head = static_cast<uint32_t>(random.uniform(*config.num_heads));
        const auto page = static_cast<uint32_t>(random.uniform(config.page_size));
        const bool page_first = format.order()[2] == BlockAxis::kPage;
        const uint64_t index = page_first ? uint64_t{page} * *config.num_heads + head
                                          : uint64_t{head} * config.page_size + page;
        ASSERT_EQ(place.layout().head_region(block, layer, outer, head, page).base(),
                  chunk.base() + index * config.head_bytes());
      }
    }
  }
}

TEST(LayoutProperty, RunsCoverABlockInTheOrderOfItsFormat) {
  Random random(testing::test_seed(17));
  for (int round = 0; round < 30; ++round) {
    const LayoutConfig config = random_config_with_heads(random);
    for (const KvBlockLayout& format : known_formats()) {
      for (const LayoutKind kind :
           {LayoutKind::kFullyContiguous, LayoutKind::kLayerSeparateBlockFirst,
            LayoutKind::kLayerSeparateBlockSecond}) {
        const bool apart = kind != LayoutKind::kFullyContiguous;
        if (apart && !format.is_operational()) continue;
        testing::GuardedPlace place(config, kind, StorageKind::kSystem, {}, format);
        const BlockId block(static_cast<uint32_t>(random.uniform(config.num_blocks)));
        place.fill(block, 7);
        const auto first = static_cast<uint32_t>(random.uniform(config.num_layers));
        const LayerRange layers{
            LayerId(static_cast<uint16_t>(first)),
            static_cast<uint32_t>(random.uniform_between(1, config.num_layers - first))};
        std::vector<std::byte> expected;
        for_each_head(config, format.order(),
                      [&](LayerId layer, uint32_t outer, uint32_t head, uint32_t page) {
                        if (layer.value() < layers.begin() || layer.value() >= layers.end()) return;
                        const std::vector<std::byte> part =
                            place.read(place.layout().head_region(block, layer, outer, head, page));
                        expected.insert(expected.end(), part.begin(), part.end());
                      });
        std::vector<std::byte> found;
        const std::vector<BlockRun> runs = place.layout().runs(layers);
        const bool whole = layers.count == config.num_layers && !apart;
        ASSERT_TRUE(!whole || runs.size() == 1);
        for (const BlockRun& run : runs) {
          const PageMap& map = place.layout().page_maps()[run.page_map];
          for (uint32_t k = 0; k < run.count; ++k) {
            const uint64_t start = run.offset + block.value() * map.block_stride() + k * run.stride;
            const std::vector<std::byte> part = place.read(map.region().slice(start, run.bytes));
            found.insert(found.end(), part.begin(), part.end());
          }
        }
        ASSERT_TRUE(found == expected) << to_string(format) << " as " << to_string(kind);
      }
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
