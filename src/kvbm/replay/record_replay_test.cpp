// SPDX-License-Identifier: Apache-2.0
#include "kvbm/replay/record_replay.hpp"

#include <atomic>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "kvbm/connector/connector_step.hpp"

#include "tests/support/error_code.hpp"
#include "tests/support/temporary_folder.hpp"

namespace kvbm {
namespace {

using std::chrono::milliseconds;
using testing::code_of;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::TemporaryFolder;

constexpr uint64_t kBlockBytes = 512;

/// Records by hand what a leader does with two requests of the same two blocks: what the first one
/// stores in its step, the second one is offered.
class RecordReplayTest : public ::testing::Test {
 protected:
  RecordReplayTest() {
    header_.run = 1;
    header_.connector.groups = {{.block_tokens = 4}};
    header_.tiers.groups = {{GroupId(0)}};
    header_.tiers.places = {{.place = {TierId::kG1, GroupId(0)},
                             .owner = Owner::kEngine,
                             .num_blocks = 16,
                             .rank_block_bytes = kBlockBytes},
                            {.place = {TierId::kG2, GroupId(0)},
                             .owner = Owner::kKvbm,
                             .num_blocks = 8,
                             .rank_block_bytes = kBlockBytes}};
    const Identity first = Identity::from_hashes(SequenceHash(1), BlockHash(1), {}, 0);
    const Identity second = Identity::from_hashes(SequenceHash(2), BlockHash(2), {}, 1);
    const std::vector<std::vector<BlockId>> blocks = {{BlockId(0), BlockId(1)}};
    ConnectorStep step;
    step.plan.step = StepId(1);
    step.plan.stores = {{.op = OpId(1),
                         .src = {TierId::kG1, GroupId(0)},
                         .dst = {TierId::kG2, GroupId(0)},
                         .from = blocks[0],
                         .to = {BlockId(0), BlockId(1)},
                         .tags = {},
                         .after = {Gate::step_end(StepId(1))}}};
    add(ExtendCall{"a", 0, {first, second}, std::nullopt});
    add(MatchCall{"a", 0, 8, {}});
    add(AllocatedCall{"a", blocks, 0, std::nullopt});
    add(BuildStepCall{{{"a", blocks, true, 0, 8}}, encode(step)});
    add(FinishedCall{"a", false});
    add(ExtendCall{"b", 0, {first, second}, std::nullopt});
    add(MatchCall{"b", 0, 9, {.num_tokens = 8, .between_steps = false}});
    calls_.back().inputs = {ReceivedInbox{
        0, {.results = {{.op = OpId(1), .bytes = 2 * kBlockBytes, .failed = {}}}, .lost = {}}}};
    calls_.back().counts = {{RecordCounter::kG1ToG2, 2}};
  }

  void add(CallOfHalf call) {
    RecordedCall made;
    made.number = calls_.size() + 1;
    made.time = milliseconds(calls_.size());
    made.call = std::move(call);
    calls_.push_back(std::move(made));
  }

  /// Says before that call that there is one block of host memory left.
  void shrink_before(size_t call) {
    RecordedCall poll;
    poll.time = calls_[call].time;
    poll.inputs = {ReceivedInbox{
        0, {.results = {}, .lost = {}, .shrunk = {{RankId(0), {TierId::kG2, GroupId(0)}, 1}}}}};
    poll.call = PollCall{};
    calls_.insert(calls_.begin() + static_cast<ptrdiff_t>(call), std::move(poll));
    for (size_t i = 0; i < calls_.size(); ++i) calls_[i].number = i + 1;
  }
  /// As if as many calls before that one had been dropped.
  void drop_before(size_t call, uint64_t num_calls) {
    for (size_t i = call; i < calls_.size(); ++i) calls_[i].number += num_calls;
  }

