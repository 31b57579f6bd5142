// SPDX-License-Identifier: Apache-2.0
#include "kvbm/layout/layout_descriptor.hpp"

#include <limits>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kvbm {
namespace {

using ::testing::HasSubstr;

LayoutConfig config() {
  return {.num_blocks = 10,
          .num_layers = 3,
          .outer_dim = 2,
          .page_size = 4,
          .inner_dim = 16,
          .dtype_width_bytes = 2,
          .num_heads = 4};
}

/// Addresses that nobody reads.
MemoryRegion region_at(uint64_t address, uint64_t size_bytes,
                       StorageKind storage = StorageKind::kDevice) {
  return MemoryRegion::of_bytes(
      storage,
      reinterpret_cast<std::byte*>(address),  // NOLINT(performance-no-int-to-ptr)
      size_bytes);
}

LayoutDescriptor contiguous() {
  return LayoutDescriptor::of(PhysicalLayout::fully_contiguous(config(),
                                                               region_at(0x1000, 10 * 768 + 5),
                                                               KvBlockLayout::kUniversalTP)
                                  .value());
}

LayoutDescriptor separate() {
  return LayoutDescriptor::of(
      PhysicalLayout::layer_separate(
          config(), BlockDimension::kBlockIsSecond,
          std::vector{region_at(0x9000, 2560), region_at(0x1000, 2560), region_at(0x5000, 2560)},
          KvBlockLayout::kOperationalNHD)
          .value());
}

LayoutDescriptor in_a_file() {
  return LayoutDescriptor::of(
      PhysicalLayout::file_slots(config(), MemoryRegion::of_file({.fd = 5}, 8192, 10 * 8192),
                                 {.header_bytes = 4096, .alignment = 512})
          .value());
}

void expect_refused(const LayoutDescriptor& layout, const std::string& reason) {
  const Status status = layout.validate();
  ASSERT_FALSE(status) << "not refused: " << reason;
  EXPECT_EQ(status.error().code(), ErrorCode::kInvalidArgument);
  EXPECT_THAT(status.error().message(), HasSubstr(reason));
}

TEST(LayoutDescriptor, HasWhatThePageMapsOfALayoutHave) {
  const LayoutDescriptor layout = separate();
  EXPECT_EQ(layout.config, config());
  EXPECT_EQ(layout.kind, LayoutKind::kLayerSeparateBlockSecond);
  EXPECT_EQ(layout.format, KvBlockLayout::kOperationalNHD);
  EXPECT_EQ(layout.storage, StorageKind::kDevice);
  EXPECT_EQ(layout.registration.memory_type, MemoryType::kVram);
  EXPECT_FALSE(layout.slots);
  ASSERT_EQ(layout.page_maps.size(), 3U);
  EXPECT_EQ(layout.page_maps[1],
            (PageMapDescriptor{.address = 0x1000,
                               .size_bytes = 2560,
                               .base_offset = 0,
                               .block_stride = 128,
                               .layers = {LayerId{1}, 1},
                               .strides = {.layer = 0, .outer = 1280, .head = 8, .page = 32}}));
  EXPECT_TRUE(layout.validate());
}

TEST(LayoutDescriptor, OfAFileHasOffsetsAndSlots) {
  const LayoutDescriptor layout = in_a_file();
  EXPECT_EQ(layout.slots,
            (SlotGeometry{.header_bytes = 4096, .payload_bytes = 768, .slot_bytes = 5120}));
  EXPECT_EQ(layout.page_maps.at(0).address, 8192U);
  EXPECT_EQ(layout.page_maps.at(0).base_offset, 4096U);
  EXPECT_EQ(layout.registration.memory_type, MemoryType::kFile);
  EXPECT_EQ(layout.registration.device_id, 5U);
  EXPECT_TRUE(layout.validate());
}

TEST(LayoutDescriptor, SlotsOfTheLargestAlignmentThatFitsAreTheSameSlots) {
  for (const uint64_t alignment : {64U, 256U, 4096U, 65536U}) {
    const uint64_t slot_bytes = (64 + 768 + alignment - 1) / alignment * alignment;
    const LayoutDescriptor layout = LayoutDescriptor::of(
        PhysicalLayout::file_slots(config(), MemoryRegion::of_file({.fd = 5}, 0, 10 * slot_bytes),
                                   {.header_bytes = 64, .alignment = alignment})
            .value());
    EXPECT_EQ(layout.slots->slot_bytes, slot_bytes);
    EXPECT_TRUE(layout.validate()) << alignment;
  }
}

TEST(LayoutDescriptor, TheTensorsOfAnEngineAreDescribedByTheirStrides) {
  // [block, layer, outer, page, head] in one tensor with gaps, a map for each layer.
  std::vector<PageMap> maps;
  for (uint16_t layer = 0; layer < 3; ++layer) {
    maps.push_back(PageMap::create({.region = region_at(0x1000 + layer * 512, 10 * 1536),
                                    .num_blocks = 10,
                                    .block_stride = 1536,
                                    .layers = {LayerId{layer}, 1},
                                    .outer_dim = 2,
                                    .outer_stride = 256,
                                    .num_heads = 4,
                                    .head_stride = 8,
                                    .page_size = 4,
                                    .page_stride = 32,
                                    .run_bytes = 8})
                       .value());
  }
  LayoutDescriptor layout =
      LayoutDescriptor::of(PhysicalLayout::from_page_maps(config(), maps).value());
  EXPECT_EQ(layout.format, KvBlockLayout::kOperationalNHD);
  EXPECT_TRUE(layout.validate());

  layout.format = KvBlockLayout::kOperationalHND;
  expect_refused(layout, "its format is operational_hnd, its strides make operational_nhd");
  layout.format = KvBlockLayout::kOperationalNHD;
  layout.page_maps[1].address -= 512;
  expect_refused(layout, "overlap");
  layout.page_maps[1].address += 512;
  layout.page_maps[2].layers.first = LayerId{1};
  expect_refused(layout, "layer 1 is in two page maps");
}

/// `layout` with as many layers, each a map like its only one, `step_bytes` after the one before.
LayoutDescriptor repeated(LayoutDescriptor layout, uint32_t num_layers, uint64_t step_bytes) {
  layout.config.num_layers = num_layers;
  const PageMapDescriptor first = layout.page_maps.front();
  layout.page_maps.assign(num_layers, first);
  for (uint32_t i = 0; i < num_layers; ++i) {
    layout.page_maps[i].address += i * step_bytes;
    layout.page_maps[i].layers.first = LayerId(static_cast<uint16_t>(i));
  }
  return layout;
}

TEST(LayoutDescriptor, WhatTakesTooLongToTellIsRefused) {
  // One tensor with layers innermost, a map for each: 2^31 pairs of them.
  LayoutConfig config{.num_blocks = 2, .num_layers = 1, .outer_dim = 1, .page_size = 1};
  config.inner_dim = 4;
  config.dtype_width_bytes = 2;
  std::vector<PageMap> maps{PageMap::create({.region = region_at(0x1000, 65537 * 8),
                                             .num_blocks = 2,
                                             .block_stride = 65536 * 8,
                                             .layers = {LayerId{0}, 1},
                                             .outer_dim = 1,
                                             .run_bytes = 8})
                                .value()};
  const LayoutDescriptor interleaved =
      LayoutDescriptor::of(PhysicalLayout::from_page_maps(config, maps).value());
  EXPECT_TRUE(repeated(interleaved, 200, 8).validate());
  Status status = repeated(interleaved, 65536, 8).validate();
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code(), ErrorCode::kUnsupported);

