// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/zmq/channel_message.hpp"

#include <algorithm>
#include <array>
#include <type_traits>
#include <utility>

#include "kvbm/base/bytes.hpp"
#include "kvbm/base/hash.hpp"
#include "kvbm/base/text.hpp"
#include "kvbm/protocol/codec.hpp"

namespace kvbm {
namespace {

// The header: magic, checksum of all that follows it, versions of channel and protocol, type.
constexpr std::array<std::byte, 4> kMagic = {std::byte{'K'}, std::byte{'V'}, std::byte{'B'},
                                             std::byte{'Z'}};
constexpr size_t kChecksumOffset = kMagic.size();
constexpr size_t kCheckedOffset = kChecksumOffset + sizeof(uint64_t);

/// The type of a message on the wire.
template <class T, size_t kIndex = 0>
constexpr uint16_t type_of() {
  if constexpr (std::is_same_v<T, std::variant_alternative_t<kIndex, ChannelMessage>>) {
    return kIndex + 1;
  } else {
    return type_of<T, kIndex + 1>();
  }
}

ByteWriter open_message(uint16_t type) {
  ByteWriter out;
  out.bytes(kMagic);
  out.u64(0);  // the checksum
  out.u16(kChannelVersion);
  out.u16(kProtocolVersion);
  out.u16(type);
  return out;
}

std::vector<std::byte> seal(ByteWriter&& out) {
  out.patch_u64(kChecksumOffset, checksum(out.view().subspan(kCheckedOffset)));
  return std::move(out).take();
}

/// One message of the protocol, with its length before it.
void put_nested(ByteWriter& out, std::span<const std::byte> message) {
  out.count(message.size());
  out.bytes(message);
}

template <class T>
void get_nested(ByteReader& in, T& value) {
  const std::span<const std::byte> message = in.bytes(in.count(1));
  if (!in.ok()) return;
  Result<T> decoded = decode<T>(message);
  if (decoded) {
    value = *std::move(decoded);
  } else {
    in.fail(decoded.error().message());
  }
}

void put_text(ByteWriter& out, std::string_view text) {
  out.string(text.substr(0, kMaxChannelTextBytes));
}

std::string get_text(ByteReader& in) {
  const std::string_view text = in.string();
  if (text.size() > kMaxChannelTextBytes) {
    in.fail(format_text("a text of {} bytes", text.size()));
    return {};
  }
  return std::string(text);
}

void put_operations(ByteWriter& out, std::span<const CopyOp> ops, std::span<const OpId> cancels) {
  put_nested(out, encode(ops));
  out.count(cancels.size());
  for (const OpId op : cancels) out.u64(op.value());
}

void put(ByteWriter& out, const HelloMessage& message) {
  out.u16(message.rank.value());
  put_text(out, message.secret);
  put_nested(out, encode(std::span(message.places)));
}
void get(ByteReader& in, HelloMessage& message) {
  message.rank = RankId(in.u16());
  message.secret = get_text(in);
  get_nested(in, message.places);
}

void put(ByteWriter& out, const WelcomeMessage& message) {
  out.i64(message.heartbeat_interval.count());
  out.i64(message.dead_after.count());
}
void get(ByteReader& in, WelcomeMessage& message) {
  message.heartbeat_interval = Duration(in.i64());
  message.dead_after = Duration(in.i64());
  if (message.heartbeat_interval <= Duration::zero() || message.dead_after <= Duration::zero()) {
    in.fail("no time between heartbeats");
  }
}

void put(ByteWriter& out, const ProvideMessage& message) {
  out.u64(message.request);
  put_nested(out, encode(std::span(message.places)));
}
void get(ByteReader& in, ProvideMessage& message) {
  message.request = in.u64();
  get_nested(in, message.places);
}

void put(ByteWriter& out, const ProvidedMessage& message) { out.u64(message.request); }
void get(ByteReader& in, ProvidedMessage& message) { message.request = in.u64(); }

void put(ByteWriter& out, const RefusalMessage& message) {
  out.u64(message.request);
  out.u8(static_cast<uint8_t>(message.code));
  put_text(out, message.text);
}
void get(ByteReader& in, RefusalMessage& message) {
  message.request = in.u64();
  const uint8_t code = in.u8();
  if (code > static_cast<uint8_t>(ErrorCode::kInternal)) {
    in.fail(format_text("{} is no code of an error", code));
    return;
  }
  message.code = static_cast<ErrorCode>(code);
  message.text = get_text(in);
}

void put(ByteWriter& out, const OperationsMessage& message) {
  put_operations(out, message.ops, message.cancels);
}
void get(ByteReader& in, OperationsMessage& message) {
  get_nested(in, message.ops);
  for (const uint64_t op : in.u64_array()) message.cancels.emplace_back(op);
}

void put(ByteWriter& out, const ResultsMessage& message) {
  put_nested(out, encode(std::span(message.results)));
}
void get(ByteReader& in, ResultsMessage& message) { get_nested(in, message.results); }

void put(ByteWriter& /*out*/, const HeartbeatMessage& /*message*/) {}
void get(ByteReader& /*in*/, HeartbeatMessage& /*message*/) {}
void put(ByteWriter& /*out*/, const GoodbyeMessage& /*message*/) {}
void get(ByteReader& /*in*/, GoodbyeMessage& /*message*/) {}

void put(ByteWriter& out, const ShrunkMessage& message) {
  out.u8(static_cast<uint8_t>(message.place.tier));
  out.u16(message.place.group.value());
  out.u32(message.num_blocks);
}
void get(ByteReader& in, ShrunkMessage& message) {
  const uint8_t tier = in.u8();
  if (tier >= kNumTiers) {
    in.fail(format_text("{} is no tier", tier));
    return;
  }
  message.place = {static_cast<TierId>(tier), GroupId(in.u16())};
  message.num_blocks = in.u32();
}

/// The alternative that a type stands for; fails where there is none.
template <size_t kIndex = 0>
ChannelMessage get_body(ByteReader& in, uint16_t type) {
  if constexpr (kIndex < std::variant_size_v<ChannelMessage>) {
    if (type != kIndex + 1) return get_body<kIndex + 1>(in, type);
    std::variant_alternative_t<kIndex, ChannelMessage> message;
    get(in, message);
    return message;
  } else {
    in.fail(format_text("channel version {} has no message type {}", kChannelVersion, type));
    return HeartbeatMessage{};
  }
}

}  // namespace

std::string_view name_of(const ChannelMessage& message) noexcept {
  static constexpr std::array<std::string_view, std::variant_size_v<ChannelMessage>> kNames = {
      "hello",      "welcome", "provide",   "provided", "refusal",
      "operations", "results", "heartbeat", "goodbye",  "shrunk"};
  return kNames[message.index()];
}

std::vector<std::byte> encode(const ChannelMessage& message) {
  ByteWriter out = open_message(static_cast<uint16_t>(message.index() + 1));
  std::visit([&out](const auto& value) { put(out, value); }, message);
  return seal(std::move(out));
}

std::vector<std::byte> encode_operations(std::span<const CopyOp> ops,
                                         std::span<const OpId> cancels) {
  ByteWriter out = open_message(type_of<OperationsMessage>());
  put_operations(out, ops, cancels);
  return seal(std::move(out));
}

std::vector<std::byte> encode_results(std::span<const OpResult> results) {
  ByteWriter out = open_message(type_of<ResultsMessage>());
  put_nested(out, encode(results));
  return seal(std::move(out));
}

Result<ChannelMessage> decode_channel_message(std::span<const std::byte> message) {
  ByteReader in(message);
  const std::span<const std::byte> magic = in.bytes(kMagic.size());
  if (in.ok() && !std::equal(magic.begin(), magic.end(), kMagic.begin())) {
    in.fail("no message of a channel: it does not begin with KVBZ");
  }
  const uint64_t expected = in.u64();
  const uint16_t version = in.u16();
  const uint16_t protocol = in.u16();
  const uint16_t type = in.u16();
  if (in.ok() && expected != checksum(message.subspan(kCheckedOffset))) in.fail("wrong checksum");
  if (in.ok() && (version != kChannelVersion || protocol != kProtocolVersion)) {
    return make_error(
        ErrorCode::kUnsupported,
        format_text(
            "the message is of channel version {} and protocol version {}, this build reads "
            "{} and {}; run the same kvbm on leader and workers",
            version, protocol, kChannelVersion, kProtocolVersion));
  }
  KVBM_TRY(in.status());
  ChannelMessage value = get_body(in, type);
  KVBM_TRY(in.finish());
  return value;
}

}  // namespace kvbm
