// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/zmq/channel_message.hpp"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/bytes.hpp"
#include "kvbm/base/hash.hpp"
#include "kvbm/protocol/codec.hpp"

#include "tests/support/error_code.hpp"

namespace kvbm {
namespace {

using std::chrono::seconds;
using testing::code_of;
using ::testing::HasSubstr;
using Bytes = std::vector<std::byte>;

// Where things stand in a message: docs/formats/channel.md.
constexpr size_t kChecksum = 4;
constexpr size_t kVersion = 12;
constexpr size_t kProtocol = 14;
constexpr size_t kType = 16;
constexpr size_t kBody = 18;

std::vector<PlaceSpec> sample_places() {
  return {{.place = {TierId::kG2, GroupId(1)}, .num_blocks = 1000, .rank_block_bytes = 1 << 20},
          {.place = {TierId::kG1, GroupId(0)}, .owner = Owner::kEngine, .num_blocks = 7}};
}

CopyOp sample_op(uint64_t id) {
  return {.op = OpId(id),
          .src = {TierId::kG2, GroupId(1)},
          .dst = {TierId::kG3, GroupId(1)},
          .from = {BlockId(1), BlockId(2)},
          .to = {BlockId(3), BlockId(4)},
          .tags = {Tag{}, Tag{}},
          .after = {Gate::op_done(OpId(7))},
          .timeout = seconds(30),
          .priority = Priority::kOnboard};
}

OpResult sample_result() {
  return {.op = OpId(42),
          .rank = RankId(3),
          .outcome = Outcome::kFailed,
          .bytes = 4096,
          .failed = {1, 5}};
}

/// One of each type, in the order of the types.
std::vector<ChannelMessage> samples() {
  return {HelloMessage{.rank = RankId(3), .secret = "abc", .places = sample_places()},
          WelcomeMessage{.heartbeat_interval = seconds(1), .dead_after = seconds(10)},
          ProvideMessage{.request = 2, .places = sample_places()},
          ProvidedMessage{.request = 2},
          RefusalMessage{.request = 2, .code = ErrorCode::kExhausted, .text = "full"},
          OperationsMessage{.ops = {sample_op(8), sample_op(9)}, .cancels = {OpId(5), OpId(6)}},
          ResultsMessage{.results = {sample_result(), OpResult{}}},
          HeartbeatMessage{},
          GoodbyeMessage{},
          ShrunkMessage{.place = {TierId::kG2, GroupId(258)}, .num_blocks = 1000}};
}

std::string hex(std::span<const std::byte> bytes) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  for (const std::byte value : bytes) {
    text += kDigits[std::to_integer<size_t>(value >> 4)];
    text += kDigits[std::to_integer<size_t>(value & std::byte{15})];
  }
  return text;
}

/// Makes the checksum right again, so that what comes after it is looked at.
Bytes resealed(Bytes message) {
  ByteWriter out;
  out.bytes(message);
  out.patch_u64(kChecksum, checksum(out.view().subspan(kVersion)));
  return std::move(out).take();
}

Bytes with_byte(Bytes message, size_t offset, uint8_t value) {
  message.at(offset) = std::byte{value};
  return resealed(std::move(message));
}

void expect_refused(std::span<const std::byte> message, ErrorCode code, std::string_view reason) {
  const Result<ChannelMessage> result = decode_channel_message(message);
  ASSERT_FALSE(result.has_value()) << "expected: " << reason;
  EXPECT_EQ(result.error().code(), code) << result.error();
  EXPECT_THAT(result.error().message(), HasSubstr(reason));
}

TEST(ChannelMessage, EachComesBackAsItWas) {
  std::string names;
  for (const ChannelMessage& message : samples()) {
    const auto read = decode_channel_message(encode(message));
    ASSERT_TRUE(read) << name_of(message) << ": " << read.error();
    EXPECT_EQ(*read, message) << name_of(message);
    names.append(name_of(message)).append(" ");
  }
  EXPECT_EQ(names,
            "hello welcome provide provided refusal operations results heartbeat goodbye "
            "shrunk ");
}

TEST(ChannelMessage, EmptyOnesComeBackAsTheyWere) {
  for (const ChannelMessage& message :
       {ChannelMessage{HelloMessage{}}, ChannelMessage{WelcomeMessage{}},
        ChannelMessage{ProvideMessage{}}, ChannelMessage{RefusalMessage{}},
        ChannelMessage{OperationsMessage{}}, ChannelMessage{ResultsMessage{}},
        ChannelMessage{ShrunkMessage{}}}) {
    EXPECT_EQ(decode_channel_message(encode(message)), message) << name_of(message);
  }
}

TEST(ChannelMessage, ListsAreWrittenAsTheMessagesThatHoldThem) {
  const OperationsMessage operations = {.ops = {sample_op(8)}, .cancels = {OpId(5)}};
  EXPECT_EQ(encode_operations(operations.ops, operations.cancels), encode(operations));
  const ResultsMessage results = {.results = {sample_result()}};
  EXPECT_EQ(encode_results(results.results), encode(results));
}

// These bytes are what version 2 is. A change here is a new version: see docs/formats/channel.md.
TEST(ChannelMessage, TheBytesOfVersion2DoNotChange) {
  const auto nested = [](const auto& values) {
    const Bytes bytes = encode(std::span(values));
    ByteWriter length;
    length.count(bytes.size());
    return hex(length.view()) + hex(bytes);
  };
  // Everything but the checksum, which is checked apart: magic; versions, type; then the body.
  // What is nested is held by the test of the protocol.
  const auto all = samples();
  const std::string places = nested(sample_places());
  // clang-format off
  const std::string expected[] = {
      "02000100" "0100" "0300" "03000000616263" + places,
      "02000100" "0200" "00ca9a3b00000000" "00e40b5402000000",
      "02000100" "0300" "0200000000000000" + places,
      "02000100" "0400" "0200000000000000",
      "02000100" "0500" "0200000000000000" "02" "0400000066756c6c",
      "02000100" "0600" + nested(std::vector{sample_op(8), sample_op(9)}) +
          "02000000" "0500000000000000" "0600000000000000",
      "02000100" "0700" + nested(std::vector{sample_result(), OpResult{}}),
      "02000100" "0800",
      "02000100" "0900",
      "02000100" "0a00" "01" "0201" "e8030000",
  };
  // clang-format on
  ASSERT_EQ(std::size(expected), all.size());
  for (size_t i = 0; i < all.size(); ++i) {
    const Bytes message = encode(all[i]);
    EXPECT_EQ(hex(std::span(message).first(kChecksum)), "4b56425a") << name_of(all[i]);
    EXPECT_EQ(hex(std::span(message).subspan(kVersion)), expected[i]) << name_of(all[i]);
  }
  EXPECT_EQ(hex(encode(HeartbeatMessage{})), "4b56425ae8fb3f4cab738d14020001000800");
}

TEST(ChannelMessage, EveryTruncationIsRefused) {
  for (const ChannelMessage& message : samples()) {
    const Bytes bytes = encode(message);
    for (size_t size = 0; size < bytes.size(); ++size) {
      const Bytes cut(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size));
      EXPECT_EQ(code_of(decode_channel_message(cut)), ErrorCode::kCorrupt)
          << name_of(message) << " cut to " << size;
      if (size < kBody) continue;
      EXPECT_EQ(code_of(decode_channel_message(resealed(cut))), ErrorCode::kCorrupt)
          << name_of(message) << " cut to " << size << ", with a checksum that fits";
    }
    Bytes longer = bytes;
    longer.push_back(std::byte{0});
    EXPECT_EQ(code_of(decode_channel_message(resealed(longer))), ErrorCode::kCorrupt)
        << name_of(message) << " with a byte left over";
  }
}

