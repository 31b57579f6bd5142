// SPDX-License-Identifier: Apache-2.0
// run_copy_bench: measures every test of a grid, and says so as it goes.
#pragma once

#include <atomic>
#include <functional>
#include <string_view>

#include "kvbm/base/log.hpp"
#include "kvbm/base/result.hpp"

#include "apps/kvbench/bench_report.hpp"
#include "apps/kvbench/kvbench_options.hpp"

namespace kvbm {

/// Where it prints. Ownership: borrows the flag.
struct BenchOutput {
  std::function<void(std::string_view)> note;  ///< for people, as it comes
  std::function<void(std::string_view)> row;   ///< CSV, whole lines
  const std::atomic<bool>* interrupted = nullptr;
};

/// Every copy is checked for its bytes before it is timed. A test that cannot run here is left out,
/// with the reason in the report. options.json is the caller's affair.
/// Errors: kCorrupt (a copy moved wrong bytes), kCancelled (interrupted), those of open_device.
[[nodiscard]] Result<BenchReport> run_copy_bench(const KvbenchOptions& options, LogSink& log,
                                                 const BenchOutput& output);

}  // namespace kvbm
