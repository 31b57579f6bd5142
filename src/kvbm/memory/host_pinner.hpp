// SPDX-License-Identifier: Apache-2.0
// HostPinner: what lets a device reach host memory by itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "kvbm/base/result.hpp"

namespace kvbm {

/// Adapters implement it for their device; it may outlive its device.
/// Threads: any thread.
class HostPinner {
 public:
  virtual ~HostPinner() = default;
  HostPinner(const HostPinner&) = delete;
  HostPinner& operator=(const HostPinner&) = delete;

  /// Fixes the pages in memory and shows them to the device. Errors: kExhausted, kDevice.
  virtual Status pin(std::byte* data, uint64_t size_bytes) = 0;

  /// Takes back one pin() of exactly these bytes.
  virtual void unpin(std::byte* data, uint64_t size_bytes) noexcept = 0;

  /// The node of the host memory that the device reaches fastest, where the machine has nodes.
  [[nodiscard]] virtual std::optional<uint32_t> numa_node() const = 0;

 protected:
  HostPinner() = default;
};

}  // namespace kvbm