  /// A file with the calls from `first` up to `end`, counted from 0.
  void write(const std::string& name, size_t first = 0, size_t end = SIZE_MAX) {
    RecordHeader header = header_;
    header.file = first;
    header.first_call = first + 1;
    std::vector<std::byte> bytes = encode(header);
    for (size_t i = first; i < std::min(end, calls_.size()); ++i) {
      const auto more = encode(calls_[i]);
      bytes.insert(bytes.end(), more.begin(), more.end());
    }
    folder_.write(name, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  }
  RecordReport replay(const std::string& name = "a.kvbr") {
    write(name);
    auto report = replay_record(folder_.path() / name, log_);
    EXPECT_TRUE(report);
    return report ? *std::move(report) : RecordReport();
  }

  TemporaryFolder folder_;
  NullLogSink log_;
  RecordHeader header_;
  std::vector<RecordedCall> calls_;
};

TEST_F(RecordReplayTest, EqualOutcomesAreCounted) {
  const RecordReport report = replay();
  EXPECT_EQ(report.difference, "");
  EXPECT_EQ(report.calls, 7U);
  EXPECT_EQ(report.compared_calls, 7U);
  EXPECT_EQ(report.recorded, report.replayed);
  EXPECT_EQ(report.replayed.requests, 2U);
  EXPECT_EQ(report.replayed.lookups, 2U);
  EXPECT_EQ(report.replayed.lookups_with_offer, 1U);
  EXPECT_EQ(report.replayed.offered_tokens, 8U);
  EXPECT_EQ(report.replayed.steps, 1U);
  EXPECT_EQ(report.replayed.stored_by_steps, 2U);
  EXPECT_EQ(report.replayed.counts[static_cast<size_t>(RecordCounter::kG1ToG2)], 2U);
  EXPECT_EQ(report.time, milliseconds(6));
  EXPECT_THAT(record_table(report), HasSubstr("\n  equal\n"));
}

TEST_F(RecordReplayTest, TheFirstOutcomeThatDiffersIsNamed) {
  std::get<MatchCall>(calls_[6].call).offer.num_tokens = 4;
  const RecordReport report = replay();
  EXPECT_EQ(report.difference,
            "call 7 at 0.006000 s, match of request b: 4 tokens in the step recorded, 8 tokens in "
            "the step replayed");
  EXPECT_THAT(record_table(report), HasSubstr("different: call 7"));
}

TEST_F(RecordReplayTest, APlanThatDiffersIsNamed) {
  auto& built = std::get<BuildStepCall>(calls_[3].call);
  ConnectorStep step = decode_connector_step(built.step).value();
  step.plan.stores.clear();
  built.step = encode(step);
  EXPECT_THAT(replay().difference, HasSubstr("stores: 0 recorded, 1 replayed"));
}

TEST_F(RecordReplayTest, BlocksThatARankDoesNotHaveAreNotUsedInTheReplayEither) {
  calls_[1].inputs = {ReceivedInbox{
      0, {.results = {}, .lost = {}, .shrunk = {{RankId(0), {TierId::kG2, GroupId(0)}, 1}}}}};
  EXPECT_THAT(replay().difference, HasSubstr("stores: 1 recorded, 1 replayed, not the same"));
}

TEST_F(RecordReplayTest, WhatComesInDecides) {
  calls_[6].inputs.clear();
  EXPECT_THAT(replay().difference, HasSubstr("8 tokens in the step recorded, 0 tokens"));
}

TEST_F(RecordReplayTest, AnInboxThatNobodyAsksForIsADifference) {
  std::get<ReceivedInbox>(calls_[6].inputs[0]).receive = 5;
  std::get<MatchCall>(calls_[6].call).offer = {};
  calls_[6].counts.clear();
  EXPECT_THAT(replay().difference, HasSubstr("asks its channel at other times"));
}

TEST_F(RecordReplayTest, CountsAreCompared) {
  calls_[6].counts[0].value = 3;
  EXPECT_THAT(replay().difference, HasSubstr("g1_to_g2: 3 recorded, 2 replayed"));
}

TEST_F(RecordReplayTest, WhatGoesToTheChannelIsCompared) {
  calls_[1].sent = 1;
  EXPECT_THAT(replay().difference, HasSubstr("other operations go to the channel"));
}

TEST_F(RecordReplayTest, ABrokenContractIsAnOutcome) {
  add(AllocatedCall{"b", {}, 0, std::nullopt});
  EXPECT_THAT(replay().difference, HasSubstr("a broken contract in the replay alone"));
  calls_.back().threw = true;
  EXPECT_EQ(replay().difference, "");
}

TEST_F(RecordReplayTest, FilesOfAFolderAreOneRecord) {
  write("record-00000000.kvbr", 0, 3);
  write("record-00000001.kvbr", 3);
  folder_.write("notes.txt", "nothing");
  const auto report = replay_record(folder_.path(), log_);
  ASSERT_TRUE(report) << report.error();
  EXPECT_EQ(report->difference, "");
  EXPECT_EQ(report->files, 2U);
  EXPECT_EQ(report->compared_calls, 7U);
}

TEST_F(RecordReplayTest, AfterAGapItIsPlayedColdAndNotCompared) {
  write("record-00000000.kvbr", 0, 3);
  write("record-00000001.kvbr", 5);
  const auto report = replay_record(folder_.path(), log_);
  ASSERT_TRUE(report) << report.error();
  EXPECT_EQ(report->difference, "");
  EXPECT_THAT(report->gaps, ElementsAre(RecordGap{4, 2}));
  EXPECT_EQ(report->calls, 5U);
  EXPECT_EQ(report->compared_calls, 3U);
  EXPECT_EQ(report->recorded.offered_tokens, 8U);
  EXPECT_EQ(report->replayed.offered_tokens, 0U);
  EXPECT_THAT(record_table(*report), HasSubstr("2 calls from call 4 on"));
}

TEST_F(RecordReplayTest, AfterAGapPlacesHaveWhatWasLeftOfThem) {
  shrink_before(0);
  drop_before(1, 5);
  const RecordReport report = replay();
  EXPECT_EQ(report.difference, "");
  EXPECT_EQ(report.compared_calls, 1U);
  EXPECT_EQ(report.recorded.stored_by_steps, 2U);
  EXPECT_EQ(report.replayed.stored_by_steps, 1U);
}

TEST_F(RecordReplayTest, APlaceThatShrinksAfterAGapDoesSoThereToo) {
  shrink_before(3);  // the one that builds the step
  drop_before(0, 5);
  const RecordReport report = replay();
  EXPECT_EQ(report.difference, "");
  EXPECT_EQ(report.compared_calls, 0U);
  EXPECT_EQ(report.replayed.stored_by_steps, 1U);
}

TEST_F(RecordReplayTest, ACutOffRecordIsPlayedUpToItsLastWholeCall) {
  write("a.kvbr");
  const auto path = folder_.path() / "a.kvbr";
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 3);
  const auto report = replay_record(path, log_);
  ASSERT_TRUE(report) << report.error();
  EXPECT_EQ(report->calls, 6U);
  EXPECT_GT(report->cut_off_bytes, 0U);
  EXPECT_EQ(report->difference, "");
}

TEST_F(RecordReplayTest, FilesOfTwoRunsAreRefused) {
  write("record-00000000.kvbr", 0, 3);
  header_.run = 2;
  write("record-00000001.kvbr", 3);
  EXPECT_EQ(code_of(replay_record(folder_.path(), log_)), ErrorCode::kInvalidArgument);
}

TEST_F(RecordReplayTest, OptionsThatNoLeaderTakesAreRefused) {
  header_.tiers.places[1].num_blocks = UINT32_MAX;
  write("a.kvbr");
  EXPECT_EQ(code_of(replay_record(folder_.path() / "a.kvbr", log_)), ErrorCode::kCorrupt);
  header_.tiers.places.clear();
  write("b.kvbr");
  EXPECT_EQ(code_of(replay_record(folder_.path() / "b.kvbr", log_)), ErrorCode::kCorrupt);
}

TEST_F(RecordReplayTest, ARecordIsKnownByItsBeginning) {
  EXPECT_FALSE(is_record_path(folder_.path()));
  write("a.kvbr");
  write("a");
  const auto trace = folder_.write("trace", "{}");
  EXPECT_TRUE(is_record_path(folder_.path()));
  EXPECT_TRUE(is_record_path(folder_.path() / "a"));
  EXPECT_FALSE(is_record_path(trace));
  EXPECT_FALSE(is_record_path(folder_.path() / "none"));
}

TEST_F(RecordReplayTest, ASignalEndsIt) {
  write("a.kvbr");
  const std::atomic<bool> interrupted = true;
  EXPECT_EQ(code_of(replay_record(folder_.path() / "a.kvbr", log_, &interrupted)),
            ErrorCode::kCancelled);
}

TEST_F(RecordReplayTest, TheJsonSaysTheSame) {
  const RecordReport report = replay();
  const auto json = nlohmann::json::parse(record_json(report));
  EXPECT_EQ(json["format"], "kvbm-record-report");
  EXPECT_EQ(json["version"], kRecordReportVersion);
  EXPECT_EQ(json["calls"], 7);
  EXPECT_EQ(json["recorded"]["offered_tokens"], 8);
  EXPECT_EQ(json["recorded"], json["replayed"]);
  EXPECT_EQ(json["recorded"]["counts"]["g1_to_g2"], 2);
  EXPECT_TRUE(json["difference"].is_null());
  calls_[6].counts[0].value = 3;
  EXPECT_THAT(nlohmann::json::parse(record_json(replay()))["difference"].get<std::string>(),
              HasSubstr("3 recorded"));
}

}  // namespace
}  // namespace kvbm
