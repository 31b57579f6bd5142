// SPDX-License-Identifier: Apache-2.0
// CudaStream: the state of one stream of a CudaDevice.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "kvbm/adapters/cuda/internal/copy_pace.hpp"
#include "kvbm/adapters/cuda/internal/cuda_events.hpp"
#include "kvbm/adapters/cuda/internal/cuda_ring.hpp"
#include "kvbm/adapters/cuda/internal/pinned_ring.hpp"
#include "kvbm/base/clock.hpp"
#include "kvbm/base/completion.hpp"
#include "kvbm/base/memory_pool.hpp"
#include "kvbm/base/mutex.hpp"
#include "kvbm/base/ring.hpp"
#include "kvbm/base/unique_function.hpp"
#include "kvbm/device/device.hpp"

namespace kvbm::internal {

struct QueuedCopy {
  StridedCopyBatch batch;
  uint64_t bytes = 0;       ///< planned
  size_t done_pairs = 0;    ///< of ids: on the native stream already, or left out
  bool needs_room = false;  ///< for ids, before more of them can be put on
  std::optional<RingPath> ring = std::nullopt;  ///< of a copy through the ring
  /// Of such a copy that has begun: the ids of what is being put on, and how many of them are.
  PinnedRing::Slice ring_ids = {};
  size_t ring_done = 0;

  [[nodiscard]] bool is_done() const noexcept { return done_pairs == batch.pairs->size(); }
  /// Whether it goes on behind what it has put on itself.
  [[nodiscard]] bool is_under_way() const noexcept { return !ring_ids.bytes().empty(); }
};
struct QueuedPattern {
  PatternBatch batch;
};
struct QueuedChecksum {
  ChecksumBatch batch;
};
struct QueuedLaunch {
  StreamTask task;
};
struct QueuedRecord {
  CompletionSource source;
};
// NOLINTNEXTLINE(bugprone-exception-escape): moving a Status or a pointer does not throw.
struct QueuedWait {
  Event event;
};
using CudaOperation =
    std::variant<QueuedCopy, QueuedPattern, QueuedChecksum, QueuedLaunch, QueuedRecord, QueuedWait>;

using CudaOperations = std::deque<CudaOperation, PoolAllocator<CudaOperation>>;

/// A batch on its way: the counter, if there is one, grows when it has arrived, and is let go of
/// when it has ended, as are the ids that a kernel reads.
struct Arrival {
  std::shared_ptr<std::atomic<uint64_t>> counter;
  uint64_t bytes = 0;
  PinnedRing::Slice ids = {};
  /// Of a pattern or of checksums: called with whether it has arrived, where the GPU is known to
  /// have ended it.
  UniqueFunction<void(bool arrived)> on_end = {};
};

/// A task of an adopted stream. In one piece, so that whoever posts it needs no memory.
struct GateTask {
  StreamTask task;
  uint32_t gate = 0;  ///< that its end opens
};

/// A recorded event that somebody waits for, and what follows from it.
struct CudaMark {
  std::shared_ptr<NativeCudaEvent> event;
  size_t num_arrivals = 0;  ///< of those before it, since the mark before
  uint64_t bytes = 0;       ///< copied since the mark before
  TimePoint recorded_at = {};
  std::optional<CompletionSource> source;  ///< of record()
  Status outcome;                          ///< what `source` resolves with, unless the GPU failed
  uint64_t segment = 0;                    ///< the operations between two records that it tells of
  std::unique_ptr<GateTask> task;          ///< of launch() on an adopted stream
  bool resumes = false;                    ///< the stream goes on with what is queued on the host
};

/// A wait of an adopted stream for the host, in the order of the native stream.
struct CudaGate {
  uint64_t segment = 0;
  bool is_open = false;
  Status outcome;
};

/// Threads: see the members.
struct CudaStream {
  enum class State {
    kIdle,       // nothing is queued on the host: calls go straight to the native stream
    kScheduled,  // a task of the queue has the stream or will
    kParked,     // an event, or a mark, brings it back
  };

  CudaStream(uint64_t stream_id, std::string_view stream_name, CUstream_st* native_stream,
             bool is_adopted, const MemoryPool& pool)
      : id(stream_id),
        name(stream_name),
        native(native_stream),
        adopted(is_adopted),
        operations(PoolAllocator<CudaOperation>(pool)) {}

  const uint64_t id;
  const std::string name;
  CUstream_st* const native;
  const bool adopted;

  /// Held by a caller for the whole of an operation, calls of the driver among it: they are the
  /// order of the stream.
  Mutex submit{LockRank::kDevice, "device.cuda_submit", 3};

