// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/metrics.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <map>
#include <ostream>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/text.hpp"

namespace kvbm {
namespace {

enum class Colon { kAllowed, kForbidden };

bool is_identifier(std::string_view text, Colon colon) {
  const auto is_letter = [colon](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
           (c == ':' && colon == Colon::kAllowed);
  };
  const auto is_rest = [&](char c) { return is_letter(c) || (c >= '0' && c <= '9'); };
  return !text.empty() && is_letter(text.front()) && std::ranges::all_of(text, is_rest);
}

void check_and_sort(MetricInfo& info) {
  KVBM_CONTRACT(is_identifier(info.name, Colon::kAllowed),
                format_text("\"{}\" is no name for a metric", info.name));
  std::ranges::sort(info.labels);
  for (size_t i = 0; i < info.labels.size(); ++i) {
    const std::string& key = info.labels[i].key;
    KVBM_CONTRACT(is_identifier(key, Colon::kForbidden) && !key.starts_with("__") && key != "le",
                  format_text("\"{}\" is no label of a metric ({})", key, info.name));
    KVBM_CONTRACT(i == 0 || info.labels[i - 1].key != key,
                  format_text("metric {} has label {} twice", info.name, key));
  }
}

bool is_before(const MetricInfo& a, const MetricInfo& b) {
  return std::tie(a.name, a.labels) < std::tie(b.name, b.labels);
}

}  // namespace

Histogram::Histogram(std::vector<double> upper_bounds)
    : bounds_(std::move(upper_bounds)),
      counts_(std::make_unique<std::atomic<uint64_t>[]>(bounds_.size() + 1)) {
  for (size_t i = 0; i < bounds_.size(); ++i) {
    KVBM_CONTRACT(std::isfinite(bounds_[i]) && (i == 0 || bounds_[i - 1] < bounds_[i]),
                  "the bounds of a histogram are finite and ascending");
  }
}

void Histogram::observe(double value) noexcept {
  if (std::isnan(value)) return;
  const auto bucket = std::ranges::lower_bound(bounds_, value) - bounds_.begin();
  counts_[static_cast<size_t>(bucket)].fetch_add(1, std::memory_order_relaxed);
  sum_.fetch_add(value, std::memory_order_relaxed);
}

HistogramSnapshot Histogram::snapshot() const {
  HistogramSnapshot result{.bounds = bounds_, .counts = {}, .sum = 0, .count = 0};
  result.counts.reserve(bounds_.size() + 1);
  for (size_t i = 0; i <= bounds_.size(); ++i) {
    result.counts.push_back(counts_[i].load(std::memory_order_relaxed));
    result.count += result.counts.back();
  }
  result.sum = sum_.load(std::memory_order_relaxed);
  return result;
}

std::vector<double> exponential_bounds(double first, double factor, size_t count) {
  KVBM_CONTRACT(first > 0 && factor > 1,
                "bounds grow from a positive number by a factor above one");
  std::vector<double> bounds(count);
  for (double& bound : bounds) {
    bound = first;
    first *= factor;
  }
  return bounds;
}

struct MetricsRegistry::Series {
  template <class Metric, class... Args>
  Series(MetricInfo what, std::in_place_type_t<Metric> kind, Args&&... args)
      : info(std::move(what)), metric(kind, std::forward<Args>(args)...) {}

