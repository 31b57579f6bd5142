// SPDX-License-Identifier: Apache-2.0
// ConnectorWorker: the worker half of an engine's connector: the engine's hooks over a Worker.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "kvbm/base/ids.hpp"
#include "kvbm/base/mutex.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/connector/connector_step.hpp"
#include "kvbm/device/device.hpp"
#include "kvbm/worker/worker.hpp"

namespace kvbm {

/// Where an engine's forward pass runs.
enum class EngineCompute : uint8_t {
  kOnStream,  ///< queued on a stream of the device: nothing waits on the host
  kOnHost,    ///< on the thread that calls the hooks, which therefore wait
};

/// Translates the hooks of a step into the worker's, and keeps what the engine has to hear.
/// Order of a step: begin_step, layer_needed per layer while the step has loads, end_step, take_*.
///
/// Ownership: borrows worker and device, which outlive it; observes the worker's results.
/// Threads: the engine's thread.
class ConnectorWorker {
 public:
  ConnectorWorker(Worker& worker, Device& device, StreamRef compute, EngineCompute where);
  ~ConnectorWorker();
  ConnectorWorker(const ConnectorWorker&) = delete;
  ConnectorWorker& operator=(const ConnectorWorker&) = delete;

  /// Begins a step with the bytes of a ConnectorStep. Errors: those of decode_connector_step, and
  /// of Worker::begin_step: nothing may be computed then.
  Status begin_step(std::span<const std::byte> step);
  /// Whether a layer may have to wait for loads: hooks of a step without them cost nothing, nor do
  /// those after the last layers that are loaded.
  [[nodiscard]] bool has_loads() const noexcept { return has_loads_; }
  /// Makes a layer's compute wait for what it reads; see Worker::layer_needed, also for `layer` and
  /// the errors.
  Status layer_needed(LayerId layer);
  /// The same for all layers: for an engine without a hook before each.
  Status all_layers_needed();
  /// Ends the step: what it wrote can be stored. The next step waits for loads that no layer has
  /// asked for.
  void end_step();

  /// Moves out the loads between steps that have ended on every rank.
  [[nodiscard]] std::vector<EndedLoad> take_ended_loads();
  /// Moves out engine blocks that this rank could not give their content since the last call.
  [[nodiscard]] std::vector<BlockId> take_failed_blocks();

 private:
  struct Loads;

  Status waited_for(const LoadWaits& waits);

  Worker& worker_;
  Device& device_;
  const StreamRef compute_;
  const EngineCompute where_;
  bool in_step_ = false;
  bool has_loads_ = false;
  bool left_loads_ = false;  // the step before, that no layer has waited for
  std::vector<EndedLoad> ended_loads_;
  std::shared_ptr<Loads> loads_;
};

}  // namespace kvbm
