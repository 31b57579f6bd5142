// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/http/http_get.hpp"

#include <httplib.h>

#include <chrono>
#include <utility>

#include "kvbm/base/text.hpp"

namespace kvbm {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr size_t kMostBytes = size_t{64} << 20;
/// By which httplib may wait less than it is asked to.
constexpr Duration kRounding = std::chrono::milliseconds(1);

/// httplib calls a wait that was too long and a connection that has ended by one name.
ErrorCode code_of(httplib::Error error, bool has_waited) {
  switch (error) {
    case httplib::Error::Connection:
    case httplib::Error::BindIPAddress:
      return ErrorCode::kUnavailable;
    case httplib::Error::ConnectionTimeout:
      return ErrorCode::kTimeout;
    case httplib::Error::Read:
    case httplib::Error::Write:
      return has_waited ? ErrorCode::kTimeout : ErrorCode::kIo;
    default:
      return ErrorCode::kIo;
  }
}

}  // namespace

Result<std::string> http_get(const std::string& url, Duration timeout) {
  const auto invalid = [&url] {
    return make_error(ErrorCode::kInvalidArgument,
                      format_text("\"{}\" is no URL such as http://localhost:6880/metrics", url));
  };
  const size_t host = url.starts_with("http://") ? 7 : url.starts_with("https://") ? 8 : 0;
  if (host == 0) return invalid();
  const size_t slash = url.find('/', host);
  const std::string server = url.substr(0, slash);
  const std::string path = slash == std::string::npos ? "/" : url.substr(slash);
  if (server.size() == host) return invalid();

  httplib::Client client(server);
  if (!client.is_valid()) return invalid();
  client.set_connection_timeout(timeout);
  client.set_read_timeout(timeout);
  client.set_write_timeout(timeout);
  std::string text;
  bool is_too_long = false;
  int status = 0;
  SteadyClock::time_point last_heard = SteadyClock::now();
  const httplib::Result result = client.Get(
      path,
      [&](const httplib::Response& response) {
        status = response.status;
        last_heard = SteadyClock::now();
        return true;
      },
      [&](const char* data, size_t size) {
        is_too_long = size > kMostBytes - text.size();
        if (!is_too_long) text.append(data, size);
        last_heard = SteadyClock::now();
        return !is_too_long;
      });
  if (is_too_long) {
    return make_error(ErrorCode::kExhausted, format_text("{} gives more than 64 MiB", url));
  }
  if (!result) {
    const bool has_waited = SteadyClock::now() - last_heard + kRounding >= timeout;
    return make_error(code_of(result.error(), has_waited),
                      format_text("cannot read {}: {} failed; is the address right, and does the "
                                  "server run?",
                                  url, httplib::to_string(result.error())));
  }
  if (status != 200) {
    return make_error(status == 404 ? ErrorCode::kNotFound : ErrorCode::kIo,
                      format_text("{} answers with status {}", url, status));
  }
  return text;
}

}  // namespace kvbm
