// SPDX-License-Identifier: Apache-2.0
// What kvbench prints: header, progress, CSV, comparison, JSON.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "apps/kvbench/bench_cell.hpp"
#include "apps/kvbench/kvbench_options.hpp"

namespace kvbm {

/// One line of the CSV. GB are 10^9 bytes.
struct TestResult {
  BenchCell cell;
  CopyBackend backend = CopyBackend::kAuto;
  CellSizes sizes;
  uint32_t timed = 0;
  double median_ms = 0;
  double min_ms = 0;
  double bandwidth_gbps = 0;
  double peak_gbps = 0;     ///< of the largest plain copy in this direction
  double plain_gbps = 0;    ///< of one plain copy of as many bytes
  std::string chosen = {};  ///< by the planner, and why

  [[nodiscard]] double share() const noexcept { return bandwidth_gbps / peak_gbps; }
};

struct NotRun {
  BenchCell cell;
  CopyBackend backend = CopyBackend::kAuto;
  std::string reason;
};

struct PlainCopy {
  CopyDirection direction = CopyDirection::kH2d;
  uint64_t bytes = 0;
  double gbps = 0;
};

struct BenchDevice {
  std::string name = {};  ///< "cuda:0"
  std::string model = {};
  std::string driver = {};
  int32_t driver_version = 0;
  bool has_batch = false;
};

struct BenchReport {
  BenchDevice device = {};
  std::vector<PlainCopy> plain = {};
  std::vector<TestResult> results = {};
  std::vector<NotRun> not_run = {};
};

/// Lines as the reference's kvbench prints them, each with its line break.
[[nodiscard]] std::string header_text(const KvbenchOptions& options, const BenchDevice& device);
[[nodiscard]] std::string block_text(const BenchShape& shape, uint32_t tokens_per_block);
[[nodiscard]] std::string csv_header();
[[nodiscard]] std::string csv_row(const TestResult& result);
/// "  [1/16] tpb=16 N=  1 fc_to_fc h2d    vectorized   ... ", without a line break.
[[nodiscard]] std::string progress_text(size_t number, size_t total, const BenchCell& cell,
                                        CopyBackend backend);
[[nodiscard]] std::string outcome_text(const TestResult& result);

/// What was not run, a line for each backend and reason; empty: all was run.
[[nodiscard]] std::string not_run_text(std::span<const NotRun> not_run);

/// The planner's choice beside the fastest of the fixed backends in a cell that has both.
struct AutoShare {
  BenchCell cell;
  CopyBackend best = CopyBackend::kVectorized;
  double share = 0;  ///< of the best one's rate
};
[[nodiscard]] std::vector<AutoShare> compare_auto(std::span<const TestResult> results);
/// The least share that the planner is to have.
inline constexpr double kLeastAutoShare = 0.97;
/// A line a cell, and the worst; empty without any.
[[nodiscard]] std::string auto_text(std::span<const AutoShare> shares);

[[nodiscard]] std::string report_json(const KvbenchOptions& options, const BenchReport& report);

}  // namespace kvbm
