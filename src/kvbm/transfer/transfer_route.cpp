// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/transfer_route.hpp"

namespace kvbm {

std::string_view to_string(TransferRoute route) noexcept {
  switch (route) {
    case TransferRoute::kHostToHost:
      return "host_to_host";
    case TransferRoute::kHostToDevice:
      return "host_to_device";
    case TransferRoute::kDeviceToHost:
      return "device_to_host";
    case TransferRoute::kDeviceToDevice:
      return "device_to_device";
    case TransferRoute::kMemoryToFile:
      return "memory_to_file";
    case TransferRoute::kFileToMemory:
      return "file_to_memory";
    case TransferRoute::kMemoryToRemote:
      return "memory_to_remote";
    case TransferRoute::kRemoteToMemory:
      return "remote_to_memory";
  }
  return "unknown";
}

}  // namespace kvbm
