// SPDX-License-Identifier: Apache-2.0
// TransferCompleteNotification: how a transfer ended, once it has.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/completion.hpp"
#include "kvbm/base/executor.hpp"
#include "kvbm/base/memory_pool.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/device/event.hpp"

namespace kvbm {

/// Each block of a transfer either arrived or is in `failed`; what failed is undefined at the
/// destination. Units: `bytes` is the payload of the blocks that arrived.
struct TransferResult {
  /// Succeeded only if every block did; else the error of the first position in `failed`, and how
  /// many.
  Status status = {};
  uint64_t bytes = 0;
  /// Positions in the request's id lists, ascending: I/O error, another tag, a wrong checksum, not
  /// started before the deadline (kTimeout) or the end of the manager (kCancelled). Memory to
  /// memory: all or none.
  std::vector<uint32_t> failed = {};
};

/// When it is done, nothing touches the blocks any more, whatever the outcome.
/// Ownership: a value; copies share the outcome, and one that is done from the start allocates
/// nothing. Until it is done it refers to the manager's executor, which outlives it. It may be
/// dropped; the transfer goes on. Threads: any thread (with a SteppedExecutor: its owner thread).
class TransferCompleteNotification {
 public:
  /// Done, succeeded, nothing moved.
  TransferCompleteNotification() = default;

  /// Done from the start.
  [[nodiscard]] static TransferCompleteNotification ready(TransferResult result) {
    TransferCompleteNotification notification;
    notification.ready_ = std::move(result);
    return notification;
  }

  /// One for any number of them, done when all are. Its bytes are their sum, its status that of the
  /// first in `parts` that failed, and `failed` has the positions in `parts` of those that did;
  /// what failed of each is in its own result. If all are done and succeeded this costs no
  /// allocation. The event is done when all parts are; a stream that waits for each part's event
  /// instead need not wait for the host.
  [[nodiscard]] static TransferCompleteNotification aggregate(
      std::span<const TransferCompleteNotification> parts);

  [[nodiscard]] bool done() const noexcept { return !state_ || state_->completion.done(); }
  /// Whether co_await would suspend now. Once false, it stays false.
  [[nodiscard]] bool could_yield() const noexcept { return !done(); }

  /// Contract: done().
  [[nodiscard]] const TransferResult& result() const;

  /// Waits through the executor: the result's status, or kTimeout at `deadline` (the transfer goes
  /// on).
  [[nodiscard]] Status wait(TimePoint deadline = kNever) const;

  /// `const Status outcome = co_await notification;` See Completion: it goes on on the thread that
  /// ends the transfer.
  [[nodiscard]] CompletionAwaiter operator co_await() const {
    return CompletionAwaiter(completion());
  }

  /// Calls `callback(const TransferResult&) noexcept` once; see Completion::on_done.
  template <class F>
  void on_done(F&& callback) const {
    static_assert(std::is_nothrow_invocable_v<std::decay_t<F>&, const TransferResult&>,
                  "a transfer callback takes const TransferResult& and is noexcept");
    if (!state_) {
      std::decay_t<F> now(std::forward<F>(callback));
      now(result());
      return;
    }
    state_->completion.on_done(
        [state = state_, callback = std::decay_t<F>(std::forward<F>(callback))](
            const Status&) mutable noexcept { callback(state->outcome()); });
  }

  /// For streams and others to wait for. Done when the bytes are where they should be (which may be
  /// shortly before done()); fails if any block failed.
  [[nodiscard]] Event event() const { return state_ ? state_->event : Event::ready(ready_.status); }

  /// The status in the words of everything that is not a transfer.
  [[nodiscard]] Completion completion() const {
    return state_ ? state_->completion : Completion::ready(ready_.status);
  }

 private:
  friend class TransferSource;
  struct State {
    Completion completion;
    Event event;
    TransferResult result = {};  // written before the completion resolves, never after
    bool has_result = false;     // likewise

    /// Contract: the completion is done.
    [[nodiscard]] const TransferResult& outcome() const;
    /// That of a source that was dropped.
    [[nodiscard]] static const TransferResult& dropped();
  };

  explicit TransferCompleteNotification(std::shared_ptr<State> state) : state_(std::move(state)) {}

  std::shared_ptr<State> state_;  ///< null: done from the start, with ready_
  TransferResult ready_;
};

/// The side that resolves, exactly once. Dropped unresolved, the transfer fails as kInternal.
/// Ownership: move-only; borrows the executor.
/// Threads: one thread at a time.
class TransferSource {
 public:
  /// With a pool, its memory is from there.
  explicit TransferSource(Executor& executor, const MemoryPool& pool = nullptr);
  TransferSource(TransferSource&&) noexcept = default;
  TransferSource& operator=(TransferSource&&) = delete;
  TransferSource(const TransferSource&) = delete;
  TransferSource& operator=(const TransferSource&) = delete;
  ~TransferSource() = default;

  [[nodiscard]] TransferCompleteNotification notification() const {
    return TransferCompleteNotification(state_);
  }

  /// A device's event; without one the event is the notification itself. Requires: nobody has a
  /// notification yet.
  // NOLINTNEXTLINE(bugprone-exception-escape): moving a Status or a pointer does not throw.
  void use_event(Event event) noexcept { state_->event = std::move(event); }

  /// Needs no memory: where there is none, the completion's status has a shorter message.
  /// Contract: not resolved before.
  void resolve(TransferResult result);

 private:
  CompletionSource source_;
  std::shared_ptr<TransferCompleteNotification::State> state_;
};

}  // namespace kvbm
