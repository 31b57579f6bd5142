// SPDX-License-Identifier: Apache-2.0
#include "bindings/python/statistics.hpp"

#include "bindings/python/metrics_reader.hpp"

namespace nb = nanobind;

namespace kvbm {
namespace {

class Statistics final : public StatisticsVisitor {
 public:
  void visit_counter(const MetricInfo& info, uint64_t value) override {
    found[series_name(info).c_str()] = value;
  }
  void visit_gauge(const MetricInfo& info, int64_t value) override {
    found[series_name(info).c_str()] = value;
  }
  void visit_real_gauge(const MetricInfo& info, double value) override {
    found[series_name(info).c_str()] = value;
  }
  void visit_histogram(const MetricInfo& /*info*/, const HistogramSnapshot& /*value*/) override {}

  nb::dict found;
};

}  // namespace

nb::dict statistics_of(const MetricsRegistry& metrics) {
  Statistics statistics;
  metrics.visit(statistics);
  return statistics.found;
}

}  // namespace kvbm