TEST(ChannelMessage, EveryBitFlipIsRefused) {
  for (const ChannelMessage& message : samples()) {
    Bytes bytes = encode(message);
    for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
      bytes[bit / 8] ^= std::byte{1} << (bit % 8);
      EXPECT_EQ(code_of(decode_channel_message(bytes)), ErrorCode::kCorrupt)
          << name_of(message) << " bit " << bit;
      bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    }
  }
}

TEST(ChannelMessage, AnotherVersionIsUnsupportedAndNamed) {
  const Bytes heartbeat = encode(HeartbeatMessage{});
  expect_refused(with_byte(heartbeat, kVersion, 3), ErrorCode::kUnsupported,
                 "channel version 3 and protocol version 1");
  expect_refused(with_byte(heartbeat, kProtocol, 9), ErrorCode::kUnsupported,
                 "channel version 2 and protocol version 9");
  // Whatever its body is.
  Bytes longer = heartbeat;
  longer.push_back(std::byte{1});
  expect_refused(with_byte(longer, kVersion, 1), ErrorCode::kUnsupported, "this build reads");
}

TEST(ChannelMessage, ValuesThatAreNoneAreRefused) {
  expect_refused({}, ErrorCode::kCorrupt, "");
  Bytes other = encode(HeartbeatMessage{});
  other[3] = std::byte{'P'};
  expect_refused(other, ErrorCode::kCorrupt, "does not begin with KVBZ");
  expect_refused(with_byte(encode(HeartbeatMessage{}), kType, 0), ErrorCode::kCorrupt,
                 "no message type 0");
  expect_refused(with_byte(encode(HeartbeatMessage{}), kType, 11), ErrorCode::kCorrupt,
                 "no message type 11");
  expect_refused(with_byte(encode(ShrunkMessage{}), kBody, 4), ErrorCode::kCorrupt, "4 is no tier");
  expect_refused(with_byte(encode(RefusalMessage{}), kBody + 8, 12), ErrorCode::kCorrupt,
                 "12 is no code of an error");
  for (const size_t duration : {kBody, kBody + 8}) {
    expect_refused(with_byte(encode(WelcomeMessage{}), duration, 0), ErrorCode::kCorrupt,
                   "no time between heartbeats");
    expect_refused(with_byte(encode(WelcomeMessage{}), duration + 7, 0x80), ErrorCode::kCorrupt,
                   "no time between heartbeats");
  }
  // A list of places where one of operations must be.
  Bytes swapped = encode(ProvideMessage{});
  Bytes operations = encode(OperationsMessage{});
  std::copy(swapped.begin() + kBody + 8, swapped.end(), operations.begin() + kBody);
  expect_refused(resealed(operations), ErrorCode::kCorrupt, "");
}

TEST(ChannelMessage, TextsHaveALimit) {
  const std::string longest(kMaxChannelTextBytes, 'x');
  const HelloMessage hello = {.rank = RankId(0), .secret = longest + "y", .places = {}};
  const auto read = decode_channel_message(encode(hello));
  ASSERT_TRUE(read);
  EXPECT_EQ(std::get<HelloMessage>(*read).secret, longest);

  Bytes refusal = encode(RefusalMessage{});
  refusal.resize(kBody + 9);
  ByteWriter out;
  out.bytes(refusal);
  out.string(longest + "y");
  expect_refused(resealed(std::move(out).take()), ErrorCode::kCorrupt, "a text of 4097 bytes");
}

TEST(ChannelMessage, AListThatTheMessageCannotHoldAsksForNoMemory) {
  ByteWriter out;
  out.bytes(encode(OperationsMessage{}));
  out.patch_u32(out.size() - 4, 0xFFFFFFFF);  // the cancels
  expect_refused(resealed(std::move(out).take()), ErrorCode::kCorrupt, "");
}

}  // namespace
}  // namespace kvbm
