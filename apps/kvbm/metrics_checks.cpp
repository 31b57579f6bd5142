// SPDX-License-Identifier: Apache-2.0
#include "apps/kvbm/metrics_checks.hpp"

#include <cmath>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "kvbm/base/units.hpp"

namespace kvbm {
namespace {

/// Below this share of what was stored little has come back.
constexpr double kLittle = 0.1;
constexpr double kManyDrops = 0.05;

/// The page in the words of the tiers.
struct Counts {
  explicit Counts(const MetricsPage& the_page) : page(the_page) {}

  [[nodiscard]] double blocks(const char* route) const {
    return page.sum("kvbm_transfer_blocks_total", {"route", route});
  }
  [[nodiscard]] double bytes(const char* route) const {
    return page.sum("kvbm_transfer_bytes_total", {"route", route});
  }
  [[nodiscard]] double pool(const char* name, const char* pool) const {
    return page.sum(name, {"pool", pool});
  }

  const MetricsPage& page;
};

double share(double part, double whole) { return whole > 0 ? part / whole : 0; }

std::string count(double value) {
  return value >= 0 && value < 1e18 ? format_count(static_cast<uint64_t>(value)) : "?";
}
std::string size(double value) {
  return value >= 0 && value < 1e18 ? format_size(static_cast<uint64_t>(value)) : "?";
}
std::string percent(double part) {
  return std::isfinite(part) ? fmt::format("{:.1f} %", 100 * part) : "?";
}

DoctorFinding finding(std::string found, std::string mend) {
  return {mend.empty() ? DoctorStatus::kOk : DoctorStatus::kWarn, std::move(found),
          std::move(mend)};
}

DoctorFinding look_at_hits(const Counts& counts) {
  const double loaded = counts.blocks("g2_to_g1") + counts.blocks("g3_to_g1");
  const double stored = counts.blocks("g1_to_g2") + counts.blocks("g1_to_g3");
  std::string found = fmt::format("{} blocks loaded, {} stored", count(loaded), count(stored));
  if (counts.page.has("kvbm_matched_tokens")) {
    found = fmt::format(
        "{} tokens matched; of what the last look-ups could load {} was in host memory, {} on disk",
        count(counts.page.sum("kvbm_matched_tokens")),
        percent(counts.page.sum("kvbm_host_cache_hit_rate")),
        percent(counts.page.sum("kvbm_disk_cache_hit_rate")));
  }
  std::string mend;
  if (stored == 0) {
    mend = "nothing was stored yet: are prompts longer than a block, and is prefix caching on?";
  } else if (loaded == 0) {
    mend =
        "nothing ever came back: prompts share no whole block, or the engine's own cache has it "
        "all, or PYTHONHASHSEED differs";
  }
  return finding(std::move(found), std::move(mend));
}

/// What a tier was given against what it gave back.
struct TierFlow {
  const char* pool;
  const char* setting;
  double in;
  double in_bytes;
  double out;
  double out_bytes;
};

DoctorFinding look_at_tier(const Counts& counts, const TierFlow& flow) {
  const double room =
      counts.pool("kvbm_blocks_free", flow.pool) + counts.pool("kvbm_blocks_allocated", flow.pool);
  const double evicted = counts.pool("kvbm_evictions_total", flow.pool);
  std::string found = fmt::format("{} blocks in ({}), {} out ({}), {} evicted, room for {}",
                                  count(flow.in), size(flow.in_bytes), count(flow.out),
                                  size(flow.out_bytes), count(evicted), count(room));
  if (room == 0) return finding("there is none", "");
  if (flow.in == 0) return finding(std::move(found), "");
  found += fmt::format(", {} given back", percent(share(flow.out, flow.in)));
  std::string mend;
  if (share(flow.out, flow.in) < kLittle) {
    mend = evicted > flow.in / 2
               ? fmt::format(
                     "much comes in, little goes out, most is evicted before it is asked for: "
                     "raise {}, or prompts share nothing",
                     flow.setting)
               : "much comes in, little goes out, and not for lack of room: prompts share little "
                 "that the tiers above do not have";
  }
  return finding(std::move(found), std::move(mend));
}

DoctorFinding look_at_host(const Counts& counts) {
  return look_at_tier(counts, {.pool = "g2",
                               .setting = "DYN_KVBM_CPU_CACHE_GB",
                               .in = counts.blocks("g1_to_g2"),
                               .in_bytes = counts.bytes("g1_to_g2"),
                               .out = counts.blocks("g2_to_g1"),
                               .out_bytes = counts.bytes("g2_to_g1")});
}

DoctorFinding look_at_disk(const Counts& counts) {
  return look_at_tier(counts, {.pool = "g3",
                               .setting = "DYN_KVBM_DISK_CACHE_GB",
                               .in = counts.blocks("g2_to_g3") + counts.blocks("g1_to_g3"),
                               .in_bytes = counts.bytes("g2_to_g3") + counts.bytes("g1_to_g3"),
                               .out = counts.blocks("g3_to_g2") + counts.blocks("g3_to_g1"),
                               .out_bytes = counts.bytes("g3_to_g2") + counts.bytes("g3_to_g1")});
}

DoctorFinding look_at_drops(const Counts& counts) {
  const char* const name = "kvbm_store_dropped_blocks_total";
  const double no_room = counts.page.sum(name, {"reason", "no_room"});
  const double backlog = counts.page.sum(name, {"reason", "backlog"});
  const double unsaved = counts.page.sum("kvbm_evicted_unsaved_blocks_total");
  const double stored = counts.blocks("g1_to_g2") + counts.blocks("g1_to_g3");
  const double part = share(no_room + backlog, no_room + backlog + stored);
  std::string found = fmt::format(
      "{} of new blocks not stored ({} for lack of room, {} with too many stores under way), {} "
      "evicted unsaved",
      percent(part), count(no_room), count(backlog), count(unsaved));
  std::string mend;
  if (part > kManyDrops) {
    mend = no_room >= backlog ? "raise DYN_KVBM_CPU_CACHE_GB: all of it is in use at once"
                              : "the tier is slower than the engine, or a small part of it: raise "
                                "its size and DYN_KVBM_STORE_BUDGET, or store to host memory first";
  } else if (unsaved > 0) {
    mend = "the disk had no slot for them: raise DYN_KVBM_DISK_CACHE_GB";
  }
  return finding(std::move(found), std::move(mend));
}

DoctorFinding look_at_failures(const Counts& counts) {
  const double failed = counts.page.sum("kvbm_transfer_failures_total", {"reason", "failed"});
  const double cancelled = counts.page.sum("kvbm_transfer_failures_total", {"reason", "cancelled"});
  const double timed_out = counts.page.sum("kvbm_loads_timed_out_total");
  const double given_up = counts.page.sum("kvbm_given_up_blocks_total");
  const double corrupt = counts.page.sum("kvbm_corrupt_blocks_total");
  const double lost = counts.page.sum("kvbm_lost_blocks_total");
  std::string found = fmt::format(
      "{} copies failed, {} cancelled; {} loads timed out; {} blocks of the disk given up, {} "
      "corrupt; {} lost with a rank",
      count(failed), count(cancelled), count(timed_out), count(given_up), count(corrupt),
      count(lost));
  std::string mend;
  if (lost > 0) {
    mend = "a worker has gone, and nothing is stored any more: look for its end in the log";
  } else if (corrupt > 0) {
    mend = "the disk gives other bytes than it was given: replace it (answers are not affected)";
  } else if (failed + given_up > 0) {
    mend = "look for \"failed\" in the log: a full or broken disk, most likely";
  } else if (timed_out + cancelled > 0) {
    mend = "copies take too long: the disk is slower than what is asked of it";
  }
  return finding(std::move(found), std::move(mend));
}

DoctorFinding look_at_bypass(const Counts& counts) {
  const bool is_open = counts.page.sum("kvbm_bypass_open") > 0;
  const double bypassed = counts.page.sum("kvbm_bypassed_lookups_total");
  std::string found =
      fmt::format("{}, {} look-ups not made so far", is_open ? "open" : "closed", count(bypassed));
  return finding(std::move(found), is_open ? "loads keep failing, so none is tried for a while; "
                                             "the log says why"
                                   : bypassed > 0
                                       ? "loads kept failing for a time; the log says why"
                                       : "");
}

struct MetricsCheck {
  std::string_view name;
  DoctorFinding (*look)(const Counts& counts);
};

constexpr MetricsCheck kChecks[] = {
    {"hits", look_at_hits},   {"host memory", look_at_host},  {"disk", look_at_disk},
    {"drops", look_at_drops}, {"failures", look_at_failures}, {"bypass", look_at_bypass},
};

}  // namespace

Result<std::vector<NamedFinding>> examine_metrics(const MetricsPage& page) {
  if (!page.has("kvbm_transfer_blocks_total")) {
    return make_error(ErrorCode::kNotFound,
                      "the page has no series of kvbm: is it the page of kvbm (port 6880, with "
                      "DYN_KVBM_METRICS=true), and does the engine name the connector?");
  }
  const Counts counts(page);
  std::vector<NamedFinding> found;
  for (const MetricsCheck& check : kChecks) found.push_back({check.name, check.look(counts)});
  return found;
}

}  // namespace kvbm
