// SPDX-License-Identifier: Apache-2.0
// CopyPace: when the copies of a stream are likely to end, from those before them.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>

#include "kvbm/base/clock.hpp"

namespace kvbm::internal {

/// When copies that are expected to end at a time may really end, give or take.
struct LikelyEnd {
  TimePoint earliest;
  TimePoint latest;
};

/// A long copy is a part of its time early or late; all have some microseconds.
[[nodiscard]] inline LikelyEnd likely_end(TimePoint begin, TimePoint end) {
  constexpr int64_t kDoubtOfTime = 32;
  constexpr Duration kMostDoubt = std::chrono::microseconds(500);
  constexpr Duration kLeastBefore = std::chrono::microseconds(40);
  constexpr Duration kLeastAfter = std::chrono::microseconds(60);
  const Duration doubt = std::min<Duration>((end - begin) / kDoubtOfTime, kMostDoubt);
  return {.earliest = end - std::max(kLeastBefore, doubt),
          .latest = end + std::max(kLeastAfter, doubt)};
}

/// The copies of a stream come one after another, and mostly go one way over one link.
/// Threads: one thread at a time.
class CopyPace {
 public:
  /// Of copies that were put on the stream at `start`, the next to end. None where too little is
  /// known, or where they are too few to go by.
  [[nodiscard]] std::optional<TimePoint> expected_end(TimePoint start, uint64_t bytes) const {
    if (ns_per_byte_ == 0 || bytes < kFewBytes) return std::nullopt;
    const auto takes = static_cast<int64_t>(ns_per_byte_ * static_cast<double>(bytes));
    return std::max(start, last_end_) + std::chrono::nanoseconds(takes);
  }

  void on_end(TimePoint start, uint64_t bytes, TimePoint end) {
    if (bytes >= kFewBytes) {
      const std::chrono::nanoseconds took = end - std::max(start, last_end_);
      const double seen = static_cast<double>(took.count()) / static_cast<double>(bytes);
      ns_per_byte_ = ns_per_byte_ == 0 ? seen : ns_per_byte_ + (seen - ns_per_byte_) / 4;
    }
    last_end_ = end;
  }

 private:
  /// What a link moves in the time that a copy takes to begin.
  static constexpr uint64_t kFewBytes = 256 * 1024;

  double ns_per_byte_ = 0;  // of the last few
  TimePoint last_end_ = {};
};

}  // namespace kvbm::internal
