// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cuda/internal/copy_submit.hpp"

#include <cuda_runtime_api.h>

#include <utility>

namespace kvbm::internal {

namespace {

cudaError_t copy_rect(const CopyRect& rect, cudaStream_t stream) {
  return ::cudaMemcpy2DAsync(rect.dst, rect.dst_pitch, rect.src, rect.src_pitch, rect.width,
                             rect.rows, cudaMemcpyDefault, stream);
}

cudaError_t copy_run(const CopyList& list, size_t i, cudaStream_t stream) {
  return ::cudaMemcpyAsync(list.run_dst[i], list.run_src[i], list.run_bytes[i], cudaMemcpyDefault,
                           stream);
}

#if CUDART_VERSION >= 12080
cudaError_t copy_runs(CopyList& list, cudaStream_t stream) {
  cudaMemcpyAttributes attributes{};
  attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
  size_t first = 0;
#if CUDART_VERSION >= 13000
  return ::cudaMemcpyBatchAsync(list.run_dst.data(), list.run_src.data(), list.run_bytes.data(),
                                list.run_bytes.size(), &attributes, &first, 1, stream);
#else
  size_t failed = 0;
  return ::cudaMemcpyBatchAsync(list.run_dst.data(), const_cast<void**>(list.run_src.data()),
                                list.run_bytes.data(), list.run_bytes.size(), &attributes, &first,
                                1, &failed, stream);
#endif
}
#else
cudaError_t copy_runs(CopyList& /*list*/, cudaStream_t /*stream*/) {
  return cudaErrorNotSupported;  // not asked for: see CudaGpu::has_memcpy_batch
}
#endif

Status refused(cudaError_t code) {
  Error error = cuda_error("a copy was refused", code);
  if (code != cudaErrorInvalidValue) return make_error(std::move(error));
  return make_error(
      Error(ErrorCode::kInvalidArgument,
            "a copy was refused: its addresses are neither of this GPU nor pinned host memory",
            NativeDomain::kCuda, code));
}

}  // namespace

bool is_default_stream(CUstream_st* stream) noexcept {
  return stream == nullptr || stream == cudaStreamLegacy || stream == cudaStreamPerThread;
}

Status submit(CopyList& list, CUstream_st* stream, bool has_batch, bool& queued) {
  for (const CopyRect& rect : list.rects) {
    if (const cudaError_t code = copy_rect(rect, stream)) return refused(code);
    queued = true;
  }
  const size_t runs = list.run_bytes.size();
  // The driver's batch does not take a default stream.
  if (runs > 1 && has_batch && !is_default_stream(stream)) {
    queued = true;  // whatever it answers: it may have begun, and does not say how far it came
    if (const cudaError_t code = copy_runs(list, stream)) return refused(code);
    return {};
  }
  for (size_t i = 0; i < runs; ++i) {
    if (const cudaError_t code = copy_run(list, i, stream)) return refused(code);
    queued = true;
  }
  return {};
}

}  // namespace kvbm::internal
