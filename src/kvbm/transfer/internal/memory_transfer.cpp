// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/internal/memory_transfer.hpp"

#include <algorithm>
#include <chrono>
#include <utility>

#include "kvbm/base/text.hpp"
#include "kvbm/transfer/internal/run_or_drop.hpp"

namespace kvbm::internal {
namespace {

constexpr Duration kSealRetry = std::chrono::milliseconds(1);

}  // namespace

MemoryTransfer::MemoryTransfer(TransferFrame frame, StridedCopyBatch batch)
    : Transfer(std::move(frame)),
      batch_(std::move(batch)),
      planned_bytes_(this->frame().block_bytes * this->frame().num_blocks),
      bytes_moved_(std::make_shared<std::atomic<uint64_t>>(0)) {
  batch_.bytes_moved = bytes_moved_;
}

Status MemoryTransfer::start_on(StreamRef stream, std::span<const Event> events) {
  callers_stream_ = true;
  KVBM_TRY(put_on(stream, events));
  close_group(stream, true);
  return {};
}

Status MemoryTransfer::start_on_waiting(StreamRef stream, std::span<const Event> events) {
  KVBM_TRY(put_on(stream, events));
  waits_for_ = std::vector<Event>(events.begin(), events.end());
  stream_ = stream;
  lease_ = Lease::kWaiting;
  close_group(stream, true);
  return {};
}

Status MemoryTransfer::start_now() {
  KVBM_ASSIGN_OR_RETURN(const StreamRef stream, context().streams().take(frame().route));
  Status put = put_on(stream, {});
  if (put) close_group(stream, true);
  context().streams().give_back(frame().route, stream);
  return put;
}

Status MemoryTransfer::start_on_host(std::span<const Event> events) {
  open();
  return start_after(events);
}

void MemoryTransfer::run() noexcept {
  const Result<StreamRef> stream = context().streams().take(frame().route);
  if (!stream) return fail_all(stream.error());
  const Status put = put_on(*stream, {});
  if (put) close_group(*stream, false);
  context().streams().give_back(frame().route, *stream);
  if (!put) fail_all(put.error());
}

bool MemoryTransfer::ends_by_itself() const noexcept {
  return !callers_stream_ &&
         std::ranges::all_of(waits_for_, [](const Event& event) { return event.done(); });
}

/// Waits and copies; what a refused call leaves on the stream is closed off, so that it does not
/// fail whoever comes next.
Status MemoryTransfer::put_on(StreamRef stream, std::span<const Event> events) {
  Status put;
  for (const Event& event : events) {
    put = context().device().wait(stream, event);
    if (!put) break;
  }
  if (put) put = context().device().copy(stream, std::move(batch_));
  if (!put && !events.empty()) static_cast<void>(context().device().record(stream));
  return put;
}

/// Records the end of the copies.
void MemoryTransfer::close_group(StreamRef stream, bool make_notification) {
  started();
  Event event = context().device().record(stream);
  const bool perhaps_refused =
      event.done() && !event.status() && event.status().error().code() == ErrorCode::kExhausted;
  if (perhaps_refused) {
    // The copies may still run, and a failed event does not say. A task behind them does.
    if (make_notification) open();
    seal(stream);
    return;
  }
  if (make_notification) open(event);
  event.on_done([self = std::static_pointer_cast<MemoryTransfer>(shared_from_this())](
                    const Status& status) noexcept { self->copied(status); });
}

/// Ends the transfer from a task on the stream; tries again for as long as the stream is full.
void MemoryTransfer::seal(StreamRef stream) noexcept {
  // A task that the device refuses is dropped as well, but before launch() returns.
  enum Phase : int { kOffered, kTaken, kDropped };
  const auto phase = std::make_shared<std::atomic<int>>(kOffered);
  const auto dropped =
      make_error(ErrorCode::kCancelled, "the device was destroyed before it came to the copies");
  const auto self = std::static_pointer_cast<MemoryTransfer>(shared_from_this());

  RunOrDrop reached([self, phase, dropped](TaskEnd how) {
    if (how == TaskEnd::kRun) {
      self->copied({});
    } else if (phase->exchange(kDropped) == kTaken) {
      self->copied(dropped);
    }
  });
  const Status launched =
      context().device().launch(stream, [reached = std::move(reached)]() mutable {
        reached();
        return Status();
      });
  if (launched) {
    if (phase->exchange(kTaken) == kDropped) copied(dropped);
    return;
  }
  if (launched.error().code() != ErrorCode::kExhausted) return copied(launched);
  RunOrDrop again([self, stream, launched](TaskEnd how) {
    if (how == TaskEnd::kRun) {
      self->seal(stream);
    } else {
      self->copied(launched);
    }
  });
  static_cast<void>(context().post_after(kSealRetry, std::move(again)));
}

void MemoryTransfer::copied(const Status& status) noexcept {
  if (lease_ == Lease::kWaiting) context().streams().give_back_waiting(stream_);
  const uint64_t moved = bytes_moved_->load(std::memory_order_acquire);
  if (!status) return fail_all(status.error());
  if (moved != planned_bytes_) {
    return fail_all(Error(ErrorCode::kInternal,
                          format_text("the device moved {} of {} bytes and reported no failure",
                                      moved, planned_bytes_)));
  }
  TransferResult result;
  result.bytes = moved;
  finish(std::move(result));
}

}  // namespace kvbm::internal
