// SPDX-License-Identifier: Apache-2.0
// Timeline: how hits grew during a replay, in few samples.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvbm/replay/per_tier.hpp"

namespace kvbm {

/// Counts since the start of the trace.
struct TimelineSample {
  uint64_t accesses = 0;
  PerTier<uint64_t> hits;

  friend bool operator==(const TimelineSample&, const TimelineSample&) = default;
};

/// Keeps about one sample in each of kIntervals equal parts of the trace, and the last one.
/// Threads: one thread at a time.
class Timeline {
 public:
  static constexpr uint64_t kIntervals = 256;

  explicit Timeline(uint64_t total_accesses) noexcept
      : interval_(total_accesses / kIntervals + 1), next_(interval_) {}

  /// Cheap where no sample is due. Contract: accesses never fall.
  void record(const TimelineSample& sample);
  /// Adds the end of the trace and moves the samples out.
  [[nodiscard]] std::vector<TimelineSample> take(const TimelineSample& last);

 private:
  uint64_t interval_;
  uint64_t next_;
  std::vector<TimelineSample> samples_;
};

}  // namespace kvbm
