// SPDX-License-Identifier: Apache-2.0
// resume_on: takes a coroutine to a thread of a queue.
#pragma once

#include <utility>

#include "kvbm/base/executor.hpp"
#include "kvbm/base/result.hpp"

namespace kvbm {

/// What `co_await resume_on(queue)` works with.
class QueueAwaiter {
 public:
  explicit QueueAwaiter(TaskQueue& queue) noexcept : queue_(queue) {}

  [[nodiscard]] bool await_ready() const noexcept { return false; }

  template <class Handle>
  [[nodiscard]] bool await_suspend(Handle coroutine) {
    Task task = Hop<Handle>(*this, coroutine);
    // Once the queue has the task, another thread may have ended the coroutine and this with it.
    Status posted = queue_.try_post(std::move(task));
    if (posted) return true;
    refused_ = true;
    outcome_ = std::move(posted);
    return false;
  }

  [[nodiscard]] Status await_resume() { return std::move(outcome_); }

 private:
  /// The task. One that a queue drops instead of running it resumes the coroutine all the same.
  template <class Handle>
  class Hop {
   public:
    Hop(QueueAwaiter& awaiter, Handle coroutine) noexcept
        : awaiter_(&awaiter), coroutine_(coroutine) {}
    Hop(Hop&& other) noexcept
        : awaiter_(std::exchange(other.awaiter_, nullptr)), coroutine_(other.coroutine_) {}
    Hop& operator=(Hop&&) = delete;
    Hop(const Hop&) = delete;
    Hop& operator=(const Hop&) = delete;
    ~Hop() {
      if (awaiter_ == nullptr || awaiter_->refused_) return;
      awaiter_->outcome_ = make_error(ErrorCode::kUnavailable, "dropped");  // too short to allocate
      coroutine_.resume();
    }

    void operator()() {
      awaiter_ = nullptr;
      coroutine_.resume();
    }

   private:
    QueueAwaiter* awaiter_;  ///< null once the coroutine has been resumed
    Handle coroutine_;
  };

  TaskQueue& queue_;
  bool refused_ = false;
  Status outcome_;
};

/// `const Status moved = co_await resume_on(queue);` goes on in a task of the queue. Never waits.
/// Errors: those of TaskQueue::try_post, and the coroutine goes on where it was; kUnavailable if
/// the queue drops the task, and it goes on where that happens.
/// Requires: the queue outlives the hop; the coroutine is not destroyed meanwhile.
[[nodiscard]] inline QueueAwaiter resume_on(TaskQueue& queue) noexcept {
  return QueueAwaiter(queue);
}

}  // namespace kvbm
