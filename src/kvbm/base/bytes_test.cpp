// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/bytes.hpp"

#include <initializer_list>
#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kvbm {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::byte> raw(std::initializer_list<int> values) {
  std::vector<std::byte> bytes;
  for (const int value : values) bytes.push_back(static_cast<std::byte>(value));
  return bytes;
}

TEST(ByteWriter, WritesLittleEndian) {
  ByteWriter writer;
  writer.u8(0x01);
  writer.u16(0x0203);
  writer.u32(0x04050607);
  writer.u64(0x08090A0B0C0D0E0F);
  EXPECT_EQ(std::move(writer).take(), raw({0x01, 0x03, 0x02, 0x07, 0x06, 0x05, 0x04, 0x0F, 0x0E,
                                           0x0D, 0x0C, 0x0B, 0x0A, 0x09, 0x08}));
}

TEST(ByteReader, ReadsWhatTheWriterWrote) {
  ByteWriter writer(64);
  writer.u8(255);
  writer.u16(65535);
  writer.u32(1U << 31U);
  writer.u64(std::numeric_limits<uint64_t>::max());
  writer.i64(-5);
  writer.f64(-0.75);
  writer.string("päge");
  writer.bytes(raw({9, 8}));
  writer.zeros(3);
  const std::vector<uint32_t> small = {1, 2, 3};
  const std::vector<uint64_t> big = {4, 1ULL << 40U};
  writer.u32_array(small);
  writer.u64_array(big);
  writer.u32_array({});

  ByteReader reader(writer.view());
  EXPECT_EQ(reader.u8(), 255);
  EXPECT_EQ(reader.u16(), 65535);
  EXPECT_EQ(reader.u32(), 1U << 31U);
  EXPECT_EQ(reader.u64(), std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(reader.i64(), -5);
  EXPECT_EQ(reader.f64(), -0.75);
  EXPECT_EQ(reader.string(), "päge");
  EXPECT_THAT(reader.bytes(2), ElementsAre(std::byte{9}, std::byte{8}));
  reader.skip(3);
  EXPECT_EQ(reader.u32_array(), small);
  EXPECT_EQ(reader.u64_array(), big);
  EXPECT_TRUE(reader.u32_array().empty());
  EXPECT_EQ(reader.offset(), writer.size());
  EXPECT_TRUE(reader.finish()) << reader.status().error();
}

TEST(ByteReader, EveryShortInputIsCorrupt) {
  ByteWriter writer;
  writer.u64(1);
  writer.string("text");
  writer.u32_array(std::vector<uint32_t>{1, 2});
  const std::vector<std::byte> whole = std::move(writer).take();
  for (size_t length = 0; length < whole.size(); ++length) {
    // A copy of its own, so that the sanitizer sees a read past the end.
    const std::vector<std::byte> cut(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(length));
    ByteReader reader(cut);
    static_cast<void>(reader.u64());
    static_cast<void>(reader.string());
    static_cast<void>(reader.u32_array());
    const Status status = reader.finish();
    ASSERT_FALSE(status) << length;
    EXPECT_EQ(status.error().code(), ErrorCode::kCorrupt);
  }
}

TEST(ByteReader, TheFirstFailureStays) {
  const auto input = raw({1, 2, 3});
  ByteReader reader(input);
  EXPECT_EQ(reader.u8(), 1);
  EXPECT_EQ(reader.u32(), 0U);
  EXPECT_FALSE(reader.ok());
  EXPECT_EQ(reader.u8(), 0) << "bytes are left, but the reader has failed";
  EXPECT_EQ(reader.offset(), 1U);
  reader.fail("a later reason");
  EXPECT_THAT(reader.finish().error().message(),
              AllOf(HasSubstr("at byte 1"), HasSubstr("4 bytes are wanted, 2 are left")));
}

TEST(ByteReader, BytesLeftOverAreAFailure) {
  const auto input = raw({1, 2});
  ByteReader reader(input);
  static_cast<void>(reader.u8());
  EXPECT_TRUE(reader.status());
  EXPECT_THAT(reader.finish().error().message(), HasSubstr("1 bytes are left over"));
}

TEST(ByteReader, AHostileCountAllocatesNothing) {
  const auto input = raw({0xFF, 0xFF, 0xFF, 0xFF, 1, 2, 3, 4, 5, 6, 7, 8});
  EXPECT_TRUE(ByteReader(input).u32_array().empty());
  EXPECT_TRUE(ByteReader(input).u64_array().empty());
  EXPECT_TRUE(ByteReader(input).string().empty());
  EXPECT_EQ(ByteReader(input).count(1), 0U);
  ByteReader reader(input);
  EXPECT_TRUE(reader.u64_array().empty());
  EXPECT_THAT(reader.status().error().message(), HasSubstr("4294967295 elements of at least 8"));
}

TEST(ByteReader, ACountThatJustFitsIsTaken) {
  const auto input = raw({2, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8});
  EXPECT_EQ(ByteReader(input).count(4), 2U);
  ByteReader reader(input);
  EXPECT_EQ(reader.count(5), 0U);
  EXPECT_FALSE(reader.ok());
  EXPECT_THROW(static_cast<void>(ByteReader(input).count(0)), ContractViolation);
}

TEST(ByteWriter, PatchesWhatWasWritten) {
  ByteWriter writer;
  writer.u32(0);
  writer.u64(0);
  writer.patch_u32(0, 12);
  writer.patch_u64(4, 99);
  ByteReader reader(writer.view());
  EXPECT_EQ(reader.u32(), 12U);
  EXPECT_EQ(reader.u64(), 99U);
  EXPECT_THROW(writer.patch_u32(9, 0), ContractViolation);
  EXPECT_THROW(writer.patch_u64(std::numeric_limits<size_t>::max(), 0), ContractViolation);
}

}  // namespace
}  // namespace kvbm
