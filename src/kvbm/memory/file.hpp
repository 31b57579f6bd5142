// SPDX-License-Identifier: Apache-2.0
// File and FileRef: an open file, owned and borrowed.
#pragma once

#include <cstdint>
#include <utility>

#include "kvbm/base/result.hpp"

namespace kvbm {

/// Whether reads and writes go around the page cache.
enum class DirectIo : uint8_t {
  kOff,
  kTry,  ///< where the file system takes it; else through the page cache
};

/// What I/O on a file must be a multiple of. Both are 1 unless the file is direct.
/// Units: bytes.
struct FileAlignment {
  uint32_t memory = 1;  ///< the address of each buffer
  uint32_t offset = 1;  ///< the offset in the file and the size of each buffer

  [[nodiscard]] bool direct() const noexcept { return offset > 1; }
  friend bool operator==(const FileAlignment&, const FileAlignment&) = default;
};

/// An open file of somebody else.
/// Ownership: none; the file stays open until all requests on it have ended.
struct FileRef {
  int fd = -1;
  FileAlignment alignment = {};

  friend bool operator==(const FileRef&, const FileRef&) = default;
};

/// Ownership: move-only; closes the descriptor on destruction.
/// Threads: one thread at a time.
class File {
 public:
  /// No file.
  File() noexcept = default;
  /// Takes over `fd`.
  explicit File(int fd, FileAlignment alignment = {}) noexcept : ref_{fd, alignment} {}
  File(File&& other) noexcept : ref_(std::exchange(other.ref_, FileRef{})) {}
  File& operator=(File&& other) noexcept;
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File();

  [[nodiscard]] FileRef ref() const noexcept { return ref_; }
  [[nodiscard]] int fd() const noexcept { return ref_.fd; }
  [[nodiscard]] explicit operator bool() const noexcept { return ref_.fd >= 0; }

  /// Turns direct I/O on for a file that is at least one aligned unit long, and proves it by
  /// reading and writing that unit in place; where it is refused, the file goes on through the page
  /// cache. Returns the alignment that holds from now on.
  FileAlignment try_direct() noexcept;

 private:
  FileRef ref_;
};

}  // namespace kvbm
