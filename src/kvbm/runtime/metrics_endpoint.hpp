// SPDX-License-Identifier: Apache-2.0
// MetricsEndpoint: registries as a page for Prometheus over HTTP.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kvbm/base/executor.hpp"
#include "kvbm/base/metrics.hpp"
#include "kvbm/base/result.hpp"

namespace kvbm {

/// Serves http://…:port/metrics on all addresses of the machine. A request takes no lock but the
/// registries' own, for the time of copying a list of pointers; series are registered before steps
/// begin.
/// Ownership: borrows executor and registries, which outlive it. Destruction ends it.
class MetricsEndpoint {
 public:
  /// `port` 0: any that is free. Errors: kExhausted (the port is in use), kIo, kUnsupported (a
  /// build without HTTP).
  [[nodiscard]] static Result<std::unique_ptr<MetricsEndpoint>> start(
      Executor& executor, uint16_t port, std::vector<const MetricsRegistry*> registries);
  virtual ~MetricsEndpoint() = default;
  MetricsEndpoint(const MetricsEndpoint&) = delete;
  MetricsEndpoint& operator=(const MetricsEndpoint&) = delete;

  [[nodiscard]] virtual uint16_t port() const noexcept = 0;

 protected:
  MetricsEndpoint() = default;
};

/// The page behind a URL, within ten seconds. Errors: those of http_get, kUnsupported (a build
/// without HTTP).
[[nodiscard]] Result<std::string> read_metrics_page(const std::string& url);

}  // namespace kvbm
