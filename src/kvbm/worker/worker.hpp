// SPDX-License-Identifier: Apache-2.0
// Worker: one rank. Makes places real, executes operations, answers.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/executor.hpp"
#include "kvbm/base/ids.hpp"
#include "kvbm/base/log.hpp"
#include "kvbm/base/metrics.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/device/device.hpp"
#include "kvbm/layout/layout_config.hpp"
#include "kvbm/layout/physical_layout.hpp"
#include "kvbm/memory/file.hpp"
#include "kvbm/memory/file_engine.hpp"
#include "kvbm/memory/host_pinner.hpp"
#include "kvbm/memory/pinned_memory.hpp"
#include "kvbm/protocol/messages.hpp"
#include "kvbm/transfer/calibration.hpp"

namespace kvbm {

struct WorkerOptions {
  RankId rank;
  WorkerId worker;
  ModelLayout model;                    ///< each place sets its own num_blocks
  std::string disk_directory;           ///< for places in G3
  DirectIo direct_io = DirectIo::kOff;  ///< of them
  bool zero_fill = false;               ///< of them, see FileOptions
  uint32_t max_running_operations = 8;  ///< those that may start wait their turn, onboarding first
  /// A load of a step goes by ranges of layers, the first of them not smaller than this: some time
  /// on the wire beside what a submission costs.
  uint64_t min_load_part_bytes = uint64_t{4} << 20;
  MetricsRegistry* metrics = nullptr;  ///< borrowed; of the copies. Null: counted nowhere
  /// Pins the places in host memory, for a device that does not copy pageable memory. Null: they
  /// are pageable.
  std::shared_ptr<HostPinner> pinner = nullptr;
  uint64_t pin_slice_bytes = PinnedMemoryOptions::kSliceBytes;  ///< pinned in one call
  /// What copies cost; none: measured, where the device has more than one method.
  std::optional<Calibration> calibration = std::nullopt;
};

/// Called once for every operation, on any thread, with no lock held.
using ResultCallback = std::function<void(OpResult&&)>;
/// The same, looking on.
using ResultObserver = std::function<void(const OpResult&)>;

/// Called when a place has shrunk, on any thread, with no lock held.
using ShrinkCallback = std::function<void(const ShrunkPlace&)>;

/// What a stream has been made to wait for.
struct LoadWaits {
  bool waits = false;  ///< by this call
  bool more = false;   ///< there are loads of other layers, which it has not been made to wait for
};

/// Executes what a leader asks for on the memory of one rank. Never sees a token or a policy.
///
/// An operation starts once its gates are open: steps and layers become events of the compute
/// stream, other operations are waited for here. One that reads the engine's place fails with the
/// step or layer that it waited for; for any other a gate is a matter of order alone. It ends in
/// exactly one result, given when none of its blocks can be touched any more: cancelled if it never
/// started or was refused, and nothing was read or written. One that is submitted again while it is
/// open is left out, with an error in the log. A gate or a fence on an operation that has not come
/// yet waits for it, as operations come by two ways. Contract: ids count from 1, without gaps and
/// in whatever order, and are not used again.
///
/// The engine's layers are counted in each layer group, from 0: layer i of a step is that of every
/// group.
///
/// Ownership: owns the places it provides; borrows device, file engine, executor and log, which
/// outlive it, and the engine's tensors, which stay until stop(). Stream: begin_step, layer_needed,
/// layer_written and end_step queue on the stream they are given and never wait on the host.
/// Threads: any thread; the step calls come from one thread at a time, in order.
class Worker {
 public:
  /// Without `files` there can be no place in G3.
  /// Errors: kInvalidArgument (the model, no operation may run), kExhausted (no thread).
  [[nodiscard]] static Result<std::unique_ptr<Worker>> create(WorkerOptions options, Device& device,
                                                              FileEngine* files, Executor& executor,
                                                              LogSink& log);
  /// Stops.
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  /// Takes the engine's tensors as a place. `pieces_per_layer` of their layers make one of the
  /// engine's, as layer_needed() counts them; 0: nobody knows, and each layer needs all of a load.
  /// Errors: kInvalidArgument (another shape than the group's; layers that are no whole number of
  /// the engine's).
  [[nodiscard]] Result<PlaceSpec> attach(Place place, PhysicalLayout tensors,
                                         uint32_t pieces_per_layer = 0);
  /// Makes a place in host memory (G2) or in a file (G3). Of pinned memory it returns with the
  /// first slice: operations on blocks that are not pinned yet wait until they are, without a turn.
  /// Where the rest cannot be pinned the place shrinks, and they are cancelled. Errors:
  /// kInvalidArgument (other bytes than the group's), kUnsupported (replicated blocks, G4, G3
  /// without a file engine), those of SystemMemory and FileMemory.
  Status provide(const PlaceSpec& spec);

  /// Replaces the receiver of results; null drops them.
  void on_result(ResultCallback callback);
  /// Replaces who sees each result before anybody else hears of the end of its operation; may be
  /// null.
  void observe_results(ResultObserver observer);

  /// Replaces who hears what places have shrunk to, before operations are cancelled for it (where
  /// two parts fail at once, for the first of them); null: nobody. Who is new hears of those that
  /// have at once, here.
  void on_shrunk(ShrinkCallback callback);

  /// Begins a step: queues the plan's operations and makes `compute` wait for its fences, and for
  /// loads of the step before that no layer has asked for on it. Errors: those of Device::wait. The
  /// step has begun, but a fence is missing: nothing may be queued that writes to fenced blocks
  /// before another step has their fences.
  Status begin_step(const StepPlan& plan, StreamRef compute);
  /// Makes `stream` wait for what the loads of this step bring of a layer, once for each stream. A
  /// load from host memory goes by ranges of layers, from the first on; others are waited for as a
  /// whole. A load that failed lets the stream go on, whichever part of it did; its result
  /// tells. Errors: those of Device::wait; may be called again.
  Result<LoadWaits> layer_needed(LayerId layer, StreamRef stream);
  /// The same for all layers.
  Result<LoadWaits> all_layers_needed(StreamRef stream);
  void layer_written(LayerId layer, StreamRef stream);
  /// An event of what was queued in this step so far. Who records on the stream in another way
  /// takes the outcome away from the step.
  [[nodiscard]] Event record(StreamRef compute);
  /// The step has succeeded if all its events have.
  void end_step(StreamRef compute);

  void submit(std::span<const CopyOp> ops);
  /// Operations that have not started end as cancelled; the others go on.
  void cancel(std::span<const OpId> ops);
  /// Who submits is gone: operations come with steps alone, if at all. Those that wait for one that
  /// has not come end as cancelled, now and from now on, and no fence waits for such a one.
  void expect_only_steps();

  /// Operations without a result.
  [[nodiscard]] size_t num_open() const;

  /// Takes no more operations, cancels those that have not started and waits for the others, and
  /// until the receiver has heard of all. Not inside a ResultCallback. Errors: kTimeout (memory
  /// must then stay).
  Status stop(TimePoint deadline = kNever);

 private:
  class Core;
  explicit Worker(std::shared_ptr<Core> core);

  std::shared_ptr<Core> core_;
};

}  // namespace kvbm
