// SPDX-License-Identifier: Apache-2.0
// What all launches share: the size of the device, and one struct as the parameter of a kernel.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace kvbm::kernels {

/// Multiprocessors of the current device. An error of CUDA.
inline int count_processors(uint32_t& processors) {
  int device = 0;
  int count = 0;
  if (const int error = cudaGetDevice(&device); error != cudaSuccess) return error;
  const int error = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  processors = static_cast<uint32_t>(count);
  return error;
}

/// An error of CUDA, but for the one that stands for "nothing was launched": there may have been
/// launches before this one.
template <class Launch>
int launch_kernel(void (*kernel)(Launch), uint32_t ctas, uint32_t threads, Launch& launch,
                  cudaStream_t stream, size_t shared_bytes = 0) {
  void* parameters[] = {&launch};
  const int error = cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(ctas),
                                     dim3(threads), parameters, shared_bytes, stream);
  return error == cudaErrorInvalidValue ? cudaErrorUnknown : error;
}

}  // namespace kvbm::kernels
