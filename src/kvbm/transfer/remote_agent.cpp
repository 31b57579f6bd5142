// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/remote_agent.hpp"

#include <utility>

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

BlockList make_block_list(std::vector<BlockId> ids) {
  return std::make_shared<const std::vector<BlockId>>(std::move(ids));
}

}  // namespace kvbm
