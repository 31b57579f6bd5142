// SPDX-License-Identifier: Apache-2.0
// Latch: a one-shot event that a thread waits for through its Executor.
#pragma once

#include "kvbm/base/clock.hpp"
#include "kvbm/base/mutex.hpp"

namespace kvbm {

/// Closed until set(), then open for ever. Wait with Executor::wait, which blocks the thread or
/// steps tasks, whichever that executor does. Ownership: may be destroyed once a wait or is_set()
/// has returned true. Threads: any thread.
class Latch {
 public:
  Latch() = default;
  Latch(const Latch&) = delete;
  Latch& operator=(const Latch&) = delete;

  void set() noexcept;
  [[nodiscard]] bool is_set() const noexcept;

  /// For executors with real threads alone: blocks until set (true) or `deadline` (false).
  [[nodiscard]] bool block_until(TimePoint deadline) const;

 private:
  mutable Mutex mutex_{LockRank::kLatch, "base.latch"};
  mutable CondVar changed_;
  bool set_ KVBM_GUARDED_BY(mutex_) = false;
};

}  // namespace kvbm
