// SPDX-License-Identifier: Apache-2.0
#include "kvbm/protocol/codec.hpp"

#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <optional>
#include <type_traits>

#include "kvbm/base/bytes.hpp"
#include "kvbm/base/hash.hpp"
#include "kvbm/base/text.hpp"

namespace kvbm {
namespace {

// The header: magic, checksum of all that follows it, version, type, body length.
constexpr std::array<std::byte, 4> kMagic = {std::byte{'K'}, std::byte{'V'}, std::byte{'B'},
                                             std::byte{'P'}};
constexpr size_t kChecksumOffset = 4;
constexpr size_t kCheckedOffset = 12;
constexpr size_t kHeaderBytes = 20;

// What the wire says of a structure: its message types, and its size without the lists in it.
template <class T>
struct Wire;
template <>
struct Wire<Gate> {
  static constexpr size_t kMinBytes = 11;
};
template <>
struct Wire<CopyOp> {
  static constexpr MessageType kType = MessageType::kCopyOp;
  static constexpr MessageType kBatchType = MessageType::kCopyOpBatch;
  static constexpr size_t kMinBytes = 32;
};
template <>
struct Wire<StepPlan> {
  static constexpr MessageType kType = MessageType::kStepPlan;
  static constexpr MessageType kBatchType = MessageType::kStepPlanBatch;
  static constexpr size_t kMinBytes = 24;
};
template <>
struct Wire<OpResult> {
  static constexpr MessageType kType = MessageType::kOpResult;
  static constexpr MessageType kBatchType = MessageType::kOpResultBatch;
  static constexpr size_t kMinBytes = 23;
};
template <>
struct Wire<PlaceSpec> {
  static constexpr MessageType kType = MessageType::kPlaceSpec;
  static constexpr MessageType kBatchType = MessageType::kPlaceSpecBatch;
  static constexpr size_t kMinBytes = 17;
};
template <class T>
struct Wire<std::vector<T>> {
  static constexpr MessageType kType = Wire<T>::kBatchType;
};

// What an enumerator is called in a reason, and the last one there is.
template <class E>
struct EnumRange;
template <>
struct EnumRange<TierId> {
  static constexpr std::string_view kName = "tier";
  static constexpr auto kLast = TierId::kG4;
};
template <>
struct EnumRange<Owner> {
  static constexpr std::string_view kName = "owner";
  static constexpr auto kLast = Owner::kEngine;
};
template <>
struct EnumRange<Spread> {
  static constexpr std::string_view kName = "spread";
  static constexpr auto kLast = Spread::kReplicated;
};
template <>
struct EnumRange<Gate::Kind> {
  static constexpr std::string_view kName = "kind of gate";
  static constexpr auto kLast = Gate::Kind::kOpDone;
};
template <>
struct EnumRange<Priority> {
  static constexpr std::string_view kName = "priority";
  static constexpr auto kLast = Priority::kOffload;
};
template <>
struct EnumRange<Outcome> {
  static constexpr std::string_view kName = "outcome";
  static constexpr auto kLast = Outcome::kCancelled;
};

template <class E>
void put_enum(ByteWriter& out, E value) {
  KVBM_CONTRACT(value <= EnumRange<E>::kLast,
                format_text("{} is no {}", static_cast<unsigned>(value), EnumRange<E>::kName));
  out.u8(static_cast<uint8_t>(value));
}

template <class E>
E get_enum(ByteReader& in) {
  const uint8_t value = in.u8();
  if (value > static_cast<uint8_t>(EnumRange<E>::kLast)) {
    in.fail(format_text("{} is no {}", value, EnumRange<E>::kName));
    return E{};
  }
  return static_cast<E>(value);
}

// Lists without a count before them, copied as they lie in memory.
static_assert(std::endian::native == std::endian::little,
              "a port to a big-endian machine has to swap the values of lists here");

template <class T>
void put_raw(ByteWriter& out, const std::vector<T>& values) {
  static_assert(std::is_trivially_copyable_v<T>);
  out.bytes(std::as_bytes(std::span(values)));
}

// Requires: in.count() has allowed `count`.
template <class T>
std::vector<T> get_raw(ByteReader& in, size_t count) {
  static_assert(std::is_trivially_copyable_v<T>);
  const std::span<const std::byte> raw = in.bytes(count * sizeof(T));
  std::vector<T> values(raw.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), raw.data(), raw.size());
  return values;
}

template <class T>
void put_list(ByteWriter& out, const std::vector<T>& values) {
  out.count(values.size());
  put_raw(out, values);
}

template <class T>
std::vector<T> get_list(ByteReader& in) {
  return get_raw<T>(in, in.count(sizeof(T)));
}

void put(ByteWriter& out, const Place& place) {
  put_enum(out, place.tier);
  out.u16(place.group.value());
}

void get(ByteReader& in, Place& place) {
  place.tier = get_enum<TierId>(in);
  place.group = GroupId(in.u16());
}

void put(ByteWriter& out, const Gate& gate) {
  put_enum(out, gate.kind);
  out.u64(gate.id);
  out.u16(gate.layer.value());
}

void get(ByteReader& in, Gate& gate) {
  gate.kind = get_enum<Gate::Kind>(in);
  gate.id = in.u64();
  gate.layer = LayerId(in.u16());
}

void put(ByteWriter& out, const CopyOp& op);
void put(ByteWriter& out, const StepPlan& plan);
void put(ByteWriter& out, const OpResult& result);
void put(ByteWriter& out, const PlaceSpec& spec);
void get(ByteReader& in, CopyOp& op);
void get(ByteReader& in, StepPlan& plan);
void get(ByteReader& in, OpResult& result);
void get(ByteReader& in, PlaceSpec& spec);

// A list of structures: a count, then each.
template <class T>
void put_each(ByteWriter& out, std::span<const T> values) {
  out.count(values.size());
  for (const T& value : values) put(out, value);
}

template <class T>
std::vector<T> get_each(ByteReader& in) {
  const size_t count = in.count(Wire<T>::kMinBytes);
  std::vector<T> values;
  values.reserve(count);
  for (size_t i = 0; i < count && in.ok(); ++i) get(in, values.emplace_back());
  return values;
}

void put(ByteWriter& out, const CopyOp& op) {
  KVBM_CONTRACT(op.from.size() == op.to.size(),
                format_text("operation {} copies {} blocks to {} blocks", op.op, op.from.size(),
                            op.to.size()));
  KVBM_CONTRACT(
      op.tags.empty() || op.tags.size() == op.from.size(),
      format_text("operation {} has {} tags for {} blocks", op.op, op.tags.size(), op.from.size()));
  KVBM_CONTRACT(op.timeout.count() >= 0, format_text("operation {} has a negative timeout", op.op));
  out.u64(op.op.value());
  put(out, op.src);
  put(out, op.dst);
  put_enum(out, op.priority);
  out.i64(op.timeout.count());
  out.u8(op.tags.empty() ? 0 : 1);
  out.count(op.from.size());
  put_raw(out, op.from);
  put_raw(out, op.to);
  put_raw(out, op.tags);
  put_each<Gate>(out, op.after);
}

void get(ByteReader& in, CopyOp& op) {
  op.op = OpId(in.u64());
  get(in, op.src);
  get(in, op.dst);
  op.priority = get_enum<Priority>(in);
  op.timeout = std::chrono::nanoseconds(in.i64());
  if (op.timeout.count() < 0) in.fail("a negative timeout");
  const uint8_t has_tags = in.u8();
  if (has_tags > 1) in.fail(format_text("{} is no answer to whether there are tags", has_tags));
  const size_t count = in.count(2 * sizeof(BlockId) + (has_tags != 0 ? sizeof(Tag) : 0));
  if (has_tags != 0 && count == 0) in.fail("tags without blocks");
  op.from = get_raw<BlockId>(in, count);
  op.to = get_raw<BlockId>(in, count);
  if (has_tags != 0) op.tags = get_raw<Tag>(in, count);
  op.after = get_each<Gate>(in);
}

void put(ByteWriter& out, const StepPlan& plan) {
  out.u64(plan.step.value());
  put_each<CopyOp>(out, plan.loads);
  put_each<CopyOp>(out, plan.stores);
  put_list(out, plan.fences);
  put_list(out, plan.cancels);
}

void get(ByteReader& in, StepPlan& plan) {
  plan.step = StepId(in.u64());
  plan.loads = get_each<CopyOp>(in);
  plan.stores = get_each<CopyOp>(in);
  plan.fences = get_list<OpId>(in);
  plan.cancels = get_list<OpId>(in);
}

void put(ByteWriter& out, const OpResult& result) {
  KVBM_CONTRACT(result.failed.empty() || result.outcome == Outcome::kFailed,
                format_text("operation {} did not fail, but {} of its blocks did", result.op,
                            result.failed.size()));
  out.u64(result.op.value());
  out.u16(result.rank.value());
  put_enum(out, result.outcome);
  out.u64(result.bytes);
  put_list(out, result.failed);
}

void get(ByteReader& in, OpResult& result) {
  result.op = OpId(in.u64());
  result.rank = RankId(in.u16());
  result.outcome = get_enum<Outcome>(in);
  result.bytes = in.u64();
  result.failed = get_list<uint32_t>(in);
  if (!result.failed.empty() && result.outcome != Outcome::kFailed) {
    in.fail("failed blocks in an operation that did not fail");
  }
}

void put(ByteWriter& out, const PlaceSpec& spec) {
  put(out, spec.place);
  put_enum(out, spec.owner);
  put_enum(out, spec.spread);
  out.u32(spec.num_blocks);
  out.u64(spec.rank_block_bytes);
}

void get(ByteReader& in, PlaceSpec& spec) {
  get(in, spec.place);
  spec.owner = get_enum<Owner>(in);
  spec.spread = get_enum<Spread>(in);
  spec.num_blocks = in.u32();
  spec.rank_block_bytes = in.u64();
}

// --- messages -----------------------------------------------------------------------------------

// Encoded sizes, so that a buffer is allocated once.
size_t encoded_bytes(const CopyOp& op) {
  return Wire<CopyOp>::kMinBytes + (op.from.size() + op.to.size()) * sizeof(BlockId) +
         op.tags.size() * sizeof(Tag) + op.after.size() * Wire<Gate>::kMinBytes;
}
size_t encoded_bytes(const OpResult& result) {
  return Wire<OpResult>::kMinBytes + result.failed.size() * sizeof(uint32_t);
}
size_t encoded_bytes(const PlaceSpec& /*spec*/) { return Wire<PlaceSpec>::kMinBytes; }
size_t encoded_bytes(const StepPlan& plan) {
  size_t bytes =
      Wire<StepPlan>::kMinBytes + (plan.fences.size() + plan.cancels.size()) * sizeof(OpId);
  for (const CopyOp& op : plan.loads) bytes += encoded_bytes(op);
  for (const CopyOp& op : plan.stores) bytes += encoded_bytes(op);
  return bytes;
}

ByteWriter open_message(MessageType type, size_t body_bytes) {
  KVBM_CONTRACT(body_bytes <= std::numeric_limits<uint32_t>::max(),
                format_text("a {} of {} bytes does not fit one message", type, body_bytes));
  ByteWriter out(kHeaderBytes + body_bytes);
  out.bytes(kMagic);
  out.u64(0);
  out.u16(kProtocolVersion);
  out.u16(static_cast<uint16_t>(type));
  out.u32(static_cast<uint32_t>(body_bytes));
  return out;
}

std::vector<std::byte> seal(ByteWriter&& out) {
  out.patch_u64(kChecksumOffset, checksum(out.view().subspan(kCheckedOffset)));
  return std::move(out).take();
}

template <class T>
std::vector<std::byte> encode_one(const T& value) {
  ByteWriter out = open_message(Wire<T>::kType, encoded_bytes(value));
  put(out, value);
  return seal(std::move(out));
}

template <class T>
std::vector<std::byte> encode_batch(std::span<const T> values) {
  size_t body_bytes = sizeof(uint32_t);
  for (const T& value : values) body_bytes += encoded_bytes(value);
  ByteWriter out = open_message(Wire<T>::kBatchType, body_bytes);
  put_each(out, values);
  return seal(std::move(out));
}

std::optional<MessageType> known_type(uint16_t value) {
  switch (const auto type = static_cast<MessageType>(value)) {
    case MessageType::kCopyOp:
    case MessageType::kStepPlan:
    case MessageType::kOpResult:
    case MessageType::kPlaceSpec:
    case MessageType::kCopyOpBatch:
    case MessageType::kStepPlanBatch:
    case MessageType::kOpResultBatch:
    case MessageType::kPlaceSpecBatch:
      return type;
  }
  return std::nullopt;
}

// Checks magic, length, checksum, version and type, in this order, and leaves `in` before the body.
Result<MessageType> open(std::span<const std::byte> message, ByteReader& in) {
  if (message.size() < kHeaderBytes) {
    return make_error(ErrorCode::kCorrupt, format_text("{} bytes are no message: its header has {}",
                                                       message.size(), kHeaderBytes));
  }
  const std::span<const std::byte> magic = in.bytes(kMagic.size());
  if (std::memcmp(magic.data(), kMagic.data(), kMagic.size()) != 0) {
    return make_error(ErrorCode::kCorrupt, "this is no kvbm message: it does not begin with KVBP");
  }
  const uint64_t expected_checksum = in.u64();
  const uint16_t version = in.u16();
  const uint16_t type_value = in.u16();
  const size_t length = in.u32();
  if (length != in.remaining()) {
    return make_error(
        ErrorCode::kCorrupt,
        format_text("the message announces a body of {} bytes and has {}", length, in.remaining()));
  }
  const uint64_t found_checksum = checksum(message.subspan(kCheckedOffset));
  if (found_checksum != expected_checksum) {
    return make_error(ErrorCode::kCorrupt,
                      format_text("the checksum of the message is {}, it should be {}",
                                  HexText{found_checksum}, HexText{expected_checksum}));
  }
  if (version > kProtocolVersion) {
    return make_error(
        ErrorCode::kUnsupported,
        format_text("the message is of protocol version {}, this build reads up to {}; "
                    "run the same kvbm on leader and workers",
                    version, kProtocolVersion));
  }
  if (version == 0) return make_error(ErrorCode::kCorrupt, "there is no protocol version 0");
  const std::optional<MessageType> type = known_type(type_value);
  if (!type) {
    return make_error(ErrorCode::kCorrupt, format_text("protocol version {} has no message type {}",
                                                       version, type_value));
  }
  return *type;
}

template <class T>
void get_body(ByteReader& in, T& value) {
  get(in, value);
}

template <class T>
void get_body(ByteReader& in, std::vector<T>& values) {
  values = get_each<T>(in);
}

}  // namespace

