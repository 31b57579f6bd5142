// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/internal/bounce_ring.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include "kvbm/base/text.hpp"
#include "kvbm/base/units.hpp"

namespace kvbm::internal {

BounceRing::BounceRing(uint32_t num_slots) : num_slots_(num_slots) {
  const MutexLock lock(mutex_);
  free_.resize(num_slots);
  std::iota(free_.rbegin(), free_.rend(), 0U);
}

std::optional<uint32_t> BounceRing::take(const std::shared_ptr<BounceWaiter>& waiter,
                                         TransferPriority priority) {
  const MutexLock lock(mutex_);
  const auto known = std::ranges::find(waiters_, waiter, &Waiter::who);
  if (known != waiters_.end()) {
    const std::optional<uint32_t> granted = known->granted;
    if (granted) waiters_.erase(known);
    return granted;
  }
  if (free_.empty()) {  // else nobody waits
    waiters_.push_back({waiter, priority});
    return std::nullopt;
  }
  const uint32_t slot = free_.back();
  free_.pop_back();
  return slot;
}

void BounceRing::give_back(uint32_t slot) noexcept {
  std::shared_ptr<BounceWaiter> next;
  {
    const MutexLock lock(mutex_);
    auto best = waiters_.end();
    for (auto it = waiters_.begin(); it != waiters_.end(); ++it) {
      if (!it->granted && (best == waiters_.end() || it->priority < best->priority)) best = it;
    }
    if (best == waiters_.end()) {
      free_.push_back(slot);
      return;
    }
    best->granted = slot;
    next = best->who;
  }
  next->slot_granted();
}

void BounceRing::withdraw(const BounceWaiter& waiter) noexcept {
  Waiter last;  // released without the lock
  {
    const MutexLock lock(mutex_);
    const auto known = std::ranges::find_if(
        waiters_, [&](const Waiter& entry) { return entry.who.get() == &waiter; });
    if (known == waiters_.end()) return;
    last = std::move(*known);
    waiters_.erase(known);
  }
  if (last.granted) give_back(*last.granted);
}

Result<std::shared_ptr<BounceMemory>> BounceMemory::create(StorageKind kind,
                                                           const BounceMemoryOptions& options) {
  std::shared_ptr<BounceMemory> memory(new BounceMemory(options));
  const uint64_t size_bytes = options.num_slots * options.slot_bytes;
  if (kind != StorageKind::kPinned) {
    KVBM_ASSIGN_OR_RETURN(memory->system_, SystemMemory::create({.size_bytes = size_bytes}));
    memory->region_ = memory->system_.region();
    return memory;
  }
  if (options.pinner == nullptr) {
    return make_error(
        ErrorCode::kUnsupported,
        "bounce blocks have to be in pinned memory here, and the transfer manager has no pinner: "
        "give TransferConfig one, or the transfer a BounceBuffer");
  }
  const uint64_t slice_bytes =
      std::min<uint64_t>(options.slot_bytes, kGiB);  // no lock is held for longer
  KVBM_ASSIGN_OR_RETURN(memory->pinned_, PinnedMemory::create({.executor = options.executor,
                                                               .pinner = options.pinner,
                                                               .size_bytes = size_bytes,
                                                               .slice_bytes = slice_bytes,
                                                               .num_threads = 2}));
  memory->region_ = memory->pinned_.region();
  memory->ready_ = Event(memory->pinned_.ready(memory->pinned_.size_bytes()));
  return memory;
}

MemoryRegion BounceMemory::slot(uint32_t index) const {
  return region_.slice(index * slot_bytes_, slot_bytes_);
}

Status BounceLoans::take(LayoutHandle layout, std::span<const BlockId> ids) {
  const MutexLock lock(mutex_);
  for (size_t i = 0; i < ids.size(); ++i) {
    if (lent_.emplace(layout, ids[i]).second) continue;
    for (size_t k = 0; k < i; ++k) lent_.erase({layout, ids[k]});
    return make_error(
        ErrorCode::kInvalidArgument,
        format_text("bounce block {} is there twice, or lent to another transfer", ids[i]));
  }
  return {};
}

void BounceLoans::give_back(LayoutHandle layout, std::span<const BlockId> ids) noexcept {
  const MutexLock lock(mutex_);
  for (const BlockId id : ids) lent_.erase({layout, id});
}

Result<std::unique_ptr<BounceLoan>> BounceLoan::create(std::shared_ptr<BounceLoans> loans,
                                                       LayoutHandle layout,
                                                       std::vector<BlockId> ids) {
  KVBM_TRY(loans->take(layout, ids));
  return std::unique_ptr<BounceLoan>(new BounceLoan(std::move(loans), layout, std::move(ids)));
}

void BounceLoan::release() noexcept {
  if (const std::shared_ptr<BounceLoans> loans = std::exchange(loans_, nullptr)) {
    loans->give_back(layout_, ids_);
  }
}

}  // namespace kvbm::internal
