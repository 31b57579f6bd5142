// SPDX-License-Identifier: Apache-2.0
#include "kvbm/memory/internal/file_transfer.hpp"

#include <poll.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstdint>
#include <limits>
#include <string_view>

#include "kvbm/base/text.hpp"

namespace kvbm::internal {

namespace {

constexpr size_t kMostVectors = IOV_MAX;
/// How long one wait until a file is ready may take. Regular files never ask for it.
constexpr int kReadyTimeoutMs = 30'000;
/// How often a file may say "try again" in turn without moving a byte. poll() calls a regular file
/// ready at once, so waiting alone bounds nothing.
constexpr int kMostFutileTries = 1000;

/// Walks over the buffers of a request.
class Cursor {
 public:
  explicit Cursor(const std::vector<IoBuffer>& buffers) : buffers_(buffers) { skip_empty(); }

  [[nodiscard]] bool at_end() const noexcept { return index_ == buffers_.size(); }

  /// The next vectors, as many as one call takes.
  [[nodiscard]] int fill(std::array<iovec, kMostVectors>& vectors) const {
    size_t count = 0;
    size_t skip = used_;
    for (size_t i = index_; i < buffers_.size() && count < vectors.size(); ++i) {
      if (buffers_[i].size > skip) {
        vectors[count++] = {.iov_base = buffers_[i].data + skip,
                            .iov_len = buffers_[i].size - skip};
      }
      skip = 0;
    }
    return static_cast<int>(count);
  }

  void advance(size_t bytes) {
    used_ += bytes;
    while (index_ < buffers_.size() && used_ >= buffers_[index_].size) {
      used_ -= buffers_[index_].size;
      ++index_;
    }
  }

 private:
  void skip_empty() { advance(0); }

  const std::vector<IoBuffer>& buffers_;
  size_t index_ = 0;
  size_t used_ = 0;
};

std::string_view verb(FileOp op) { return op == FileOp::kRead ? "read" : "write"; }

/// "cannot read 4096 bytes at offset 8192 of file 7, 512 moved".
std::string cannot(const FileRequest& request, uint64_t moved) {
  return format_text("cannot {} {} bytes at offset {} of file {}, {} moved", verb(request.op),
                     request.size_bytes(), request.offset, request.file.fd, moved);
}

Error system_error(const FileRequest& request, uint64_t moved, int error_number) {
  const bool full = error_number == ENOSPC || error_number == EDQUOT;
  return Error(full ? ErrorCode::kExhausted : ErrorCode::kIo, cannot(request, moved),
               NativeDomain::kErrno, error_number);
}

}  // namespace

TransferCalls TransferCalls::system() noexcept {
  return {
      .read = [](int fd, const iovec* vectors, int count,
                 off_t offset) { return ::preadv(fd, vectors, count, offset); },
      .write = [](int fd, const iovec* vectors, int count,
                  off_t offset) { return ::pwritev(fd, vectors, count, offset); },
      .wait_ready =
          [](int fd, FileOp op) {
            pollfd entry{.fd = fd,
                         .events = static_cast<short>(op == FileOp::kRead ? POLLIN : POLLOUT),
                         .revents = 0};
            const int ready = ::poll(&entry, 1, kReadyTimeoutMs);
            if (ready > 0 || (ready < 0 && errno == EINTR)) return 0;
            if (ready == 0) errno = EAGAIN;
            return -1;
          },
  };
}

Status check_request(const FileRequest& request) {
  const auto invalid = [](std::string message) {
    return make_error(ErrorCode::kInvalidArgument, std::move(message));
  };
  if (request.file.fd < 0) return invalid("a file request names no open file");
  const FileAlignment needed = request.file.alignment;
  uint64_t end = request.offset;
  for (const IoBuffer& buffer : request.buffers) {
    if (buffer.size == 0) continue;
    if (buffer.data == nullptr) return invalid("a file request has a null buffer");
    if (__builtin_add_overflow(end, uint64_t{buffer.size}, &end)) {
      return invalid("a file request ends beyond 63 bits");
    }
    if (reinterpret_cast<uintptr_t>(buffer.data) % needed.memory != 0 ||
        buffer.size % needed.offset != 0) {
      return invalid(
          format_text("a buffer of {} bytes of a file request does not fit direct I/O: "
                      "addresses in multiples of {}, sizes in multiples of {}",
                      buffer.size, needed.memory, needed.offset));
    }
  }
  if (end > std::numeric_limits<off_t>::max()) {
    return invalid("a file request ends beyond 63 bits");
  }
  if (request.offset % needed.offset != 0) {
    return invalid(
        format_text("offset {} of a file request does not fit direct I/O, which goes in "
                    "multiples of {}",
                    request.offset, needed.offset));
  }
  return {};
}

FileResult transfer(const FileRequest& request, const TransferCalls& calls) {
  const auto call = request.op == FileOp::kRead ? calls.read : calls.write;
  FileResult result;
  Cursor cursor(request.buffers);
  std::array<iovec, kMostVectors> vectors;
  int futile_tries = 0;
  while (!cursor.at_end()) {
    const int count = cursor.fill(vectors);
    const ssize_t moved = call(request.file.fd, vectors.data(), count,
                               static_cast<off_t>(request.offset + result.bytes));
    if (moved > 0) {
      futile_tries = 0;
      result.bytes += static_cast<uint64_t>(moved);
      cursor.advance(static_cast<size_t>(moved));
      if (cursor.at_end() || !request.file.alignment.direct() ||
          result.bytes % request.file.alignment.offset == 0) {
        continue;
      }
    }
    if (moved >= 0) {
      // No byte more; or, on a direct file, a broken unit, from which direct I/O cannot go on.
      result.status = make_error(
          ErrorCode::kIo, format_text("{}: {}", cannot(request, result.bytes),
                                      request.op == FileOp::kRead ? "the file ends there"
                                                                  : "the file takes no more"));
      return result;
    }
    int error_number = errno;
    if (error_number == EINTR) continue;
    if (error_number == EAGAIN && ++futile_tries < kMostFutileTries) {
      if (calls.wait_ready(request.file.fd, request.op) == 0) continue;
      error_number = errno;
    }
    result.status = make_error(system_error(request, result.bytes, error_number));
    return result;
  }
  return result;
}

}  // namespace kvbm::internal
