// SPDX-License-Identifier: Apache-2.0
// OwnedRegion: bytes of any kind with whoever keeps them alive.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "kvbm/base/result.hpp"
#include "kvbm/base/unique_function.hpp"
#include "kvbm/device/device_memory.hpp"
#include "kvbm/memory/memory_region.hpp"

namespace kvbm {

/// Ownership: shared, through `owner`; null: somebody else's affair.
/// Threads: a value.
struct OwnedRegion {
  MemoryRegion region = {};
  std::shared_ptr<const void> owner = nullptr;

  /// Takes over whatever has a region(): SystemMemory, FileMemory.
  template <class Memory>
  [[nodiscard]] static OwnedRegion of(Memory memory) {
    auto owner = std::make_shared<const Memory>(std::move(memory));
    return {owner->region(), owner};
  }
  [[nodiscard]] static OwnedRegion of(DeviceMemory memory) {
    auto owner = std::make_shared<const DeviceMemory>(std::move(memory));
    return {MemoryRegion::of(*owner), owner};
  }
};

/// Gives `size_bytes` bytes or more that start at a multiple of `alignment`, a power of two: a pool
/// of pinned memory, say.
using RegionAllocator =
    UniqueFunction<Result<OwnedRegion>(uint64_t size_bytes, uint64_t alignment)>;

}  // namespace kvbm
