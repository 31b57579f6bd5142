// SPDX-License-Identifier: Apache-2.0
// SystemMemory: pageable host memory, owned.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "kvbm/base/result.hpp"
#include "kvbm/device/host_pages.hpp"
#include "kvbm/memory/memory_region.hpp"

namespace kvbm {

/// Page aligned, reads as zero, taken from the system when first touched.
/// Ownership: move-only.
/// Threads: one thread at a time.
class SystemMemory {
 public:
  /// Owns nothing.
  SystemMemory() noexcept = default;

  /// Errors: those of HostPages::map.
  [[nodiscard]] static Result<SystemMemory> create(const HostPagesOptions& options);

  [[nodiscard]] std::byte* data() const noexcept { return pages_.data(); }
  [[nodiscard]] uint64_t size_bytes() const noexcept { return pages_.size_bytes(); }
  [[nodiscard]] std::span<std::byte> bytes() const noexcept { return {data(), size_bytes()}; }
  [[nodiscard]] MemoryRegion region() const {
    return MemoryRegion::of_bytes(StorageKind::kSystem, data(), size_bytes());
  }

 private:
  explicit SystemMemory(HostPages pages) noexcept : pages_(std::move(pages)) {}

  HostPages pages_;
};

}  // namespace kvbm
