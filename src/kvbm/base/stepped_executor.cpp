// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/stepped_executor.hpp"

#include <algorithm>
#include <deque>
#include <exception>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kvbm/base/log.hpp"
#include "kvbm/base/random.hpp"

namespace kvbm {

/// The part of a queue that its running tasks keep alive.
struct SteppedExecutor::QueueState {
  explicit QueueState(QueueOptions queue_options) : options(std::move(queue_options)) {}

  /// How many of the ready tasks real threads could start now.
  [[nodiscard]] size_t num_startable() const {
    return std::min(ready.size(), options.num_threads - num_running);
  }

  void collect_due(TimePoint now) {
    while (!delayed.empty() && delayed.begin()->first <= now) {
      ready.push_back(std::move(delayed.begin()->second));
      delayed.erase(delayed.begin());
    }
  }

  const QueueOptions options;
  std::deque<Task> ready;
  std::multimap<TimePoint, Task> delayed;  // equal times keep their order
  size_t num_running = 0;
  uint64_t num_finished = 0;
  uint64_t num_failed = 0;
  bool stopped = false;
};

/// Everything that queues share with their executor.
class SteppedExecutor::Core {
 public:
  Core(uint64_t seed, LogSink* log) : random_(seed), log_(log != nullptr ? *log : no_log_) {}

  [[nodiscard]] LogSink& log() noexcept { return log_; }
  [[nodiscard]] const ManualClock& clock() const noexcept { return clock_; }

  void add(std::shared_ptr<QueueState> queue) { queues_.push_back(std::move(queue)); }
  void remove(const QueueState* queue) {
    std::erase_if(queues_, [queue](const auto& other) { return other.get() == queue; });
  }

  void hold(std::string_view name) { held_.emplace(name); }
  void release(std::string_view name) {
    if (const auto at = held_.find(name); at != held_.end()) held_.erase(at);
  }

  [[nodiscard]] size_t num_startable() const {
    size_t total = 0;
    for (const auto& queue : queues_) {
      if (!is_held(*queue)) total += queue->num_startable();
    }
    return total;
  }

  bool step() {
    const size_t total = num_startable();
    if (total == 0) return false;
    auto choice = static_cast<size_t>(random_.uniform(total));
    for (const auto& queue : queues_) {
      if (is_held(*queue)) continue;
      const size_t startable = queue->num_startable();
      if (choice < startable) {
        run(queue, choice);
        return true;
      }
      choice -= startable;
    }
    return false;
  }

  /// Runs a task; else moves the clock to the next delayed task before `deadline`; else does
  /// nothing.
  bool make_progress(TimePoint deadline) {
    if (step()) return true;
    const std::optional<TimePoint> due = next_due();
    if (!due || *due >= deadline) return false;
    advance_to(*due);
    return true;
  }

  /// Runs all that is ready in a queue, held or not.
  void drain(const std::shared_ptr<QueueState>& queue) {
    while (!queue->ready.empty()) {
      run(queue, static_cast<size_t>(random_.uniform(queue->num_startable())));
    }
  }

  void advance_to(TimePoint time) {
    clock_.advance_to(time);
    for (const auto& queue : queues_) queue->collect_due(clock_.now());
  }

  [[nodiscard]] std::optional<TimePoint> next_due() const {
    std::optional<TimePoint> next;
    for (const auto& queue : queues_) {
      if (is_held(*queue) || queue->delayed.empty()) continue;
      const TimePoint due = queue->delayed.begin()->first;
      if (!next || due < *next) next = due;
    }
    return next;
  }

 private:
  [[nodiscard]] bool is_held(const QueueState& queue) const {
    return held_.contains(queue.options.name);
  }

  // By value: the task may destroy its queue.
  void run(std::shared_ptr<QueueState> queue,
           size_t index) {  // NOLINT(performance-unnecessary-value-param)
    const auto at = queue->ready.begin() + static_cast<std::ptrdiff_t>(index);
    Task task = std::move(*at);
    queue->ready.erase(at);
    ++queue->num_running;
    bool succeeded = false;
    try {
      task();
      succeeded = true;
    } catch (const std::exception& failure) {
      KVBM_LOG_ERROR(log_, "base.executor", "a task of queue '{}' threw: {}", queue->options.name,
                     failure.what());
    } catch (...) {
      KVBM_LOG_ERROR(log_, "base.executor", "a task of queue '{}' threw no std::exception",
                     queue->options.name);
    }
    task.reset();
    --queue->num_running;
    ++queue->num_finished;
    if (!succeeded) ++queue->num_failed;
  }

  ManualClock clock_;
  Random random_;
  NullLogSink no_log_;
  LogSink& log_;
  std::vector<std::shared_ptr<QueueState>> queues_;  // in order of creation
  std::set<std::string, std::less<>> held_;
};

class SteppedExecutor::Queue final : public TaskQueue {
 public:
  Queue(Core& core, QueueOptions options)
      : core_(core), state_(std::make_shared<QueueState>(std::move(options))) {
    core_.add(state_);
  }

  ~Queue() override {
    if (state_->num_running == 0) {
      stop();
    } else {
      KVBM_LOG_ERROR(core_.log(), "base.executor",
                     "task queue '{}' was destroyed by one of its own tasks", state_->options.name);
      state_->stopped = true;
    }
    core_.remove(state_.get());
  }

  Status post(Task task) override {
    if (const Status room = wait_for_room(); !room) return room;
    state_->ready.push_back(std::move(task));
    return {};
  }

