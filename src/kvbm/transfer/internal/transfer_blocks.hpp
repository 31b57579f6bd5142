// SPDX-License-Identifier: Apache-2.0
// TransferBlocks: the lists of a transfer that grow with its blocks, used again by later ones.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "kvbm/base/ids.hpp"
#include "kvbm/base/memory_pool.hpp"
#include "kvbm/base/mutex.hpp"
#include "kvbm/device/strided_copy.hpp"

namespace kvbm::internal {

/// Threads: one thread at a time, but for what pairs_of() gives, which nobody changes.
struct TransferBlocks {
  // Whoever takes them assigns the ids: over those of an earlier transfer that is one memcpy.
  BlockPairs pairs;
  std::vector<uint32_t> failed;   ///< positions; with room for all, so that failing needs no memory
  std::vector<uint32_t> scratch;  ///< of the check of ids
};

/// The pairs for a batch, which keeps all of `blocks`.
[[nodiscard]] inline BlockPairList pairs_of(const std::shared_ptr<TransferBlocks>& blocks) {
  return {blocks, &blocks->pairs};
}

/// Hands out lists that nobody else holds. They come back by themselves, on whatever thread the
/// last holder lets go, and may outlive the pool.
/// Threads: any thread.
class TransferBlocksPool {
 public:
  explicit TransferBlocksPool(MemoryPool pool) noexcept : pool_(std::move(pool)) {}

  /// With the memory, and the ids, of an earlier transfer; nothing has failed.
  [[nodiscard]] std::shared_ptr<TransferBlocks> take();

 private:
  struct Kept {
    TransferBlocks blocks;
    std::atomic<bool> is_lent{false};
  };
  struct Loan;

  const MemoryPool pool_;
  Mutex mutex_{LockRank::kTransfer, "transfer.blocks"};
  std::vector<std::shared_ptr<Kept>> all_ KVBM_GUARDED_BY(mutex_);
  size_t next_ KVBM_GUARDED_BY(mutex_) = 0;
};

}  // namespace kvbm::internal