  const MetricInfo info;
  std::variant<Counter, Gauge, RealGauge, Histogram> metric;
};

MetricsRegistry::MetricsRegistry() = default;
MetricsRegistry::~MetricsRegistry() = default;

template <class Metric>
Metric& MetricsRegistry::find_or_add(MetricInfo info, std::vector<double> upper_bounds) {
  check_and_sort(info);
  const auto check_alike = [&](const Series& other) {
    const auto* metric = std::get_if<Metric>(&other.metric);
    bool alike = metric != nullptr && other.info.help == info.help && other.info.unit == info.unit;
    if constexpr (std::is_same_v<Metric, Histogram>) {
      alike = alike && std::ranges::equal(metric->bounds(), upper_bounds);
    }
    KVBM_CONTRACT(
        alike, format_text("metric {} exists with another kind, help, unit or bounds", info.name));
  };

  const MutexLock lock(mutex_);
  auto at = std::ranges::lower_bound(
      series_, info, is_before, [](const auto& series) -> auto& { return series->info; });
  // The series of one name lie together: alike with a neighbour is alike with all.
  if (at != series_.begin() && (*(at - 1))->info.name == info.name) check_alike(**(at - 1));
  if (at != series_.end() && (*at)->info.name == info.name) {
    check_alike(**at);
    if ((*at)->info.labels == info.labels) return std::get<Metric>((*at)->metric);
  }
  std::unique_ptr<Series> added;
  if constexpr (std::is_same_v<Metric, Histogram>) {
    added = std::make_unique<Series>(std::move(info), std::in_place_type<Histogram>,
                                     std::move(upper_bounds));
  } else {
    added = std::make_unique<Series>(std::move(info), std::in_place_type<Metric>);
  }
  return std::get<Metric>((*series_.insert(at, std::move(added)))->metric);
}

Counter& MetricsRegistry::counter(MetricInfo info) { return find_or_add<Counter>(std::move(info)); }

Gauge& MetricsRegistry::gauge(MetricInfo info) { return find_or_add<Gauge>(std::move(info)); }

RealGauge& MetricsRegistry::real_gauge(MetricInfo info) {
  return find_or_add<RealGauge>(std::move(info));
}

Histogram& MetricsRegistry::histogram(MetricInfo info, std::vector<double> upper_bounds) {
  return find_or_add<Histogram>(std::move(info), std::move(upper_bounds));
}

void MetricsRegistry::visit(StatisticsVisitor& visitor) const {
  std::vector<const Series*> all;
  {
    // Series are never removed, so the pointers stay good.
    const MutexLock lock(mutex_);
    all.reserve(series_.size());
    for (const auto& series : series_) all.push_back(series.get());
  }
  for (const Series* series : all) {
    if (const auto* counter = std::get_if<Counter>(&series->metric)) {
      visitor.visit_counter(series->info, counter->value());
    } else if (const auto* gauge = std::get_if<Gauge>(&series->metric)) {
      visitor.visit_gauge(series->info, gauge->value());
    } else if (const auto* real = std::get_if<RealGauge>(&series->metric)) {
      visitor.visit_real_gauge(series->info, real->value());
    } else if (const auto* histogram = std::get_if<Histogram>(&series->metric)) {
      visitor.visit_histogram(series->info, histogram->snapshot());
    }
  }
}

namespace {

class PrometheusWriter final : public StatisticsVisitor {
 public:
  explicit PrometheusWriter(std::ostream& out) : out_(out) {}

  void visit_counter(const MetricInfo& info, uint64_t value) override {
    head(info, "counter");
    line(info.name, labels(info, ""), format_text("{}", value));
  }

  void visit_gauge(const MetricInfo& info, int64_t value) override {
    head(info, "gauge");
    line(info.name, labels(info, ""), format_text("{}", value));
  }

  void visit_real_gauge(const MetricInfo& info, double value) override {
    head(info, "gauge");
    line(info.name, labels(info, ""), real_text(value));
  }

  void visit_histogram(const MetricInfo& info, const HistogramSnapshot& value) override {
    head(info, "histogram");
    uint64_t cumulative = 0;
    for (size_t i = 0; i < value.counts.size(); ++i) {
      cumulative += value.counts[i];
      const std::string bound =
          i < value.bounds.size() ? format_text("{}", value.bounds[i]) : std::string("+Inf");
      line(info.name + "_bucket", labels(info, bound), format_text("{}", cumulative));
    }
    line(info.name + "_sum", labels(info, ""), real_text(value.sum));
    line(info.name + "_count", labels(info, ""), format_text("{}", value.count));
  }

 private:
  void head(const MetricInfo& info, std::string_view kind) {
    if (info.name == last_name_) return;
    last_name_ = info.name;
    if (!info.help.empty()) {
      out_ << "# HELP " << info.name << ' ' << escaped(info.help, "\\\n") << '\n';
    }
    out_ << "# TYPE " << info.name << ' ' << kind << '\n';
  }

