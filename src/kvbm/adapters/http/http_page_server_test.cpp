// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/http/http_page_server.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <string>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/adapters/http/http_get.hpp"
#include "kvbm/base/log.hpp"
#include "kvbm/base/thread_executor.hpp"

#include "tests/support/error_code.hpp"

namespace kvbm {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::code_of;
using ::testing::HasSubstr;

class HttpPageServerTest : public ::testing::Test {
 protected:
  Result<std::unique_ptr<HttpPageServer>> start(uint16_t port = 0, Duration patience = seconds(5)) {
    return HttpPageServer::start(
        {.executor = executor_,
         .address = "127.0.0.1",
         .port = port,
         .path = "/page",
         .content_type = "text/plain; version=0.0.4",
         .page = [this] { return "request " + std::to_string(++requests_) + "\n"; },
         .patience = patience});
  }
  static std::string url(const HttpPageServer& server, const std::string& path = "/page") {
    return "http://127.0.0.1:" + std::to_string(server.port()) + path;
  }
  /// A connection that asks `text` and leaves the rest to the caller.
  static int connect_and_say(const HttpPageServer& server, const std::string& text) {
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(server.port());
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof(to)), 0);
    EXPECT_EQ(::send(fd, text.data(), text.size(), 0), static_cast<ssize_t>(text.size()));
    return fd;
  }

  NullLogSink log_;
  ThreadExecutor executor_{log_};
  std::atomic<int> requests_{0};
};

TEST_F(HttpPageServerTest, MakesThePageAnewForEachRequest) {
  const auto server = start();
  ASSERT_TRUE(server) << server.error();
  EXPECT_EQ(http_get(url(**server), seconds(10)).value(), "request 1\n");
  EXPECT_EQ(http_get(url(**server), seconds(10)).value(), "request 2\n");
}

TEST_F(HttpPageServerTest, TellsTheTypeOfThePage) {
  const auto server = start();
  ASSERT_TRUE(server) << server.error();
  const int fd = connect_and_say(**server, "GET /page HTTP/1.1\r\nHost: a\r\n\r\n");
  std::string answer;
  char part[512];
  for (ssize_t n = 0; (n = ::recv(fd, part, sizeof(part), 0)) > 0;) {
    answer.append(part, static_cast<size_t>(n));
  }
  ::close(fd);
  EXPECT_THAT(answer, HasSubstr("Content-Type: text/plain; version=0.0.4\r\n"));
}

TEST_F(HttpPageServerTest, HasNoOtherPage) {
  const auto server = start();
  ASSERT_TRUE(server) << server.error();
  const auto other = http_get(url(**server, "/"), seconds(10));
  EXPECT_EQ(code_of(other), ErrorCode::kNotFound);
  EXPECT_EQ(requests_, 0);
}

TEST_F(HttpPageServerTest, APortInUseIsToldAndNotShared) {
  const auto first = start();
  ASSERT_TRUE(first) << first.error();
  const auto second = start((*first)->port());
  EXPECT_EQ(code_of(second), ErrorCode::kExhausted);
  EXPECT_THAT(second.error().message(),
              HasSubstr("port " + std::to_string((*first)->port()) + " of 127.0.0.1 is in use"));
}

TEST_F(HttpPageServerTest, ThePortIsFreeAtOnceWhenTheServerIsGone) {
  auto first = start();
  ASSERT_TRUE(first) << first.error();
  const uint16_t port = (*first)->port();
  EXPECT_TRUE(http_get(url(**first), seconds(10)));
  first->reset();
  EXPECT_EQ(code_of(http_get("http://127.0.0.1:" + std::to_string(port) + "/page", seconds(10))),
            ErrorCode::kUnavailable);
  const auto second = start(port);
  EXPECT_TRUE(second) << second.error();
}

TEST_F(HttpPageServerTest, StartsAndStopsAsOftenAsOneLikes) {
  for (int i = 0; i < 200; ++i) ASSERT_TRUE(start());
}

TEST_F(HttpPageServerTest, AClientThatSaysNothingKeepsNobodyWaiting) {
  auto server = start(0, seconds(1));
  ASSERT_TRUE(server) << server.error();
  const int silent = connect_and_say(**server, "GET /pa");
  EXPECT_EQ(http_get(url(**server), seconds(10)).value(), "request 1\n");
  server->reset();  // does not wait for the client for ever
  ::close(silent);
}

TEST_F(HttpPageServerTest, AClientThatNeverEndsItsRequestIsCutOff) {
  const auto server = start();
  ASSERT_TRUE(server) << server.error();
  const int fd = connect_and_say(**server, "GET /");
  const std::string more(4096, 'a');
  ssize_t sent = 0;
  for (int i = 0; i < 4096 && sent >= 0; ++i) {  // 16 MiB
    sent = ::send(fd, more.data(), more.size(), MSG_NOSIGNAL);
  }
  EXPECT_LT(sent, 0);
  ::close(fd);
}

