// SPDX-License-Identifier: Apache-2.0
#include "kvbm/cluster/logical_channel.hpp"

#include <utility>

namespace kvbm {

LogicalChannel::LogicalChannel(uint32_t num_ranks, std::span<const PlaceSpec> places)
    : num_ranks_(num_ranks) {
  for (const PlaceSpec& spec : places) rank_block_bytes_[spec.place] = spec.rank_block_bytes;
}

void LogicalChannel::send(std::span<const CopyOp> ops, std::span<const OpId> /*cancels*/) {
  for (const CopyOp& op : ops) {
    const uint64_t bytes = op.to.size() * rank_block_bytes_.at(op.dst);
    for (uint32_t rank = 0; rank < num_ranks_; ++rank) {
      results_.push_back({.op = op.op,
                          .rank = RankId(static_cast<uint16_t>(rank)),
                          .outcome = Outcome::kSucceeded,
                          .bytes = bytes,
                          .failed = {}});
    }
  }
}

ChannelInbox LogicalChannel::receive() {
  return {.results = std::exchange(results_, {}), .lost = {}};
}

bool LogicalChannel::wait(TimePoint /*deadline*/) { return !results_.empty(); }

}  // namespace kvbm
