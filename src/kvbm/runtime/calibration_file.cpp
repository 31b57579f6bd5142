// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/calibration_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <fstream>
#include <optional>
#include <utility>

#include <nlohmann/json.hpp>

#include "kvbm/base/text.hpp"
#include "kvbm/memory/file.hpp"

namespace kvbm {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kFormat = "kvbm-calibration";
constexpr size_t kMaxNameBytes = 256;
constexpr size_t kMaxRates = 64;
constexpr uint64_t kMaxRunBytes = uint64_t{1} << 40;
constexpr double kMaxCost = 1e9;   // microseconds
constexpr double kMaxRate = 1e15;  // bytes per second

constexpr TransferRoute kMeasuredRoutes[] = {
    TransferRoute::kHostToDevice, TransferRoute::kDeviceToHost, TransferRoute::kDeviceToDevice};

tl::unexpected<Error> damaged(std::string reason) {
  return make_error(ErrorCode::kInvalidArgument, std::move(reason));
}

/// Objects with exactly so many members.
Result<const Json*> object_with(const Json& parent, std::string_view name, size_t num_members) {
  const auto found = parent.find(name);
  if (found == parent.end() || !found->is_object() || found->size() != num_members) {
    return damaged(format_text("\"{}\" is not there, or is not as this version has it", name));
  }
  return &*found;
}

Result<std::string> text_in(const Json& object, std::string_view name) {
  const auto found = object.find(name);
  if (found == object.end() || !found->is_string() ||
      found->get_ref<const std::string&>().size() > kMaxNameBytes) {
    return damaged(format_text("\"{}\" is not a short text", name));
  }
  return found->get<std::string>();
}

Result<double> number_in(const Json& value, std::string_view name, double low, double high) {
  if (!value.is_number()) return damaged(format_text("\"{}\" is no number", name));
  const auto number = value.get<double>();
  if (!(number >= low && number <= high)) {
    return damaged(format_text("\"{}\" is out of range", name));
  }
  return number;
}

Result<int32_t> version_in(const Json& object, std::string_view name) {
  const auto found = object.find(name);
  if (found == object.end() || !found->is_number_unsigned() ||
      found->get<uint64_t>() > uint64_t{1} << 30) {
    return damaged(format_text("\"{}\" is no version", name));
  }
  return found->get<int32_t>();
}

Result<CopyCost> cost_in(const Json& object, std::string_view name) {
  const auto found = object.find(name);
  if (found == object.end()) return damaged(format_text("there is no \"{}\"", name));
  KVBM_ASSIGN_OR_RETURN(const double cost, number_in(*found, name, 0, kMaxCost));
  return CopyCost(cost);
}

Json to_json(const FormCost& cost) {
  Json rates = Json::array();
  for (const RunRate& rate : cost.rates) {
    rates.push_back(Json::array({rate.run_bytes, rate.bytes_per_second}));
  }
  return {{"submission_us", cost.submission.count()},
          {"step_us", cost.step.count()},
          {"rates", std::move(rates)}};
}

Result<FormCost> form_of(const Json& object) {
  FormCost cost;
  KVBM_ASSIGN_OR_RETURN(cost.submission, cost_in(object, "submission_us"));
  KVBM_ASSIGN_OR_RETURN(cost.step, cost_in(object, "step_us"));
  const auto rates = object.find("rates");
  if (rates == object.end() || !rates->is_array() || rates->empty() || rates->size() > kMaxRates) {
    return damaged("\"rates\" is no list of rates");
  }
  for (const Json& rate : *rates) {
    if (!rate.is_array() || rate.size() != 2 || !rate[0].is_number_unsigned()) {
      return damaged("\"rates\" is no list of rates");
    }
    const auto run_bytes = rate[0].get<uint64_t>();
    const uint64_t before = cost.rates.empty() ? 0 : cost.rates.back().run_bytes;
    if (run_bytes <= before || run_bytes > kMaxRunBytes) {
      return damaged("the runs of \"rates\" do not rise");
    }
    // The lowest is far below any link, and far enough from zero to divide by.
    KVBM_ASSIGN_OR_RETURN(const double per_second, number_in(rate[1], "rates", 1, kMaxRate));
    cost.rates.push_back({.run_bytes = run_bytes, .bytes_per_second = per_second});
  }
  return cost;
}

Result<RouteCost> route_of(const Json& routes, TransferRoute route) {
  const auto found = routes.find(to_string(route));
  const bool has_ring = found != routes.end() && found->contains(to_string(CopyForm::kRing));
  const size_t num_forms = has_ring ? kNumCopyForms : kNumCopyForms - 1;
  KVBM_ASSIGN_OR_RETURN(const Json* forms, object_with(routes, to_string(route), num_forms));
  RouteCost cost;
  for (size_t i = 0; i < num_forms; ++i) {
    KVBM_ASSIGN_OR_RETURN(const Json* form,
                          object_with(*forms, to_string(static_cast<CopyForm>(i)), 3));
    KVBM_ASSIGN_OR_RETURN(cost[i], form_of(*form));
  }
  return cost;
}

Result<CalibrationIdentity> identity_of(const Json& object) {
  CalibrationIdentity identity;
  KVBM_ASSIGN_OR_RETURN(identity.cpu, text_in(object, "cpu"));
  KVBM_ASSIGN_OR_RETURN(identity.device.name, text_in(object, "device"));
  KVBM_ASSIGN_OR_RETURN(identity.device.pci_address, text_in(object, "pci_address"));
  KVBM_ASSIGN_OR_RETURN(identity.device.driver, text_in(object, "driver"));
  KVBM_ASSIGN_OR_RETURN(identity.device.driver_version, version_in(object, "driver_cuda"));
  KVBM_ASSIGN_OR_RETURN(identity.device.runtime_version, version_in(object, "runtime_cuda"));
  return identity;
}

/// Names are cut, so that what is written can be read.
std::string short_name(const std::string& name) { return name.substr(0, kMaxNameBytes / 4); }

}  // namespace

