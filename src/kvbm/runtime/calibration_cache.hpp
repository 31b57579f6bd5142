// SPDX-License-Identifier: Apache-2.0
// calibrate: what copies cost on a device, measured once and kept on disk.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/executor.hpp"
#include "kvbm/base/log.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/device/device.hpp"
#include "kvbm/memory/host_pinner.hpp"
#include "kvbm/runtime/calibration_file.hpp"
#include "kvbm/runtime/devices.hpp"
#include "kvbm/transfer/calibration.hpp"

namespace kvbm {

/// What turns the keeping off, in place of a folder.
inline constexpr char kNoCalibrationFolder[] = "off";

/// The folder that a value of the configuration key calibration_dir means: itself; empty: kvbm in
/// XDG_CACHE_HOME, else in ~/.cache. None: it is "off", or nothing says where home is.
[[nodiscard]] std::optional<std::filesystem::path> calibration_folder(const std::string& value);

struct CalibrateOptions {
  Device& device;
  Executor& executor;
  LogSink& log;
  std::shared_ptr<HostPinner> pinner = nullptr;  ///< these two as open_device() gives them
  DeviceIdentity identity = {};
  std::optional<std::filesystem::path> folder = std::nullopt;  ///< none: kept nowhere
  bool measure_anew = false;                                   ///< whatever is there
  Duration budget = std::chrono::milliseconds(200);            ///< of a measurement
};

struct CalibrationFound {
  enum class Source : uint8_t {
    kNotNeeded,  ///< the device has one method: empty
    kRead,
    kMeasured,
  };

  Calibration calibration = {};
  CalibrationIdentity identity = {};
  Source source = Source::kNotNeeded;
  std::filesystem::path file = {};  ///< that has it; empty: none
};

/// Reads the folder's file for this machine, device and driver; without one, or with one that says
/// nothing useful, measures and writes it. What is wrong with the file or the folder is one warning
/// in the log, and no error. A measurement that ran out of time is not kept.
/// Threads: waits; not for the forward path of an engine. Errors: those of measure_calibration.
[[nodiscard]] Result<CalibrationFound> calibrate(const CalibrateOptions& options);

}  // namespace kvbm
