// SPDX-License-Identifier: Apache-2.0
// The table of docs/metrics.md, written from the series that a running kvbm registers.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kvbm/base/metrics.hpp"
#include "kvbm/base/result.hpp"

namespace kvbm {

/// One series as somebody registers it.
struct DocumentedSeries {
  MetricInfo info;
  std::string_view kind;   ///< "counter", "gauge", "histogram"
  std::string_view owner;  ///< "leader", "worker", "manager"
};

/// What a leader and a worker of a connector, and beyond them a BlockManager, register, in this
/// order; by name and labels. Makes them, small. Errors: those of making them.
[[nodiscard]] Result<std::vector<DocumentedSeries>> documented_series();

/// A table, one line a name.
[[nodiscard]] std::string metrics_table(const std::vector<DocumentedSeries>& series);

/// `document` with the table between its two marks. Errors: kInvalidArgument (no marks).
[[nodiscard]] Result<std::string> with_metrics_table(std::string_view document,
                                                     std::string_view table);

}  // namespace kvbm
