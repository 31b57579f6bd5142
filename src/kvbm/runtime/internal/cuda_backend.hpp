// SPDX-License-Identifier: Apache-2.0
// The CUDA adapter as the rest of runtime sees it: there, or left out of this build.
#pragma once

#include <vector>

#include "kvbm/runtime/devices.hpp"

namespace kvbm::internal {

[[nodiscard]] Result<std::vector<AcceleratorInfo>> find_cuda_devices();
[[nodiscard]] Result<OpenedDevice> open_cuda_device(int32_t ordinal,
                                                    const OpenDeviceOptions& options);

}  // namespace kvbm::internal
