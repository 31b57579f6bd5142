// SPDX-License-Identifier: Apache-2.0
#include "kvbm/replay/trace_statistics.hpp"

#include <chrono>

#include <gtest/gtest.h>

namespace kvbm {
namespace {

using std::chrono::milliseconds;

TEST(TraceStatistics, CountsWhatATraceHolds) {
  const Trace trace{{{milliseconds(5), 700, 10, {0, 1}},
                     {milliseconds(6), 1500, 20, {0, 1, 2}},
                     {milliseconds(9), 100, 30, {3}}}};
  const TraceStatistics statistics = measure_trace(trace);
  EXPECT_EQ(statistics.requests, 3U);
  EXPECT_EQ(statistics.accesses, 6U);
  EXPECT_EQ(statistics.unique_blocks, 4U);
  EXPECT_EQ(statistics.longest_blocks, 3U);
  EXPECT_EQ(statistics.input_tokens, 2300U);
  EXPECT_EQ(statistics.output_tokens, 60U);
  EXPECT_EQ(statistics.duration, milliseconds(4));
  EXPECT_EQ(statistics.reusable_blocks, 2U);
  EXPECT_DOUBLE_EQ(statistics.best_hit_share(), 2.0 / 6.0);
}

TEST(TraceStatistics, CountsHitsOnlyUpToTheFirstMissOfARequest) {
  // Block 2 is known, but the new block 9 comes before it.
  const Trace trace{{{milliseconds(0), 1, 1, {0, 1, 2}}, {milliseconds(0), 1, 1, {0, 9, 2}}}};
  EXPECT_EQ(measure_trace(trace).reusable_blocks, 1U);
}

TEST(TraceStatistics, OfNothingAreZero) {
  EXPECT_EQ(measure_trace(Trace{}), TraceStatistics{});
  EXPECT_EQ(TraceStatistics{}.best_hit_share(), 0.0);
}

}  // namespace
}  // namespace kvbm
