// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/http/http_page_server.hpp"

#include <httplib.h>
#include <signal.h>
#include <sys/socket.h>

#include <cerrno>
#include <chrono>
#include <utility>

#include "kvbm/base/latch.hpp"
#include "kvbm/base/text.hpp"

namespace kvbm {
namespace {

constexpr auto kPatience = std::chrono::seconds(2);  // with a slow client

/// httplib's server ignores SIGPIPE for the whole process when it is made: not ours to decide.
std::unique_ptr<httplib::Server> make_server() {
  struct sigaction before {};
  ::sigaction(SIGPIPE, nullptr, &before);
  auto server = std::make_unique<httplib::Server>();
  ::sigaction(SIGPIPE, &before, nullptr);
  return server;
}

/// A client that has gone is an error of the write, not the end of the process.
void block_sigpipe() {
  sigset_t pipe;
  sigemptyset(&pipe);
  sigaddset(&pipe, SIGPIPE);
  ::pthread_sigmask(SIG_BLOCK, &pipe, nullptr);
}

/// Runs requests on a queue of kvbm's. Where it is full they run at once: further ones wait.
class Requests final : public httplib::TaskQueue {
 public:
  explicit Requests(kvbm::TaskQueue& queue) : queue_(queue) {}

  void enqueue(std::function<void()> request) override {
    Task task([request] {
      block_sigpipe();
      request();
    });
    if (!queue_.try_post(std::move(task))) request();
  }
  void shutdown() override {}  // the queue is stopped after the server

 private:
  kvbm::TaskQueue& queue_;
};

}  // namespace

struct HttpPageServer::Impl {
  std::unique_ptr<httplib::Server> server = make_server();
  Latch listening;
  uint16_t port = 0;
  std::unique_ptr<TaskQueue> queue;  // its threads go first
};

Result<std::unique_ptr<HttpPageServer>> HttpPageServer::start(HttpPageServerOptions options) {
  auto impl = std::make_unique<Impl>();
  httplib::Server& server = *impl->server;
  // httplib's own choice, SO_REUSEPORT, would let two processes share the port unnoticed.
  server.set_socket_options([](socket_t socket) {
    const int yes = 1;
    ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  });
  server.set_keep_alive_max_count(1);
  server.set_read_timeout(kPatience);
  server.set_write_timeout(kPatience);
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

  KVBM_ASSIGN_OR_RETURN(
      impl->queue,
      options.executor.create_queue({.name = "kvbm-metrics", .num_threads = 3, .capacity = 16}));
  // The server can be stopped from here on: it makes its queue when it has begun to listen.
  server.new_task_queue = [&state = *impl] {
    state.listening.set();
    return new Requests(*state.queue);
  };
  KVBM_TRY(impl->queue->post([&server] {
    block_sigpipe();
    server.listen_after_bind();
  }));
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
