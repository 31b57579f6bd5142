// SPDX-License-Identifier: Apache-2.0
#include "apps/kvbench/bench_report.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace kvbm {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;
using ::testing::StartsWith;

TestResult result_of(const BenchCell& cell, CopyBackend backend, double ms) {
  TestResult result{.cell = cell, .backend = backend, .sizes = sizes_of({}, cell)};
  result.timed = 100;
  result.median_ms = ms;
  result.min_ms = ms;
  result.bandwidth_gbps = static_cast<double>(result.sizes.total) / ms * 1e-6;
  result.peak_gbps = 25.25;
  result.plain_gbps = 25;
  return result;
}

constexpr BenchCell kLarge{.tokens_per_block = 64,
                           .num_blocks = 128,
                           .pattern = CopyPattern::kLwToFc,
                           .direction = CopyDirection::kH2d};

/// The grid of the transcript in the README of the reference's kernels.
KvbenchOptions reference_grid() {
  KvbenchOptions options;
  options.num_blocks = {1, 128};
  options.tokens_per_block = {16, 64};
  options.directions = {CopyDirection::kH2d};
  options.backends = {CopyBackend::kVectorized, CopyBackend::kBatched};
  return options;
}

TEST(BenchReport, TheHeaderIsThatOfTheReferenceWithTwoLinesMore) {
  EXPECT_EQ(header_text(reference_grid(), {.name = "cuda:0", .model = "A GPU", .has_batch = true}),
            "KV Cache Transfer Benchmark\n"
            "  Model: Llama 3.1 70B (bf16)\n"
            "  Layers: 80, KV heads: 8, Head dim: 128, Outer dim: 2\n"
            "  Warmup: 10, Timed: 100\n"
            "  Batch API available: true\n"
            "  tokens_per_block: [16, 64]\n"
            "  num_blocks: [1, 128]\n"
            "  directions: [h2d]\n"
            "  patterns: [fc_to_fc, lw_to_fc]\n"
            "  backends: [vectorized, batched]\n"
            "  Total tests: 16\n"
            "  Device: cuda:0 (A GPU)\n"
            "  Block ids: in any order\n"
            "\n");
}

TEST(BenchReport, LinesAreThoseOfTheReference) {
  EXPECT_EQ(
      block_text({}, 16),
      "--- tokens_per_block=16, inner=32768 bytes (32 KB), block=5242880 bytes (5.0 MB) ---\n");
  EXPECT_EQ(progress_text(1, 16, {}, CopyBackend::kVectorized),
            "  [1/16] tpb=16 N=  1 fc_to_fc h2d    vectorized   ... ");
  EXPECT_EQ(progress_text(16, 16, kLarge, CopyBackend::kBatched),
            "  [16/16] tpb=64 N=128 lw_to_fc h2d    batched      ... ");
  EXPECT_EQ(outcome_text(result_of(kLarge, CopyBackend::kBatched, 110.0665)),
            "24.39 GB/s (110.0665 ms)\n");
}

/// The reference's columns come first and are written as it writes them.
TEST(BenchReport, CsvHasTheColumnsOfTheReferenceAndTwoMore) {
  EXPECT_EQ(csv_header(),
            "tokens_per_block,num_blocks,pattern,direction,backend,total_bytes,inner_bytes,"
            "copy_size,num_copies,median_ms,bandwidth_gbps"
            ",peak_gbps,share\n");
  EXPECT_EQ(csv_row(result_of(kLarge, CopyBackend::kBatched, 110.0665)),
            "64,128,lw_to_fc,h2d,batched,2684354560,131072,131072,20480,110.0665,24.39"
            ",25.25,0.966\n");
  EXPECT_EQ(csv_row(result_of({}, CopyBackend::kVectorized, 1.8686)),
            "16,1,fc_to_fc,h2d,vectorized,5242880,32768,5242880,1,1.8686,2.81,25.25,0.111\n");
}

TEST(BenchReport, APermutationIsCopiesOfAHeadOfAToken) {
  for (const CopyPattern pattern : {CopyPattern::kNhdToUniversal, CopyPattern::kUniversalToNhd}) {
    const CellSizes sizes = sizes_of({}, {.num_blocks = 2, .pattern = pattern});
    EXPECT_EQ(sizes.copy, 256u);
    EXPECT_EQ(sizes.num_copies, 2u * 160 * 16 * 8);
    EXPECT_EQ(sizes.total, 2u * 5'242'880);
  }
}

