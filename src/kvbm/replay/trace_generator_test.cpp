// SPDX-License-Identifier: Apache-2.0
#include "kvbm/replay/trace_generator.hpp"

#include <algorithm>
#include <chrono>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/hash.hpp"
#include "kvbm/replay/trace_statistics.hpp"

namespace kvbm {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

TraceGeneratorOptions small() {
  TraceGeneratorOptions options;
  options.chat.sessions = 20;
  options.agents.sessions = 2;
  return options;
}

Trace generate(const TraceGeneratorOptions& options) {
  auto trace = generate_trace(options);
  EXPECT_TRUE(trace.has_value()) << trace.error();
  return trace ? *trace : Trace{};
}

std::string text_of(const Trace& trace) {
  std::string text;
  for (const TraceRequest& request : trace.requests) append_trace_line(text, request);
  return text;
}

constexpr std::string_view kFirstLine =
    R"({"timestamp": 0, "input_length": 3789, "output_length": 467, )"
    R"("hash_ids": [0, 1, 2, 3, 4, 5, 6, 7]})";
constexpr uint64_t kWholeTrace = 5653910614503211258U;

TEST(GenerateTrace, GivesTheSameTraceForTheSameSeed) {
  EXPECT_EQ(generate(small()), generate(small()));
  TraceGeneratorOptions other = small();
  other.seed = 1;
  EXPECT_NE(generate(small()), generate(other));
}

TEST(GenerateTrace, GivesTheSameTraceOnEveryPlatform) {
  // A change of these numbers is a change of every generated trace: say so in the changelog.
  const std::string text = text_of(generate(small()));
  EXPECT_EQ(text.substr(0, text.find('\n')), kFirstLine);
  EXPECT_EQ(xxh3_64(bytes_of(text)), kWholeTrace);
}

TEST(GenerateTrace, SortsByTime) {
  const Trace trace = generate(small());
  EXPECT_TRUE(std::is_sorted(
      trace.requests.begin(), trace.requests.end(),
      [](const TraceRequest& a, const TraceRequest& b) { return a.timestamp < b.timestamp; }));
  EXPECT_EQ(trace.requests.front().timestamp, milliseconds(0));
}

TEST(GenerateTrace, LetsTurnsExtendTheTalkSoFar) {
  TraceGeneratorOptions options = small();
  options.agents.sessions = 0;
  options.chat.sessions = 1;
  options.chat.mean_turns = 50;
  options.seed = 3;
  const Trace trace = generate(options);
  ASSERT_GT(trace.requests.size(), 3U);
  for (size_t i = 1; i < trace.requests.size(); ++i) {
    const TraceRequest& before = trace.requests[i - 1];
    const TraceRequest& after = trace.requests[i];
    EXPECT_GT(after.input_length, before.input_length + before.output_length);
    // All full blocks come back; the part of a block at the end does not.
    const auto full = static_cast<ptrdiff_t>(before.input_length / options.tokens_per_block);
    EXPECT_TRUE(std::equal(before.hash_ids.begin(), before.hash_ids.begin() + full,
                           after.hash_ids.begin()));
    EXPECT_GE(after.timestamp, before.timestamp + options.time_per_output_token *
                                                      static_cast<int64_t>(before.output_length));
  }
}

TEST(GenerateTrace, MakesTheFirstSystemPromptTheMostPopular) {
  TraceGeneratorOptions options = small();
  options.agents.sessions = 0;
  options.chat.sessions = 2'000;
  options.chat.mean_turns = 1;
  options.chat.system_prompts = 3;
  options.chat.system_prompt_tokens = 4'000;
  std::map<uint64_t, int> uses;
  for (const TraceRequest& request : generate(options).requests) ++uses[request.hash_ids.front()];
  ASSERT_EQ(uses.size(), 3U);
  std::vector<int> counts;
  for (const auto& [id, count] : uses) counts.push_back(count);
  std::sort(counts.begin(), counts.end(), std::greater<>());
  // 1 : 1/2 : 1/3 of 2000.
  EXPECT_NEAR(counts[0], 1091, 120);
  EXPECT_NEAR(counts[1], 545, 100);
  EXPECT_NEAR(counts[2], 364, 90);
}

TEST(GenerateTrace, KeepsMeansNearWhatWasAsked) {
  TraceGeneratorOptions options = small();
  options.agents.sessions = 0;
  options.chat.sessions = 4'000;
  options.chat.mean_turns = 1;
  options.chat.mean_reply_tokens = 400;
  const Trace trace = generate(options);
  const TraceStatistics statistics = measure_trace(trace);
  EXPECT_EQ(statistics.requests, 4'000U);
  EXPECT_NEAR(static_cast<double>(statistics.output_tokens) / 4'000, 400, 25);
  EXPECT_NEAR(static_cast<double>(statistics.duration.count()) / 4'000, 2'000, 120);
}

TEST(GenerateTrace, LetsSubAgentsStartFromWhatTheirParentKnows) {
  TraceGeneratorOptions options = small();
  options.chat.sessions = 0;
  options.agents.sessions = 1;
  options.agents.branch_percent = 100;
  options.agents.max_sub_agents = 3;
  const Trace branching = generate(options);
  options.agents.branch_percent = 0;
  const Trace straight = generate(options);
  const auto forks = [](const Trace& trace) {
    std::map<uint64_t, std::set<uint64_t>> children;
    for (const TraceRequest& request : trace.requests) {
      for (size_t i = 1; i + 1 < request.hash_ids.size(); ++i) {
        children[request.hash_ids[i - 1]].insert(request.hash_ids[i]);
      }
    }
    return std::count_if(children.begin(), children.end(),
                         [](const auto& entry) { return entry.second.size() > 1; });
  };
  EXPECT_GT(forks(branching), 5);
  EXPECT_EQ(forks(straight), 0);
}

TEST(GenerateTrace, EndsASessionBeforeItsInputGetsTooLong) {
  TraceGeneratorOptions options = small();
  options.max_context_tokens = 20'000;
  options.chat.mean_turns = 1'000;
  for (const TraceRequest& request : generate(options).requests) {
    EXPECT_LE(request.input_length, 20'000U);
  }
}

TEST(GenerateTrace, SharesMostOfItsBlocks) {
  const TraceStatistics statistics = measure_trace(generate(TraceGeneratorOptions{}));
  EXPECT_GT(statistics.best_hit_share(), 0.5);
  EXPECT_LT(statistics.best_hit_share(), 0.99);
}

TEST(GenerateTrace, RefusesPromptsThatNeverFit) {
  TraceGeneratorOptions options = small();
  options.max_context_tokens = 1;
  const auto trace = generate_trace(options);
  ASSERT_FALSE(trace.has_value());
  EXPECT_THAT(trace.error().message(), HasSubstr("max_context_tokens"));
}

TEST(GenerateTrace, GivesUpBeforeItFillsTheMemory) {
  TraceGeneratorOptions options = small();
  options.max_accesses = 1'000;
  const auto trace = generate_trace(options);
  ASSERT_FALSE(trace.has_value());
  EXPECT_EQ(trace.error().code(), ErrorCode::kExhausted);
}

TEST(TraceGeneratorOptions, NameTheFieldThatIsWrong) {
  const auto refused = [](const auto& change, const char* name) {
    TraceGeneratorOptions options;
    change(options);
    const auto status = options.validate();
    ASSERT_FALSE(status.has_value()) << name;
    EXPECT_EQ(status.error().code(), ErrorCode::kInvalidArgument);
    EXPECT_THAT(status.error().message(), HasSubstr(name));
    EXPECT_FALSE(generate_trace(options).has_value());
  };
  using Options = TraceGeneratorOptions;
  refused([](Options& o) { o.tokens_per_block = 0; }, "tokens_per_block");
  refused([](Options& o) { o.max_context_tokens = 0; }, "max_context_tokens");
  refused([](Options& o) { o.mean_session_gap = milliseconds(-1); }, "mean_session_gap");
  refused([](Options& o) { o.time_per_output_token = milliseconds(60'001); },
          "time_per_output_token");
  refused([](Options& o) { o.chat.sessions = 1'000'001; }, "chat.sessions");
  refused([](Options& o) { o.chat.system_prompts = 0; }, "chat.system_prompts");
  refused([](Options& o) { o.chat.mean_turns = 0; }, "chat.mean_turns");
  refused([](Options& o) { o.agents.kinds = 0; }, "agents.kinds");
  refused([](Options& o) { o.agents.branch_percent = 101; }, "agents.branch_percent");
  refused([](Options& o) { o.agents.max_sub_agents = 0; }, "agents.max_sub_agents");
  refused([](Options& o) { o.chat.sessions = o.agents.sessions = 0; }, "both 0");
  EXPECT_TRUE(TraceGeneratorOptions{}.validate().has_value());
}

}  // namespace
}  // namespace kvbm
