// SPDX-License-Identifier: Apache-2.0
// CudaEvents: native events, used again and again.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "kvbm/adapters/cuda/internal/cuda_context.hpp"
#include "kvbm/base/mutex.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/device/event.hpp"

namespace kvbm::internal {

/// A recorded point of a native stream. The device's own failures are not in the native event, so
/// it carries them: a stream that waits for it natively fails with them.
/// Threads: immutable from its record to its last holder.
class NativeCudaEvent final : public NativeEvent {
 public:
  NativeCudaEvent(std::shared_ptr<const CudaContext> context, CUevent_st* event)
      : handle(event), context_(std::move(context)) {}
  ~NativeCudaEvent() override;

  CUevent_st* const handle;
  Status outcome;

 private:
  const std::shared_ptr<const CudaContext> context_;
};

/// Threads: any thread.
class CudaEvents {
 public:
  explicit CudaEvents(std::shared_ptr<const CudaContext> context) : context_(std::move(context)) {}

  /// One that nobody else holds; it comes back by itself when its last holder lets go.
  /// Requires: a Scope of the context. Errors: kDevice.
  [[nodiscard]] Result<std::shared_ptr<NativeCudaEvent>> take();

 private:
  const std::shared_ptr<const CudaContext> context_;
  Mutex mutex_{LockRank::kDevice, "device.cuda_events", 0};
  std::vector<std::shared_ptr<NativeCudaEvent>> all_ KVBM_GUARDED_BY(mutex_);
  size_t next_ KVBM_GUARDED_BY(mutex_) = 0;
};

}  // namespace kvbm::internal
