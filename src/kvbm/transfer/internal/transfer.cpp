// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/internal/transfer.hpp"

#include <numeric>
#include <utility>
#include <vector>

#include "kvbm/base/text.hpp"
#include "kvbm/transfer/internal/failure.hpp"

namespace kvbm::internal {

Status Transfer::start_after(std::span<const Event> events) {
  Status status = guarded([&] { return wait_for(events); });
  // If it has ended in the meantime, its notification says so.
  if (!status && !end_waiting()) return {};
  return status;
}

Status Transfer::wait_for(std::span<const Event> events) {
  {
    const MutexLock lock(mutex_);
    pending_ = events.size() + 1;  // one for this call, so that nothing starts before its end
  }
  bool all_done = true;
  for (const Event& event : events) {
    if (event.done()) {
      event_done(event.status());
      continue;
    }
    all_done = false;
    // Weak: an event that never comes keeps nothing alive.
    event.on_done([weak = weak_from_this()](const Status& status) noexcept {
      if (const std::shared_ptr<Transfer> self = weak.lock()) self->event_done(status);
    });
  }
  if (!all_done && frame_.deadline != kNever) {
    KVBM_TRY(frame_.context->wake_at(frame_.deadline, shared_from_this()));
  }
  event_done({});
  return {};
}

void Transfer::event_done(const Status& status) noexcept {
  {
    const MutexLock lock(mutex_);
    if (state_ != State::kWaiting) return;
    if (status && --pending_ > 0) return;
    state_ = status ? State::kStarted : State::kEnded;
  }
  if (status) {
    frame_.context->schedule(weak_from_this().lock());
  } else {
    fail_all(status.error());
  }
}

bool Transfer::end_waiting() noexcept {
  const MutexLock lock(mutex_);
  if (state_ != State::kWaiting) return false;
  state_ = State::kEnded;
  return true;
}

void Transfer::started() {
  const MutexLock lock(mutex_);
  state_ = State::kStarted;
}

void Transfer::expire() noexcept {
  if (!end_waiting()) return late();
  fail_all(failure(ErrorCode::kTimeout,
                   "the deadline passed before the events of the transfer were done"));
}

void Transfer::cancel() noexcept {
  if (end_waiting()) {
    fail_all(failure(ErrorCode::kCancelled,
                     "the transfer manager was destroyed before the transfer started"));
  } else {
    stop();
  }
}

void Transfer::fail_all(const Error& error) noexcept {
  TransferResult result{
      .status = make_error(copy_of(error)), .bytes = 0, .failed = std::move(failed())};
  result.failed.resize(frame_.num_blocks);  // has room
  std::iota(result.failed.begin(), result.failed.end(), 0U);
  finish(std::move(result));
}

void Transfer::finish(TransferResult result) noexcept {
  const std::shared_ptr<Transfer> self = weak_from_this().lock();  // to the end of this call
  ending(result);
  if (!result.status) log_failure(result);
  if (frame_.kind == TransferKind::kWhole) frame_.context->ending();
  source_->resolve(std::move(result));
  frame_.context->forget(*this);
}

void Transfer::ending(const TransferResult& result) noexcept {
  const RouteCounters& counters = frame_.context->metrics().route(frame_.route);
  counters.blocks.add(frame_.num_blocks - result.failed.size());
  counters.bytes.add(result.bytes);
  counters.failed.add(result.failed.size());
}

void Transfer::log_failure(const TransferResult& result) const noexcept {
  try {
    KVBM_LOG_WARNING(frame_.context->log(), "transfer", "{}: {} of {} blocks failed: {}", way(),
                     result.failed.size(), frame_.num_blocks, result.status.error().describe());
  } catch (...) {  // NOLINT(bugprone-empty-catch): out of memory for a log line
  }
}

}  // namespace kvbm::internal
