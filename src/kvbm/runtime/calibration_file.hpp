// SPDX-License-Identifier: Apache-2.0
// A calibration as a file, and what it was measured on.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "kvbm/base/result.hpp"
#include "kvbm/runtime/devices.hpp"
#include "kvbm/transfer/calibration.hpp"

namespace kvbm {

/// What a calibration holds for. Where any of it differs, copies may cost something else.
struct CalibrationIdentity {
  std::string cpu;  ///< its model, as the kernel tells; empty where it does not
  DeviceIdentity device;

  friend bool operator==(const CalibrationIdentity&, const CalibrationIdentity&) = default;
};

/// Of this machine, with a device of it.
[[nodiscard]] CalibrationIdentity identify(const DeviceIdentity& device);

struct SavedCalibration {
  CalibrationIdentity identity;
  Calibration calibration;
};

/// A text of this many bytes and more is no calibration.
inline constexpr size_t kMaxCalibrationBytes = size_t{64} << 10;

/// JSON, with a line break at its end. Bytes of names that are no UTF-8 become U+FFFD.
/// Source: docs/formats/calibration.md
[[nodiscard]] std::string format_calibration(const SavedCalibration& saved);

/// Errors: kInvalidArgument (not of this format, or damaged), kUnsupported (another version), with
/// the reason in one line.
[[nodiscard]] Result<SavedCalibration> parse_calibration(std::string_view text);

/// Errors: those of open(2) and of parse_calibration, with the path.
[[nodiscard]] Result<SavedCalibration> read_calibration_file(const std::string& path);

}  // namespace kvbm
