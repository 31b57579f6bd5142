// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/internal/transfer_context.hpp"

#include <algorithm>
#include <vector>

#include "kvbm/base/text.hpp"
#include "kvbm/transfer/internal/failure.hpp"
#include "kvbm/transfer/internal/transfer.hpp"

namespace kvbm::internal {

TransferContext::TransferContext(const TransferConfig& config, std::unique_ptr<StreamPool> streams,
                                 std::unique_ptr<TaskQueue> queue)
    : config_(config),
      capabilities_(config.device.info().capabilities),
      metrics_(config.metrics),
      streams_(std::move(streams)),
      queue_(std::move(queue)) {
  const MutexLock lock(mutex_);
  ready_.reserve(queue_capacity(config.max_transfers));
}

Result<std::shared_ptr<BounceMemory>> TransferContext::bounce_memory(StorageKind kind) {
  const auto usable = [](const std::shared_ptr<BounceMemory>& memory) {
    return memory != nullptr && (!memory->ready().done() || memory->ready().status());
  };
  {
    const MutexLock lock(mutex_);
    if (usable(bounce_[kind])) return bounce_[kind];
  }
  KVBM_ASSIGN_OR_RETURN(std::shared_ptr<BounceMemory> made,
                        BounceMemory::create(kind, {.executor = executor(),
                                                    .pinner = config_.pinner,
                                                    .num_slots = config_.bounce_slots,
                                                    .slot_bytes = config_.bounce_slot_bytes}));
  // Whoever was faster has made it; `made` and what it replaces go without the lock.
  std::shared_ptr<BounceMemory> memory = made;
  const MutexLock lock(mutex_);
  std::shared_ptr<BounceMemory>& there = bounce_[kind];
  if (usable(there)) return there;
  there.swap(made);
  return memory;
}

Status TransferContext::admit(std::shared_ptr<Transfer> transfer) {
  const MutexLock lock(mutex_);
  if (closed_) {
    return make_error(ErrorCode::kUnavailable, "the transfer manager is being destroyed");
  }
  const bool counts = transfer->kind() == TransferKind::kWhole;
  if (counts && in_flight_ >= config_.max_transfers) {
    return make_error(ErrorCode::kExhausted,
                      format_text("{} transfers are under way; wait for some to end", in_flight_));
  }
  if (places_.empty()) places_.emplace_back();
  transfers_.splice(transfers_.begin(), places_, places_.begin());
  transfer->place_ = transfers_.begin();
  transfers_.front() = std::move(transfer);
  if (counts) ++in_flight_;
  return {};
}

void TransferContext::ending() noexcept {
  const MutexLock lock(mutex_);
  --in_flight_;
}

void TransferContext::forget(Transfer& transfer) noexcept {
  std::shared_ptr<Transfer> last;  // released without the lock
  const MutexLock lock(mutex_);
  if (!transfer.place_) return;
  const auto place = *std::exchange(transfer.place_, std::nullopt);
  last = std::move(*place);
  places_.splice(places_.begin(), transfers_, place);
  timers_.erase(TimerKey{transfer.deadline(), &transfer});
}

size_t TransferContext::in_flight() const {
  const MutexLock lock(mutex_);
  return in_flight_;
}

bool TransferContext::comes_later(const Ready& a, const Ready& b) noexcept {
  const TransferPriority of_a = a.transfer->priority();
  const TransferPriority of_b = b.transfer->priority();
  return of_a == of_b ? a.turn > b.turn : of_a > of_b;
}

void TransferContext::schedule(std::shared_ptr<Transfer> transfer) noexcept {
  const Status posted = guarded([&]() -> Status {
    {
      const MutexLock lock(mutex_);
      // There is room: a transfer is here once at most.
      ready_.push_back({transfer, num_scheduled_++});
      std::push_heap(ready_.begin(), ready_.end(), comes_later);
    }
    transfer = nullptr;
    return queue_->try_post(Task([this] { run_next(); }));
  });
  // Only a stopped queue refuses, or one without memory, or full of parts.
  if (posted) return;
  if (transfer != nullptr) {
    transfer->run();
  } else {
    run_next();
  }
}

/// There are as many calls of it as transfers that are ready.
void TransferContext::run_next() noexcept {
  std::shared_ptr<Transfer> transfer;
  {
    const MutexLock lock(mutex_);
    std::pop_heap(ready_.begin(), ready_.end(), comes_later);
    transfer = std::move(ready_.back().transfer);
    ready_.pop_back();
  }
  transfer->run();
}

Status TransferContext::post_after(Duration delay, Task task) {
  return queue_->post_after(delay, std::move(task));
}

Status TransferContext::wake_at(TimePoint deadline, std::shared_ptr<Transfer> transfer) {
  bool earlier = false;
  {
    const MutexLock lock(mutex_);
    timers_.insert_or_assign(TimerKey{deadline, transfer.get()}, transfer);
    earlier = deadline < alarm_;
    if (earlier) alarm_ = deadline;
  }
  if (!earlier) return {};
  Status alarm = set_alarm(deadline);
  if (!alarm) {
    const MutexLock lock(mutex_);
    if (alarm_ == deadline) alarm_ = kNever;
  }
  return alarm;
}

Status TransferContext::set_alarm(TimePoint time) {
  return queue_->post_after(std::max(time - now(), Duration::zero()), [this] { tick(); });
}

void TransferContext::tick() {
  std::vector<std::shared_ptr<Transfer>> expired;
  TimePoint next = kNever;
  {
    const MutexLock lock(mutex_);
    const TimePoint time = now();
    while (!timers_.empty() && timers_.begin()->first.first <= time) {
      if (auto transfer = timers_.begin()->second.lock()) expired.push_back(std::move(transfer));
      timers_.erase(timers_.begin());
    }
    // An alarm set for later is still to come; one that is due is this one or has been.
    if (alarm_ <= time) alarm_ = kNever;
    if (!timers_.empty() && timers_.begin()->first.first < alarm_) {
      next = alarm_ = timers_.begin()->first.first;
    }
  }
  if (next != kNever && !set_alarm(next)) {
    KVBM_LOG_WARNING(log(), "transfer", "no room for a timer: deadlines may be late");
  }
  for (const std::shared_ptr<Transfer>& transfer : expired) transfer->expire();
}

void TransferContext::close() {
  std::vector<std::shared_ptr<Transfer>> transfers;
  {
    const MutexLock lock(mutex_);
    if (std::exchange(closed_, true)) return;
    transfers.assign(transfers_.begin(), transfers_.end());
  }
  for (const std::shared_ptr<Transfer>& transfer : transfers) transfer->cancel();
  for (const std::shared_ptr<Transfer>& transfer : transfers) {
    if (transfer->ends_by_itself()) static_cast<void>(transfer->notification().wait());
  }
  queue_->stop();
  streams_->close();
}

}  // namespace kvbm::internal
