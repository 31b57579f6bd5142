// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/thread_executor.hpp"

#include <pthread.h>
#include <signal.h>

#include <array>
#include <atomic>
#include <exception>
#include <map>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "kvbm/base/log.hpp"
#include "kvbm/base/mutex.hpp"
#include "kvbm/base/ring.hpp"

namespace kvbm {
namespace {

/// Linux cuts nothing itself: a longer name is refused.
constexpr size_t kMaxThreadNameLength = 15;

void name_this_thread(const std::string& queue_name, size_t index, size_t num_threads) {
  const std::string suffix = num_threads == 1 ? "" : "/" + std::to_string(index);
  std::string name = queue_name.substr(0, kMaxThreadNameLength - suffix.size()) + suffix;
  pthread_setname_np(pthread_self(), name.c_str());
}

/// Blocks asynchronous signals for its lifetime; threads started meanwhile inherit that.
class SignalsBlocked {
 public:
  SignalsBlocked() noexcept {
    sigset_t blocked;
    sigfillset(&blocked);
    // Faults belong to the thread that commits them, profilers sample all threads.
    for (const int number : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS, SIGPROF}) {
      sigdelset(&blocked, number);
    }
    pthread_sigmask(SIG_BLOCK, &blocked, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

/// What a queue and its threads share; outlives whichever ends last.
class QueueState {
 public:
  QueueState(QueueOptions options, const Clock& clock, LogSink& log)
      : options_(std::move(options)), clock_(clock), log_(log) {
    const MutexLock lock(mutex_);
    ready_.make_room(options_.capacity);  // posting needs no memory
  }

  [[nodiscard]] const QueueOptions& options() const noexcept { return options_; }
  [[nodiscard]] LogSink& log() const noexcept { return log_; }
  [[nodiscard]] bool is_current() const noexcept { return current_ == this; }

  Status post(Task& task) KVBM_EXCLUDES(mutex_) {
    {
      const MutexLock lock(mutex_);
      ++num_blocked_;
      while (!stopping_ && is_full() && !is_current()) room_.wait(mutex_);
      --num_blocked_;
      if (stopping_) return stopped_error();
      ready_.push(std::move(task));
    }
    work_.notify_one();
    return {};
  }

  Status try_post(Task& task) KVBM_EXCLUDES(mutex_) {
    {
      const MutexLock lock(mutex_);
      if (stopping_) return stopped_error();
      if (is_full()) return full_error("waiting");
      ready_.push(std::move(task));
    }
    work_.notify_one();
    return {};
  }

  Status post_after(Duration delay, Task& task) KVBM_EXCLUDES(mutex_) {
    const TimePoint due = saturating_add(clock_.now(), delay);
    {
      const MutexLock lock(mutex_);
      if (stopping_) return stopped_error();
      if (delayed_.size() >= options_.capacity) return full_error("delayed");
      delayed_.emplace(due, std::move(task));
    }
    work_.notify_one();
    return {};
  }

  /// Returns whether this call was the first.
  bool begin_stop() KVBM_EXCLUDES(mutex_) {
    std::multimap<TimePoint, Task> dropped;  // destroyed without the lock: tasks hold completions
    {
      const MutexLock lock(mutex_);
      if (std::exchange(stopping_, true)) return false;
      dropped.swap(delayed_);
    }
    work_.notify_all();
    room_.notify_all();
    return true;
  }

  [[nodiscard]] QueueStatistics statistics() const KVBM_EXCLUDES(mutex_) {
    const MutexLock lock(mutex_);
    return {.waiting = ready_.size(),
            .delayed = delayed_.size(),
            .running = num_running_,
            .blocked = num_blocked_,
            .finished = num_finished_,
            .failed = num_failed_};
  }

  void run_thread(size_t index) {
    name_this_thread(options_.name, index, options_.num_threads);
    current_ = this;
    while (std::optional<Task> task = take()) {
      const bool succeeded = run(*task);
      const MutexLock lock(mutex_);
      --num_running_;
      ++num_finished_;
      if (!succeeded) ++num_failed_;
    }
  }

 private:
  [[nodiscard]] bool is_full() const KVBM_REQUIRES(mutex_) {
    return ready_.size() >= options_.capacity;
  }

  [[nodiscard]] tl::unexpected<Error> stopped_error() const {
    return make_error(ErrorCode::kUnavailable,
                      format_text("task queue '{}' is stopped", options_.name));
  }

  [[nodiscard]] tl::unexpected<Error> full_error(std::string_view what) const {
    return make_error(ErrorCode::kExhausted, format_text("task queue '{}' has {} {} tasks already",
                                                         options_.name, options_.capacity, what));
  }

  /// Waits for the next task; nothing once the queue is stopped and empty.
  std::optional<Task> take() KVBM_EXCLUDES(mutex_) {
    std::optional<Task> task;
    bool more = false;
    {
      const MutexLock lock(mutex_);
      while (true) {
        collect_due();
        if (!ready_.empty()) break;
        if (stopping_) return std::nullopt;
        if (delayed_.empty()) {
          work_.wait(mutex_);
        } else {
          work_.wait_until(mutex_, delayed_.begin()->first);
        }
      }
      task = ready_.pop();
      ++num_running_;
      more = !ready_.empty() || !delayed_.empty();
    }
    room_.notify_one();
    // This thread is busy now: another one looks after the rest and the next delayed task.
    if (more && options_.num_threads > 1) work_.notify_one();
    return task;
  }

  void collect_due() KVBM_REQUIRES(mutex_) {
    if (delayed_.empty()) return;
    const TimePoint now = clock_.now();
    while (!delayed_.empty() && delayed_.begin()->first <= now) {
      ready_.push(std::move(delayed_.begin()->second));
      delayed_.erase(delayed_.begin());
    }
  }

  bool run(Task& task) noexcept {
    bool succeeded = false;
    try {
      task();
      succeeded = true;
    } catch (const std::exception& failure) {
      KVBM_LOG_ERROR(log_, "base.executor", "a task of queue '{}' threw: {}", options_.name,
                     failure.what());
    } catch (...) {
      KVBM_LOG_ERROR(log_, "base.executor", "a task of queue '{}' threw no std::exception",
                     options_.name);
    }
    task.reset();
    return succeeded;
  }

  static thread_local const QueueState* current_;  // whose thread this is

  const QueueOptions options_;
  const Clock& clock_;
  LogSink& log_;

  mutable Mutex mutex_{LockRank::kExecutor, "base.thread_queue"};
  CondVar work_;  // something is ready, delayed or stopped
  CondVar room_;  // something was taken
  Ring<Task> ready_ KVBM_GUARDED_BY(mutex_);
  std::multimap<TimePoint, Task> delayed_ KVBM_GUARDED_BY(mutex_);  // equal times keep their order
  bool stopping_ KVBM_GUARDED_BY(mutex_) = false;
  size_t num_running_ KVBM_GUARDED_BY(mutex_) = 0;
  size_t num_blocked_ KVBM_GUARDED_BY(mutex_) = 0;
  uint64_t num_finished_ KVBM_GUARDED_BY(mutex_) = 0;
  uint64_t num_failed_ KVBM_GUARDED_BY(mutex_) = 0;
};

thread_local const QueueState* QueueState::current_ = nullptr;

class ThreadTaskQueue final : public TaskQueue {
 public:
  explicit ThreadTaskQueue(std::shared_ptr<QueueState> state) : state_(std::move(state)) {}

  ~ThreadTaskQueue() override {
    if (!state_->is_current()) {
      end();
      return;
    }
    // A task destroyed its own queue. Its thread cannot join itself; the shared state lets it end
    // later.
    KVBM_LOG_ERROR(state_->log(), "base.executor",
                   "task queue '{}' was destroyed by one of its own tasks", state_->options().name);
    state_->begin_stop();
    for (std::thread& thread : threads_) thread.detach();
  }

  void start() {
    const SignalsBlocked signals_blocked;
    const size_t num_threads = state_->options().num_threads;
    threads_.reserve(num_threads);
    for (size_t i = 0; i < num_threads; ++i) {
      threads_.emplace_back([state = state_, i] { state->run_thread(i); });
    }
  }

  Status post(Task task) override { return state_->post(task); }
  Status try_post(Task&& task) override { return state_->try_post(task); }
  Status post_after(Duration delay, Task task) override { return state_->post_after(delay, task); }

  void stop() override {
    KVBM_CONTRACT(!state_->is_current(), "a task cannot stop the queue that runs it");
    end();
  }

  [[nodiscard]] size_t pending() const override { return state_->statistics().waiting; }
  [[nodiscard]] QueueStatistics statistics() const override { return state_->statistics(); }

 private:
  void end() {
    if (!state_->begin_stop()) {
      static_cast<void>(ended_.block_until(kNever));
      return;
    }
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    ended_.set();
  }

  std::shared_ptr<QueueState> state_;
  Latch ended_;
  std::vector<std::thread> threads_;
};

}  // namespace

Result<std::unique_ptr<TaskQueue>> ThreadExecutor::create_queue(QueueOptions options) {
  KVBM_TRY(internal::check_queue_options(options));
  const std::string name = options.name;
  const size_t num_threads = options.num_threads;
  auto queue = std::make_unique<ThreadTaskQueue>(
      std::make_shared<QueueState>(std::move(options), clock_, log_));
  try {
    queue->start();
  } catch (const std::system_error& failure) {
    return make_error(ErrorCode::kExhausted,
                      format_text("cannot start {} threads for task queue '{}': {}", num_threads,
                                  name, failure.what()));
  }
  return queue;
}

bool ThreadExecutor::wait(const Latch& latch, TimePoint deadline) {
  return latch.block_until(deadline);
}

}  // namespace kvbm
