// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/internal/cuda_backend.hpp"

namespace kvbm::internal {

namespace {

tl::unexpected<Error> left_out() {
  return make_error(ErrorCode::kUnsupported,
                    "CUDA was left out of this build: configure with -DKVBM_WITH_CUDA=ON");
}

}  // namespace

Result<std::vector<AcceleratorInfo>> find_cuda_devices() { return left_out(); }

Result<OpenedDevice> open_cuda_device(int32_t /*ordinal*/, const OpenDeviceOptions& /*options*/) {
  return left_out();
}

}  // namespace kvbm::internal
