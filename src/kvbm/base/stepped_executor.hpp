// SPDX-License-Identifier: Apache-2.0
// SteppedExecutor: an executor without threads; a seed decides what runs next.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/executor.hpp"

namespace kvbm {

class LogSink;

/// The twin of ThreadExecutor for tests and simulation. Nothing runs until the owner steps; each
/// step runs one ready task, chosen by a seeded generator among those that real threads could start
/// next: of each queue that is not held, its first `num_threads` tasks less those that run already.
/// Tasks take no time; the clock moves only when told to or when a wait has nothing else to do. The
/// same seed and the same calls give the same run.
///
/// Waiting (Executor::wait, Completion::wait, post on a full queue) runs tasks, and moves the clock
/// from one delayed task to the next, until it has what it waits for. A wait that nothing can end
/// returns false at once if its deadline is kNever, else at the deadline. A wait inside a task
/// nests: tasks below it on the stack stand still until it returns, so it cannot wait for them.
///
/// Ownership: borrows the log sink; outlives its queues.
/// Threads: owner thread only.
class SteppedExecutor final : public Executor {
 public:
  explicit SteppedExecutor(uint64_t seed);
  SteppedExecutor(uint64_t seed, LogSink& log);
  ~SteppedExecutor() override;

  [[nodiscard]] Result<std::unique_ptr<TaskQueue>> create_queue(QueueOptions options) override;
  [[nodiscard]] bool wait(const Latch& latch, TimePoint deadline) override;
  [[nodiscard]] const Clock& clock() const noexcept override;

  /// Runs one ready task; false if there is none.
  bool step();

  /// Steps until nothing is ready; returns how many tasks ran. Leaves the clock alone.
  /// Errors: ContractViolation after `max_steps`, since tasks that post each other never end.
  size_t run_until_idle(size_t max_steps = kMaxSteps);

  /// Steps while `condition` holds and something is ready; returns whether it still holds.
  /// Errors: as run_until_idle.
  bool run_while(const std::function<bool()>& condition, size_t max_steps = kMaxSteps);

  /// Moves the clock and makes due tasks ready, in order of their time; runs nothing.
  void advance(Duration step);

  /// Runs what is ready, moves the clock to the next delayed task, and so on until `duration` has
  /// passed; returns how many tasks ran. Errors: as run_until_idle.
  size_t run_for(Duration duration, size_t max_steps = kMaxSteps);

  /// Freezes all queues of that name, also those created later: their tasks are accepted but do not
  /// run, until release() or the queue is stopped.
  void hold(std::string_view queue_name);
  void release(std::string_view queue_name);

  /// Whether step() would return false.
  [[nodiscard]] bool idle() const;

  /// When the next delayed task of a queue that is not held is due.
  [[nodiscard]] std::optional<TimePoint> next_due() const;

  static constexpr size_t kMaxSteps = 10'000'000;

 private:
  struct QueueState;
  class Queue;
  class Core;

  static void check_steps(size_t steps, size_t max_steps);

  std::unique_ptr<Core> core_;
};

}  // namespace kvbm
