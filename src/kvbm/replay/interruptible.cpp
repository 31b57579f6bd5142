// SPDX-License-Identifier: Apache-2.0
#include "kvbm/replay/interruptible.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>

#include <cerrno>
#include <csignal>

namespace kvbm {
namespace {

constexpr mode_t kMode = 0666;  // less the umask, as for any file a program makes

}  // namespace

bool is_interrupted(const std::atomic<bool>* flag) noexcept {
  return flag != nullptr && flag->load(std::memory_order_relaxed);
}

int open_unless_interrupted(const char* path, int flags,
                            const std::atomic<bool>* interrupted) noexcept {
  while (true) {
    const int fd = ::open(path, flags | O_CLOEXEC, kMode);
    if (fd >= 0 || errno != EINTR || is_interrupted(interrupted)) return fd;
  }
}

int wait_unless_interrupted(int fd, short events, const std::atomic<bool>* interrupted) noexcept {
  // Signals arrive inside ppoll alone: one between the look at the flag and the sleep would be lost
  // otherwise.
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  struct pollfd waiting {};
  waiting.fd = fd;
  waiting.events = events;
  int error_number = 0;
  while (true) {
    error_number = EINTR;
    if (is_interrupted(interrupted)) break;
    error_number = ::ppoll(&waiting, 1, nullptr, &before) < 0 ? errno : 0;
    if (error_number != EINTR) break;
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return error_number;
}

}  // namespace kvbm
