// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/http/http_page_server.hpp"

#include <httplib.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <functional>
#include <utility>

#include "kvbm/base/latch.hpp"
#include "kvbm/base/text.hpp"

namespace kvbm {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr size_t kMostRequestBytes = 16384;

/// A client. httplib's own waits anew for each byte and takes lines without end; this one ends.
class Connection final : public httplib::Stream {
 public:
  Connection(int socket, Duration patience)
      : socket_(socket), deadline_(SteadyClock::now() + patience) {}
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  ~Connection() override {
    ::shutdown(socket_, SHUT_RDWR);
    ::close(socket_);
  }

  [[nodiscard]] bool is_readable() const override { return wait_for(POLLIN); }
  [[nodiscard]] bool is_writable() const override { return wait_for(POLLOUT); }
  ssize_t read(char* to, size_t size) override {
    if (left_ == 0 || !wait_for(POLLIN)) return -1;
    const ssize_t got = ::recv(socket_, to, std::min(size, left_), 0);
    if (got > 0) left_ -= static_cast<size_t>(got);
    return got;
  }
  ssize_t write(const char* from, size_t size) override {
    if (!wait_for(POLLOUT)) return -1;
    // A client that has gone is an error of the write, not the end of the process.
    const ssize_t sent = ::send(socket_, from, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    return sent < 0 && errno == EAGAIN ? 0 : sent;
  }
  void get_remote_ip_and_port(std::string& /*ip*/, int& /*port*/) const override {}
  void get_local_ip_and_port(std::string& /*ip*/, int& /*port*/) const override {}
  [[nodiscard]] socket_t socket() const override { return socket_; }

 private:
  [[nodiscard]] bool wait_for(short what) const {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline_ - SteadyClock::now());
    pollfd item{.fd = socket_, .events = what, .revents = 0};
    return left.count() > 0 && ::poll(&item, 1, static_cast<int>(left.count())) > 0;
  }

  const int socket_;
  const SteadyClock::time_point deadline_;
  size_t left_ = kMostRequestBytes;
};

class PageServer final : public httplib::Server {
 public:
  explicit PageServer(Duration patience) : patience_(patience) {}

  /// Closes the socket of a server that is bound and will not listen.
  void abandon() noexcept { ::close(svr_sock_.exchange(INVALID_SOCKET)); }

 private:
  bool process_and_close_socket(socket_t socket) override {
    Connection client(socket, patience_);
    bool is_closed = false;
    // Who still waits when the server stops gets no answer.
    return svr_sock_ != INVALID_SOCKET && process_request(client, true, is_closed, nullptr);
  }

  const Duration patience_;
};

/// httplib's server ignores SIGPIPE for the whole process when it is made: not ours to decide.
std::unique_ptr<PageServer> make_server(Duration patience) {
  struct sigaction before {};
  ::sigaction(SIGPIPE, nullptr, &before);
  auto server = std::make_unique<PageServer>(patience);
  ::sigaction(SIGPIPE, &before, nullptr);
  return server;
}

/// Runs requests on a queue of kvbm's. Where it is full they run at once: further ones wait.
class Requests final : public httplib::TaskQueue {
 public:
  explicit Requests(kvbm::TaskQueue& queue) : queue_(queue) {}

  void enqueue(std::function<void()> request) override {
    if (!queue_.try_post(Task(request))) request();
  }
  void shutdown() override {}  // the queue is stopped after the server

 private:
  kvbm::TaskQueue& queue_;
};

}  // namespace

struct HttpPageServer::Impl {
  explicit Impl(Duration patience) : server(make_server(patience)) {}

  std::unique_ptr<PageServer> server;
  Latch listening;
  uint16_t port = 0;
  std::unique_ptr<TaskQueue> queue;  // its threads go first

  Status listen(Executor& executor) {
    KVBM_ASSIGN_OR_RETURN(
        queue, executor.create_queue({.name = "kvbm-metrics", .num_threads = 3, .capacity = 16}));
    // The server can be stopped from here on: it makes its queue when it has begun to listen.
    server->new_task_queue = [this] {
      listening.set();
      return new Requests(*queue);
    };
    return queue->post([this] { server->listen_after_bind(); });
  }
};

Result<std::unique_ptr<HttpPageServer>> HttpPageServer::start(HttpPageServerOptions options) {
  auto impl = std::make_unique<Impl>(options.patience);
  httplib::Server& server = *impl->server;
  // httplib's own choice, SO_REUSEPORT, would let two processes share the port unnoticed.
  server.set_socket_options([](socket_t socket) {
    const int yes = 1;
    ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  });
  server.set_payload_max_length(0);
  server.Get(options.path, [page = std::move(options.page), type = std::move(options.content_type)](
                               const httplib::Request&, httplib::Response& response) {
    response.set_content(page(), type);
  });

  errno = 0;
  const int port = options.port == 0 ? server.bind_to_any_port(options.address)
                   : server.bind_to_port(options.address, options.port) ? options.port
                                                                        : -1;
  if (port < 0) {
    const int reason = errno;
    if (reason == EADDRINUSE) {
      return make_error(ErrorCode::kExhausted,
                        format_text("port {} of {} is in use; choose another one", options.port,
                                    options.address));
    }
    return make_error(Error::from_errno(
        format_text("cannot listen on port {} of {}", options.port, options.address),
        reason != 0 ? reason : EIO));
  }
  impl->port = static_cast<uint16_t>(port);

  if (Status begun = impl->listen(options.executor); !begun) {
    impl->server->abandon();
    return make_error(std::move(begun).error());
  }
  static_cast<void>(options.executor.wait(impl->listening, kNever));
  return std::unique_ptr<HttpPageServer>(new HttpPageServer(std::move(impl)));
}

HttpPageServer::HttpPageServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

HttpPageServer::~HttpPageServer() {
  impl_->server->stop();
  impl_->queue->stop();
}

uint16_t HttpPageServer::port() const noexcept { return impl_->port; }

}  // namespace kvbm
