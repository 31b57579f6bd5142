// SPDX-License-Identifier: Apache-2.0
#include "kvbm/layout/physical_layout.hpp"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/contract.hpp"

namespace kvbm {
namespace {

// 4 blocks of 3 layers, keys and values, chunks of 2 x 5 x 2 = 20 bytes.
constexpr LayoutConfig kConfig{.num_blocks = 4,
                               .num_layers = 3,
                               .outer_dim = 2,
                               .page_size = 2,
                               .inner_dim = 5,
                               .dtype_width_bytes = 2,
                               .num_heads = std::nullopt,
                               .alignment = 1};

LayerId layer(uint16_t value) { return LayerId(value); }

class PhysicalLayoutTest : public ::testing::Test {
 protected:
  MemoryRegion memory(uint64_t offset, uint64_t size) {
    return MemoryRegion::of_bytes(StorageKind::kSystem, bytes_.data() + offset, size);
  }
  std::vector<MemoryRegion> regions(uint64_t bytes_each) {
    std::vector<MemoryRegion> all;
    for (uint64_t i = 0; i < kConfig.num_layers; ++i) all.push_back(memory(i * 4096, bytes_each));
    return all;
  }
  uint64_t offset_of(const PhysicalLayout& layout, uint32_t block, uint16_t layer_id,
                     uint32_t outer) {
    const MemoryRegion chunk = layout.region(BlockId{block}, layer(layer_id), outer);
    EXPECT_EQ(chunk.size_bytes(), 20U);
    return static_cast<uint64_t>(chunk.base() - bytes_.data());
  }
  void expect_refused(const Result<PhysicalLayout>& layout, const std::string& word) {
    ASSERT_FALSE(layout) << word;
    EXPECT_EQ(layout.error().code(), ErrorCode::kInvalidArgument);
    EXPECT_NE(layout.error().message().find(word), std::string::npos) << layout.error().message();
  }

