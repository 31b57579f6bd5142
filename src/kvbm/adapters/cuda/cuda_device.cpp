// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cuda/cuda_device.hpp"

#include <cuda_runtime_api.h>
#include <sys/prctl.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <map>
#include <thread>
#include <utility>

#include "kvbm/adapters/cuda/internal/copy_list.hpp"
#include "kvbm/adapters/cuda/internal/copy_submit.hpp"
#include "kvbm/adapters/cuda/internal/cuda_context.hpp"
#include "kvbm/adapters/cuda/internal/cuda_events.hpp"
#include "kvbm/adapters/cuda/internal/cuda_memory.hpp"
#include "kvbm/adapters/cuda/internal/cuda_pinner.hpp"
#include "kvbm/adapters/cuda/internal/cuda_stream.hpp"
#include "kvbm/adapters/cuda/internal/kernel_copy.hpp"
#include "kvbm/base/text.hpp"

namespace kvbm {

using internal::Arrival;
using internal::CopyList;
using internal::cuda_error;
using internal::CudaContext;
using internal::CudaEvents;
using internal::CudaGate;
using internal::CudaGpu;
using internal::CudaMark;
using internal::CudaMemory;
using internal::CudaOperation;
using internal::CudaPinner;
using internal::is_default_stream;
using internal::KernelIds;
using internal::KernelSupport;
using internal::NativeCudaEvent;
using internal::PinnedRing;
using internal::QueuedCopy;
using internal::QueuedLaunch;
using internal::QueuedRecord;
using internal::QueuedWait;
using internal::submit;
using Stream = internal::CudaStream;

namespace {

/// That a stream runs before another one gets the thread.
constexpr size_t kOperationsPerTurn = 16;
/// How long the watcher spins after the last thing that happened, and how long it sleeps then.
/// Where a nap takes longer than kLongNap (a virtual machine whose timers are late) it spins for
/// longer.
constexpr Duration kSpin = std::chrono::microseconds(60);
constexpr Duration kLongSpin = std::chrono::milliseconds(20);
constexpr Duration kNap = std::chrono::microseconds(20);
constexpr Duration kLongNap = std::chrono::microseconds(50);
/// Rounds of the watcher after which copies that nobody records an event behind get a mark.
constexpr uint32_t kPatience = 3;
/// Words that the GPU waits for, one a cache line.
constexpr size_t kGateWords = 64;
constexpr size_t kGateWordStride = 16;
/// Room of a stream for pairs of ids that kernels have not read yet, and how many of them one
/// launch takes at most, so that there is a next one when the first has ended.
constexpr size_t kIdPairs = 65536;
constexpr size_t kIdPairsOfALaunch = kIdPairs / 4;
constexpr size_t kIdBytes = kIdPairs * 2 * sizeof(uint32_t);

}  // namespace

class CudaDevice::Core : public std::enable_shared_from_this<Core> {
 public:
  using StreamPointer = std::shared_ptr<Stream>;

  Core(const CudaDeviceOptions& options, std::shared_ptr<const CudaContext> context,
       std::shared_ptr<CudaMemory> memory, std::unique_ptr<TaskQueue> tasks,
       std::unique_ptr<TaskQueue> watch)
      : options_(options),
        name_(format_text("cuda:{}", options.ordinal)),
        context_(std::move(context)),
        memory_(std::move(memory)),
        pinner_(std::make_shared<CudaPinner>(context_)),
        events_(context_),
        tasks_(std::move(tasks)),
        watch_(std::move(watch)) {}

  Status start() {
    find_kernels();
    return watch_->post([this] { watch(); });
  }

  [[nodiscard]] Executor& executor() const noexcept { return options_.executor; }
  [[nodiscard]] const std::shared_ptr<CudaPinner>& pinner() const noexcept { return pinner_; }
  [[nodiscard]] const std::shared_ptr<CudaMemory>& memory() const noexcept { return memory_; }
  [[nodiscard]] const CudaGpu& gpu() const noexcept { return context_->gpu(); }
  [[nodiscard]] KernelSupport kernels() const noexcept { return kernels_; }

  // --- streams
  // ------------------------------------------------------------------------------------

  [[nodiscard]] Result<StreamRef> create_stream(std::string_view name) {
    KVBM_TRY(usable());
    const CudaContext::Scope scope(*context_);
    cudaStream_t native = nullptr;
    const MutexLock lock(mutex_);
    KVBM_TRY(has_room());
    if (const cudaError_t code = ::cudaStreamCreateWithFlags(&native, cudaStreamNonBlocking)) {
      return make_error(cuda_error("no stream", code));
    }
    return add(std::make_shared<Stream>(++last_id_, name, native, false));
  }

  [[nodiscard]] Result<StreamRef> adopt_stream(uintptr_t handle, std::string_view name) {
    KVBM_TRY(usable());
    const CudaContext::Scope scope(*context_);
    auto* const native = reinterpret_cast<cudaStream_t>(handle);
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
    KVBM_ASSIGN_OR_RETURN(volatile uint32_t* const word, take_gate_word());
    auto stream = std::make_shared<Stream>(++last_id_, name, native, true);
    {
      const MutexLock stream_lock(stream->mutex);
      stream->gate_word = word;
      stream->first_gate = *word + 1;
    }
    return add(std::move(stream));
  }

