// SPDX-License-Identifier: Apache-2.0
#include "kvbm/worker/worker.hpp"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>

#include "kvbm/base/latch.hpp"
#include "kvbm/base/mutex.hpp"
#include "kvbm/base/text.hpp"
#include "kvbm/transfer/transfer_manager.hpp"
#include "kvbm/worker/internal/engine_steps.hpp"
#include "kvbm/worker/internal/seen_ops.hpp"
#include "kvbm/worker/internal/step_loads.hpp"
#include "kvbm/worker/internal/worker_operation.hpp"
#include "kvbm/worker/internal/worker_places.hpp"
#include "kvbm/worker/load_parts.hpp"

namespace kvbm {
namespace {

/// One is enough for operations whose timeouts are alike; each that has to start before all others
/// adds one.
constexpr size_t kMaxTimers = 256;

/// Of staged transfers, where no block is larger.
constexpr uint64_t kBounceSlotBytes = uint64_t{32} << 20;

}  // namespace

class Worker::Core : public std::enable_shared_from_this<Worker::Core> {
 public:
  Core(WorkerOptions options, Device& device, FileEngine* files, Executor& executor, LogSink& log)
      : options_(std::move(options)),
        device_(device),
        files_(files),
        executor_(executor),
        log_(log) {}

  Status set_up();
  [[nodiscard]] internal::WorkerPlaces& places() noexcept { return *places_; }
  void on_result(ResultCallback callback);
  void observe_results(ResultObserver observer);
  Status begin_step(const StepPlan& plan, StreamRef compute);
  Result<LoadWaits> loads_needed(std::optional<LayerId> layer, StreamRef stream);
  void layer_written(LayerId layer, StreamRef stream);
  Event record(StreamRef compute);
  void end_step(StreamRef compute);
  void submit(std::span<const CopyOp> ops);
  void cancel(std::span<const OpId> ops);
  void expect_only_steps();
  size_t num_open() const;
  Status stop(TimePoint deadline);
  void close();

 private:
  using Operation = internal::WorkerOperation;
  using Point = internal::EngineSteps::Point;
  /// What has to happen once the lock is released.
  struct Todo {
    std::vector<std::shared_ptr<Operation>> start;
    std::vector<OpResult> results;
    std::vector<EventSource> ended;
    std::vector<std::pair<Event, std::shared_ptr<Operation>>>
        watch;                   // opens a gate when it is done
    std::vector<OpId> repeated;  // submitted while open
  };

  // With the lock held.
  void add(const CopyOp& op, Todo& todo) KVBM_REQUIRES(mutex_);
  bool close_gate(const Gate& gate, const std::shared_ptr<Operation>& operation, Todo& todo)
      KVBM_REQUIRES(mutex_);
  bool wait_for(Point point, const std::shared_ptr<Operation>& operation, Todo& todo)
      KVBM_REQUIRES(mutex_);
  void open_gates(const std::vector<OpId>& waiting, Point point, Todo& todo) KVBM_REQUIRES(mutex_);
  void open_steps(uint64_t begin, uint64_t end, Point point, Todo& todo) KVBM_REQUIRES(mutex_);
  bool may_start(const Operation& operation) const KVBM_REQUIRES(mutex_);
  bool wait_for_memory(const std::shared_ptr<Operation>& operation, Todo& todo)
      KVBM_REQUIRES(mutex_);
  void split(Operation& load) const KVBM_REQUIRES(mutex_);
  void open_gate(Operation& operation) KVBM_REQUIRES(mutex_);
  void answer(OpResult result, Todo& todo) KVBM_REQUIRES(mutex_);
  void start_ready(Todo& todo) KVBM_REQUIRES(mutex_);
  void end(OpResult result, Todo& todo) KVBM_REQUIRES(mutex_);
  void cancel_waiting(OpId id, Todo& todo) KVBM_REQUIRES(mutex_);
  void give_up_vain_waits(Todo& todo) KVBM_REQUIRES(mutex_);
  void arm_timer(Todo& todo) KVBM_REQUIRES(mutex_);
  Event ended_event(OpId id) KVBM_REQUIRES(mutex_);

