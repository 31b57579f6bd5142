// SPDX-License-Identifier: Apache-2.0
#include "bindings/python/metrics_reader.hpp"

#include <utility>

namespace nb = nanobind;

namespace kvbm {

std::string series_name(const MetricInfo& info) {
  std::string name = info.name;
  char before = '{';
  for (const MetricLabel& label : info.labels) {
    name += before + label.key + "=" + label.value;
    before = ',';
  }
  if (before == ',') name += '}';
  return name;
}

nb::tuple MetricsReader::take() {
  const MetricsRegistry& registry = find_();
  counters_ = nb::dict();
  gauges_ = nb::dict();
  at_ = 0;
  registry.visit(*this);
  return nb::make_tuple(std::exchange(counters_, nb::dict()), std::exchange(gauges_, nb::dict()));
}

template <class T>
T& MetricsReader::seen(const MetricInfo& info) {
  // A series that is new stands where it will be met from now on.
  if (at_ == seen_.size() || seen_[at_].info != &info) {
    seen_.insert(seen_.begin() + static_cast<std::ptrdiff_t>(at_), Seen{&info, T{}});
  }
  return std::get<T>(seen_[at_++].value);
}

void MetricsReader::visit_counter(const MetricInfo& info, uint64_t value) {
  const uint64_t before = std::exchange(seen<uint64_t>(info), value);
  if (value != before) counters_[series_name(info).c_str()] = value - before;
}

void MetricsReader::visit_gauge(const MetricInfo& info, int64_t value) {
  if (std::exchange(seen<int64_t>(info), value) != value) {
    gauges_[series_name(info).c_str()] = value;
  }
}

void MetricsReader::visit_real_gauge(const MetricInfo& info, double value) {
  if (std::exchange(seen<double>(info), value) != value) {
    gauges_[series_name(info).c_str()] = value;
  }
}

}  // namespace kvbm
