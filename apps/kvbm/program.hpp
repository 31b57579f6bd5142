// SPDX-License-Identifier: Apache-2.0
// run_program: what main() does in every program.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "apps/kvbm/command.hpp"
#include "apps/kvbm/console.hpp"

namespace kvbm {

struct Program {
  std::string name;
  std::string description;
  std::string footer;
  /// A program without subcommands is a command itself.
  std::function<std::vector<Command>(CLI::App& program, Console& console)> add_commands;
};

/// Reads the command line, runs the command, and returns the exit status.
[[nodiscard]] int run_program(const Program& program, int argc, char** argv);

}  // namespace kvbm
