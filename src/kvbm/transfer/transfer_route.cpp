// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/transfer_route.hpp"

#include "kvbm/base/text.hpp"

namespace kvbm {
namespace {

tl::unexpected<Error> unsupported(std::string message) {
  return make_error(ErrorCode::kUnsupported, std::move(message));
}

Status check_file_peer(StorageKind kind, const DeviceCapabilities& capabilities) {
  if (kind == StorageKind::kDevice && !capabilities.host_accessible) {
    return unsupported(
        "the host cannot address this device memory, so a file cannot take it: copy it to host "
        "memory first");
  }
  return {};
}

Status check_copy_peer(StorageKind kind, const DeviceCapabilities& capabilities) {
  if (kind == StorageKind::kSystem && !capabilities.copies_pageable_host) {
    return unsupported("the device does not copy pageable host memory: use pinned memory");
  }
  return {};
}

}  // namespace

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
  }
  return "unknown";
}

Result<TransferRoute> choose_route(StorageKind src, StorageKind dst,
                                   const DeviceCapabilities& capabilities) {
  if (src == StorageKind::kFile && dst == StorageKind::kFile) {
    return unsupported("file to file goes through memory: read the blocks, then write them");
  }
  if (dst == StorageKind::kFile) {
    KVBM_TRY(check_file_peer(src, capabilities));
    return TransferRoute::kMemoryToFile;
  }
  if (src == StorageKind::kFile) {
    KVBM_TRY(check_file_peer(dst, capabilities));
    return TransferRoute::kFileToMemory;
  }
  KVBM_TRY(check_copy_peer(src, capabilities));
  KVBM_TRY(check_copy_peer(dst, capabilities));
  const bool from_device = src == StorageKind::kDevice;
  const bool to_device = dst == StorageKind::kDevice;
  if (from_device) {
    return to_device ? TransferRoute::kDeviceToDevice : TransferRoute::kDeviceToHost;
  }
  return to_device ? TransferRoute::kHostToDevice : TransferRoute::kHostToHost;
}

}  // namespace kvbm
