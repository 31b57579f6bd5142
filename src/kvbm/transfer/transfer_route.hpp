// SPDX-License-Identifier: Apache-2.0
// TransferRoute: from which kind of memory to which a copy goes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace kvbm {

enum class TransferRoute : uint8_t {
  kHostToHost,
  kHostToDevice,
  kDeviceToHost,
  kDeviceToDevice,
  kMemoryToFile,
  kFileToMemory,
  kMemoryToRemote,  ///< of another worker
  kRemoteToMemory,
};

inline constexpr size_t kNumTransferRoutes = 8;

/// "host_to_host" … "remote_to_memory".
[[nodiscard]] std::string_view to_string(TransferRoute route) noexcept;

}  // namespace kvbm
