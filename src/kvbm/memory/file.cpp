// SPDX-License-Identifier: Apache-2.0
#include "kvbm/memory/file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdlib>
#include <memory>

namespace kvbm {

namespace {

constexpr uint32_t kUsualDirectUnit = 4096;

/// What the kernel says direct I/O on this file needs; the usual unit where it says nothing.
FileAlignment direct_alignment(int fd) noexcept {
  FileAlignment alignment{.memory = kUsualDirectUnit, .offset = kUsualDirectUnit};
#ifdef STATX_DIOALIGN
  struct statx facts {};
  if (::statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &facts) == 0 &&
      (facts.stx_mask & STATX_DIOALIGN) != 0 && facts.stx_dio_offset_align > 1 &&
      std::has_single_bit(facts.stx_dio_offset_align) &&
      std::has_single_bit(facts.stx_dio_mem_align)) {
    alignment = {.memory = facts.stx_dio_mem_align, .offset = facts.stx_dio_offset_align};
  }
#else
  static_cast<void>(fd);
#endif
  return alignment;
}

/// Reads the first unit and writes it back.
bool direct_works(int fd, FileAlignment alignment) noexcept {
  const size_t unit = alignment.offset;
  const size_t at = std::max<size_t>(alignment.memory, sizeof(void*));
  const std::unique_ptr<void, void (*)(void*)> buffer(
      std::aligned_alloc(at, (unit + at - 1) / at * at), &std::free);
  return buffer != nullptr && ::pread(fd, buffer.get(), unit, 0) == static_cast<ssize_t>(unit) &&
         ::pwrite(fd, buffer.get(), unit, 0) == static_cast<ssize_t>(unit);
}

}  // namespace

File& File::operator=(File&& other) noexcept {
  if (this != &other) {
    if (ref_.fd >= 0) ::close(ref_.fd);
    ref_ = std::exchange(other.ref_, FileRef{});
  }
  return *this;
}

File::~File() {
  if (ref_.fd >= 0) ::close(ref_.fd);
}

FileAlignment File::try_direct() noexcept {
  if (ref_.fd < 0 || ref_.alignment.direct()) return ref_.alignment;
  const int flags = ::fcntl(ref_.fd, F_GETFL);
  if (flags < 0 || ::fcntl(ref_.fd, F_SETFL, flags | O_DIRECT) != 0) return ref_.alignment;
  const FileAlignment alignment = direct_alignment(ref_.fd);
  if (direct_works(ref_.fd, alignment)) {
    ref_.alignment = alignment;
  } else {
    ::fcntl(ref_.fd, F_SETFL, flags);
  }
  return ref_.alignment;
}

}  // namespace kvbm