std::string_view to_string(MessageType type) noexcept {
  switch (type) {
    case MessageType::kCopyOp:
      return "CopyOp";
    case MessageType::kStepPlan:
      return "StepPlan";
    case MessageType::kOpResult:
      return "OpResult";
    case MessageType::kPlaceSpec:
      return "PlaceSpec";
    case MessageType::kCopyOpBatch:
      return "CopyOp batch";
    case MessageType::kStepPlanBatch:
      return "StepPlan batch";
    case MessageType::kOpResultBatch:
      return "OpResult batch";
    case MessageType::kPlaceSpecBatch:
      return "PlaceSpec batch";
  }
  return "unknown";
}

std::vector<std::byte> encode(const CopyOp& op) { return encode_one(op); }
std::vector<std::byte> encode(const StepPlan& plan) { return encode_one(plan); }
std::vector<std::byte> encode(const OpResult& result) { return encode_one(result); }
std::vector<std::byte> encode(const PlaceSpec& spec) { return encode_one(spec); }
std::vector<std::byte> encode(std::span<const CopyOp> ops) { return encode_batch(ops); }
std::vector<std::byte> encode(std::span<const StepPlan> plans) { return encode_batch(plans); }
std::vector<std::byte> encode(std::span<const OpResult> results) { return encode_batch(results); }
std::vector<std::byte> encode(std::span<const PlaceSpec> specs) { return encode_batch(specs); }

