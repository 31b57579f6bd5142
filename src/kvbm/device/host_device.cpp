// SPDX-License-Identifier: Apache-2.0
#include "kvbm/device/host_device.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <map>
#include <utility>
#include <variant>
#include <vector>

#include "kvbm/base/memory_pool.hpp"
#include "kvbm/base/mutex.hpp"
#include "kvbm/base/ring.hpp"
#include "kvbm/base/text.hpp"
#include "kvbm/base/units.hpp"
#include "kvbm/device/host_pages.hpp"
#include "kvbm/device/machine_memory.hpp"

namespace kvbm {

namespace {

struct QueuedCopy {
  StridedCopyBatch batch;
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
using Operation =
    std::variant<QueuedCopy, QueuedPattern, QueuedChecksum, QueuedLaunch, QueuedRecord, QueuedWait>;

void copy_piece(const StridedPiece& piece, const BlockPairs& pairs) {
  const std::vector<BlockId>& from = pairs.from();
  const std::vector<BlockId>& to = pairs.to();
  const bool blocks_touch =
      std::ranges::all_of(piece.axes, [](const StridedAxis& axis) { return axis.count == 1; }) &&
      piece.src_block_stride == piece.bytes && piece.dst_block_stride == piece.bytes;
  StridedPiece joined = piece;
  for (size_t i = 0; i < from.size();) {
    size_t blocks = 1;
    while (blocks_touch && i + blocks < from.size() &&
           from[i + blocks].value() == uint64_t{from[i].value()} + blocks &&
           to[i + blocks].value() == uint64_t{to[i].value()} + blocks) {
      ++blocks;
    }
    joined.bytes = piece.bytes * blocks;
    copy_on_host(joined, from[i], to[i]);
    i += blocks;
  }
}

void copy_batch(const StridedCopyBatch& batch) {
  for (const StridedPiece& piece : batch.pieces) {
    uint64_t bytes = piece.bytes;
    for (const StridedAxis& axis : piece.axes) bytes *= axis.count;
    if (bytes == 0) continue;
    copy_piece(fold(piece), *batch.pairs);
    if (batch.bytes_moved != nullptr) {
      batch.bytes_moved->fetch_add(bytes * batch.pairs->size(), std::memory_order_relaxed);
    }
  }
}

}  // namespace

class HostDevice::Allocator final : public DeviceAllocator {
 public:
  Allocator(std::optional<uint64_t> limit_bytes, std::filesystem::path machine_root)
      : limit_bytes_(limit_bytes), machine_root_(std::move(machine_root)) {}

  /// Zeros where the kernel says nothing.
  [[nodiscard]] MachineMemory memory() const {
    if (!limit_bytes_.has_value())
      return read_machine_memory(machine_root_).value_or(MachineMemory{});
    return {.total = *limit_bytes_,
            .available = *limit_bytes_ - taken_bytes_.load(std::memory_order_relaxed)};
  }

  [[nodiscard]] Result<HostPages> allocate(uint64_t size_bytes, uint64_t alignment) {
    KVBM_TRY(take(size_bytes));
    auto pages = HostPages::map({.size_bytes = size_bytes, .alignment = alignment});
    if (!pages) taken_bytes_.fetch_sub(size_bytes, std::memory_order_relaxed);
    return pages;
  }

  void free(std::byte* data, uint64_t size_bytes) noexcept override {
    HostPages::unmap(data, size_bytes);
    taken_bytes_.fetch_sub(size_bytes, std::memory_order_relaxed);
  }

 private:
  Status take(uint64_t size_bytes) {
    const auto exhausted = [size_bytes](uint64_t free_bytes) {
      return make_error(ErrorCode::kExhausted,
                        format_text("asked for {} of host device memory, {} are free",
                                    format_size(size_bytes), format_size(free_bytes)));
    };
    if (!limit_bytes_.has_value()) {
      const MachineMemory machine = memory();
      if (machine.total != 0 && size_bytes > machine.available) {
        return exhausted(machine.available);
      }
      taken_bytes_.fetch_add(size_bytes, std::memory_order_relaxed);
      return {};
    }
    uint64_t taken = taken_bytes_.load(std::memory_order_relaxed);
    do {
      if (size_bytes > *limit_bytes_ - taken) return exhausted(*limit_bytes_ - taken);
    } while (
        !taken_bytes_.compare_exchange_weak(taken, taken + size_bytes, std::memory_order_relaxed));
    return {};
  }

