// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/latch.hpp"

namespace kvbm {

void Latch::set() noexcept {
  // Notified under the lock: a waiter that sees the latch set may destroy it at once.
  const MutexLock lock(mutex_);
  set_ = true;
  changed_.notify_all();
}

bool Latch::is_set() const noexcept {
  const MutexLock lock(mutex_);
  return set_;
}

bool Latch::block_until(TimePoint deadline) const {
  const MutexLock lock(mutex_);
  while (!set_) {
    if (!changed_.wait_until(mutex_, deadline)) return set_;
  }
  return true;
}

}  // namespace kvbm
