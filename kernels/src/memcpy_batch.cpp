// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>

#include <algorithm>

#include <kvbm/kernels.h>

#include "table_plan.hpp"

// cudaMemcpyBatchAsync came with CUDA 12.8 and lost an argument with 13.0.
#define KVBM_BATCH_SINCE 12080

namespace kvbm::kernels {
namespace {

/// Copies handed over at a time: their sizes lie on the stack.
constexpr size_t kMaxBatch = 2048;

#if CUDART_VERSION >= KVBM_BATCH_SINCE
cudaError_t copy_batch(const void* const* srcs, void* const* dsts, size_t* sizes, size_t count,
                       cudaStream_t stream) {
  cudaMemcpyAttributes attributes = {};
  attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
  size_t first = 0;
#if CUDART_VERSION >= 13000
  return cudaMemcpyBatchAsync(dsts, srcs, sizes, count, &attributes, &first, 1, stream);
#else
  size_t failed = 0;
  return cudaMemcpyBatchAsync(const_cast<void**>(dsts), const_cast<void**>(srcs), sizes, count,
                              &attributes, &first, 1, &failed, stream);
#endif
}
#else
cudaError_t copy_batch(const void* const*, void* const*, size_t*, size_t, cudaStream_t) {
  return cudaErrorNotSupported;
}
#endif

cudaError_t copy_one_by_one(const void* const* srcs, void* const* dsts, size_t size, size_t count,
                            cudaStream_t stream) {
  for (size_t i = 0; i < count; ++i) {
    const cudaError_t error = cudaMemcpyAsync(dsts[i], srcs[i], size, cudaMemcpyDefault, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

bool is_refusal(cudaError_t error) {
  return error == cudaErrorNotSupported || error == cudaErrorInvalidValue ||
         error == cudaErrorCallRequiresNewerDriver;
}

}  // namespace
}  // namespace kvbm::kernels

int kvbm_kernels_memcpy_batch(const void* const* src_ptrs, void* const* dst_ptrs,
                              size_t size_per_copy, size_t num_copies, int mode,
                              kvbm_kernels_stream stream) {
  using namespace kvbm::kernels;
  if (const int error = check_memcpy_batch(src_ptrs, dst_ptrs, size_per_copy, num_copies, mode);
      error != KVBM_KERNELS_SUCCESS) {
    return error;
  }
  if (size_per_copy == 0) num_copies = 0;
  const bool only = mode == KVBM_KERNELS_BATCH_ONLY;
  bool batched = mode != KVBM_KERNELS_FALLBACK_ONLY && kvbm_kernels_has_memcpy_batch_async();
  if (only && !batched && num_copies > 0) return KVBM_KERNELS_NOT_SUPPORTED;
  if (stream == nullptr || stream == cudaStreamLegacy || stream == cudaStreamPerThread) {
    if (only && num_copies > 0) return KVBM_KERNELS_INVALID_VALUE;
    batched = false;
  }

  size_t sizes[kMaxBatch];
  if (batched) std::fill_n(sizes, std::min(kMaxBatch, num_copies), size_per_copy);
  for (size_t begin = 0; begin < num_copies; begin += kMaxBatch) {
    const size_t count = std::min(kMaxBatch, num_copies - begin);
    cudaError_t error = cudaSuccess;
    if (batched) {
      error = copy_batch(src_ptrs + begin, dst_ptrs + begin, sizes, count, stream);
      if (is_refusal(error) && !only) {
        cudaGetLastError();  // else the caller's next look finds what was mended
        batched = false;
      }
    }
    if (!batched) {
      error = copy_one_by_one(src_ptrs + begin, dst_ptrs + begin, size_per_copy, count, stream);
    }
    if (error != cudaSuccess) return error;
  }
  return KVBM_KERNELS_SUCCESS;
}

bool kvbm_kernels_has_memcpy_batch_async(void) {
  if (CUDART_VERSION < KVBM_BATCH_SINCE) return false;
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess) {
    cudaGetLastError();
    return false;
  }
  return driver >= KVBM_BATCH_SINCE;
}

bool kvbm_kernels_is_stub_build(void) { return false; }
