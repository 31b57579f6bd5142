// SPDX-License-Identifier: Apache-2.0
// The wire form of protocol messages: docs/formats/protocol.md says it byte by byte.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "kvbm/base/result.hpp"
#include "kvbm/protocol/messages.hpp"

namespace kvbm {

/// The version that encode() writes and the newest that decode() reads.
inline constexpr uint16_t kProtocolVersion = 1;

/// What a message holds; the values are on the wire.
enum class MessageType : uint16_t {
  kCopyOp = 0x0001,
  kStepPlan = 0x0002,
  kOpResult = 0x0003,
  kPlaceSpec = 0x0004,
  kCopyOpBatch = 0x0101,
  kStepPlanBatch = 0x0102,
  kOpResultBatch = 0x0103,
  kPlaceSpecBatch = 0x0104,
};

/// "CopyOp" … "PlaceSpec batch".
[[nodiscard]] std::string_view to_string(MessageType type) noexcept;

/// One message each: header and body. Whatever these return, decode() takes back.
/// Contract: enumerators are named ones; a CopyOp has as many `to` as `from`, one tag a block or
/// none, and no negative timeout; an OpResult names failed positions only with kFailed; the body
/// fits 32 bits.
[[nodiscard]] std::vector<std::byte> encode(const CopyOp& op);
[[nodiscard]] std::vector<std::byte> encode(const StepPlan& plan);
[[nodiscard]] std::vector<std::byte> encode(const OpResult& result);
[[nodiscard]] std::vector<std::byte> encode(const PlaceSpec& spec);

/// A batch is one message.
[[nodiscard]] std::vector<std::byte> encode(std::span<const CopyOp> ops);
[[nodiscard]] std::vector<std::byte> encode(std::span<const StepPlan> plans);
[[nodiscard]] std::vector<std::byte> encode(std::span<const OpResult> results);
[[nodiscard]] std::vector<std::byte> encode(std::span<const PlaceSpec> specs);

template <class T>
concept ProtocolMessage = std::same_as<T, CopyOp> || std::same_as<T, std::vector<CopyOp>> ||
    std::same_as<T, StepPlan> || std::same_as<T, std::vector<StepPlan>> ||
    std::same_as<T, OpResult> || std::same_as<T, std::vector<OpResult>> ||
    std::same_as<T, PlaceSpec> || std::same_as<T, std::vector<PlaceSpec>>;

/// `message` is exactly one message and may be hostile: memory is allocated only for what its bytes
/// can hold. What is accepted is what encode() would have written, byte for byte. Errors:
/// kUnsupported (a newer version), kCorrupt (anything else, with the reason and the offset).
template <ProtocolMessage T>
[[nodiscard]] Result<T> decode(std::span<const std::byte> message);

/// The type of a message whose header and checksum hold, for a receiver that expects several. The
/// body may still be refused by decode(). Errors: as decode().
[[nodiscard]] Result<MessageType> message_type(std::span<const std::byte> message);

}  // namespace kvbm
