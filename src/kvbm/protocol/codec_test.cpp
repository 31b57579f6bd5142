// SPDX-License-Identifier: Apache-2.0
#include "kvbm/protocol/codec.hpp"

#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/bytes.hpp"
#include "kvbm/base/hash.hpp"

#include "tests/support/allocation_meter.hpp"

namespace kvbm {
namespace {

using ::testing::HasSubstr;
using Bytes = std::vector<std::byte>;

Tag tag_of(uint8_t fill) {
  Tag tag;
  tag.bytes.fill(std::byte{fill});
  return tag;
}

CopyOp sample_op() {
  return {.op = OpId(0x0102030405060708),
          .src = {TierId::kG2, GroupId(1)},
          .dst = {TierId::kG3, GroupId(1)},
          .from = {BlockId(1), BlockId(2)},
          .to = {BlockId(0xA0B0C0D0), BlockId(4)},
          .tags = {tag_of(0x11), tag_of(0x22)},
          .after = {Gate::layer_end(StepId(9), LayerId(5)), Gate::op_done(OpId(7))},
          .timeout = std::chrono::milliseconds(30),
          .priority = Priority::kOnboard};
}

StepPlan sample_plan() {
  CopyOp load = sample_op();
  load.tags.clear();
  CopyOp store = sample_op();
  store.after.clear();
  return {.step = StepId(77),
          .loads = {load},
          .stores = {store, CopyOp{}},
          .fences = {OpId(1), OpId(2)},
          .cancels = {OpId(3)}};
}

OpResult sample_result() {
  return {.op = OpId(42),
          .rank = RankId(3),
          .outcome = Outcome::kFailed,
          .bytes = 4096,
          .failed = {1, 5}};
}

PlaceSpec sample_spec() {
  return {.place = {TierId::kG2, GroupId(2)},
          .owner = Owner::kKvbm,
          .spread = Spread::kReplicated,
          .num_blocks = 1000,
          .rank_block_bytes = 1 << 20};
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

// Makes the length and the checksum of a message right again, so that the body is looked at.
Bytes resealed(Bytes message) {
  ByteWriter out;
  out.bytes(message);
  out.patch_u32(16, static_cast<uint32_t>(message.size() - 20));
  out.patch_u64(4, checksum(out.view().subspan(12)));
  return std::move(out).take();
}

Bytes with_u32(const Bytes& message, size_t offset, uint32_t value) {
  ByteWriter out;
  out.bytes(message);
  out.patch_u32(offset, value);
  return resealed(std::move(out).take());
}

Bytes with_byte(Bytes message, size_t offset, uint8_t value) {
  message.at(offset) = std::byte{value};
  return resealed(std::move(message));
}

template <class T>
void expect_refused(std::span<const std::byte> message, ErrorCode code, std::string_view reason) {
  const Result<T> result = decode<T>(message);
  ASSERT_FALSE(result.has_value()) << "expected: " << reason;
  EXPECT_EQ(result.error().code(), code) << result.error();
  EXPECT_THAT(result.error().message(), HasSubstr(reason));
}

// Where things stand in the message of a CopyOp: docs/formats/protocol.md.
constexpr size_t kSrcTier = 28;
constexpr size_t kDstTier = 31;
constexpr size_t kPriority = 34;
constexpr size_t kTimeout = 35;
constexpr size_t kHasTags = 43;
constexpr size_t kNumBlocks = 44;
constexpr size_t kLists = 48;

TEST(ProtocolCodec, EveryMessageComesBackAsItWas) {
  EXPECT_EQ(decode<CopyOp>(encode(sample_op())), sample_op());
  EXPECT_EQ(decode<StepPlan>(encode(sample_plan())), sample_plan());
  EXPECT_EQ(decode<OpResult>(encode(sample_result())), sample_result());
  EXPECT_EQ(decode<PlaceSpec>(encode(sample_spec())), sample_spec());
}

TEST(ProtocolCodec, EmptyMessagesComeBackAsTheyWere) {
  EXPECT_EQ(decode<CopyOp>(encode(CopyOp{})), CopyOp{});
  EXPECT_EQ(decode<StepPlan>(encode(StepPlan{})), StepPlan{});
  EXPECT_EQ(decode<OpResult>(encode(OpResult{})), OpResult{});
  EXPECT_EQ(decode<PlaceSpec>(encode(PlaceSpec{})), PlaceSpec{});
  EXPECT_EQ(decode<std::vector<CopyOp>>(encode(std::span<const CopyOp>{})), std::vector<CopyOp>{});
}

TEST(ProtocolCodec, BatchesKeepTheOrderOfTheirParts) {
  const std::vector<CopyOp> ops = {sample_op(), CopyOp{}, sample_op()};
  EXPECT_EQ(decode<std::vector<CopyOp>>(encode(ops)), ops);
  const std::vector<StepPlan> plans = {StepPlan{}, sample_plan()};
  EXPECT_EQ(decode<std::vector<StepPlan>>(encode(plans)), plans);
  const std::vector<OpResult> results = {sample_result(), OpResult{}};
  EXPECT_EQ(decode<std::vector<OpResult>>(encode(results)), results);
  const std::vector<PlaceSpec> specs = {PlaceSpec{}, sample_spec()};
  EXPECT_EQ(decode<std::vector<PlaceSpec>>(encode(specs)), specs);
}

// These bytes are what version 1 is. A change here is a new version: see docs/formats/protocol.md.
TEST(ProtocolCodec, TheBytesOfVersion1DoNotChange) {
  // Magic, checksum, version, type, length; then the body.
  // clang-format off
  EXPECT_EQ(hex(encode(sample_op())),
            "4b564250" "133926614987103e" "0100" "0100" "86000000"
            "0807060504030201" "01" "0100" "02" "0100" "00" "80c3c90100000000" "01" "02000000"
            "01000000" "02000000" "d0c0b0a0" "04000000"
            "1111111111111111111111111111111111111111111111111111111111111111"
            "2222222222222222222222222222222222222222222222222222222222222222"
            "02000000" "01" "0900000000000000" "0500" "02" "0700000000000000" "0000");
  StepPlan plan;
  plan.step = StepId(2);
  plan.fences = {OpId(3)};
  EXPECT_EQ(hex(encode(plan)),
            "4b564250" "f90ffbeb7c4adb55" "0100" "0200" "20000000"
            "0200000000000000" "00000000" "00000000" "01000000" "0300000000000000" "00000000");
  EXPECT_EQ(hex(encode(sample_result())),
            "4b564250" "c327da8065f19850" "0100" "0300" "1f000000"
            "2a00000000000000" "0300" "01" "0010000000000000" "02000000" "01000000" "05000000");
  EXPECT_EQ(hex(encode(sample_spec())),
            "4b564250" "7c6685f71614e821" "0100" "0400" "11000000"
            "01" "0200" "00" "01" "e8030000" "0000100000000000");
  const std::vector<PlaceSpec> batch = {sample_spec()};
  EXPECT_EQ(hex(encode(batch)),
            "4b564250" "2455e617df77f604" "0100" "0401" "15000000"
            "01000000" "01" "0200" "00" "01" "e8030000" "0000100000000000");
  // clang-format on
}

TEST(ProtocolCodec, TheTypeOfAMessageIsKnownBeforeItIsDecoded) {
  EXPECT_EQ(message_type(encode(sample_op())), MessageType::kCopyOp);
  EXPECT_EQ(message_type(encode(sample_plan())), MessageType::kStepPlan);
  EXPECT_EQ(message_type(encode(sample_result())), MessageType::kOpResult);
  EXPECT_EQ(message_type(encode(sample_spec())), MessageType::kPlaceSpec);
  EXPECT_EQ(message_type(encode(std::vector<CopyOp>{})), MessageType::kCopyOpBatch);
  EXPECT_EQ(message_type(encode(std::vector<StepPlan>{})), MessageType::kStepPlanBatch);
  EXPECT_EQ(message_type(encode(std::vector<OpResult>{})), MessageType::kOpResultBatch);
  EXPECT_EQ(message_type(encode(std::vector<PlaceSpec>{})), MessageType::kPlaceSpecBatch);
  EXPECT_EQ(message_type({}).error().code(), ErrorCode::kCorrupt);
}

TEST(ProtocolCodec, AMessageOfAnotherTypeIsRefusedByItsName) {
  expect_refused<CopyOp>(encode(sample_result()), ErrorCode::kCorrupt,
                         "the message holds OpResult, CopyOp is expected");
  expect_refused<std::vector<CopyOp>>(encode(sample_op()), ErrorCode::kCorrupt,
                                      "the message holds CopyOp, CopyOp batch is expected");
}

TEST(ProtocolCodec, ANewerVersionIsUnsupportedNotCorrupt) {
  const Bytes newer = with_byte(encode(sample_op()), 12, 2);
  expect_refused<CopyOp>(newer, ErrorCode::kUnsupported,
                         "the message is of protocol version 2, this build reads up to 1");
  EXPECT_EQ(message_type(newer).error().code(), ErrorCode::kUnsupported);
  // Without the checksum that goes with it, the version is only a flipped bit.
  Bytes flipped = encode(sample_op());
  flipped[12] = std::byte{2};
  expect_refused<CopyOp>(flipped, ErrorCode::kCorrupt, "checksum");
}

TEST(ProtocolCodec, VersionZeroAndUnknownTypesAreCorrupt) {
  expect_refused<CopyOp>(with_byte(encode(sample_op()), 12, 0), ErrorCode::kCorrupt,
                         "there is no protocol version 0");
  expect_refused<CopyOp>(with_byte(encode(sample_op()), 14, 9), ErrorCode::kCorrupt,
                         "protocol version 1 has no message type 9");
}

TEST(ProtocolCodec, WhatDoesNotBeginWithTheMagicIsNoMessage) {
  expect_refused<CopyOp>(with_byte(encode(sample_op()), 0, 'X'), ErrorCode::kCorrupt,
                         "does not begin with KVBP");
}

TEST(ProtocolCodec, EveryTruncationIsRefused) {
  const Bytes message = encode(sample_plan());
  for (size_t size = 0; size < message.size(); ++size) {
    const std::span<const std::byte> cut = std::span(message).first(size);
    expect_refused<StepPlan>(cut, ErrorCode::kCorrupt, size < 20 ? "are no message" : "announces");
    if (size < 20) continue;
    // Also when somebody made length and checksum fit: the body itself is too short.
    expect_refused<StepPlan>(resealed(Bytes(cut.begin(), cut.end())), ErrorCode::kCorrupt,
                             "StepPlan: at byte");
  }
}

TEST(ProtocolCodec, BytesLeftOverAreRefused) {
  Bytes message = encode(sample_result());
  message.push_back(std::byte{0});
  expect_refused<OpResult>(message, ErrorCode::kCorrupt, "announces a body of 31 bytes and has 32");
  expect_refused<OpResult>(resealed(message), ErrorCode::kCorrupt, "1 bytes are left over");
}

TEST(ProtocolCodec, EveryFlippedBitIsNoticed) {
  const Bytes message = encode(sample_plan());
  for (size_t at = 0; at < message.size(); ++at) {
    for (unsigned bit = 0; bit < 8; ++bit) {
      Bytes flipped = message;
      flipped[at] ^= std::byte{1} << bit;
      const Result<StepPlan> result = decode<StepPlan>(flipped);
      ASSERT_FALSE(result.has_value()) << "byte " << at << ", bit " << bit;
      EXPECT_EQ(result.error().code(), ErrorCode::kCorrupt);
    }
  }
}

TEST(ProtocolCodec, UnknownEnumeratorsAreRefusedByName) {
  const Bytes op = encode(sample_op());
  expect_refused<CopyOp>(with_byte(op, kSrcTier, 4), ErrorCode::kCorrupt, "4 is no tier");
  expect_refused<CopyOp>(with_byte(op, kDstTier, 255), ErrorCode::kCorrupt, "255 is no tier");
  expect_refused<CopyOp>(with_byte(op, kPriority, 2), ErrorCode::kCorrupt, "2 is no priority");
  const size_t first_gate = op.size() - 22;
  expect_refused<CopyOp>(with_byte(op, first_gate, 3), ErrorCode::kCorrupt, "3 is no kind of gate");
  expect_refused<OpResult>(with_byte(encode(sample_result()), 30, 3), ErrorCode::kCorrupt,
                           "3 is no outcome");
  const Bytes spec = encode(sample_spec());
  expect_refused<PlaceSpec>(with_byte(spec, 23, 2), ErrorCode::kCorrupt, "2 is no owner");
  expect_refused<PlaceSpec>(with_byte(spec, 24, 2), ErrorCode::kCorrupt, "2 is no spread");
}

TEST(ProtocolCodec, EveryNamedEnumeratorComesThrough) {
  for (const TierId tier : {TierId::kG1, TierId::kG2, TierId::kG3, TierId::kG4}) {
    for (const Owner owner : {Owner::kKvbm, Owner::kEngine}) {
      for (const Spread spread : {Spread::kSharded, Spread::kReplicated}) {
        const PlaceSpec spec{.place = {tier, GroupId(0)}, .owner = owner, .spread = spread};
        EXPECT_EQ(decode<PlaceSpec>(encode(spec)), spec);
      }
    }
  }
  for (const Outcome outcome : {Outcome::kSucceeded, Outcome::kFailed, Outcome::kCancelled}) {
    const OpResult result{.op = OpId(1), .rank = RankId(0), .outcome = outcome, .failed = {}};
    EXPECT_EQ(decode<OpResult>(encode(result)), result);
  }
  for (const Priority priority : {Priority::kOnboard, Priority::kOffload}) {
    CopyOp op;
    op.priority = priority;
    op.after = {Gate::step_end(StepId(1)), Gate::layer_end(StepId(1), LayerId(2)),
                Gate::op_done(OpId(3))};
    EXPECT_EQ(decode<CopyOp>(encode(op)), op);
  }
}

TEST(ProtocolCodec, ABadFlagForTagsOrANegativeTimeoutIsRefused) {
  const Bytes op = encode(sample_op());
  expect_refused<CopyOp>(with_byte(op, kHasTags, 2), ErrorCode::kCorrupt, "whether there are tags");
  expect_refused<CopyOp>(with_byte(op, kTimeout + 7, 0x80), ErrorCode::kCorrupt,
                         "negative timeout");
  expect_refused<CopyOp>(with_byte(encode(CopyOp{}), kHasTags, 1), ErrorCode::kCorrupt,
                         "tags without blocks");
}

TEST(ProtocolCodec, FailedBlocksOfAnOperationThatDidNotFailAreRefused) {
  expect_refused<OpResult>(with_byte(encode(sample_result()), 30, 0), ErrorCode::kCorrupt,
                           "did not fail");
}

TEST(ProtocolCodec, TagsThatAreMissingOrTooManyAreRefused) {
  // The flag says that there are none: the tags are taken for gates.
  expect_refused<CopyOp>(with_byte(encode(sample_op()), kHasTags, 0), ErrorCode::kCorrupt,
                         "CopyOp: at byte");
  // The flag says that there are some: they would have to lie where the message ends.
  CopyOp op = sample_op();
  op.tags.clear();
  op.after.clear();
  expect_refused<CopyOp>(with_byte(encode(op), kHasTags, 1), ErrorCode::kCorrupt,
                         "2 elements of at least 40 bytes are announced");
}

TEST(ProtocolCodec, HostileCountsAllocateNoMoreThanTheMessageJustifies) {
  const Bytes op = encode(sample_op());
  const Bytes plan = encode(sample_plan());
  std::vector<Bytes> messages;
  for (const uint32_t count : {0x7FFF'FFFFU, 0xFFFF'FFFFU, 0x1000'0000U, 1000U}) {
    messages.push_back(with_u32(op, kNumBlocks, count));
    messages.push_back(with_u32(op, op.size() - 26, count));  // gates
    for (size_t at = 28; at + 4 <= plan.size(); ++at) messages.push_back(with_u32(plan, at, count));
    messages.push_back(with_u32(encode(sample_result()), 39, count));
    messages.push_back(with_u32(encode(std::vector<CopyOp>(3)), 20, count));
    messages.push_back(with_u32(encode(std::vector<StepPlan>(3)), 20, count));
    messages.push_back(with_u32(encode(std::vector<OpResult>(3)), 20, count));
    messages.push_back(with_u32(encode(std::vector<PlaceSpec>(3)), 20, count));
  }
  for (const Bytes& message : messages) {
    const testing::AllocationMeter meter;
    (void)decode<CopyOp>(message);
    (void)decode<StepPlan>(message);
    (void)decode<OpResult>(message);
    (void)decode<std::vector<CopyOp>>(message);
    (void)decode<std::vector<StepPlan>>(message);
    (void)decode<std::vector<OpResult>>(message);
    (void)decode<std::vector<PlaceSpec>>(message);
    // A structure takes at most five times its encoded size; the rest is for the text of the
    // reason.
    EXPECT_LE(meter.largest_bytes(), 5 * message.size() + 256);
  }
  expect_refused<CopyOp>(with_u32(op, kNumBlocks, 0xFFFF'FFFF), ErrorCode::kCorrupt,
                         "4294967295 elements");
}

TEST(ProtocolCodec, OneAllocationHoldsAWholeMessage) {
  CopyOp op = sample_op();
  op.from.assign(1000, BlockId(1));
  op.to.assign(1000, BlockId(2));
  op.tags.assign(1000, tag_of(3));
  const testing::AllocationMeter meter;
  const Bytes message = encode(op);
  EXPECT_EQ(message.size(), kLists + 1000 * 40 + 4 + 2 * 11);
  EXPECT_EQ(meter.count(), 1);
  EXPECT_EQ(meter.largest_bytes(), message.size());
}

TEST(ProtocolCodec, EncodeRefusesWhatDecodeWouldNotTake) {
  CopyOp op = sample_op();
  op.to.pop_back();
  EXPECT_THROW((void)encode(op), ContractViolation);
  op = sample_op();
  op.tags.pop_back();
  EXPECT_THROW((void)encode(op), ContractViolation);
  op = sample_op();
  op.timeout = std::chrono::nanoseconds(-1);
  EXPECT_THROW((void)encode(op), ContractViolation);
  op = sample_op();
  op.src.tier = static_cast<TierId>(4);
  EXPECT_THROW((void)encode(op), ContractViolation);
  EXPECT_THROW((void)encode(std::vector<CopyOp>{sample_op(), op}), ContractViolation);
  OpResult result = sample_result();
  result.outcome = Outcome::kSucceeded;
  EXPECT_THROW((void)encode(result), ContractViolation);
}

}  // namespace
}  // namespace kvbm
