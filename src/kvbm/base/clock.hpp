// SPDX-License-Identifier: Apache-2.0
// Clock: time as an input, so that a test or a replay owns it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace kvbm {

using Duration = std::chrono::nanoseconds;
/// A moment of a Clock; never goes back. Means nothing outside the process.
using TimePoint = std::chrono::time_point<std::chrono::steady_clock, Duration>;
/// A moment of the calendar, for the timestamps of events.
using WallTime = std::chrono::time_point<std::chrono::system_clock, Duration>;

/// The deadline that never comes.
inline constexpr TimePoint kNever = TimePoint::max();

/// `start + delay`, kNever where that would overflow: `deadline = saturating_add(clock.now(),
/// timeout)`.
[[nodiscard]] constexpr TimePoint saturating_add(TimePoint start, Duration delay) noexcept {
  if (delay > Duration::zero() && start > kNever - delay) return kNever;
  return start + delay;
}

/// Threads: any thread.
class Clock {
 public:
  virtual ~Clock() = default;

  [[nodiscard]] virtual TimePoint now() const noexcept = 0;
  [[nodiscard]] virtual WallTime wall_time() const noexcept = 0;

 protected:
  Clock() = default;
  Clock(const Clock&) = default;
  Clock& operator=(const Clock&) = default;
};

/// The machine's clocks.
class SystemClock final : public Clock {
 public:
  [[nodiscard]] TimePoint now() const noexcept override;
  [[nodiscard]] WallTime wall_time() const noexcept override;
};

/// A clock that stands still until it is advanced. Starts at one hour after TimePoint's origin (so
/// that "a while ago" is a valid time) and on 2000-01-01 00:00 UTC; both move together.
/// Threads: any thread.
class ManualClock final : public Clock {
 public:
  ManualClock() = default;
  ManualClock(const ManualClock&) = delete;
  ManualClock& operator=(const ManualClock&) = delete;

  [[nodiscard]] TimePoint now() const noexcept override;
  [[nodiscard]] WallTime wall_time() const noexcept override;

  /// Requires: `step` is not negative.
  void advance(Duration step);
  /// Moves on to `time`; does nothing if it has passed already.
  void advance_to(TimePoint time) noexcept;

 private:
  std::atomic<int64_t> elapsed_ns_{0};
};

}  // namespace kvbm
