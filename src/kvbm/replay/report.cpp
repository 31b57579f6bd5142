// SPDX-License-Identifier: Apache-2.0
#include "kvbm/replay/report.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <iterator>
#include <string_view>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "kvbm/base/units.hpp"
#include "kvbm/runtime/devices.hpp"

namespace kvbm {
namespace {

constexpr std::array<TierId, 3> kTiers{TierId::kG1, TierId::kG2, TierId::kG3};

double seconds(Duration duration) { return std::chrono::duration<double>(duration).count(); }

double ratio(double part, double whole) { return whole > 0 ? part / whole : 0.0; }

std::string percent(double share) { return fmt::format("{:.2f} %", 100 * share); }

// "288 500"
std::string grouped(uint64_t value) {
  std::string text = std::to_string(value);
  for (size_t end = text.size(); end > 3; end -= 3) text.insert(end - 3, 1, ' ');
  return text;
}

void append_line(std::string& out, std::string_view name, std::string_view value) {
  out.append(fmt::format("  {:<18}{}\n", name, value));
}

std::string painted(std::string_view text, std::string_view code, TextStyle style) {
  if (style.colours == TextStyle::Colours::kOff) return std::string(text);
  return fmt::format("\x1b[{}m{}\x1b[0m", code, text);
}

std::string heading(std::string_view text, TextStyle style) {
  return painted(text, "1", style) + "\n";
}

void append_tiers(std::string& out, const ReplayReport& report, TextStyle style) {
  out.append(heading(fmt::format("  {:<6}{:>12}{:>10}{:>12}{:>12}{:>12}{:>12}", "tier", "hits",
                                 "share", "evictions", "created", "deleted", "resident"),
                     style));
  const PerTier<double> share = report.hit_share();
  for (const TierId tier : kTiers) {
    const TierEvents& events = report.events.of(tier);
    // A tier gains a block with either event.
    out.append(fmt::format("  {:<6}{:>12}{:>10}{:>12}{:>12}{:>12}{:>12}\n", to_string(tier),
                           grouped(report.hits.of(tier)), percent(share.of(tier)),
                           grouped(report.evictions.of(tier)),
                           grouped(events.created + events.migrated), grouped(events.deleted),
                           grouped(events.resident)));
  }
  out.append(fmt::format("  {:<6}{:>12}{:>10}{:>12}\n", "all", grouped(report.hits.total()),
                         percent(share.total()), grouped(report.evictions.total())));
}

std::string route_name(const MovedBlocks& moved, std::string_view arrow) {
  return fmt::format("{}{}{}", to_string(moved.from), arrow, to_string(moved.to));
}

void append_moved(std::string& out, const ReplayReport& report, TextStyle style) {
  if (report.moved.empty()) return;
  out.append(heading(
      fmt::format("  {:<10}{:>12}{:>14}{:>14}{:>10}", "moved", "blocks", "bytes", "busy", "GB/s"),
      style));
  for (const MovedBlocks& moved : report.moved) {
    out.append(fmt::format("  {:<10}{:>12}{:>14}{:>14}{:>10.2f}\n", route_name(moved, " > "),
                           grouped(moved.blocks), format_size(moved.bytes),
                           format_duration(moved.busy), moved.gb_per_second()));
  }
}

std::string verified_text(const ReplayReport& report, TextStyle style) {
  if (report.options.bytes == ReplayOptions::Bytes::kNone) return "no bytes were moved";
  const std::string text = fmt::format("{} blocks compared, {} wrong",
                                       grouped(report.verified_blocks), grouped(report.mismatches));
  return report.mismatches == 0 ? text : painted(text, "1;31", style);
}

std::string onboarded_text(const ReplayReport& report, TextStyle style) {
  const std::string failed = fmt::format("{} loads failed", grouped(report.failed_loads));
  return fmt::format("{} blocks, {}", grouped(report.onboarded_blocks),
                     report.failed_loads == 0 ? failed : painted(failed, "1;31", style));
}

std::string sizes_text(const ReplayOptions& options) {
  const std::string on =
      options.device == ReplayOptions{}.device ? "" : fmt::format("; G1 on {}", options.device);
  return fmt::format("G1 {}, G2 {}, G3 {} blocks; groups {}{}", grouped(options.g1_blocks),
                     grouped(options.g2_blocks), grouped(options.g3_blocks),
                     format_replay_groups(options.groups), on);
}

nlohmann::ordered_json per_tier_json(const PerTier<uint64_t>& counts) {
  nlohmann::ordered_json json;
  json["total"] = counts.total();
  json["g1"] = counts.g1;
  json["g2"] = counts.g2;
  json["g3"] = counts.g3;
  return json;
}

nlohmann::ordered_json options_json(const ReplayOptions& options) {
  nlohmann::ordered_json json;
  json["device"] = options.device;
  json["cuda_ring_size"] = nullptr;
  if (gpu_ordinal(options.device)) json["cuda_ring_size"] = options.cuda_ring_size;
  json["g1_blocks"] = options.g1_blocks;
  json["g2_blocks"] = options.g2_blocks;
  json["g3_blocks"] = options.g3_blocks;
  json["block_bytes"] = options.block_bytes;
  json["ranks"] = options.ranks;
  json["groups"] = format_replay_groups(options.groups);
  json["disk_dir"] = options.disk_dir.native();
  json["policy"] = to_string(options.policy);
  json["bytes"] = to_string(options.bytes);
  json["overlap"] = to_string(options.overlap);
  json["seed"] = options.seed;
  json["limit"] = nullptr;
  if (options.limit) json["limit"] = *options.limit;
  return json;
}

nlohmann::ordered_json moved_json(const MovedBlocks& moved) {
  std::string route = route_name(moved, "_to_");
  for (char& c : route) {
    if (c == 'G') c = 'g';
  }
  nlohmann::ordered_json json;
  json["route"] = std::move(route);
  json["blocks"] = moved.blocks;
  json["bytes"] = moved.bytes;
  json["busy_seconds"] = seconds(moved.busy);
  json["gb_per_second"] = moved.gb_per_second();
  return json;
}

nlohmann::ordered_json events_json(const TierEvents& events) {
  nlohmann::ordered_json json;
  json["created"] = events.created;
  json["migrated"] = events.migrated;
  json["deleted"] = events.deleted;
  json["resident"] = events.resident;
  return json;
}

// --- the plot
// -------------------------------------------------------------------------------------

constexpr size_t kPlotRows = 12;
constexpr size_t kRowsPerLabel = 3;  // a quarter of the height
constexpr size_t kAxisWidth = 6;     // "100 %|"
constexpr size_t kPlotColumns = kPlotWidth - kAxisWidth;

struct Glyphs {
  PerTier<std::string_view> tier;
  std::string_view wall, corner, floor;
};

constexpr Glyphs kAscii{{"#", "+", "."}, "|", "+", "-"};
constexpr Glyphs kUtf8{{"\u2588", "\u2592", "\u2591"}, "\u2502", "\u2514", "\u2500"};

// Hits when `accesses` had been made, on straight lines between the samples. `at` is the first
// sample that is not before; it only moves on.
PerTier<double> hits_at(std::span<const TimelineSample> timeline, double accesses, size_t& at) {
  while (at + 1 < timeline.size() && static_cast<double>(timeline[at].accesses) < accesses) ++at;
  const TimelineSample before = at == 0 ? TimelineSample{} : timeline[at - 1];
  const TimelineSample& after = timeline[at];
  const double weight = ratio(accesses - static_cast<double>(before.accesses),
                              static_cast<double>(after.accesses - before.accesses));
  PerTier<double> hits;
  for (const TierId tier : kTiers) {
    const auto low = static_cast<double>(before.hits.of(tier));
    hits.of(tier) = low + weight * (static_cast<double>(after.hits.of(tier)) - low);
  }
  return hits;
}

// What each column of the plot shows: the hit share of its part of the trace.
std::vector<PerTier<double>> shares_of_columns(std::span<const TimelineSample> timeline) {
  const auto total = static_cast<double>(timeline.back().accesses);
  const double width = total / kPlotColumns;
  std::vector<PerTier<double>> shares;
  PerTier<double> before;
  size_t at = 0;
  for (size_t column = 1; column <= kPlotColumns; ++column) {
    const PerTier<double> hits = hits_at(timeline, width * static_cast<double>(column), at);
    PerTier<double> share;
    for (const TierId tier : kTiers) share.of(tier) = (hits.of(tier) - before.of(tier)) / width;
    shares.push_back(share);
    before = hits;
  }
  return shares;
}

// What the plot's height stands for, in percent: the highest column fits, and quarters are whole.
unsigned percent_at_top(std::span<const PerTier<double>> shares) {
  constexpr unsigned kTops[] = {4, 8, 12, 20, 40, 60, 80};
  constexpr double kRounding = 1e-6;
  double highest = 0;
  for (const auto& share : shares) highest = std::max(highest, share.total());
  const auto* fits = std::find_if(std::begin(kTops), std::end(kTops), [highest](unsigned top) {
    return highest * 100 <= top + kRounding;
  });
  return fits == std::end(kTops) ? 100 : *fits;
}

std::string_view cell(const PerTier<double>& share, double height, const Glyphs& glyphs) {
  double top = 0;
  for (const TierId tier : kTiers) {
    top += share.of(tier);
    if (height < top) return glyphs.tier.of(tier);
  }
  return " ";
}

}  // namespace

double MovedBlocks::gb_per_second() const noexcept {
  return ratio(static_cast<double>(bytes) / 1e9, seconds(busy));
}

PerTier<double> ReplayReport::hit_share() const noexcept {
  const auto all = static_cast<double>(accesses);
  return {ratio(static_cast<double>(hits.g1), all), ratio(static_cast<double>(hits.g2), all),
          ratio(static_cast<double>(hits.g3), all)};
}

double ReplayReport::accesses_per_second() const noexcept {
  return ratio(static_cast<double>(accesses), seconds(wall_time));
}

std::string report_table(const ReplayReport& report, TextStyle style) {
  std::string out;
  append_line(out, "trace", report.trace);
  append_line(out, "tiers", sizes_text(report.options));
  append_line(out, "requests", grouped(report.requests));
  append_line(out, "block accesses", grouped(report.accesses));
  append_line(
      out, "hits",
      fmt::format("{}, {}", grouped(report.hits.total()), percent(report.hit_share().total())));
  append_line(out, "misses", grouped(report.misses));
  append_line(out, "bytes", verified_text(report, style));
  out.append("\n");
  append_tiers(out, report, style);
  out.append("\n");
  append_moved(out, report, style);
  if (!report.moved.empty()) out.append("\n");
  append_line(out, "stored",
              fmt::format("{} blocks, {} dropped (no room, or too many under way)",
                          grouped(report.stored_blocks), grouped(report.dropped_stores)));
  append_line(out, "onboarded", onboarded_text(report, style));
  append_line(out, "disk writes",
              fmt::format("{} blocks in the trace, {} at the stop",
                          grouped(report.disk_writes_blocks), grouped(report.drained_blocks)));
  append_line(out, "time",
              fmt::format("{}, {} accesses a second", format_duration(report.wall_time),
                          grouped(static_cast<uint64_t>(report.accesses_per_second()))));
  append_line(
      out, "memory",
      fmt::format("{} at most in use, {} configured in all tiers",
                  format_size(report.peak_rss_bytes), format_size(report.configured_bytes)));
  return out;
}

std::string report_json(const ReplayReport& report) {
  nlohmann::ordered_json json;
  json["format"] = "kvbm-replay-report";
  json["version"] = kReportVersion;
  json["trace"] = report.trace;
  json["options"] = options_json(report.options);
  json["requests"] = report.requests;
  json["accesses"] = report.accesses;
  const PerTier<double> share = report.hit_share();
  json["hit_share"] = {{"total", ratio(static_cast<double>(report.hits.total()),
                                       static_cast<double>(report.accesses))},
                       {"g1", share.g1},
                       {"g2", share.g2},
                       {"g3", share.g3}};
  json["hits"] = per_tier_json(report.hits);
  json["misses"] = report.misses;
  json["verified_blocks"] = report.verified_blocks;
  json["mismatches"] = report.mismatches;
  json["first_mismatch"] = nullptr;
  if (!report.first_mismatch.empty()) json["first_mismatch"] = report.first_mismatch;
  json["evictions"] = per_tier_json(report.evictions);
  json["disk_writes_blocks"] = report.disk_writes_blocks;
  json["drained_blocks"] = report.drained_blocks;
  json["onboarded_blocks"] = report.onboarded_blocks;
  json["failed_loads"] = report.failed_loads;
  json["stored_blocks"] = report.stored_blocks;
  json["dropped_stores"] = report.dropped_stores;
  json["moved"] = nlohmann::ordered_json::array();
  for (const MovedBlocks& moved : report.moved) json["moved"].push_back(moved_json(moved));
  json["events"] = {{"g1", events_json(report.events.g1)},
                    {"g2", events_json(report.events.g2)},
                    {"g3", events_json(report.events.g3)}};
  json["wall_seconds"] = seconds(report.wall_time);
  json["accesses_per_second"] = report.accesses_per_second();
  json["peak_rss_bytes"] = report.peak_rss_bytes;
  json["configured_bytes"] = report.configured_bytes;
  json["timeline"] = nlohmann::ordered_json::array();
  for (const TimelineSample& sample : report.timeline) {
    json["timeline"].push_back({{"accesses", sample.accesses},
                                {"g1", sample.hits.g1},
                                {"g2", sample.hits.g2},
                                {"g3", sample.hits.g3}});
  }
  // File names need not be UTF-8; JSON has to be.
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

std::string plot_hits(std::span<const TimelineSample> timeline, TextStyle style) {
  if (timeline.empty() || timeline.back().accesses == 0) return {};
  for (size_t i = 1; i < timeline.size(); ++i) {
    KVBM_CONTRACT(timeline[i - 1].accesses <= timeline[i].accesses, "accesses of samples ascend");
  }
  const Glyphs& glyphs = style.letters == TextStyle::Letters::kUtf8 ? kUtf8 : kAscii;
  const auto shares = shares_of_columns(timeline);
  const unsigned top = percent_at_top(shares);

  std::string out;
  for (size_t row = kPlotRows; row-- > 0;) {
    const bool labelled = (row + 1) % kRowsPerLabel == 0;
    out.append(labelled ? fmt::format("{:>3} %", top * (row + 1) / kPlotRows) : "     ");
    out.append(glyphs.wall);
    std::string cells;
    for (const auto& share : shares) {
      cells.append(cell(share, (static_cast<double>(row) + 0.5) / kPlotRows * top / 100, glyphs));
    }
    cells.erase(cells.find_last_not_of(' ') + 1);
    out.append(cells).append("\n");
  }
  out.append("  0 %").append(glyphs.corner);
  for (size_t column = 0; column < kPlotColumns; ++column) out.append(glyphs.floor);
  out.append("\n");
  const std::string legend =
      fmt::format("hit share: {} G1  {} G2  {} G3", glyphs.tier.g1, glyphs.tier.g2, glyphs.tier.g3);
  // Every glyph is one column wide, whatever its bytes.
  const size_t legend_width = std::string_view("hit share: # G1  # G2  # G3").size();
  const std::string end = fmt::format("{} accesses", format_count(timeline.back().accesses));
  const size_t gap = kPlotColumns - legend_width - end.size();
  out.append(kAxisWidth, ' ').append(legend).append(gap, ' ').append(end).append("\n");
  return out;
}

}  // namespace kvbm
