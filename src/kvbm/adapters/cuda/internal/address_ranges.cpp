// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cuda/internal/address_ranges.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

namespace kvbm::internal {

void AddressRanges::add(const std::byte* data, uint64_t size_bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  const MutexLock lock(mutex_);
  List list = *list_;
  list.insert(std::ranges::lower_bound(list, begin, {}, &AddressRange::begin),
              {.begin = begin, .end = begin + size_bytes});
  list_ = std::make_shared<const List>(std::move(list));
}

void AddressRanges::remove(const std::byte* data) {
  const MutexLock lock(mutex_);
  List list = *list_;
  const auto begin = reinterpret_cast<uintptr_t>(data);
  const auto found = std::ranges::lower_bound(list, begin, {}, &AddressRange::begin);
  if (found == list.end() || found->begin != begin) return;
  list.erase(found);
  list_ = std::make_shared<const List>(std::move(list));
}

std::shared_ptr<const AddressRanges::List> AddressRanges::list() const {
  const MutexLock lock(mutex_);
  return list_;
}

const AddressRange* AddressFinder::find(uintptr_t address) noexcept {
  if (next_ >= list_->size() || !(*list_)[next_].has(address)) {
    const auto behind = std::ranges::upper_bound(*list_, address, {}, &AddressRange::begin);
    if (behind == list_->begin() || !std::prev(behind)->has(address)) return nullptr;
    next_ = static_cast<size_t>(std::prev(behind) - list_->begin());
  }
  return &(*list_)[next_++];
}

}  // namespace kvbm::internal