TEST(BenchReport, AutoIsComparedWithTheFastestFixedBackendOfItsCell) {
  const std::vector<TestResult> results = {
      result_of({}, CopyBackend::kVectorized, 4), result_of({}, CopyBackend::kBatched, 2),
      result_of({}, CopyBackend::kAuto, 2.5),     result_of({}, CopyBackend::kTransferMgr, 1),
      result_of(kLarge, CopyBackend::kAuto, 10),  result_of(kLarge, CopyBackend::kMemcpyAsync, 10)};
  const std::vector<AutoShare> shares = compare_auto(results);
  ASSERT_THAT(shares, SizeIs(2));
  EXPECT_EQ(shares[0].best, CopyBackend::kBatched);
  EXPECT_DOUBLE_EQ(shares[0].share, 0.8);
  EXPECT_DOUBLE_EQ(shares[1].share, 1);
  const std::string text = auto_text(shares);
  EXPECT_THAT(text, HasSubstr("tpb=16 N=  1 fc_to_fc h2d    batched      0.800  below the bar\n"));
  EXPECT_THAT(text, HasSubstr("tpb=64 N=128 lw_to_fc h2d    memcpy_async 1.000\n"));
  EXPECT_THAT(text, HasSubstr("worst 0.800: tpb=16 N=  1 fc_to_fc h2d    against batched; "
                              "1 of 2 cells below 0.97\n"));
}

TEST(BenchReport, WithoutAFixedBackendThereIsNothingToCompare) {
  const std::vector<TestResult> results = {result_of({}, CopyBackend::kAuto, 1),
                                           result_of(kLarge, CopyBackend::kBatched, 1)};
  EXPECT_THAT(compare_auto(results), SizeIs(0));
  EXPECT_EQ(auto_text({}), "");
}

TEST(BenchReport, WhatWasNotRunIsALineForEachBackendAndReason) {
  const std::vector<NotRun> not_run = {{{}, CopyBackend::kBatched, "too old"},
                                       {kLarge, CopyBackend::kBatched, "too old"},
                                       {kLarge, CopyBackend::kAuto, "no memory"}};
  EXPECT_EQ(not_run_text(not_run),
            "not run: batched (2 tests): too old\n"
            "not run: auto (1 test): no memory\n");
}

TEST(BenchReport, JsonHasAllOfIt) {
  TestResult chosen = result_of(kLarge, CopyBackend::kAuto, 110);
  chosen.chosen = "kernel";
  const BenchReport report{
      .device = {.name = "cuda:0", .model = "A GPU", .driver = "580", .driver_version = 13000},
      .plain = {{CopyDirection::kH2d, 5'242'880, 25}},
      .results = {chosen, result_of(kLarge, CopyBackend::kBatched, 100)},
      .not_run = {{{}, CopyBackend::kVectorized, "why"}}};
  const auto json = nlohmann::json::parse(report_json(reference_grid(), report));
  EXPECT_EQ(json["format"], "kvbench");
  EXPECT_EQ(json["version"], 1);
  EXPECT_EQ(json["device"]["model"], "A GPU");
  EXPECT_EQ(json["options"]["layers"], 80);
  EXPECT_EQ(json["options"]["backends"], nlohmann::json({"vectorized", "batched"}));
  EXPECT_EQ(json["plain"][0]["total_bytes"], 5'242'880);
  ASSERT_EQ(json["results"].size(), 2u);
  const auto& first = json["results"][0];
  EXPECT_EQ(first["backend"], "auto");
  EXPECT_EQ(first["chosen"], "kernel");
  // Every column of the CSV is there under its name.
  std::string columns = csv_header();
  columns.pop_back();
  for (size_t begin = 0; begin < columns.size();) {
    const size_t end = std::min(columns.find(',', begin), columns.size());
    EXPECT_TRUE(first.contains(columns.substr(begin, end - begin))) << columns.substr(begin);
    begin = end + 1;
  }
  EXPECT_EQ(json["not_run"][0]["reason"], "why");
  EXPECT_NEAR(json["auto"][0]["auto_share"].get<double>(), 0.909, 0.001);
}

}  // namespace
}  // namespace kvbm
