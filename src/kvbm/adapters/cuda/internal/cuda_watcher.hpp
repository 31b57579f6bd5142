// SPDX-License-Identifier: Apache-2.0
// CudaWatcher: events on native streams, and the thread that finds out when the GPU has come there.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <optional>

#include "kvbm/adapters/cuda/internal/cuda_context.hpp"
#include "kvbm/adapters/cuda/internal/cuda_events.hpp"
#include "kvbm/adapters/cuda/internal/cuda_health.hpp"
#include "kvbm/adapters/cuda/internal/cuda_stream.hpp"
#include "kvbm/base/executor.hpp"
#include "kvbm/base/mutex.hpp"
#include "kvbm/base/result.hpp"

namespace kvbm::internal {

/// A mark is an event with what follows from it. Streams are in order, so only the oldest mark of
/// each is asked for. The thread spins shortly after the last thing that happened and around the
/// time when copies are expected to end, else it sleeps in naps of at most 50 µs; with nothing to
/// watch it soon sleeps for good. It is woken only for what it would look at too late otherwise:
/// that costs the caller a microsecond or two. Ownership: borrows listener, health and executor.
/// Threads: any thread.
class CudaWatcher {
 public:
  using StreamPointer = std::shared_ptr<CudaStream>;

  /// What the stream's owner has to do; completions the watcher resolves itself. Called by the
  /// watcher's thread, without a lock.
  class Listener {
   public:
    virtual ~Listener() = default;
    /// The native stream has come to `mark`, which has a task, or resumes the stream.
    virtual void on_reached(const StreamPointer& stream, CudaMark mark) = 0;
    /// The last mark of a destroyed stream is behind.
    virtual void on_drained(const StreamPointer& stream) = 0;
  };

  /// `queue`: with one thread, which the watcher takes for good.
  CudaWatcher(Listener& listener, std::shared_ptr<const CudaContext> context, CudaHealth& health,
              Executor& executor, std::unique_ptr<TaskQueue> queue);

  Status start();
  /// Lets the GPU come to all marks first.
  void stop();

  // The rest is for whoever calls the driver for the stream, with a Scope of the context.

  /// An event on the native stream that nobody watches. Errors: kDevice; the context is lost then.
  [[nodiscard]] Result<std::shared_ptr<NativeCudaEvent>> record_native(CudaStream& stream);

  /// Puts the native part of record() on the stream. It comes with the event only if its outcome is
  /// known but for the GPU's part: nobody waits natively for what waits for the host. On failure
  /// `source` resolves with it.
  [[nodiscard]] Result<std::shared_ptr<const NativeEvent>> record_mark(const StreamPointer& stream,
                                                                       CompletionSource source);
  /// Requires: a mark with an event. Parks a stream that the mark resumes.
  void push_mark(const StreamPointer& stream, CudaMark mark);

  /// Copies without an event behind them are watched too, if somebody asks for their end.
  void watch_arrivals(const StreamPointer& stream);

 private:
  /// One look at every stream.
  struct Round;

  void watch();
  /// `first_look`: when there is something to see.
  void watch_too(const StreamPointer& stream, TimePoint first_look);
  /// Ends what has ended; true once there is nothing to look at any more.
  bool look_at(const StreamPointer& stream, Round& round);
  [[nodiscard]] TimePoint now() const { return executor_.clock().now(); }
  /// When it is to be looked at first, if the watcher does not know the stream yet. Without memory
  /// `mark` is untouched.
  [[nodiscard]] std::optional<TimePoint> push(CudaStream& stream, CudaMark&& mark) const
      KVBM_REQUIRES(stream.mutex);
  /// None if the GPU has not come there, or if there is no memory to say how.
  [[nodiscard]] std::optional<Status> outcome_of(const NativeCudaEvent& event) noexcept;
  void mark_arrivals(const StreamPointer& stream) noexcept;
  /// Of the oldest `count` arrivals.
  static void finish(CudaStream& stream, size_t count, bool arrived);

  Listener& listener_;
  const std::shared_ptr<const CudaContext> context_;
  CudaHealth& health_;
  Executor& executor_;
  CudaEvents events_;

  Mutex mutex_{LockRank::kDevice, "device.cuda_watch", 1};
  CondVar wake_;
  CudaStreamList fresh_ KVBM_GUARDED_BY(mutex_);
  std::atomic<bool> any_fresh_{false};                             ///< for a look without the lock
  std::optional<TimePoint> sleeps_until_ KVBM_GUARDED_BY(mutex_);  ///< none: it is awake
  bool ends_ KVBM_GUARDED_BY(mutex_) = false;

  std::unique_ptr<TaskQueue> queue_;
};

}  // namespace kvbm::internal
