// SPDX-License-Identifier: Apache-2.0
// Exact overlap tests between grids of runs. They go into an axis only as far as the axes with
// smaller strides can reach back, so that grids whose strides nest cost a few steps.
#pragma once

#include <cstdint>
#include <optional>

#include "kvbm/base/result.hpp"
#include "kvbm/layout/page_map.hpp"

namespace kvbm::internal {

/// The distance, in entries of each axis, between two runs that share a byte.
struct RunDistance {
  int64_t blocks = 0;
  int64_t layers = 0;
  int64_t outers = 0;
  int64_t heads = 0;
  int64_t pages = 0;
};

/// What the searches that share it may take together: far more than any sane grid, and over in a
/// second. Setting up a search counts too.
struct SearchSteps {
  uint64_t left = uint64_t{1} << 24;
};

/// Two runs of one map that share a byte, if there are any.
/// Requires: the last run ends below 2^63. Errors: kUnsupported (too many steps).
[[nodiscard]] Result<std::optional<RunDistance>> find_overlap(const PageMapSpec& map,
                                                              SearchSteps& steps);

/// Extents that end below it are near enough for overlap().
inline constexpr uint64_t kFarthestEnd = uint64_t{1} << 60;

/// Whether a run of `a` shares a byte with a run of `b`, which starts `distance` bytes after `a`.
/// Requires: both end at kFarthestEnd at the latest, and `distance` is not above it. Errors:
/// kUnsupported (too many steps).
[[nodiscard]] Result<bool> overlap(const PageMap& a, const PageMap& b, int64_t distance,
                                   SearchSteps& steps);

}  // namespace kvbm::internal
