// SPDX-License-Identifier: Apache-2.0
#include "kvbm/replay/interruptible.hpp"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <thread>

#include <gtest/gtest.h>

#include "kvbm/memory/file.hpp"

namespace kvbm {
namespace {

std::atomic<bool> flag{false};
std::atomic<bool> sets_flag{true};

void on_signal(int /*number*/) { flag.store(sets_flag.load()); }

class InterruptibleTest : public ::testing::Test {
 protected:
  InterruptibleTest() {
    struct sigaction action {};
    action.sa_handler = on_signal;
    ::sigemptyset(&action.sa_mask);
    ::sigaction(SIGUSR1, &action, &before_);
    std::array<int, 2> ends{};
    EXPECT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
    out_ = File(ends[0]);
    in_ = File(ends[1]);
    flag = false;
    sets_flag = true;
  }
  ~InterruptibleTest() override { ::sigaction(SIGUSR1, &before_, nullptr); }

  struct sigaction before_ {};
  File out_, in_;
};

TEST_F(InterruptibleTest, AWaitEndsWhenThereIsSomethingToDo) {
  EXPECT_EQ(wait_unless_interrupted(in_.fd(), POLLOUT, nullptr), 0);
  ASSERT_EQ(::write(in_.fd(), "x", 1), 1);
  EXPECT_EQ(wait_unless_interrupted(out_.fd(), POLLIN, &flag), 0);
  flag = true;
  EXPECT_EQ(wait_unless_interrupted(out_.fd(), POLLIN, &flag), EINTR);
}

TEST_F(InterruptibleTest, ASignalEndsAWait) {
  const pthread_t waiting = ::pthread_self();
  for (int round = 0; round < 200; ++round) {
    flag = false;
    std::thread sender([waiting] { ::pthread_kill(waiting, SIGUSR1); });
    EXPECT_EQ(wait_unless_interrupted(out_.fd(), POLLIN, &flag), EINTR);
    sender.join();
  }
}

TEST_F(InterruptibleTest, ASignalThatMeansSomethingElseDoesNot) {
  sets_flag = false;
  const pthread_t waiting = ::pthread_self();
  std::thread sender([this, waiting] {
    for (int i = 0; i < 100; ++i) ::pthread_kill(waiting, SIGUSR1);
    EXPECT_EQ(::write(in_.fd(), "x", 1), 1);
  });
  EXPECT_EQ(wait_unless_interrupted(out_.fd(), POLLIN, &flag), 0);
  sender.join();
}

}  // namespace
}  // namespace kvbm
