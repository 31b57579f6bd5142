// SPDX-License-Identifier: Apache-2.0
// LogicalChannel: workers that move no bytes and answer at once, to run the leader alone.
#pragma once

#include <map>
#include <span>
#include <vector>

#include "kvbm/cluster/channel.hpp"

namespace kvbm {

/// Every operation succeeds, with the bytes that a real worker would have moved. For replays of the
/// logical leg and for sizing; it holds no block.
class LogicalChannel final : public Channel {
 public:
  LogicalChannel(uint32_t num_ranks, std::span<const PlaceSpec> places);

  void send(std::span<const CopyOp> ops, std::span<const OpId> cancels) override;
  [[nodiscard]] ChannelInbox receive() override;
  [[nodiscard]] bool wait(TimePoint deadline) override;

 private:
  uint32_t num_ranks_;
  std::map<Place, uint64_t> rank_block_bytes_;
  std::vector<OpResult> results_;
};

}  // namespace kvbm
