// SPDX-License-Identifier: Apache-2.0
// test_gpu: the GPU that tests use where there are several.
#pragma once

#include <cstdint>
#include <string>

#include "kvbm/adapters/cuda/cuda_device.hpp"
#include "kvbm/base/text.hpp"

namespace kvbm::testing {

/// The last one, so that nothing passes that takes the first for granted. 0 where there is none.
inline int32_t test_gpu() {
  static const int32_t ordinal = [] {
    const auto all = CudaDevice::find_all();
    return all && !all->empty() ? static_cast<int32_t>(all->size()) - 1 : 0;
  }();
  return ordinal;
}

/// "cuda:1".
inline std::string test_gpu_name() { return format_text("cuda:{}", test_gpu()); }

}  // namespace kvbm::testing
