// SPDX-License-Identifier: Apache-2.0
#include "apps/kvbench/bench_report.hpp"

#include <algorithm>
#include <map>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "kvbm/base/units.hpp"

#include "apps/kvbm/build_info.hpp"

namespace kvbm {
namespace {

template <class T>
std::string list_text(const std::vector<T>& values) {
  std::string text;
  for (const T& value : values) {
    if (!text.empty()) text += ", ";
    if constexpr (std::is_enum_v<T>) {
      text += to_string(value);
    } else {
      text += std::to_string(value);
    }
  }
  return "[" + text + "]";
}

std::string cell_text(const BenchCell& cell) {
  return fmt::format("tpb={} N={:>3} {} {:<6}", cell.tokens_per_block, cell.num_blocks,
                     to_string(cell.pattern), to_string(cell.direction));
}

template <class T>
nlohmann::ordered_json names_json(const std::vector<T>& values) {
  auto names = nlohmann::ordered_json::array();
  for (const T value : values) names.push_back(to_string(value));
  return names;
}

nlohmann::ordered_json cell_json(const BenchCell& cell, CopyBackend backend) {
  return {{"tokens_per_block", cell.tokens_per_block},
          {"num_blocks", cell.num_blocks},
          {"pattern", to_string(cell.pattern)},
          {"direction", to_string(cell.direction)},
          {"backend", to_string(backend)}};
}

/// Digits beyond these say nothing.
double rounded(double value, int digits) {
  return std::stod(fmt::format("{:.{}f}", value, digits));
}

}  // namespace

std::string header_text(const KvbenchOptions& options, const BenchDevice& device) {
  const BenchShape& shape = options.shape;
  const std::string model = shape == BenchShape()
                                ? std::string("Llama 3.1 70B (bf16)")
                                : fmt::format("custom ({}-byte elements)", shape.dtype_width_bytes);
  const size_t total = options.cells().size() * options.backends.size();
  std::string text = "KV Cache Transfer Benchmark\n";
  const auto line = [&text](std::string_view name, const std::string& value) {
    text.append(fmt::format("  {}: {}\n", name, value));
  };
  line("Model", model);
  text.append(fmt::format("  Layers: {}, KV heads: {}, Head dim: {}, Outer dim: {}\n", shape.layers,
                          shape.kv_heads, shape.head_dim, shape.outer_dim));
  text.append(fmt::format("  Warmup: {}, Timed: {}\n", options.warmup, options.iters));
  line("Batch API available", device.has_batch ? "true" : "false");
  line("tokens_per_block", list_text(options.tokens_per_block));
  line("num_blocks", list_text(options.num_blocks));
  line("directions", list_text(options.directions));
  line("patterns", list_text(options.patterns));
  line("backends", list_text(options.backends));
  line("Total tests", std::to_string(total));
  line("Device", fmt::format("{} ({})", device.name, device.model));
  line("Block ids", options.sequential_ids ? "sequential" : "in any order");
  return text + "\n";
}

std::string block_text(const BenchShape& shape, uint32_t tokens_per_block) {
  const CellSizes sizes = sizes_of(shape, {.tokens_per_block = tokens_per_block});
  return fmt::format(
      "--- tokens_per_block={}, inner={} bytes ({} KB), block={} bytes ({:.1f} MB) ---\n",
      tokens_per_block, sizes.inner, sizes.inner / kKiB, sizes.block,
      static_cast<double>(sizes.block) / static_cast<double>(kMiB));
}

std::string csv_header() {
  return "tokens_per_block,num_blocks,pattern,direction,backend,total_bytes,inner_bytes,copy_size,"
         "num_copies,median_ms,bandwidth_gbps,peak_gbps,share\n";
}

std::string csv_row(const TestResult& result) {
  return fmt::format("{},{},{},{},{},{},{},{},{},{:.4f},{:.2f},{:.2f},{:.3f}\n",
                     result.cell.tokens_per_block, result.cell.num_blocks,
                     to_string(result.cell.pattern), to_string(result.cell.direction),
                     to_string(result.backend), result.sizes.total, result.sizes.inner,
                     result.sizes.copy, result.sizes.num_copies, result.median_ms,
                     result.bandwidth_gbps, result.peak_gbps, result.share());
}

std::string progress_text(size_t number, size_t total, const BenchCell& cell, CopyBackend backend) {
  return fmt::format("  [{}/{}] {} {:<12} ... ", number, total, cell_text(cell),
                     to_string(backend));
}

std::string outcome_text(const TestResult& result) {
  return fmt::format("{:.2f} GB/s ({:.4f} ms)\n", result.bandwidth_gbps, result.median_ms);
}

std::string not_run_text(std::span<const NotRun> not_run) {
  std::map<std::pair<CopyBackend, std::string>, size_t> counts;
  for (const NotRun& each : not_run) ++counts[{each.backend, each.reason}];
  std::string text;
  for (const auto& [what, count] : counts) {
    text.append(fmt::format("not run: {} ({} test{}): {}\n", to_string(what.first), count,
                            count == 1 ? "" : "s", what.second));
  }
  return text;
}

std::vector<AutoShare> compare_auto(std::span<const TestResult> results) {
  std::vector<AutoShare> shares;
  for (const TestResult& chosen : results) {
    if (chosen.backend != CopyBackend::kAuto) continue;
    const TestResult* best = nullptr;
    for (const TestResult& other : results) {
      if (!is_fixed(other.backend) || other.cell != chosen.cell) continue;
      if (best == nullptr || other.bandwidth_gbps > best->bandwidth_gbps) best = &other;
    }
    if (best == nullptr) continue;
    shares.push_back({.cell = chosen.cell,
                      .best = best->backend,
                      .share = chosen.bandwidth_gbps / best->bandwidth_gbps});
  }
  return shares;
}

std::string auto_text(std::span<const AutoShare> shares) {
  if (shares.empty()) return {};
  std::string text = "auto beside the fastest fixed backend of its cell:\n";
  for (const AutoShare& each : shares) {
    text.append(fmt::format("  {} {:<12} {:.3f}{}\n", cell_text(each.cell), to_string(each.best),
                            each.share, each.share < kLeastAutoShare ? "  below the bar" : ""));
  }
  const auto worst = std::ranges::min_element(shares, {}, &AutoShare::share);
  const auto below = std::ranges::count_if(
      shares, [](const AutoShare& each) { return each.share < kLeastAutoShare; });
  text.append(fmt::format("  worst {:.3f}: {} against {}; {} of {} cells below {}\n", worst->share,
                          cell_text(worst->cell), to_string(worst->best), below, shares.size(),
                          kLeastAutoShare));
  return text;
}

std::string report_json(const KvbenchOptions& options, const BenchReport& report) {
  using Json = nlohmann::ordered_json;
  const BenchShape& shape = options.shape;
  Json plain = Json::array();
  for (const PlainCopy& each : report.plain) {
    plain.push_back({{"direction", to_string(each.direction)},
                     {"total_bytes", each.bytes},
                     {"bandwidth_gbps", rounded(each.gbps, 3)}});
  }
  Json results = Json::array();
  for (const TestResult& each : report.results) {
    Json result = cell_json(each.cell, each.backend);
    result.update({{"total_bytes", each.sizes.total},
                   {"inner_bytes", each.sizes.inner},
                   {"copy_size", each.sizes.copy},
                   {"num_copies", each.sizes.num_copies},
                   {"timed", each.timed},
                   {"median_ms", rounded(each.median_ms, 5)},
                   {"min_ms", rounded(each.min_ms, 5)},
                   {"bandwidth_gbps", rounded(each.bandwidth_gbps, 3)},
                   {"peak_gbps", rounded(each.peak_gbps, 3)},
                   {"share", rounded(each.share(), 4)},
                   {"plain_gbps", rounded(each.plain_gbps, 3)},
                   {"share_of_plain", rounded(each.bandwidth_gbps / each.plain_gbps, 4)}});
    if (!each.chosen.empty()) result["chosen"] = each.chosen;
    results.push_back(std::move(result));
  }
  Json not_run = Json::array();
  for (const NotRun& each : report.not_run) {
    Json entry = cell_json(each.cell, each.backend);
    entry["reason"] = each.reason;
    not_run.push_back(std::move(entry));
  }
  Json compared = Json::array();
  for (const AutoShare& each : compare_auto(report.results)) {
    Json entry = cell_json(each.cell, each.best);
    entry["auto_share"] = rounded(each.share, 4);
    compared.push_back(std::move(entry));
  }
  const Json document = {{"format", "kvbench"},
                         {"version", 1},
                         {"kvbm", kProgramVersion},
                         {"device",
                          {{"name", report.device.name},
                           {"model", report.device.model},
                           {"driver", report.device.driver},
                           {"driver_cuda", report.device.driver_version},
                           {"has_memcpy_batch_async", report.device.has_batch}}},
                         {"options",
                          {{"layers", shape.layers},
                           {"kv_heads", shape.kv_heads},
                           {"head_dim", shape.head_dim},
                           {"outer_dim", shape.outer_dim},
                           {"dtype_width_bytes", shape.dtype_width_bytes},
                           {"tokens_per_block", options.tokens_per_block},
                           {"num_blocks", options.num_blocks},
                           {"patterns", names_json(options.patterns)},
                           {"directions", names_json(options.directions)},
                           {"backends", names_json(options.backends)},
                           {"warmup", options.warmup},
                           {"iters", options.iters},
                           {"test_ms", options.test_ms},
                           {"sequential_ids", options.sequential_ids}}},
                         {"plain", std::move(plain)},
                         {"results", std::move(results)},
                         {"not_run", std::move(not_run)},
                         {"auto", std::move(compared)}};
  return document.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace kvbm
