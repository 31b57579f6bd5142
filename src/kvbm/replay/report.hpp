// SPDX-License-Identifier: Apache-2.0
// ReplayReport: what came of a replay, and its three forms: a table, JSON and a plot.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/ids.hpp"
#include "kvbm/replay/per_tier.hpp"
#include "kvbm/replay/replay_options.hpp"
#include "kvbm/replay/timeline.hpp"

namespace kvbm {

/// What was copied from one tier to another.
struct MovedBlocks {
  TierId from = TierId::kG1;
  TierId to = TierId::kG1;
  uint64_t blocks = 0;
  uint64_t bytes = 0;  ///< over all ranks
  Duration busy{0};    ///< in which at least one copy was under way

  /// 10^9 bytes a second while busy; 0 if it never was.
  [[nodiscard]] double gb_per_second() const noexcept;

  friend bool operator==(const MovedBlocks&, const MovedBlocks&) = default;
};

/// KV events of one tier, counted.
struct TierEvents {
  uint64_t created = 0;
  uint64_t migrated = 0;  ///< into the tier
  uint64_t deleted = 0;
  uint64_t resident = 0;  ///< blocks in the tier at the end, as the events tell

  friend bool operator==(const TierEvents&, const TierEvents&) = default;
};

/// Units: blocks, unless a name says otherwise. Each of an access's blocks is a hit of the tier
/// that it was served from, or a miss: accesses == hits.total() + misses.
struct ReplayReport {
  std::string trace;  ///< the name of the trace
  ReplayOptions options;

  uint64_t requests = 0;
  uint64_t accesses = 0;
  PerTier<uint64_t> hits;
  uint64_t misses = 0;

  uint64_t verified_blocks = 0;  ///< whose bytes were compared with what they have to be
  uint64_t mismatches = 0;       ///< of those, the wrong ones
  std::string first_mismatch;    ///< which one: block, tier, rank, offset; the replay stops there

  PerTier<uint64_t> evictions;
  uint64_t disk_writes_blocks = 0;  ///< written to G3 during the trace
  uint64_t drained_blocks = 0;      ///< written to G3 at the stop
  uint64_t onboarded_blocks = 0;    ///< brought back to G1
  uint64_t failed_loads = 0;        ///< loads that brought less than they should, or too late
  std::string first_failed_load;    ///< why the first one did
  uint64_t stored_blocks = 0;       ///< copied down from G1
  uint64_t dropped_stores = 0;      ///< not stored: no room, or too many under way
  std::vector<MovedBlocks> moved;
  PerTier<TierEvents> events;

  Duration wall_time{0};
  uint64_t peak_rss_bytes = 0;
  uint64_t configured_bytes = 0;  ///< memory and disk that the tiers may use
  std::vector<TimelineSample> timeline;
  std::string metrics_text;  ///< all series at the end, as Prometheus text; in none of the forms

  /// Hits over all accesses; 0 without accesses.
  [[nodiscard]] PerTier<double> hit_share() const noexcept;
  [[nodiscard]] double accesses_per_second() const noexcept;

  friend bool operator==(const ReplayReport&, const ReplayReport&) = default;
};

/// What the output can show.
struct TextStyle {
  enum class Letters : uint8_t { kAscii, kUtf8 };
  enum class Colours : uint8_t { kOff, kOn };

  Letters letters = Letters::kAscii;
  Colours colours = Colours::kOff;
};

/// The table for people. Ends in a newline, as the plot does.
[[nodiscard]] std::string report_table(const ReplayReport& report, TextStyle style = {});

/// Version kReportVersion of the format in docs/formats/replay-report.md.
[[nodiscard]] std::string report_json(const ReplayReport& report);
inline constexpr int kReportVersion = 1;

/// The hit share over the trace, stacked by tier: kPlotWidth columns, one character each; the
/// height is chosen by the highest share. Empty if there were no accesses.
/// Contract: accesses of the samples ascend.
[[nodiscard]] std::string plot_hits(std::span<const TimelineSample> timeline, TextStyle style = {});
inline constexpr size_t kPlotWidth = 72;

}  // namespace kvbm