  Status destroy_stream(StreamRef ref) {
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

  // --- operations
  // ---------------------------------------------------------------------------------

  Status copy(StreamRef ref, StridedCopyBatch batch, uint64_t bytes) {
    KVBM_ASSIGN_OR_RETURN(const StreamPointer stream, find(ref));
    QueuedCopy copy{.batch = std::move(batch), .bytes = bytes};
    bool wake = false;
    {
      const MutexLock submit(stream->submit);
      {
        const MutexLock lock(stream->mutex);
        KVBM_TRY(accepts_locked(*stream));
        if (stream->state != Stream::State::kIdle) {
          stream->operations.emplace_back(std::move(copy));
          return {};
        }
      }
      const CudaContext::Scope scope(*context_);
      KVBM_TRY(not_capturing(*stream));
      KVBM_TRY(copy_now(*stream, copy));
      if (!copy.is_done()) {
        const MutexLock lock(stream->mutex);
        stream->operations.emplace_back(std::move(copy));
        stream->state = Stream::State::kScheduled;
        wake = true;
      }
    }
    watch_arrivals(stream);
    if (wake) schedule(stream);
    return {};
  }

  Status wait(StreamRef ref, const Event& event) {
    KVBM_ASSIGN_OR_RETURN(const StreamPointer stream, find(ref));
    if (stream->adopted && needs_gate(event)) return wait_at_gate(stream, event);
    if (!stream->adopted && needs_gate(event)) return defer(stream, QueuedWait{event});
    return operate(
        ref, [&](Stream& now) { return wait_now(now, event); }, [&] { return QueuedWait{event}; });
  }

  Status launch(StreamRef ref, StreamTask task) {
    KVBM_ASSIGN_OR_RETURN(const StreamPointer stream, find(ref));
    if (!stream->adopted) return defer(stream, QueuedLaunch{std::move(task)});

    // The task runs when the GPU comes here, and the GPU goes on when the task has ended.
    const CudaContext::Scope scope(*context_);
    const MutexLock submit(stream->submit);
    KVBM_TRY(accepts(*stream));
    KVBM_TRY(not_capturing(*stream));
    CudaMark mark;
    KVBM_ASSIGN_OR_RETURN(mark.event, record_native(*stream));
    KVBM_ASSIGN_OR_RETURN(mark.gate, close_gate(*stream));
    mark.task = std::move(task);
    push_mark(stream, std::move(mark));
    const MutexLock lock(stream->mutex);
    stream->native_since_mark = true;  // the gate
    return {};
  }

  [[nodiscard]] Event record(StreamRef ref) {
    auto found = find(ref);
    if (!found) return Event::ready(make_error(std::move(found).error()));
    const StreamPointer& stream = *found;
    const MutexLock submit(stream->submit);
    {
      const MutexLock lock(stream->mutex);
      if (Status accepted = accepts_locked(*stream); !accepted) {
        return Event::ready(std::move(accepted));
      }
      if (stream->state != Stream::State::kIdle) {
        CompletionSource source(options_.executor);
        Event event(source.completion());
        stream->operations.emplace_back(QueuedRecord{std::move(source)});
        return event;
      }
      if (!stream->adopted && !stream->native_is_open()) {
        stream->close_segment();
        return Event::ready(stream->recorded);
      }
    }
    const CudaContext::Scope scope(*context_);
    if (Status taken = not_capturing(*stream); !taken) return Event::ready(std::move(taken));
    CompletionSource source(options_.executor);
    Completion completion = source.completion();
    auto native = record_mark(stream, std::move(source));
    if (!native) return Event::ready(make_error(std::move(native).error()));
    return Event(std::move(completion), *std::move(native));
  }

  // --- the end
  // ------------------------------------------------------------------------------------

  /// Lets what runs finish and drops the rest.
  void close() {
    std::vector<StreamPointer> streams;
    {
      const MutexLock lock(mutex_);
      closing_.store(true, std::memory_order_release);
      for (const auto& [id, stream] : streams_) streams.push_back(stream);
    }
    tasks_->stop();
    for (const StreamPointer& stream : streams) {
      std::deque<CudaOperation> dropped;
      size_t closed_gates = 0;
      uint32_t first = 0;
      {
        // Whoever is inside an operation comes out first.
        const MutexLock submit(stream->submit);
        const MutexLock lock(stream->mutex);
        stream->destroyed = true;
        dropped.swap(stream->operations);
        stream->state = Stream::State::kIdle;
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
        open_gate(*stream, first + static_cast<uint32_t>(i), destroyed_error(*stream));
      }
    }
    {
      const MutexLock lock(watch_mutex_);
      watch_ends_ = true;
      wake_.notify_all();
    }
    watch_->stop();
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
      } else if (open && alive()) {
        if (auto last = record_native(*stream)) {
          static_cast<void>(::cudaEventSynchronize((*last)->handle));
        }
      }
    }
    if (gate_words_ != nullptr) {
      static_cast<void>(::cudaFreeHost(const_cast<uint32_t*>(gate_words_)));
    }
    const MutexLock lock(ids_mutex_);
    for (void* const memory : id_memory_) static_cast<void>(::cudaFreeHost(memory));
  }

 private:
  // --- errors
  // -------------------------------------------------------------------------------------

  [[nodiscard]] tl::unexpected<Error> unavailable() const {
    return make_error(ErrorCode::kUnavailable, format_text("{} is being destroyed", name_));
  }
  [[nodiscard]] tl::unexpected<Error> not_found(StreamRef ref) const {
    return make_error(ErrorCode::kNotFound, format_text("{} has no stream {}", name_, ref.value));
  }
  [[nodiscard]] tl::unexpected<Error> destroyed_error(const Stream& stream) const {
    return make_error(
        ErrorCode::kCancelled,
        format_text("{} was destroyed before stream {} got that far", name_, stream.name));
  }

  /// Whether the context still works; the error that ended it, if not.
  [[nodiscard]] Status alive() const {
    if (!lost_.load(std::memory_order_acquire)) return {};
    const MutexLock lock(loss_mutex_);
    return make_error(*loss_);
  }
  Status lose(const Error& error) {
    const MutexLock lock(loss_mutex_);
    if (!loss_.has_value()) loss_ = error;
    lost_.store(true, std::memory_order_release);
    return make_error(*loss_);
  }
  [[nodiscard]] Status usable() const {
    if (closing_.load(std::memory_order_acquire)) return unavailable();
    return alive();
  }

