// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cuda/internal/copy_submit.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
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

/// The driver begins with a batch when it has put down all of it, at half a microsecond a copy, and
/// the engine rests for some 3 us between batches. So the first batch is short, and the next ones
/// are prepared while the engine has work.
constexpr size_t kFirstBatch = 16;
constexpr size_t kMostOfABatch = 256;

/// `count` runs from `first` on, as one batch of the driver.
#if CUDART_VERSION >= 12080
cudaError_t copy_runs(CopyList& list, size_t first, size_t count, cudaStream_t stream) {
  cudaMemcpyAttributes attributes{};
  attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
  size_t with_these = 0;  // all of them
#if CUDART_VERSION >= 13000
  return ::cudaMemcpyBatchAsync(list.run_dst.data() + first, list.run_src.data() + first,
                                list.run_bytes.data() + first, count, &attributes, &with_these, 1,
                                stream);
#else
  size_t failed = 0;
  return ::cudaMemcpyBatchAsync(
      list.run_dst.data() + first, const_cast<void**>(list.run_src.data()) + first,
      list.run_bytes.data() + first, count, &attributes, &with_these, 1, &failed, stream);
#endif
}
#else
cudaError_t copy_runs(CopyList& /*list*/, size_t /*first*/, size_t /*count*/,
                      cudaStream_t /*stream*/) {
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
    size_t batch = kFirstBatch;
    for (size_t first = 0; first < runs;) {
      const size_t count = std::min(batch, runs - first);
      if (const cudaError_t code = copy_runs(list, first, count, stream)) return refused(code);
      first += count;
      batch = std::min(2 * batch, kMostOfABatch);
    }
    return {};
  }
  for (size_t i = 0; i < runs; ++i) {
    if (const cudaError_t code = copy_run(list, i, stream)) return refused(code);
    queued = true;
  }
  return {};
}

}  // namespace kvbm::internal
