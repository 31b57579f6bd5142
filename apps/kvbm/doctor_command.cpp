// SPDX-License-Identifier: Apache-2.0
// kvbm doctor: what this machine offers to this build, one line a thing.
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>

#include <fmt/format.h>

#include "kvbm/base/text.hpp"

#include "apps/kvbm/command.hpp"
#include "apps/kvbm/doctor_checks.hpp"

namespace kvbm {
namespace {

std::string_view colour_of(DoctorStatus status) {
  switch (status) {
    case DoctorStatus::kOk:
      return "32";
    case DoctorStatus::kWarn:
      return "33";
    case DoctorStatus::kMissing:
      return "31";
  }
  return "0";
}

std::string line_of(const DoctorCheck& check, const DoctorFinding& finding, TextStyle style) {
  std::string status = fmt::format("{:<8}", to_string(finding.status));
  if (style.colours == TextStyle::Colours::kOn) {
    status = fmt::format("\x1b[{}m{}\x1b[0m", colour_of(finding.status), status);
  }
  std::string line = fmt::format("{}{:<15}{}", status, check.name, finding.found);
  if (!finding.mend.empty()) line.append(" -> ").append(finding.mend);
  return line + "\n";
}

Result<ExitCode> examine(const DoctorOptions& options, Console& console) {
  std::error_code error;
  if (!std::filesystem::is_directory(options.disk_dir, error)) {
    return make_error(ErrorCode::kInvalidArgument,
                      format_text("--disk-dir {} is no folder", options.disk_dir.native()));
  }
  for (const DoctorCheck& check : doctor_checks()) {
    console.print(line_of(check, check.look(options), console.style()));
  }
  return ExitCode::kSuccess;
}

}  // namespace

Command add_doctor_command(CLI::App& program, Console& console) {
  CLI::App* app = add_subcommand(program, "doctor",
                                 "Tells what this machine offers and how to mend what is missing");
  auto options = std::make_shared<DoctorOptions>();
  options->disk_dir = ".";
  app->add_option("--disk-dir", options->disk_dir, "Where G3 would lie")
      ->capture_default_str()
      ->type_name("DIR");
  return {app, [options, &console] { return examine(*options, console); }};
}

}  // namespace kvbm