  void line(std::string_view name, std::string_view label_text, std::string_view value) {
    out_ << name << label_text << ' ' << value << '\n';
  }

  static std::string labels(const MetricInfo& info, std::string_view bound) {
    std::string text;
    const auto add = [&text](std::string_view key, std::string_view value) {
      text.append(text.empty() ? "{" : ",").append(key);
      text.append("=\"").append(escaped(value, "\\\"\n")).append("\"");
    };
    for (const MetricLabel& label : info.labels) add(label.key, label.value);
    if (!bound.empty()) add("le", bound);
    return text.empty() ? text : text.append("}");
  }

  static std::string escaped(std::string_view text, std::string_view special) {
    std::string result;
    for (const char c : text) {
      if (special.find(c) != std::string_view::npos) result.push_back('\\');
      result.push_back(c == '\n' ? 'n' : c);
    }
    return result;
  }

  static std::string real_text(double value) {
    if (std::isinf(value)) return value > 0 ? "+Inf" : "-Inf";
    if (std::isnan(value)) return "NaN";
    return format_text("{}", value);
  }

  std::ostream& out_;
  std::string last_name_;
};

/// Keeps what it is shown, in the order of names and labels, each once.
class Collector final : public StatisticsVisitor {
 public:
  void visit_counter(const MetricInfo& info, uint64_t value) override {
    std::get<uint64_t>(find_or_add(info, uint64_t{0})) += value;
  }
  void visit_gauge(const MetricInfo& info, int64_t value) override {
    std::get<int64_t>(find_or_add(info, int64_t{0})) += value;
  }
  void visit_real_gauge(const MetricInfo& info, double value) override {
    std::get<double>(find_or_add(info, 0.0)) = value;
  }
  void visit_histogram(const MetricInfo& info, const HistogramSnapshot& value) override {
    HistogramSnapshot empty{.bounds = value.bounds, .counts = {}, .sum = 0, .count = 0};
    empty.counts.resize(value.counts.size());
    auto& sum = std::get<HistogramSnapshot>(find_or_add(info, std::move(empty)));
    KVBM_CONTRACT(sum.bounds == value.bounds, "one metric has one set of bounds");
    for (size_t i = 0; i < sum.counts.size(); ++i) sum.counts[i] += value.counts[i];
    sum.sum += value.sum;
    sum.count += value.count;
  }

  void show(StatisticsVisitor& visitor) const {
    for (const auto& [info, value] : found_) {
      if (const auto* counter = std::get_if<uint64_t>(&value)) {
        visitor.visit_counter(info, *counter);
      } else if (const auto* gauge = std::get_if<int64_t>(&value)) {
        visitor.visit_gauge(info, *gauge);
      } else if (const auto* real = std::get_if<double>(&value)) {
        visitor.visit_real_gauge(info, *real);
      } else {
        visitor.visit_histogram(info, std::get<HistogramSnapshot>(value));
      }
    }
  }

 private:
  using Value = std::variant<uint64_t, int64_t, double, HistogramSnapshot>;
  struct Order {
    bool operator()(const MetricInfo& a, const MetricInfo& b) const { return is_before(a, b); }
  };
  Value& find_or_add(const MetricInfo& info, Value zero) {
    Value& found = found_.try_emplace(info, zero).first->second;
    KVBM_CONTRACT(found.index() == zero.index(),
                  format_text("metric {} is of two kinds", info.name));
    return found;
  }

  std::map<MetricInfo, Value, Order> found_;
};

}  // namespace

void write_prometheus_text(std::span<const MetricsRegistry* const> registries, std::ostream& out) {
  Collector all;
  for (const MetricsRegistry* registry : registries) registry->visit(all);
  PrometheusWriter writer(out);
  all.show(writer);
}

void write_prometheus_text(const MetricsRegistry& registry, std::ostream& out) {
  const MetricsRegistry* const one = &registry;
  write_prometheus_text({&one, 1}, out);
}

}  // namespace kvbm
