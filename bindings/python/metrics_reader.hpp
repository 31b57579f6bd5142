// SPDX-License-Identifier: Apache-2.0
// MetricsReader: what has changed in a registry since it was read last, as Python values.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <nanobind/nanobind.h>

#include "kvbm/base/metrics.hpp"

namespace kvbm {

/// "name" or "name{key=value,key=value}".
[[nodiscard]] std::string series_name(const MetricInfo& info);

/// Cost: one look at each series, and a string for each that has changed.
/// Threads: with the GIL.
class MetricsReader final : public StatisticsVisitor {
 public:
  /// Where the registry is now; raises where there is none any more, or where it must not be
  /// touched.
  using Find = std::function<const MetricsRegistry&()>;

  explicit MetricsReader(Find find) : find_(std::move(find)) { (void)find_(); }

  /// (by how much counters have grown, gauges that have another value), by series_name. Histograms
  /// are left out. The first time everything that is not zero. Raises what Find raises.
  [[nodiscard]] nanobind::tuple take();

  void visit_counter(const MetricInfo& info, uint64_t value) override;
  void visit_gauge(const MetricInfo& info, int64_t value) override;
  void visit_real_gauge(const MetricInfo& info, double value) override;
  void visit_histogram(const MetricInfo& /*info*/, const HistogramSnapshot& /*value*/) override {}

 private:
  struct Seen {
    const MetricInfo* info;  // of the registry: as good as the series itself
    std::variant<uint64_t, int64_t, double> value;
  };
  template <class T>
  T& seen(const MetricInfo& info);

  const Find find_;
  std::vector<Seen> seen_;  // in the order of visits
  size_t at_ = 0;
  nanobind::dict counters_;
  nanobind::dict gauges_;
};

}  // namespace kvbm
