// SPDX-License-Identifier: Apache-2.0
#include "kvbm/memory/internal/anonymous_file.hpp"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvbm/base/text.hpp"
#include "kvbm/base/units.hpp"

namespace kvbm::internal {

namespace {

/// What every error of a creation says first.
std::string cannot(const FileOptions& options, std::string_view what) {
  return format_text("cannot {} {} for {} in \"{}\"", what, format_size(options.size_bytes),
                     options.name_hint, options.directory);
}

/// kIo whatever the errno: nothing but a look at the directory helps.
tl::unexpected<Error> name_stays(std::string_view path, int error_number) {
  return make_error(
      Error(ErrorCode::kIo,
            format_text("cannot remove the name of the new file \"{}\"; remove it by hand "
                        "and choose a directory that lets files be removed",
                        path),
            NativeDomain::kErrno, error_number));
}

/// Bytes that the file system of `fd` has for us; nothing if it does not tell.
std::optional<uint64_t> free_bytes(int fd, const FileCalls& calls) {
  struct statvfs facts {};
  if (calls.free_space(fd, &facts) != 0 || facts.f_blocks == 0) return std::nullopt;
  return uint64_t{facts.f_bavail} * facts.f_frsize;
}

bool is_no_space(int error_number) {
  return error_number == ENOSPC || error_number == EDQUOT || error_number == EFBIG;
}

tl::unexpected<Error> no_space(const FileOptions& options, std::optional<uint64_t> free,
                               int error_number) {
  return make_error(
      Error(ErrorCode::kExhausted,
            format_text(
                "{}: {} are free; free some, ask for less or choose another directory",
                cannot(options, "reserve"),
                free.has_value() ? format_size(*free) : std::string("an unknown number of bytes")),
            NativeDomain::kErrno, error_number));
}

Result<File> open_without_name(const FileOptions& options, const FileCalls& calls) {
  if (const int fd = calls.open_unnamed(options.directory.c_str()); fd >= 0) return File(fd);
  int error_number = errno;
  // EISDIR: a kernel or file system that takes O_TMPFILE for an attempt to open the directory.
  if (error_number == EOPNOTSUPP || error_number == EISDIR || error_number == EINVAL) {
    std::string path = format_text("{}/.{}-XXXXXX", options.directory, options.name_hint);
    File file(calls.make_named(path.data()));
    if (file) {
      if (calls.unlink(path.c_str()) == 0) return file;
      return name_stays(path, errno);
    }
    error_number = errno;
  }
  return errno_error(format_text("{}; choose a directory that exists and can be written to",
                                 cannot(options, "create a file of")),
                     error_number);
}

/// 0, or the errno of the write that failed.
int fill_with_zeros(int fd, uint64_t size, const FileCalls& calls) {
  const std::vector<std::byte> zeros(std::min<uint64_t>(size, 4 * kMiB));
  for (uint64_t done = 0; done < size;) {
    const ssize_t written = calls.write(
        fd, zeros.data(), std::min<uint64_t>(size - done, zeros.size()), static_cast<off_t>(done));
    if (written > 0) {
      done += static_cast<uint64_t>(written);
    } else if (written == 0 || errno != EINTR) {
      return written == 0 ? EIO : errno;
    }
  }
  return 0;
}

/// Whether space was reserved; false if the file is sparse.
Result<bool> reserve(const File& file, const FileOptions& options, const FileCalls& calls) {
  const auto size = static_cast<off_t>(options.size_bytes);
  const std::optional<uint64_t> free = free_bytes(file.fd(), calls);
  if (free.has_value() && options.size_bytes > *free) return no_space(options, free, ENOSPC);

  int failed = 0;
  do {
    failed = calls.allocate(file.fd(), size) == 0 ? 0 : errno;
  } while (failed == EINTR);
  if (failed == 0) return true;
  if (is_no_space(failed)) return no_space(options, free, failed);
  if (failed != EOPNOTSUPP && failed != ENOSYS) {
    return errno_error(format_text("{}; choose another directory", cannot(options, "reserve")),
                       failed);
  }
  if (options.zero_fill) {
    if (options.log != nullptr) {
      options.log->log(LogLevel::kWarning, "memory",
                       "the file system cannot reserve space: the file is filled with zeros",
                       {{"directory", options.directory}, {"size_bytes", options.size_bytes}});
    }
    failed = fill_with_zeros(file.fd(), options.size_bytes, calls);
    if (failed == 0) return true;
    if (is_no_space(failed)) return no_space(options, free_bytes(file.fd(), calls), failed);
    return errno_error(format_text("{}; choose another directory", cannot(options, "write")),
                       failed);
  }
  if (calls.truncate(file.fd(), size) != 0) {
    failed = errno;
    if (is_no_space(failed)) return no_space(options, free, failed);
    return errno_error(
        format_text("{}; choose another directory", cannot(options, "set the size to")), failed);
  }
  return false;
}

}  // namespace

FileCalls FileCalls::system() noexcept {
  return {
      .open_unnamed =
          [](const char* directory) {
            return ::open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
          },
      .make_named = [](char* path) { return ::mkostemp(path, O_CLOEXEC); },
      .unlink = [](const char* path) { return ::unlink(path); },
      .free_space = [](int fd, struct statvfs* facts) { return ::fstatvfs(fd, facts); },
      .allocate = [](int fd, off_t size) { return ::fallocate(fd, 0, 0, size); },
      .truncate = [](int fd, off_t size) { return ::ftruncate(fd, size); },
      .write = [](int fd, const void* bytes, size_t size,
                  off_t offset) { return ::pwrite(fd, bytes, size, offset); },
  };
}

Result<AnonymousFile> create_anonymous_file(const FileOptions& options, const FileCalls& calls) {
  if (options.directory.empty() || options.size_bytes == 0 ||
      options.size_bytes > std::numeric_limits<off_t>::max()) {
    return make_error(ErrorCode::kInvalidArgument,
                      format_text("asked for a file of {} bytes in \"{}\"; name a directory and a "
                                  "size from 1 byte to 2^63 - 1",
                                  options.size_bytes, options.directory));
  }
  if (options.name_hint.empty() || options.name_hint.find('/') != std::string::npos) {
    return make_error(ErrorCode::kInvalidArgument,
                      format_text("\"{}\" is no name for a file", options.name_hint));
  }
  KVBM_ASSIGN_OR_RETURN(File file, open_without_name(options, calls));
  KVBM_ASSIGN_OR_RETURN(const bool reserved, reserve(file, options, calls));

  const auto warn = [&options](std::string_view message) {
    if (options.log == nullptr) return;
    options.log->log(LogLevel::kWarning, "memory", message,
                     {{"directory", options.directory}, {"size_bytes", options.size_bytes}});
  };
  if (!reserved) warn("the file system cannot reserve space: the file is sparse, a write may fail");
  if (options.direct == DirectIo::kTry && !file.try_direct().direct()) {
    warn("the file system refuses direct I/O: the file goes through the page cache");
  }
  return AnonymousFile{std::move(file), reserved};
}

}  // namespace kvbm::internal
