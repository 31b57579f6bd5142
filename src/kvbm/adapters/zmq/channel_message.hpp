// SPDX-License-Identifier: Apache-2.0
// What the two ends of a channel between processes say to each other: docs/formats/channel.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/error.hpp"
#include "kvbm/base/ids.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/protocol/messages.hpp"

namespace kvbm {

/// The version that is written, and the only one that is read.
inline constexpr uint16_t kChannelVersion = 2;

/// The longest secret or error text.
inline constexpr size_t kMaxChannelTextBytes = 4096;

/// A worker wants to be a rank. `places` are its G1.
struct HelloMessage {
  RankId rank{0};
  std::string secret;
  std::vector<PlaceSpec> places;

  friend bool operator==(const HelloMessage&, const HelloMessage&) = default;
};

/// It is one, and both ends say something at least this often.
struct WelcomeMessage {
  Duration heartbeat_interval{1};
  Duration dead_after{1};

  friend bool operator==(const WelcomeMessage&, const WelcomeMessage&) = default;
};

/// The worker shall make these places. Requests are numbered from 1.
struct ProvideMessage {
  uint64_t request = 1;
  std::vector<PlaceSpec> places;

  friend bool operator==(const ProvideMessage&, const ProvideMessage&) = default;
};

struct ProvidedMessage {
  uint64_t request = 1;

  friend bool operator==(const ProvidedMessage&, const ProvidedMessage&) = default;
};

/// The answer to what could not be done: to a hello (`request` 0) or to a provide.
struct RefusalMessage {
  uint64_t request = 0;
  ErrorCode code = ErrorCode::kInternal;
  std::string text;

  friend bool operator==(const RefusalMessage&, const RefusalMessage&) = default;
};

struct OperationsMessage {
  std::vector<CopyOp> ops;
  std::vector<OpId> cancels;

  friend bool operator==(const OperationsMessage&, const OperationsMessage&) = default;
};

struct ResultsMessage {
  std::vector<OpResult> results;

  friend bool operator==(const ResultsMessage&, const ResultsMessage&) = default;
};

struct HeartbeatMessage {
  friend bool operator==(const HeartbeatMessage&, const HeartbeatMessage&) = default;
};

/// The sender says nothing any more.
struct GoodbyeMessage {
  friend bool operator==(const GoodbyeMessage&, const GoodbyeMessage&) = default;
};

/// A place of the sender has no more blocks than these.
struct ShrunkMessage {
  Place place;
  uint32_t num_blocks = 0;

  friend bool operator==(const ShrunkMessage&, const ShrunkMessage&) = default;
};

/// The index of an alternative, plus one, is its type on the wire.
using ChannelMessage = std::variant<HelloMessage, WelcomeMessage, ProvideMessage, ProvidedMessage,
                                    RefusalMessage, OperationsMessage, ResultsMessage,
                                    HeartbeatMessage, GoodbyeMessage, ShrunkMessage>;

/// "hello" … "shrunk".
[[nodiscard]] std::string_view name_of(const ChannelMessage& message) noexcept;

/// Texts that are too long are cut. Contract: that of the protocol's encode().
[[nodiscard]] std::vector<std::byte> encode(const ChannelMessage& message);
/// The same as an OperationsMessage and a ResultsMessage of these.
[[nodiscard]] std::vector<std::byte> encode_operations(std::span<const CopyOp> ops,
                                                       std::span<const OpId> cancels);
[[nodiscard]] std::vector<std::byte> encode_results(std::span<const OpResult> results);

/// `message` is one payload and may be hostile: memory is allocated only for what its bytes can
/// hold. What is accepted is what encode() would have written, byte for byte. Errors: kUnsupported
/// (another version of channel or protocol), kCorrupt (anything else).
[[nodiscard]] Result<ChannelMessage> decode_channel_message(std::span<const std::byte> message);

}  // namespace kvbm
