// SPDX-License-Identifier: Apache-2.0
// The program kvbench.
#include <memory>
#include <vector>

#include <CLI/CLI.hpp>

#include "apps/kvbench/kvbench_command.hpp"
#include "apps/kvbench/kvbench_options.hpp"
#include "apps/kvbm/program.hpp"

namespace kvbm {
namespace {

constexpr char kFooter[] =
    "CSV goes to standard output, all else to standard error; GB are 10^9 bytes, times are those "
    "of\n"
    "the GPU's clock (of transfer_mgr, and on the host: from the call to the end).\n"
    "Exit status: 0 all went well; 1 a copy moved wrong bytes; 2 it could not be done;\n"
    "128 + the signal's number: interrupted.";

std::vector<Command> add_commands(CLI::App& program, Console& console) {
  auto options = std::make_shared<KvbenchOptions>();
  add_kvbench_options(program, *options);
  return {{&program, [options, &console] { return run_kvbench(*options, console); }}};
}

}  // namespace
}  // namespace kvbm

int main(int argc, char** argv) {
  return kvbm::run_program({.name = "kvbench",
                            .description = "Measures copies of KV blocks by every way there is.",
                            .footer = kvbm::kFooter,
                            .add_commands = kvbm::add_commands},
                           argc, argv);
}
