// SPDX-License-Identifier: Apache-2.0
// CircuitBreaker: stops trying what keeps failing, and tries again by itself.
#pragma once

#include <chrono>
#include <cstdint>

#include "kvbm/base/clock.hpp"

namespace kvbm {

struct CircuitBreakerOptions {
  uint32_t max_failures = 5;                  ///< in a row; at least 1
  Duration pause = std::chrono::seconds(30);  ///< after them nothing is tried for so long
};

/// Closed it lets everything through. After `max_failures` failures in a row it opens for `pause`;
/// then it lets through again, and the next outcome decides: a success closes it, a failure opens
/// it once more. Threads: one thread at a time.
class CircuitBreaker {
 public:
  explicit CircuitBreaker(CircuitBreakerOptions options = {}) : options_(options) {}

  [[nodiscard]] bool allows(TimePoint now) const noexcept {
    return failures_ < options_.max_failures || now >= closed_again_;
  }
  void succeeded() noexcept { failures_ = 0; }
  /// Returns whether it has opened with this failure.
  bool failed(TimePoint now) noexcept {
    const bool let_through = allows(now);
    if (failures_ < options_.max_failures) ++failures_;
    if (!let_through || failures_ < options_.max_failures) return false;
    closed_again_ = saturating_add(now, options_.pause);
    return true;
  }
  /// Whether it has opened, and no success has closed it since.
  [[nodiscard]] bool is_open() const noexcept { return failures_ >= options_.max_failures; }

 private:
  const CircuitBreakerOptions options_;
  uint32_t failures_ = 0;
  TimePoint closed_again_{};
};

}  // namespace kvbm
