// SPDX-License-Identifier: Apache-2.0
// AddressRanges: the memory that a device has allocated or pinned itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "kvbm/base/mutex.hpp"

namespace kvbm::internal {

struct AddressRange {
  uintptr_t begin = 0;
  uintptr_t end = 0;  ///< the first address behind it

  [[nodiscard]] bool has(uintptr_t address) const noexcept { return address - begin < end - begin; }
};

/// What is in here need not be looked up in the driver, which takes longer than the rest of a small
/// copy where layers are many allocations.
/// Threads: any thread.
class AddressRanges {
 public:
  /// Ascending.
  using List = std::vector<AddressRange>;

  /// Requires: overlaps none that is there.
  void add(const std::byte* data, uint64_t size_bytes);
  /// Before the memory goes. Nothing happens if nothing that is there begins with it.
  void remove(const std::byte* data);
  /// As it is now; never changed afterwards.
  [[nodiscard]] std::shared_ptr<const List> list() const;

 private:
  mutable Mutex mutex_{LockRank::kDevice, "device.cuda_ranges", 0};
  std::shared_ptr<const List> list_ KVBM_GUARDED_BY(mutex_) = std::make_shared<const List>();
};

/// Finds ranges of a list, fastest those that are asked for in the order of the list.
/// Ownership: shares the list. Threads: one thread at a time.
class AddressFinder {
 public:
  explicit AddressFinder(std::shared_ptr<const AddressRanges::List> list)
      : list_(std::move(list)) {}

  /// The range that has the address; null if none has.
  [[nodiscard]] const AddressRange* find(uintptr_t address) noexcept;

 private:
  std::shared_ptr<const AddressRanges::List> list_;
  size_t next_ = 0;  ///< the one behind the last that was found
};

}  // namespace kvbm::internal
