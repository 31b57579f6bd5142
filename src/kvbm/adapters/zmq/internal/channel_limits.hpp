// SPDX-License-Identifier: Apache-2.0
// What both ends of a channel keep to: sizes of messages, and who may listen where.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "kvbm/base/result.hpp"
#include "kvbm/protocol/messages.hpp"

namespace kvbm::internal {

/// Lists are sent in messages of about this size.
inline constexpr uint64_t kMessageBytes = uint64_t{1} << 20;
/// The largest operation.
inline constexpr uint64_t kMaxOperationBytes = uint64_t{64} << 20;
/// The largest message that a worker takes, and that the leader does: who sends more is cut off.
inline constexpr int64_t kMaxLeaderMessageBytes = int64_t{kMaxOperationBytes + kMessageBytes};
inline constexpr int64_t kMaxWorkerMessageBytes = int64_t{16} << 20;
/// The longest list of failed positions: a longer one is sent as "all of them".
inline constexpr size_t kMaxFailedPositions = size_t{3} << 20;
inline constexpr size_t kMaxCancels = 100'000;

/// After as many messages an end looks at its clock and its outbox.
inline constexpr int kMessagesPerTurn = 64;
/// For what somebody who is gone has said; more come from others.
inline constexpr int kMaxDrainTurns = 1000;

/// Bytes in a batch of the protocol.
[[nodiscard]] uint64_t wire_bytes(const CopyOp& op) noexcept;
[[nodiscard]] uint64_t wire_bytes(const OpResult& result) noexcept;

/// Errors: kInvalidArgument (neither ipc nor tcp, tcp without a secret, too long a secret).
Status check_endpoint(std::string_view endpoint, std::string_view secret);

}  // namespace kvbm::internal
