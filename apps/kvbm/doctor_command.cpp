// SPDX-License-Identifier: Apache-2.0
// kvbm doctor: what this machine offers to this build, or what a running kvbm counts, one line a
// thing.
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>

#include <fmt/format.h>

#include "kvbm/base/text.hpp"
#include "kvbm/runtime/metrics_endpoint.hpp"
#include "kvbm/runtime/metrics_page.hpp"

#include "apps/kvbm/command.hpp"
#include "apps/kvbm/doctor_checks.hpp"
#include "apps/kvbm/metrics_checks.hpp"

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

std::string line_of(std::string_view name, const DoctorFinding& finding, TextStyle style) {
  std::string status = fmt::format("{:<8}", to_string(finding.status));
  if (style.colours == TextStyle::Colours::kOn) {
    status = fmt::format("\x1b[{}m{}\x1b[0m", colour_of(finding.status), status);
  }
  std::string line = fmt::format("{}{:<15}{}", status, name, finding.found);
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
    console.print(line_of(check.name, check.look(options), console.style()));
  }
  return ExitCode::kSuccess;
}

constexpr size_t kMostPageBytes = size_t{64} << 20;

Result<std::string> read_page(const std::string& where) {
  if (where.find("://") != std::string::npos) return read_metrics_page(where);
  std::ifstream in(where, std::ios::binary);
  std::string text(kMostPageBytes + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(in.gcount()));
  if (text.empty() || text.size() > kMostPageBytes) {
    return make_error(ErrorCode::kNotFound,
                      format_text("cannot read {}: neither a URL such as "
                                  "http://localhost:6880/metrics nor a file with a page",
                                  where));
  }
  return text;
}

Result<ExitCode> examine_page(const std::string& where, Console& console) {
  KVBM_ASSIGN_OR_RETURN(const std::string text, read_page(where));
  const auto page = MetricsPage::parse(text);
  if (!page) return make_error(Error(page.error()).with_context(where));
  const auto findings = examine_metrics(*page);
  if (!findings) return make_error(Error(findings.error()).with_context(where));
  for (const NamedFinding& one : *findings) {
    console.print(line_of(one.name, one.finding, console.style()));
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
  auto metrics = std::make_shared<std::string>();
  app->add_option("--metrics", *metrics,
                  "Look at a running kvbm instead: its page of metrics, or that of its engine")
      ->type_name("URL|FILE")
      ->excludes("--disk-dir");
  return {app, [options, metrics, &console] {
            return metrics->empty() ? examine(*options, console) : examine_page(*metrics, console);
          }};
}

}  // namespace kvbm
