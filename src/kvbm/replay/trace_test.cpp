// SPDX-License-Identifier: Apache-2.0
#include "kvbm/replay/trace.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <limits>
#include <string>
#include <string_view>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/temporary_folder.hpp"

namespace kvbm {
namespace {

using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr std::string_view kLine =
    R"({"timestamp": 7, "input_length": 600, "output_length": 5, "hash_ids": [0, 3]})";

std::string error_of(std::string_view text, TraceLimits limits = {}) {
  const auto trace = parse_trace(text, "t", limits);
  if (trace) return "no error";
  EXPECT_EQ(trace.error().code(), ErrorCode::kInvalidArgument);
  return trace.error().message();
}

// The line with one field's value replaced.
std::string with(std::string_view field, std::string_view value) {
  std::string text;
  for (const std::string_view name : {"timestamp", "input_length", "output_length", "hash_ids"}) {
    text += text.empty() ? "{\"" : ", \"";
    text += std::string(name) + "\": ";
    text += name == field ? value : name == "hash_ids" ? "[1]" : "1";
  }
  return text + "}";
}

TEST(ParseTrace, ReadsTheFieldsOfARequest) {
  const auto trace = parse_trace(kLine);
  ASSERT_TRUE(trace.has_value()) << trace.error();
  ASSERT_EQ(trace->requests.size(), 1U);
  const TraceRequest& request = trace->requests.front();
  EXPECT_EQ(request.timestamp, milliseconds(7));
  EXPECT_EQ(request.input_length, 600U);
  EXPECT_EQ(request.output_length, 5U);
  EXPECT_EQ(request.hash_ids, (std::vector<uint64_t>{0, 3}));
}

TEST(ParseTrace, TakesFieldsInAnyOrderAndWithAnySpaces) {
  const auto trace = parse_trace(
      "\t{ \"hash_ids\":[ 3 ,1 ] ,\"output_length\":2,\"input_length\":9,\"timestamp\":4 }\r\n");
  ASSERT_TRUE(trace.has_value()) << trace.error();
  EXPECT_EQ(trace->requests.front(), (TraceRequest{milliseconds(4), 9, 2, {3, 1}}));
}

TEST(ParseTrace, SkipsFieldsThatItDoesNotKnow) {
  const auto trace = parse_trace(
      R"({"type": "chat", "x": {"timestamp": "no", "hash_ids": [[1.5, null]]}, "y": [true, -1, 1e9],)"
      R"( "z": 99999999999999999999, "timestamp": 1, "input_length": 2, "output_length": 3, "hash_ids": [4]})");
  ASSERT_TRUE(trace.has_value()) << trace.error();
  EXPECT_EQ(trace->requests.front(), (TraceRequest{milliseconds(1), 2, 3, {4}}));
}

TEST(ParseTrace, TakesTheLargestNumbers) {
  const auto trace = parse_trace(
      R"({"timestamp": 9223372036854, "input_length": 4294967296, "output_length": 4294967296,)"
      R"( "hash_ids": [18446744073709551615]})");
  ASSERT_TRUE(trace.has_value()) << trace.error();
  EXPECT_EQ(trace->requests.front().hash_ids.front(), std::numeric_limits<uint64_t>::max());
  // It fits a Duration.
  EXPECT_GT(std::chrono::nanoseconds(trace->requests.front().timestamp).count(), 0);
}

TEST(ParseTrace, NeedsNoNewlineAtTheEndAndTakesBlankLinesThere) {
  const std::string line(kLine);
  for (const std::string& text :
       {line, line + "\n", line + "\n\n\n", line + "\n  \t\r\n", line + "\n "}) {
    const auto trace = parse_trace(text);
    ASSERT_TRUE(trace.has_value()) << trace.error();
    EXPECT_EQ(trace->requests.size(), 1U);
  }
}

TEST(ParseTrace, RefusesABlankLineBetweenRequests) {
  const std::string text = std::string(kLine) + "\n\n\n" + std::string(kLine);
  EXPECT_EQ(error_of(text), "t, line 2: the line is empty, and requests follow");
}

TEST(ParseTrace, NamesTheBrokenLine) {
  const std::string line(kLine);
  EXPECT_THAT(error_of(line + "\n" + line + "\n{\n"), HasSubstr("t, line 3: "));
}

TEST(ParseTrace, RefusesWhatIsNoJson) {
  for (const char* text : {"{", "{}}", "hello", "{\"timestamp\": 01}", "{'timestamp': 1}", "\xff",
                           "{\"a\": \"\xff\"}", "{\"a\": nul}", "{\"a\": 1e999}"}) {
    EXPECT_THAT(error_of(text), HasSubstr("not JSON at byte ")) << text;
  }
  // Nothing after the object, not even another one.
  EXPECT_THAT(error_of(std::string(kLine) + std::string(kLine)), HasSubstr("not JSON at byte "));
}

TEST(ParseTrace, KeepsMessagesShortAndPrintable) {
  const std::string message = error_of("{\"" + std::string(5000, '\x01'));
  EXPECT_LT(message.size(), 200U);
  EXPECT_TRUE(std::all_of(message.begin(), message.end(), [](char c) {
    return c >= ' ' && c <= '~';
  })) << message;
  EXPECT_LT(error_of("{\"a\": \"" + std::string(5000, 'x')).size(), 200U);
  EXPECT_THAT(error_of("{\"\u00e9"), HasSubstr("near '\"?\?'"));
}

TEST(ParseTrace, RefusesLinesThatAreNoObject) {
  for (const char* text :
       {"[1]", "1", "-1", "1.5", "\"x\"", "null", "true", "99999999999999999999"}) {
    EXPECT_EQ(error_of(text), "t, line 1: not a JSON object") << text;
  }
}

TEST(ParseTrace, NamesTheFieldThatIsMissing) {
  EXPECT_EQ(error_of("{}"), "t, line 1: field 'timestamp' is missing");
  EXPECT_EQ(error_of(R"({"timestamp": 1, "input_length": 2, "output_length": 3})"),
            "t, line 1: field 'hash_ids' is missing");
  // A field of the same name somewhere inside another one does not count.
  EXPECT_EQ(error_of(R"({"x": {"timestamp": 1}})"), "t, line 1: field 'timestamp' is missing");
}

TEST(ParseTrace, RefusesAFieldThatAppearsTwice) {
  EXPECT_EQ(error_of(R"({"timestamp": 1, "timestamp": 1})"),
            "t, line 1: field 'timestamp' appears twice");
}

TEST(ParseTrace, RefusesNumbersOfTheWrongKind) {
  for (const std::string field : {"timestamp", "input_length", "output_length"}) {
    const auto refused = [&](std::string_view value, std::string_view found) {
      EXPECT_EQ(error_of(with(field, value)), "t, line 1: field '" + field + "' is " +
                                                  std::string(found) + ", not a whole number");
    };
    refused("-1", "a negative number");
    refused("-1.5", "a negative number");
    refused("1.5", "a number with a fraction or exponent");
    refused("1e3", "a number with a fraction or exponent");
    refused("\"1\"", "a text");
    refused("null", "null");
    refused("true", "a boolean");
    refused("[1]", "a list");
    refused("{}", "an object");
  }
}

TEST(ParseTrace, RefusesNumbersThatAreTooLarge) {
  EXPECT_THAT(error_of(with("timestamp", "9223372036855")), HasSubstr("'timestamp' is too large"));
  EXPECT_THAT(error_of(with("input_length", "4294967297")),
              HasSubstr("'input_length' is too large"));
  EXPECT_THAT(error_of(with("output_length", "18446744073709551616")),
              HasSubstr("'output_length' is too large"));
  EXPECT_THAT(error_of(with("hash_ids", "[18446744073709551616]")),
              HasSubstr("'hash_ids' is too large: at most 18446744073709551615 is possible"));
}

TEST(ParseTrace, RefusesHashIdsThatAreNoListOfWholeNumbers) {
  for (const char* value : {"1", "\"1\"", "null", "{}", "true", "1.5", "99999999999999999999"}) {
    EXPECT_THAT(error_of(with("hash_ids", value)),
                AllOf(HasSubstr("field 'hash_ids' "), Not(HasSubstr("JSON"))))
        << value;
  }
  for (const char* value : {"[-1]", "[1.0]", "[\"1\"]", "[null]", "[[1]]", "[{}]", "[true]"}) {
    EXPECT_THAT(error_of(with("hash_ids", value)), HasSubstr("not whole numbers alone")) << value;
  }
}

TEST(ParseTrace, RefusesARequestThatNamesABlockTwice) {
  EXPECT_THAT(error_of(with("hash_ids", "[5, 9, 5]")), HasSubstr("names block 5 twice"));
  EXPECT_THAT(error_of(with("hash_ids", "[5, 5]")), HasSubstr("names block 5 twice"));
  EXPECT_EQ(error_of(with("hash_ids", "[5, 9, 4]")), "no error");
}

TEST(ParseTrace, TakesARequestWithoutBlocksOnlyIfItHasNoInput) {
  EXPECT_EQ(error_of(R"({"timestamp": 0, "input_length": 0, "output_length": 3, "hash_ids": []})"),
            "no error");
  EXPECT_EQ(error_of(with("hash_ids", "[]")),
            "t, line 1: 'hash_ids' is empty, but the input has 1 tokens");
}

TEST(ParseTrace, RefusesTimeThatGoesBack) {
  EXPECT_EQ(error_of(with("timestamp", "5") + "\n" + with("timestamp", "5") + "\n" +
                     with("timestamp", "4")),
            "t, line 3: timestamp 4 comes after 5: sort the requests by time");
}

TEST(ParseTrace, RefusesATraceWithoutRequests) {
  EXPECT_EQ(error_of(""), "t holds no request");
  EXPECT_EQ(error_of("\n \n"), "t holds no request");
}

TEST(ParseTrace, RefusesALineThatIsTooLongWithoutKeepingIt) {
  const TraceLimits limits{.max_requests = {}, .max_line_bytes = kLine.size()};
  EXPECT_EQ(error_of(kLine, limits), "no error");
  EXPECT_THAT(error_of(std::string(kLine) + "\n" + std::string(kLine) + " ", limits),
              HasSubstr("t, line 2: the line is longer than "));
}

TEST(ParseTrace, NestsAsDeepAsTheLineIsLong) {
  const std::string deep = "{\"x\": " + std::string(1'000'000, '[');
  EXPECT_THAT(error_of(deep), HasSubstr("not JSON"));
}

TEST(ParseTrace, StopsAtTheLimitAndDoesNotLookFurther) {
  const std::string text = std::string(kLine) + "\n" + std::string(kLine) + "\nbroken";
  const auto trace = parse_trace(text, "t", {.max_requests = 2});
  ASSERT_TRUE(trace.has_value()) << trace.error();
  EXPECT_EQ(trace->requests.size(), 2U);
  EXPECT_THAT(error_of(text, {.max_requests = 3}), HasSubstr("line 3"));
}

TEST(TraceReader, GivesOneRequestAfterTheOther) {
  const std::string text = with("timestamp", "1") + "\n" + with("timestamp", "2") + "\n";
  TraceReader reader = TraceReader::over(text, "t");
  TraceRequest request;
  ASSERT_TRUE(reader.next(request).value());
  EXPECT_EQ(request.timestamp, milliseconds(1));
  ASSERT_TRUE(reader.next(request).value());
  EXPECT_EQ(request.timestamp, milliseconds(2));
  EXPECT_FALSE(reader.next(request).value());
  EXPECT_FALSE(reader.next(request).value());
}

TEST(TraceReader, KeepsToItsFirstError) {
  const std::string text = "broken\n" + std::string(kLine);
  TraceReader reader = TraceReader::over(text, "t");
  TraceRequest request;
  const auto first = reader.next(request);
  const auto second = reader.next(request);
  ASSERT_FALSE(first.has_value());
  ASSERT_FALSE(second.has_value());
  EXPECT_EQ(first.error(), second.error());
}

class TraceFile : public ::testing::Test {
 protected:
  testing::TemporaryFolder folder_;
};

TEST_F(TraceFile, IsReadAcrossTheEdgesOfTheBuffer) {
  // Lines of many lengths, several buffers of them, and one that is larger than a buffer.
  Trace trace;
  for (uint64_t i = 0; i < 3000; ++i) {
    TraceRequest request{milliseconds(i), 1, i, {}};
    for (uint64_t id = 0; id <= i % 97; ++id) request.hash_ids.push_back(i * 1000 + id);
    if (i == 1500) {
      for (uint64_t id = 100; id < 100'000; ++id) request.hash_ids.push_back(i * 1'000'000 + id);
    }
    trace.requests.push_back(request);
  }
  const auto path = folder_.path() / "trace.jsonl";
  ASSERT_TRUE(write_trace(trace, path).has_value());
  const auto read = read_trace(path);
  ASSERT_TRUE(read.has_value()) << read.error();
  EXPECT_EQ(*read, trace);
}

TEST_F(TraceFile, IsReadWhereverABufferEnds) {
  constexpr size_t kBufferBytes = 256 * 1024;
  for (size_t length = kBufferBytes - 2; length <= kBufferBytes + 2; ++length) {
    const std::string line = std::string(length - kLine.size(), ' ') + std::string(kLine);
    const auto trace = read_trace(folder_.write("trace.jsonl", line + "\n" + line + "\n" + line));
    ASSERT_TRUE(trace.has_value()) << trace.error();
    EXPECT_EQ(trace->requests.size(), 3U);
  }
}

TEST_F(TraceFile, IsWrittenInTheFormOfTheSample) {
  Trace trace;
  trace.requests.push_back({milliseconds(7), 600, 5, {0, 3}});
  const auto path = folder_.path() / "trace.jsonl";
  ASSERT_TRUE(write_trace(trace, path).has_value());
  EXPECT_EQ(folder_.read(path), std::string(kLine) + "\n");
}

TEST_F(TraceFile, ThatDoesNotExistIsOneClearError) {
  const auto path = folder_.path() / "none";
  const auto trace = read_trace(path);
  ASSERT_FALSE(trace.has_value());
  EXPECT_EQ(trace.error().code(), ErrorCode::kNotFound);
  EXPECT_EQ(trace.error().message(), "cannot read " + path.string());
}

TEST_F(TraceFile, ThatIsAFolderIsOneClearError) {
  const auto trace = read_trace(folder_.path());
  ASSERT_FALSE(trace.has_value());
  EXPECT_EQ(trace.error().message(),
            "cannot read " + folder_.path().string() + ": it is a directory");
}

TEST_F(TraceFile, IsNotReadAnyFurtherOnceInterrupted) {
  const auto path = folder_.write("trace.jsonl", kLine);
  const std::atomic<bool> interrupted{true};
  const auto trace = read_trace(path, {.interrupted = &interrupted});
  ASSERT_FALSE(trace.has_value());
  EXPECT_EQ(trace.error().code(), ErrorCode::kCancelled);
}

TEST_F(TraceFile, IsNotWrittenForATraceThatWouldBeRefused) {
  const auto refused = [&](const std::vector<TraceRequest>& requests) {
    const auto written = write_trace(Trace{requests}, folder_.path() / "trace.jsonl");
    EXPECT_FALSE(written.has_value());
    return !written && written.error().code() == ErrorCode::kInvalidArgument;
  };
  EXPECT_TRUE(refused({}));
  EXPECT_TRUE(refused({{milliseconds(-1), 1, 1, {1}}}));
  EXPECT_TRUE(refused({{milliseconds(2), 1, 1, {1}}, {milliseconds(1), 1, 1, {1}}}));
  EXPECT_TRUE(refused({{milliseconds(1), 1, 1, {}}}));
  EXPECT_TRUE(refused({{milliseconds(1), 1, 1, {1, 1}}}));
  EXPECT_TRUE(refused({{milliseconds(1), uint64_t{1} << 33, 1, {1}}}));
  EXPECT_TRUE(refused({{milliseconds(1), 1, uint64_t{1} << 33, {1}}}));
  EXPECT_TRUE(refused({{milliseconds::max(), 1, 1, {1}}}));
  EXPECT_EQ(folder_.num_entries(), 0U);
}

TEST_F(TraceFile, IsLeftAsItWasWhenWritingIsInterrupted) {
  Trace trace;
  trace.requests.push_back({milliseconds(0), 1, 1, {}});
  for (uint64_t id = 0; id < 100'000; ++id) trace.requests.back().hash_ids.push_back(id);
  const auto path = folder_.write("trace.jsonl", "before");
  const std::atomic<bool> interrupted{true};
  const auto written = write_trace(trace, path, &interrupted);
  ASSERT_FALSE(written.has_value());
  EXPECT_EQ(written.error().code(), ErrorCode::kCancelled);
  EXPECT_EQ(folder_.read(path), "before");
  EXPECT_EQ(folder_.num_entries(), 1U);
}

}  // namespace
}  // namespace kvbm
