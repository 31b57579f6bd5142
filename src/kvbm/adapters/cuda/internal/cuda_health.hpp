// SPDX-License-Identifier: Apache-2.0
// CudaHealth: whether a context still works.
#pragma once

#include <atomic>
#include <optional>

#include "kvbm/base/mutex.hpp"
#include "kvbm/base/result.hpp"

namespace kvbm::internal {

/// The first error that the context did not survive; there is no way back from it.
/// Threads: any thread.
class CudaHealth {
 public:
  /// Errors: the one that ended the context.
  [[nodiscard]] Status alive() const {
    if (!lost_.load(std::memory_order_acquire)) return {};
    const MutexLock lock(mutex_);
    return make_error(*loss_);
  }

  /// The context is lost; why, if that was not known before.
  tl::unexpected<Error> lose(const Error& error) {
    const MutexLock lock(mutex_);
    if (!loss_.has_value()) loss_ = error;
    lost_.store(true, std::memory_order_release);
    return make_error(*loss_);
  }

 private:
  mutable Mutex mutex_{LockRank::kDevice, "device.cuda_loss", 0};
  std::optional<Error> loss_ KVBM_GUARDED_BY(mutex_);
  std::atomic<bool> lost_{false};
};

}  // namespace kvbm::internal
