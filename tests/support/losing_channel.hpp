// SPDX-License-Identifier: Apache-2.0
// LosingChannel: a channel that can lose a rank, with all that the rank has not said yet.
#pragma once

#include <algorithm>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "kvbm/cluster/channel.hpp"

namespace kvbm::testing {

/// Ownership: borrows the inner channel. Threads: as any channel.
class LosingChannel final : public Channel {
 public:
  explicit LosingChannel(Channel& inner) : inner_(inner) {}

  /// The next receive() reports it; nothing of it comes through any more.
  void lose(RankId rank) {
    lost_.insert(rank);
    unreported_.push_back(rank);
  }

  void send(std::span<const CopyOp> ops, std::span<const OpId> cancels) override {
    inner_.send(ops, cancels);
  }

  [[nodiscard]] ChannelInbox receive() override {
    ChannelInbox inbox = inner_.receive();
    std::erase_if(inbox.results,
                  [&](const OpResult& result) { return lost_.contains(result.rank); });
    inbox.lost.insert(inbox.lost.end(), unreported_.begin(), unreported_.end());
    unreported_.clear();
    return inbox;
  }

  /// May be true for the result of a lost rank, which receive() then leaves out.
  [[nodiscard]] bool wait(TimePoint deadline) override {
    return !unreported_.empty() || inner_.wait(deadline);
  }

 private:
  Channel& inner_;
  std::set<RankId> lost_;
  std::vector<RankId> unreported_;
};

}  // namespace kvbm::testing
