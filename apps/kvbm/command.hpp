// SPDX-License-Identifier: Apache-2.0
// Command: one subcommand of the program, and what all of them share.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "kvbm/base/result.hpp"

#include "apps/kvbm/console.hpp"

namespace kvbm {

struct Command {
  CLI::App* app = nullptr;
  std::function<Result<ExitCode>()> run;  ///< after the command line was read
};

/// Each registers itself with the program. The console outlives what they return.
[[nodiscard]] std::vector<Command> add_trace_commands(CLI::App& program, Console& console);
[[nodiscard]] Command add_replay_command(CLI::App& program, Console& console);
[[nodiscard]] std::vector<Command> add_config_commands(CLI::App& program, Console& console);
[[nodiscard]] std::vector<Command> add_bench_commands(CLI::App& program, Console& console);
[[nodiscard]] Command add_plan_command(CLI::App& program, Console& console);
[[nodiscard]] Command add_doctor_command(CLI::App& program, Console& console);

/// A subcommand with --help and --version.
[[nodiscard]] CLI::App* add_subcommand(CLI::App& parent, const std::string& name,
                                       const std::string& description);

struct CountRange {
  uint64_t low = 0;
  uint64_t high = std::numeric_limits<uint64_t>::max();
};

/// An option that is a whole number in decimal digits, within the range.
CLI::Option* add_count(CLI::App& app, const std::string& name, uint64_t& target,
                       const std::string& help, CountRange range = {});
CLI::Option* add_count(CLI::App& app, const std::string& name, uint32_t& target,
                       const std::string& help, CountRange range = {});
CLI::Option* add_count(CLI::App& app, const std::string& name, std::optional<uint64_t>& target,
                       const std::string& help, CountRange range = {});

/// An option that is a time in milliseconds, at most a day.
CLI::Option* add_milliseconds(CLI::App& app, const std::string& name,
                              std::chrono::milliseconds& target, const std::string& help);

/// An option that is a size such as 64KiB or 1.5GB, at least one byte.
CLI::Option* add_size(CLI::App& app, const std::string& name, uint64_t& target,
                      const std::string& help);
CLI::Option* add_size(CLI::App& app, const std::string& name, std::optional<uint64_t>& target,
                      const std::string& help);

/// --device, empty if not given.
CLI::Option* add_device(CLI::App& app, std::string& target);
/// The device that `asked` names; empty: the first GPU, or the host where there is none.
[[nodiscard]] std::string device_or_default(const std::string& asked);

/// --calibration-dir, which KVBM_CALIBRATION_DIR gives as well.
CLI::Option* add_calibration_dir(CLI::App& app, std::string& target);

/// What a reading command does on a signal.
[[nodiscard]] inline tl::unexpected<Error> interruption() {
  return make_error(ErrorCode::kCancelled, "interrupted");
}

}  // namespace kvbm
