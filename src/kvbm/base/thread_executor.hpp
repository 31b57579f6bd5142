// SPDX-License-Identifier: Apache-2.0
// ThreadExecutor: queues with real, named threads.
#pragma once

#include <memory>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/executor.hpp"

namespace kvbm {

class LogSink;

/// Each queue has its own threads, started by create_queue and joined by stop. They are named after
/// the queue and leave asynchronous signals to the threads of the process that embeds kvbm.
/// Ownership: borrows the log sink, which outlives the executor's queues.
/// Threads: any thread.
class ThreadExecutor final : public Executor {
 public:
  /// `log` gets an error record for each task that throws.
  explicit ThreadExecutor(LogSink& log) noexcept : log_(log) {}

  [[nodiscard]] Result<std::unique_ptr<TaskQueue>> create_queue(QueueOptions options) override;
  [[nodiscard]] bool wait(const Latch& latch, TimePoint deadline) override;
  [[nodiscard]] const Clock& clock() const noexcept override { return clock_; }

 private:
  LogSink& log_;
  SystemClock clock_;
};

}  // namespace kvbm
