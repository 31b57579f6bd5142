// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cuda/internal/cuda_events.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <utility>

namespace kvbm::internal {

namespace {

/// Events looked at before a new one is made. Their ends come about in the order of their use, so
/// the oldest is mostly free.
constexpr size_t kMostTries = 8;

}  // namespace

NativeCudaEvent::~NativeCudaEvent() {
  const CudaContext::Scope scope(*context_);
  static_cast<void>(::cudaEventDestroy(handle));
}

Result<std::shared_ptr<NativeCudaEvent>> CudaEvents::take() {
  const MutexLock lock(mutex_);
  for (size_t i = 0; i < std::min(kMostTries, all_.size()); ++i) {
    std::shared_ptr<NativeCudaEvent>& candidate = all_[next_++ % all_.size()];
    if (candidate.use_count() != 1) continue;
    // The count is read relaxed; what the last holder did comes before what happens now.
    std::atomic_thread_fence(std::memory_order_acquire);
    candidate->outcome = Status();
    return candidate;
  }
  cudaEvent_t handle = nullptr;
  if (const cudaError_t code = ::cudaEventCreateWithFlags(&handle, cudaEventDisableTiming)) {
    return make_error(cuda_error("no event", code));
  }
  all_.push_back(std::make_shared<NativeCudaEvent>(context_, handle));
  return all_.back();
}

}  // namespace kvbm::internal
