// SPDX-License-Identifier: Apache-2.0
#include "kvbm/connector/record_writer.hpp"

#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/hash.hpp"
#include "kvbm/base/stepped_executor.hpp"

#include "tests/support/error_code.hpp"
#include "tests/support/recording_log_sink.hpp"
#include "tests/support/temporary_folder.hpp"

namespace kvbm {
namespace {

using testing::code_of;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::RecordingLogSink;
using testing::TemporaryFolder;

class RecordWriterTest : public ::testing::Test {
 protected:
  Result<std::unique_ptr<RecordWriter>> create(RecordWriterOptions options) {
    options.folder = folder_;
    RecordHeader header;
    header.run = 5;
    header.connector.groups = {{.block_tokens = 4}};
    header.tiers.groups = {{GroupId(0)}};
    header.tiers.places = {place(TierId::kG1, 16), place(TierId::kG2, 8)};
    return RecordWriter::create(std::move(options), std::move(header), executor_, metrics_, log_);
  }

  /// A call of about a kilobyte.
  static RecordedCall call() {
    RecordedCall made;
    made.call = FinishedCall{std::string(1000, 'r'), false};
    return made;
  }
  static PlaceSpec place(TierId tier, uint32_t num_blocks) {
    return {.place = {tier, GroupId(0)}, .num_blocks = num_blocks, .rank_block_bytes = 512};
  }
  /// With news of a place.
  static RecordedCall call(const ShrunkPlace& shrunk) {
    RecordedCall made = call();
    made.inputs = {EndedWait{}, ReceivedInbox{1, {.results = {}, .lost = {}, .shrunk = {shrunk}}}};
    return made;
  }
  static RecordCounts counts(uint64_t stored) {
    RecordCounts made{};
    made[static_cast<size_t>(RecordCounter::kG1ToG2)] = stored;
    return made;
  }

  RecordFile read(uint64_t number) const {
    const std::string text = TemporaryFolder::read(folder_ / record_file_name(number));
    auto file = decode_record_file(bytes_of(text));
    EXPECT_TRUE(file) << number;
    return file ? *std::move(file) : RecordFile();
  }
  std::vector<uint64_t> numbers_in(uint64_t file) const {
    std::vector<uint64_t> numbers;
    for (const RecordedCall& each : read(file).calls) numbers.push_back(each.number);
    return numbers;
  }
  uint64_t metric(const std::string& name) {
    struct Find final : StatisticsVisitor {
      void visit_counter(const MetricInfo& info, uint64_t value) override {
        if (info.name == wanted) found = value;
      }
      void visit_gauge(const MetricInfo& /*info*/, int64_t /*value*/) override {}
      void visit_real_gauge(const MetricInfo& /*info*/, double /*value*/) override {}
      void visit_histogram(const MetricInfo& /*info*/,
                           const HistogramSnapshot& /*value*/) override {}
      std::string wanted;
      uint64_t found = 0;
    } find;
    find.wanted = name;
    metrics_.visit(find);
    return find.found;
  }

