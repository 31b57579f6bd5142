// SPDX-License-Identifier: Apache-2.0
#include "apps/kvbench/raw_copies.hpp"

namespace kvbm {

Result<std::unique_ptr<RawCopies>> create_cuda_copies(const OpenedDevice& /*device*/) {
  return make_error(ErrorCode::kUnsupported, "CUDA was left out of this build");
}

}  // namespace kvbm
