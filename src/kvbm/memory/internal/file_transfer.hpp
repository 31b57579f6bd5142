// SPDX-License-Identifier: Apache-2.0
// One file request by positioned vector calls, to the last byte or to an error.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include "kvbm/base/result.hpp"
#include "kvbm/memory/file_engine.hpp"

namespace kvbm::internal {

/// Each behaves like the call of its name: the bytes moved, or -1 and errno.
struct TransferCalls {
  ssize_t (*read)(int fd, const iovec* vectors, int count, off_t offset) = nullptr;   ///< preadv
  ssize_t (*write)(int fd, const iovec* vectors, int count, off_t offset) = nullptr;  ///< pwritev
  int (*wait_ready)(int fd, FileOp op) = nullptr;  ///< after EAGAIN: 0 once it is worth another try

  [[nodiscard]] static TransferCalls system() noexcept;
};

/// Errors: kInvalidArgument; see FileEngine.
[[nodiscard]] Status check_request(const FileRequest& request);

/// Requires: check_request() passed.
[[nodiscard]] FileResult transfer(const FileRequest& request, const TransferCalls& calls);

}  // namespace kvbm::internal