CalibrationIdentity identify(const DeviceIdentity& device) {
  CalibrationIdentity identity{.cpu = {}, .device = device};
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; identity.cpu.empty() && std::getline(in, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos || !line.starts_with("model name")) continue;
    const size_t begin = line.find_first_not_of(' ', colon + 1);
    if (begin != std::string::npos) identity.cpu = short_name(line.substr(begin));
  }
  return identity;
}

std::string format_calibration(const SavedCalibration& saved) {
  const DeviceIdentity& device = saved.identity.device;
  Json routes = Json::object();
  for (const TransferRoute route : kMeasuredRoutes) {
    const RouteCost* const cost = saved.calibration.find(route);
    if (cost == nullptr) continue;
    Json& forms = routes[std::string(to_string(route))] = Json::object();
    for (size_t i = 0; i < kNumCopyForms; ++i) {
      if ((*cost)[i].rates.empty()) continue;  // no ring
      forms[std::string(to_string(static_cast<CopyForm>(i)))] = to_json((*cost)[i]);
    }
  }
  const Json document = {{"format", kFormat},
                         {"version", kCalibrationVersion},
                         {"measured_on",
                          {{"cpu", short_name(saved.identity.cpu)},
                           {"device", short_name(device.name)},
                           {"pci_address", short_name(device.pci_address)},
                           {"driver", short_name(device.driver)},
                           {"driver_cuda", device.driver_version},
                           {"runtime_cuda", device.runtime_version}}},
                         {"routes", std::move(routes)}};
  return document.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

Result<SavedCalibration> parse_calibration(std::string_view text) {
  if (text.size() >= kMaxCalibrationBytes) return damaged("it is longer than a calibration is");
  const Json document = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!document.is_object()) return damaged("it is no JSON object");
  const auto format = document.find("format");
  if (format == document.end() || *format != kFormat) {
    return damaged(format_text("its \"format\" is not \"{}\"", kFormat));
  }
  KVBM_ASSIGN_OR_RETURN(const int32_t version, version_in(document, "version"));
  if (version != kCalibrationVersion) {
    return make_error(
        ErrorCode::kUnsupported,
        format_text("it is of version {}, this build is of {}", version, kCalibrationVersion));
  }
  SavedCalibration saved;
  KVBM_ASSIGN_OR_RETURN(const Json* measured_on, object_with(document, "measured_on", 6));
  KVBM_ASSIGN_OR_RETURN(saved.identity, identity_of(*measured_on));
  const auto routes = document.find("routes");
  if (routes == document.end() || !routes->is_object() || document.size() != 4) {
    return damaged("\"routes\" is not there, or something else is");
  }
  size_t num_routes = 0;
  for (const TransferRoute route : kMeasuredRoutes) {
    if (!routes->contains(to_string(route))) continue;
    KVBM_ASSIGN_OR_RETURN(RouteCost cost, route_of(*routes, route));
    saved.calibration.set(route, std::move(cost));
    ++num_routes;
  }
  if (num_routes != routes->size()) return damaged("\"routes\" names one that is not measured");
  return saved;
}

Result<SavedCalibration> read_calibration_file(const std::string& path) {
  const auto cannot_read = [&path](int error_number) {
    return errno_error(format_text("cannot read {}", path), error_number);
  };
  // A pipe that nobody writes to is not waited for.
  const File file(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  struct stat facts {};
  if (!file || ::fstat(file.fd(), &facts) != 0) return cannot_read(errno);
  if (!S_ISREG(facts.st_mode)) return damaged(format_text("{} is no file", path));
  std::string text(kMaxCalibrationBytes, '\0');
  size_t size = 0;
  while (size < text.size()) {
    const ssize_t got = ::read(file.fd(), text.data() + size, text.size() - size);
    if (got == 0) break;
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return cannot_read(errno);
    size += static_cast<size_t>(got);
  }
  text.resize(size);
  auto saved = parse_calibration(text);
  if (!saved) return make_error(Error(std::move(saved).error()).with_context(path));
  return saved;
}

}  // namespace kvbm