  const std::optional<uint64_t> limit_bytes_;
  const std::filesystem::path machine_root_;
  std::atomic<uint64_t> taken_bytes_{0};
};

struct HostDevice::Stream {
  enum class State {
    kIdle,       // nothing to do; nobody looks at it
    kScheduled,  // a task of the queue runs it or will
    kParked,     // an event brings it back
  };

  Stream(uint64_t stream_id, std::string_view stream_name) : id(stream_id), name(stream_name) {}

  const uint64_t id;
  const std::string name;

  Mutex mutex{LockRank::kDevice, "device.stream"};
  Ring<Operation> operations KVBM_GUARDED_BY(mutex);
  State state KVBM_GUARDED_BY(mutex) = State::kIdle;
  bool destroyed KVBM_GUARDED_BY(mutex) = false;

  // The outcome since the last record and the one before it. Belongs to whoever moved the stream
  // out of kIdle or kParked, until it is put back there; under the mutex to anyone while it is
  // kIdle.
  std::optional<Error> failure;
  bool anything_since_record = false;
  Status recorded;

  void note(const Status& outcome) {
    anything_since_record = true;
    if (!outcome && !failure.has_value()) failure = outcome.error();
  }

  [[nodiscard]] const Status& take_outcome() {
    if (std::exchange(anything_since_record, false)) {
      recorded =
          failure.has_value() ? Status(tl::unexpected<Error>(*std::move(failure))) : Status();
      failure.reset();
    }
    return recorded;
  }
};

class HostDevice::Core : public std::enable_shared_from_this<Core> {
 public:
  Core(HostDeviceOptions options, std::unique_ptr<TaskQueue> queue)
      : options_(std::move(options)), queue_(std::move(queue)) {}

  [[nodiscard]] const HostDeviceOptions& options() const noexcept { return options_; }

  [[nodiscard]] Result<StreamRef> create_stream(std::string_view name) {
    const MutexLock lock(mutex_);
    if (closing_) return unavailable();
    if (streams_.size() >= options_.max_streams) {
      return make_error(ErrorCode::kExhausted,
                        format_text("{} has {} streams already; destroy some", options_.name,
                                    options_.max_streams));
    }
    const uint64_t id = ++last_id_;
    streams_.emplace(id, std::make_shared<Stream>(id, name));
    return StreamRef{id};
  }

  Status destroy_stream(StreamRef ref) {
    KVBM_ASSIGN_OR_RETURN(const std::shared_ptr<Stream> stream, find(ref));
    bool drained = false;
    {
      const MutexLock lock(stream->mutex);
      if (stream->destroyed) return not_found(ref);
      stream->destroyed = true;
      drained = stream->state == Stream::State::kIdle;
    }
    if (drained) forget(*stream);
    return {};
  }

  Status enqueue(StreamRef ref, Operation operation) {
    KVBM_ASSIGN_OR_RETURN(const std::shared_ptr<Stream> stream, find(ref));
    bool wake = false;
    {
      const MutexLock lock(stream->mutex);
      KVBM_TRY(accepts(*stream));
      stream->operations.push(std::move(operation));
      wake = stream->state == Stream::State::kIdle;
      if (wake) stream->state = Stream::State::kScheduled;
    }
    if (wake) schedule(stream);
    return {};
  }

  [[nodiscard]] Event record(StreamRef ref) {
    auto stream = find(ref);
    if (!stream) return Event::ready(make_error(std::move(stream).error()));
    const MutexLock lock((*stream)->mutex);
    if (Status accepted = accepts(**stream); !accepted) return Event::ready(std::move(accepted));
    if ((*stream)->state == Stream::State::kIdle) return Event::ready((*stream)->take_outcome());
    CompletionSource source(options_.executor, pool_);
    Event event(source.completion());
    (*stream)->operations.push(QueuedRecord{std::move(source)});
    return event;
  }

  /// Lets what runs finish and drops the rest.
  void close() {
    std::vector<std::shared_ptr<Stream>> streams;
    {
      const MutexLock lock(mutex_);
      closing_.store(true, std::memory_order_release);
      for (const auto& [id, stream] : streams_) streams.push_back(stream);
    }
    queue_->stop();
    for (const std::shared_ptr<Stream>& stream : streams) {
      Ring<Operation> dropped;
      {
        const MutexLock lock(stream->mutex);
        stream->destroyed = true;
        std::swap(dropped, stream->operations);
      }
      for (size_t i = 0; i < dropped.size(); ++i) {
        if (auto* record = std::get_if<QueuedRecord>(&dropped[i])) {
          record->source.resolve(make_error(
              ErrorCode::kCancelled, format_text("{} was destroyed before stream {} got that far",
                                                 options_.name, stream->name)));
        }
      }
    }
  }

