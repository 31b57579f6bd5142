// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <chrono>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>

#include <gtest/gtest.h>

#include "kvbm/base/random.hpp"
#include "kvbm/replay/trace.hpp"
#include "kvbm/replay/trace_generator.hpp"
#include "kvbm/replay/trace_statistics.hpp"

#include "tests/support/seed.hpp"

namespace kvbm {
namespace {

using std::chrono::milliseconds;

// Any trace that write_trace would take.
Trace random_trace(Random& random) {
  Trace trace;
  milliseconds time{0};
  const uint64_t requests = random.uniform_between(1, 20);
  for (uint64_t i = 0; i < requests; ++i) {
    time += milliseconds(static_cast<int64_t>(random.uniform(1'000'000)));
    TraceRequest request{time, random.uniform(1 << 20), random.uniform(1 << 20), {}};
    std::set<uint64_t> ids;
    const uint64_t blocks = random.uniform(30) + (request.input_length > 0 ? 1 : 0);
    while (ids.size() < blocks) ids.insert(random.next() >> random.uniform(64));
    request.hash_ids.assign(ids.begin(), ids.end());
    random.shuffle(std::span(request.hash_ids));
    trace.requests.push_back(request);
  }
  return trace;
}

TEST(TraceProperty, WhatIsWrittenReadsBackEqual) {
  Random random(testing::test_seed());
  for (int round = 0; round < 300; ++round) {
    const Trace trace = random_trace(random);
    std::string text;
    for (const TraceRequest& request : trace.requests) append_trace_line(text, request);
    const auto read = parse_trace(text);
    ASSERT_TRUE(read.has_value()) << read.error() << "\n" << text;
    ASSERT_EQ(*read, trace);
  }
}

TEST(TraceProperty, ATraceCutAnywhereIsRefusedOrAPrefix) {
  Random random(testing::test_seed());
  for (int round = 0; round < 20; ++round) {
    const Trace trace = random_trace(random);
    std::string text;
    for (const TraceRequest& request : trace.requests) append_trace_line(text, request);
    for (int cut = 0; cut < 50; ++cut) {
      const auto read = parse_trace(std::string_view(text).substr(0, random.uniform(text.size())));
      if (!read) continue;
      ASSERT_LE(read->requests.size(), trace.requests.size());
      ASSERT_TRUE(std::equal(read->requests.begin(), read->requests.end(), trace.requests.begin()));
    }
  }
}

TEST(TraceProperty, GeneratedTracesArePrefixesThatAgree) {
  Random random(testing::test_seed());
  for (int round = 0; round < 20; ++round) {
    TraceGeneratorOptions options;
    options.seed = random.next();
    options.tokens_per_block = static_cast<uint32_t>(random.uniform_between(1, 600));
    options.max_context_tokens = random.uniform_between(1'000, 20'000);
    options.chat.sessions = static_cast<uint32_t>(random.uniform(20));
    options.chat.system_prompt_tokens = random.uniform(600);
    options.agents.sessions = static_cast<uint32_t>(random.uniform_between(1, 5));
    options.agents.prefix_tokens = random.uniform(600);
    options.agents.mean_task_tokens = 50;
    options.agents.branch_percent = static_cast<uint32_t>(random.uniform(40));
    const auto trace = generate_trace(options);
    ASSERT_TRUE(trace.has_value()) << trace.error();
    // Equal ids mean equal prefixes: an id always follows the same id.
    std::unordered_map<uint64_t, uint64_t> parents;
    uint64_t next_id = 0;
    std::string text;
    for (const TraceRequest& request : trace->requests) {
      uint64_t parent = ~uint64_t{0};
      for (const uint64_t id : request.hash_ids) {
        ASSERT_LE(id, next_id);
        next_id = std::max(next_id, id + 1);
        ASSERT_EQ(parents.try_emplace(id, parent).first->second, parent);
        parent = id;
      }
      const uint64_t blocks =
          (request.input_length + options.tokens_per_block - 1) / options.tokens_per_block;
      ASSERT_EQ(request.hash_ids.size(), blocks);
      ASSERT_LE(request.input_length, options.max_context_tokens);
      append_trace_line(text, request);
    }
    ASSERT_EQ(measure_trace(*trace).unique_blocks, next_id);
    const auto read = parse_trace(text);
    ASSERT_TRUE(read.has_value()) << read.error();
    ASSERT_EQ(*read, *trace);
  }
}

}  // namespace
}  // namespace kvbm
