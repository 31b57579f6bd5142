// SPDX-License-Identifier: Apache-2.0
// KvbenchOptions: what the command line of kvbench says.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "apps/kvbench/bench_cell.hpp"

namespace kvbm {

/// Names and defaults of the first seven are those of the reference's kvbench.
struct KvbenchOptions {
  std::vector<uint32_t> num_blocks = {1, 2, 4, 8, 16, 32, 64, 128, 256};
  std::vector<uint32_t> tokens_per_block = {16, 32, 64};
  std::vector<CopyPattern> patterns = {CopyPattern::kFcToFc, CopyPattern::kLwToFc};
  std::vector<CopyDirection> directions{std::begin(kCopyDirections), std::end(kCopyDirections)};
  std::vector<CopyBackend> backends{std::begin(kCopyBackends), std::end(kCopyBackends)};
  uint32_t warmup = 10;
  uint32_t iters = 100;

  BenchShape shape = {};
  bool sequential_ids = false;
  uint32_t test_ms = 0;  ///< a test ends after so long, with kLeastTimed copies; 0: no limit
  std::string device = {};
  std::string calibration_dir = {};
  std::optional<std::string> json = std::nullopt;

  /// In the order of the tests: by tokens, blocks, pattern, direction.
  [[nodiscard]] std::vector<BenchCell> cells() const;
};

inline constexpr uint32_t kLeastTimed = 5;

/// The options; the target outlives the parsing.
void add_kvbench_options(CLI::App& app, KvbenchOptions& options);
/// Those of BenchShape.
void add_shape_options(CLI::App& app, BenchShape& shape);

}  // namespace kvbm
