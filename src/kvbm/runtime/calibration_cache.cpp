// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/calibration_cache.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <system_error>
#include <utility>

#include "kvbm/base/hash.hpp"
#include "kvbm/base/text.hpp"
#include "kvbm/memory/file.hpp"

namespace kvbm {
namespace {

/// One for each identity, so that two drivers or two GPUs do not take turns with one file.
std::filesystem::path file_for(const std::filesystem::path& folder,
                               const CalibrationIdentity& identity) {
  const std::string key = format_calibration({.identity = identity, .calibration = {}});
  std::string digits(17, '\0');
  std::snprintf(digits.data(), digits.size(), "%016llx",
                static_cast<unsigned long long>(xxh3_64(bytes_of(key))));
  digits.pop_back();
  return folder / ("calibration-" + digits + ".json");
}

/// Whole or not at all: another process may read or write it at the same time.
Status write_file(const std::filesystem::path& path, std::string_view text) {
  std::error_code error;
  std::filesystem::create_directories(path.parent_path(), error);
  if (error) {
    return errno_error(format_text("cannot make {}", path.parent_path().native()), error.value());
  }
  std::string temporary = path.native() + ".XXXXXX";
  File file(::mkostemp(temporary.data(), O_CLOEXEC));
  if (!file) return errno_error(format_text("cannot write to {}", path.native()), errno);
  bool written = true;
  while (written && !text.empty()) {
    const ssize_t put = ::write(file.fd(), text.data(), text.size());
    if (put < 0 && errno == EINTR) continue;
    written = put > 0;
    if (written) text.remove_prefix(static_cast<size_t>(put));
  }
  if (written && std::rename(temporary.c_str(), path.c_str()) == 0) return {};
  const int error_number = errno;
  ::unlink(temporary.c_str());
  return errno_error(format_text("cannot write {}", path.native()), error_number);
}

bool is_complete(const Calibration& calibration, const DeviceCapabilities& capabilities) {
  const auto has = [&](TransferRoute route) {
    const RouteCost* const cost = calibration.find(route);
    return cost != nullptr && (!measures_ring(capabilities) ||
                               !(*cost)[static_cast<size_t>(CopyForm::kRing)].rates.empty());
  };
  return has(TransferRoute::kHostToDevice) && has(TransferRoute::kDeviceToHost) &&
         calibration.find(TransferRoute::kDeviceToDevice) != nullptr;
}

/// What the file has for this identity; nothing, and one warning, where it has nothing useful.
std::optional<Calibration> read_for(const std::filesystem::path& path,
                                    const CalibrationIdentity& identity,
                                    const DeviceCapabilities& capabilities, LogSink& log) {
  auto saved = read_calibration_file(path);
  if (saved && saved->identity == identity && is_complete(saved->calibration, capabilities)) {
    return std::move(saved->calibration);
  }
  if (!saved && saved.error().code() == ErrorCode::kNotFound) return std::nullopt;
  KVBM_LOG_WARNING(log, "runtime", "a calibration is ignored and measured anew: {}",
                   !saved ? saved.error().message()
                          : format_text("{} is of another machine or not whole", path.native()));
  return std::nullopt;
}

}  // namespace

std::optional<std::filesystem::path> calibration_folder(const std::string& value) {
  if (value == kNoCalibrationFolder) return std::nullopt;
  if (!value.empty()) return value;
  // A relative path in there counts as none: XDG Base Directory Specification.
  const auto absolute = [](const char* name) -> std::optional<std::filesystem::path> {
    const char* const found = std::getenv(name);
    if (found == nullptr || *found != '/') return std::nullopt;
    return found;
  };
  if (const auto cache = absolute("XDG_CACHE_HOME")) return *cache / "kvbm";
  if (const auto home = absolute("HOME")) return *home / ".cache" / "kvbm";
  return std::nullopt;
}

Result<CalibrationFound> calibrate(const CalibrateOptions& options) {
  CalibrationFound found;
  const DeviceCapabilities capabilities = options.device.info().capabilities;
  if (!capabilities.kernel_copies) return found;
  found.identity = identify(options.identity);
  const std::filesystem::path path =
      options.folder ? file_for(*options.folder, found.identity) : std::filesystem::path();
  if (options.folder && !options.measure_anew) {
    if (auto calibration = read_for(path, found.identity, capabilities, options.log)) {
      found.calibration = *std::move(calibration);
      found.source = CalibrationFound::Source::kRead;
      found.file = path;
      return found;
    }
  }
  KVBM_ASSIGN_OR_RETURN(found.calibration, measure_calibration({.device = options.device,
                                                                .executor = options.executor,
                                                                .pinner = options.pinner,
                                                                .budget = options.budget}));
  found.source = CalibrationFound::Source::kMeasured;
  if (!options.folder || !is_complete(found.calibration, capabilities)) return found;
  const Status written = write_file(
      path, format_calibration({.identity = found.identity, .calibration = found.calibration}));
  if (written) {
    found.file = path;
  } else {
    KVBM_LOG_WARNING(
        options.log, "runtime", "a calibration is not kept: {}: {}", written.error().message(),
        std::generic_category().message(static_cast<int>(written.error().native_code())));
  }
  return found;
}

}  // namespace kvbm