 private:
  [[nodiscard]] tl::unexpected<Error> unavailable() const {
    return make_error(ErrorCode::kUnavailable, format_text("{} is being destroyed", options_.name));
  }

  [[nodiscard]] tl::unexpected<Error> not_found(StreamRef ref) const {
    return make_error(ErrorCode::kNotFound,
                      format_text("{} has no stream {}", options_.name, ref.value));
  }

  [[nodiscard]] Result<std::shared_ptr<Stream>> find(StreamRef ref) {
    const MutexLock lock(mutex_);
    if (closing_) return unavailable();
    const auto found = streams_.find(ref.value);
    if (found == streams_.end()) return not_found(ref);
    return found->second;
  }

  Status accepts(const Stream& stream) const KVBM_REQUIRES(stream.mutex) {
    if (stream.destroyed) return not_found(StreamRef{stream.id});
    if (stream.operations.size() >= options_.max_queued) {
      return make_error(ErrorCode::kExhausted,
                        format_text("stream {} has {} operations queued; wait for some to end",
                                    stream.name, options_.max_queued));
    }
    return {};
  }

  void forget(const Stream& stream) {
    const MutexLock lock(mutex_);
    streams_.erase(stream.id);
  }

  /// Requires: the stream is kScheduled, and this is the caller that made it so. Only a stopped
  /// queue refuses, since it has room for a task of every stream; close() then drops the
  /// operations.
  void schedule(std::shared_ptr<Stream> stream) noexcept {
    static_cast<void>(queue_->try_post([this, stream = std::move(stream)] { run_turn(stream); }));
  }

  void run_turn(const std::shared_ptr<Stream>& stream) {
    for (size_t done = 0; done < options_.operations_per_turn; ++done) {
      std::optional<Operation> operation;
      bool gone = false;
      if (closing_.load(std::memory_order_acquire)) return;
      {
        const MutexLock lock(stream->mutex);
        if (stream->operations.empty()) {
          stream->state = Stream::State::kIdle;
          gone = stream->destroyed;
        } else {
          operation.emplace(stream->operations.pop());
        }
      }
      if (!operation.has_value()) {
        if (gone) forget(*stream);
        return;
      }
      if (auto* wait = std::get_if<QueuedWait>(&*operation);
          wait != nullptr && !wait->event.done()) {
        park(stream, wait->event);
        return;
      }
      run(*stream, *operation);
    }
    schedule(stream);
  }

  void run(Stream& stream, Operation& operation) {
    if (auto* copy = std::get_if<QueuedCopy>(&operation)) {
      stream.anything_since_record = true;
      if (!stream.failure.has_value()) copy_batch(copy->batch);
    } else if (auto* pattern = std::get_if<QueuedPattern>(&operation)) {
      stream.anything_since_record = true;
      if (!stream.failure.has_value()) run_pattern(pattern->batch);
    } else if (auto* checksum = std::get_if<QueuedChecksum>(&operation)) {
      stream.anything_since_record = true;
      if (!stream.failure.has_value()) run_checksum(checksum->batch);
    } else if (auto* launch = std::get_if<QueuedLaunch>(&operation)) {
      stream.note(run_task(launch->task));
    } else if (auto* wait = std::get_if<QueuedWait>(&operation)) {
      stream.note(wait->event.status());
    } else {
      std::get<QueuedRecord>(operation).source.resolve(stream.take_outcome());
    }
  }

  /// The event may be done before this returns, and the stream run elsewhere: it is not touched
  /// here afterwards. Weak, so that an event which never comes keeps nothing alive.
  void park(const std::shared_ptr<Stream>& stream, const Event& event) {
    {
      const MutexLock lock(stream->mutex);
      stream->state = Stream::State::kParked;
    }
    event.on_done([core = weak_from_this(),
                   weak = std::weak_ptr<Stream>(stream)](const Status& outcome) noexcept {
      const std::shared_ptr<Core> self = core.lock();
      std::shared_ptr<Stream> parked = weak.lock();
      if (self == nullptr || parked == nullptr) return;
      {
        const MutexLock lock(parked->mutex);
        parked->state = Stream::State::kScheduled;
        parked->note(outcome);
      }
      self->schedule(std::move(parked));
    });
  }

