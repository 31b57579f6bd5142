// SPDX-License-Identifier: Apache-2.0
// InprocChannel: the channel to workers of the same process.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "kvbm/base/executor.hpp"
#include "kvbm/cluster/channel.hpp"
#include "kvbm/worker/worker.hpp"

namespace kvbm {

/// Hands the values over as they are. What workers say is collected on whatever thread
/// they say it.
/// Ownership: borrows executor and workers, which outlive it.
class InprocChannel final : public Channel {
 public:
  /// Contract: workers[i] is rank i.
  InprocChannel(Executor& executor, std::vector<Worker*> workers);
  ~InprocChannel() override;

  void send(std::span<const CopyOp> ops, std::span<const OpId> cancels) override;
  [[nodiscard]] ChannelInbox receive() override;
  [[nodiscard]] bool wait(TimePoint deadline) override;

 private:
  struct Inbox;

  Executor& executor_;
  std::vector<Worker*> workers_;
  std::shared_ptr<Inbox> inbox_;
};

}  // namespace kvbm
