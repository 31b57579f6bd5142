// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cuda/internal/cuda_watcher.hpp"

#include <cuda_runtime_api.h>
#include <sys/prctl.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <thread>
#include <utility>

namespace kvbm::internal {

namespace {

/// How long the watcher spins after the last thing that happened.
constexpr Duration kSpin = std::chrono::microseconds(60);
/// How long it sleeps otherwise. Where a nap takes longer than kLongNap (a virtual machine whose
/// timers are late) it spins for longer.
constexpr Duration kLongSpin = std::chrono::milliseconds(20);
constexpr Duration kNap = std::chrono::microseconds(20);
constexpr Duration kLongNap = std::chrono::microseconds(50);
/// For so long after the last thing that happened it naps even with nothing to watch.
constexpr Duration kLinger = std::chrono::milliseconds(5);
/// After which copies that nobody records an event behind get a mark.
constexpr Duration kPatience = std::chrono::microseconds(50);

}  // namespace

struct CudaWatcher::Round {
  TimePoint start;
  bool progress = false;
  bool end_is_near = false;  ///< of copies
  Duration nap = kNap;       ///< until one may be

  void expect(TimePoint begin, TimePoint end) {
    const LikelyEnd near = likely_end(begin, end);
    end_is_near = end_is_near || (start >= near.earliest && start <= near.latest);
    if (start < near.earliest) nap = std::min(nap, near.earliest - start);
  }
};

CudaWatcher::CudaWatcher(Listener& listener, std::shared_ptr<const CudaContext> context,
                         CudaHealth& health, Executor& executor, std::unique_ptr<TaskQueue> queue)
    : listener_(listener),
      context_(std::move(context)),
      health_(health),
      executor_(executor),
      events_(context_),
      queue_(std::move(queue)) {}

Status CudaWatcher::start() {
  return queue_->post([this] { watch(); });
}

void CudaWatcher::stop() {
  {
    const MutexLock lock(mutex_);
    ends_ = true;
    wake_.notify_all();
  }
  queue_->stop();
}

Result<std::shared_ptr<NativeCudaEvent>> CudaWatcher::record_native(CudaStream& stream) {
  KVBM_ASSIGN_OR_RETURN(auto event, events_.take());
  if (const cudaError_t code = ::cudaEventRecord(event->handle, stream.native)) {
    return health_.lose(cuda_error("cannot record an event", code));
  }
  return event;
}

Result<std::shared_ptr<const NativeEvent>> CudaWatcher::record_mark(const StreamPointer& stream,
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
  std::optional<TimePoint> first_look;
  {
    const MutexLock lock(stream->mutex);
    stream->marks.make_room(1);  // before the segment is closed, which nobody would hear of
    mark.segment = stream->close_segment();
    mark.outcome = stream->recorded;
    if (stream->gates.empty()) {
      mark.event->outcome = stream->recorded;
      native = mark.event;
    }
    first_look = push(*stream, std::move(mark));  // a gate that opens from now on finds it
  }
  if (first_look) watch_too(stream, *first_look);
  return native;
}

std::optional<TimePoint> CudaWatcher::push(CudaStream& stream, CudaMark&& mark) const {
  const TimePoint time = now();
  const auto end = stream.pace.expected_end(time, stream.bytes_since_mark);
  mark.num_arrivals = stream.num_unmarked;
  mark.bytes = stream.bytes_since_mark;
  mark.recorded_at = time;
  stream.marks.push(std::move(mark));  // before anything changes
  stream.num_unmarked = 0;
  stream.bytes_since_mark = 0;
  stream.unmarked_at.reset();
  stream.native_since_mark = false;
  if (std::exchange(stream.watched, true)) return std::nullopt;
  return end ? likely_end(time, *end).earliest : time;
}

void CudaWatcher::push_mark(const StreamPointer& stream, CudaMark mark) {
  std::optional<TimePoint> first_look;
  const bool parks = mark.resumes;
  {
    const MutexLock lock(stream->mutex);
    first_look = push(*stream, std::move(mark));
    if (parks) stream->state = CudaStream::State::kParked;
  }
  if (first_look) watch_too(stream, *first_look);
}

void CudaWatcher::watch_arrivals(const StreamPointer& stream) {
  bool is_new = false;
  {
    const MutexLock lock(stream->mutex);
    if (stream->num_unmarked > 0) is_new = !std::exchange(stream->watched, true);
  }
  if (is_new) watch_too(stream, now());
}

void CudaWatcher::watch_too(const StreamPointer& stream, TimePoint first_look) {
  bool wake = false;
  {
    const MutexLock lock(mutex_);
    fresh_.push(stream);
    any_fresh_.store(true, std::memory_order_relaxed);
    wake = sleeps_until_ && first_look < *sleeps_until_;
  }
  if (wake) wake_.notify_one();  // it would wait for the lock otherwise, and be woken again
}

void CudaWatcher::watch() {
  static_cast<void>(::prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL));
  const CudaContext::Scope scope(*context_);
  CudaStreamList active;
  Round round{.start = now()};
  TimePoint last_progress = round.start;
  Duration late_average{0};
  bool naps_are_late = false;
  for (;;) {
    // What ends is often followed by the next; who brings that need not wake a thread then.
    while (active.empty() && !any_fresh_.load(std::memory_order_relaxed) &&
           now() - last_progress < kSpin) {
      std::this_thread::yield();
    }
    {
      const MutexLock lock(mutex_);
      while (fresh_.empty()) {
        const TimePoint time = now();
        TimePoint end = kNever;
        if (active.empty()) {
          if (ends_) return;
          if (!naps_are_late && time - last_progress < kLinger) end = time + kLongNap;
        } else {
          if (round.end_is_near || time - last_progress < (naps_are_late ? kLongSpin : kSpin)) {
            break;
          }
          end = time + round.nap;
        }
        sleeps_until_ = end;
        if (end == kNever) {
          wake_.wait(mutex_);
        } else if (!wake_.wait_until(mutex_, end)) {
          late_average += (now() - end - late_average) / 8;
          naps_are_late = late_average > kLongNap - kNap;
        }
        sleeps_until_.reset();
        if (!active.empty()) break;
      }
      if (!fresh_.empty()) last_progress = now();
      while (!fresh_.empty()) active.push(fresh_.pop());
      any_fresh_.store(false, std::memory_order_relaxed);
    }
    round = {.start = now()};
    CudaStreamList seen;
    while (!active.empty()) {
      // Out of the list before its end: it may be fresh again by then.
      StreamPointer stream = active.pop();
      if (!look_at(stream, round)) seen.push(std::move(stream));
    }
    active = std::move(seen);
    if (round.progress) last_progress = now();
    if (!round.progress && !round.end_is_near) std::this_thread::yield();
  }
}

