// SPDX-License-Identifier: Apache-2.0
// Creation of files without a name, with the system calls as an input so that tests can refuse
// them.
#pragma once

#include <sys/statvfs.h>
#include <sys/types.h>

#include <cstdint>

#include "kvbm/base/result.hpp"
#include "kvbm/memory/file.hpp"
#include "kvbm/memory/file_memory.hpp"

namespace kvbm::internal {

/// Each behaves like the call of its name: -1 and errno on failure.
struct FileCalls {
  int (*open_unnamed)(const char* directory) = nullptr;  ///< open with O_TMPFILE
  int (*make_named)(char* path_template) = nullptr;      ///< mkostemp
  int (*unlink)(const char* path) = nullptr;
  int (*free_space)(int fd, struct statvfs* facts) = nullptr;
  int (*allocate)(int fd, off_t size) = nullptr;  ///< fallocate from offset 0
  int (*truncate)(int fd, off_t size) = nullptr;
  ssize_t (*write)(int fd, const void* bytes, size_t size, off_t offset) = nullptr;  ///< pwrite

  [[nodiscard]] static FileCalls system() noexcept;
};

struct AnonymousFile {
  File file;
  bool reserved = false;
};

/// The whole of FileMemory::create.
[[nodiscard]] Result<AnonymousFile> create_anonymous_file(const FileOptions& options,
                                                          const FileCalls& calls);

}  // namespace kvbm::internal
