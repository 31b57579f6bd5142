// SPDX-License-Identifier: Apache-2.0
// choose_route: by which way bytes go from one kind of storage to another.
#pragma once

#include <cstdint>
#include <string_view>

#include "kvbm/base/result.hpp"
#include "kvbm/device/device.hpp"
#include "kvbm/memory/memory_region.hpp"

namespace kvbm {

enum class TransferRoute : uint8_t {
  kHostToHost,
  kHostToDevice,
  kDeviceToHost,
  kDeviceToDevice,
  kMemoryToFile,
  kFileToMemory,
};

inline constexpr size_t kNumTransferRoutes = 6;

/// "host_to_host" … "file_to_memory".
[[nodiscard]] std::string_view to_string(TransferRoute route) noexcept;

/// Total: every pair has a route or a reason.
/// Errors: kUnsupported (file to file; a file and memory that the host cannot address; pageable
/// memory where the device only takes pinned), with what to do instead.
[[nodiscard]] Result<TransferRoute> choose_route(StorageKind src, StorageKind dst,
                                                 const DeviceCapabilities& capabilities);

}  // namespace kvbm
