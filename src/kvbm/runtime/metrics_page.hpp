// SPDX-License-Identifier: Apache-2.0
// MetricsPage: a page in the Prometheus text format, read back.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kvbm/base/metrics.hpp"
#include "kvbm/base/result.hpp"

namespace kvbm {

struct MetricSample {
  std::string name;
  std::vector<MetricLabel> labels;  ///< as on the page
  double value = 0;
};

/// Threads: any thread; does not change.
class MetricsPage {
 public:
  /// `text` may be hostile. Comments and timestamps are passed over.
  /// Errors: kCorrupt, with the number of the line.
  /// Source: https://prometheus.io/docs/instrumenting/exposition_formats/ (0.0.4)
  [[nodiscard]] static Result<MetricsPage> parse(std::string_view text);

  [[nodiscard]] const std::vector<MetricSample>& samples() const noexcept { return samples_; }

  /// Whether a series of this name is there, by itself or as vLLM's page has it: with "vllm:"
  /// before it, and for counters with "_total" behind it.
  [[nodiscard]] bool has(std::string_view name) const;
  /// The sum of its samples that have this label; no label: of all of them. 0 if there is none.
  [[nodiscard]] double sum(std::string_view name, const MetricLabel& label = {}) const;

 private:
  std::vector<MetricSample> samples_;
};

}  // namespace kvbm
