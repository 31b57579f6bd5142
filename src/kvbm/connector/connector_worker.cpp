// SPDX-License-Identifier: Apache-2.0
#include "kvbm/connector/connector_worker.hpp"

#include <unordered_map>
#include <utility>

#include "kvbm/base/contract.hpp"

namespace kvbm {

/// The loads of this worker that have no result yet, by operation: their destinations.
struct ConnectorWorker::Loads {
  Mutex mutex{LockRank::kConnector, "connector.loads"};
  std::unordered_map<OpId, std::vector<BlockId>> open KVBM_GUARDED_BY(mutex);
  std::vector<BlockId> failed KVBM_GUARDED_BY(mutex);

  void take(const OpResult& result) {
    MutexLock lock(mutex);
    const auto found = open.find(result.op);
    if (found == open.end()) return;
    const std::vector<BlockId> blocks = std::move(found->second);
    open.erase(found);
    if (result.outcome == Outcome::kSucceeded) return;
    if (result.failed.empty()) {
      failed.insert(failed.end(), blocks.begin(), blocks.end());
      return;
    }
    for (const uint32_t position : result.failed) failed.push_back(blocks.at(position));
  }
};

ConnectorWorker::ConnectorWorker(Worker& worker, Device& device, StreamRef compute,
                                 EngineCompute where)
    : worker_(worker),
      device_(device),
      compute_(compute),
      where_(where),
      loads_(std::make_shared<Loads>()) {
  worker_.observe_results([loads = loads_](const OpResult& result) { loads->take(result); });
}

ConnectorWorker::~ConnectorWorker() { worker_.observe_results(nullptr); }

Status ConnectorWorker::begin_step(std::span<const std::byte> bytes) {
  KVBM_CONTRACT(!in_step_, "the step before has not ended");
  KVBM_ASSIGN_OR_RETURN(ConnectorStep step, decode_connector_step(bytes));
  {
    MutexLock lock(loads_->mutex);
    for (const CopyOp& load : step.plan.loads) loads_->open.emplace(load.op, load.to);
  }
  for (EndedLoad& load : step.ended_loads) ended_loads_.push_back(std::move(load));
  has_loads_ = !step.plan.loads.empty();
  in_step_ = true;
  const bool left_loads = std::exchange(left_loads_, false);
  KVBM_TRY(worker_.begin_step(step.plan, compute_));
  if (where_ == EngineCompute::kOnHost && (left_loads || !step.plan.fences.empty())) {
    KVBM_TRY(device_.synchronize(compute_));
  }
  return {};
}

Status ConnectorWorker::layer_needed(LayerId layer) {
  if (!has_loads_) return {};
  KVBM_ASSIGN_OR_RETURN(const LoadWaits waits, worker_.layer_needed(layer, compute_));
  return waited_for(waits);
}

Status ConnectorWorker::all_layers_needed() {
  if (!has_loads_) return {};
  KVBM_ASSIGN_OR_RETURN(const LoadWaits waits, worker_.all_layers_needed(compute_));
  return waited_for(waits);
}

Status ConnectorWorker::waited_for(const LoadWaits& waits) {
  has_loads_ = waits.more;
  if (where_ != EngineCompute::kOnHost || !waits.waits) return {};
  return device_.synchronize(compute_);
}

void ConnectorWorker::end_step() {
  if (!in_step_) return;
  worker_.end_step(compute_);
  in_step_ = false;
  left_loads_ = std::exchange(has_loads_, false);
}

std::vector<EndedLoad> ConnectorWorker::take_ended_loads() {
  return std::exchange(ended_loads_, {});
}

std::vector<BlockId> ConnectorWorker::take_failed_blocks() {
  MutexLock lock(loads_->mutex);
  return std::exchange(loads_->failed, {});
}

}  // namespace kvbm
