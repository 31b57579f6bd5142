// SPDX-License-Identifier: Apache-2.0
// test_gpu: the GPU that tests use where there are several. For builds with CUDA.
#pragma once

#include <cstdint>

#include "kvbm/adapters/cuda/cuda_device.hpp"

namespace kvbm::testing {

/// The last one, so that nothing passes that takes the first for granted. 0 where there is none.
inline int32_t test_gpu() {
  static const int32_t ordinal = [] {
    const auto all = CudaDevice::find_all();
    return all && !all->empty() ? static_cast<int32_t>(all->size()) - 1 : 0;
  }();
  return ordinal;
}

}  // namespace kvbm::testing
