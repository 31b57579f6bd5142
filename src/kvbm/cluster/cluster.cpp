// SPDX-License-Identifier: Apache-2.0
#include "kvbm/cluster/cluster.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

namespace kvbm {

namespace {

bool is_on_engine(const CopyOp& op) {
  return op.src.tier == TierId::kG1 || op.dst.tier == TierId::kG1;
}

}  // namespace

Cluster::Cluster(std::unique_ptr<TierManager> leader, Channel& channel, const Clock& clock,
                 EngineOperations engine_operations)
    : leader_(std::move(leader)),
      channel_(channel),
      clock_(clock),
      engine_operations_(engine_operations) {}

void Cluster::exchange() {
  leader_->tick();
  for (;;) {
    std::vector<CopyOp> ops = leader_->take_ops();
    const std::vector<OpId> cancels = leader_->take_cancels();
    if (engine_operations_ == EngineOperations::kBySteps) {
      const auto first = std::stable_partition(ops.begin(), ops.end(),
                                               [](const CopyOp& op) { return !is_on_engine(op); });
      for_steps_.insert(for_steps_.end(), std::make_move_iterator(first),
                        std::make_move_iterator(ops.end()));
      ops.erase(first, ops.end());
      cancels_for_steps_.insert(cancels_for_steps_.end(), cancels.begin(), cancels.end());
    }
    if (!ops.empty() || !cancels.empty()) channel_.send(ops, cancels);
    const ChannelInbox inbox = channel_.receive();
    if (inbox.empty()) break;
    for (const ShrunkPlace& shrunk : inbox.shrunk) leader_->on_place_shrunk(shrunk);
    for (const OpResult& result : inbox.results) leader_->on_result(result);
    for (RankId rank : inbox.lost) leader_->on_rank_lost(rank);
  }
  for (LoadOutcome& outcome : leader_->take_loads()) ended_.push_back(std::move(outcome));
  leader_->show_pools();
}

void Cluster::take_engine_operations(StepPlan& plan) {
  exchange();
  for (CopyOp& op : std::exchange(for_steps_, {})) {
    (op.dst.tier == TierId::kG1 ? plan.loads : plan.stores).push_back(std::move(op));
  }
  const std::vector<OpId> cancels = std::exchange(cancels_for_steps_, {});
  plan.cancels.insert(plan.cancels.end(), cancels.begin(), cancels.end());
}

std::vector<LoadOutcome> Cluster::take_loads() { return std::exchange(ended_, {}); }

bool Cluster::wait(TimePoint deadline) {
  const TimePoint next = leader_->next_deadline();
  if (channel_.wait(std::min(deadline, next))) return true;
  return next < deadline && next <= clock_.now();  // the leader has to apply a deadline of its own
}

LoadOutcome Cluster::wait_for(LoadId load) {
  if (std::optional<LoadOutcome> outcome = wait_for(load, kNever)) return *std::move(outcome);
  leader_->give_up(load);
  return {.load = load,
          .status = make_error(ErrorCode::kInternal, "no rank will answer this load any more"),
          .num_blocks = 0};
}

std::optional<LoadOutcome> Cluster::wait_for(LoadId load, TimePoint deadline) {
  for (;;) {
    exchange();
    const auto it = std::find_if(ended_.begin(), ended_.end(), [load](const LoadOutcome& outcome) {
      return outcome.load == load;
    });
    if (it != ended_.end()) {
      LoadOutcome outcome = std::move(*it);
      ended_.erase(it);
      return outcome;
    }
    if (!wait(deadline)) return std::nullopt;
  }
}

Status Cluster::wait_idle(TimePoint deadline) {
  for (;;) {
    exchange();
    if (leader_->idle()) return {};
    if (!wait(deadline)) {
      return make_error(ErrorCode::kTimeout, "copies between tiers did not end in time");
    }
  }
}

Status Cluster::drain(TimePoint deadline) {
  do {
    KVBM_TRY(wait_idle(deadline));
  } while (leader_->drain(kDrainBatch) > 0);
  return {};
}

}  // namespace kvbm
