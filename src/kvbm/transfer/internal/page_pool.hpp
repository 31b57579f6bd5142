// SPDX-License-Identifier: Apache-2.0
// PagePool: host pages that one transfer after another uses as buffers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "kvbm/base/mutex.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/device/host_pages.hpp"

namespace kvbm::internal {

class PagePool;

/// Some pages; their content is whatever was there. Goes back to the pool, which outlives it.
/// Ownership: move-only. Threads: one thread at a time.
class PooledPages {
 public:
  PooledPages(PooledPages&& other) noexcept : pool_(other.pool_), pages_(std::move(other.pages_)) {}
  PooledPages(const PooledPages&) = delete;
  PooledPages& operator=(const PooledPages&) = delete;
  ~PooledPages();

  [[nodiscard]] std::byte* data() const noexcept { return pages_.data(); }

 private:
  friend class PagePool;
  PooledPages(PagePool& pool, HostPages pages) noexcept : pool_(pool), pages_(std::move(pages)) {}

  PagePool& pool_;
  HostPages pages_;
};

/// To map and touch pages costs as much as to copy them, so those that nobody uses are kept, up to
/// a bound; beyond it the ones that were given back first are unmapped. Those in use have no bound
/// here.
/// Threads: any thread.
class PagePool {
 public:
  explicit PagePool(uint64_t max_kept_bytes);
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  /// `size_bytes` at least, from a page's address on. Errors: those of HostPages::map.
  [[nodiscard]] Result<PooledPages> take(uint64_t size_bytes);

  [[nodiscard]] uint64_t kept_bytes() const;

 private:
  friend class PooledPages;
  void give_back(HostPages pages) noexcept;

  static constexpr size_t kMaxKept = 64;

  const uint64_t max_kept_bytes_;
  mutable Mutex mutex_{LockRank::kTransfer, "transfer.pages"};
  std::vector<HostPages> kept_ KVBM_GUARDED_BY(mutex_);  // in the order in which they came back
  uint64_t kept_bytes_ KVBM_GUARDED_BY(mutex_) = 0;
};

}  // namespace kvbm::internal
