// SPDX-License-Identifier: Apache-2.0
// FileMemory: a file without a name that is used as memory.
#pragma once

#include <cstdint>
#include <string>

#include "kvbm/base/log.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/memory/file.hpp"
#include "kvbm/memory/memory_region.hpp"

namespace kvbm {

struct FileOptions {
  std::string directory = {};
  uint64_t size_bytes = 0;
  std::string name_hint = "kvbm";  ///< for messages, and for the moment a file has a name
  DirectIo direct = DirectIo::kOff;
  /// Where the file system cannot reserve space: write all of it instead, at the speed of the disk.
  bool zero_fill = false;
  LogSink* log = nullptr;  ///< told where the file is less than was asked for (sparse, not direct)
};

/// Space is reserved at creation, so a later write does not fail for want of it. The file has no
/// name in its directory: when the process ends, however it ends, the space is free again. Reads as
/// zero. Ownership: move-only; closes the file. Threads: one thread at a time.
class FileMemory {
 public:
  /// Owns nothing.
  FileMemory() noexcept = default;

  /// A file system that cannot reserve space gives a sparse file unless it is to be filled, and the
  /// log says so.
  /// Errors: kInvalidArgument (no byte, no directory name), kExhausted (no space, with the bytes
  /// asked and free; no file descriptor), kNotFound (the directory is missing), kIo (it is none, or
  /// cannot be written to), and others as Error::from_errno has them; each from the system with
  /// errno, the path and what to do. Nothing is left behind.
  [[nodiscard]] static Result<FileMemory> create(const FileOptions& options);

  [[nodiscard]] FileRef file() const noexcept { return file_.ref(); }
  [[nodiscard]] uint64_t size_bytes() const noexcept { return size_bytes_; }
  /// What requests must be a multiple of; see FileAlignment.
  [[nodiscard]] FileAlignment alignment() const noexcept { return file_.ref().alignment; }
  /// Whether all space is reserved.
  [[nodiscard]] bool reserved() const noexcept { return reserved_; }
  [[nodiscard]] MemoryRegion region() const {
    return MemoryRegion::of_file(file(), 0, size_bytes_);
  }

 private:
  FileMemory(File file, uint64_t size_bytes, bool reserved) noexcept
      : file_(std::move(file)), size_bytes_(size_bytes), reserved_(reserved) {}

  File file_;
  uint64_t size_bytes_ = 0;
  bool reserved_ = false;
};

}  // namespace kvbm
