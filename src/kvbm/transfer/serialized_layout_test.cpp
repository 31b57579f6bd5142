// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/serialized_layout.hpp"

#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/bytes.hpp"
#include "kvbm/base/hash.hpp"

#include "tests/support/sample_metadata.hpp"

namespace kvbm {
namespace {

using ::testing::HasSubstr;
using testing::region_at;
using testing::resealed_metadata;
using testing::sample_metadata;
using Bytes = std::vector<std::byte>;

std::string hex(std::span<const std::byte> bytes) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  for (const std::byte value : bytes) {
    text += kDigits[std::to_integer<size_t>(value >> 4)];
    text += kDigits[std::to_integer<size_t>(value & std::byte{15})];
  }
  return text;
}

Bytes bytes_of_sample() {
  const SerializedLayout packed = SerializedLayout::pack(sample_metadata()).value();
  return {packed.as_bytes().begin(), packed.as_bytes().end()};
}

void expect_refused(Bytes bytes, ErrorCode code, const std::string& reason) {
  const auto found = SerializedLayout::from_bytes(std::move(bytes)).unpack();
  ASSERT_FALSE(found) << "not refused: " << reason;
  EXPECT_EQ(found.error().code(), code);
  EXPECT_THAT(found.error().message(), HasSubstr(reason));
}

void expect_not_packed(const LayoutMetadata& metadata, const std::string& reason) {
  const auto found = SerializedLayout::pack(metadata);
  ASSERT_FALSE(found) << "not refused: " << reason;
  EXPECT_EQ(found.error().code(), ErrorCode::kInvalidArgument);
  EXPECT_THAT(found.error().message(), HasSubstr(reason));
}

TEST(SerializedLayout, ComesBackAsItWas) {
  const LayoutMetadata metadata = sample_metadata();
  const SerializedLayout packed = SerializedLayout::pack(metadata).value();
  EXPECT_FALSE(packed.is_empty());
  EXPECT_EQ(packed.size_bytes(), packed.as_bytes().size());
  const Result<LayoutMetadata> back = packed.unpack();
  ASSERT_TRUE(back) << back.error();
  EXPECT_EQ(*back, metadata);
  // Each its tier.
  ASSERT_EQ(back->layouts.size(), 4U);
  EXPECT_EQ(back->layouts[0].tier, LogicalLayoutHandle::kG1);
  EXPECT_EQ(back->layouts[1].tier, LogicalLayoutHandle::kG2);
  EXPECT_EQ(back->layouts[2].tier, LogicalLayoutHandle::kG3);
  EXPECT_EQ(back->layouts[3].tier, LogicalLayoutHandle::kG1);
  EXPECT_EQ(back->layouts[3].group, GroupId{1});
}

TEST(SerializedLayout, MayHaveNoLayoutAndNoAgentMetadata) {
  const LayoutMetadata metadata{.worker = {WorkerId{1}, "a"}};
  const SerializedLayout packed = SerializedLayout::pack(metadata).value();
  EXPECT_EQ(packed.size_bytes(), 18U + 8 + 4 + 1 + 4 + 4);
  EXPECT_EQ(packed.unpack().value(), metadata);
}

TEST(SerializedLayout, TheBytesOfVersion1DoNotChange) {
  EXPECT_EQ(hex(bytes_of_sample()),
            // header
            "4b56424cdbd681b2b883a16101005b020000"
            // worker
            "070000000000000008000000776f726b65722d37"
            // agent metadata
            "03000000010203"
            // 4 layouts
            "04000000"
            // layout 0: tier, group, kind, storage, format
            "0000000000010204"
            // config
            "0a00000002000000020000000400000010000000020000000400000001000000"
            "00000000"
            // registration
            "08000000776f726b65722d370300000000000000"
            // page maps
            "01000000"
            "000001000000000a000000000000000000000000000000010000000000000000"
            "000000000000800000000000000008000000000000002000000000000000"
            "0200000000900000000000000010000000000000"
            // layout 1: tier, group, kind, storage, format
            "010001000000010503000102"
            // config
            "0a00000002000000020000000400000010000000020000000400000001000000"
            "00000000"
            // registration
            "000000000000000000000000"
            // page maps
            "01000000"
            "0000020000000014000000000000000000000000000000020000000000004000"
            "000000000000200000000000000008000000000000008000000000000000"
            "010000000000020000000000"
            // layout 2: tier, group, kind, storage, format
            "0200020000030300"
            // config
            "0a00000002000000020000000400000010000000020000000400000001000000"
            "00000000"
            // registration
            "000000000500000000000000"
            // slots
            "40000000000000000010000000000000"
            // page maps
            "01000000"
            "00000200000000a0000000000000400000000000000000100000000000000001"
            "000000000000800000000000000000000000000000000000000000000000"
            "010000000010000000000000"
            // layout 3: tier, group, kind, storage, format
            "0300000100000200"
            // config
            "0a00000002000000010000000400000010000000020000000000000040000000"
            "00000000"
            // registration
            "000000000000000000000000"
            // page maps
            "01000000"
            "000002000000000a000000000000000000000000000000010000000000008000"
            "000000000000000000000000000000000000000000000000000000000000"
            "010000000000030000000000");
}

TEST(SerializedLayout, ALayoutOfMillionsOfBlocksIsUnderOneKilobyte) {
  LayoutConfig config{.num_blocks = 6'500'000,
                      .num_layers = 80,
                      .outer_dim = 2,
                      .page_size = 16,
                      .inner_dim = 1024,
                      .dtype_width_bytes = 2,
                      .num_heads = 8};
  LayoutMetadata metadata{.worker = {WorkerId{1}, "worker-1"}};
  const uint64_t bytes = required_bytes(config, LayoutKind::kFullyContiguous).value();
  metadata.layouts.push_back({.handle = {WorkerId{1}, 0},
                              .layout = LayoutDescriptor::of(
                                  PhysicalLayout::fully_contiguous(config, region_at(4096, bytes),
                                                                   KvBlockLayout::kUniversalTP)
                                      .value())});
  EXPECT_LT(SerializedLayout::pack(metadata)->size_bytes(), 300U);

  // And with 80 layers, each somewhere else.
  std::vector<MemoryRegion> regions;
  uint64_t address = 4096;
  for (uint64_t layer = 0; layer < 80; ++layer) {
    regions.push_back(region_at(address, bytes / 80));
    address += bytes / 80 + 4096 * (layer % 7);
  }
  metadata.layouts.front().layout =
      LayoutDescriptor::of(PhysicalLayout::layer_separate(config, BlockDimension::kBlockIsFirst,
                                                          regions, KvBlockLayout::kOperationalNHD)
                               .value());
  const SerializedLayout packed = SerializedLayout::pack(metadata).value();
  EXPECT_LT(packed.size_bytes(), 1024U);
  EXPECT_EQ(packed.unpack().value(), metadata);
}

TEST(SerializedLayout, TruncatedBytesAreRefused) {
  const Bytes bytes = bytes_of_sample();
  for (size_t size = 0; size < bytes.size(); ++size) {
    const auto found =
        SerializedLayout::from_bytes({bytes.begin(), bytes.begin() + static_cast<long>(size)})
            .unpack();
    ASSERT_FALSE(found) << size;
    ASSERT_EQ(found.error().code(), ErrorCode::kCorrupt);
  }
  expect_refused({}, ErrorCode::kCorrupt, "0 bytes; its header alone has 18");
  Bytes longer = bytes;
  longer.push_back(std::byte{0});
  expect_refused(longer, ErrorCode::kCorrupt, "announces a body of");
  expect_refused(resealed_metadata(longer), ErrorCode::kCorrupt, "1 byte");
}

TEST(SerializedLayout, AnyAlteredBitIsRefused) {
  Bytes bytes = bytes_of_sample();
  for (size_t at = 0; at < bytes.size(); ++at) {
    for (unsigned bit = 0; bit < 8; ++bit) {
      bytes[at] ^= std::byte{1} << bit;
      ASSERT_FALSE(SerializedLayout::from_bytes(bytes).unpack()) << "byte " << at << " bit " << bit;
      bytes[at] ^= std::byte{1} << bit;
    }
  }
}

TEST(SerializedLayout, ForeignAndNewerBytesAreRefused) {
  Bytes bytes = bytes_of_sample();
  bytes[3] = std::byte{'P'};
  expect_refused(bytes, ErrorCode::kCorrupt, "does not begin with KVBL");
  bytes = bytes_of_sample();
  bytes[12] = std::byte{2};
  expect_refused(resealed_metadata(bytes), ErrorCode::kUnsupported,
                 "of version 2, this build reads up to 1");
  bytes[12] = std::byte{0};
  expect_refused(resealed_metadata(bytes), ErrorCode::kCorrupt, "no version 0");
}

// Offsets of the sample: docs/formats/layout-metadata.md.
TEST(SerializedLayout, ValuesThatAreNoneAreRefusedWhateverTheChecksumSays) {
  const auto with = [](size_t offset, uint8_t value) {
    Bytes bytes = bytes_of_sample();
    bytes.at(offset) = std::byte{value};
    return resealed_metadata(bytes);
  };
  constexpr size_t kFirst = 18 + 8 + 4 + 8 + 4 + 3 + 4;  // the first layout
  expect_refused(with(18 + 8, 200), ErrorCode::kCorrupt, "");
  expect_refused(with(kFirst + 2, 4), ErrorCode::kCorrupt, "4 is no tier");
  expect_refused(with(kFirst + 5, 5), ErrorCode::kCorrupt, "5 is no kind of layout");
  expect_refused(with(kFirst + 6, 4), ErrorCode::kCorrupt, "4 is no kind of storage");
  expect_refused(with(kFirst + 7, 6), ErrorCode::kCorrupt, "6 is no format");
  expect_refused(with(kFirst + 8, 0), ErrorCode::kCorrupt, "num_blocks is 0");
  expect_refused(with(kFirst - 4, 5), ErrorCode::kCorrupt, "");
}

TEST(SerializedLayout, WhatNoWorkerHasIsNotPacked) {
  LayoutMetadata metadata = sample_metadata();
  metadata.worker.agent_name.clear();
  expect_not_packed(metadata, "agent has no name");
  metadata = sample_metadata();
  metadata.layouts[1].handle.worker = WorkerId{8};
  expect_not_packed(metadata, "worker 8 layout 1 is not of worker 7");
  metadata = sample_metadata();
  metadata.layouts[1].handle.layout = 0;
  expect_not_packed(metadata, "layout 0 is described twice");
  metadata = sample_metadata();
  metadata.layouts[3].group = GroupId{0};
  expect_not_packed(metadata, "two layouts are G1 of group 0");
  metadata = sample_metadata();
  metadata.layouts[0].layout.page_maps.front().size_bytes = 1;
  expect_not_packed(metadata, "worker 7 layout 0: layer 0: page map: the last run ends");
}

TEST(SerializedLayout, AGroupOfMapsIsNeitherSplitNorEmpty) {
  // One layer separate layout, by hand: its two maps as two groups.
  LayoutMetadata metadata = sample_metadata();
  metadata.layouts.erase(metadata.layouts.begin() + 1, metadata.layouts.end());
  const SerializedLayout packed = SerializedLayout::pack(metadata).value();
  const Bytes bytes(packed.as_bytes().begin(), packed.as_bytes().end());
  constexpr size_t kGroupBytes = 2 + 4 + 7 * 8 + 4;
  const size_t groups = bytes.size() - kGroupBytes - 2 * 8 - 4;
  const auto begin = bytes.begin() + static_cast<long>(groups) + 4;
  ByteWriter split;
  split.bytes(std::span(bytes).first(groups));
  split.u32(2);
  for (uint16_t layer = 0; layer < 2; ++layer) {
    const std::span<const std::byte> group(begin, kGroupBytes);
    split.u16(layer);
    split.bytes(group.subspan(2, kGroupBytes - 6));
    split.u32(1);
    split.bytes(std::span(bytes).subspan(groups + 4 + kGroupBytes + layer * 8U, 8));
  }
  Bytes hostile = std::move(split).take();
  expect_refused(resealed_metadata(hostile), ErrorCode::kCorrupt, "one form");
}

}  // namespace
}  // namespace kvbm
