// SPDX-License-Identifier: Apache-2.0
#include "kvbm/layout/slot_format.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/hash.hpp"

namespace kvbm {
namespace {

SlotTag tag_of(size_t first) {
  SlotTag tag;
  for (size_t i = 0; i < tag.size(); ++i) tag[i] = static_cast<std::byte>(first + i);
  return tag;
}

SlotHeader some_header() {
  return {.header_bytes = 64,
          .payload_bytes = 0x0102'0304,
          .tag = tag_of(0x40),
          .payload_checksum = 0x1122'3344'5566'7788};
}

std::vector<std::byte> encoded(const SlotHeader& header) {
  std::vector<std::byte> bytes(header.header_bytes, std::byte{0xee});
  encode_slot_header(header, bytes);
  return bytes;
}

ErrorCode code_of(std::span<const std::byte> bytes) {
  const Result<SlotHeader> header = decode_slot_header(bytes);
  return header ? ErrorCode::kInternal : header.error().code();
}

TEST(SlotFormat, TheBytesOfAHeaderAreFixed) {
  const std::vector<std::byte> bytes = encoded(some_header());
  ASSERT_EQ(bytes.size(), 64U);
  const std::array<uint8_t, 16> start{'K', 'V', 'B', 'S', 1, 0, 64, 0, 4, 3, 2, 1, 0, 0, 0, 0};
  for (size_t i = 0; i < start.size(); ++i) {
    EXPECT_EQ(std::to_integer<uint8_t>(bytes[i]), start[i]) << i;
  }
  for (size_t i = 0; i < 32; ++i) EXPECT_EQ(std::to_integer<size_t>(bytes[16 + i]), 0x40 + i);
  // The last eight as another implementation of XXH3 (python-xxhash) gives them.
  const std::array<uint8_t, 16> end{0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,
                                    0xc1, 0xa3, 0x65, 0x84, 0x92, 0x99, 0x0b, 0xac};
  for (size_t i = 0; i < end.size(); ++i) {
    EXPECT_EQ(std::to_integer<uint8_t>(bytes[48 + i]), end[i]) << i;
  }
}

TEST(SlotFormat, AHeaderComesBackAsItWasWritten) {
  SlotHeader header = some_header();
  EXPECT_EQ(decode_slot_header(encoded(header)).value(), header);
  header.header_bytes = 4096;
  header.payload_bytes = std::numeric_limits<uint64_t>::max();
  const std::vector<std::byte> bytes = encoded(header);
  EXPECT_EQ(decode_slot_header(bytes).value(), header);
  EXPECT_TRUE(
      std::all_of(bytes.begin() + 64, bytes.end(), [](std::byte b) { return b == std::byte{0}; }));
}

TEST(SlotFormat, EveryFlippedBitIsNoticed) {
  const std::vector<std::byte> good = encoded(some_header());
  for (size_t bit = 0; bit < good.size() * 8; ++bit) {
    std::vector<std::byte> bad = good;
    bad[bit / 8] ^= std::byte{1} << (bit % 8);
    const bool in_version = bit / 8 == 4 || bit / 8 == 5;
    EXPECT_EQ(code_of(bad), in_version ? ErrorCode::kUnsupported : ErrorCode::kCorrupt) << bit;
  }
}

TEST(SlotFormat, WhatWasNeverWrittenIsNotFoundRatherThanCorrupt) {
  std::vector<std::byte> bytes(64);
  EXPECT_EQ(code_of(bytes), ErrorCode::kNotFound);
  bytes[63] = std::byte{1};
  EXPECT_EQ(code_of(bytes), ErrorCode::kCorrupt);
  EXPECT_EQ(code_of({}), ErrorCode::kCorrupt);
  EXPECT_EQ(code_of(std::span<const std::byte>(bytes).first(63)), ErrorCode::kCorrupt);
}

TEST(SlotFormat, AHeaderSizeThatCannotBeIsCorruptEvenWithAGoodChecksum) {
  for (const int low : {0, 32, 65}) {
    std::vector<std::byte> bytes = encoded(some_header());
    bytes[6] = static_cast<std::byte>(low);
    const uint64_t sum = checksum(std::span<const std::byte>(bytes).first(56));
    for (size_t i = 0; i < 8; ++i) bytes[56 + i] = static_cast<std::byte>(sum >> (8 * i));
    EXPECT_EQ(code_of(bytes), ErrorCode::kCorrupt) << low;
  }
}

TEST(SlotFormat, AHeaderIsCheckedAgainstWhatIsAskedFor) {
  const SlotHeader header = some_header();
  const SlotGeometry geometry{64, header.payload_bytes, 1U << 26};
  EXPECT_TRUE(check_slot_header(header, geometry, header.tag));
  SlotTag other = header.tag;
  other[31] ^= std::byte{1};
  EXPECT_EQ(check_slot_header(header, geometry, other).error().code(), ErrorCode::kCorrupt);
  EXPECT_FALSE(check_slot_header(header, {64, header.payload_bytes + 1, 1U << 26}, header.tag));
  EXPECT_FALSE(check_slot_header(header, {128, header.payload_bytes, 1U << 26}, header.tag));
}

TEST(SlotFormat, SlotsArePaddedToTheirAlignment) {
  EXPECT_EQ(slot_geometry(1).value(), (SlotGeometry{64, 1, 4096}));
  EXPECT_EQ(slot_geometry(4032).value(), (SlotGeometry{64, 4032, 4096}));
  EXPECT_EQ(slot_geometry(4033).value(), (SlotGeometry{64, 4033, 8192}));
  EXPECT_EQ(slot_geometry(4096, {.header_bytes = 4096}).value(), (SlotGeometry{4096, 4096, 8192}));
  EXPECT_EQ(slot_geometry(65, {.alignment = 64}).value(), (SlotGeometry{64, 65, 192}));
}

TEST(SlotFormat, OptionsOutsideTheirRangeAreRefused) {
  EXPECT_FALSE(slot_geometry(0));
  for (const uint64_t header_bytes : {0ULL, 32ULL, 100ULL, 65536ULL}) {
    EXPECT_FALSE(slot_geometry(1, {.header_bytes = header_bytes})) << header_bytes;
  }
  for (const uint64_t alignment : {0ULL, 32ULL, 4095ULL}) {
    EXPECT_FALSE(slot_geometry(1, {.alignment = alignment})) << alignment;
  }
  EXPECT_FALSE(slot_geometry(std::numeric_limits<uint64_t>::max()));
  EXPECT_FALSE(slot_geometry(uint64_t{1} << 63));
}

TEST(SlotFormat, EncodingIntoAnotherSizeIsABrokenContract) {
  std::vector<std::byte> bytes(128);
  EXPECT_THROW(encode_slot_header(some_header(), bytes), ContractViolation);
  SlotHeader header = some_header();
  header.header_bytes = 100;
  EXPECT_THROW(encode_slot_header(header, std::span(bytes).first(100)), ContractViolation);
}

}  // namespace
}  // namespace kvbm