  // Without it.
  void run(Todo todo);
  void observe(const std::vector<OpResult>& results);
  void hand_over(std::vector<OpResult> results);
  std::optional<OpResult> start(const std::shared_ptr<Operation>& operation);
  std::optional<OpResult> start_parts(const std::shared_ptr<Operation>& operation,
                                      TransferRequest request);
  std::optional<OpResult> part_ended(Operation& operation, size_t part, const TransferResult& done);
  OpResult result_of(const CopyOp& op, const TransferResult& done) const;
  /// Nothing was read or written.
  OpResult cancelled(OpId id) const {
    return {
        .op = id, .rank = options_.rank, .outcome = Outcome::kCancelled, .bytes = 0, .failed = {}};
  }
  void finished(OpResult result);
  void event_done(const std::shared_ptr<Operation>& operation);
  void expire(TimePoint timer);

  const WorkerOptions options_;
  Device& device_;
  FileEngine* const files_;
  Executor& executor_;
  LogSink& log_;

  mutable Mutex mutex_{LockRank::kWorker, "worker.core", 1};
  std::shared_ptr<const ResultCallback> callback_ KVBM_GUARDED_BY(mutex_);
  std::shared_ptr<const ResultObserver> observer_ KVBM_GUARDED_BY(mutex_);
  std::unordered_map<OpId, std::shared_ptr<Operation>> operations_ KVBM_GUARDED_BY(mutex_);
  /// Operations come by two ways, by steps and by the channel, so that one may be named before it
  /// comes.
  internal::SeenOps seen_ KVBM_GUARDED_BY(mutex_);
  std::map<OpId, EventSource> awaited_ KVBM_GUARDED_BY(mutex_);  // ends of what has not come yet
  std::set<std::pair<Priority, OpId>> ready_ KVBM_GUARDED_BY(mutex_);
  std::set<std::pair<TimePoint, OpId>> start_deadlines_ KVBM_GUARDED_BY(mutex_);
  TimePoint next_timer_ KVBM_GUARDED_BY(mutex_) = kNever;
  uint32_t num_running_ KVBM_GUARDED_BY(mutex_) = 0;
  uint32_t num_offloading_ KVBM_GUARDED_BY(mutex_) = 0;  // of these
  std::unordered_map<OpId, std::vector<OpId>> waiting_for_op_ KVBM_GUARDED_BY(mutex_);
  std::map<std::pair<uint64_t, std::optional<LayerId>>, std::vector<OpId>> waiting_for_step_
      KVBM_GUARDED_BY(mutex_);  // no layer: the end of the step
  internal::EngineSteps steps_ KVBM_GUARDED_BY(mutex_);
  internal::StepLoads step_loads_ KVBM_GUARDED_BY(mutex_);
  bool stopped_ KVBM_GUARDED_BY(mutex_) = false;
  bool only_steps_ KVBM_GUARDED_BY(mutex_) = false;  // what has not come does not come
  size_t num_unheard_ KVBM_GUARDED_BY(mutex_) = 0;  // results that are on their way to the receiver
  std::shared_ptr<Latch> empty_ KVBM_GUARDED_BY(mutex_);  // no operation is open, no result unheard