  // Maps of their own memory, each of which takes thousands of steps.
  config = {.num_blocks = 100, .num_layers = 1, .outer_dim = 1, .page_size = 100};
  config.inner_dim = 2000;
  config.num_heads = 2000;
  config.dtype_width_bytes = 1;
  maps = {PageMap::create({.region = region_at(0x1000, 1ULL << 43),
                           .num_blocks = 100,
                           .block_stride = 1'000'000'000,
                           .layers = {LayerId{0}, 1},
                           .outer_dim = 1,
                           .num_heads = 2000,
                           .head_stride = 1'000'002'003,
                           .page_size = 100,
                           .page_stride = 1'000'002'011,
                           .run_bytes = 1})
              .value()};
  const LayoutDescriptor entangled =
      LayoutDescriptor::of(PhysicalLayout::from_page_maps(config, maps).value());
  EXPECT_TRUE(repeated(entangled, 2, 1ULL << 43).validate());
  status = repeated(entangled, 4096, 1ULL << 43).validate();
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code(), ErrorCode::kUnsupported);
}

TEST(LayoutDescriptor, WhatNoLayoutIsLikeIsRefused) {
  LayoutDescriptor layout = contiguous();
  ASSERT_TRUE(layout.validate());
  layout.config.num_blocks = 0;
  expect_refused(layout, "num_blocks is 0");
  layout = contiguous();
  layout.config.num_heads = std::nullopt;
  expect_refused(layout, "num_heads");
  layout = contiguous();
  layout.page_maps.clear();
  expect_refused(layout, "0 page maps of a layout of the kind fully_contiguous, which has one");
  layout = contiguous();
  layout.page_maps.front().size_bytes = 7679;
  expect_refused(layout, "a region of 7679 bytes");
  layout = contiguous();
  layout.page_maps.front().strides.head += 8;
  expect_refused(layout, "strides are not those of a fully_contiguous layout");
  layout = contiguous();
  layout.page_maps.front().block_stride += 768;
  expect_refused(layout, "strides are not those of a fully_contiguous layout");
  layout = contiguous();
  layout.registration.memory_type = MemoryType::kDram;
  expect_refused(layout, "device memory is registered as dram");
  layout = contiguous();
  layout.slots = SlotGeometry{};
  expect_refused(layout, "a layout of the kind fully_contiguous has no slots");
  layout = contiguous();
  layout.storage = StorageKind::kFile;
  expect_refused(layout, "blocks in a file are file_slots");
  layout = separate();
  layout.page_maps.pop_back();
  expect_refused(layout, "2 regions for the 3 layers");
  layout = in_a_file();
  layout.slots.reset();
  expect_refused(layout, "a layout of the kind file_slots needs slots");
  layout = in_a_file();
  layout.slots->payload_bytes += 1;
  expect_refused(layout, "its slots or strides");
}

TEST(LayoutDescriptor, RegionsStayInsideTheirSpace) {
  LayoutDescriptor layout = contiguous();
  layout.page_maps.front().address = 0;
  expect_refused(layout, "a region has no address");
  layout.page_maps.front().address = (uint64_t{1} << 60) - 7685;
  EXPECT_TRUE(layout.validate());
  layout.page_maps.front().address += 1;
  expect_refused(layout, "beyond 2^60");
  layout = in_a_file();
  layout.page_maps.front().address = std::numeric_limits<int64_t>::max();
  expect_refused(layout, "beyond 2^63");
}

TEST(LayoutDescriptor, CostsNothingABlock) {
  LayoutConfig large = config();
  large.num_blocks = 6'500'000;
  const PhysicalLayout layout =
      PhysicalLayout::fully_contiguous(large, region_at(0x1000, uint64_t{6'500'000} * 768)).value();
  EXPECT_EQ(LayoutDescriptor::of(layout).page_maps.size(), 1U);
}

}  // namespace
}  // namespace kvbm
