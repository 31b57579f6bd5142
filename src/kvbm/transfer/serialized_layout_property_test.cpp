// SPDX-License-Identifier: Apache-2.0
// Random layouts of all kinds and formats go through their bytes and back; damage never does.
#include <algorithm>
#include <optional>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/random.hpp"
#include "kvbm/transfer/serialized_layout.hpp"

#include "tests/support/sample_metadata.hpp"
#include "tests/support/seed.hpp"

namespace kvbm {
namespace {

using testing::region_at;
using testing::resealed_metadata;
using Bytes = std::vector<std::byte>;

uint32_t between(Random& random, uint64_t low, uint64_t high) {
  return static_cast<uint32_t>(random.uniform_between(low, high));
}

KvBlockLayout random_format(Random& random, bool operational) {
  for (;;) {
    const KvBlockLayout named[] = {KvBlockLayout::kUnknown, KvBlockLayout::kUniversalTP,
                                   KvBlockLayout::kUniversalPP, KvBlockLayout::kOperationalHND,
                                   KvBlockLayout::kOperationalNHD};
    KvBlockLayout format = named[random.uniform(5)];
    if (random.chance(0.4)) {
      BlockAxisOrder order{BlockAxis::kLayer, BlockAxis::kOuter, BlockAxis::kHead,
                           BlockAxis::kPage};
      for (size_t i = 3; i > 0; --i) std::swap(order[i], order[random.uniform(i + 1)]);
      format = KvBlockLayout::custom(order).value();
    }
    if (!operational || !format.is_known() || format.is_operational()) return format;
  }
}

LayoutConfig random_config(Random& random) {
  LayoutConfig config{.num_blocks = between(random, 1, random.chance(0.2) ? 7'000'000 : 5),
                      .num_layers = between(random, 1, 6),
                      .outer_dim = between(random, 1, 2),
                      .page_size = between(random, 1, 5),
                      .inner_dim = 1,
                      .dtype_width_bytes = 1U << random.uniform(4),
                      .num_heads = between(random, 1, 4),
                      .alignment = uint64_t{1} << random.uniform(8)};
  config.inner_dim = *config.num_heads * between(random, 1, 4);
  return config;
}

StorageKind random_memory(Random& random) {
  const StorageKind kinds[] = {StorageKind::kSystem, StorageKind::kPinned, StorageKind::kDevice};
  return kinds[random.uniform(3)];
}

/// Layers as an engine has them: some in one tensor, some in others, with gaps.
std::optional<PhysicalLayout> random_page_maps(Random& random, LayoutConfig config) {
  config.alignment = 1;
  const KvBlockLayout format = random_format(random, true);
  const bool known = format.is_known();
  const uint64_t run = known ? config.head_bytes() : config.chunk_bytes();
  std::vector<PageMap> maps;
  uint64_t address = 4096;
  for (uint32_t layer = 0; layer < config.num_layers;) {
    const uint32_t layers = between(random, 1, config.num_layers - layer);
    const uint64_t gap = random.uniform(3) * 8;
    PageMapSpec spec{.base_offset = random.uniform(3) * 8,
                     .num_blocks = config.num_blocks,
                     .layers = {LayerId(static_cast<uint16_t>(layer)), layers},
                     .outer_dim = config.outer_dim,
                     .run_bytes = run};
    uint64_t stride = run + gap;
    if (known) {
      spec.num_heads = *config.num_heads;
      spec.page_size = config.page_size;
      const bool heads_inside = format.order()[3] == BlockAxis::kHead;
      (heads_inside ? spec.head_stride : spec.page_stride) = stride;
      stride *= heads_inside ? spec.num_heads : spec.page_size;
      (heads_inside ? spec.page_stride : spec.head_stride) = stride;
      stride *= heads_inside ? spec.page_size : spec.num_heads;
    }
    spec.outer_stride = stride;
    spec.layer_stride = stride * spec.outer_dim;
    spec.block_stride = spec.layer_stride * layers + gap;
    const uint64_t size = spec.base_offset + spec.block_stride * config.num_blocks;
    spec.region = region_at(address, size);
    address += size + random.uniform(2) * 100;
    maps.push_back(PageMap::create(spec).value());
    layer += layers;
  }
  // Layers that lie apart and one map that holds several may be in different orders.
  const Result<PhysicalLayout> layout = PhysicalLayout::from_page_maps(config, std::move(maps));
  if (!layout) return std::nullopt;
  return *layout;
}

std::optional<PhysicalLayout> random_layout(Random& random) {
  const LayoutConfig config = random_config(random);
  const auto kind = static_cast<LayoutKind>(random.uniform(5));
  const StorageKind storage = random_memory(random);
  switch (kind) {
    case LayoutKind::kFullyContiguous: {
      const uint64_t bytes = required_bytes(config, kind).value() + random.uniform(9);
      return PhysicalLayout::fully_contiguous(config, region_at(1 << 20, bytes, storage),
                                              random_format(random, false))
          .value();
    }
    case LayoutKind::kLayerSeparateBlockFirst:
    case LayoutKind::kLayerSeparateBlockSecond: {
      const uint64_t each = required_memory(config, kind)->region_bytes;
      std::vector<MemoryRegion> regions;
      uint64_t address = 1 << 20;
      for (uint32_t layer = 0; layer < config.num_layers; ++layer) {
        // Regions of different sizes too, so that maps do not all share a group.
        const uint64_t bytes = each + random.uniform(2) * 128;
        regions.push_back(region_at(address, bytes, storage));
        address += (bytes + 127) / 128 * 128 + random.uniform(3) * 128;
      }
      return PhysicalLayout::layer_separate(config,
                                            kind == LayoutKind::kLayerSeparateBlockFirst
                                                ? BlockDimension::kBlockIsFirst
                                                : BlockDimension::kBlockIsSecond,
                                            regions, random_format(random, true))
          .value();
    }
    case LayoutKind::kFileSlots: {
      const SlotOptions slots{.header_bytes = 64 * random.uniform_between(1, 100),
                              .alignment = uint64_t{64} << random.uniform(10)};
      const uint64_t bytes = required_bytes(config, kind, slots).value();
      return PhysicalLayout::file_slots(
                 config, MemoryRegion::of_file({.fd = 3}, random.uniform(5) * 512, bytes), slots,
                 random_format(random, false))
          .value();
    }
    case LayoutKind::kPageMaps:
      break;
  }
  return random_page_maps(random, config);
}

LayoutMetadata random_metadata(Random& random) {
  LayoutMetadata metadata{.worker = {WorkerId{random.next()}, "agent"}};
  for (uint64_t i = random.uniform(40); i > 0; --i) {
    metadata.worker.agent_name.push_back(static_cast<char>(random.next()));
    metadata.agent_metadata.push_back(static_cast<std::byte>(random.next()));
  }
  auto id = static_cast<uint16_t>(random.uniform(60000));
  for (const LogicalLayoutHandle tier : {TierId::kG4, TierId::kG1, TierId::kG3, TierId::kG2}) {
    for (uint16_t group = 0; group < 2; ++group) {
      const std::optional<PhysicalLayout> layout =
          random.chance(0.5) ? random_layout(random) : std::nullopt;
      if (!layout) continue;
      metadata.layouts.push_back({.handle = {metadata.worker.worker, id++},
                                  .tier = tier,
                                  .group = GroupId{group},
                                  .layout = LayoutDescriptor::of(*layout)});
      metadata.layouts.back().layout.registration.agent_name.resize(random.uniform(5), 'x');
    }
  }
  return metadata;
}

TEST(SerializedLayoutProperty, RandomMetadataComesBackAsItWas) {
  Random random(testing::test_seed());
  size_t kinds[5] = {};
  size_t interleaved = 0;
  for (int round = 0; round < 1000; ++round) {
    const LayoutMetadata metadata = random_metadata(random);
    const Result<SerializedLayout> packed = SerializedLayout::pack(metadata);
    ASSERT_TRUE(packed) << packed.error();
    const Result<LayoutMetadata> back = packed->unpack();
    ASSERT_TRUE(back) << back.error();
    ASSERT_EQ(*back, metadata);
    for (const LogicalLayoutDescriptor& layout : metadata.layouts) {
      ++kinds[static_cast<size_t>(layout.layout.kind)];
      if (layout.layout.kind == LayoutKind::kPageMaps && layout.layout.page_maps.size() > 1) {
        ++interleaved;
      }
    }
  }
  for (const size_t count : kinds) EXPECT_GT(count, 100U);
  EXPECT_GT(interleaved, 50U);
}

TEST(SerializedLayoutProperty, RandomDamageIsRefused) {
  Random random(testing::test_seed(2));
  for (int round = 0; round < 1000; ++round) {
    const SerializedLayout packed = SerializedLayout::pack(random_metadata(random)).value();
    Bytes bytes(packed.as_bytes().begin(), packed.as_bytes().end());
    const size_t at = random.uniform(bytes.size());
    bytes[at] ^= static_cast<std::byte>(1 + random.uniform(255));
    ASSERT_FALSE(SerializedLayout::from_bytes(bytes).unpack()) << "byte " << at;
  }
}

TEST(SerializedLayoutProperty, DamageWithARightChecksumIsRefusedOrIsOtherMetadata) {
  Random random(testing::test_seed(3));
  int accepted = 0;
  int refused = 0;
  for (int round = 0; round < 2000; ++round) {
    const SerializedLayout packed = SerializedLayout::pack(random_metadata(random)).value();
    Bytes bytes(packed.as_bytes().begin(), packed.as_bytes().end());
    const size_t at = 18 + random.uniform(bytes.size() - 18);
    bytes[at] ^= static_cast<std::byte>(1 + random.uniform(255));
    bytes = resealed_metadata(bytes);
    const Result<LayoutMetadata> found = SerializedLayout::from_bytes(bytes).unpack();
    if (!found) {
      ++refused;
      ASSERT_EQ(found.error().code(), ErrorCode::kCorrupt) << found.error();
      continue;
    }
    ++accepted;
    const SerializedLayout again = SerializedLayout::pack(*found).value();
    ASSERT_TRUE(std::ranges::equal(again.as_bytes(), bytes)) << "byte " << at << " is in no value";
  }
  EXPECT_GT(accepted, 100);
  EXPECT_GT(refused, 100);
}

}  // namespace
}  // namespace kvbm
