// SPDX-License-Identifier: Apache-2.0
#include "kvbm/replay/trace_statistics.hpp"

#include <algorithm>
#include <unordered_set>

namespace kvbm {

double TraceStatistics::best_hit_share() const noexcept {
  return accesses == 0 ? 0.0 : static_cast<double>(reusable_blocks) / static_cast<double>(accesses);
}

TraceStatistics measure_trace(const Trace& trace) {
  TraceStatistics statistics;
  statistics.requests = trace.requests.size();
  std::unordered_set<uint64_t> known;
  for (const TraceRequest& request : trace.requests) {
    const auto& ids = request.hash_ids;
    statistics.accesses += ids.size();
    statistics.longest_blocks = std::max<uint64_t>(statistics.longest_blocks, ids.size());
    statistics.input_tokens += request.input_length;
    statistics.output_tokens += request.output_length;
    const auto first_new =
        std::find_if(ids.begin(), ids.end(), [&](uint64_t id) { return !known.contains(id); });
    statistics.reusable_blocks += static_cast<uint64_t>(first_new - ids.begin());
    known.insert(first_new, ids.end());
  }
  statistics.unique_blocks = known.size();
  if (!trace.requests.empty()) {
    statistics.duration = trace.requests.back().timestamp - trace.requests.front().timestamp;
  }
  return statistics;
}

}  // namespace kvbm
