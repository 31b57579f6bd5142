// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/internal/transfer_blocks.hpp"

#include <algorithm>
#include <utility>

namespace kvbm::internal {
namespace {

/// Looked at before new ones are made. Transfers mostly end in the order of their starts, so the
/// oldest is mostly free.
constexpr size_t kMostTries = 8;
/// Transfers at a time beyond these, and longer lists, have memory of their own.
constexpr size_t kMostKept = 256;
constexpr size_t kMostKeptIds = 16384;

bool is_small(const TransferBlocks& blocks) {
  return std::max({blocks.pairs.capacity(), blocks.failed.capacity(),
                   blocks.scratch.capacity() / 4}) <= kMostKeptIds;
}

}  // namespace

/// Ends without a lock: whoever lets go may hold one.
struct TransferBlocksPool::Loan {
  explicit Loan(std::shared_ptr<Kept> lent) noexcept : kept(std::move(lent)) {}
  ~Loan() { kept->is_lent.store(false, std::memory_order_release); }
  Loan(const Loan&) = delete;
  Loan& operator=(const Loan&) = delete;

  const std::shared_ptr<Kept> kept;
};

std::shared_ptr<TransferBlocks> TransferBlocksPool::take() {
  std::shared_ptr<Kept> kept;
  {
    const MutexLock lock(mutex_);
    for (size_t i = 0; i < std::min(kMostTries, all_.size()) && !kept; ++i) {
      next_ = (next_ + 1) % all_.size();
      if (!all_[next_]->is_lent.exchange(true, std::memory_order_acquire)) kept = all_[next_];
    }
    if (!kept) {
      kept = std::make_shared<Kept>();
      kept->is_lent.store(true, std::memory_order_relaxed);
      if (all_.size() < kMostKept) all_.push_back(kept);
    }
  }
  const auto loan = make_pooled<Loan>(pool_, std::move(kept));
  TransferBlocks& blocks = loan->kept->blocks;
  if (!is_small(blocks)) blocks = {};
  blocks.failed.clear();
  return {loan, &blocks};
}

}  // namespace kvbm::internal
