// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/internal/memory_transfer.hpp"

#include <algorithm>
#include <chrono>
#include <utility>

#include "kvbm/base/text.hpp"
#include "kvbm/transfer/internal/failure.hpp"
#include "kvbm/transfer/internal/run_or_drop.hpp"

namespace kvbm::internal {
namespace {

/// When a stream of the device is full.
constexpr Duration kRetry = std::chrono::milliseconds(1);
/// When all streams are held: each for as long as a submission takes.
constexpr Duration kHeldPause = std::chrono::microseconds(50);

}  // namespace

/// What the transfer shares with the batch that its device has. The device keeps the batch until
/// the copies have ended, so the batch tells their end even where nothing can be queued behind
/// them.
struct MemoryTransfer::BatchEnd {
  enum Phase : int { kHeld, kAwaited, kReleased };

  std::atomic<uint64_t> bytes_moved{0};
  std::atomic<int> phase{kHeld};
  std::shared_ptr<MemoryTransfer> waiting;  // written before kAwaited, taken after it

  /// The device has let go of the batch.
  void release() noexcept {
    if (phase.exchange(kReleased, std::memory_order_acq_rel) != kAwaited) return;
    const std::shared_ptr<MemoryTransfer> transfer = std::move(waiting);
    transfer->copied(transfer->refusal_);
  }
};

MemoryTransfer::MemoryTransfer(TransferFrame frame, StridedCopyBatch batch)
    : Transfer(std::move(frame)),
      batch_(std::move(batch)),
      planned_bytes_(this->frame().block_bytes * this->frame().num_blocks),
      end_(make_pooled<BatchEnd>(context().pool())) {
  batch_.bytes_moved = {&end_->bytes_moved,
                        [end = end_](std::atomic<uint64_t>*) noexcept { end->release(); },
                        PoolAllocator<std::byte>(context().pool())};
}

Status MemoryTransfer::start_on(StreamRef stream, std::span<const Event> events) {
  callers_stream_ = true;
  KVBM_ASSIGN_OR_RETURN(Event end, put_on(stream, events));
  await(std::move(end), stream, EventOf::kDevice);
  return {};
}

Status MemoryTransfer::start_on_waiting(StreamRef stream, std::span<const Event> events) {
  waits_for_ = std::vector<Event>(events.begin(), events.end());
  KVBM_ASSIGN_OR_RETURN(Event end, put_on(stream, events));
  stream_ = stream;
  lease_ = Lease::kWaiting;
  await(std::move(end), stream, EventOf::kDevice);
  return {};
}

Status MemoryTransfer::start_now() {
  KVBM_ASSIGN_OR_RETURN(const StreamPool::Held held, context().streams().take(frame().route));
  return put_on_pool(held, EventOf::kDevice);
}

Status MemoryTransfer::start_on_host(std::span<const Event> events) { return start_after(events); }

void MemoryTransfer::run() noexcept {
  const Status put = guarded([this]() -> Status {
    const Result<StreamPool::Held> held = context().streams().take(frame().route);
    if (!held) return try_later();
    return put_on_pool(*held, EventOf::kTransfer);
  });
  if (!put) fail_all(put.error());
}

/// When all streams are held.
Status MemoryTransfer::try_later() {
  return context().post_after(kHeldPause, [weak = weak_from_this()] {
    if (const std::shared_ptr<Transfer> self = weak.lock()) self->run();
  });
}

bool MemoryTransfer::ends_by_itself() const noexcept {
  return !callers_stream_ &&
         std::ranges::all_of(waits_for_, [](const Event& event) { return event.done(); });
}

Status MemoryTransfer::put_on_pool(const StreamPool::Held& held, EventOf event_of) noexcept {
  const Result<Event> end = put_on(held.stream, {});
  if (end) await(*end, held.stream, event_of);
  context().streams().give_back(held);
  return end ? Status() : make_error(end.error());
}

/// Waits and copies; what a refused call leaves on the stream is closed off, so that it does not
/// fail whoever comes next.
Result<Event> MemoryTransfer::put_on(StreamRef stream, std::span<const Event> events) noexcept {
  Event end;
  Status put = guarded([&]() -> Status {
    for (const Event& event : events) KVBM_TRY(context().device().wait(stream, event));
    KVBM_ASSIGN_OR_RETURN(end, context().device().copy_and_record(stream, std::move(batch_)));
    return {};
  });
  if (!put && !events.empty()) {
    static_cast<void>(guarded([&]() -> Status {
      static_cast<void>(context().device().record(stream));
      return {};
    }));
  }
  if (!put) return make_error(std::move(put).error());
  return end;
}

/// `end`: of the copies.
void MemoryTransfer::await(Event end, StreamRef stream, EventOf event_of) noexcept {
  started();
  try {
    if (!end.done() || end.status()) {
      end.on_done([self = std::static_pointer_cast<MemoryTransfer>(shared_from_this())](
                      const Status& status) noexcept { self->copied(status); });
      if (event_of == EventOf::kDevice) use_event(std::move(end));
      return;
    }
    refusal_ = end.status();
  } catch (...) {
    refusal_ = make_error(current_failure());
    await_batch();
    return;
  }
  // Refused, perhaps: the copies may still run, and a failed event does not say. A task behind them
  // does.
  seal(stream);
}

/// Ends the transfer from a task on the stream; tries again for as long as the stream is full.
void MemoryTransfer::seal(StreamRef stream) noexcept {
  // A task that the device refuses is dropped as well, but before launch() returns.
  enum Phase : int { kOffered, kTaken, kDropped };
  try {
    const auto phase = std::make_shared<std::atomic<int>>(kOffered);
    const auto self = std::static_pointer_cast<MemoryTransfer>(shared_from_this());
    RunOrDrop reached([self, phase](TaskEnd how) {
      if (how == TaskEnd::kRun) {
        self->sealed();
      } else if (phase->exchange(kDropped) == kTaken) {
        self->dropped();
      }
    });
    const Status launched =
        context().device().launch(stream, [reached = std::move(reached)]() mutable {
          reached();
          return Status();
        });
    if (launched) {
      if (phase->exchange(kTaken) == kDropped) dropped();
      return;
    }
    if (launched.error().code() != ErrorCode::kExhausted) return await_batch();
    RunOrDrop again([self, stream](TaskEnd how) {
      if (how == TaskEnd::kRun) {
        self->seal(stream);
      } else {
        self->await_batch();
      }
    });
    static_cast<void>(context().post_after(kRetry, std::move(again)));
  } catch (...) {
    await_batch();
  }
}

/// All that was queued before has ended, and nobody says how: only a full stream, which refused the
/// record alone, leaves the bytes as proof.
void MemoryTransfer::sealed() noexcept {
  const bool all_moved = end_->bytes_moved.load(std::memory_order_acquire) == planned_bytes_;
  const bool was_full = !refusal_ && refusal_.error().code() == ErrorCode::kExhausted;
  copied(all_moved && was_full ? Status() : copy_of(refusal_));
}

void MemoryTransfer::dropped() noexcept {
  copied(make_error(
      failure(ErrorCode::kCancelled, "the device was destroyed before it came to the copies")));
}

/// The last resort: the copies fail once the device has let go of them. Needs no memory.
void MemoryTransfer::await_batch() noexcept {
  if (std::exchange(awaits_batch_, true)) return;
  const std::shared_ptr<BatchEnd> end = end_;  // the transfer may end in here
  end->waiting = std::static_pointer_cast<MemoryTransfer>(shared_from_this());
  if (end->phase.exchange(BatchEnd::kAwaited, std::memory_order_acq_rel) == BatchEnd::kReleased) {
    end->release();
  }
}

void MemoryTransfer::copied(const Status& status) noexcept {
  if (lease_ == Lease::kWaiting) {
    // A stream that refused to record keeps the outcome for whoever records next.
    if (refusal_) {
      context().streams().give_back_waiting(stream_);
    } else {
      context().streams().discard_waiting(stream_);
    }
  }
  const uint64_t moved = end_->bytes_moved.load(std::memory_order_acquire);
  if (!status) return fail_all(status.error());
  if (moved != planned_bytes_) {
    Status short_of_bytes = guarded([&]() -> Status {
      return make_error(ErrorCode::kInternal,
                        format_text("the device moved {} of {} bytes and reported no failure",
                                    moved, planned_bytes_));
    });
    return fail_all(short_of_bytes.error());
  }
  TransferResult result;
  result.bytes = moved;
  finish(std::move(result));
}

}  // namespace kvbm::internal
