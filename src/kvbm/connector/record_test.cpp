// SPDX-License-Identifier: Apache-2.0
#include "kvbm/connector/record.hpp"

#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/error_code.hpp"

namespace kvbm {
namespace {

using std::chrono::milliseconds;
using testing::code_of;
using ::testing::HasSubstr;

RecordHeader some_header() {
  RecordHeader header;
  header.run = 77;
  header.started = WallTime(milliseconds(5));
  header.file = 3;
  header.first_call = 100;
  header.counts[static_cast<size_t>(RecordCounter::kEvictedG3)] = 12;
  header.connector = {.groups = {{.block_tokens = 32},
                                 {.block_tokens = 16, .retention = Retention::last_window(3)}},
                      .ns = NamespaceId(0x123456789abcdef0),
                      .load_mode = LoadMode::kBetweenSteps,
                      .min_priority = 30,
                      .breaker = {.max_failures = 2, .pause = milliseconds(9)}};
  header.tiers = {.groups = split_groups(header.connector.groups)->specs(),
                  .places = {{.place = {TierId::kG1, GroupId(0)},
                              .owner = Owner::kEngine,
                              .spread = Spread::kReplicated,
                              .num_blocks = 10,
                              .rank_block_bytes = 1 << 20}},
                  .num_ranks = 2,
                  .policy = PolicyKind::kLru,
                  .timeout = milliseconds(30),
                  .max_open_store_blocks = 5,
                  .disk_filter = true,
                  .worker = WorkerId(9),
                  .engine_ids = EngineIds::kOfOnePool};
  return header;
}

std::vector<RecordedCall> every_call() {
  const ReceivedInbox inbox{.receive = 2,
                            .inbox = {.results = {{.op = OpId(5),
                                                   .rank = RankId(1),
                                                   .outcome = Outcome::kFailed,
                                                   .bytes = 512,
                                                   .failed = {1, 3}}},
                                      .lost = {RankId(7)},
                                      .shrunk = {{RankId(1), {TierId::kG2, GroupId(3)}, 12}}}};
  const Identity identity =
      Identity::from_hashes(SequenceHash(1), BlockHash(2), SequenceHash(3), 4);
  const std::vector<std::vector<BlockId>> blocks = {{BlockId(1), BlockId(2)}, {}};
  const std::vector<CallOfHalf> kinds = {
      ExtendCall{"a", 3, {identity, identity}, 20},
      ExtendCall{"a", 0, {}, std::nullopt},
      MatchCall{"b", 16, 40, {.num_tokens = 16, .between_steps = true}},
      AllocatedCall{"c", blocks, 16, ErrorCode::kInternal},
      AllocatedCall{"", {}, 0, std::nullopt},
      BuildStepCall{{{"d", blocks, true, 16, 4}, {"e", {}, false, 0, 0}}, {std::byte{7}}},
      FinishedCall{"f", true},
      PollCall{},
      WaitIdleCall{milliseconds(4), ErrorCode::kTimeout},
      ResetCall{},
  };
  std::vector<RecordedCall> calls;
  for (const CallOfHalf& kind : kinds) {
    RecordedCall call;
    call.number = 100 + 2 * calls.size();
    call.time = milliseconds(calls.size());
    call.threw = calls.size() == 3;
    if (calls.size() > 1) call.inputs = {inbox, EndedWait{true, milliseconds(8)}};
    call.sent = calls.size();
    call.call = kind;
    call.counts = {{RecordCounter::kLoadsTimedOut, calls.size()}};
    calls.push_back(std::move(call));
  }
  return calls;
}

std::vector<std::byte> bytes_of_file(const RecordHeader& header,
                                     const std::vector<RecordedCall>& calls) {
  std::vector<std::byte> bytes = encode(header);
  for (const RecordedCall& call : calls) {
    const auto more = encode(call);
    bytes.insert(bytes.end(), more.begin(), more.end());
  }
  return bytes;
}

TEST(Record, ReadsBackToItself) {
  const RecordHeader header = some_header();
  const auto file = decode_record_file(bytes_of_file(header, every_call()));
  ASSERT_TRUE(file) << file.error();
  EXPECT_EQ(file->calls, every_call());
  EXPECT_EQ(file->cut_off_bytes, 0U);
  EXPECT_EQ(file->header.run, header.run);
  EXPECT_EQ(file->header.started, header.started);
  EXPECT_EQ(file->header.file, header.file);
  EXPECT_EQ(file->header.first_call, header.first_call);
  EXPECT_EQ(file->header.counts, header.counts);
  EXPECT_EQ(file->header.connector.groups, header.connector.groups);
  EXPECT_EQ(file->header.connector.ns, header.connector.ns);
  EXPECT_EQ(file->header.connector.load_mode, LoadMode::kBetweenSteps);
  EXPECT_EQ(file->header.connector.min_priority, 30U);
  EXPECT_EQ(file->header.connector.breaker.max_failures, 2U);
  EXPECT_EQ(file->header.connector.breaker.pause, milliseconds(9));
  EXPECT_EQ(file->header.tiers.groups, header.tiers.groups);
  EXPECT_EQ(file->header.tiers.engine_ids, EngineIds::kOfOnePool);
  EXPECT_EQ(file->header.tiers.places, header.tiers.places);
  EXPECT_EQ(file->header.tiers.num_ranks, 2U);
  EXPECT_EQ(file->header.tiers.policy, PolicyKind::kLru);
  EXPECT_EQ(file->header.tiers.timeout, milliseconds(30));
  EXPECT_EQ(file->header.tiers.max_open_store_blocks, 5U);
  EXPECT_TRUE(file->header.tiers.disk_filter);
  EXPECT_EQ(file->header.tiers.worker, WorkerId(9));
}

TEST(Record, CutOffAnywhereItIsReadUpToTheLastWholeCall) {
  const std::vector<RecordedCall> calls = every_call();
  const std::vector<std::byte> bytes = bytes_of_file(some_header(), calls);
  std::vector<size_t> ends = {encode(some_header()).size()};
  for (const RecordedCall& call : calls) ends.push_back(ends.back() + encode(call).size());
  size_t num_whole = 0;
  for (size_t size = 0; size <= bytes.size(); ++size) {
    const auto file = decode_record_file(std::span(bytes).first(size));
    if (size < ends.front()) {
      EXPECT_EQ(code_of(file), ErrorCode::kCorrupt) << size;
      continue;
    }
    while (num_whole < calls.size() && size >= ends[num_whole + 1]) ++num_whole;
    ASSERT_TRUE(file) << size;
    EXPECT_EQ(file->calls.size(), num_whole) << size;
    EXPECT_EQ(file->cut_off_bytes, size - ends[num_whole]) << size;
  }
}

TEST(Record, AnAlteredByteEndsItOrIsRefused) {
  const std::vector<RecordedCall> calls = every_call();
  const std::vector<std::byte> bytes = bytes_of_file(some_header(), calls);
  for (size_t i = 0; i < bytes.size(); ++i) {
    std::vector<std::byte> altered = bytes;
    altered[i] ^= std::byte{0x10};
    const auto file = decode_record_file(altered);
    if (!file) continue;
    EXPECT_GT(file->cut_off_bytes, 0U) << i;
    EXPECT_LT(file->calls.size(), calls.size()) << i;
  }
}

TEST(Record, GroupsThatNoConnectorTakesAreCorrupt) {
  RecordHeader header = some_header();
  header.connector.groups[0].block_tokens = 24;  // the other one has blocks of 16
  const auto file = decode_record_file(encode(header));
  EXPECT_EQ(code_of(file), ErrorCode::kCorrupt);
  EXPECT_THAT(file.error().message(), HasSubstr("blocks of 16 and of 24 tokens"));
}

TEST(Record, AnotherVersionIsNamed) {
  std::vector<std::byte> bytes = bytes_of_file(some_header(), {});
  bytes[4] = std::byte{9};
  const auto file = decode_record_file(bytes);
  EXPECT_EQ(code_of(file), ErrorCode::kUnsupported);
  EXPECT_THAT(file.error().message(), HasSubstr("version 9"));
}

TEST(Record, CallsAreInTheirOrder) {
  std::vector<RecordedCall> calls = every_call();
  std::swap(calls[0], calls[1]);
  EXPECT_EQ(code_of(decode_record_file(bytes_of_file(some_header(), calls))), ErrorCode::kCorrupt);
  calls.resize(1);
  calls[0].number = 99;  // before the file's first
  EXPECT_EQ(code_of(decode_record_file(bytes_of_file(some_header(), calls))), ErrorCode::kCorrupt);
}

TEST(Record, NamesAreSafeToPrint) {
  EXPECT_EQ(describe(MatchCall{"a\x1b[31m\n", 0, 0, {}}), "match of request a?[31m?");
}

}  // namespace
}  // namespace kvbm
