// SPDX-License-Identifier: Apache-2.0
// Calibration: what copies cost on this machine, as measured.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/executor.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/device/device.hpp"
#include "kvbm/memory/host_pinner.hpp"
#include "kvbm/transfer/transfer_route.hpp"

namespace kvbm {

/// Time that is finer than a clock's: a step may cost less than a nanosecond.
using CopyCost = std::chrono::duration<double, std::micro>;

/// How the bytes of a batch are asked for. A copy engine takes runs one by one, or rows in equal
/// steps at a time; to a kernel they are the same. Through a ring they are gathered or scattered on
/// the device, and blocks go over the link.
enum class CopyForm : uint8_t { kEngineRuns, kEngineRows, kKernel, kRing };
inline constexpr size_t kNumCopyForms = 4;

/// "engine runs", "engine rows", "kernel", "ring".
[[nodiscard]] std::string_view to_string(CopyForm form) noexcept;

/// Changes with what is measured, with how, and with what a figure means.
inline constexpr int32_t kCalibrationVersion = 3;

struct RunRate {
  uint64_t run_bytes = 0;
  double bytes_per_second = 0;
};

struct FormCost {
  CopyCost submission{0};  ///< from the call to the end of a batch, beside what follows
  CopyCost step{0};  ///< of a rectangle, or of a piece that a kernel takes; of runs: in the rate
  std::vector<RunRate> rates = {};  ///< by rising run_bytes, at least one, but see kRing

  /// Between two measured runs by the ratio of their sizes; below the first as its time for a run,
  /// above the last as it. Requires: at least one rate, run_bytes > 0.
  [[nodiscard]] double bytes_per_second(uint64_t run_bytes) const noexcept;
};

/// kRing has rates where it was measured: for blocks that are long beside what an engine's run
/// costs.
using RouteCost = std::array<FormCost, kNumCopyForms>;

/// Ownership: a value. Empty: nothing is known.
class Calibration {
 public:
  Calibration() = default;

  /// Contract: every form but kRing has a rate; rates rise by run_bytes and are positive.
  void set(TransferRoute route, RouteCost cost);
  /// Null if the route was not measured.
  [[nodiscard]] const RouteCost* find(TransferRoute route) const noexcept;

 private:
  std::array<std::optional<RouteCost>, kNumTransferRoutes> routes_ = {};
};

struct CalibrationOptions {
  Device& device;
  Executor& executor;
  /// For host memory that the device copies; null: only where it copies any.
  std::shared_ptr<HostPinner> pinner = nullptr;
  Duration budget = std::chrono::milliseconds(200);  ///< what is not measured by then is left out
  /// That one batch on the device moves at most: more than its caches hold, and long beside what a
  /// batch costs by itself. Three times as many are allocated; where they are not to be had, copies
  /// on the device are left out.
  uint64_t device_bytes = uint64_t{64} << 20;
};

/// Whether the ring of a device is measured between it and the host: where blocks of 2 MiB fit.
[[nodiscard]] bool measures_ring(const DeviceCapabilities& capabilities) noexcept;

/// Measures the routes between host and device, and on the device. Empty, and without a copy, where
/// the device has one method, so that there is nothing to choose, or copies no memory that can be
/// had.
/// Threads: waits; not for the forward path of an engine. Errors: kInvalidArgument (device_bytes
/// under 16 MiB), kExhausted, kDevice and others of the device.
[[nodiscard]] Result<Calibration> measure_calibration(const CalibrationOptions& options);

}  // namespace kvbm
