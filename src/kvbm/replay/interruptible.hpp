// SPDX-License-Identifier: Apache-2.0
// Waiting for pipes and terminals in a way that a signal can end.
#pragma once

#include <atomic>

namespace kvbm {

/// Whether a signal handler has set the flag. Null: no handler ever does.
[[nodiscard]] bool is_interrupted(const std::atomic<bool>* flag) noexcept;

/// open(2), close-on-exec. A signal that does not set the flag is no reason to fail; one that does
/// ends a wait for the other end of a pipe with EINTR.
[[nodiscard]] int open_unless_interrupted(const char* path, int flags,
                                          const std::atomic<bool>* interrupted) noexcept;

/// Sleeps until `fd` is ready for `events` of poll(2). Returns 0 or an errno: EINTR means that the
/// flag is set. A signal to this thread is not missed, whenever it comes.
[[nodiscard]] int wait_unless_interrupted(int fd, short events,
                                          const std::atomic<bool>* interrupted) noexcept;

}  // namespace kvbm