  std::unique_ptr<internal::WorkerPlaces> places_;
  std::unique_ptr<TransferManager> transfers_;  // last but one: ends before the memory does
  std::unique_ptr<TaskQueue> timers_;           // last: joins first
};

Status Worker::Core::set_up() {
  KVBM_TRY(options_.model.validate());
  if (options_.max_running_operations == 0) {
    return make_error(ErrorCode::kInvalidArgument,
                      "max_running_operations is 0; no operation would ever start");
  }
  std::optional<Calibration> calibration = options_.calibration;
  if (!calibration) {
    KVBM_ASSIGN_OR_RETURN(
        calibration,
        measure_calibration({.device = device_, .executor = executor_, .pinner = options_.pinner}));
  }
  uint64_t largest_block = 0;  // goes through one bounce slot
  for (const ModelLayout::Group& group : options_.model.groups) {
    largest_block = std::max(largest_block, group.config.block_bytes());
  }
  KVBM_ASSIGN_OR_RETURN(transfers_,
                        TransferManager::create(TransferConfig{
                            .worker = options_.worker,
                            .device = device_,
                            .executor = executor_,
                            .log = log_,
                            .files = files_,
                            .metrics = options_.metrics,
                            .calibration = *std::move(calibration),
                            .bounce_slot_bytes = std::max(kBounceSlotBytes, largest_block),
                            .pinner = options_.pinner,
                        }));
  places_ = std::make_unique<internal::WorkerPlaces>(options_, *transfers_, files_ != nullptr,
                                                     executor_, log_);
  KVBM_ASSIGN_OR_RETURN(timers_,
                        executor_.create_queue({.name = "kvbm-timer-" + to_string(options_.rank),
                                                .num_threads = 1,
                                                .capacity = kMaxTimers}));
  return {};
}

void Worker::Core::on_result(ResultCallback callback) {
  auto shared = callback ? std::make_shared<const ResultCallback>(std::move(callback)) : nullptr;
  MutexLock lock(mutex_);
  callback_.swap(shared);
}

void Worker::Core::observe_results(ResultObserver observer) {
  auto shared = observer ? std::make_shared<const ResultObserver>(std::move(observer)) : nullptr;
  MutexLock lock(mutex_);
  observer_.swap(shared);
}

Status Worker::Core::begin_step(const StepPlan& plan, StreamRef compute) {
  Todo todo;
  std::vector<Event> fences;
  {
    MutexLock lock(mutex_);
    // Steps that were left out will not come any more.
    open_steps(0, plan.step.value(), steps_.begin(plan.step), todo);
    // What no layer of the step before has asked for.
    fences = step_loads_.missed_by(compute, device_);
    for (OpId fence : plan.fences) {
      if (operations_.contains(fence) || !seen_.contains(fence))
        fences.push_back(ended_event(fence));
    }
    for (OpId cancelled : plan.cancels) cancel_waiting(cancelled, todo);
    step_loads_.clear();
    // In the order of their ids, as an operation waits for older ones: a load may wait for a store.
    std::map<OpId, const CopyOp*> ops;
    for (const CopyOp& load : plan.loads) ops.emplace(load.op, &load);
    for (const CopyOp& store : plan.stores) ops.emplace(store.op, &store);
    for (const auto& [id, op] : ops) add(*op, todo);
    for (const CopyOp& load : plan.loads) {
      const auto it = operations_.find(load.op);
      if (it == operations_.end()) continue;
      split(*it->second);
      step_loads_.add(it->second);
    }
    give_up_vain_waits(todo);
    start_ready(todo);
  }
  Status fenced;
  for (const Event& fence : fences) {
    if (Status waiting = device_.wait(compute, fence); !waiting && fenced) fenced = waiting;
  }
  run(std::move(todo));
  return fenced;
}

/// A load of a step from host memory goes by ranges of layers. One from farther goes block by
/// block.
void Worker::Core::split(Operation& load) const {
  const CopyOp& op = load.op;
  if (load.running || !load.parts.empty()) return;  // came before, by another way
  if (op.src.tier != TierId::kG2 || op.dst.tier != TierId::kG1) return;
  const uint32_t pieces = places_->pieces_per_layer(op.dst);
  if (pieces == 0) return;
  const LayoutConfig& config = *options_.model.find(op.dst.group);
  const std::vector<LayerRange> ranges =
      split_load(config.num_layers / pieces, config.layer_bytes() * pieces * op.from.size(),
                 options_.min_load_part_bytes);
  if (ranges.size() < 2) return;
  for (const LayerRange& range : ranges) {
    load.parts.push_back(
        {.layers = range,
         .pieces = {LayerId(static_cast<uint16_t>(range.begin() * pieces)), range.count * pieces},
         .ended = {}});
  }
  load.open_parts = ranges.size();
}

/// Of one layer of each group, or of all layers.
Result<LoadWaits> Worker::Core::loads_needed(std::optional<LayerId> layer, StreamRef stream) {
  std::vector<internal::StepLoads::Wait> waits;
  {
    MutexLock lock(mutex_);
    if (step_loads_.empty()) return LoadWaits{};
    waits = step_loads_.waits_of(stream, layer, device_);
  }
  Status waiting;
  size_t num_waits = 0;
  for (; num_waits < waits.size() && waiting; ++num_waits) {
    waiting = device_.wait(stream, waits[num_waits].event);
  }
  if (!waiting) --num_waits;
  waits.erase(waits.begin() + static_cast<std::ptrdiff_t>(num_waits), waits.end());
  MutexLock lock(mutex_);
  const bool more = step_loads_.note(stream, waits);
  KVBM_TRY(waiting);
  return LoadWaits{.waits = num_waits > 0, .more = more};
}

void Worker::Core::layer_written(LayerId layer, StreamRef stream) {
  const Event event = device_.record(stream);
  Todo todo;
  {
    MutexLock lock(mutex_);
    const Point written = steps_.record_layer(layer, event);
    auto waiting = waiting_for_step_.extract({steps_.current().value(), layer});
    if (!waiting.empty()) open_gates(waiting.mapped(), written, todo);
    start_ready(todo);
  }
  run(std::move(todo));
}

Event Worker::Core::record(StreamRef compute) {
  Event event = device_.record(compute);
  MutexLock lock(mutex_);
  steps_.record(event);
  return event;
}

void Worker::Core::end_step(StreamRef compute) {
  const Event event = device_.record(compute);
  Todo todo;
  {
    MutexLock lock(mutex_);
    const uint64_t step = steps_.current().value();
    // Gates on layers that were never written open with the step.
    open_steps(step, step + 1, steps_.end(event), todo);
    start_ready(todo);
  }
  run(std::move(todo));
}

void Worker::Core::submit(std::span<const CopyOp> ops) {
  Todo todo;
  {
    MutexLock lock(mutex_);
    for (const CopyOp& op : ops) add(op, todo);
    give_up_vain_waits(todo);
    start_ready(todo);
  }
  run(std::move(todo));
}

void Worker::Core::expect_only_steps() {
  Todo todo;
  {
    MutexLock lock(mutex_);
    only_steps_ = true;
    give_up_vain_waits(todo);
    start_ready(todo);
  }
  run(std::move(todo));
}

/// Once only steps bring operations. After those of a step were added: they may wait for each
/// other.
void Worker::Core::give_up_vain_waits(Todo& todo) {
  if (!only_steps_) return;
  for (auto& [id, source] : awaited_) todo.ended.push_back(std::move(source));
  awaited_.clear();
  std::vector<OpId> in_vain;
  for (auto it = waiting_for_op_.begin(); it != waiting_for_op_.end();) {
    if (seen_.contains(it->first)) {
      ++it;
      continue;
    }
    in_vain.insert(in_vain.end(), it->second.begin(), it->second.end());
    it = waiting_for_op_.erase(it);
  }
  std::sort(in_vain.begin(), in_vain.end());
  for (OpId id : in_vain) cancel_waiting(id, todo);
}

void Worker::Core::cancel(std::span<const OpId> ops) {
  Todo todo;
  {
    MutexLock lock(mutex_);
    for (OpId op : ops) cancel_waiting(op, todo);
    start_ready(todo);
  }
  run(std::move(todo));
}

void Worker::Core::add(const CopyOp& op, Todo& todo) {
  if (operations_.contains(op.op)) {
    todo.repeated.push_back(op.op);  // the one that is open will answer
    return;
  }
  seen_.insert(op.op);
  auto awaited = awaited_.extract(op.op);
  if (stopped_) {
    if (!awaited.empty()) todo.ended.push_back(std::move(awaited.mapped()));
    answer(cancelled(op.op), todo);
    return;
  }
  auto operation = std::make_shared<Operation>();
  operation->op = op;
  if (!awaited.empty()) operation->ended.emplace(std::move(awaited.mapped()));
  operations_.emplace(op.op, operation);
  operation->closed_gates = 1;  // this one, until all others are closed
  for (const Gate& gate : op.after) {
    if (close_gate(gate, operation, todo)) ++operation->closed_gates;
  }
  open_gate(*operation);
  if (op.timeout.count() > 0) {
    operation->start_by = saturating_add(executor_.clock().now(), op.timeout);
    start_deadlines_.insert({operation->start_by, op.op});
    arm_timer(todo);
  }
}

/// Makes sure that a timer runs for the operation that has to start next.
void Worker::Core::arm_timer(Todo& todo) {
  if (start_deadlines_.empty() || start_deadlines_.begin()->first >= next_timer_) return;
  const auto [start_by, id] = *start_deadlines_.begin();
  auto expire = [weak = weak_from_this(), start_by = start_by] {
    if (auto core = weak.lock()) core->expire(start_by);
  };
  const Duration delay = std::max(Duration::zero(), start_by - executor_.clock().now());
  if (timers_->post_after(delay, std::move(expire))) {
    next_timer_ = start_by;
  } else if (next_timer_ == kNever) {
    cancel_waiting(id, todo);  // it might wait for ever
  }
}

void Worker::Core::expire(TimePoint timer) {
  Todo todo;
  size_t num_late = 0;
  {
    MutexLock lock(mutex_);
    if (next_timer_ == timer) next_timer_ = kNever;
    const TimePoint now = executor_.clock().now();
    while (!start_deadlines_.empty() && start_deadlines_.begin()->first <= now) {
      const OpId late = start_deadlines_.begin()->second;
      start_deadlines_.erase(start_deadlines_.begin());
      cancel_waiting(late, todo);
      ++num_late;
    }
    arm_timer(todo);
    start_ready(todo);
  }
  if (num_late > 0) {
    KVBM_LOG_WARNING(log_, "worker", "{} operations of rank {} have not started in time", num_late,
                     options_.rank.value());
  }
  run(std::move(todo));
}

/// Whether the operation has to wait for the gate here.
bool Worker::Core::close_gate(const Gate& gate, const std::shared_ptr<Operation>& operation,
                              Todo& todo) {
  const OpId id = operation->op.op;
  if (gate.kind == Gate::Kind::kOpDone) {
    const OpId other{gate.id};
    if (other == id) return false;
    if (!operations_.contains(other) && seen_.contains(other)) return false;  // has ended
    waiting_for_op_[other].push_back(id);
    return true;
  }
  if (steps_.is_forgotten(gate.id) && operation->reads_engine()) {
    operation->outcomes.push_back(Event::ready(make_error(
        ErrorCode::kUnavailable, "how step " + std::to_string(gate.id) + " ended is forgotten")));
    return false;
  }
  const std::optional<LayerId> layer =
      gate.kind == Gate::Kind::kLayerEnd ? std::optional(gate.layer) : std::nullopt;
  if (const std::optional<Point> point = steps_.find(gate.id, layer)) {
    return !point->empty() && wait_for(*point, operation, todo);
  }
  waiting_for_step_[{gate.id, layer}].push_back(id);
  return true;
}

/// Whether the operation has to wait here for the point; the outcomes are kept if they matter. An
/// operation that waits for an event is none that runs: it may be cancelled, and it takes no turn
/// from one that the event may be waiting for.
bool Worker::Core::wait_for(Point point, const std::shared_ptr<Operation>& operation, Todo& todo) {
  if (operation->reads_engine()) {
    for (const Event& event : point) {
      if (!event.done() || !event.status()) operation->outcomes.push_back(event);
    }
  }
  if (point.back().done()) return false;
  todo.watch.emplace_back(point.back(), operation);
  return true;
}

/// No point: there is nothing to wait for.
void Worker::Core::open_gates(const std::vector<OpId>& waiting, Point point, Todo& todo) {
  for (OpId id : waiting) {
    const auto it = operations_.find(id);
    if (it == operations_.end()) continue;  // cancelled meanwhile
    if (point.empty() || !wait_for(point, it->second, todo)) open_gate(*it->second);
  }
}

/// All gates of the steps [begin, end).
void Worker::Core::open_steps(uint64_t begin, uint64_t end, Point point, Todo& todo) {
  const auto first = waiting_for_step_.lower_bound({begin, std::nullopt});
  auto last = first;
  for (; last != waiting_for_step_.end() && last->first.first < end; ++last) {
    open_gates(last->second, point, todo);
  }
  waiting_for_step_.erase(first, last);
}

void Worker::Core::open_gate(Operation& operation) {
  if (--operation.closed_gates == 0) ready_.insert({operation.op.priority, operation.op.op});
}

/// Offloading leaves a quarter of the turns to onboarding, which an engine waits for.
bool Worker::Core::may_start(const Operation& operation) const {
  const uint32_t most = options_.max_running_operations;
  if (num_running_ >= most) return false;
  return operation.op.priority == Priority::kOnboard || num_offloading_ < most - most / 4;
}

/// Whether the operation has to wait until its blocks are pinned: as for an event, without a turn.
bool Worker::Core::wait_for_memory(const std::shared_ptr<Operation>& operation, Todo& todo) {
  for (const Completion& ready : places_->ready(operation->op)) {
    if (ready.done()) continue;
    ++operation->closed_gates;
    todo.watch.emplace_back(Event(ready), operation);
  }
  return operation->closed_gates > 0;
}

void Worker::Core::start_ready(Todo& todo) {
  while (!ready_.empty()) {
    const OpId id = ready_.begin()->second;
    const auto& operation = operations_.at(id);
    if (!may_start(*operation)) return;  // nor may those behind it
    ready_.erase(ready_.begin());
    if (wait_for_memory(operation, todo)) continue;
    operation->running = true;
    start_deadlines_.erase({operation->start_by, id});
    ++num_running_;
    if (operation->op.priority == Priority::kOffload) ++num_offloading_;
    todo.start.push_back(operation);
  }
}

void Worker::Core::cancel_waiting(OpId id, Todo& todo) {
  const auto it = operations_.find(id);
  if (it == operations_.end() || it->second->running) return;
  ready_.erase({it->second->op.priority, id});
  start_deadlines_.erase({it->second->start_by, id});
  end(cancelled(id), todo);
}

void Worker::Core::end(OpResult result, Todo& todo) {
  const OpId id = result.op;
  auto node = operations_.extract(id);
  Operation& operation = *node.mapped();
  if (operation.running) {
    --num_running_;
    if (operation.op.priority == Priority::kOffload) --num_offloading_;
  }
  operation.over = true;
  for (Operation::Part& part : operation.parts) {
    if (part.ended && !part.done) todo.ended.push_back(*std::move(part.ended));
  }
  if (operation.ended) todo.ended.push_back(*std::move(operation.ended));
  answer(std::move(result), todo);
  auto waiting = waiting_for_op_.extract(id);
  if (!waiting.empty()) open_gates(waiting.mapped(), Point(), todo);
}

void Worker::Core::answer(OpResult result, Todo& todo) {
  todo.results.push_back(std::move(result));
  ++num_unheard_;
}

Event Worker::Core::ended_event(OpId id) {
  const auto found = operations_.find(id);
  if (found == operations_.end()) {
    const auto awaited = awaited_.find(id);
    if (awaited != awaited_.end()) return awaited->second.event();
    return awaited_.emplace(id, device_.create_event()).first->second.event();
  }
  return found->second->end_event(device_);
}

void Worker::Core::run(Todo todo) {
  for (;;) {
    // First, so that who waits for the end of a load finds what was observed of it.
    observe(todo.results);
    for (EventSource& ended : todo.ended) ended.signal();
    for (OpId repeated : todo.repeated) {
      KVBM_LOG_ERROR(log_, "worker", "operation {} was submitted again while it is open",
                     repeated.value());
    }
    hand_over(std::move(todo.results));
    for (auto& [event, operation] : todo.watch) {
      event.on_done(
          [weak = weak_from_this(), waiting = std::move(operation)](const Status&) noexcept {
            if (auto core = weak.lock()) core->event_done(waiting);
          });
    }
    std::vector<OpResult> ended;
    for (const auto& operation : todo.start) {
      if (auto result = start(operation)) ended.push_back(*std::move(result));
    }
    if (ended.empty()) return;
    // In turns, not by recursion: a device that refuses everything must not use up the stack.
    todo = {};
    MutexLock lock(mutex_);
    for (OpResult& result : ended) end(std::move(result), todo);
    start_ready(todo);
  }
}

void Worker::Core::observe(const std::vector<OpResult>& results) {
  if (results.empty()) return;
  std::shared_ptr<const ResultObserver> observer;
  {
    MutexLock lock(mutex_);
    observer = observer_;
  }
  if (!observer) return;
  for (const OpResult& result : results) (*observer)(result);
}

void Worker::Core::hand_over(std::vector<OpResult> results) {
  if (results.empty()) return;
  const size_t count = results.size();
  std::shared_ptr<const ResultCallback> callback;
  {
    MutexLock lock(mutex_);
    callback = callback_;
  }
  for (OpResult& result : results) {
    if (callback) (*callback)(std::move(result));
  }
  callback.reset();
  MutexLock lock(mutex_);
  num_unheard_ -= count;
  if (operations_.empty() && num_unheard_ == 0 && empty_) std::exchange(empty_, nullptr)->set();
}

/// The result, if the operation has ended already.
std::optional<OpResult> Worker::Core::start(const std::shared_ptr<Operation>& operation) {
  const CopyOp& op = operation->op;
  const std::optional<LayoutHandle> src = places_->find(op.src);
  const std::optional<LayoutHandle> dst = places_->find(op.dst);
  if (!src || !dst) {
    KVBM_LOG_ERROR(log_, "worker", "operation {} names a place that rank {} does not have",
                   op.op.value(), options_.rank.value());
    return cancelled(op.op);
  }
  for (const Completion& ready : places_->ready(op)) {
    // One that is not done is of a place that has come this moment.
    const Status pinned =
        ready.done() ? ready.status() : make_error(ErrorCode::kUnavailable, "not pinned yet");
    if (!pinned) {
      KVBM_LOG_WARNING(log_, "worker", "operation {} is cancelled on rank {}, its blocks: {}",
                       op.op.value(), options_.rank.value(), pinned.error().describe());
      return cancelled(op.op);
    }
  }
  std::vector<SlotTag> tags;
  tags.reserve(op.tags.size());
  for (const Tag& tag : op.tags) tags.push_back(tag.bytes);
  TransferRequest request{
      .src = *src, .src_ids = op.from, .dst = *dst, .dst_ids = op.to, .options = {}};
  request.options.wait_for = std::move(operation->outcomes);
  request.options.tags = tags;
  if (places_->take_pinning_ended()) {
    static_cast<void>(timers_->try_post([weak = weak_from_this()] {
      if (auto core = weak.lock()) core->places_->end_pinning();
    }));
  }
  if (!operation->parts.empty()) return start_parts(operation, std::move(request));
  auto transfer = transfers_->execute_transfer(request);
  if (!transfer) {
    KVBM_LOG_ERROR(log_, "worker", "operation {} was refused: {}", op.op.value(),
                   transfer.error().describe());
    return cancelled(op.op);
  }
  if (transfer->done()) return result_of(op, transfer->result());
  transfer->on_done([core = shared_from_this(), operation](const TransferResult& done) noexcept {
    core->finished(core->result_of(operation->op, done));
  });
  return std::nullopt;
}

/// Each part waits for the one before, so that all of the device's bandwidth goes to what is needed
/// first.
std::optional<OpResult> Worker::Core::start_parts(const std::shared_ptr<Operation>& operation,
                                                  TransferRequest request) {
  std::optional<OpResult> ended;
  for (size_t i = 0; i < operation->parts.size(); ++i) {
    request.options.layer_range = operation->parts[i].pieces;
    auto transfer = transfers_->execute_transfer(request);
    if (!transfer && i == 0) {
      KVBM_LOG_ERROR(log_, "worker", "operation {} was refused: {}", operation->op.op.value(),
                     transfer.error().describe());
      return cancelled(operation->op.op);
    }
    if (!transfer) {
      // What goes on already has to end first. The parts behind this one are not begun.
      for (; i < operation->parts.size(); ++i) {
        ended = part_ended(*operation, i, {.status = tl::unexpected(transfer.error())});
      }
      break;
    }
    if (transfer->done()) {
      ended = part_ended(*operation, i, transfer->result());
    } else {
      transfer->on_done(
          [core = shared_from_this(), operation, i](const TransferResult& done) noexcept {
            if (auto result = core->part_ended(*operation, i, done))
              core->finished(*std::move(result));
          });
    }
    request.options.wait_for = {transfer->event()};
  }
  return ended;
}

/// The result of the operation, if this was the last part of it.
std::optional<OpResult> Worker::Core::part_ended(Operation& operation, size_t part,
                                                 const TransferResult& done) {
  Operation::PartEnd end;
  {
    MutexLock lock(mutex_);
    end = operation.end_part(part, done);
  }
  if (end.ended) end.ended->signal();
  if (!end.whole) return std::nullopt;
  return result_of(operation.op, *end.whole);
}

OpResult Worker::Core::result_of(const CopyOp& op, const TransferResult& done) const {
  OpResult result{.op = op.op,
                  .rank = options_.rank,
                  .outcome = done.status ? Outcome::kSucceeded : Outcome::kFailed,
                  .bytes = done.bytes,
                  .failed = {}};
  if (!done.status) {
    KVBM_LOG_WARNING(log_, "worker", "operation {} failed on rank {}: {}", op.op.value(),
                     options_.rank.value(), done.status.error().describe());
    if (done.failed.size() < op.from.size()) result.failed = done.failed;
  }
  return result;
}

void Worker::Core::finished(OpResult result) {
  Todo todo;
  {
    MutexLock lock(mutex_);
    end(std::move(result), todo);
    start_ready(todo);
  }
  run(std::move(todo));
}

void Worker::Core::event_done(const std::shared_ptr<Operation>& operation) {
  Todo todo;
  {
    MutexLock lock(mutex_);
    if (!operations_.contains(operation->op.op)) return;  // cancelled meanwhile
    open_gate(*operation);
    start_ready(todo);
  }
  run(std::move(todo));
}

size_t Worker::Core::num_open() const {
  MutexLock lock(mutex_);
  return operations_.size();
}

Status Worker::Core::stop(TimePoint deadline) {
  Todo todo;
  std::shared_ptr<Latch> empty;
  {
    MutexLock lock(mutex_);
    stopped_ = true;
    std::vector<OpId> waiting;
    for (const auto& [id, operation] : operations_) {
      if (!operation->running) waiting.push_back(id);
    }
    std::sort(waiting.begin(), waiting.end());
    for (OpId id : waiting) cancel_waiting(id, todo);
    for (auto& [id, source] : awaited_) todo.ended.push_back(std::move(source));  // will not come
    awaited_.clear();
    if (!operations_.empty() || num_unheard_ > 0) {
      if (!empty_) empty_ = std::make_shared<Latch>();
      empty = empty_;
    }
  }
  run(std::move(todo));
  if (empty && !executor_.wait(*empty, deadline)) {
    return make_error(ErrorCode::kTimeout, "copies of rank " + to_string(options_.rank) +
                                               " did not stop in time; their memory must stay");
  }
  timers_->stop();
  return {};
}

/// Ends what has threads, here and not on the thread that lets go of the core last.
/// Requires: stop() has succeeded.
void Worker::Core::close() {
  timers_.reset();
  places_->close();
  transfers_.reset();
}

Result<std::unique_ptr<Worker>> Worker::create(WorkerOptions options, Device& device,
                                               FileEngine* files, Executor& executor,
                                               LogSink& log) {
  auto core = std::make_shared<Core>(std::move(options), device, files, executor, log);
  KVBM_TRY(core->set_up());
  return std::unique_ptr<Worker>(new Worker(std::move(core)));
}

Worker::Worker(std::shared_ptr<Core> core) : core_(std::move(core)) {}
Worker::~Worker() {
  if (stop(kNever)) core_->close();
}

Result<PlaceSpec> Worker::attach(Place place, PhysicalLayout tensors, uint32_t pieces_per_layer) {
  return core_->places().attach(place, std::move(tensors), pieces_per_layer);
}
Status Worker::provide(const PlaceSpec& spec) { return core_->places().provide(spec); }
void Worker::on_result(ResultCallback callback) { core_->on_result(std::move(callback)); }
void Worker::on_shrunk(ShrinkCallback callback) { core_->places().on_shrunk(std::move(callback)); }
void Worker::observe_results(ResultObserver observer) {
  core_->observe_results(std::move(observer));
}
Status Worker::begin_step(const StepPlan& plan, StreamRef compute) {
  return core_->begin_step(plan, compute);
}
Result<LoadWaits> Worker::layer_needed(LayerId layer, StreamRef stream) {
  return core_->loads_needed(layer, stream);
}
Result<LoadWaits> Worker::all_layers_needed(StreamRef stream) {
  return core_->loads_needed(std::nullopt, stream);
}
void Worker::layer_written(LayerId layer, StreamRef stream) { core_->layer_written(layer, stream); }
Event Worker::record(StreamRef compute) { return core_->record(compute); }
void Worker::end_step(StreamRef compute) { core_->end_step(compute); }
void Worker::submit(std::span<const CopyOp> ops) { core_->submit(ops); }
void Worker::cancel(std::span<const OpId> ops) { core_->cancel(ops); }
void Worker::expect_only_steps() { core_->expect_only_steps(); }
size_t Worker::num_open() const { return core_->num_open(); }
Status Worker::stop(TimePoint deadline) { return core_->stop(deadline); }

}  // namespace kvbm
