// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cuda/internal/cuda_pinner.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <utility>

#include "kvbm/base/text.hpp"
#include "kvbm/base/units.hpp"

namespace kvbm::internal {

Status CudaPinner::pin(std::byte* data, uint64_t size_bytes) {
  const CudaContext::Scope scope(*context_);
  if (const cudaError_t code =
          ::cudaHostRegister(data, size_bytes, cudaHostRegisterPortable | cudaHostRegisterMapped)) {
    return make_error(
        cuda_error(format_text("cannot pin {} of host memory", format_size(size_bytes)), code));
  }
  void* for_gpu = nullptr;
  if (::cudaHostGetDevicePointer(&for_gpu, data, 0) == cudaSuccess && for_gpu == data) {
    context_->own_memory().add(data, size_bytes);
  }
  static_cast<void>(::cudaGetLastError());
  const MutexLock lock(mutex_);
  Cuts cuts = *cuts_;
  add_cut(cuts, data);
  add_cut(cuts, data + size_bytes);
  cuts_ = std::make_shared<const Cuts>(std::move(cuts));
  return {};
}

void CudaPinner::unpin(std::byte* data, uint64_t size_bytes) noexcept {
  const CudaContext::Scope scope(*context_);
  context_->own_memory().remove(data);
  static_cast<void>(::cudaHostUnregister(data));
  static_cast<void>(::cudaGetLastError());
  // Two slices that touch share a cut, so each is there once for each of them.
  const MutexLock lock(mutex_);
  Cuts cuts = *cuts_;
  for (const std::byte* const end : {data, data + size_bytes}) {
    const auto address = reinterpret_cast<uintptr_t>(end);
    const auto found = std::ranges::lower_bound(cuts, address);
    if (found != cuts.end() && *found == address) cuts.erase(found);
  }
  cuts_ = std::make_shared<const Cuts>(std::move(cuts));
}

std::shared_ptr<const CudaPinner::Cuts> CudaPinner::cuts() const {
  const MutexLock lock(mutex_);
  return cuts_;
}

void CudaPinner::add_cut(Cuts& cuts, const std::byte* at) const {
  const auto address = reinterpret_cast<uintptr_t>(at);
  cuts.insert(std::ranges::upper_bound(cuts, address), address);
}

}  // namespace kvbm::internal
