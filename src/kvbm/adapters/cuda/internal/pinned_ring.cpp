// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cuda/internal/pinned_ring.hpp"

namespace kvbm::internal {

std::optional<PinnedRing::Slice> PinnedRing::take(uint64_t size_bytes) {
  if (size_bytes == 0 || size_bytes > memory_.size()) return std::nullopt;
  const uint64_t size = (size_bytes + kAlignment - 1) / kAlignment * kAlignment;
  const MutexLock lock(mutex_);
  if (lent_.empty()) head_ = tail_ = 0;
  // What is lent lies in [tail, head), or around the end: [tail, end) and [0, head).
  uint64_t start = head_;
  const bool wraps = !lent_.empty() && head_ <= tail_;
  if (wraps) {
    if (size > tail_ - head_) return std::nullopt;
  } else if (size > memory_.size() - head_) {
    if (size > tail_) return std::nullopt;
    start = 0;
  }
  head_ = start + size;
  lent_.push({.end = head_, .is_free = false});
  return Slice(*this, first_ticket_ + lent_.size() - 1, memory_.subspan(start, size_bytes));
}

void PinnedRing::give_back(uint64_t ticket) noexcept {
  const MutexLock lock(mutex_);
  lent_[ticket - first_ticket_].is_free = true;
  while (!lent_.empty() && lent_.front().is_free) {
    tail_ = lent_.pop().end;
    ++first_ticket_;
  }
}

void PinnedRing::Slice::reset() noexcept {
  if (PinnedRing* const ring = std::exchange(ring_, nullptr)) ring->give_back(ticket_);
  bytes_ = {};
}

}  // namespace kvbm::internal
