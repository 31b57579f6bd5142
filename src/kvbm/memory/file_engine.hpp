// SPDX-License-Identifier: Apache-2.0
// FileEngine: batches of reads and writes on open files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kvbm/base/result.hpp"
#include "kvbm/memory/file.hpp"
#include "kvbm/memory/file_batch.hpp"

namespace kvbm {

enum class FileOp : uint8_t { kRead, kWrite };

/// Whose memory a buffer is in. What the host can address counts as the host's.
enum class BufferPlace : uint8_t { kHost, kDevice };

/// A piece of memory that a request reads into or writes from.
struct IoBuffer {
  std::byte* data = nullptr;
  size_t size = 0;
  BufferPlace place = BufferPlace::kHost;

  friend bool operator==(const IoBuffer&, const IoBuffer&) = default;
};

/// One contiguous range of a file, and the memory it is scattered to or gathered from, in order.
/// Ownership: borrows the file and the memory until the request is done.
struct FileRequest {
  FileOp op = FileOp::kRead;
  FileRef file = {};
  uint64_t offset = 0;
  std::vector<IoBuffer> buffers = {};

  [[nodiscard]] uint64_t size_bytes() const noexcept {
    uint64_t total = 0;
    for (const IoBuffer& buffer : buffers) total += buffer.size;
    return total;
  }
  [[nodiscard]] bool names_device() const noexcept {
    for (const IoBuffer& buffer : buffers) {
      if (buffer.place == BufferPlace::kDevice) return true;
    }
    return false;
  }
};

struct FileEngineCapabilities {
  std::string name = {};    ///< "posix"
  size_t max_parallel = 1;  ///< requests that it works on at the same time
  size_t max_pending = 0;   ///< requests that it holds, those at work among them
  /// What buffers that serve every file should be aligned to, so that a direct one takes them as
  /// well.
  FileAlignment preferred = {};
  /// Takes buffers of BufferPlace::kDevice, in files that reach_device() finds nothing wrong with.
  bool device_memory = false;
  std::string device_memory_note = {};  ///< why not, and what to do; or by which way
};

/// Requests, also those of one batch, run in any order and side by side: whoever writes a range and
/// then reads it waits in between. Errors: of a request, in its FileResult: kInvalidArgument (no
/// open file, a null buffer, a range beyond
///   63 bits, not aligned as its file asks), kExhausted (no space left), kIo (errno; or the file
///   ends before the range does), kCancelled (not started when the engine was destroyed),
///   kUnsupported (a buffer of a device that the engine, or the engine in this file, does not
///   reach), kDevice. A read into a device has ended when its memory has the bytes.
///   Interrupted and short transfers are continued: success always means all bytes.
/// Ownership: the executor outlives the engine. On destruction what runs is finished, what waits is
///   cancelled; after it no buffer is touched. Batches may outlive the engine.
/// Threads: any thread (with a SteppedExecutor: its owner thread). Destruction: not inside a
/// callback of
///   one of its own batches.
class FileEngine {
 public:
  virtual ~FileEngine() = default;
  FileEngine(const FileEngine&) = delete;
  FileEngine& operator=(const FileEngine&) = delete;

  [[nodiscard]] virtual FileEngineCapabilities capabilities() const = 0;

  /// Whether requests on this file may name memory of a device. May take milliseconds.
  /// Errors: kUnsupported (for no file, see the capabilities; or not for this one, and why).
  [[nodiscard]] virtual Status reach_device(const FileRef& file) = 0;

  /// Takes the whole batch or nothing, also if it throws (std::bad_alloc alone); never waits.
  /// Errors: kExhausted (max_pending would be exceeded: wait for something to end and try again),
  /// kInvalidArgument (the batch alone is larger than max_pending), kUnavailable (being destroyed).
  [[nodiscard]] virtual Result<FileBatch> submit(std::vector<FileRequest> requests) = 0;

 protected:
  FileEngine() = default;
};

}  // namespace kvbm
