// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/metrics_doc.hpp"

#include <algorithm>
#include <array>
#include <filesystem>
#include <map>
#include <system_error>
#include <utility>

#include "kvbm/base/log.hpp"
#include "kvbm/runtime/kvbm_leader.hpp"
#include "kvbm/runtime/kvbm_worker.hpp"
#include "kvbm/tiers/pool_metrics.hpp"

namespace kvbm {
namespace {

constexpr std::string_view kBegin =
    "<!-- generated: cmake --build <build folder> --target metrics_doc -->\n";
constexpr std::string_view kEnd = "<!-- end of what is generated -->\n";

class Lister final : public StatisticsVisitor {
 public:
  Lister(std::string_view owner, std::vector<DocumentedSeries>& found)
      : owner_(owner), found_(found) {}
  void visit_counter(const MetricInfo& info, uint64_t /*value*/) override { add(info, "counter"); }
  void visit_gauge(const MetricInfo& info, int64_t /*value*/) override { add(info, "gauge"); }
  void visit_real_gauge(const MetricInfo& info, double /*value*/) override { add(info, "gauge"); }
  void visit_histogram(const MetricInfo& info, const HistogramSnapshot& /*value*/) override {
    add(info, "histogram");
  }

 private:
  void add(const MetricInfo& info, std::string_view kind) {
    found_.push_back({info, kind, owner_});
  }

  std::string_view owner_;
  std::vector<DocumentedSeries>& found_;
};

}  // namespace

Result<std::vector<DocumentedSeries>> documented_series() {
  constexpr uint64_t kBlockBytes = 4096;
  constexpr uint32_t kBlocks = 2;
  NullLogSink log;
  std::error_code error;
  const std::filesystem::path folder = std::filesystem::temp_directory_path(error);
  if (error) return make_error(ErrorCode::kIo, "there is no folder for temporary files");
  std::array<std::byte, kBlocks * kBlockBytes> tensor{};
  KVBM_ASSIGN_OR_RETURN(
      auto worker,
      KvbmWorker::create(
          {.rank = 0,
           .num_blocks = kBlocks,
           .groups = {{.run_bytes = kBlockBytes,
                       .runs = {{.base = tensor.data(), .block_stride = kBlockBytes}}}},
           .disk_directory = folder.native()},
          log));
  KvbmLeaderOptions options;
  options.groups = {{.block_tokens = 1}};
  options.host_blocks = kBlocks;
  options.disk_blocks = kBlocks;
  KvbmWorker* const workers[] = {worker.get()};
  KVBM_ASSIGN_OR_RETURN(const auto leader, KvbmLeader::create(options, workers, log));
  MetricsRegistry of_manager;
  const PoolMetrics gpu_pool(of_manager, TierId::kG1, SameKey::kDuplicate);

  std::vector<DocumentedSeries> found;
  for (const auto& [owner, registry] :
       {std::pair<std::string_view, MetricsRegistry*>("leader", &leader->metrics()),
        {"worker", &worker->metrics()},
        {"manager", &of_manager}}) {
    Lister lister(owner, found);
    registry->visit(lister);
  }
  return found;
}

std::string metrics_table(const std::vector<DocumentedSeries>& series) {
  struct Row {
    const DocumentedSeries* first = nullptr;
    std::vector<std::string_view> owners;
    std::map<std::string, std::vector<std::string>> labels;
  };
  const auto add_once = [](auto& list, const auto& value) {
    if (std::find(list.begin(), list.end(), value) == list.end()) list.push_back(value);
  };
  std::map<std::string, Row> rows;
  for (const DocumentedSeries& one : series) {
    Row& row = rows[one.info.name];
    if (row.first == nullptr) row.first = &one;
    add_once(row.owners, one.owner);
    for (const MetricLabel& label : one.info.labels) add_once(row.labels[label.key], label.value);
  }
  std::string table =
      "| name | type | unit | labels | of | meaning |\n"
      "|---|---|---|---|---|---|\n";
  for (auto& [name, row] : rows) {
    std::string labels;
    for (auto& [key, values] : row.labels) {
      std::sort(values.begin(), values.end());
      labels.append(labels.empty() ? "`" : "; `").append(key).append("`:");
      for (const std::string& value : values) labels.append(" ").append(value);
    }
    std::string owners;
    for (const std::string_view owner : row.owners) {
      owners.append(owners.empty() ? "" : ", ").append(owner);
    }
    table.append("| `").append(name).append("` | ").append(row.first->kind).append(" | ");
    table.append(row.first->info.unit).append(" | ").append(labels).append(" | ");
    table.append(owners).append(" | ").append(row.first->info.help).append(" |\n");
  }
  return table;
}

Result<std::string> with_metrics_table(std::string_view document, std::string_view table) {
  const size_t begin = document.find(kBegin);
  const size_t end = document.find(kEnd);
  if (begin == std::string_view::npos || end == std::string_view::npos || end < begin) {
    return make_error(ErrorCode::kInvalidArgument,
                      "the document lacks the marks of what is generated: " + std::string(kBegin));
  }
  std::string text(document.substr(0, begin + kBegin.size()));
  text.append("\n").append(table).append("\n").append(document.substr(end));
  return text;
}

}  // namespace kvbm