  Status try_post(Task&& task) override {
    if (state_->stopped) return stopped_error();
    if (is_full()) return full_error("waiting");
    state_->ready.push_back(std::move(task));
    return {};
  }

  Status post_after(Duration delay, Task task) override {
    if (state_->stopped) return stopped_error();
    if (state_->delayed.size() >= state_->options.capacity) return full_error("delayed");
    const TimePoint now = core_.clock().now();
    state_->delayed.emplace(saturating_add(now, delay), std::move(task));
    state_->collect_due(now);
    return {};
  }

  void stop() override {
    KVBM_CONTRACT(state_->num_running == 0, "a task cannot stop the queue that runs it");
    if (std::exchange(state_->stopped, true)) return;
    std::exchange(state_->delayed, {}).clear();
    core_.drain(state_);
  }

  [[nodiscard]] size_t pending() const override { return state_->ready.size(); }

  [[nodiscard]] QueueStatistics statistics() const override {
    return {.waiting = state_->ready.size(),
            .delayed = state_->delayed.size(),
            .running = state_->num_running,
            .blocked = num_blocked_,
            .finished = state_->num_finished,
            .failed = state_->num_failed};
  }

 private:
  [[nodiscard]] bool is_full() const { return state_->ready.size() >= state_->options.capacity; }

  /// Runs tasks until there is room; a task of this queue does not wait.
  Status wait_for_room() {
    ++num_blocked_;
    bool moving = true;
    for (size_t steps = 0; moving && !state_->stopped && is_full() && state_->num_running == 0;
         ++steps) {
      check_steps(steps, kMaxSteps);
      moving = core_.make_progress(kNever);
    }
    --num_blocked_;
    if (state_->stopped) return stopped_error();
    if (moving) return {};
    return make_error(
        ErrorCode::kExhausted,
        format_text("task queue '{}' is full and nothing is left to run", state_->options.name));
  }

  [[nodiscard]] tl::unexpected<Error> stopped_error() const {
    return make_error(ErrorCode::kUnavailable,
                      format_text("task queue '{}' is stopped", state_->options.name));
  }

  [[nodiscard]] tl::unexpected<Error> full_error(std::string_view what) const {
    return make_error(ErrorCode::kExhausted,
                      format_text("task queue '{}' has {} {} tasks already", state_->options.name,
                                  state_->options.capacity, what));
  }

  Core& core_;
  std::shared_ptr<QueueState> state_;
  size_t num_blocked_ = 0;
};

void SteppedExecutor::check_steps(size_t steps, size_t max_steps) {
  KVBM_CONTRACT(steps < max_steps, format_text("no end after {} tasks", max_steps));
}

SteppedExecutor::SteppedExecutor(uint64_t seed) : core_(std::make_unique<Core>(seed, nullptr)) {}
SteppedExecutor::SteppedExecutor(uint64_t seed, LogSink& log)
    : core_(std::make_unique<Core>(seed, &log)) {}
SteppedExecutor::~SteppedExecutor() = default;

Result<std::unique_ptr<TaskQueue>> SteppedExecutor::create_queue(QueueOptions options) {
  KVBM_TRY(internal::check_queue_options(options));
  return std::make_unique<Queue>(*core_, std::move(options));
}

bool SteppedExecutor::wait(const Latch& latch, TimePoint deadline) {
  for (size_t steps = 0; !latch.is_set(); ++steps) {
    check_steps(steps, kMaxSteps);
    if (core_->clock().now() >= deadline) return false;
    if (core_->make_progress(deadline)) continue;
    if (deadline != kNever) core_->advance_to(deadline);
    return false;
  }
  return true;
}

const Clock& SteppedExecutor::clock() const noexcept { return core_->clock(); }

bool SteppedExecutor::step() { return core_->step(); }

size_t SteppedExecutor::run_until_idle(size_t max_steps) {
  size_t steps = 0;
  for (; core_->num_startable() > 0; ++steps) {
    check_steps(steps, max_steps);
    core_->step();
  }
  return steps;
}

bool SteppedExecutor::run_while(const std::function<bool()>& condition, size_t max_steps) {
  for (size_t steps = 0; condition(); ++steps) {
    if (idle()) return true;
    check_steps(steps, max_steps);
    core_->step();
  }
  return false;
}

void SteppedExecutor::advance(Duration step) {
  KVBM_CONTRACT(step >= Duration::zero(), "a clock cannot be advanced by a negative time");
  core_->advance_to(saturating_add(core_->clock().now(), step));
}

size_t SteppedExecutor::run_for(Duration duration, size_t max_steps) {
  KVBM_CONTRACT(duration >= Duration::zero(), "a clock cannot be advanced by a negative time");
  const TimePoint end = saturating_add(core_->clock().now(), duration);
  size_t steps = 0;
  while (true) {
    for (; core_->step(); ++steps) check_steps(steps, max_steps);
    const std::optional<TimePoint> due = core_->next_due();
    if (!due || *due > end) break;
    core_->advance_to(*due);
  }
  core_->advance_to(end);
  return steps;
}

void SteppedExecutor::hold(std::string_view queue_name) { core_->hold(queue_name); }
void SteppedExecutor::release(std::string_view queue_name) { core_->release(queue_name); }
bool SteppedExecutor::idle() const { return core_->num_startable() == 0; }
std::optional<TimePoint> SteppedExecutor::next_due() const { return core_->next_due(); }

}  // namespace kvbm
