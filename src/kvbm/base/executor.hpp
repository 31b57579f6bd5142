// SPDX-License-Identifier: Apache-2.0
// Executor: where all threads come from. ThreadExecutor has real ones; SteppedExecutor has none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/latch.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/base/unique_function.hpp"

namespace kvbm {

using Task = UniqueFunction<void()>;

struct QueueOptions {
  std::string name;        ///< shown as the thread name (15 characters of it), in logs, in hold()
  size_t num_threads = 1;  ///< 1: tasks run one after another
  size_t capacity = 1024;  ///< bounds the tasks waiting to run and, apart, the delayed ones
};

struct QueueStatistics {
  size_t waiting = 0;     ///< ready to run, not started
  size_t delayed = 0;     ///< not due yet
  size_t running = 0;     ///< started, not ended
  size_t blocked = 0;     ///< callers of post() that wait for room
  uint64_t finished = 0;  ///< ended since creation, those that failed among them
  uint64_t failed = 0;    ///< ended with an exception
};

/// Runs tasks in the order they were posted, `num_threads` at a time. An exception that escapes a
/// task is caught, counted and logged as an error; the queue goes on. A task that is dropped
/// instead of run is destroyed, so completions that it holds resolve as failed: none is lost.
/// Ownership: the holder's; destruction stops it. The executor outlives it.
/// Threads: any thread (a SteppedExecutor's: the thread that steps).
class TaskQueue {
 public:
  virtual ~TaskQueue() = default;
  TaskQueue(const TaskQueue&) = delete;
  TaskQueue& operator=(const TaskQueue&) = delete;

  /// Full: waits for room, except in a task of this same queue, which is let in over the capacity
  /// since it would wait for itself. Two queues that post to each other use try_post.
  /// Errors: kUnavailable once stopped; kExhausted where waiting could never end (SteppedExecutor,
  /// nothing left to run). The task is then destroyed.
  virtual Status post(Task task) = 0;

  /// Never waits. Errors: kExhausted if full, kUnavailable once stopped; `task` is then untouched.
  virtual Status try_post(Task&& task) = 0;

  /// Posts after `delay`, whatever the capacity is by then. Never waits.
  /// Errors: kExhausted if `capacity` tasks are delayed already, kUnavailable once stopped. The
  /// task is then destroyed.
  virtual Status post_after(Duration delay, Task task) = 0;

  /// Takes no more tasks, destroys the delayed ones, runs those that wait, ends the threads.
  /// Idempotent; a second caller waits for the first. Contract: not called by a task of this queue.
  virtual void stop() = 0;

  /// Tasks ready to run and not started.
  [[nodiscard]] virtual size_t pending() const = 0;
  [[nodiscard]] virtual QueueStatistics statistics() const = 0;

 protected:
  TaskQueue() = default;
};

/// Threads: create_queue and wait from any thread (SteppedExecutor: owner thread only).
class Executor {
 public:
  virtual ~Executor() = default;
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  /// Errors: kInvalidArgument (no name, no thread, no capacity), kExhausted (the system gives no
  /// thread).
  [[nodiscard]] virtual Result<std::unique_ptr<TaskQueue>> create_queue(QueueOptions options) = 0;

  /// Returns true once `latch` is set, false at `deadline`. The only way to wait for the work of
  /// tasks: ThreadExecutor blocks the thread, SteppedExecutor runs tasks meanwhile. Best not called
  /// in a task.
  [[nodiscard]] virtual bool wait(const Latch& latch, TimePoint deadline) = 0;

  /// The clock of post_after and of deadlines.
  [[nodiscard]] virtual const Clock& clock() const noexcept = 0;

 protected:
  Executor() = default;
};

namespace internal {
/// What every create_queue checks.
[[nodiscard]] Status check_queue_options(const QueueOptions& options);
}  // namespace internal

}  // namespace kvbm
