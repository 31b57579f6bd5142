// SPDX-License-Identifier: Apache-2.0
// A build without an adapter for channels between processes.
#include "kvbm/runtime/internal/rank_link.hpp"

namespace kvbm::internal {
namespace {

tl::unexpected<Error> absent() {
  return make_error(ErrorCode::kUnsupported,
                    "workers in other processes need a build with -DKVBM_WITH_ZMQ=ON");
}

}  // namespace

Result<LeaderLink> wait_for_ranks(const LeaderLinkOptions& /*options*/, TimePoint /*deadline*/,
                                  Executor& /*executor*/, LogSink& /*log*/) {
  return absent();
}

Result<std::unique_ptr<WorkerLink>> connect_to_leader(WorkerLinkOptions /*options*/,
                                                      Worker& /*worker*/, Executor& /*executor*/,
                                                      LogSink& /*log*/) {
  return absent();
}

}  // namespace kvbm::internal
