// SPDX-License-Identifier: Apache-2.0
// Mutex with a rank: lock order is layer order, and debug builds check it.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/thread_annotations.hpp"

namespace kvbm {

/// The room a lock belongs to. A thread takes locks from the highest rank down: while it holds a
/// lock it may only take one of a lower rank, as a room only calls rooms below it.
enum class LockRank : uint8_t {
  kPool,      // base: memory pools; taken last, whatever else is held
  kLog,       // base: nothing else is taken but memory
  kMetrics,   // base
  kLatch,     // base: completions and latches
  kExecutor,  // base: task queues
  kTokens,
  kDevice,
  kProtocol,
  kMemory,
  kBlocks,
  kLayout,
  kEvents,
  kTransfer,
  kTiers,
  kWorker,
  kCluster,
  kConnector,
  kAdapter,
  kRuntime,
  kReplay,
};

/// A std::mutex that knows its place in the lock order. Not recursive. Hold it briefly: never while
/// calling out (callbacks, adapters, device, file, network, logging).
/// Errors: where lock_order_is_checked(), lock() throws ContractViolation before it waits if the
/// thread already holds a lock of the same or a lower place; builds without the check do not
/// notice. Threads: any thread.
class KVBM_CAPABILITY("mutex") Mutex {
 public:
  /// `name` is a literal for messages, such as "blocks.store". Two locks of one room that nest
  /// differ in `order`: the higher one is taken first.
  explicit Mutex(LockRank rank, const char* name = "", uint8_t order = 0) noexcept
      : name_(name), rank_(rank), order_(order) {}
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  void lock() KVBM_ACQUIRE();
  void unlock() KVBM_RELEASE();
  /// Takes the lock if it is free. Cannot deadlock, so any order is allowed.
  [[nodiscard]] bool try_lock() KVBM_TRY_ACQUIRE(true);

  [[nodiscard]] const char* name() const noexcept { return name_; }
  [[nodiscard]] LockRank rank() const noexcept { return rank_; }
  [[nodiscard]] uint8_t order() const noexcept { return order_; }

 private:
  friend class CondVar;

  std::mutex mutex_;
  const char* name_;
  LockRank rank_;
  uint8_t order_;
};

/// Whether the library was built with the lock order check (NDEBUG not defined).
[[nodiscard]] bool lock_order_is_checked() noexcept;

/// Holds a Mutex for its own lifetime.
class KVBM_SCOPED_CAPABILITY MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) KVBM_ACQUIRE(mutex) : mutex_(mutex) { mutex_.lock(); }
  ~MutexLock() KVBM_RELEASE() { mutex_.unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mutex_;
};

/// Condition variable of a Mutex. There is no predicate form, which thread safety analysis cannot
/// see through: write `while (!ready_) changed_.wait(mutex_);`. A CondVar blocks its thread, so
/// work that a SteppedExecutor must be able to drive waits on a Latch or a Completion instead; this
/// is for what lives inside an executor or an adapter. Errors: where the lock order is checked,
/// waiting with another lock held is a ContractViolation. Threads: any thread.
class CondVar {
 public:
  CondVar() = default;
  CondVar(const CondVar&) = delete;
  CondVar& operator=(const CondVar&) = delete;

  /// May return without a notification.
  void wait(Mutex& mutex) KVBM_REQUIRES(mutex);
  /// False once `deadline` has passed.
  bool wait_until(Mutex& mutex, TimePoint deadline) KVBM_REQUIRES(mutex);

  void notify_one() noexcept { condition_.notify_one(); }
  void notify_all() noexcept { condition_.notify_all(); }

 private:
  std::condition_variable condition_;
};

}  // namespace kvbm
