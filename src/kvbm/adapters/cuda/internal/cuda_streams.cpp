// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cuda/internal/cuda_streams.hpp"

#include <cuda_runtime_api.h>

#include <deque>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include "kvbm/adapters/cuda/internal/copy_submit.hpp"
#include "kvbm/base/text.hpp"

namespace kvbm::internal {

namespace {

/// That a stream runs before another one gets the thread.
constexpr size_t kOperationsPerTurn = 16;

void note(CudaStream& stream, const Status& outcome) {
  const MutexLock lock(stream.mutex);
  stream.note(outcome);
}

/// What a copy through the ring waits for must be copies and kernels: others wait for it. Of what
/// came before it on its stream nobody knows, so that has to have ended.
bool needs_idle_gpu(const CudaOperation& operation) {
  const auto* const copy = std::get_if<QueuedCopy>(&operation);
  return std::holds_alternative<QueuedLaunch>(operation) ||
         (copy != nullptr && copy->ring.has_value() && !copy->is_under_way());
}

bool needs_gate(const Event& event) {
  return !event.done() && dynamic_cast<const NativeCudaEvent*>(event.native()) == nullptr;
}

}  // namespace

Result<std::shared_ptr<CudaStreams>> CudaStreams::create(const CudaStreamsOptions& options,
                                                         std::shared_ptr<const CudaContext> context,
                                                         std::shared_ptr<CudaPinner> pinner) {
  const int32_t ordinal = context->gpu().ordinal;
  // Of each stream at most one turn and one task of an adopted stream wait at a time.
  KVBM_ASSIGN_OR_RETURN(auto tasks,
                        options.executor.create_queue({.name = format_text("cuda{}", ordinal),
                                                       .num_threads = options.num_threads,
                                                       .capacity = 2 * options.max_streams}));
  KVBM_ASSIGN_OR_RETURN(
      auto watch,
      options.executor.create_queue(
          {.name = format_text("cuda{}-watch", ordinal), .num_threads = 1, .capacity = 1}));
  std::shared_ptr<CudaStreams> streams(new CudaStreams(
      options, std::move(context), std::move(pinner), std::move(tasks), std::move(watch)));
  streams->copier_.find_kernels();
  {
    const CudaContext::Scope scope(*streams->context_);
    streams->patterns_loaded_ = streams->block_kernels_.load_patterns();
    streams->checksums_loaded_ = streams->block_kernels_.load_checksums();
    if (options.ring_bytes > 0 && streams->kernels() != KernelSupport::kNone) {
      streams->ring_made_ = streams->copier_.make_rings(options.ring_bytes);
    }
  }
  KVBM_TRY(streams->watcher_.start());
  return streams;
}

CudaStreams::CudaStreams(const CudaStreamsOptions& options,
                         std::shared_ptr<const CudaContext> context,
                         std::shared_ptr<CudaPinner> pinner, std::unique_ptr<TaskQueue> tasks,
                         std::unique_ptr<TaskQueue> watch)
    : options_(options),
      name_(format_text("cuda:{}", context->gpu().ordinal)),
      context_(std::move(context)),
      gates_(context_),
      copier_(context_, std::move(pinner)),
      block_kernels_(context_),
      tasks_(std::move(tasks)),
      watcher_(*this, context_, health_, options_.executor, std::move(watch)) {}

// --- who is there --------------------------------------------------------------------------------

Result<StreamRef> CudaStreams::create_stream(std::string_view name) {
  KVBM_TRY(usable());
  const CudaContext::Scope scope(*context_);
  cudaStream_t native = nullptr;
  const MutexLock lock(mutex_);
  KVBM_TRY(has_room());
  if (const cudaError_t code = ::cudaStreamCreateWithFlags(&native, cudaStreamNonBlocking)) {
    return make_error(cuda_error("no stream", code));
  }
  return add(std::make_shared<CudaStream>(++last_id_, name, native, false, pool_));
}

Result<StreamRef> CudaStreams::adopt_stream(uintptr_t handle, std::string_view name) {
  KVBM_TRY(usable());
  const CudaContext::Scope scope(*context_);
  auto* const native = reinterpret_cast<cudaStream_t>(handle);
  if (native == cudaStreamPerThread) {
    return make_error(ErrorCode::kInvalidArgument,
                      "a thread's default stream is another one on each thread: adopt a stream "
                      "that was made");
  }
  CUctx_st* owner = nullptr;
  if (!is_default_stream(native) &&
      (context_->driver().stream_context(native, &owner) != 0 || owner != context_->handle())) {
    return make_error(ErrorCode::kInvalidArgument,
                      format_text("the stream to adopt is not one of {}", name_));
  }
  const MutexLock lock(mutex_);
  for (const auto& [id, stream] : streams_) {
    if (!stream->adopted || stream->native != native) continue;
    const MutexLock stream_lock(stream->mutex);
    if (!stream->destroyed) return StreamRef{id};
  }
  KVBM_TRY(has_room());
  KVBM_ASSIGN_OR_RETURN(volatile uint32_t* const word, gates_.take_word());
  auto stream = std::make_shared<CudaStream>(++last_id_, name, native, true, pool_);
  {
    const MutexLock stream_lock(stream->mutex);
    stream->gate_word = word;
    stream->first_gate = *word + 1;
  }
  return add(std::move(stream));
}

Status CudaStreams::destroy_stream(StreamRef ref) {
  KVBM_ASSIGN_OR_RETURN(const StreamPointer stream, find(ref));
  bool drained = false;
  {
    const MutexLock submit(stream->submit);
    const MutexLock lock(stream->mutex);
    if (stream->destroyed) return not_found(ref);
    stream->destroyed = true;
    drained = stream->is_drained();
  }
  if (drained) forget(stream);
  return {};
}

tl::unexpected<Error> CudaStreams::unavailable() const {
  return make_error(ErrorCode::kUnavailable, format_text("{} is being destroyed", name_));
}

tl::unexpected<Error> CudaStreams::not_found(StreamRef ref) const {
  return make_error(ErrorCode::kNotFound, format_text("{} has no stream {}", name_, ref.value));
}

tl::unexpected<Error> CudaStreams::destroyed_error(const CudaStream& stream) const {
  return make_error(
      ErrorCode::kCancelled,
      format_text("{} was destroyed before stream {} got that far", name_, stream.name));
}

Status CudaStreams::usable() const {
  if (closing_.load(std::memory_order_acquire)) return unavailable();
  return health_.alive();
}

Status CudaStreams::has_room() const {
  if (closing_.load(std::memory_order_acquire)) return unavailable();
  if (streams_.size() >= options_.max_streams) {
    return make_error(ErrorCode::kExhausted, format_text("{} has {} streams already; destroy some",
                                                         name_, options_.max_streams));
  }
  return {};
}

StreamRef CudaStreams::add(StreamPointer stream) {
  const uint64_t id = stream->id;
  streams_.emplace(id, std::move(stream));
  return StreamRef{id};
}

Result<CudaStreams::StreamPointer> CudaStreams::find(StreamRef ref) {
  const MutexLock lock(mutex_);
  if (closing_.load(std::memory_order_acquire)) return unavailable();
  const auto found = streams_.find(ref.value);
  if (found == streams_.end()) return not_found(ref);
  return found->second;
}

Status CudaStreams::accepts_locked(CudaStream& stream) const {
  if (stream.destroyed) return not_found(StreamRef{stream.id});
  KVBM_TRY(health_.alive());
  if (stream.operations.size() + stream.marks.size() >= options_.max_queued) {
    return make_error(ErrorCode::kExhausted,
                      format_text("stream {} has {} operations queued; wait for some to end",
                                  stream.name, options_.max_queued));
  }
  return {};
}

Status CudaStreams::accepts(CudaStream& stream) const {
  const MutexLock lock(stream.mutex);
  return accepts_locked(stream);
}

void CudaStreams::forget(const StreamPointer& stream) {
  {
    const MutexLock lock(mutex_);
    if (closing_.load(std::memory_order_acquire) || streams_.erase(stream->id) == 0) return;
  }
  volatile uint32_t* word = nullptr;
  {
    const MutexLock lock(stream->mutex);
    word = std::exchange(stream->gate_word, nullptr);
  }
  if (word != nullptr) gates_.give_back(word);
  copier_.forget(*stream);
  if (stream->adopted) return;
  const CudaContext::Scope scope(*context_);
  static_cast<void>(::cudaStreamDestroy(stream->native));  // after what it still has
}

// --- operations ----------------------------------------------------------------------------------

Status CudaStreams::copy(StreamRef ref, StridedCopyBatch batch, uint64_t bytes) {
  KVBM_ASSIGN_OR_RETURN(const StreamPointer stream, find(ref));
  const CudaContext::Scope scope(*context_);
  KVBM_ASSIGN_OR_RETURN(QueuedCopy copy, prepare(*stream, std::move(batch), bytes));
  bool wake = false;
  {
    const MutexLock submit(stream->submit);
    KVBM_TRY(put_on(*stream, std::move(copy), wake));
  }
  watcher_.watch_arrivals(stream);
  if (wake) schedule(stream);
  return {};
}

Result<Event> CudaStreams::copy_and_record(StreamRef ref, StridedCopyBatch batch, uint64_t bytes) {
  KVBM_ASSIGN_OR_RETURN(const StreamPointer stream, find(ref));
  const CudaContext::Scope scope(*context_);
  KVBM_ASSIGN_OR_RETURN(QueuedCopy copy, prepare(*stream, std::move(batch), bytes));
  bool wake = false;
  Event event;
  {
    const MutexLock submit(stream->submit);
    KVBM_TRY(put_on(*stream, std::move(copy), wake));
    try {
      event = record_now(stream);
    } catch (...) {
      event = unrecorded();
    }
  }
  // Where there is no event behind the copies.
  if (event.done()) watcher_.watch_arrivals(stream);
  if (wake) schedule(stream);
  return event;
}

Result<QueuedCopy> CudaStreams::prepare(const CudaStream& stream, StridedCopyBatch batch,
                                        uint64_t bytes) const {
  QueuedCopy copy{.batch = std::move(batch), .bytes = bytes};
  if (copy.batch.method != CopyMethod::kRing || bytes == 0) return copy;
  if (stream.adopted) {
    return make_error(ErrorCode::kInvalidArgument,
                      format_text("stream {} was adopted, and takes no copies through the ring: "
                                  "copy by the engine",
                                  stream.name));
  }
  KVBM_TRY(health_.alive());
  KVBM_ASSIGN_OR_RETURN(copy.ring, copier_.find_path(copy.batch));
  return copy;
}

Status CudaStreams::put_on(CudaStream& stream, QueuedCopy copy, bool& wake) {
  bool goes_on = true;
  {
    const MutexLock lock(stream.mutex);
    KVBM_TRY(accepts_locked(stream));
    if (stream.state != CudaStream::State::kIdle) {
      stream.operations.emplace_back(std::move(copy));
      return {};
    }
    goes_on = !copy.ring.has_value() || !stream.native_is_open();
  }
  if (goes_on) {
    KVBM_TRY(stream.check_not_capturing());
    KVBM_TRY(copier_.copy(stream, copy));
  }
  if (copy.is_done()) return {};
  try {
    const MutexLock lock(stream.mutex);
    stream.operations.emplace_back(std::move(copy));
    stream.state = CudaStream::State::kScheduled;
    wake = true;
    return {};
  } catch (...) {
    if (copy.done_pairs == 0 && !copy.is_under_way()) throw;
  }
  // A part of it runs, and there is no memory to queue the rest. What the ring has is ended, so
  // that the stream waits for it; the event behind it fails.
  while (copy.is_under_way()) KVBM_TRY(copier_.copy(stream, copy));
  if (!copy.is_done()) note(stream, unrecorded().status());
  return {};
}

Status CudaStreams::pattern(StreamRef ref, PatternBatch batch) {
  return launch_queued(ref, QueuedPattern{std::move(batch)});
}

Status CudaStreams::checksum(StreamRef ref, ChecksumBatch batch) {
  return launch_queued(ref, QueuedChecksum{std::move(batch)});
}

template <class Queued>
Status CudaStreams::launch_queued(StreamRef ref, Queued queued) {
  KVBM_ASSIGN_OR_RETURN(const StreamPointer stream, find(ref));
  {
    const MutexLock submit(stream->submit);
    {
      const MutexLock lock(stream->mutex);
      KVBM_TRY(accepts_locked(*stream));
      if (stream->state != CudaStream::State::kIdle) {
        stream->operations.emplace_back(std::move(queued));
        return {};
      }
    }
    const CudaContext::Scope scope(*context_);
    KVBM_TRY(stream->check_not_capturing());
    KVBM_TRY(block_kernels_.launch(*stream, queued.batch));
  }
  watcher_.watch_arrivals(stream);
  return {};
}

Status CudaStreams::wait(StreamRef ref, const Event& event) {
  KVBM_ASSIGN_OR_RETURN(const StreamPointer stream, find(ref));
  if (stream->adopted && needs_gate(event)) return wait_at_gate(stream, event);
  if (!stream->adopted && needs_gate(event)) return defer(stream, QueuedWait{event});
  {
    const MutexLock submit(stream->submit);
    {
      const MutexLock lock(stream->mutex);
      KVBM_TRY(accepts_locked(*stream));
      if (stream->state != CudaStream::State::kIdle) {
        stream->operations.emplace_back(QueuedWait{event});
        return {};
      }
    }
    const CudaContext::Scope scope(*context_);
    KVBM_TRY(stream->check_not_capturing());
    KVBM_TRY(wait_now(*stream, event));
  }
  watcher_.watch_arrivals(stream);
  return {};
}

Status CudaStreams::launch(StreamRef ref, StreamTask task) {
  KVBM_ASSIGN_OR_RETURN(const StreamPointer stream, find(ref));
  if (!stream->adopted) return defer(stream, QueuedLaunch{std::move(task)});

  // The task runs when the GPU comes here, and the GPU goes on when the task has ended.
  const CudaContext::Scope scope(*context_);
  const MutexLock submit(stream->submit);
  KVBM_TRY(accepts(*stream));
  KVBM_TRY(stream->check_not_capturing());
  CudaMark mark;
  mark.task = std::make_unique<GateTask>(GateTask{.task = std::move(task)});
  KVBM_ASSIGN_OR_RETURN(mark.event, watcher_.record_native(*stream));
  KVBM_ASSIGN_OR_RETURN(mark.task->gate, gates_.close_gate(*stream));
  watcher_.push_mark(stream, std::move(mark));
  const MutexLock lock(stream->mutex);
  stream->native_since_mark = true;  // the gate
  return {};
}

Event CudaStreams::record(StreamRef ref) {
  auto found = find(ref);
  if (!found) return Event::ready(make_error(std::move(found).error()));
  const CudaContext::Scope scope(*context_);
  const MutexLock submit((*found)->submit);
  return record_now(*found);
}

Event CudaStreams::record_now(const StreamPointer& stream) {
  {
    const MutexLock lock(stream->mutex);
    if (Status accepted = accepts_locked(*stream); !accepted) {
      return Event::ready(std::move(accepted));
    }
    if (stream->state != CudaStream::State::kIdle) {
      CompletionSource source(options_.executor, pool_);
      Event event(source.completion());
      stream->operations.emplace_back(QueuedRecord{std::move(source)});
      return event;
    }
    if (!stream->adopted && !stream->native_is_open()) {
      stream->close_segment();
      return Event::ready(stream->recorded);
    }
  }
  if (Status taken = stream->check_not_capturing(); !taken) return Event::ready(std::move(taken));
  CompletionSource source(options_.executor, pool_);
  const Completion completion = source.completion();
  auto native = watcher_.record_mark(stream, std::move(source));
  if (!native) return Event::ready(make_error(std::move(native).error()));
  return Event(completion, *std::move(native));
}

Status CudaStreams::wait_now(CudaStream& stream, const Event& event) {
  if (const auto* native = dynamic_cast<const NativeCudaEvent*>(event.native());
      native != nullptr && !event.done()) {
    if (const cudaError_t code = ::cudaStreamWaitEvent(stream.native, native->handle, 0)) {
      return make_error(cuda_error("a stream cannot wait for an event", code));
    }
    const MutexLock lock(stream.mutex);
    stream.native_since_mark = true;
    stream.note(native->outcome);
    return {};
  }
  note(stream, event.status());
  return {};
}

Status CudaStreams::wait_at_gate(const StreamPointer& stream, const Event& event) {
  uint32_t gate = 0;
  {
    const CudaContext::Scope scope(*context_);
    const MutexLock submit(stream->submit);
    KVBM_TRY(accepts(*stream));
    KVBM_TRY(stream->check_not_capturing());
    KVBM_ASSIGN_OR_RETURN(gate, gates_.close_gate(*stream));
  }
  const auto open = [streams = weak_from_this(), weak = std::weak_ptr<CudaStream>(stream),
                     gate](const Status& outcome) noexcept {
    const std::shared_ptr<CudaStreams> self = streams.lock();
    const StreamPointer waiting = weak.lock();
    if (self == nullptr || waiting == nullptr) return;
    if (CudaGates::open_gate(*waiting, gate, outcome)) self->forget(waiting);
  };
  try {
    event.on_done(open);
  } catch (...) {
    open(unrecorded().status());  // the GPU must not wait for ever
  }
  return {};
}

void CudaStreams::run_at_gate(const StreamPointer& stream, std::unique_ptr<GateTask> task) {
  const uint32_t gate = task->gate;
  const Status posted = tasks_->try_post([this, stream, task = std::move(task), gate]() mutable {
    const Status outcome = run_task(task->task);
    task.reset();
    if (CudaGates::open_gate(*stream, gate, outcome)) forget(stream);
  });
  if (!posted && CudaGates::open_gate(*stream, gate, destroyed_error(*stream))) forget(stream);
}

// --- behind what waits for the host --------------------------------------------------------------

Status CudaStreams::defer(const StreamPointer& stream, CudaOperation operation) {
  bool wake = false;
  {
    const MutexLock submit(stream->submit);
    const MutexLock lock(stream->mutex);
    KVBM_TRY(accepts_locked(*stream));
    stream->operations.push_back(std::move(operation));
    wake = stream->state == CudaStream::State::kIdle;
    if (wake) stream->state = CudaStream::State::kScheduled;
  }
  if (wake) schedule(stream);
  return {};
}

void CudaStreams::schedule(StreamPointer stream) noexcept {
  static_cast<void>(tasks_->try_post([this, stream = std::move(stream)] { run_turn(stream); }));
}

void CudaStreams::run_turn(const StreamPointer& stream) {
  const CudaContext::Scope scope(*context_);
  for (size_t done = 0; done < kOperationsPerTurn; ++done) {
    if (closing_.load(std::memory_order_acquire)) return;
    // Runs where it lies: only turns take out of the queue, and without memory nothing is lost.
    CudaOperation* next = nullptr;
    std::optional<Event> parked_on;
    bool needs_mark = false;
    bool gone = false;
    {
      const MutexLock lock(stream->mutex);
      if (stream->operations.empty()) {
        stream->state = CudaStream::State::kIdle;
        gone = stream->destroyed && stream->is_drained();
      } else {
        next = &stream->operations.front();
        const auto* wait = std::get_if<QueuedWait>(next);
        if (wait != nullptr && needs_gate(wait->event)) {
          parked_on = wait->event;
          stream->state = CudaStream::State::kParked;
        } else {
          needs_mark = needs_idle_gpu(*next) && stream->native_is_open() && health_.alive();
        }
      }
    }
    if (next == nullptr) {
      if (gone) forget(stream);
      return;
    }
    if (parked_on.has_value()) {
      if (park(stream, *parked_on)) return;
      break;
    }
    if (needs_mark) {
      if (resume_after_native(stream)) return;
      continue;  // and tries again, unless the GPU is gone
    }
    if (!run(stream, *next)) break;
    // run() leaves a copy only where ids are left.
    if (const auto* const copy = std::get_if<QueuedCopy>(next)) {
      if (!copy->needs_room) continue;
      // Until all before it has ended, and the ring is empty.
      const Status resumes = resume_after_native(stream);
      if (resumes) return;
      note(*stream, resumes);
    }
    static_cast<void>(take_front(*stream));
  }
  schedule(stream);
}

CudaOperation CudaStreams::take_front(CudaStream& stream) {
  const MutexLock lock(stream.mutex);
  CudaOperation first = std::move(stream.operations.front());
  stream.operations.pop_front();
  return first;
}

Status CudaStreams::resume_after_native(const StreamPointer& stream) {
  try {
    CudaMark mark;
    KVBM_ASSIGN_OR_RETURN(mark.event, watcher_.record_native(*stream));
    mark.resumes = true;
    watcher_.push_mark(stream, std::move(mark));
    return {};
  } catch (...) {
    return unrecorded().status();
  }
}

bool CudaStreams::park(const StreamPointer& stream, const Event& event) {
  try {
    event.on_done([streams = weak_from_this(),
                   weak = std::weak_ptr<CudaStream>(stream)](const Status& /*outcome*/) noexcept {
      const std::shared_ptr<CudaStreams> self = streams.lock();
      StreamPointer parked = weak.lock();
      if (self == nullptr || parked == nullptr) return;
      {
        const MutexLock lock(parked->mutex);
        if (parked->state != CudaStream::State::kParked) return;  // the device is being destroyed
        parked->state = CudaStream::State::kScheduled;
      }
      self->schedule(std::move(parked));
    });
    return true;
  } catch (...) {
    const MutexLock lock(stream->mutex);
    stream->state = CudaStream::State::kScheduled;
    return false;
  }
}

bool CudaStreams::run(const StreamPointer& stream, CudaOperation& operation) {
  try {
    run_now(stream, operation);
    return true;
  } catch (...) {
    // Without memory. What is done of a copy is known; of all others it is not. The event of a
    // record fails by itself, and what came before it is told by the next.
    if (std::holds_alternative<QueuedCopy>(operation)) return false;
    if (!std::holds_alternative<QueuedRecord>(operation)) note(*stream, unrecorded().status());
    return true;
  }
}

void CudaStreams::run_now(const StreamPointer& stream, CudaOperation& operation) {
  if (auto* copy = std::get_if<QueuedCopy>(&operation)) {
    const Status copied = copier_.copy(*stream, *copy);
    watcher_.watch_arrivals(stream);
    if (copied && !copy->is_done()) return;
    // The lists are not needed any more, and nothing else holds the counter if it was skipped.
    operation = QueuedLaunch{};
    if (!copied) note(*stream, copied);
  } else if (auto* pattern = std::get_if<QueuedPattern>(&operation)) {
    if (Status launched = block_kernels_.launch(*stream, pattern->batch); !launched) {
      note(*stream, launched);
    }
    watcher_.watch_arrivals(stream);
  } else if (auto* checksum = std::get_if<QueuedChecksum>(&operation)) {
    if (Status launched = block_kernels_.launch(*stream, checksum->batch); !launched) {
      note(*stream, launched);
    }
    // Its share of the checksums goes before anybody hears of the end.
    operation = QueuedLaunch{};
    watcher_.watch_arrivals(stream);
  } else if (auto* launch = std::get_if<QueuedLaunch>(&operation)) {
    Status outcome = run_task(launch->task);
    launch->task.reset();
    note(*stream, outcome);
  } else if (auto* wait = std::get_if<QueuedWait>(&operation)) {
    if (Status waited = wait_now(*stream, wait->event); !waited) note(*stream, waited);
  } else {
    run_record(stream, std::get<QueuedRecord>(operation).source);
  }
}

void CudaStreams::run_record(const StreamPointer& stream, CompletionSource& source) {
  bool native = false;
  Status outcome;
  {
    const MutexLock lock(stream->mutex);
    native = stream->native_is_open();
    if (!native) {
      stream->close_segment();
      outcome = stream->recorded;
    }
  }
  if (Status living = health_.alive(); native && !living) {
    native = false;
    outcome = std::move(living);
  }
  if (!native) {
    source.resolve(std::move(outcome));
  } else {
    static_cast<void>(watcher_.record_mark(stream, std::move(source)));
  }
}

void CudaStreams::on_reached(const StreamPointer& stream, CudaMark mark) {
  if (mark.task) {
    run_at_gate(stream, std::move(mark.task));
  } else if (mark.resumes) {
    {
      const MutexLock lock(stream->mutex);
      if (stream->state != CudaStream::State::kParked) return;  // the device is being destroyed
      stream->state = CudaStream::State::kScheduled;
    }
    schedule(stream);
  }
}

// --- the end -------------------------------------------------------------------------------------

void CudaStreams::close() {
  std::vector<StreamPointer> streams;
  {
    const MutexLock lock(mutex_);
    closing_.store(true, std::memory_order_release);
    for (const auto& [id, stream] : streams_) streams.push_back(stream);
  }
  tasks_->stop();
  for (const StreamPointer& stream : streams) {
    CudaOperations dropped{PoolAllocator<CudaOperation>(pool_)};
    size_t closed_gates = 0;
    uint32_t first = 0;
    {
      // Whoever is inside an operation comes out first.
      const MutexLock submit(stream->submit);
      const MutexLock lock(stream->mutex);
      stream->destroyed = true;
      dropped.swap(stream->operations);
      stream->state = CudaStream::State::kIdle;
      closed_gates = stream->gates.size();
      first = stream->first_gate;
    }
    for (CudaOperation& operation : dropped) {
      if (auto* record = std::get_if<QueuedRecord>(&operation)) {
        record->source.resolve(destroyed_error(*stream));
      }
    }
    // An engine's stream must not wait for ever.
    for (size_t i = 0; i < closed_gates; ++i) {
      static_cast<void>(CudaGates::open_gate(*stream, first + static_cast<uint32_t>(i),
                                             destroyed_error(*stream)));
    }
  }
  watcher_.stop();
  const CudaContext::Scope scope(*context_);
  for (const StreamPointer& stream : streams) {
    bool open = false;
    {
      const MutexLock lock(stream->mutex);
      open = stream->native_since_mark;
    }
    if (!stream->adopted) {
      static_cast<void>(::cudaStreamSynchronize(stream->native));
      static_cast<void>(::cudaStreamDestroy(stream->native));
    } else if (open && health_.alive() && stream->check_not_capturing()) {
      if (auto last = watcher_.record_native(*stream)) {
        static_cast<void>(::cudaEventSynchronize((*last)->handle));
      }
    }
  }
  gates_.close();
  copier_.close();
  block_kernels_.close();
}

}  // namespace kvbm::internal
