// SPDX-License-Identifier: Apache-2.0
// What builds without the HTTP adapter have.
#include "kvbm/runtime/metrics_endpoint.hpp"

namespace kvbm {
namespace {

tl::unexpected<Error> unsupported() {
  return make_error(ErrorCode::kUnsupported,
                    "this build speaks no HTTP: configure it with -DKVBM_WITH_HTTP=ON");
}

}  // namespace

Result<std::unique_ptr<MetricsEndpoint>> MetricsEndpoint::start(
    Executor& /*executor*/, uint16_t /*port*/, std::vector<const MetricsRegistry*> /*registries*/) {
  return unsupported();
}

Result<std::string> read_metrics_page(const std::string& /*url*/) { return unsupported(); }

}  // namespace kvbm
