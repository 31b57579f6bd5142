// SPDX-License-Identifier: Apache-2.0
// What builds with the HTTP adapter have.
#include <chrono>
#include <sstream>
#include <utility>

#include "kvbm/adapters/http/http_get.hpp"
#include "kvbm/adapters/http/http_page_server.hpp"
#include "kvbm/runtime/metrics_endpoint.hpp"

namespace kvbm {
namespace {

class HttpMetricsEndpoint final : public MetricsEndpoint {
 public:
  explicit HttpMetricsEndpoint(std::unique_ptr<HttpPageServer> server)
      : server_(std::move(server)) {}
  [[nodiscard]] uint16_t port() const noexcept override { return server_->port(); }

 private:
  const std::unique_ptr<HttpPageServer> server_;
};

}  // namespace

Result<std::unique_ptr<MetricsEndpoint>> MetricsEndpoint::start(
    Executor& executor, uint16_t port, std::vector<const MetricsRegistry*> registries) {
  KVBM_ASSIGN_OR_RETURN(
      auto server,
      HttpPageServer::start({.executor = executor,
                             .address = "0.0.0.0",
                             .port = port,
                             .path = "/metrics",
                             .content_type = "text/plain; version=0.0.4; charset=utf-8",
                             .page = [registries = std::move(registries)] {
                               std::ostringstream page;
                               write_prometheus_text(registries, page);
                               return std::move(page).str();
                             }}));
  return std::make_unique<HttpMetricsEndpoint>(std::move(server));
}

Result<std::string> read_metrics_page(const std::string& url) {
  return http_get(url, std::chrono::seconds(10));
}

}  // namespace kvbm