  [[nodiscard]] Status has_room() const KVBM_REQUIRES(mutex_) {
    if (closing_.load(std::memory_order_acquire)) return unavailable();
    if (streams_.size() >= options_.max_streams) {
      return make_error(
          ErrorCode::kExhausted,
          format_text("{} has {} streams already; destroy some", name_, options_.max_streams));
    }
    return {};
  }
  StreamRef add(StreamPointer stream) KVBM_REQUIRES(mutex_) {
    const uint64_t id = stream->id;
    streams_.emplace(id, std::move(stream));
    return StreamRef{id};
  }

  [[nodiscard]] Result<StreamPointer> find(StreamRef ref) {
    const MutexLock lock(mutex_);
    if (closing_.load(std::memory_order_acquire)) return unavailable();
    const auto found = streams_.find(ref.value);
    if (found == streams_.end()) return not_found(ref);
    return found->second;
  }

  Status accepts_locked(Stream& stream) const KVBM_REQUIRES(stream.mutex) {
    if (stream.destroyed) return not_found(StreamRef{stream.id});
    KVBM_TRY(alive());
    if (stream.operations.size() + stream.marks.size() >= options_.max_queued) {
      return make_error(ErrorCode::kExhausted,
                        format_text("stream {} has {} operations queued; wait for some to end",
                                    stream.name, options_.max_queued));
    }
    return {};
  }
  Status accepts(Stream& stream) const {
    const MutexLock lock(stream.mutex);
    return accepts_locked(stream);
  }

  /// A capture would take our operations into the engine's graph, or be broken by them.
  Status not_capturing(const Stream& stream) const {
    if (!stream.adopted) return {};
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    const cudaError_t code = ::cudaStreamIsCapturing(stream.native, &status);
    if (code == cudaSuccess && status == cudaStreamCaptureStatusNone) return {};
    static_cast<void>(::cudaGetLastError());
    return make_error(ErrorCode::kRejected,
                      format_text("stream {} records a graph; no copies go into it", stream.name));
  }

  // --- straight to the native stream, or behind what waits for the host
  // ----------------------------

  /// Does `now` if nothing is queued on the host, else queues what `later` gives.
  template <class Now, class Later>
  Status operate(StreamRef ref, Now&& now, Later&& later) {
    KVBM_ASSIGN_OR_RETURN(const StreamPointer stream, find(ref));
    const MutexLock submit(stream->submit);
    {
      const MutexLock lock(stream->mutex);
      KVBM_TRY(accepts_locked(*stream));
      if (stream->state != Stream::State::kIdle) {
        stream->operations.emplace_back(later());
        return {};
      }
    }
    const CudaContext::Scope scope(*context_);
    KVBM_TRY(not_capturing(*stream));
    KVBM_TRY(now(*stream));
    watch_arrivals(stream);
    return {};
  }

  Status defer(const StreamPointer& stream, CudaOperation operation) {
    bool wake = false;
    {
      const MutexLock submit(stream->submit);
      const MutexLock lock(stream->mutex);
      KVBM_TRY(accepts_locked(*stream));
      stream->operations.push_back(std::move(operation));
      wake = stream->state == Stream::State::kIdle;
      if (wake) stream->state = Stream::State::kScheduled;
    }
    if (wake) schedule(stream);
    return {};
  }

  /// Requires: the stream is kScheduled, and this is the caller that made it so. Only a stopped
  /// queue refuses, since it has room for a task of every stream; close() then drops the
  /// operations.
  void schedule(StreamPointer stream) noexcept {
    static_cast<void>(tasks_->try_post([this, stream = std::move(stream)] { run_turn(stream); }));
  }

  void run_turn(const StreamPointer& stream) {
    const CudaContext::Scope scope(*context_);
    for (size_t done = 0; done < kOperationsPerTurn; ++done) {
      if (closing_.load(std::memory_order_acquire)) return;
      std::optional<CudaOperation> operation;
      std::optional<Event> parked_on;
      bool needs_mark = false;
      bool gone = false;
      {
        const MutexLock lock(stream->mutex);
        if (stream->operations.empty()) {
          stream->state = Stream::State::kIdle;
          gone = stream->destroyed && stream->is_drained();
        } else {
          CudaOperation& next = stream->operations.front();
          const auto* wait = std::get_if<QueuedWait>(&next);
          if (wait != nullptr && needs_gate(wait->event)) {
            parked_on = wait->event;
            stream->operations.pop_front();
            stream->state = Stream::State::kParked;
          } else if (std::holds_alternative<QueuedLaunch>(next) && stream->native_is_open() &&
                     alive()) {
            needs_mark = true;
          } else {
            operation.emplace(std::move(next));
            stream->operations.pop_front();
          }
        }
      }
      if (parked_on.has_value()) return park(stream, *parked_on);
      if (needs_mark) {
        if (resume_after_native(stream)) return;
        continue;
      }
      if (!operation.has_value()) {
        if (gone) forget(stream);
        return;
      }
      run(stream, *operation);
      // run() leaves a copy only where ids are left.
      if (std::holds_alternative<QueuedCopy>(*operation) &&
          wait_for_ids(stream, *std::move(operation))) {
        return;
      }
    }
    schedule(stream);
  }

