// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/log.hpp"

#include <stdexcept>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/recording_log_sink.hpp"

namespace kvbm {
namespace {

using ::testing::ElementsAre;
using testing::RecordingLogSink;

TEST(Log, WritesRecordsOfItsLevelAndAbove) {
  RecordingLogSink sink(LogLevel::kWarning);
  KVBM_LOG_INFO(sink, "tiers", "not seen");
  KVBM_LOG_WARNING(sink, "tiers", "block {} of {}", BlockId(3), TierId::kG2);
  sink.set_level(LogLevel::kTrace);
  KVBM_LOG_TRACE(sink, "tiers", "now seen");
  sink.set_level(LogLevel::kOff);
  KVBM_LOG_ERROR(sink, "tiers", "off is off");
  sink.log(LogLevel::kOff, "tiers", "no level of a record");

  const auto records = sink.records();
  ASSERT_EQ(records.size(), 2U);
  EXPECT_EQ(records[0].level, LogLevel::kWarning);
  EXPECT_EQ(records[0].component, "tiers");
  EXPECT_EQ(records[0].message, "block 3 of G2");
  EXPECT_EQ(records[1].message, "now seen");
}

TEST(Log, ArgumentsOfADisabledRecordAreNotEvaluated) {
  RecordingLogSink sink(LogLevel::kError);
  int evaluated = 0;
  const auto expensive = [&evaluated] { return ++evaluated; };
  KVBM_LOG_DEBUG(sink, "x", "{}", expensive());
  EXPECT_EQ(evaluated, 0);
  KVBM_LOG_ERROR(sink, "x", "{}", expensive());
  EXPECT_EQ(evaluated, 1);
}

TEST(Log, FieldsFollowTheMessageAndAreQuotedWhereNeeded) {
  RecordingLogSink sink;
  sink.log(LogLevel::kInfo, "worker", "load ended",
           {{"op", OpId(17)},
            {"hash", SequenceHash(255)},
            {"ok", false},
            {"ratio", 0.5},
            {"path", "/tmp/a"},
            {"reason", "two words"},
            {"empty", ""},
            {"ugly", "a\"b\\c\nd\x01"}});
  ASSERT_EQ(sink.records().size(), 1U);
  EXPECT_EQ(sink.records()[0].line,
            "[worker] load ended op=17 hash=00000000000000ff ok=false ratio=0.5 path=/tmp/a "
            "reason=\"two words\" empty=\"\" ugly=\"a\\\"b\\\\c\\nd\\x01\"");
}

TEST(Log, ASinkThatThrowsDoesNotHurtTheCaller) {
  class Broken final : public LogSink {
    void write(const LogRecord& /*record*/) override { throw std::runtime_error("disk full"); }
  };
  Broken sink;
  EXPECT_NO_THROW(KVBM_LOG_ERROR(sink, "x", "lost {}", 1));
}

TEST(Log, MacrosAreOneStatement) {
  RecordingLogSink sink;
  if (sink.records().size() == 7)
    KVBM_LOG_INFO(sink, "x", "then");
  else
    KVBM_LOG_INFO(sink, "x", "else");
  EXPECT_THAT(sink.messages(LogLevel::kInfo), ElementsAre("else"));
}

TEST(NullLogSink, IsDisabled) {
  NullLogSink sink;
  EXPECT_FALSE(sink.enabled(LogLevel::kError));
  KVBM_LOG_ERROR(sink, "x", "nowhere");
}

}  // namespace
}  // namespace kvbm
