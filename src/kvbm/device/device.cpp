// SPDX-License-Identifier: Apache-2.0
#include "kvbm/device/device.hpp"

namespace kvbm {

std::string_view to_string(DeviceKind kind) noexcept {
  switch (kind) {
    case DeviceKind::kHost:
      return "host";
    case DeviceKind::kCuda:
      return "cuda";
  }
  return "unknown";
}

}  // namespace kvbm
