// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/zmq/internal/channel_limits.hpp"

#include "kvbm/adapters/zmq/channel_message.hpp"
#include "kvbm/base/text.hpp"

namespace kvbm::internal {

// docs/formats/protocol.md
uint64_t wire_bytes(const CopyOp& op) noexcept {
  return 32 + 8 * uint64_t{op.from.size()} + sizeof(Tag) * op.tags.size() + 11 * op.after.size();
}

uint64_t wire_bytes(const OpResult& result) noexcept {
  return 23 + sizeof(uint32_t) * result.failed.size();
}

Status check_endpoint(std::string_view endpoint, std::string_view secret) {
  const bool is_tcp = endpoint.starts_with("tcp://");
  // ZeroMQ takes ipc://* too, and makes a folder for it in the working directory; and ipc://@name,
  // which is no file: no folder says who may come.
  if (!is_tcp && (!endpoint.starts_with("ipc://") || endpoint == "ipc://*" ||
                  endpoint.starts_with("ipc://@"))) {
    return make_error(ErrorCode::kInvalidArgument,
                      format_text("the endpoint is '{}'; it must be ipc://<path> or "
                                  "tcp://<address>:<port>",
                                  endpoint));
  }
  if (is_tcp && secret.empty()) {
    return make_error(ErrorCode::kInvalidArgument,
                      "with tcp anybody may come: give leader and workers a secret, or use ipc");
  }
  if (secret.size() > kMaxChannelTextBytes) {
    return make_error(ErrorCode::kInvalidArgument,
                      format_text("the secret has {} bytes; the most is {}", secret.size(),
                                  kMaxChannelTextBytes));
  }
  return {};
}

}  // namespace kvbm::internal
