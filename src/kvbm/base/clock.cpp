// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/clock.hpp"

#include "kvbm/base/contract.hpp"

namespace kvbm {
namespace {

constexpr TimePoint kManualStart{std::chrono::hours(1)};
constexpr WallTime kManualWallStart{std::chrono::seconds(946'684'800)};  // 2000-01-01 00:00 UTC

}  // namespace

TimePoint SystemClock::now() const noexcept { return std::chrono::steady_clock::now(); }
WallTime SystemClock::wall_time() const noexcept { return std::chrono::system_clock::now(); }

TimePoint ManualClock::now() const noexcept {
  return kManualStart + Duration(elapsed_ns_.load(std::memory_order_relaxed));
}

WallTime ManualClock::wall_time() const noexcept {
  return kManualWallStart + Duration(elapsed_ns_.load(std::memory_order_relaxed));
}

void ManualClock::advance(Duration step) {
  KVBM_CONTRACT(step >= Duration::zero(), "a clock cannot be advanced by a negative time");
  elapsed_ns_.fetch_add(step.count(), std::memory_order_relaxed);
}

void ManualClock::advance_to(TimePoint time) noexcept {
  const int64_t target = (time - kManualStart).count();
  int64_t elapsed = elapsed_ns_.load(std::memory_order_relaxed);
  while (elapsed < target &&
         !elapsed_ns_.compare_exchange_weak(elapsed, target, std::memory_order_relaxed)) {
  }
}

}  // namespace kvbm
