// SPDX-License-Identifier: Apache-2.0
#include "apps/kvbm/program.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <exception>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>

#include "kvbm/base/text.hpp"

#include "apps/kvbm/build_info.hpp"
#include "apps/kvbm/command.hpp"
#include "apps/kvbm/console.hpp"
#include "apps/kvbm/interrupt.hpp"

namespace kvbm {
namespace {

std::string path_of(const CLI::App& program) {
  std::string path = program.get_name();
  const CLI::App* app = &program;
  while (!app->get_subcommands().empty()) {
    app = app->get_subcommands().front();
    path.append(" ").append(app->get_name());
  }
  return path;
}

ExitCode end(Console& console, ExitCode code) {
  const Status closed = console.close();
  if (closed) return code;
  console.complain(closed.error());
  return ExitCode::kFailed;
}

int run(const Program& what, int argc, char** argv) {
  Console console(what.name);
  CLI::App program(what.description, what.name);
  program.set_version_flag("--version", kProgramVersion, "Print the version and exit");
  program.set_help_flag("-h,--help", "Print this help and exit");
  program.footer(what.footer);
  const std::vector<Command> commands = what.add_commands(program, console);

  try {
    program.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    console.print(program.help());  // that of the innermost command
    return static_cast<int>(end(console, ExitCode::kSuccess));
  } catch (const CLI::CallForVersion&) {
    console.print(what.name + " " + kProgramVersion + "\n");
    return static_cast<int>(end(console, ExitCode::kSuccess));
  } catch (const CLI::ParseError& error) {
    // A word that is no command is told as a command that is missing.
    const std::vector<std::string> unknown = program.remaining(true);
    const bool no_command =
        error.get_exit_code() == static_cast<int>(CLI::ExitCodes::RequiredError);
    std::string message = no_command && !unknown.empty()
                              ? format_text("'{}' was not expected", unknown.front())
                              : std::string(error.what());
    message.append(" (see ").append(path_of(program)).append(" --help)");
    console.complain(message);
    return static_cast<int>(ExitCode::kFailed);
  }

  catch_interrupts();
  for (const Command& command : commands) {
    if (!command.app->parsed()) continue;
    const Result<ExitCode> result = command.run();
    if (result) return static_cast<int>(end(console, *result));
    // Whatever fails after a signal fails because of it: the end of a pipe comes with the signal,
    // say.
    if (interrupted()) {
      console.complain("interrupted");
      return interrupt_status();
    }
    console.complain(result.error());
    return static_cast<int>(ExitCode::kFailed);
  }
  return static_cast<int>(ExitCode::kFailed);  // not reached: a subcommand is required
}

// A file that takes the number of a closed standard stream would get what is printed there. What
// stands in fails as a closed descriptor does, so that lost output is still told.
void fill_standard_descriptors() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(fd, F_GETFD) >= 0 || errno != EBADF) continue;
    static_cast<void>(::open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY));
  }
}

void complain_of(const Program& program, const char* what) {
  try {
    Console(program.name).complain(what);
  } catch (...) {  // without memory for a message the exit status has to do
  }
}

}  // namespace

int run_program(const Program& program, int argc, char** argv) {
  fill_standard_descriptors();
  try {
    return run(program, argc, argv);
  } catch (const std::bad_alloc&) {
    complain_of(program, "out of memory");
  } catch (const std::exception& error) {
    complain_of(program, error.what());
  }
  return static_cast<int>(ExitCode::kFailed);
}

}  // namespace kvbm
