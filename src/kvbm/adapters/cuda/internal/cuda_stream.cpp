// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cuda/internal/cuda_stream.hpp"

#include <cuda_runtime_api.h>

#include "kvbm/base/text.hpp"

namespace kvbm::internal {

Status CudaStream::check_not_capturing() const {
  if (!adopted) return {};
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t code = ::cudaStreamIsCapturing(native, &status);
  if (code == cudaSuccess && status == cudaStreamCaptureStatusNone) return {};
  static_cast<void>(::cudaGetLastError());
  return make_error(ErrorCode::kRejected,
                    format_text("stream {} records a graph; no copies go into it", name));
}

}  // namespace kvbm::internal
