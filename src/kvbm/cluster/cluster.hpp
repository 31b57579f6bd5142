// SPDX-License-Identifier: Apache-2.0
// Cluster: a leader and the channel to its ranks, so that N workers look like one.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/cluster/channel.hpp"
#include "kvbm/tiers/tier_manager.hpp"

namespace kvbm {

/// How operations on the engine's own blocks get to the workers.
enum class EngineOperations : uint8_t {
  kByChannel,  ///< at once
  kBySteps,    ///< with the engine's next step: take_engine_operations()
};

/// Carries operations out and results in. The leader counts the ranks: a block exists only when
/// every rank has confirmed its shard. Ownership: owns the leader, borrows clock and channel, which
/// outlive it. Threads: one thread at a time.
class Cluster {
 public:
  Cluster(std::unique_ptr<TierManager> leader, Channel& channel, const Clock& clock,
          EngineOperations engine_operations = EngineOperations::kByChannel);

  [[nodiscard]] TierManager& leader() noexcept { return *leader_; }
  [[nodiscard]] const TierManager& leader() const noexcept { return *leader_; }

  /// Sends what the leader wants done and hands in what has come back, until neither has more.
  /// Never waits.
  void exchange();

  /// Moves what waits for a step into its plan: loads, stores and cancels.
  void take_engine_operations(StepPlan& plan);
  /// Moves out the loads that have ended, in order.
  [[nodiscard]] std::vector<LoadOutcome> take_loads();

  /// Exchanges until the load has ended, at the latest at the leader's deadline for it.
  [[nodiscard]] LoadOutcome wait_for(LoadId load);
  /// The same until `deadline`: then nothing, and the load goes on.
  [[nodiscard]] std::optional<LoadOutcome> wait_for(LoadId load, TimePoint deadline);

  /// Exchanges until no operation is open. Errors: kTimeout.
  Status wait_idle(TimePoint deadline);

  /// Writes every dirty block of host memory to disk, a bounded number at a time, and waits for it.
  /// Errors: kTimeout.
  Status drain(TimePoint deadline);

 private:
  [[nodiscard]] bool wait(TimePoint deadline);

  static constexpr uint32_t kDrainBatch = 64;

  std::unique_ptr<TierManager> leader_;
  Channel& channel_;
  const Clock& clock_;
  const EngineOperations engine_operations_;
  std::vector<CopyOp> for_steps_;
  std::vector<OpId> cancels_for_steps_;
  std::vector<LoadOutcome> ended_;
};

}  // namespace kvbm