bool CudaWatcher::look_at(const StreamPointer& stream, Round& round) {
  for (;;) {
    std::shared_ptr<NativeCudaEvent> oldest;
    std::optional<TimePoint> end;
    TimePoint begin;
    bool gone = false;
    {
      const MutexLock lock(stream->mutex);
      if (stream->marks.empty()) {
        if (!stream->arrivals.empty()) {
          if (!stream->unmarked_at) stream->unmarked_at = round.start;
          if (round.start - *stream->unmarked_at < kPatience) return false;
        } else {
          stream->watched = false;
          gone = stream->destroyed && stream->is_drained();
          if (!gone) return true;
        }
      } else {
        const CudaMark& mark = stream->marks.front();
        oldest = mark.event;
        begin = mark.recorded_at;
        end = stream->pace.expected_end(mark.recorded_at, mark.bytes);
      }
    }
    if (gone) {
      listener_.on_drained(stream);
      return true;
    }
    if (oldest == nullptr) {
      mark_arrivals(stream);
      continue;
    }
    std::optional<Status> outcome = outcome_of(*oldest);
    if (!outcome) {
      if (end.has_value()) round.expect(begin, *end);
      return false;
    }
    oldest.reset();
    size_t num_arrivals = 0;
    {
      const MutexLock lock(stream->mutex);
      const CudaMark& mark = stream->marks.front();
      num_arrivals = mark.num_arrivals;
      stream->pace.on_end(mark.recorded_at, mark.bytes, now());
    }
    round.progress = true;
    // Before the mark goes: who finds none takes what was copied for counted.
    finish(*stream, num_arrivals, outcome->has_value());
    CudaMark mark;
    {
      const MutexLock lock(stream->mutex);
      mark = stream->marks.pop();
    }
    mark.event.reset();
    if (mark.source.has_value()) {
      mark.source->resolve(std::move(*outcome ? mark.outcome : *outcome));
    } else {
      listener_.on_reached(stream, std::move(mark));
    }
  }
}

std::optional<Status> CudaWatcher::outcome_of(const NativeCudaEvent& event) noexcept {
  try {
    Status outcome = health_.alive();
    if (!outcome) return outcome;
    const cudaError_t code = ::cudaEventQuery(event.handle);
    if (code == cudaErrorNotReady) {
      static_cast<void>(::cudaGetLastError());
      return std::nullopt;
    }
    if (code != cudaSuccess) outcome = health_.lose(cuda_error("the GPU failed", code));
    // Memcheck follows this, and takes memory for used after it went back to a pool otherwise.
    static_cast<void>(::cudaEventSynchronize(event.handle));
    return outcome;
  } catch (...) {
    return std::nullopt;
  }
}

/// Copies have no event behind them after a while: gives them one. What is among `arrivals` is on
/// the native stream already, so the event comes behind it. Without memory it is tried again.
void CudaWatcher::mark_arrivals(const StreamPointer& stream) noexcept {
  Ring<Arrival> lost;
  const MutexLock lock(stream->mutex);
  stream->unmarked_at.reset();
  if (stream->num_unmarked == 0) return;
  try {
    if (health_.alive() && !stream->check_not_capturing()) return;
    CudaMark mark;
    if (auto event = record_native(*stream)) {
      mark.event = *std::move(event);
      static_cast<void>(push(*stream, std::move(mark)));
    } else if (!health_.alive() && stream->marks.empty()) {
      // The GPU is gone, and touches nothing any more.
      std::swap(lost, stream->arrivals);
      stream->num_unmarked = 0;
    }
  } catch (...) {  // NOLINT(bugprone-empty-catch): see above
  }
}

void CudaWatcher::finish(CudaStream& stream, size_t count, bool arrived) {
  for (; count > 0; --count) {
    Arrival arrival;  // let go of without the lock
    {
      const MutexLock lock(stream.mutex);
      arrival = stream.arrivals.pop();
    }
    arrival.ids.reset();
    if (arrived && arrival.counter != nullptr) {
      arrival.counter->fetch_add(arrival.bytes, std::memory_order_relaxed);
    }
    arrival.counter.reset();
    if (arrival.on_end) arrival.on_end(arrived);
  }
}

}  // namespace kvbm::internal
