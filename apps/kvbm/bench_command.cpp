// SPDX-License-Identifier: Apache-2.0
// kvbm bench: what this machine's copies cost.
#include <chrono>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "kvbm/base/thread_executor.hpp"
#include "kvbm/base/units.hpp"
#include "kvbm/runtime/calibration_cache.hpp"
#include "kvbm/runtime/devices.hpp"
#include "kvbm/transfer/calibration.hpp"

#include "apps/kvbench/kvbench_command.hpp"
#include "apps/kvbench/kvbench_options.hpp"
#include "apps/kvbm/command.hpp"
#include "apps/kvbm/interrupt.hpp"

namespace kvbm {
namespace {

using Source = CalibrationFound::Source;

struct CalibrateArguments {
  std::string device;
  std::string folder;
  bool refresh = false;
  bool json = false;
};

struct Measured {
  std::string device;  ///< by which it was opened
  CalibrationFound found;
  Duration took{};
};

constexpr TransferRoute kRoutes[] = {TransferRoute::kHostToDevice, TransferRoute::kDeviceToHost,
                                     TransferRoute::kDeviceToDevice};

std::string version_text(int32_t version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

std::string identity_text(const CalibrationIdentity& identity) {
  const DeviceIdentity& device = identity.device;
  std::string text = fmt::format("{} at {}", device.name, device.pci_address);
  if (!device.driver.empty()) text.append(", driver ").append(device.driver);
  return text + fmt::format(", CUDA {} in the driver and {} in this build",
                            version_text(device.driver_version),
                            version_text(device.runtime_version));
}

std::string origin_text(const Measured& measured) {
  const CalibrationFound& found = measured.found;
  if (found.source == Source::kRead) return fmt::format("read from {}", found.file.native());
  const std::string took = fmt::format("measured in {}", format_duration(measured.took));
  if (found.file.empty()) return took + ", kept nowhere";
  return took + ", kept in " + found.file.native();
}

std::string cost_text(CopyCost cost) { return fmt::format("{:.2f} us", cost.count()); }
std::string rate_text(double bytes_per_second) {
  return fmt::format("{:.2f} GB/s", bytes_per_second * 1e-9);
}

std::string table_of(TransferRoute route, const RouteCost& costs) {
  std::string text = fmt::format("\n{:<17}{:>12}{:>12}", to_string(route), "submission", "a step");
  for (const RunRate& rate : costs.front().rates) {
    text.append(fmt::format("{:>13}", format_size(rate.run_bytes)));
  }
  text.append("\n");
  for (size_t i = 0; i < costs.size(); ++i) {
    const auto form = static_cast<CopyForm>(i);
    if (costs[i].rates.empty()) continue;  // no ring
    text.append(fmt::format("  {:<15}{:>12}{:>12}", to_string(form), cost_text(costs[i].submission),
                            form == CopyForm::kEngineRuns ? "" : cost_text(costs[i].step)));
    for (const RunRate& rate : costs.front().rates) {
      text.append(fmt::format("{:>13}", rate_text(costs[i].bytes_per_second(rate.run_bytes))));
    }
    text.append("\n");
  }
  return text;
}

std::string text_of(const Measured& measured) {
  std::string text = fmt::format("device       {}", measured.device);
  if (measured.found.source == Source::kNotNeeded) {
    return text +
           "\ncalibration  none: this device has one method of copying, so that there is "
           "nothing to choose\n";
  }
  text.append(fmt::format(", {}\n", identity_text(measured.found.identity)));
  text.append(fmt::format("calibration  {}\n", origin_text(measured)));
  text.append(
      "submission: of a batch, beside the rest; a step: of each rectangle, of each piece\n"
      "for a kernel; the rest: how fast contiguous runs of a size move (ring: of long blocks)\n");
  for (const TransferRoute route : kRoutes) {
    const RouteCost* const costs = measured.found.calibration.find(route);
    text.append(costs != nullptr
                    ? table_of(route, *costs)
                    : fmt::format("\n{:<17}not measured: there was no time\n", to_string(route)));
  }
  return text;
}

std::string json_of(const Measured& measured) {
  using Json = nlohmann::ordered_json;
  constexpr std::string_view kSources[] = {"not_needed", "read", "measured"};
  const CalibrationFound& found = measured.found;
  Json json = {{"device", measured.device},
               {"source", kSources[static_cast<size_t>(found.source)]},
               {"file", found.file.empty() ? Json() : Json(found.file.native())},
               {"calibration", Json()}};
  if (found.source != Source::kNotNeeded) {
    json["calibration"] = Json::parse(format_calibration({found.identity, found.calibration}));
  }
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

Result<ExitCode> run_calibrate(const CalibrateArguments& arguments, Console& console) {
  Measured measured{.device = device_or_default(arguments.device), .found = {}};
  ThreadExecutor executor(console.log());
  KVBM_ASSIGN_OR_RETURN(const OpenedDevice opened,
                        open_device({.name = measured.device, .executor = executor}));
  if (interrupted()) return interruption();
  const TimePoint start = executor.clock().now();
  KVBM_ASSIGN_OR_RETURN(measured.found, calibrate({.device = *opened.device,
                                                   .executor = executor,
                                                   .log = console.log(),
                                                   .pinner = opened.pinner,
                                                   .identity = opened.identity,
                                                   .folder = calibration_folder(arguments.folder),
                                                   .measure_anew = arguments.refresh}));
  measured.took = executor.clock().now() - start;
  console.print(arguments.json ? json_of(measured) : text_of(measured));
  return ExitCode::kSuccess;
}

Command add_calibrate(CLI::App& parent, Console& console) {
  CLI::App* app = add_subcommand(
      parent, "calibrate", "Measures what copies cost on a device, or reads what is kept of it");
  auto arguments = std::make_shared<CalibrateArguments>();
  add_device(*app, arguments->device);
  add_calibration_dir(*app, arguments->folder);
  app->add_flag("--refresh", arguments->refresh, "Measure anew, whatever is kept");
  app->add_flag("--json", arguments->json, "Print JSON instead of a table");
  return {app, [arguments, &console] { return run_calibrate(*arguments, console); }};
}

Command add_transfer(CLI::App& parent, Console& console) {
  CLI::App* app = add_subcommand(
      parent, "transfer", "Measures copies of blocks by every way there is, as kvbench does");
  auto options = std::make_shared<KvbenchOptions>();
  add_kvbench_options(*app, *options);
  return {app, [options, &console] { return run_kvbench(*options, console); }};
}

}  // namespace

std::vector<Command> add_bench_commands(CLI::App& program, Console& console) {
  CLI::App* app = add_subcommand(program, "bench", "Measures what copies cost on this machine");
  app->require_subcommand(1);
  return {add_calibrate(*app, console), add_transfer(*app, console)};
}

}  // namespace kvbm
