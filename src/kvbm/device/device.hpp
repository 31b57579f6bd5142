// SPDX-License-Identifier: Apache-2.0
// Device: what kvbm asks of an accelerator, or of the host that plays one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/executor.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/base/unique_function.hpp"
#include "kvbm/device/checksum.hpp"
#include "kvbm/device/device_memory.hpp"
#include "kvbm/device/event.hpp"
#include "kvbm/device/pattern.hpp"
#include "kvbm/device/stream.hpp"
#include "kvbm/device/strided_copy.hpp"

namespace kvbm {

enum class DeviceKind : uint8_t { kHost, kCuda };

/// "host", "cuda".
[[nodiscard]] std::string_view to_string(DeviceKind kind) noexcept;

/// What a device can do beyond the operations that all have.
struct DeviceCapabilities {
  bool host_accessible = false;       ///< the host may read and write its memory by address
  bool copies_pageable_host = false;  ///< copy() takes host memory that is not pinned
  bool kernel_copies = false;         ///< copy() takes CopyMethod::kKernel
  bool ring_copies = false;           ///< copy() takes CopyMethod::kRing
  bool ring_is_missing = false;       ///< it would, but had no memory for the ring
  uint64_t ring_block_bytes = 0;      ///< of a BlockImage, that a ring takes at most
  bool patterns = false;              ///< pattern() is there
  bool checksums = false;             ///< checksum() is there
  bool kernels_from_ptx = false;      ///< its driver had to compile the kernels: see CUDA_ARCHS
  uint64_t page_bytes = 0;            ///< allocations start at multiples of it
};

struct DeviceInfo {
  std::string name = {};  ///< for people: "host", "NVIDIA H100 80GB HBM3"
  DeviceKind kind = DeviceKind::kHost;
  int32_t ordinal = 0;  ///< among devices of its kind
  uint64_t total_bytes = 0;
  uint64_t free_bytes = 0;  ///< at the time of asking
  DeviceCapabilities capabilities = {};
};

/// What launch() runs: a stand-in for a kernel.
using StreamTask = UniqueFunction<Status()>;

/// The event of a record() for which there was no memory.
[[nodiscard]] Event unrecorded() noexcept;

/// The outcome of a task for a device that runs it: what it throws counts as kInternal.
[[nodiscard]] Status run_task(StreamTask& task);

/// Streams, events, memory and batch copies.
///
/// Stream: operations (copy, pattern, checksum, launch, wait, record) return at once and run later,
/// on one stream in the
///   order of the calls, between streams in any order that events do not forbid. None of them waits
///   on the host.
/// Errors: what is wrong with a call comes back from the call, and nothing is queued:
/// kInvalidArgument,
///   kNotFound (a stream that the device does not know), kExhausted (the stream's queue is full:
///   see the implementation), kUnavailable (the device is being destroyed). What fails later fails
///   the next event recorded on that stream, with the first failure; an event says nothing about
///   operations before the previous record(). With nothing in between, record() repeats the
///   previous outcome. After a failure, copies, patterns and checksums up to the next record() may
///   be left out; launched tasks run all the same. A wait for an event that failed is a failure of
///   the stream that waits.
/// Ownership: the executor outlives the device. On destruction what has started is finished, what
/// has
///   not started may be dropped (its events fail as kCancelled); after it nothing is touched.
///   Memory and events may outlive the device.
/// Threads: any thread (with a SteppedExecutor: its owner thread). Who shares a stream with others
/// keeps
///   a group of operations and the record() that ends it together. Destruction: not inside a task
///   or a callback of the device itself.
class Device {
 public:
  virtual ~Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  [[nodiscard]] virtual DeviceInfo info() const = 0;

  /// `name` is for logs and traces. Errors: kExhausted.
  [[nodiscard]] virtual Result<StreamRef> create_stream(std::string_view name) = 0;

  /// Takes no more operations; those queued still run, then the stream is gone. Errors: kNotFound.
  virtual Status destroy_stream(StreamRef stream) = 0;

  /// Memory that starts at a multiple of `alignment` and reads as zero.
  /// Errors: kInvalidArgument (no byte; `alignment` not a power of two), kExhausted (with the bytes
  /// asked and free).
  [[nodiscard]] virtual Result<DeviceMemory> allocate(uint64_t size_bytes, uint64_t alignment) = 0;

  /// Queues all copies of the batch. Addresses are the device's or, see the capabilities, the
  /// host's. Errors: kUnsupported (a method that the device lacks).
  virtual Status copy(StreamRef stream, StridedCopyBatch batch) = 0;

  /// Queues the filling or the comparing of the batch's blocks. Wrong bytes are no failure: the
  /// findings tell. Addresses as for copy(). Errors: kInvalidArgument, kUnsupported (see the
  /// capabilities).
  virtual Status pattern(StreamRef stream, PatternBatch batch) = 0;

  /// Queues the checksums of the batch's blocks. Addresses as for copy(). Errors: kInvalidArgument,
  /// kUnsupported (see the capabilities).
  virtual Status checksum(StreamRef stream, ChecksumBatch batch) = 0;

  /// Runs `task` on a host thread in stream order; it must not wait. What it returns or throws
  /// counts as the operation's outcome. Dropped with the device it is destroyed without having run.
  virtual Status launch(StreamRef stream, StreamTask task) = 0;

  /// An event that is done when all operations queued before have ended. Refused, it is a failed
  /// event.
  [[nodiscard]] virtual Event record(StreamRef stream) = 0;

  /// copy() and record() behind it, for less than the two cost. Errors: those of copy(). Once the
  /// copies are queued there is an event, and nothing throws: where record() is refused, or lacks
  /// memory, that is a failed one.
  [[nodiscard]] virtual Result<Event> copy_and_record(StreamRef stream, StridedCopyBatch batch);

  /// What is queued after runs once `event`, of whatever origin, is done.
  virtual Status wait(StreamRef stream, const Event& event) = 0;

  /// Where the waiting of this device's events goes through.
  [[nodiscard]] virtual Executor& executor() const noexcept = 0;

  /// An event that the host signals.
  [[nodiscard]] EventSource create_event() const { return EventSource(executor()); }

  /// Waits on the host for all that is queued: the outcome that record() would give, or kTimeout.
  /// Not for the forward path of an engine.
  [[nodiscard]] Status synchronize(StreamRef stream, TimePoint deadline = kNever) {
    return record(stream).wait(deadline);
  }

 protected:
  Device() = default;
};

}  // namespace kvbm