TEST_F(HttpPageServerTest, AClientThatTricklesKeepsNobodyWaiting) {
  auto server = start(0, seconds(1));
  ASSERT_TRUE(server) << server.error();
  const int fd = connect_and_say(**server, "GET /");
  std::atomic<bool> is_over{false};
  auto queue = executor_.create_queue({.name = "trickle"});
  ASSERT_TRUE(queue) << queue.error();
  std::atomic<bool> was_cut_off{false};
  ASSERT_TRUE((*queue)->post([&] {
    char byte = 0;
    const timeval pause{.tv_sec = 0, .tv_usec = 200'000};
    ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &pause, sizeof(pause));
    for (int i = 0; i < 100 && !is_over && !was_cut_off; ++i) {
      ::send(fd, "a", 1, MSG_NOSIGNAL);
      was_cut_off = ::recv(fd, &byte, 1, 0) == 0 || (errno != EAGAIN && errno != EINTR);
    }
  }));
  EXPECT_TRUE(http_get(url(**server), seconds(10)));  // the other one has been let in before
  server->reset();  // does not wait for as long as the client goes on
  is_over = true;
  (*queue)->stop();
  EXPECT_TRUE(was_cut_off);
  ::close(fd);
}

TEST_F(HttpPageServerTest, AClientThatLeavesEarlyHarmsNobody) {
  const auto server = start();
  ASSERT_TRUE(server) << server.error();
  for (int i = 0; i < 50; ++i) {
    const int fd = connect_and_say(**server, "GET /page HTTP/1.1\r\n\r\n");
    const linger reset{.l_onoff = 1, .l_linger = 0};
    ::setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
    ::close(fd);
  }
  EXPECT_TRUE(http_get(url(**server), seconds(10)));
}

TEST_F(HttpPageServerTest, TheProcessKeepsItsSignals) {
  struct sigaction before {};
  ::sigaction(SIGPIPE, nullptr, &before);
  const auto server = start();
  struct sigaction after {};
  ::sigaction(SIGPIPE, nullptr, &after);
  EXPECT_EQ(before.sa_handler, after.sa_handler);
}

/// A system that gives no threads.
class ThreadlessExecutor final : public Executor {
 public:
  explicit ThreadlessExecutor(Executor& inner) : inner_(inner) {}

  [[nodiscard]] Result<std::unique_ptr<TaskQueue>> create_queue(QueueOptions /*options*/) override {
    return make_error(ErrorCode::kExhausted, "no thread");
  }
  [[nodiscard]] bool wait(const Latch& latch, TimePoint deadline) override {
    return inner_.wait(latch, deadline);
  }
  [[nodiscard]] const Clock& clock() const noexcept override { return inner_.clock(); }

 private:
  Executor& inner_;
};

TEST_F(HttpPageServerTest, WithoutThreadsItLeavesThePortFree) {
  auto first = start();
  ASSERT_TRUE(first) << first.error();
  const uint16_t port = (*first)->port();
  first->reset();
  ThreadlessExecutor threadless(executor_);
  const auto refused = HttpPageServer::start({.executor = threadless,
                                              .address = "127.0.0.1",
                                              .port = port,
                                              .path = "/page",
                                              .content_type = "text/plain",
                                              .page = [] { return std::string(); }});
  EXPECT_EQ(code_of(refused), ErrorCode::kExhausted);
  const auto second = start(port);
  EXPECT_TRUE(second) << second.error();
}

/// A server that says `answer` to each client and hangs up, or not.
class HttpGetTest : public HttpPageServerTest {
 protected:
  Result<std::string> get(const std::string& answer, bool hangs_up, Duration timeout) {
    const int listening = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in here{};
    here.sin_family = AF_INET;
    here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(here);
    EXPECT_EQ(::bind(listening, reinterpret_cast<const sockaddr*>(&here), size), 0);
    EXPECT_EQ(::listen(listening, 4), 0);
    EXPECT_EQ(::getsockname(listening, reinterpret_cast<sockaddr*>(&here), &size), 0);
    auto queue = executor_.create_queue({.name = "server"}).value();
    int client = -1;
    EXPECT_TRUE(queue->post([&] {
      client = ::accept4(listening, nullptr, nullptr, SOCK_CLOEXEC);
      char request[4096];
      EXPECT_GT(::recv(client, request, sizeof(request), 0), 0);
      EXPECT_EQ(::send(client, answer.data(), answer.size(), MSG_NOSIGNAL),
                static_cast<ssize_t>(answer.size()));
      if (hangs_up) ::close(client);
    }));
    Result<std::string> got =
        http_get("http://127.0.0.1:" + std::to_string(ntohs(here.sin_port)) + "/a", timeout);
    queue->stop();
    if (!hangs_up) ::close(client);
    ::close(listening);
    return got;
  }
};

TEST_F(HttpGetTest, AServerThatHangsUpTooEarlyIsNotSlow) {
  const std::string part = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf";
  for (const std::string& answer : {std::string(), std::string("HTTP/1.1 200"), part}) {
    EXPECT_EQ(code_of(get(answer, true, seconds(20))), ErrorCode::kIo) << answer;
    EXPECT_EQ(code_of(get(answer, false, milliseconds(100))), ErrorCode::kTimeout) << answer;
  }
}

TEST(HttpGet, RefusesWhatIsNoUrl) {
  for (const char* url :
       {"", "http", "http://", "ftp://a/b", "localhost:6880", "http:///metrics"}) {
    EXPECT_EQ(code_of(http_get(url, seconds(1))), ErrorCode::kInvalidArgument) << url;
  }
}

}  // namespace
}  // namespace kvbm
