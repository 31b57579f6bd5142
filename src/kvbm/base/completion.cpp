// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/completion.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <new>
#include <vector>

#include "kvbm/base/latch.hpp"
#include "kvbm/base/mutex.hpp"

namespace kvbm {
namespace internal {

/// What a source and its completions share.
class CompletionState {
 public:
  /// Callbacks that cost no allocation: one of whoever waits, one of a completion of several.
  static constexpr size_t kInlineCallbacks = 2;

  explicit CompletionState(Executor& executor) : executor_(executor) {}

  [[nodiscard]] bool done() const noexcept { return done_.load(std::memory_order_acquire); }

  [[nodiscard]] const Status& status() const {
    KVBM_CONTRACT(done(), "the status of a completion was asked before it was done");
    return status_;
  }

  [[nodiscard]] Executor& executor() const noexcept { return executor_; }

  [[nodiscard]] bool wait(TimePoint deadline) const {
    return done() || executor_.wait(latch_, deadline);
  }

  /// False if it was resolved before.
  bool resolve(Status status) noexcept {
    std::array<Completion::Callback, kInlineCallbacks> callbacks;
    std::vector<Completion::Callback> more_callbacks;
    {
      const MutexLock lock(mutex_);
      if (done()) return false;
      status_ = std::move(status);
      done_.store(true, std::memory_order_release);
      callbacks = std::move(callbacks_);
      more_callbacks.swap(more_callbacks_);
    }
    latch_.set();
    for (Completion::Callback& callback : callbacks) {
      if (callback) callback(status_);
    }
    for (Completion::Callback& callback : more_callbacks) callback(status_);
    return true;
  }

  /// False if it is done: then `callback` is untouched.
  bool try_add_callback(Completion::Callback& callback) {
    const MutexLock lock(mutex_);
    if (done()) return false;
    const auto room = std::ranges::find_if(callbacks_, [](const auto& taken) { return !taken; });
    if (room != callbacks_.end()) {
      *room = std::move(callback);
    } else {
      more_callbacks_.push_back(std::move(callback));
    }
    return true;
  }

 private:
  Executor& executor_;
  Latch latch_;
  std::atomic<bool> done_{false};
  Status status_;  // written once, before done_
  Mutex mutex_{LockRank::kLatch, "base.completion", 1};
  // In the order of registration.
  std::array<Completion::Callback, kInlineCallbacks> callbacks_ KVBM_GUARDED_BY(mutex_);
  std::vector<Completion::Callback> more_callbacks_ KVBM_GUARDED_BY(mutex_);
};

}  // namespace internal

namespace {

/// Keeps the parts of Completion::all until the last one is done.
class Gathering {
 public:
  Gathering(Executor& executor, std::span<const Completion> parts)
      : source_(executor), parts_(parts.begin(), parts.end()), num_open_(parts.size()) {}

  [[nodiscard]] Completion completion() const { return source_.completion(); }

  void on_part() noexcept {
    if (num_open_.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    const auto failed =
        std::ranges::find_if(parts_, [](const auto& part) { return !part.status(); });
    source_.resolve(failed == parts_.end() ? Status() : internal::copy_of(failed->status()));
  }

 private:
  CompletionSource source_;
  const std::vector<Completion> parts_;
  std::atomic<size_t> num_open_;
};

}  // namespace

bool Completion::done() const noexcept {
  const auto* state = std::get_if<std::shared_ptr<internal::CompletionState>>(&outcome_);
  return state == nullptr || (*state)->done();
}

const Status& Completion::status() const {
  if (const auto* status = std::get_if<Status>(&outcome_)) return *status;
  return std::get<std::shared_ptr<internal::CompletionState>>(outcome_)->status();
}

Status Completion::wait(TimePoint deadline) const {
  if (const auto* status = std::get_if<Status>(&outcome_)) return *status;
  const auto& state = std::get<std::shared_ptr<internal::CompletionState>>(outcome_);
  if (state->wait(deadline)) return state->status();
  return make_error(ErrorCode::kTimeout, deadline == kNever
                                             ? "nothing is left to run that could end the operation"
                                             : "the operation did not end before its deadline");
}

Status Completion::wait_for(Duration timeout) const {
  if (const auto* status = std::get_if<Status>(&outcome_)) return *status;
  const auto& state = std::get<std::shared_ptr<internal::CompletionState>>(outcome_);
  return wait(saturating_add(state->executor().clock().now(), timeout));
}

Executor* Completion::executor() const noexcept {
  const auto* state = std::get_if<std::shared_ptr<internal::CompletionState>>(&outcome_);
  return state == nullptr ? nullptr : &(*state)->executor();
}

void Completion::add_callback(Callback callback) const {
  if (const auto* status = std::get_if<Status>(&outcome_)) {
    callback(*status);
    return;
  }
  const auto& state = std::get<std::shared_ptr<internal::CompletionState>>(outcome_);
  if (!state->try_add_callback(callback)) callback(state->status());
}

bool Completion::try_add_callback(Callback callback) const {
  if (std::holds_alternative<Status>(outcome_)) return false;
  // The callback may be called, and end whoever holds this completion, before the call below
  // returns.
  const auto state = std::get<std::shared_ptr<internal::CompletionState>>(outcome_);
  return state->try_add_callback(callback);
}

Completion Completion::all(std::span<const Completion> parts) {
  Executor* executor = nullptr;
  const Status* first_failure = nullptr;
  for (const Completion& part : parts) {
    if (!part.done()) {
      executor = part.executor();
      break;
    }
    if (first_failure == nullptr && !part.status()) first_failure = &part.status();
  }
  if (executor == nullptr) return ready(first_failure == nullptr ? Status() : *first_failure);

  const auto gathering = std::make_shared<Gathering>(*executor, parts);
  Completion whole = gathering->completion();
  for (const Completion& part : parts) {
    part.on_done([gathering](const Status&) noexcept { gathering->on_part(); });
  }
  return whole;
}

CompletionSource::CompletionSource(Executor& executor, const MemoryPool& pool)
    : state_(make_pooled<internal::CompletionState>(pool, executor)) {}

CompletionSource& CompletionSource::operator=(CompletionSource&& other) noexcept {
  if (this != &other) {
    drop();
    state_ = std::move(other.state_);
  }
  return *this;
}

CompletionSource::~CompletionSource() { drop(); }

Completion CompletionSource::completion() const {
  KVBM_CONTRACT(state_ != nullptr, "the completion source was moved from");
  return Completion(state_);
}

void CompletionSource::resolve(Status status) {
  KVBM_CONTRACT(state_ != nullptr, "the completion source was moved from");
  // A callback may destroy this source: keep the state until resolve() is through.
  const auto state = state_;
  const bool resolved = state->resolve(std::move(status));
  KVBM_CONTRACT(resolved, "the completion was resolved before");
}

bool CompletionSource::try_resolve(Status status) noexcept {
  const auto state = state_;
  return state != nullptr && state->resolve(std::move(status));
}

void CompletionSource::drop() noexcept {
  const auto state = std::move(state_);
  if (state == nullptr || state->done()) return;
  try {
    state->resolve(
        make_error(ErrorCode::kInternal, "the operation was dropped before it had an outcome"));
  } catch (const std::bad_alloc&) {
    state->resolve(make_error(ErrorCode::kInternal, "dropped"));  // short: it is not allocated
  }
}

}  // namespace kvbm
