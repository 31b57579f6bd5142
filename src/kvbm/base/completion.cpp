// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/completion.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <new>
#include <optional>
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

  void add_callback(Completion::Callback callback) {
    {
      const MutexLock lock(mutex_);
      if (!done()) {
        const auto room =
            std::ranges::find_if(callbacks_, [](const auto& taken) { return !taken; });
        if (room != callbacks_.end()) {
          *room = std::move(callback);
        } else {
          more_callbacks_.push_back(std::move(callback));
        }
        return;
      }
    }
    callback(status_);
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

/// Gathers the parts of Completion::all.
class Gathering {
 public:
  Gathering(Executor& executor, size_t num_parts) : source_(executor), num_open_(num_parts) {}

  [[nodiscard]] Completion completion() const { return source_.completion(); }

  void on_part(size_t index, const Status& status) noexcept {
    if (!status) {
      const MutexLock lock(mutex_);
      if (!first_failed_ || index < *first_failed_) {
        first_failed_ = index;
        outcome_ = status;
      }
    }
    if (num_open_.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    Status outcome;
    {
      const MutexLock lock(mutex_);
      outcome = std::move(outcome_);
    }
    source_.resolve(std::move(outcome));
  }

 private:
  CompletionSource source_;
  std::atomic<size_t> num_open_;
  Mutex mutex_{LockRank::kLatch, "base.completion_all", 2};
  std::optional<size_t> first_failed_ KVBM_GUARDED_BY(mutex_);
  Status outcome_ KVBM_GUARDED_BY(mutex_);
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

void Completion::add_callback(Callback callback) const {
  if (const auto* status = std::get_if<Status>(&outcome_)) {
    callback(*status);
  } else {
    std::get<std::shared_ptr<internal::CompletionState>>(outcome_)->add_callback(
        std::move(callback));
  }
}

Completion Completion::all(std::span<const Completion> parts) {
  Executor* executor = nullptr;
  const Status* first_failure = nullptr;
  for (const Completion& part : parts) {
    if (!part.done()) {
      executor = &std::get<std::shared_ptr<internal::CompletionState>>(part.outcome_)->executor();
      break;
    }
    if (first_failure == nullptr && !part.status()) first_failure = &part.status();
  }
  if (executor == nullptr) return ready(first_failure == nullptr ? Status() : *first_failure);

  const auto gathering = std::make_shared<Gathering>(*executor, parts.size());
  Completion whole = gathering->completion();
  for (size_t i = 0; i < parts.size(); ++i) {
    parts[i].on_done(
        [gathering, i](const Status& status) noexcept { gathering->on_part(i, status); });
  }
  return whole;
}

CompletionSource::CompletionSource(Executor& executor)
    : state_(std::make_shared<internal::CompletionState>(executor)) {}

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