  /// Puts a copy with ids left back where it was, until all before it has ended and the ring is
  /// empty. False if the context is lost.
  bool wait_for_ids(const StreamPointer& stream, CudaOperation copy) {
    {
      const MutexLock lock(stream->mutex);
      stream->operations.push_front(std::move(copy));
    }
    if (resume_after_native(stream)) return true;
    CudaOperation dropped = QueuedLaunch{};
    const MutexLock lock(stream->mutex);
    dropped = std::move(stream->operations.front());
    stream->operations.pop_front();
    stream->note(alive());
    return false;
  }

  /// The watcher brings the stream back once the GPU has come here. False if the context is lost.
  bool resume_after_native(const StreamPointer& stream) {
    CudaMark mark;
    auto event = record_native(*stream);
    if (!event) return false;
    mark.event = *std::move(event);
    mark.resumes = true;
    {
      const MutexLock lock(stream->mutex);
      stream->state = Stream::State::kParked;
    }
    push_mark(stream, std::move(mark));
    return true;
  }

  /// The event may be done before this returns, and the stream run elsewhere: it is not touched
  /// here afterwards. Weak, so that an event which never comes keeps nothing alive.
  void park(const StreamPointer& stream, const Event& event) {
    event.on_done([core = weak_from_this(),
                   weak = std::weak_ptr<Stream>(stream)](const Status& outcome) noexcept {
      const std::shared_ptr<Core> self = core.lock();
      StreamPointer parked = weak.lock();
      if (self == nullptr || parked == nullptr) return;
      {
        const MutexLock lock(parked->mutex);
        if (parked->state != Stream::State::kParked) return;  // the device is being destroyed
        parked->state = Stream::State::kScheduled;
        parked->note(outcome);
      }
      self->schedule(std::move(parked));
    });
  }

