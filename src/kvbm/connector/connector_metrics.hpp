// SPDX-License-Identifier: Apache-2.0
// ConnectorMetrics: the series of a ConnectorLeader.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>

#include "kvbm/base/metrics.hpp"

namespace kvbm {

/// What one look-up of a request's prefix has found below the engine.
struct PrefixLookup {
  uint32_t blocks = 0;  ///< that could be loaded, over all groups
  uint32_t on_host = 0;
  uint32_t on_disk = 0;
};

/// Threads: the engine's scheduler; values may be read from any thread.
class ConnectorMetrics {
 public:
  explicit ConnectorMetrics(MetricsRegistry& registry);

  void looked_up(const PrefixLookup& lookup);

  Gauge& bypass_open;
  Counter& bypassed;
  Counter& matched_tokens;

 private:
  static constexpr size_t kWindow = 1000;

  RealGauge& host_hit_rate_;
  RealGauge& disk_hit_rate_;
  std::deque<PrefixLookup> last_;  // at most kWindow
  uint64_t blocks_ = 0;            // their sums
  uint64_t on_host_ = 0;
  uint64_t on_disk_ = 0;
};

}  // namespace kvbm
