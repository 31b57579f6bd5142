// SPDX-License-Identifier: Apache-2.0
#include "apps/kvbm/interrupt.hpp"

#include <csignal>

namespace kvbm {
namespace {

std::atomic<bool> flag{false};
std::atomic<int> status{0};
static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<int>::is_always_lock_free,
              "a signal handler may touch nothing else");

void on_signal(int number) {
  status.store(128 + number, std::memory_order_relaxed);
  flag.store(true, std::memory_order_relaxed);
}

}  // namespace

void catch_interrupts() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  ::sigemptyset(&action.sa_mask);
  for (const int number : {SIGINT, SIGTERM}) {
    struct sigaction before {};
    // A signal that the parent had ignored (nohup, a background job) stays ignored.
    if (::sigaction(number, nullptr, &before) == 0 && before.sa_handler != SIG_IGN) {
      ::sigaction(number, &action, nullptr);
    }
  }
}

const std::atomic<bool>& interrupted() noexcept { return flag; }

int interrupt_status() noexcept { return status.load(std::memory_order_relaxed); }

}  // namespace kvbm
