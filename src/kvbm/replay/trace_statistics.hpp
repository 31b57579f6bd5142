// SPDX-License-Identifier: Apache-2.0
// TraceStatistics: what a trace holds, and what a cache could make of it at best.
#pragma once

#include <chrono>
#include <cstdint>

#include "kvbm/replay/trace.hpp"

namespace kvbm {

struct TraceStatistics {
  uint64_t requests = 0;
  uint64_t accesses = 0;        ///< blocks of all requests
  uint64_t unique_blocks = 0;   ///< what a cache that holds everything would store
  uint64_t longest_blocks = 0;  ///< of the longest request
  uint64_t reusable_blocks =
      0;  ///< accesses that a cache which never evicts answers, prefix by prefix
  uint64_t input_tokens = 0;
  uint64_t output_tokens = 0;
  std::chrono::milliseconds duration{0};  ///< from the first arrival to the last

  /// The hit share that no cache can exceed: reusable_blocks / accesses, 0 without accesses.
  [[nodiscard]] double best_hit_share() const noexcept;

  friend bool operator==(const TraceStatistics&, const TraceStatistics&) = default;
};

[[nodiscard]] TraceStatistics measure_trace(const Trace& trace);

}  // namespace kvbm
