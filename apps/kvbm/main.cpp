// SPDX-License-Identifier: Apache-2.0
// The program kvbm.
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>

#include "apps/kvbm/command.hpp"
#include "apps/kvbm/console.hpp"
#include "apps/kvbm/program.hpp"

namespace kvbm {
namespace {

constexpr char kFooter[] =
    "Exit status: 0 all went well; 1 a replay or a benchmark found wrong bytes, or a replay other\n"
    "outcomes than were recorded; 2 it could not be done, and the reason is on standard error;\n"
    "128 + the signal's number: interrupted.";

std::vector<Command> add_commands(CLI::App& program, Console& console) {
  program.require_subcommand(1);
  std::vector<Command> commands;
  commands.push_back(add_replay_command(program, console));
  for (auto add : {add_trace_commands, add_config_commands, add_bench_commands}) {
    for (Command& command : add(program, console)) commands.push_back(std::move(command));
  }
  commands.push_back(add_plan_command(program, console));
  commands.push_back(add_doctor_command(program, console));
  return commands;
}

}  // namespace
}  // namespace kvbm

int main(int argc, char** argv) {
  return kvbm::run_program(
      {.name = "kvbm",
       .description =
           "KV block manager: replays traces, makes them, looks at this machine and measures it.",
       .footer = kvbm::kFooter,
       .add_commands = kvbm::add_commands},
      argc, argv);
}
