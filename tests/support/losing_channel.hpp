// SPDX-License-Identifier: Apache-2.0
// LosingChannel: a channel that can lose a rank, with all that the rank has not said yet, or blocks
// of it.
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

  /// The next receive() reports it.
  void shrink(const ShrunkPlace& shrunk) { shrunk_.push_back(shrunk); }

  void send(std::span<const CopyOp> ops, std::span<const OpId> cancels) override {
    inner_.send(ops, cancels);
  }

  [[nodiscard]] ChannelInbox receive() override {
    ChannelInbox inbox = inner_.receive();
    std::erase_if(inbox.results,
                  [&](const OpResult& result) { return lost_.contains(result.rank); });
    std::erase_if(inbox.shrunk,
                  [&](const ShrunkPlace& shrunk) { return lost_.contains(shrunk.rank); });
    inbox.lost.insert(inbox.lost.end(), unreported_.begin(), unreported_.end());
    unreported_.clear();
    inbox.shrunk.insert(inbox.shrunk.end(), shrunk_.begin(), shrunk_.end());
    shrunk_.clear();
    return inbox;
  }

  /// May be true for the result of a lost rank, which receive() then leaves out.
  [[nodiscard]] bool wait(TimePoint deadline) override {
    return !unreported_.empty() || !shrunk_.empty() || inner_.wait(deadline);
  }

 private:
  Channel& inner_;
  std::set<RankId> lost_;
  std::vector<RankId> unreported_;
  std::vector<ShrunkPlace> shrunk_;
};

}  // namespace kvbm::testing
