// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/remote_agent.hpp"

namespace kvbm {

std::string_view to_string(RemoteOp op) noexcept {
  switch (op) {
    case RemoteOp::kRead:
      return "read";
    case RemoteOp::kWrite:
      return "write";
  }
  return "unknown";
}

}  // namespace kvbm