  const HostDeviceOptions options_;
  const MemoryPool pool_ = make_memory_pool();  // of completions
  Mutex mutex_{LockRank::kDevice, "device.host"};
  std::map<uint64_t, std::shared_ptr<Stream>> streams_ KVBM_GUARDED_BY(mutex_);
  uint64_t last_id_ KVBM_GUARDED_BY(mutex_) = 0;
  std::atomic<bool> closing_{false};
  std::unique_ptr<TaskQueue> queue_;
};

Result<std::unique_ptr<HostDevice>> HostDevice::create(HostDeviceOptions options) {
  if (options.max_streams == 0 || options.max_queued == 0 || options.operations_per_turn == 0) {
    return make_error(ErrorCode::kInvalidArgument,
                      "a host device needs at least one stream, one queued operation and one "
                      "operation a turn");
  }
  KVBM_ASSIGN_OR_RETURN(auto queue,
                        options.executor.create_queue({.name = options.name,
                                                       .num_threads = options.num_threads,
                                                       .capacity = options.max_streams}));
  auto allocator = std::make_shared<Allocator>(options.memory_bytes, options.machine_root);
  auto core = std::make_shared<Core>(std::move(options), std::move(queue));
  return std::unique_ptr<HostDevice>(new HostDevice(std::move(core), std::move(allocator)));
}

HostDevice::HostDevice(std::shared_ptr<Core> core, std::shared_ptr<Allocator> allocator)
    : core_(std::move(core)), allocator_(std::move(allocator)) {}

HostDevice::~HostDevice() { core_->close(); }

DeviceInfo HostDevice::info() const {
  const MachineMemory memory = allocator_->memory();
  return {.name = core_->options().name,
          .kind = DeviceKind::kHost,
          .ordinal = core_->options().ordinal,
          .total_bytes = memory.total,
          .free_bytes = memory.available,
          .capabilities = {.host_accessible = true,
                           .copies_pageable_host = true,
                           .patterns = true,
                           .checksums = true,
                           .page_bytes = HostPages::page_bytes()}};
}

Result<StreamRef> HostDevice::create_stream(std::string_view name) {
  return core_->create_stream(name);
}

Status HostDevice::destroy_stream(StreamRef stream) { return core_->destroy_stream(stream); }

Result<DeviceMemory> HostDevice::allocate(uint64_t size_bytes, uint64_t alignment) {
  if (size_bytes == 0 || !std::has_single_bit(alignment)) {
    return make_error(ErrorCode::kInvalidArgument,
                      format_text("asked for {} bytes aligned to {}; ask for at least one byte and "
                                  "a power of two",
                                  size_bytes, alignment));
  }
  KVBM_ASSIGN_OR_RETURN(HostPages pages, allocator_->allocate(size_bytes, alignment));
  return DeviceMemory(pages.release(), size_bytes, allocator_);
}

Status HostDevice::copy(StreamRef stream, StridedCopyBatch batch) {
  KVBM_TRY(planned_bytes(batch));
  if (batch.method != CopyMethod::kEngine) {
    return make_error(ErrorCode::kUnsupported, "a host device has no kernels; copy by the engine");
  }
  return core_->enqueue(stream, QueuedCopy{std::move(batch)});
}

Status HostDevice::pattern(StreamRef stream, PatternBatch batch) {
  KVBM_TRY(planned_bytes(batch));
  return core_->enqueue(stream, QueuedPattern{std::move(batch)});
}

Status HostDevice::checksum(StreamRef stream, ChecksumBatch batch) {
  KVBM_TRY(planned_bytes(batch));
  return core_->enqueue(stream, QueuedChecksum{std::move(batch)});
}

Status HostDevice::launch(StreamRef stream, StreamTask task) {
  if (!task) return make_error(ErrorCode::kInvalidArgument, "asked to launch no task");
  return core_->enqueue(stream, QueuedLaunch{std::move(task)});
}

Event HostDevice::record(StreamRef stream) { return core_->record(stream); }

Status HostDevice::wait(StreamRef stream, const Event& event) {
  return core_->enqueue(stream, QueuedWait{event});
}

Executor& HostDevice::executor() const noexcept { return core_->options().executor; }

}  // namespace kvbm