  /// Where kernels find their ids; null before the first. A ring for each stream: whoever waits for
  /// room in it waits for copies before its own.
  /// Threads: whoever calls the driver for this stream. Outlives the slices in `arrivals`.
  std::unique_ptr<PinnedRing> ids;

  Mutex mutex{LockRank::kDevice, "device.cuda_stream", 2};
  CudaOperations operations KVBM_GUARDED_BY(mutex);  // not of adopted streams
  State state KVBM_GUARDED_BY(mutex) = State::kIdle;
  bool destroyed KVBM_GUARDED_BY(mutex) = false;

  Ring<CudaMark> marks KVBM_GUARDED_BY(mutex);  // only the watcher takes them out
  // Those of the marks, in their order, then `num_unmarked` since the last one. Only the watcher
  // takes them out.
  Ring<Arrival> arrivals KVBM_GUARDED_BY(mutex);
  size_t num_unmarked KVBM_GUARDED_BY(mutex) = 0;
  bool native_since_mark KVBM_GUARDED_BY(mutex) = false;
  uint64_t bytes_since_mark KVBM_GUARDED_BY(mutex) = 0;
  bool watched KVBM_GUARDED_BY(mutex) = false;
  /// Behind it in a CudaStreamList. Threads: whoever made it watched, then the watcher.
  std::shared_ptr<CudaStream> next;
  /// Since when the watcher knows of arrivals with no mark at all; it alone sets this.
  std::optional<TimePoint> unmarked_at KVBM_GUARDED_BY(mutex);
  CopyPace pace KVBM_GUARDED_BY(mutex);

  // The outcome since the last record, and of it.
  std::optional<Error> failure KVBM_GUARDED_BY(mutex);
  bool anything_since_record KVBM_GUARDED_BY(mutex) = false;
  Status recorded KVBM_GUARDED_BY(mutex);
  uint64_t segment KVBM_GUARDED_BY(mutex) = 1;

  // Adopted streams: gates[i] has the number first_gate + i. All before it are open.
  std::deque<CudaGate> gates KVBM_GUARDED_BY(mutex);
  uint32_t first_gate KVBM_GUARDED_BY(mutex) = 1;
  volatile uint32_t* gate_word KVBM_GUARDED_BY(mutex) = nullptr;  // the last open one, for the GPU

  /// A capture would take our operations into the engine's graph, or be broken by them.
  /// Requires: a Scope of the context. Errors: kRejected.
  [[nodiscard]] Status check_not_capturing() const;

  /// An operation of a segment has ended.
  void note(uint64_t of_segment, const Status& outcome) KVBM_REQUIRES(mutex) {
    if (outcome) return;
    if (of_segment == segment) {
      if (!failure.has_value()) failure = outcome.error();
      return;
    }
    for (size_t i = 0; i < marks.size(); ++i) {
      if (marks[i].segment == of_segment && marks[i].outcome) marks[i].outcome = outcome;
    }
    if (of_segment + 1 == segment && recorded) recorded = outcome;
  }
  void note(const Status& outcome) KVBM_REQUIRES(mutex) {
    anything_since_record = true;
    note(segment, outcome);
  }

  /// Ends a segment if there is anything in it; the number of the last one that has ended.
  uint64_t close_segment() KVBM_REQUIRES(mutex) {
    if (std::exchange(anything_since_record, false)) {
      recorded =
          failure.has_value() ? Status(tl::unexpected<Error>(*std::move(failure))) : Status();
      failure.reset();
      ++segment;
    }
    return segment - 1;
  }

  void add(Arrival arrival) KVBM_REQUIRES(mutex) {
    arrivals.push(std::move(arrival));
    ++num_unmarked;
  }

  /// Whether the GPU may still be at work here.
  [[nodiscard]] bool native_is_open() KVBM_REQUIRES(mutex) {
    return native_since_mark || !marks.empty();
  }
  [[nodiscard]] bool is_drained() KVBM_REQUIRES(mutex) {
    return state == State::kIdle && operations.empty() && marks.empty() && arrivals.empty() &&
           gates.empty();
  }
};

/// Streams that hold on to one another, so that one more needs no memory: a stream is in one list
/// at most. In no order. Threads: one thread at a time.
class CudaStreamList {
 public:
  [[nodiscard]] bool empty() const noexcept { return first_ == nullptr; }
  void push(std::shared_ptr<CudaStream> stream) noexcept {
    stream->next = std::move(first_);
    first_ = std::move(stream);
  }
  /// Requires: not empty.
  [[nodiscard]] std::shared_ptr<CudaStream> pop() noexcept {
    std::shared_ptr<CudaStream> stream = std::move(first_);
    first_ = std::move(stream->next);
    return stream;
  }

 private:
  std::shared_ptr<CudaStream> first_;
};

}  // namespace kvbm::internal
