// SPDX-License-Identifier: Apache-2.0
// HttpPageServer: gives one page, made anew for each request, over HTTP.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/executor.hpp"
#include "kvbm/base/result.hpp"

namespace kvbm {

struct HttpPageServerOptions {
  Executor& executor;   ///< with real threads
  std::string address;  ///< of this machine; "0.0.0.0": all of them
  uint16_t port = 0;    ///< 0: any that is free, see port()
  std::string path;     ///< "/metrics"
  std::string content_type;
  std::function<std::string()> page;  ///< called on threads of the server, three at a time
  Duration patience = std::chrono::seconds(5);  ///< for a client's request and the answer
};

/// Who asks with more than 16 KiB, or is too slow, is cut off. Ownership: borrows the executor,
/// which outlives it, and owns three threads of it. Destruction ends them; a request under way ends
/// first, after `patience` at the latest. Threads: one thread at a time.
class HttpPageServer {
 public:
  /// Errors: kExhausted (the port is in use, no threads), kIo (any other reason not to listen).
  [[nodiscard]] static Result<std::unique_ptr<HttpPageServer>> start(HttpPageServerOptions options);
  ~HttpPageServer();
  HttpPageServer(const HttpPageServer&) = delete;
  HttpPageServer& operator=(const HttpPageServer&) = delete;

  [[nodiscard]] uint16_t port() const noexcept;

 private:
  struct Impl;
  explicit HttpPageServer(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace kvbm