  struct alignas(4096) Page {
    std::byte bytes[4096];
  };
  std::vector<Page> pages_ = std::vector<Page>(16);
  std::span<std::byte> bytes_{pages_.front().bytes, 16 * 4096};
};

TEST_F(PhysicalLayoutTest, FullyContiguousIsBlockLayerOuter) {
  const PhysicalLayout layout = PhysicalLayout::fully_contiguous(kConfig, memory(0, 480)).value();
  EXPECT_EQ(offset_of(layout, 0, 0, 0), 0U);
  EXPECT_EQ(offset_of(layout, 0, 0, 1), 20U);
  EXPECT_EQ(offset_of(layout, 0, 1, 0), 40U);
  EXPECT_EQ(offset_of(layout, 3, 2, 1), 3U * 120 + 2 * 40 + 20);
  EXPECT_EQ(layout.kind(), LayoutKind::kFullyContiguous);
  EXPECT_EQ(layout.storage_kind(), StorageKind::kSystem);
  EXPECT_EQ(layout.slots(), nullptr);
}

TEST_F(PhysicalLayoutTest, LayerSeparateHasTheBlockFirstOrSecond) {
  const auto first =
      PhysicalLayout::layer_separate(kConfig, BlockDimension::kBlockIsFirst, regions(160));
  EXPECT_EQ(offset_of(*first, 0, 0, 1), 20U);
  EXPECT_EQ(offset_of(*first, 3, 0, 0), 3U * 40);
  EXPECT_EQ(offset_of(*first, 3, 2, 1), 2U * 4096 + 3 * 40 + 20);
  const auto second =
      PhysicalLayout::layer_separate(kConfig, BlockDimension::kBlockIsSecond, regions(160));
  EXPECT_EQ(offset_of(*second, 0, 0, 1), 80U);
  EXPECT_EQ(offset_of(*second, 3, 0, 0), 3U * 20);
  EXPECT_EQ(offset_of(*second, 3, 2, 1), 2U * 4096 + 80 + 3 * 20);
}

TEST_F(PhysicalLayoutTest, AlignmentEntersTheStrides) {
  LayoutConfig config = kConfig;
  config.alignment = 64;
  const PhysicalLayout layout = PhysicalLayout::fully_contiguous(config, memory(0, 512)).value();
  EXPECT_EQ(offset_of(layout, 1, 0, 0), 128U);
  EXPECT_EQ(offset_of(layout, 1, 0, 1), 148U);  // chunks of one block stay together
  EXPECT_EQ(required_bytes(config, LayoutKind::kFullyContiguous).value(), 4U * 128);

  const auto first =
      PhysicalLayout::layer_separate(config, BlockDimension::kBlockIsFirst, regions(256));
  EXPECT_EQ(offset_of(*first, 1, 1, 1), 4096U + 64 + 20);
  const auto second =
      PhysicalLayout::layer_separate(config, BlockDimension::kBlockIsSecond, regions(512));
  EXPECT_EQ(offset_of(*second, 1, 1, 1), 4096U + 4 * 64 + 64);

  expect_refused(PhysicalLayout::fully_contiguous(config, memory(32, 600)), "alignment 64");
}

TEST_F(PhysicalLayoutTest, RequiredMemoryIsExactlyWhatTheMakersTake) {
  LayoutConfig config = kConfig;
  config.alignment = 16;
  const MemoryNeed whole = required_memory(config, LayoutKind::kFullyContiguous).value();
  EXPECT_EQ(whole.num_regions, 1U);
  EXPECT_TRUE(PhysicalLayout::fully_contiguous(config, memory(0, whole.region_bytes)));
  EXPECT_FALSE(PhysicalLayout::fully_contiguous(config, memory(0, whole.region_bytes - 16)));

  for (const auto& [kind, dimension] :
       {std::pair(LayoutKind::kLayerSeparateBlockFirst, BlockDimension::kBlockIsFirst),
        std::pair(LayoutKind::kLayerSeparateBlockSecond, BlockDimension::kBlockIsSecond)}) {
    const MemoryNeed need = required_memory(config, kind).value();
    EXPECT_EQ(need.num_regions, 3U);
    const auto layout =
        PhysicalLayout::layer_separate(config, dimension, regions(need.region_bytes));
    ASSERT_TRUE(layout);
    EXPECT_EQ(layout->kind(), kind);
    EXPECT_FALSE(
        PhysicalLayout::layer_separate(config, dimension, regions(need.region_bytes - 16)));
    EXPECT_EQ(required_bytes(config, kind).value(), 3 * need.region_bytes);
  }
  EXPECT_FALSE(required_memory(config, LayoutKind::kPageMaps));
  config.page_size = 0;
  EXPECT_FALSE(required_memory(config, LayoutKind::kFullyContiguous));
}

TEST_F(PhysicalLayoutTest, RegionsMustFitTheConfig) {
  std::vector<MemoryRegion> two = regions(160);
  two.pop_back();
  expect_refused(PhysicalLayout::layer_separate(kConfig, BlockDimension::kBlockIsFirst, two),
                 "2 regions");
  std::vector<MemoryRegion> small = regions(160);
  small[1] = small[1].slice(0, 159);
  expect_refused(PhysicalLayout::layer_separate(kConfig, BlockDimension::kBlockIsFirst, small),
                 "layer 1");
  std::vector<MemoryRegion> same = regions(160);
  same[2] = same[0];
  expect_refused(PhysicalLayout::layer_separate(kConfig, BlockDimension::kBlockIsFirst, same),
                 "overlap");
  std::vector<MemoryRegion> mixed = regions(160);
  mixed[1] = MemoryRegion::of_bytes(StorageKind::kPinned, mixed[1].base(), 160);
  expect_refused(PhysicalLayout::layer_separate(kConfig, BlockDimension::kBlockIsFirst, mixed),
                 "pinned");
  const MemoryRegion file = MemoryRegion::of_file({.fd = 3, .alignment = {}}, 0, 1U << 20);
  expect_refused(PhysicalLayout::fully_contiguous(kConfig, file), "file_slots");
  const std::vector<MemoryRegion> files(3, file);
  expect_refused(PhysicalLayout::layer_separate(kConfig, BlockDimension::kBlockIsFirst, files),
                 "file_slots");
}

TEST_F(PhysicalLayoutTest, IndexesOutsideAreABrokenContract) {
  const PhysicalLayout layout = PhysicalLayout::fully_contiguous(kConfig, memory(0, 480)).value();
  EXPECT_THROW(static_cast<void>(layout.region(BlockId{4}, layer(0), 0)), ContractViolation);
  EXPECT_THROW(static_cast<void>(layout.region(BlockId{0}, layer(3), 0)), ContractViolation);
  EXPECT_THROW(static_cast<void>(layout.region(BlockId{0}, layer(0), 2)), ContractViolation);
  EXPECT_THROW(static_cast<void>(layout.runs({layer(0), 4})), ContractViolation);
  EXPECT_THROW(static_cast<void>(layout.runs({layer(1), 0})), ContractViolation);
  EXPECT_THROW(static_cast<void>(layout.slot(BlockId{0})), ContractViolation);
}

TEST_F(PhysicalLayoutTest, RunsAreAsFewAsTheStridesAllow) {
  using Runs = std::vector<BlockRun>;
  const PhysicalLayout whole = PhysicalLayout::fully_contiguous(kConfig, memory(0, 480)).value();
  EXPECT_EQ(whole.runs(),
            (Runs{{.page_map = 0, .offset = 0, .bytes = 120, .count = 1, .stride = 0}}));
  EXPECT_EQ(whole.runs({layer(1), 2}),
            (Runs{{.page_map = 0, .offset = 40, .bytes = 80, .count = 1, .stride = 0}}));

  const auto first =
      PhysicalLayout::layer_separate(kConfig, BlockDimension::kBlockIsFirst, regions(160));
  EXPECT_EQ(first->runs(), (Runs{{0, 0, 40, 1, 0}, {1, 0, 40, 1, 0}, {2, 0, 40, 1, 0}}));
  const auto second =
      PhysicalLayout::layer_separate(kConfig, BlockDimension::kBlockIsSecond, regions(160));
  EXPECT_EQ(second->runs({layer(1), 2}), (Runs{{1, 0, 20, 2, 80}, {2, 0, 20, 2, 80}}));
}

TEST_F(PhysicalLayoutTest, AnEnginesTensorBecomesOneMapWithItsOwnStrides) {
  // [layer, outer, block] with padded blocks, layers in one tensor.
  const PageMapSpec spec{.region = memory(0, 3 * 2 * 4 * 24),
                         .base_offset = 0,
                         .num_blocks = 4,
                         .block_stride = 24,
                         .layers = {layer(0), 3},
                         .layer_stride = 192,
                         .outer_dim = 2,
                         .outer_stride = 96,
                         .run_bytes = 20};
  const auto layout = PhysicalLayout::from_page_maps(kConfig, {PageMap::create(spec).value()});
  ASSERT_TRUE(layout);
  EXPECT_EQ(layout->kind(), LayoutKind::kPageMaps);
  EXPECT_EQ(offset_of(*layout, 2, 1, 1), 192U + 96 + 48);
  // Six pieces at one distance.
  EXPECT_EQ(layout->runs(), (std::vector<BlockRun>{{0, 0, 20, 6, 96}}));
}

TEST_F(PhysicalLayoutTest, PiecesAtUnequalDistancesAreSeveralRuns) {
  // Keys and values 96 apart, layers 200 apart.
  const PageMapSpec spec{.region = memory(0, 4096),
                         .base_offset = 0,
                         .num_blocks = 4,
                         .block_stride = 24,
                         .layers = {layer(0), 3},
                         .layer_stride = 200,
                         .outer_dim = 2,
                         .outer_stride = 96,
                         .run_bytes = 20};
  const auto layout = PhysicalLayout::from_page_maps(kConfig, {PageMap::create(spec).value()});
  EXPECT_EQ(layout->runs(),
            (std::vector<BlockRun>{{0, 0, 20, 2, 96}, {0, 200, 20, 2, 96}, {0, 400, 20, 2, 96}}));
}

TEST_F(PhysicalLayoutTest, EveryLayerIsInExactlyOneMap) {
  const auto map = [&](uint16_t first, uint32_t count, uint64_t offset) {
    return PageMap::create({.region = memory(offset, count * 160),
                            .base_offset = 0,
                            .num_blocks = 4,
                            .block_stride = 40,
                            .layers = {layer(first), count},
                            .layer_stride = 160,
                            .outer_dim = 2,
                            .outer_stride = 20,
                            .run_bytes = 20})
        .value();
  };
  const auto swapped = PhysicalLayout::from_page_maps(kConfig, {map(1, 2, 0), map(0, 1, 4096)});
  ASSERT_TRUE(swapped);
  EXPECT_EQ(swapped->page_map_of(layer(0)), 1U);
  EXPECT_EQ(swapped->page_map_of(layer(2)), 0U);
  EXPECT_EQ(offset_of(*swapped, 1, 2, 0), 160U + 40);
  EXPECT_EQ(swapped->runs(), (std::vector<BlockRun>{{1, 0, 40, 1, 0}, {0, 0, 40, 2, 160}}));

  expect_refused(PhysicalLayout::from_page_maps(kConfig, {}), "needs a page map");
  expect_refused(PhysicalLayout::from_page_maps(kConfig, {map(1, 2, 0)}),
                 "no page map holds layer 0");
  expect_refused(PhysicalLayout::from_page_maps(kConfig, {map(0, 2, 0), map(1, 2, 4096)}),
                 "layer 1 is in two");
  expect_refused(PhysicalLayout::from_page_maps(kConfig, {map(0, 4, 0)}), "layers up to 4");
  expect_refused(PhysicalLayout::from_page_maps(kConfig, {map(0, 1, 0), map(1, 2, 100)}),
                 "overlap");
  EXPECT_TRUE(PhysicalLayout::from_page_maps(kConfig, {map(0, 1, 0), map(1, 2, 160)}));
}

// 4 blocks of 3 layers, keys and values, 2 tokens of 5 heads of 1 element of 2 bytes.
constexpr LayoutConfig with_heads() {
  LayoutConfig config = kConfig;
  config.num_heads = 5;
  return config;
}

TEST_F(PhysicalLayoutTest, AFormatTurnsIntoStrides) {
  const LayoutConfig config = with_heads();
  const auto at = [&](const KvBlockLayout& format) {
    const auto layout = PhysicalLayout::fully_contiguous(config, memory(0, 480), format).value();
    EXPECT_EQ(layout.kv_block_layout(), format);
    const MemoryRegion found = layout.head_region(BlockId{1}, layer(2), 1, 3, 1);
    EXPECT_EQ(found.size_bytes(), 2U);
    return static_cast<uint64_t>(found.base() - bytes_.data());
  };
  EXPECT_EQ(at(KvBlockLayout::kOperationalNHD), 120U + 2 * 40 + 20 + 1 * 10 + 3 * 2);
  EXPECT_EQ(at(KvBlockLayout::kOperationalHND), 120U + 2 * 40 + 20 + 3 * 4 + 1 * 2);
  EXPECT_EQ(at(KvBlockLayout::kUniversalPP), 120U + 2 * 40 + 3 * 8 + 1 * 4 + 1 * 2);
  EXPECT_EQ(at(KvBlockLayout::kUniversalTP), 120U + 3 * 24 + 2 * 8 + 1 * 4 + 1 * 2);
  const KvBlockLayout custom = KvBlockLayout::custom({BlockAxis::kPage, BlockAxis::kOuter,
                                                      BlockAxis::kHead, BlockAxis::kLayer})
                                   .value();
  EXPECT_EQ(at(custom), 120U + 1 * 60 + 1 * 30 + 3 * 6 + 2 * 2);
}

TEST_F(PhysicalLayoutTest, RegionsAreOnlyThereWhereAChunkIsOneRun) {
  const LayoutConfig config = with_heads();
  const auto made = [&](const LayoutConfig& of, const KvBlockLayout& format) {
    return PhysicalLayout::fully_contiguous(of, memory(0, 480), format).value();
  };
  for (const KvBlockLayout& format :
       {KvBlockLayout::kUnknown, KvBlockLayout::kOperationalNHD, KvBlockLayout::kOperationalHND}) {
    const PhysicalLayout layout = made(config, format);
    EXPECT_TRUE(layout.has_regions());
    EXPECT_EQ(offset_of(layout, 3, 2, 1), 3U * 120 + 2 * 40 + 20);
  }
  for (const KvBlockLayout& format : {KvBlockLayout::kUniversalPP, KvBlockLayout::kUniversalTP}) {
    const PhysicalLayout layout = made(config, format);
    EXPECT_FALSE(layout.has_regions());
    EXPECT_THROW(static_cast<void>(layout.region(BlockId{0}, layer(0), 0)), ContractViolation);
  }
  // With a single head nothing is outside of the layers.
  LayoutConfig one_head = config;
  one_head.num_heads = 1;
  EXPECT_TRUE(made(one_head, KvBlockLayout::kUniversalTP).has_regions());
  EXPECT_THROW(
      static_cast<void>(
          made(config, KvBlockLayout::kUnknown).head_region(BlockId{0}, layer(0), 0, 0, 0)),
      ContractViolation);
}

TEST_F(PhysicalLayoutTest, AFormatAsksForHeadsAndLayersThatAreApartForAnOperationalOne) {
  expect_refused(
      PhysicalLayout::fully_contiguous(kConfig, memory(0, 480), KvBlockLayout::kUniversalTP),
      "universal_tp needs the number of heads");
  for (const BlockDimension dimension :
       {BlockDimension::kBlockIsFirst, BlockDimension::kBlockIsSecond}) {
    expect_refused(PhysicalLayout::layer_separate(with_heads(), dimension, regions(160),
                                                  KvBlockLayout::kUniversalPP),
                   "cannot lie apart");
    EXPECT_TRUE(PhysicalLayout::layer_separate(with_heads(), dimension, regions(160),
                                               KvBlockLayout::kOperationalHND));
  }
  const MemoryRegion file = MemoryRegion::of_file({.fd = 3, .alignment = {}}, 0, 16384);
  expect_refused(PhysicalLayout::file_slots(kConfig, file, {}, KvBlockLayout::kUniversalTP),
                 "needs the number of heads");
  const auto slots =
      PhysicalLayout::file_slots(with_heads(), file, {}, KvBlockLayout::kUniversalTP);
  ASSERT_TRUE(slots);
  EXPECT_EQ(slots->head_region(BlockId{2}, layer(2), 1, 3, 1).file_offset(),
            2U * 4096 + 64 + 3 * 24 + 2 * 8 + 1 * 4 + 1 * 2);
}

/// Of all layers, in a region of its own.
PageMapSpec strided(const MemoryRegion& region, BlockStrides strides, uint64_t block_stride) {
  return {.region = region,
          .base_offset = 0,
          .num_blocks = 4,
          .block_stride = block_stride,
          .layers = {layer(0), 3},
          .layer_stride = strides.layer,
          .outer_dim = 2,
          .outer_stride = strides.outer,
          .num_heads = 5,
          .head_stride = strides.head,
          .page_size = 2,
          .page_stride = strides.page,
          .run_bytes = 2};
}

TEST_F(PhysicalLayoutTest, TheFormatOfPageMapsIsTheOneThatTheirStridesMake) {
  const auto format_of = [&](BlockStrides strides, uint64_t block_stride) {
    const PageMap map = PageMap::create(strided(memory(0, 65536), strides, block_stride)).value();
    return PhysicalLayout::from_page_maps(with_heads(), {map}).value().kv_block_layout();
  };
  // layer, outer, head, page; packed, then padded, then with the block inside.
  EXPECT_EQ(format_of({40, 20, 2, 10}, 120), KvBlockLayout::kOperationalNHD);
  EXPECT_EQ(format_of({64, 32, 2, 12}, 192), KvBlockLayout::kOperationalNHD);
  EXPECT_EQ(format_of({160, 80, 2, 10}, 20), KvBlockLayout::kOperationalNHD);
  EXPECT_EQ(format_of({40, 20, 4, 2}, 120), KvBlockLayout::kOperationalHND);
  EXPECT_EQ(format_of({40, 4, 8, 2}, 120), KvBlockLayout::kUniversalPP);
  EXPECT_EQ(format_of({8, 4, 24, 2}, 120), KvBlockLayout::kUniversalTP);
  const KvBlockLayout custom = format_of({2, 30, 6, 60}, 120);
  EXPECT_EQ(custom.order(), (BlockAxisOrder{BlockAxis::kPage, BlockAxis::kOuter, BlockAxis::kHead,
                                            BlockAxis::kLayer}));
}

TEST_F(PhysicalLayoutTest, PageMapsAgreeOnTheirFormat) {
  const auto one = [&](uint16_t index, BlockStrides strides) {
    PageMapSpec spec = strided(memory(index * 4096ULL, 4096), strides, 40);
    spec.layers = {layer(index), 1};
    return PageMap::create(spec).value();
  };
  const BlockStrides nhd{0, 20, 2, 10};
  const BlockStrides hnd{0, 20, 4, 2};
  const auto alike =
      PhysicalLayout::from_page_maps(with_heads(), {one(0, nhd), one(1, nhd), one(2, nhd)});
  EXPECT_EQ(alike->kv_block_layout(), KvBlockLayout::kOperationalNHD);
  expect_refused(
      PhysicalLayout::from_page_maps(with_heads(), {one(0, nhd), one(1, hnd), one(2, nhd)}),
      "different orders");
  PageMapSpec opaque = strided(memory(8192, 4096), nhd, 40);
  opaque.layers = {layer(2), 1};
  opaque.num_heads = opaque.page_size = 1;
  opaque.run_bytes = 20;
  const PageMap chunks = PageMap::create(opaque).value();
  expect_refused(PhysicalLayout::from_page_maps(with_heads(), {one(0, nhd), one(1, nhd), chunks}),
                 "opaque");
  expect_refused(PhysicalLayout::from_page_maps(kConfig, {one(0, nhd), one(1, nhd), one(2, nhd)}),
                 "no num_heads");
  LayoutConfig other = with_heads();
  other.num_heads = 10;
  other.inner_dim = 10;
  expect_refused(PhysicalLayout::from_page_maps(other, {one(0, nhd), one(1, nhd), one(2, nhd)}),
                 "num_heads 5, the config 10");
}

TEST_F(PhysicalLayoutTest, AlignmentHoldsForEveryRunOfAnEnginesTensor) {
  LayoutConfig config = with_heads();
  config.alignment = 8;
  const auto layout = [&](BlockStrides strides) {
    return PhysicalLayout::from_page_maps(
        config, {PageMap::create(strided(memory(0, 65536), strides, 1024)).value()});
  };
  EXPECT_TRUE(layout({256, 128, 8, 40}));
  expect_refused(layout({256, 128, 8, 44}), "alignment 8");
}

TEST_F(PhysicalLayoutTest, RegistrationTellsWhereTheMemoryIs) {
  const PhysicalLayout whole = PhysicalLayout::fully_contiguous(kConfig, memory(0, 480)).value();
  EXPECT_EQ(whole.registration(), (RegistrationMetadata{"", MemoryType::kDram, 0}));
  const auto device = PhysicalLayout::fully_contiguous(
      kConfig, MemoryRegion::of_bytes(StorageKind::kDevice, bytes_.data(), 480));
  EXPECT_EQ(device->registration().memory_type, MemoryType::kVram);
  const auto file = PhysicalLayout::file_slots(
      kConfig, MemoryRegion::of_file({.fd = 3, .alignment = {}}, 0, 16384));
  EXPECT_EQ(file->registration(), (RegistrationMetadata{"", MemoryType::kFile, 3}));
}

TEST_F(PhysicalLayoutTest, LayersMayBeInterleavedInOneTensorButNotShareBytes) {
  const auto map = [&](uint16_t index, uint64_t base_offset, uint64_t block_stride = 120) {
    return PageMap::create({.region = memory(0, 1000),
                            .base_offset = base_offset,
                            .num_blocks = 4,
                            .block_stride = block_stride,
                            .layers = {layer(index), 1},
                            .layer_stride = 0,
                            .outer_dim = 2,
                            .outer_stride = 20,
                            .run_bytes = 20})
        .value();
  };
  EXPECT_TRUE(PhysicalLayout::from_page_maps(kConfig, {map(0, 0), map(1, 40), map(2, 80)}));
  expect_refused(PhysicalLayout::from_page_maps(kConfig, {map(0, 0), map(1, 40), map(2, 79)}),
                 "overlap");
  expect_refused(PhysicalLayout::from_page_maps(kConfig, {map(0, 0), map(1, 40), map(2, 81)}),
                 "overlap");
  expect_refused(PhysicalLayout::from_page_maps(kConfig, {map(0, 0), map(1, 40), map(2, 80, 240)}),
                 "different block strides");
}

TEST_F(PhysicalLayoutTest, PageMapsThatAreComparedEndBefore2To60) {
  const auto map = [&](uint16_t index, uint64_t address, uint64_t outer_stride) {
    return PageMap::create(
               {.region = MemoryRegion::of_bytes(StorageKind::kSystem,
                                                 reinterpret_cast<std::byte*>(address),  // NOLINT
                                                 outer_stride + 20),
                .num_blocks = 1,
                .layers = {layer(index), 1},
                .outer_dim = 2,
                .outer_stride = outer_stride,
                .run_bytes = 20})
        .value();
  };
  LayoutConfig two = kConfig;
  two.num_blocks = 1;
  two.num_layers = 2;
  const uint64_t end = uint64_t{1} << 60;
  EXPECT_TRUE(PhysicalLayout::from_page_maps(two, {map(0, 80, end - 100), map(1, 160, end - 300)}));
  expect_refused(
      PhysicalLayout::from_page_maps(two, {map(0, 81, end - 100), map(1, 160, end - 300)}),
      "ends beyond 2^60");
  const uint64_t high = uint64_t{1} << 56;
  expect_refused(PhysicalLayout::from_page_maps(
                     two, {map(0, 0x1000, 0x71 * high), map(1, 0x1000 + 0x60 * high, 0x70 * high)}),
                 "ends beyond 2^60");
}

TEST_F(PhysicalLayoutTest, MapsOfAnotherShapeAreRefused) {
  const PageMapSpec good{.region = memory(0, 480),
                         .base_offset = 0,
                         .num_blocks = 4,
                         .block_stride = 120,
                         .layers = {layer(0), 3},
                         .layer_stride = 40,
                         .outer_dim = 2,
                         .outer_stride = 20,
                         .run_bytes = 20};
  ASSERT_TRUE(PhysicalLayout::from_page_maps(kConfig, {PageMap::create(good).value()}));
  PageMapSpec spec = good;
  spec.num_blocks = 3;
  expect_refused(PhysicalLayout::from_page_maps(kConfig, {PageMap::create(spec).value()}),
                 "num_blocks 3");
  spec = good;
  spec.outer_dim = 1;
  expect_refused(PhysicalLayout::from_page_maps(kConfig, {PageMap::create(spec).value()}),
                 "outer_dim 1");
  spec = good;
  spec.run_bytes = 16;
  expect_refused(PhysicalLayout::from_page_maps(kConfig, {PageMap::create(spec).value()}),
                 "chunk_bytes 16");
  LayoutConfig aligned = kConfig;
  aligned.alignment = 16;
  expect_refused(PhysicalLayout::from_page_maps(aligned, {PageMap::create(good).value()}),
                 "alignment 16");
  spec = good;
  spec.region = MemoryRegion::of_file({.fd = 3, .alignment = {}}, 0, 4096);
  expect_refused(PhysicalLayout::from_page_maps(kConfig, {PageMap::create(spec).value()}),
                 "file_slots");
}

TEST_F(PhysicalLayoutTest, FileSlotsHoldAHeaderAndThePackedBlock) {
  const MemoryNeed need = required_memory(kConfig, LayoutKind::kFileSlots).value();
  EXPECT_EQ(need.region_bytes, 4U * 4096);
  const MemoryRegion file =
      MemoryRegion::of_file({.fd = 3, .alignment = {}}, 8192, need.region_bytes);
  const PhysicalLayout layout = PhysicalLayout::file_slots(kConfig, file).value();
  EXPECT_EQ(layout.kind(), LayoutKind::kFileSlots);
  EXPECT_EQ(layout.storage_kind(), StorageKind::kFile);
  ASSERT_NE(layout.slots(), nullptr);
  EXPECT_EQ(*layout.slots(), (SlotGeometry{64, 120, 4096}));
  EXPECT_EQ(layout.slot(BlockId{2}).file_offset(), 8192U + 2 * 4096);
  EXPECT_EQ(layout.slot(BlockId{2}).size_bytes(), 4096U);
  EXPECT_EQ(layout.region(BlockId{2}, layer(1), 1).file_offset(), 8192U + 2 * 4096 + 64 + 60);
  EXPECT_EQ(layout.runs(), (std::vector<BlockRun>{{0, 64, 120, 1, 0}}));
  EXPECT_THROW(static_cast<void>(layout.slot(BlockId{4})), ContractViolation);

  expect_refused(PhysicalLayout::file_slots(kConfig, file.slice(0, need.region_bytes - 1)),
                 "do not fit");
  expect_refused(PhysicalLayout::file_slots(kConfig, memory(0, 16384)), "not in system memory");
  expect_refused(PhysicalLayout::file_slots(kConfig, file, {.header_bytes = 1}), "header_bytes");
  LayoutConfig aligned = kConfig;
  aligned.alignment = 512;  // of memory; a file has SlotOptions
  EXPECT_TRUE(PhysicalLayout::file_slots(aligned, file));
}

TEST_F(PhysicalLayoutTest, LayoutsThatShareAByteAreKnown) {
  const PhysicalLayout a = PhysicalLayout::fully_contiguous(kConfig, memory(0, 480)).value();
  const PhysicalLayout b = PhysicalLayout::fully_contiguous(kConfig, memory(480, 480)).value();
  const PhysicalLayout c = PhysicalLayout::fully_contiguous(kConfig, memory(479, 480)).value();
  EXPECT_FALSE(may_share_bytes(a, b));
  EXPECT_TRUE(may_share_bytes(a, c));
  EXPECT_TRUE(may_share_bytes(c, b));
  const auto file = [](int fd, uint64_t offset) {
    return PhysicalLayout::file_slots(
               kConfig, MemoryRegion::of_file({.fd = fd, .alignment = {}}, offset, 16384))
        .value();
  };
  EXPECT_FALSE(may_share_bytes(file(3, 0), file(3, 16384)));
  EXPECT_TRUE(may_share_bytes(file(3, 0), file(3, 4096)));
  EXPECT_FALSE(may_share_bytes(file(3, 0), file(4, 0)));
}

}  // namespace
}  // namespace kvbm
