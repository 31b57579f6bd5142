// SPDX-License-Identifier: Apache-2.0
// Channel: how a leader talks to its workers outside the engine's step.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/ids.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/protocol/messages.hpp"

namespace kvbm {

/// Asked every few milliseconds, on its own thread, by who waits for workers; false ends the wait.
using KeepWaiting = std::function<bool()>;

/// What has come in since the last look.
struct ChannelInbox {
  std::vector<OpResult> results;  ///< of each rank in the order in which it gave them
  std::vector<RankId> lost;       ///< ranks that will not answer any more
  /// To be looked at before the results: those of operations that were cancelled for it come later,
  /// but for some where two parts of a place fail at once.
  std::vector<ShrunkPlace> shrunk = {};

  [[nodiscard]] bool empty() const noexcept {
    return results.empty() && lost.empty() && shrunk.empty();
  }
};

/// The leader's end of the connection to all ranks. Every rank gets the same operations in the same
/// order, and answers each exactly once or is reported lost.
/// Threads: one thread at a time, the leader's owner.
class Channel {
 public:
  virtual ~Channel() = default;
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  /// Sends to every rank; never waits for a rank. Cancels are hints.
  virtual void send(std::span<const CopyOp> ops, std::span<const OpId> cancels) = 0;
  /// Moves out what has come in; never waits.
  [[nodiscard]] virtual ChannelInbox receive() = 0;
  /// Waits until receive() has something to give: true, or false at `deadline`, or if nothing can
  /// come.
  [[nodiscard]] virtual bool wait(TimePoint deadline) = 0;

 protected:
  Channel() = default;
};

}  // namespace kvbm
