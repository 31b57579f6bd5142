// SPDX-License-Identifier: Apache-2.0
// kvbench as a command, of its own program and of kvbm.
#pragma once

#include "kvbm/base/result.hpp"

#include "apps/kvbench/kvbench_options.hpp"
#include "apps/kvbm/console.hpp"

namespace kvbm {

/// CSV to standard output, all else to standard error. Wrong bytes are told and end it with
/// ExitCode::kMismatch. Errors: those of run_copy_bench and of the JSON file.
[[nodiscard]] Result<ExitCode> run_kvbench(const KvbenchOptions& options, Console& console);

}  // namespace kvbm
