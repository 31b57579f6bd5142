// SPDX-License-Identifier: Apache-2.0
// CudaStreams: the streams of a CudaDevice, and the order of what is asked of each.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "kvbm/adapters/cuda/internal/cuda_block_kernels.hpp"
#include "kvbm/adapters/cuda/internal/cuda_context.hpp"
#include "kvbm/adapters/cuda/internal/cuda_copier.hpp"
#include "kvbm/adapters/cuda/internal/cuda_gates.hpp"
#include "kvbm/adapters/cuda/internal/cuda_health.hpp"
#include "kvbm/adapters/cuda/internal/cuda_pinner.hpp"
#include "kvbm/adapters/cuda/internal/cuda_stream.hpp"
#include "kvbm/adapters/cuda/internal/cuda_watcher.hpp"
#include "kvbm/base/executor.hpp"
#include "kvbm/base/memory_pool.hpp"
#include "kvbm/base/mutex.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/device/device.hpp"

namespace kvbm::internal {

struct CudaStreamsOptions {
  Executor& executor;
  size_t num_threads = 2;
  size_t max_streams = 256;
  size_t max_queued = 65536;
  uint64_t ring_bytes = 0;  ///< each way
};

/// What is asked of a stream goes to its native stream within the call, or, behind something that
/// waits for the host, into a queue of the host, which a task empties in turns.
/// Ownership: borrows the executor. Threads: any thread.
class CudaStreams final : public std::enable_shared_from_this<CudaStreams>,
                          private CudaWatcher::Listener {
 public:
  /// Loads the kernels and starts to watch. Errors: kExhausted (no thread), those of
  /// Executor::create_queue.
  [[nodiscard]] static Result<std::shared_ptr<CudaStreams>> create(
      const CudaStreamsOptions& options, std::shared_ptr<const CudaContext> context,
      std::shared_ptr<CudaPinner> pinner);

  // As Device and CudaDevice have them.

  [[nodiscard]] Result<StreamRef> create_stream(std::string_view name);
  [[nodiscard]] Result<StreamRef> adopt_stream(uintptr_t handle, std::string_view name);
  Status destroy_stream(StreamRef ref);
  /// `bytes`: of planned_bytes().
  Status copy(StreamRef ref, StridedCopyBatch batch, uint64_t bytes);
  [[nodiscard]] Result<Event> copy_and_record(StreamRef ref, StridedCopyBatch batch,
                                              uint64_t bytes);
  Status pattern(StreamRef ref, PatternBatch batch);
  Status checksum(StreamRef ref, ChecksumBatch batch);
  Status launch(StreamRef ref, StreamTask task);
  [[nodiscard]] Event record(StreamRef ref);
  Status wait(StreamRef ref, const Event& event);

  [[nodiscard]] KernelSupport kernels() const noexcept { return copier_.kernels(); }
  /// Of a block that a ring takes; 0: there is no ring.
  [[nodiscard]] uint64_t ring_block_bytes() const noexcept { return copier_.ring_block_bytes(); }
  /// Why there is no ring, if one was asked for.
  [[nodiscard]] const Status& ring() const noexcept { return ring_made_; }
  /// Why there is no pattern(), if there is none.
  [[nodiscard]] const Status& patterns() const noexcept { return patterns_loaded_; }
  /// Why there is no checksum(), if there is none.
  [[nodiscard]] const Status& checksums() const noexcept { return checksums_loaded_; }
  [[nodiscard]] Executor& executor() const noexcept { return options_.executor; }

  /// Lets what runs finish and drops the rest.
  void close();

 private:
  using StreamPointer = std::shared_ptr<CudaStream>;

  CudaStreams(const CudaStreamsOptions& options, std::shared_ptr<const CudaContext> context,
              std::shared_ptr<CudaPinner> pinner, std::unique_ptr<TaskQueue> tasks,
              std::unique_ptr<TaskQueue> watch);

  [[nodiscard]] tl::unexpected<Error> unavailable() const;
  [[nodiscard]] tl::unexpected<Error> not_found(StreamRef ref) const;
  [[nodiscard]] tl::unexpected<Error> destroyed_error(const CudaStream& stream) const;
  [[nodiscard]] Status usable() const;
  [[nodiscard]] Status has_room() const KVBM_REQUIRES(mutex_);
  StreamRef add(StreamPointer stream) KVBM_REQUIRES(mutex_);
  [[nodiscard]] Result<StreamPointer> find(StreamRef ref);
  Status accepts_locked(CudaStream& stream) const KVBM_REQUIRES(stream.mutex);
  Status accepts(CudaStream& stream) const;
  /// Requires: drained, and nobody finds it as other than destroyed.
  void forget(const StreamPointer& stream);

  /// With its way through the ring, if it takes that.
  [[nodiscard]] Result<QueuedCopy> prepare(const CudaStream& stream, StridedCopyBatch batch,
                                           uint64_t bytes) const;

  // For the caller that has `submit`, with a Scope of the context.

  /// `wake`: set where the stream has to be scheduled, once `submit` is let go of.
  Status put_on(CudaStream& stream, QueuedCopy copy, bool& wake);
  [[nodiscard]] Event record_now(const StreamPointer& stream);

  // Straight to the native stream: by the caller that has `submit` of an idle stream, or by its
  // turn.

  /// Requires: nothing of the event waits for the host.
  Status wait_now(CudaStream& stream, const Event& event);
  Status wait_at_gate(const StreamPointer& stream, const Event& event);
  void run_at_gate(const StreamPointer& stream, std::unique_ptr<GateTask> task);

  /// Of a kernel over blocks.
  template <class Queued>
  Status launch_queued(StreamRef ref, Queued queued);

  // Behind what waits for the host.

  Status defer(const StreamPointer& stream, CudaOperation operation);
  /// Requires: the stream is kScheduled, and this is the caller that made it so. Only a stopped
  /// queue refuses, since it has room for a task of every stream; close() then drops the
  /// operations.
  void schedule(StreamPointer stream) noexcept;
  void run_turn(const StreamPointer& stream);
  /// False if it is to be run again, by another turn.
  [[nodiscard]] bool run(const StreamPointer& stream, CudaOperation& operation);
  void run_now(const StreamPointer& stream, CudaOperation& operation);
  /// The one that the turn has run. Let go of without the lock.
  [[nodiscard]] static CudaOperation take_front(CudaStream& stream);
  void run_record(const StreamPointer& stream, CompletionSource& source);
  /// The watcher brings the stream back once the GPU has come here. Errors: no event can be
  /// recorded; kExhausted (no memory).
  Status resume_after_native(const StreamPointer& stream);
  /// The event may be done before this returns, and the stream run elsewhere: it is not touched
  /// here afterwards. Weak, so that an event which never comes keeps nothing alive. False if there
  /// is no memory for it, and the stream is not parked.
  [[nodiscard]] bool park(const StreamPointer& stream, const Event& event);

  void on_reached(const StreamPointer& stream, CudaMark mark) override;
  void on_drained(const StreamPointer& stream) override { forget(stream); }

  const CudaStreamsOptions options_;
  const std::string name_;  ///< of the device, for messages
  const std::shared_ptr<const CudaContext> context_;
  CudaHealth health_;
  CudaGates gates_;
  CudaCopier copier_;
  CudaBlockKernels block_kernels_;
  Status patterns_loaded_;                      // of create(), never changed afterwards
  Status checksums_loaded_;                     // likewise
  Status ring_made_;                            // likewise
  const MemoryPool pool_ = make_memory_pool();  // of completions

  Mutex mutex_{LockRank::kDevice, "device.cuda", 4};
  std::map<uint64_t, StreamPointer> streams_ KVBM_GUARDED_BY(mutex_);
  uint64_t last_id_ KVBM_GUARDED_BY(mutex_) = 0;
  std::atomic<bool> closing_{false};

  std::unique_ptr<TaskQueue> tasks_;
  CudaWatcher watcher_;  // last: its thread uses what is above
};

}  // namespace kvbm::internal