template <ProtocolMessage T>
Result<T> decode(std::span<const std::byte> message) {
  ByteReader in(message);
  KVBM_ASSIGN_OR_RETURN(const MessageType type, open(message, in));
  if (type != Wire<T>::kType) {
    return make_error(ErrorCode::kCorrupt,
                      format_text("the message holds {}, {} is expected", type, Wire<T>::kType));
  }
  T value;
  get_body(in, value);
  if (Status status = in.finish(); !status) {
    return make_error(std::move(status).error().with_context(to_string(type)));
  }
  return value;
}

template Result<CopyOp> decode<CopyOp>(std::span<const std::byte>);
template Result<StepPlan> decode<StepPlan>(std::span<const std::byte>);
template Result<OpResult> decode<OpResult>(std::span<const std::byte>);
template Result<PlaceSpec> decode<PlaceSpec>(std::span<const std::byte>);
template Result<std::vector<CopyOp>> decode<std::vector<CopyOp>>(std::span<const std::byte>);
template Result<std::vector<StepPlan>> decode<std::vector<StepPlan>>(std::span<const std::byte>);
template Result<std::vector<OpResult>> decode<std::vector<OpResult>>(std::span<const std::byte>);
template Result<std::vector<PlaceSpec>> decode<std::vector<PlaceSpec>>(std::span<const std::byte>);

Result<MessageType> message_type(std::span<const std::byte> message) {
  ByteReader in(message);
  return open(message, in);
}

}  // namespace kvbm
