// SPDX-License-Identifier: Apache-2.0
// Counters, gauges and histograms, and the registry that owns them.
#pragma once

#include <atomic>
#include <cstdint>
#include <iosfwd>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kvbm/base/mutex.hpp"

namespace kvbm {

/// Only grows. Threads: any thread; an update is one relaxed atomic.
class Counter {
 public:
  void add(uint64_t amount = 1) noexcept { value_.fetch_add(amount, std::memory_order_relaxed); }
  [[nodiscard]] uint64_t value() const noexcept { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> value_{0};
};

/// Goes up and down. Threads: any thread; an update is one relaxed atomic.
class Gauge {
 public:
  void set(int64_t value) noexcept { value_.store(value, std::memory_order_relaxed); }
  void add(int64_t amount = 1) noexcept { value_.fetch_add(amount, std::memory_order_relaxed); }
  void sub(int64_t amount = 1) noexcept { value_.fetch_sub(amount, std::memory_order_relaxed); }
  [[nodiscard]] int64_t value() const noexcept { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<int64_t> value_{0};
};

/// The same for a share or another number with a fraction.
class RealGauge {
 public:
  void set(double value) noexcept { value_.store(value, std::memory_order_relaxed); }
  [[nodiscard]] double value() const noexcept { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<double> value_{0};
};

struct HistogramSnapshot {
  std::vector<double> bounds;    ///< upper bounds, inclusive, ascending
  std::vector<uint64_t> counts;  ///< one per bound and one above them all; not cumulative
  double sum = 0;
  uint64_t count = 0;  ///< the sum of `counts`
};

/// Counts values between fixed bounds. Threads: any thread; relaxed atomics, so a snapshot taken
/// during updates may hold a value in `counts` and not yet in `sum`.
class Histogram {
 public:
  /// Contract: `upper_bounds` is finite and strictly ascending.
  explicit Histogram(std::vector<double> upper_bounds);

  /// Not-a-number is ignored.
  void observe(double value) noexcept;
  [[nodiscard]] HistogramSnapshot snapshot() const;
  [[nodiscard]] std::span<const double> bounds() const noexcept { return bounds_; }

 private:
  const std::vector<double> bounds_;
  const std::unique_ptr<std::atomic<uint64_t>[]> counts_;
  std::atomic<double> sum_{0};
};

/// `count` bounds from `first`, each `factor` times the one before.
[[nodiscard]] std::vector<double> exponential_bounds(double first, double factor, size_t count);

struct MetricLabel {
  std::string key;
  std::string value;
  friend auto operator<=>(const MetricLabel&, const MetricLabel&) = default;
};

/// What a series is called. `name` follows Prometheus rules ([a-zA-Z_:][a-zA-Z0-9_:]*); so do label
/// keys (no colon).
struct MetricInfo {
  std::string name;
  std::string help{};
  std::string unit{};  ///< "bytes", "seconds", "blocks"; empty for plain counts
  std::vector<MetricLabel> labels{};
};

/// Reads every series once; implemented by exporters.
class StatisticsVisitor {
 public:
  virtual ~StatisticsVisitor() = default;
  virtual void visit_counter(const MetricInfo& info, uint64_t value) = 0;
  virtual void visit_gauge(const MetricInfo& info, int64_t value) = 0;
  virtual void visit_real_gauge(const MetricInfo& info, double value) = 0;
  virtual void visit_histogram(const MetricInfo& info, const HistogramSnapshot& value) = 0;
};

/// Owns series. Look them up once, at construction, and keep the reference: it stays valid as long
/// as the registry. The same name and labels give the same series again. Errors: ContractViolation
/// for a bad name or label, or a name used with another kind, help, unit or bounds. Threads: any
/// thread.
class MetricsRegistry {
 public:
  MetricsRegistry();
  ~MetricsRegistry();
  MetricsRegistry(const MetricsRegistry&) = delete;
  MetricsRegistry& operator=(const MetricsRegistry&) = delete;

  [[nodiscard]] Counter& counter(MetricInfo info);
  [[nodiscard]] Gauge& gauge(MetricInfo info);
  [[nodiscard]] RealGauge& real_gauge(MetricInfo info);
  [[nodiscard]] Histogram& histogram(MetricInfo info, std::vector<double> upper_bounds);

  /// Visits all series, ordered by name and then labels, with no lock held.
  void visit(StatisticsVisitor& visitor) const;

 private:
  struct Series;
  template <class Metric>
  Metric& find_or_add(MetricInfo info, std::vector<double> upper_bounds = {});

  mutable Mutex mutex_{LockRank::kMetrics, "base.metrics"};
  std::vector<std::unique_ptr<Series>> series_ KVBM_GUARDED_BY(mutex_);  // sorted
};

/// All series in the Prometheus text exposition format 0.0.4.
/// Source: https://prometheus.io/docs/instrumenting/exposition_formats/
void write_prometheus_text(const MetricsRegistry& registry, std::ostream& out);
/// The same of several: series of one name and labels are added up (real gauges: the last one).
void write_prometheus_text(std::span<const MetricsRegistry* const> registries, std::ostream& out);

}  // namespace kvbm