  void run(const StreamPointer& stream, CudaOperation& operation) {
    if (auto* copy = std::get_if<QueuedCopy>(&operation)) {
      const Status copied = copy_now(*stream, *copy);
      watch_arrivals(stream);
      if (copied && !copy->is_done()) return;
      // The lists are not needed any more, and nothing else holds the counter if it was skipped.
      operation = QueuedLaunch{};
      if (!copied) note(*stream, copied);
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

  void run_record(const StreamPointer& stream, CompletionSource& source) {
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
    if (Status living = alive(); native && !living) {
      native = false;
      outcome = std::move(living);
    }
    if (!native) {
      source.resolve(std::move(outcome));
    } else {
      static_cast<void>(record_mark(stream, std::move(source)));
    }
  }

  static void note(Stream& stream, const Status& outcome) {
    const MutexLock lock(stream.mutex);
    stream.note(outcome);
  }

  // --- calls of the driver: by the caller that has `submit` of an idle stream, or by its turn
  // -------

  [[nodiscard]] Result<std::shared_ptr<NativeCudaEvent>> record_native(Stream& stream) {
    KVBM_ASSIGN_OR_RETURN(auto event, events_.take());
    if (const cudaError_t code = ::cudaEventRecord(event->handle, stream.native)) {
      return lose_unexpected(cuda_error("cannot record an event", code));
    }
    return event;
  }
  tl::unexpected<Error> lose_unexpected(const Error& error) {
    return make_error(lose(error).error());
  }

  /// Puts the native part of record() on the stream. It comes with the event only if its outcome is
  /// known but for the GPU's part: nobody waits natively for what waits for the host. On failure
  /// `source` resolves with it.
  [[nodiscard]] Result<std::shared_ptr<const NativeEvent>> record_mark(const StreamPointer& stream,
                                                                       CompletionSource source) {
    CudaMark mark;
    auto event = record_native(*stream);
    if (!event) {
      source.resolve(make_error(event.error()));
      return make_error(std::move(event).error());
    }
    mark.event = *std::move(event);
    mark.source.emplace(std::move(source));
    std::shared_ptr<const NativeEvent> native;
    bool wake = false;
    {
      const MutexLock lock(stream->mutex);
      mark.segment = stream->close_segment();
      mark.outcome = stream->recorded;
      if (stream->gates.empty()) {
        mark.event->outcome = stream->recorded;
        native = mark.event;
      }
      wake = push(*stream, std::move(mark));  // a gate that opens from now on finds it
    }
    if (wake) watch_too(stream);
    return native;
  }

  void push_mark(const StreamPointer& stream, CudaMark mark) {
    bool wake = false;
    {
      const MutexLock lock(stream->mutex);
      wake = push(*stream, std::move(mark));
    }
    if (wake) watch_too(stream);
  }
  /// Whether the watcher does not know the stream yet.
  [[nodiscard]] static bool push(Stream& stream, CudaMark mark) KVBM_REQUIRES(stream.mutex) {
    mark.arrivals = std::exchange(stream.arrivals, std::exchange(stream.spare, {}));
    stream.native_since_mark = false;
    stream.marks.push(std::move(mark));
    return !std::exchange(stream.watched, true);
  }

  [[nodiscard]] static bool needs_gate(const Event& event) {
    return !event.done() && dynamic_cast<const NativeCudaEvent*>(event.native()) == nullptr;
  }

  /// Requires: !needs_gate(event).
  Status wait_now(Stream& stream, const Event& event) {
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

  /// A copy with ids left is to be called with again once there is room for them; one on an adopted
  /// stream has none left. Errors: only if nothing was put on the stream. What fails later is
  /// noted.
  Status copy_now(Stream& stream, QueuedCopy& copy) {
    {
      const MutexLock lock(stream.mutex);
      if (stream.failure.has_value()) {
        stream.anything_since_record = true;
        copy.done_pairs = copy.batch.from->size();
        return {};  // left out: the next event fails all the same
      }
    }
    return copy.batch.method == CopyMethod::kKernel ? copy_by_kernel(stream, copy)
                                                    : copy_by_engine(stream, copy);
  }

  Status copy_by_engine(Stream& stream, QueuedCopy& copy) {
    std::unique_ptr<CopyList> list = take_list();
    expand(copy.batch, *pinner_->cuts(), *list);
    bool queued = false;
    Status copied = submit(*list, stream.native, gpu().has_memcpy_batch, queued);
    give_back(std::move(list));
    if (!copied && !queued) return copied;
    copy.done_pairs = copy.batch.from->size();
    note_copy(stream, copied, queued,
              {.counter = copy.batch.bytes_moved, .bytes = copied ? copy.bytes : 0});
    return {};
  }

  Status copy_by_kernel(Stream& stream, QueuedCopy& copy) {
    const StridedCopyBatch& batch = copy.batch;
    const size_t num_pairs = batch.from->size();
    if (copy.done_pairs == 0) KVBM_TRY(check_reach(*context_, batch));
    if (copy.bytes > 0 && stream.ids == nullptr) {
      KVBM_ASSIGN_OR_RETURN(std::byte* const memory, take_id_memory());
      stream.ids = std::make_unique<PinnedRing>(std::span(memory, kIdBytes));
    }
    do {
      const size_t left = num_pairs - copy.done_pairs;
      const size_t count = stream.adopted ? left : std::min(left, kIdPairsOfALaunch);
      Arrival arrival{.counter = batch.bytes_moved};
      bool queued = false;
      Status copied;
      if (copy.bytes > 0) {
        auto slice = stream.ids->take(count * 2 * sizeof(uint32_t));
        if (!slice.has_value()) return stream.adopted ? too_many_ids(stream) : Status();
        const KernelIds ids = write_ids(batch, copy.done_pairs, count, slice->bytes());
        arrival.ids = *std::move(slice);
        copied = launch_copy(batch, ids, stream.native, queued);
        if (!copied && !queued && copy.done_pairs == 0) return copied;
        if (copied) arrival.bytes = copy.bytes / num_pairs * count;
      }
      copy.done_pairs += copied ? count : left;
      note_copy(stream, copied, queued, std::move(arrival));
    } while (!copy.is_done());
    return {};
  }

  [[nodiscard]] Status too_many_ids(const Stream& stream) const {
    return make_error(
        ErrorCode::kExhausted,
        format_text("kernels on stream {}, which was adopted, have no room for more ids: it is for "
                    "{} blocks at a time; wait for some to end, or copy by the engine",
                    stream.name, kIdPairs));
  }

  [[nodiscard]] static KernelIds write_ids(const StridedCopyBatch& batch, size_t first,
                                           size_t count, std::span<std::byte> memory) {
    auto* const from = reinterpret_cast<uint32_t*>(memory.data());
    uint32_t* const to = from + count;
    for (size_t i = 0; i < count; ++i) {
      from[i] = (*batch.from)[first + i].value();
      to[i] = (*batch.to)[first + i].value();
    }
    return {.from = from, .to = to, .count = count};
  }

  static void note_copy(Stream& stream, const Status& copied, bool queued, Arrival arrival) {
    const MutexLock lock(stream.mutex);
    stream.note(copied);
    stream.native_since_mark = stream.native_since_mark || queued;
    if (arrival.counter != nullptr || !arrival.ids.bytes().empty()) {
      stream.arrivals.push_back(std::move(arrival));
    }
  }

  /// Before anything waits in the GPU. Without them the device has one method less.
  void find_kernels() {
    kernels_ = internal::kernel_support(gpu().sm);
    if (kernels_ == KernelSupport::kNone) return;
    const CudaContext::Scope scope(*context_);
    cudaStream_t stream = nullptr;
    Status loaded;
    if (const cudaError_t code = ::cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking)) {
      loaded = make_error(cuda_error("no stream", code));
    } else if (const auto memory = take_id_memory(); !memory) {
      loaded = make_error(memory.error());
    } else {
      std::fill_n(*memory, kIdBytes, std::byte{0});
      loaded = internal::load_kernels(stream, {*memory, kIdBytes});
      give_back_id_memory(*memory);
    }
    if (stream != nullptr) static_cast<void>(::cudaStreamDestroy(stream));
    if (!loaded) kernels_ = KernelSupport::kNone;
  }

  /// kIdBytes that the host and the GPU share. It comes back when its stream has gone, and stays
  /// until the device goes: giving it to the driver would wait for the GPU.
  [[nodiscard]] Result<std::byte*> take_id_memory() {
    const MutexLock lock(ids_mutex_);
    if (free_id_memory_.empty()) {
      void* memory = nullptr;
      if (const cudaError_t code =
              ::cudaHostAlloc(&memory, kIdBytes, cudaHostAllocMapped | cudaHostAllocPortable)) {
        return make_error(cuda_error("no memory for block ids", code));
      }
      id_memory_.push_back(memory);
      return static_cast<std::byte*>(memory);
    }
    std::byte* const memory = free_id_memory_.back();
    free_id_memory_.pop_back();
    return memory;
  }
  void give_back_id_memory(std::byte* memory) {
    const MutexLock lock(ids_mutex_);
    free_id_memory_.push_back(memory);
  }

  [[nodiscard]] std::unique_ptr<CopyList> take_list() {
    {
      const MutexLock lock(lists_mutex_);
      if (!lists_.empty()) {
        std::unique_ptr<CopyList> list = std::move(lists_.back());
        lists_.pop_back();
        return list;
      }
    }
    return std::make_unique<CopyList>();
  }
  void give_back(std::unique_ptr<CopyList> list) {
    list->clear();
    const MutexLock lock(lists_mutex_);
    lists_.push_back(std::move(list));
  }

  // --- gates: where an adopted stream waits for the host
  // -------------------------------------------

  [[nodiscard]] Result<volatile uint32_t*> take_gate_word() KVBM_REQUIRES(mutex_) {
    if (gate_words_ == nullptr) {
      void* words = nullptr;
      const size_t bytes = kGateWords * kGateWordStride * sizeof(uint32_t);
      if (const cudaError_t code =
              ::cudaHostAlloc(&words, bytes, cudaHostAllocMapped | cudaHostAllocPortable)) {
        return make_error(cuda_error("no memory that the host and the GPU share", code));
      }
      gate_words_ = static_cast<volatile uint32_t*>(words);
      for (size_t i = 0; i < kGateWords; ++i) {
        gate_words_[i * kGateWordStride] = 0;
        free_gate_words_.push_back(gate_words_ + i * kGateWordStride);
      }
    }
    if (free_gate_words_.empty()) {
      return make_error(ErrorCode::kExhausted,
                        format_text("{} has adopted {} streams already", name_, kGateWords));
    }
    volatile uint32_t* const word = free_gate_words_.back();
    free_gate_words_.pop_back();
    return word;
  }

  /// Makes the native stream wait; its number. Requires: `submit` of an adopted stream.
  [[nodiscard]] Result<uint32_t> close_gate(Stream& stream) {
    uint32_t gate = 0;
    volatile uint32_t* word = nullptr;
    {
      const MutexLock lock(stream.mutex);
      gate = stream.first_gate + static_cast<uint32_t>(stream.gates.size());
      word = stream.gate_word;
    }
    constexpr uint32_t kAtLeast = 0;  // CU_STREAM_WAIT_VALUE_GEQ, which counts in circles
    const int code = context_->driver().stream_wait_value(
        stream.native, reinterpret_cast<uintptr_t>(word), gate, kAtLeast);
    if (code != 0) {
      return make_error(Error(ErrorCode::kUnsupported,
                              format_text("stream {} cannot wait for the host", stream.name),
                              NativeDomain::kCuda, code));
    }
    const MutexLock lock(stream.mutex);
    stream.anything_since_record = true;
    stream.native_since_mark = true;
    stream.gates.push_back({.segment = stream.segment, .is_open = false, .outcome = {}});
    return gate;
  }

  Status wait_at_gate(const StreamPointer& stream, const Event& event) {
    uint32_t gate = 0;
    {
      const CudaContext::Scope scope(*context_);
      const MutexLock submit(stream->submit);
      KVBM_TRY(accepts(*stream));
      KVBM_TRY(not_capturing(*stream));
      KVBM_ASSIGN_OR_RETURN(gate, close_gate(*stream));
    }
    event.on_done([core = weak_from_this(), weak = std::weak_ptr<Stream>(stream),
                   gate](const Status& outcome) noexcept {
      const std::shared_ptr<Core> self = core.lock();
      const StreamPointer waiting = weak.lock();
      if (self != nullptr && waiting != nullptr) self->open_gate(*waiting, gate, outcome);
    });
    return {};
  }

  /// Outcomes count in the order of the gates, whatever order they open in; the GPU passes a gate
  /// when all before it are open.
  static void open_gate(Stream& stream, uint32_t gate, const Status& outcome) {
    const MutexLock lock(stream.mutex);
    const uint32_t at = gate - stream.first_gate;
    if (at >= stream.gates.size() || stream.gates[at].is_open) return;
    stream.gates[at].is_open = true;
    stream.gates[at].outcome = outcome;
    while (!stream.gates.empty() && stream.gates.front().is_open) {
      const CudaGate open = std::move(stream.gates.front());
      stream.gates.pop_front();
      stream.note(open.segment, open.outcome);
      std::atomic_thread_fence(std::memory_order_release);
      *stream.gate_word = stream.first_gate++;
    }
  }

  // --- the watcher
  // --------------------------------------------------------------------------------

  /// Copies without an event behind them are watched too, if somebody asks for their end.
  void watch_arrivals(const StreamPointer& stream) {
    bool wake = false;
    {
      const MutexLock lock(stream->mutex);
      if (!stream->arrivals.empty()) wake = !std::exchange(stream->watched, true);
    }
    if (wake) watch_too(stream);
  }

  void watch_too(const StreamPointer& stream) {
    const MutexLock lock(watch_mutex_);
    fresh_.push_back(stream);
    if (watcher_sleeps_) wake_.notify_one();
  }

  void watch() {
    static_cast<void>(::prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL));
    const CudaContext::Scope scope(*context_);
    std::vector<StreamPointer> active;
    TimePoint last_progress = options_.executor.clock().now();
    Duration nap_average = kNap;
    bool naps_are_late = false;
    bool progress = true;
    for (;;) {
      {
        const MutexLock lock(watch_mutex_);
        while (fresh_.empty()) {
          if (active.empty()) {
            if (watch_ends_) return;
            watcher_sleeps_ = true;
            wake_.wait(watch_mutex_);
          } else {
            const TimePoint now = options_.executor.clock().now();
            if (progress) last_progress = now;
            if (now - last_progress < (naps_are_late ? kLongSpin : kSpin)) break;
            watcher_sleeps_ = true;
            if (!wake_.wait_until(watch_mutex_, now + kNap)) {
              const Duration nap = options_.executor.clock().now() - now;
              nap_average += (nap - nap_average) / 8;
              naps_are_late = nap_average > kLongNap;
            }
            watcher_sleeps_ = false;
            break;
          }
          watcher_sleeps_ = false;
        }
        if (!fresh_.empty()) last_progress = options_.executor.clock().now();
        for (StreamPointer& stream : fresh_) active.push_back(std::move(stream));
        fresh_.clear();
      }
      progress = false;
      std::erase_if(active, [&](const StreamPointer& stream) { return look_at(stream, progress); });
      if (!progress) std::this_thread::yield();
    }
  }

  /// Ends what has ended; true once there is nothing to look at any more.
  bool look_at(const StreamPointer& stream, bool& progress) {
    for (;;) {
      std::shared_ptr<NativeCudaEvent> oldest;
      bool gone = false;
      {
        const MutexLock lock(stream->mutex);
        if (stream->marks.empty()) {
          if (!stream->arrivals.empty()) {
            if (++stream->polls_without_mark < kPatience) return false;
          } else {
            stream->polls_without_mark = 0;
            stream->watched = false;
            gone = stream->destroyed && stream->is_drained();
            if (!gone) return true;
          }
        } else {
          oldest = stream->marks.front().event;
        }
      }
      if (gone) {
        forget(stream);
        return true;
      }
      if (oldest == nullptr) {
        mark_arrivals(stream);
        continue;
      }
      Status outcome = alive();
      if (outcome) {
        const cudaError_t code = ::cudaEventQuery(oldest->handle);
        if (code == cudaErrorNotReady) {
          static_cast<void>(::cudaGetLastError());
          return false;
        }
        if (code != cudaSuccess) outcome = lose(cuda_error("the GPU failed", code));
      }
      oldest.reset();
      CudaMark mark;
      {
        const MutexLock lock(stream->mutex);
        mark = stream->marks.pop();
      }
      progress = true;
      finish(stream, std::move(mark), outcome);
    }
  }

  /// Copies have no event behind them after a while: gives them one. What is in `arrivals` is on
  /// the native stream already, so the event comes behind it.
  void mark_arrivals(const StreamPointer& stream) {
    std::vector<Arrival> lost;
    const MutexLock lock(stream->mutex);
    stream->polls_without_mark = 0;
    if (stream->arrivals.empty() || (alive() && !not_capturing(*stream))) return;
    CudaMark mark;
    if (auto event = record_native(*stream)) {
      mark.event = *std::move(event);
      static_cast<void>(push(*stream, std::move(mark)));
    } else {
      lost.swap(stream->arrivals);  // the GPU is gone, and touches nothing any more
    }
  }

  void finish(const StreamPointer& stream, CudaMark mark, const Status& gpu) {
    for (Arrival& arrival : mark.arrivals) {
      arrival.ids.reset();
      if (gpu && arrival.counter != nullptr) {
        arrival.counter->fetch_add(arrival.bytes, std::memory_order_relaxed);
      }
      arrival.counter.reset();
    }
    if (mark.arrivals.capacity() > 0) {
      mark.arrivals.clear();
      const MutexLock lock(stream->mutex);
      if (stream->spare.capacity() < mark.arrivals.capacity()) stream->spare.swap(mark.arrivals);
    }
    mark.event.reset();
    if (mark.source.has_value()) {
      mark.source->resolve(gpu ? mark.outcome : gpu);
    } else if (mark.task) {
      run_at_gate(stream, std::move(mark));
    } else if (mark.resumes) {
      {
        const MutexLock lock(stream->mutex);
        if (stream->state != Stream::State::kParked) return;  // the device is being destroyed
        stream->state = Stream::State::kScheduled;
      }
      schedule(stream);
    }
  }

  void run_at_gate(const StreamPointer& stream, CudaMark mark) {
    const auto gate = static_cast<uint32_t>(mark.gate);
    const Status posted = tasks_->try_post([stream, task = std::move(mark.task), gate]() mutable {
      const Status outcome = run_task(task);
      task.reset();
      open_gate(*stream, gate, outcome);
    });
    if (!posted) open_gate(*stream, gate, destroyed_error(*stream));
  }

  /// Requires: drained, and nobody finds it as other than destroyed.
  void forget(const StreamPointer& stream) {
    volatile uint32_t* word = nullptr;
    {
      const MutexLock lock(stream->mutex);
      word = std::exchange(stream->gate_word, nullptr);
    }
    {
      const MutexLock lock(mutex_);
      if (closing_.load(std::memory_order_acquire) || streams_.erase(stream->id) == 0) return;
      if (word != nullptr) free_gate_words_.push_back(word);
    }
    if (stream->ids != nullptr) give_back_id_memory(stream->ids->memory().data());
    if (stream->adopted) return;
    const CudaContext::Scope scope(*context_);
    static_cast<void>(::cudaStreamDestroy(stream->native));  // after what it still has
  }

  const CudaDeviceOptions options_;
  const std::string name_;
  const std::shared_ptr<const CudaContext> context_;
  const std::shared_ptr<CudaMemory> memory_;
  const std::shared_ptr<CudaPinner> pinner_;
  CudaEvents events_;

  Mutex mutex_{LockRank::kDevice, "device.cuda", 4};
  std::map<uint64_t, StreamPointer> streams_ KVBM_GUARDED_BY(mutex_);
  uint64_t last_id_ KVBM_GUARDED_BY(mutex_) = 0;
  volatile uint32_t* gate_words_ = nullptr;  // made under mutex_, never changed afterwards
  std::vector<volatile uint32_t*> free_gate_words_ KVBM_GUARDED_BY(mutex_);
  std::atomic<bool> closing_{false};

  mutable Mutex loss_mutex_{LockRank::kDevice, "device.cuda_loss", 0};
  std::optional<Error> loss_ KVBM_GUARDED_BY(loss_mutex_);
  std::atomic<bool> lost_{false};

  Mutex lists_mutex_{LockRank::kDevice, "device.cuda_lists", 0};
  std::vector<std::unique_ptr<CopyList>> lists_ KVBM_GUARDED_BY(lists_mutex_);

  KernelSupport kernels_ = KernelSupport::kNone;  // of start(), never changed afterwards
  Mutex ids_mutex_{LockRank::kDevice, "device.cuda_ids", 0};
  std::vector<void*> id_memory_ KVBM_GUARDED_BY(ids_mutex_);
  std::vector<std::byte*> free_id_memory_ KVBM_GUARDED_BY(ids_mutex_);

  Mutex watch_mutex_{LockRank::kDevice, "device.cuda_watch", 1};
  CondVar wake_;
  std::vector<StreamPointer> fresh_ KVBM_GUARDED_BY(watch_mutex_);
  bool watcher_sleeps_ KVBM_GUARDED_BY(watch_mutex_) = false;
  bool watch_ends_ KVBM_GUARDED_BY(watch_mutex_) = false;

  std::unique_ptr<TaskQueue> tasks_;
  std::unique_ptr<TaskQueue> watch_;
};

Result<std::unique_ptr<CudaDevice>> CudaDevice::create(const CudaDeviceOptions& options) {
  if (options.num_threads == 0 || options.max_streams == 0 || options.max_queued == 0) {
    return make_error(
        ErrorCode::kInvalidArgument,
        "a CUDA device needs at least one thread, one stream and one queued operation");
  }
  KVBM_ASSIGN_OR_RETURN(auto context, CudaContext::open(options.ordinal));
  KVBM_ASSIGN_OR_RETURN(
      auto memory,
      CudaMemory::create(context, {.reserve_bytes = options.pool_reserve_bytes,
                                   .release_threshold = options.pool_release_threshold}));
  // Of each stream at most one turn and one task of an adopted stream wait at a time.
  KVBM_ASSIGN_OR_RETURN(
      auto tasks, options.executor.create_queue({.name = format_text("cuda{}", options.ordinal),
                                                 .num_threads = options.num_threads,
                                                 .capacity = 2 * options.max_streams}));
  KVBM_ASSIGN_OR_RETURN(
      auto watch,
      options.executor.create_queue(
          {.name = format_text("cuda{}-watch", options.ordinal), .num_threads = 1, .capacity = 1}));
  auto core = std::make_shared<Core>(options, std::move(context), std::move(memory),
                                     std::move(tasks), std::move(watch));
  KVBM_TRY(core->start());
  return std::unique_ptr<CudaDevice>(new CudaDevice(std::move(core)));
}

CudaDevice::CudaDevice(std::shared_ptr<Core> core) : core_(std::move(core)) {}

CudaDevice::~CudaDevice() { core_->close(); }

Result<std::vector<CudaDeviceInfo>> CudaDevice::find_all() {
  KVBM_ASSIGN_OR_RETURN(const int32_t count, CudaGpu::count());
  std::vector<CudaDeviceInfo> all;
  for (int32_t ordinal = 0; ordinal < count; ++ordinal) {
    KVBM_ASSIGN_OR_RETURN(CudaGpu gpu, CudaGpu::find(ordinal));
    all.push_back({.ordinal = ordinal,
                   .name = std::move(gpu.name),
                   .sm = gpu.sm,
                   .total_bytes = gpu.total_bytes,
                   .pci_address = std::move(gpu.pci_address),
                   .numa_node = gpu.numa_node,
                   .driver_version = gpu.driver_version,
                   .runtime_version = gpu.runtime_version,
                   .has_memcpy_batch = gpu.has_memcpy_batch});
  }
  return all;
}

Result<StreamRef> CudaDevice::adopt_stream(uintptr_t native_stream, std::string_view name) {
  return core_->adopt_stream(native_stream, name);
}

std::shared_ptr<HostPinner> CudaDevice::pinner() const { return core_->pinner(); }

DeviceInfo CudaDevice::info() const {
  return {.name = core_->gpu().name,
          .kind = DeviceKind::kCuda,
          .ordinal = core_->gpu().ordinal,
          .total_bytes = core_->gpu().total_bytes,
          .free_bytes = core_->memory()->free_bytes(),
          .capabilities = {.kernel_copies = core_->kernels() != KernelSupport::kNone,
                           .kernels_from_ptx = core_->kernels() == KernelSupport::kFromPtx,
                           .page_bytes = 256}};
}

Result<StreamRef> CudaDevice::create_stream(std::string_view name) {
  return core_->create_stream(name);
}

Status CudaDevice::destroy_stream(StreamRef stream) { return core_->destroy_stream(stream); }

Result<DeviceMemory> CudaDevice::allocate(uint64_t size_bytes, uint64_t alignment) {
  if (size_bytes == 0 || !std::has_single_bit(alignment)) {
    return make_error(ErrorCode::kInvalidArgument,
                      format_text("asked for {} bytes aligned to {}; ask for at least one byte and "
                                  "a power of two",
                                  size_bytes, alignment));
  }
  KVBM_ASSIGN_OR_RETURN(std::byte* const data, core_->memory()->allocate(size_bytes, alignment));
  return DeviceMemory(data, size_bytes, core_->memory());
}

Status CudaDevice::copy(StreamRef stream, StridedCopyBatch batch) {
  KVBM_ASSIGN_OR_RETURN(const uint64_t bytes, planned_bytes(batch));
  if (batch.method == CopyMethod::kKernel && core_->kernels() == KernelSupport::kNone) {
    return make_error(ErrorCode::kUnsupported,
                      format_text("this build has no kernels for {} (SM {}.{}); copy by the engine",
                                  core_->gpu().name, core_->gpu().sm / 10, core_->gpu().sm % 10));
  }
  return core_->copy(stream, std::move(batch), bytes);
}

Status CudaDevice::launch(StreamRef stream, StreamTask task) {
  if (!task) return make_error(ErrorCode::kInvalidArgument, "asked to launch no task");
  return core_->launch(stream, std::move(task));
}

Event CudaDevice::record(StreamRef stream) { return core_->record(stream); }

Status CudaDevice::wait(StreamRef stream, const Event& event) { return core_->wait(stream, event); }

Executor& CudaDevice::executor() const noexcept { return core_->executor(); }

}  // namespace kvbm
