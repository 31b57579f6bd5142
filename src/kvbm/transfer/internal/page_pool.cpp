// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/internal/page_pool.hpp"

#include <algorithm>
#include <bit>
#include <iterator>

namespace kvbm::internal {

PooledPages::~PooledPages() {
  if (pages_.data() != nullptr) pool_.give_back(std::move(pages_));
}

PagePool::PagePool(uint64_t max_kept_bytes) : max_kept_bytes_(max_kept_bytes) {
  const MutexLock lock(mutex_);
  kept_.reserve(kMaxKept);  // what comes back finds room without an allocation
}

Result<PooledPages> PagePool::take(uint64_t size_bytes) {
  // Powers of two, so that transfers of about the same size share them. What would not be kept is
  // as large as it has to be.
  const uint64_t wanted =
      size_bytes > 0 && size_bytes <= max_kept_bytes_ / 2 ? std::bit_ceil(size_bytes) : size_bytes;
  {
    const MutexLock lock(mutex_);
    // The one that was used last: its pages may be in a cache.
    const auto found = std::find_if(kept_.rbegin(), kept_.rend(), [wanted](const HostPages& pages) {
      return pages.size_bytes() == wanted;
    });
    if (found != kept_.rend()) {
      HostPages pages = std::move(*found);
      kept_.erase(std::next(found).base());
      kept_bytes_ -= wanted;
      return PooledPages(*this, std::move(pages));
    }
  }
  KVBM_ASSIGN_OR_RETURN(HostPages pages, HostPages::map({.size_bytes = wanted}));
  return PooledPages(*this, std::move(pages));
}

uint64_t PagePool::kept_bytes() const {
  const MutexLock lock(mutex_);
  return kept_bytes_;
}

void PagePool::give_back(HostPages pages) noexcept {
  const uint64_t size = pages.size_bytes();
  if (size > max_kept_bytes_) return;
  for (;;) {
    HostPages oldest;  // unmapped without the lock
    const MutexLock lock(mutex_);
    if (kept_bytes_ <= max_kept_bytes_ - size && kept_.size() < kMaxKept) {
      kept_.push_back(std::move(pages));
      kept_bytes_ += size;
      return;
    }
    oldest = std::move(kept_.front());
    kept_.erase(kept_.begin());
    kept_bytes_ -= oldest.size_bytes();
  }
}

}  // namespace kvbm::internal
