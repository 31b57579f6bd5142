// SPDX-License-Identifier: Apache-2.0
// Completion: the one-shot outcome of an operation, as a value.
#pragma once

#include <memory>
#include <span>
#include <type_traits>
#include <utility>
#include <variant>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/executor.hpp"
#include "kvbm/base/memory_pool.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/base/unique_function.hpp"

namespace kvbm {

namespace internal {
class CompletionState;
}
class CompletionAwaiter;

/// Says whether an operation has ended and how. Copies share the outcome; a ready one allocates
/// nothing. Ownership: unresolved ones refer to the Executor of their source, which outlives them.
/// Threads: any thread (with a SteppedExecutor: its owner thread).
// NOLINTNEXTLINE(bugprone-exception-escape): moving a Status or a pointer does not throw.
class Completion {
 public:
  using Callback = UniqueFunction<void(const Status&)>;

  /// Resolved from the start.
  [[nodiscard]] static Completion ready(Status status = {}) {
    return Completion(std::move(status));
  }

  /// Done when all are; fails with the failure that comes first in `parts`. Of none: succeeded. If
  /// all are done this costs no allocation (but for the message of a failure).
  [[nodiscard]] static Completion all(std::span<const Completion> parts);

  [[nodiscard]] bool done() const noexcept;
  /// Whether co_await would suspend now. Once false, it stays false.
  [[nodiscard]] bool could_yield() const noexcept { return !done(); }

  /// The outcome. Contract: done().
  [[nodiscard]] const Status& status() const;

  /// Waits through the executor: the outcome, or kTimeout at `deadline` (the operation goes on).
  [[nodiscard]] Status wait(TimePoint deadline = kNever) const;
  /// The same, `timeout` from now on the executor's clock.
  [[nodiscard]] Status wait_for(Duration timeout) const;

  /// Calls `callback(const Status&)` once: at once if done, else on the thread that resolves, with
  /// no lock held, after done() has turned true, in the order of registration. It is noexcept,
  /// which the compiler checks, and short: it must not wait. The first two need no memory, if their
  /// captures fit a UniqueFunction.
  template <class F>
  void on_done(F&& callback) const {
    static_assert(std::is_nothrow_invocable_v<std::decay_t<F>&, const Status&>,
                  "a completion callback takes const Status& and is noexcept");
    add_callback(Callback(std::forward<F>(callback)));
  }

  /// `const Status outcome = co_await completion;` goes on where a callback would: at once if done,
  /// else on the thread that resolves or drops the source, so what follows is short and does not
  /// wait. For other work, go to a queue: `co_await resume_on(queue)`. It always goes on. Needs no
  /// memory where a callback needs none.
  /// Requires: the coroutine is not destroyed while it waits; an exception that leaves it after
  /// that ends the process, unless its promise keeps it.
  [[nodiscard]] CompletionAwaiter operator co_await() const;

  /// Through which wait() goes. Null if it was ready from the start.
  [[nodiscard]] Executor* executor() const noexcept;

 private:
  friend class CompletionAwaiter;
  friend class CompletionSource;
  explicit Completion(Status status) : outcome_(std::move(status)) {}
  explicit Completion(std::shared_ptr<internal::CompletionState> state)
      : outcome_(std::move(state)) {}

  void add_callback(Callback callback) const;
  /// False if it is done: then nobody calls.
  [[nodiscard]] bool try_add_callback(Callback callback) const;

  std::variant<Status, std::shared_ptr<internal::CompletionState>> outcome_;
};

/// What `co_await completion` works with.
// NOLINTNEXTLINE(bugprone-exception-escape): moving a Status or a pointer does not throw.
class CompletionAwaiter {
 public:
  explicit CompletionAwaiter(Completion completion) : completion_(std::move(completion)) {}

  [[nodiscard]] bool await_ready() const noexcept { return completion_.done(); }
  /// Once the callback is there, another thread may have ended the coroutine and this with it.
  template <class Handle>
  [[nodiscard]] bool await_suspend(Handle coroutine) const {
    return completion_.try_add_callback(
        [coroutine](const Status&) noexcept { coroutine.resume(); });
  }
  [[nodiscard]] Status await_resume() const { return completion_.status(); }

 private:
  Completion completion_;
};

inline CompletionAwaiter Completion::operator co_await() const { return CompletionAwaiter(*this); }

/// The side that resolves, exactly once. Dropped unresolved, it resolves as kInternal: nobody waits
/// for ever, and only a deliberate resolve says succeeded or cancelled. Ownership: move-only;
/// borrows the executor that wait() goes through. Threads: one thread at a time, apart from
/// try_resolve.
class CompletionSource {
 public:
  /// With a pool, its memory is from there.
  explicit CompletionSource(Executor& executor, const MemoryPool& pool = nullptr);
  CompletionSource(CompletionSource&& other) noexcept = default;
  CompletionSource& operator=(CompletionSource&& other) noexcept;
  CompletionSource(const CompletionSource&) = delete;
  CompletionSource& operator=(const CompletionSource&) = delete;
  ~CompletionSource();

  /// May be asked for any number of times. Contract: not moved from.
  [[nodiscard]] Completion completion() const;

  /// Contract: not resolved before, not moved from.
  void resolve(Status status);

  /// Resolves unless that has happened: for an answer and a deadline that race. Returns whether it
  /// did. Threads: any thread.
  bool try_resolve(Status status) noexcept;

 private:
  void drop() noexcept;

  std::shared_ptr<internal::CompletionState> state_;
};

}  // namespace kvbm