  TemporaryFolder temporary_;
  const std::filesystem::path folder_ = temporary_.path() / "record";
  RecordingLogSink log_;
  SteppedExecutor executor_{1, log_};
  MetricsRegistry metrics_;
};

TEST_F(RecordWriterTest, CallsAreNumberedAndSayWhichCountsChanged) {
  {
    const auto writer = create({}).value();
    writer->append(call(), counts(4));
    writer->append(call(), counts(4));
    writer->append(call(), counts(9));
  }
  const RecordFile file = read(0);
  EXPECT_EQ(file.header.run, 5U);
  ASSERT_THAT(numbers_in(0), ElementsAre(1, 2, 3));
  EXPECT_THAT(file.calls[0].counts, ElementsAre(ChangedCount{RecordCounter::kG1ToG2, 4}));
  EXPECT_THAT(file.calls[1].counts, IsEmpty());
  EXPECT_THAT(file.calls[2].counts, ElementsAre(ChangedCount{RecordCounter::kG1ToG2, 9}));
  EXPECT_EQ(metric("kvbm_recorded_calls_total"), 3U);
}

TEST_F(RecordWriterTest, FilesAreARingAndEachStandsAlone) {
  {
    const auto writer = create({.max_files = 3, .max_file_bytes = 4096}).value();
    for (uint64_t i = 1; i <= 17; ++i) writer->append(call(), counts(i));
  }
  EXPECT_EQ(temporary_.num_entries(), 1U);
  EXPECT_FALSE(std::filesystem::exists(folder_ / record_file_name(2)));
  EXPECT_THAT(numbers_in(3), ElementsAre(10, 11, 12));
  EXPECT_THAT(numbers_in(4), ElementsAre(13, 14, 15));
  EXPECT_THAT(numbers_in(5), ElementsAre(16, 17));
  for (uint64_t file = 3; file <= 5; ++file) {
    const RecordFile whole = read(file);
    EXPECT_EQ(whole.header.file, file);
    EXPECT_EQ(whole.header.first_call, whole.calls.front().number);
    EXPECT_EQ(whole.header.counts, counts(whole.calls.front().number - 1));
    EXPECT_LE(whole.whole_bytes, 4096U);
  }
}

TEST_F(RecordWriterTest, WhatTheDiskCannotTakeIsDroppedAndMissing) {
  executor_.hold("kvbm-record");
  const auto writer = create({.max_buffer_bytes = 3500}).value();
  for (uint64_t i = 1; i <= 5; ++i) writer->append(call(), counts(i));
  EXPECT_EQ(metric("kvbm_recorded_calls_total"), 3U);
  EXPECT_EQ(metric("kvbm_record_dropped_calls_total"), 2U);
  executor_.release("kvbm-record");
  executor_.run_until_idle();
  writer->append(call(), counts(5));
  executor_.run_until_idle();
  EXPECT_THAT(numbers_in(0), ElementsAre(1, 2, 3, 6));
  // What changed with a call that is missing is told by the next one.
  EXPECT_THAT(read(0).calls.back().counts, ElementsAre(ChangedCount{RecordCounter::kG1ToG2, 5}));
}

TEST_F(RecordWriterTest, AFileBeginsWithThePlacesAsTheyHaveShrunkBeforeIt) {
  const Place host{TierId::kG2, GroupId(0)};
  {
    const auto writer = create({.max_file_bytes = 4096}).value();
    writer->append(call({RankId(0), host, 5}), counts(0));
    writer->append(call({RankId(0), host, 6}), counts(0));  // of a rank that has more
    writer->append(call({RankId(9), host, 1}), counts(0));  // no such rank
    writer->append(call({RankId(0), host, 0}), counts(0));  // begins file 1
    writer->append(call({RankId(0), {TierId::kG1, GroupId(0)}, 3}), counts(0));
    for (int i = 0; i < 2; ++i) writer->append(call(), counts(0));
  }
  EXPECT_THAT(read(0).header.tiers.places,
              ElementsAre(place(TierId::kG1, 16), place(TierId::kG2, 8)));
  EXPECT_THAT(read(1).header.tiers.places,
              ElementsAre(place(TierId::kG1, 16), place(TierId::kG2, 5)));
  // No leader takes a place without blocks.
  EXPECT_THAT(read(2).header.tiers.places,
              ElementsAre(place(TierId::kG1, 16), place(TierId::kG2, 1)));
}

TEST_F(RecordWriterTest, APlaceThatShrinksInACallThatIsDroppedIsToldByTheNextFile) {
  executor_.hold("kvbm-record");
  const auto writer = create({.max_file_bytes = 4096, .max_buffer_bytes = 1500}).value();
  writer->append(call(), counts(0));
  writer->append(call({RankId(0), {TierId::kG2, GroupId(0)}, 3}), counts(0));
  EXPECT_EQ(metric("kvbm_record_dropped_calls_total"), 1U);
  executor_.release("kvbm-record");
  for (int i = 0; i < 3; ++i) {
    executor_.run_until_idle();
    writer->append(call(), counts(0));
  }
  executor_.run_until_idle();
  EXPECT_THAT(numbers_in(1), ElementsAre(5));
  EXPECT_EQ(read(1).header.tiers.places[1].num_blocks, 3U);
}

TEST_F(RecordWriterTest, WhatWasAppendedIsOnDiskWithoutAnOrderlyEnd) {
  const auto writer = create({}).value();
  writer->append(call(), counts(1));
  executor_.run_until_idle();
  EXPECT_THAT(numbers_in(0), ElementsAre(1));
}

TEST_F(RecordWriterTest, AFolderThatIsGoneEndsTheRecordAndNothingElse) {
  const auto writer = create({.max_file_bytes = 4096}).value();
  std::filesystem::remove_all(folder_);
  for (uint64_t i = 1; i <= 5; ++i) writer->append(call(), counts(i));
  executor_.run_until_idle();
  EXPECT_THAT(log_.messages(LogLevel::kError),
              ElementsAre(HasSubstr("nothing is recorded from now on")));
  writer->append(call(), counts(6));
  EXPECT_EQ(metric("kvbm_record_dropped_calls_total"), 3U);
}

TEST_F(RecordWriterTest, TheFolderIsNewAndOfThisUserAlone) {
  const auto writer = create({}).value();
  struct stat status {};
  ASSERT_EQ(::stat(folder_.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777U, 0700U);
  EXPECT_FALSE(create({}));  // it is there
  std::filesystem::remove_all(folder_);
  std::filesystem::create_directory_symlink(temporary_.path(), folder_);
  EXPECT_FALSE(create({}));
}

TEST_F(RecordWriterTest, SizesThatMakeNoSenseAreRefused) {
  EXPECT_EQ(code_of(create({.max_files = 0})), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of(create({.max_file_bytes = 100})), ErrorCode::kInvalidArgument);
  EXPECT_FALSE(std::filesystem::exists(folder_));
}

}  // namespace
}  // namespace kvbm
