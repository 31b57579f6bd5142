// SPDX-License-Identifier: Apache-2.0
// TransferCapabilities and TransferPreferences: which ways a transfer manager may take, and which
// it should.
#pragma once

#include <cstdint>
#include <string_view>

namespace kvbm {

/// Ways that are off unless somebody turns them on: without them the bytes go through host memory.
struct TransferCapabilities {
  bool allow_gds = false;       ///< files and memory of a device without the host between them
  bool allow_gpu_rdma = false;  ///< memory of a device and other workers, likewise

  friend bool operator==(const TransferCapabilities&, const TransferCapabilities&) = default;
};

/// Who moves what both could move: the copies and file requests of this library, or NIXL.
enum class NativeVsNixlPolicy : uint8_t { kPreferNative, kPreferNixl, kAutomatic };

/// "prefer_native", "prefer_nixl", "automatic".
[[nodiscard]] std::string_view to_string(NativeVsNixlPolicy policy) noexcept;

/// Wishes: where there is no NIXL they fall back to native, and the strategy says so.
struct TransferPreferences {
  NativeVsNixlPolicy native_vs_nixl = NativeVsNixlPolicy::kAutomatic;

  friend bool operator==(const TransferPreferences&, const TransferPreferences&) = default;
};

}  // namespace kvbm
