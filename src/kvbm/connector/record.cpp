// SPDX-License-Identifier: Apache-2.0
#include "kvbm/connector/record.hpp"

#include <algorithm>
#include <utility>

#include "kvbm/base/bytes.hpp"
#include "kvbm/base/hash.hpp"
#include "kvbm/base/text.hpp"
#include "kvbm/protocol/codec.hpp"

namespace kvbm {
namespace {

constexpr std::array<std::byte, 4> kMagic = {std::byte{'K'}, std::byte{'V'}, std::byte{'B'},
                                             std::byte{'R'}};
constexpr size_t kFrameBytes = sizeof(uint32_t) + sizeof(uint64_t);
constexpr uint8_t kInboxInput = 0;
constexpr uint8_t kWaitInput = 1;

// Length and checksum, which are known when the payload is.
class Frame {
 public:
  explicit Frame(ByteWriter& out) : out_(out), start_(out.size()) { out_.zeros(kFrameBytes); }
  void end() {
    const std::span<const std::byte> payload = out_.view().subspan(start_ + kFrameBytes);
    out_.patch_u32(start_, static_cast<uint32_t>(payload.size()));
    out_.patch_u64(start_ + sizeof(uint32_t), checksum(payload));
  }

 private:
  ByteWriter& out_;
  size_t start_;
};

bool read_bool(ByteReader& in) {
  const uint8_t value = in.u8();
  if (value > 1) in.fail("a truth value is neither 0 nor 1");
  return value == 1;
}

template <class Enum>
Enum read_enum(ByteReader& in, Enum last) {
  const uint8_t value = in.u8();
  if (value > static_cast<uint8_t>(last)) in.fail("a number that has no name");
  return static_cast<Enum>(value);
}

void write(ByteWriter& out, bool value) { out.u8(value ? 1 : 0); }
void write(ByteWriter& out, Duration value) { out.i64(value.count()); }
Duration read_duration(ByteReader& in) { return Duration(in.i64()); }

// 0: none, else one more than the code.
void write(ByteWriter& out, const std::optional<ErrorCode>& error) {
  out.u8(error ? static_cast<uint8_t>(static_cast<uint8_t>(*error) + 1) : 0);
}
std::optional<ErrorCode> read_error(ByteReader& in) {
  const uint8_t value = in.u8();
  if (value == 0) return std::nullopt;
  if (value > static_cast<uint8_t>(ErrorCode::kInternal) + 1) in.fail("an unknown error");
  return static_cast<ErrorCode>(value - 1);
}

void write(ByteWriter& out, const std::vector<std::vector<BlockId>>& groups) {
  out.count(groups.size());
  for (const std::vector<BlockId>& blocks : groups) {
    out.count(blocks.size());
    for (const BlockId block : blocks) out.u32(block.value());
  }
}
std::vector<std::vector<BlockId>> read_blocks(ByteReader& in) {
  std::vector<std::vector<BlockId>> groups(in.count(sizeof(uint32_t)));
  for (std::vector<BlockId>& blocks : groups) {
    const std::vector<uint32_t> ids = in.u32_array();
    blocks.reserve(ids.size());
    for (const uint32_t id : ids) blocks.emplace_back(id);
  }
  return groups;
}

// A member that is new in one of these options does not compile until it is written and read here,
// and the version of the format counted up: without it a replay would be of something else.

void write(ByteWriter& out, const ConnectorLeaderOptions& options) {
  const auto& [groups, ns, load_mode, min_priority, breaker] = options;
  const auto& [max_failures, pause] = breaker;
  out.count(groups.size());
  for (const auto& [block_tokens, retention] : groups) {
    out.u32(block_tokens);
    out.u32(retention.is_full_prefix() ? 0 : retention.window_blocks());
  }
  out.u64(ns.value());
  out.u8(static_cast<uint8_t>(load_mode));
  out.u32(min_priority);
  out.u32(max_failures);
  write(out, pause);
}

ConnectorLeaderOptions read_connector_options(ByteReader& in) {
  ConnectorLeaderOptions options;
  const size_t num_groups = in.count(2 * sizeof(uint32_t));
  for (size_t i = 0; i < num_groups; ++i) {
    const uint32_t block_tokens = in.u32();
    const uint32_t window = in.u32();
    if (window == UINT32_MAX) in.fail("a window without end");
    options.groups.push_back({block_tokens, window == 0 || !in.ok()
                                                ? Retention::full_prefix()
                                                : Retention::last_window(window)});
  }
  options.ns = NamespaceId(in.u64());
  options.load_mode = read_enum(in, LoadMode::kBetweenSteps);
  options.min_priority = in.u32();
  options.breaker.max_failures = in.u32();
  options.breaker.pause = read_duration(in);
  return options;
}

void write(ByteWriter& out, const TierManagerOptions& options) {
  const auto& [groups, places, num_ranks, policy, timeout, max_open_store_blocks, disk_filter,
               worker, engine_ids] = options;
  static_cast<void>(groups);  // the parts of the connector's
  out.count(places.size());
  for (const auto& [place, owner, spread, num_blocks, rank_block_bytes] : places) {
    out.u8(static_cast<uint8_t>(place.tier));
    out.u16(place.group.value());
    out.u8(static_cast<uint8_t>(owner));
    out.u8(static_cast<uint8_t>(spread));
    out.u32(num_blocks);
    out.u64(rank_block_bytes);
  }
  out.u32(num_ranks);
  out.u8(static_cast<uint8_t>(policy));
  write(out, timeout);
  out.u32(max_open_store_blocks);
  write(out, disk_filter);
  out.u64(worker.value());
  out.u8(static_cast<uint8_t>(engine_ids));
}

TierManagerOptions read_tier_options(ByteReader& in) {
  constexpr size_t kPlaceBytes = 17;
  TierManagerOptions options;
  options.places.resize(in.count(kPlaceBytes));
  for (PlaceSpec& place : options.places) {
    place.place.tier = read_enum(in, TierId::kG4);
    place.place.group = GroupId(in.u16());
    place.owner = read_enum(in, Owner::kEngine);
    place.spread = read_enum(in, Spread::kReplicated);
    place.num_blocks = in.u32();
    place.rank_block_bytes = in.u64();
  }
  options.num_ranks = in.u32();
  options.policy = read_enum(in, PolicyKind::kFifo);
  options.timeout = read_duration(in);
  options.max_open_store_blocks = in.u32();
  options.disk_filter = read_bool(in);
  options.worker = WorkerId(in.u64());
  options.engine_ids = read_enum(in, EngineIds::kOfOnePool);
  return options;
}

RecordHeader read_header(ByteReader& in) {
  RecordHeader header;
  header.run = in.u64();
  header.started = WallTime(read_duration(in));
  header.file = in.u64();
  header.first_call = in.u64();
  if (in.count(sizeof(uint64_t)) != kNumRecordCounters) in.fail("another number of counters");
  for (uint64_t& count : header.counts) count = in.u64();
  header.connector = read_connector_options(in);
  header.tiers = read_tier_options(in);
  if (!in.ok()) return header;
  if (const auto split = split_groups(header.connector.groups)) {
    header.tiers.groups = split->specs();
  } else {
    in.fail(split.error().message());
  }
  return header;
}

void write(ByteWriter& out, const ReceivedInbox& input) {
  out.u8(kInboxInput);
  out.u32(input.receive);
  const std::vector<std::byte> results = encode(std::span<const OpResult>(input.inbox.results));
  out.count(results.size());
  out.bytes(results);
  out.count(input.inbox.lost.size());
  for (const RankId rank : input.inbox.lost) out.u16(rank.value());
  out.count(input.inbox.shrunk.size());
  for (const auto& [rank, place, num_blocks] : input.inbox.shrunk) {
    out.u16(rank.value());
    out.u8(static_cast<uint8_t>(place.tier));
    out.u16(place.group.value());
    out.u32(num_blocks);
  }
}

void write(ByteWriter& out, const EndedWait& input) {
  out.u8(kWaitInput);
  write(out, input.has_come);
  write(out, input.time);
}

CallInput read_input(ByteReader& in) {
  const uint8_t kind = in.u8();
  if (kind == kWaitInput) {
    EndedWait input;
    input.has_come = read_bool(in);
    input.time = read_duration(in);
    return input;
  }
  if (kind != kInboxInput) in.fail("an unknown input");
  ReceivedInbox input;
  input.receive = in.u32();
  const auto message = in.bytes(in.count(1));
  if (in.ok()) {
    auto results = decode<std::vector<OpResult>>(message);
    if (results) {
      input.inbox.results = *std::move(results);
    } else {
      in.fail(results.error().message());
    }
  }
  const size_t num_lost = in.count(sizeof(uint16_t));
  for (size_t i = 0; i < num_lost; ++i) input.inbox.lost.emplace_back(in.u16());
  constexpr size_t kShrunkBytes = 9;
  input.inbox.shrunk.resize(in.count(kShrunkBytes));
  for (ShrunkPlace& shrunk : input.inbox.shrunk) {
    shrunk.rank = RankId(in.u16());
    shrunk.place.tier = read_enum(in, TierId::kG4);
    shrunk.place.group = GroupId(in.u16());
    shrunk.num_blocks = in.u32();
  }
  return input;
}

void write(ByteWriter& out, const ExtendCall& call) {
  out.string(call.request);
  out.u32(call.first);
  out.count(call.identities.size());
  for (const Identity& identity : call.identities) out.bytes(identity.bytes);
  write(out, call.priority.has_value());
  if (call.priority) out.u32(*call.priority);
}
void read(ByteReader& in, ExtendCall& call) {
  call.request = in.string();
  call.first = in.u32();
  call.identities.resize(in.count(Identity::kSize));
  for (Identity& identity : call.identities) {
    const auto bytes = in.bytes(Identity::kSize);
    std::copy(bytes.begin(), bytes.end(), identity.bytes.begin());
  }
  if (read_bool(in)) call.priority = in.u32();
}

void write(ByteWriter& out, const MatchCall& call) {
  out.string(call.request);
  out.u32(call.num_computed_tokens);
  out.u32(call.num_tokens);
  out.u32(call.offer.num_tokens);
  write(out, call.offer.between_steps);
}
void read(ByteReader& in, MatchCall& call) {
  call.request = in.string();
  call.num_computed_tokens = in.u32();
  call.num_tokens = in.u32();
  call.offer.num_tokens = in.u32();
  call.offer.between_steps = read_bool(in);
}

void write(ByteWriter& out, const AllocatedCall& call) {
  out.string(call.request);
  write(out, call.blocks);
  out.u32(call.num_external_tokens);
  write(out, call.error);
}
void read(ByteReader& in, AllocatedCall& call) {
  call.request = in.string();
  call.blocks = read_blocks(in);
  call.num_external_tokens = in.u32();
  call.error = read_error(in);
}

void write(ByteWriter& out, const BuildStepCall& call) {
  out.count(call.scheduled.size());
  for (const RecordedRequest& request : call.scheduled) {
    out.string(request.request);
    write(out, request.blocks);
    write(out, request.replaces_blocks);
    out.u32(request.num_computed_tokens);
    out.u32(request.num_scheduled_tokens);
  }
  out.count(call.step.size());
  out.bytes(call.step);
}
void read(ByteReader& in, BuildStepCall& call) {
  constexpr size_t kMinRequestBytes = 17;
  const size_t num_scheduled = in.count(kMinRequestBytes);
  for (size_t i = 0; i < num_scheduled && in.ok(); ++i) {
    RecordedRequest& request = call.scheduled.emplace_back();
    request.request = in.string();
    request.blocks = read_blocks(in);
    request.replaces_blocks = read_bool(in);
    request.num_computed_tokens = in.u32();
    request.num_scheduled_tokens = in.u32();
  }
  const auto step = in.bytes(in.count(1));
  call.step.assign(step.begin(), step.end());
}

void write(ByteWriter& out, const FinishedCall& call) {
  out.string(call.request);
  write(out, call.holds_blocks);
}
void read(ByteReader& in, FinishedCall& call) {
  call.request = in.string();
  call.holds_blocks = read_bool(in);
}

void write(ByteWriter& /*out*/, const PollCall& /*call*/) {}
void read(ByteReader& /*in*/, PollCall& /*call*/) {}

void write(ByteWriter& /*out*/, const ResetCall& /*call*/) {}
void read(ByteReader& /*in*/, ResetCall& /*call*/) {}

void write(ByteWriter& out, const WaitIdleCall& call) {
  write(out, call.deadline);
  write(out, call.error);
}
void read(ByteReader& in, WaitIdleCall& call) {
  call.deadline = read_duration(in);
  call.error = read_error(in);
}

template <size_t... kinds>
CallOfHalf read_call_of(ByteReader& in, size_t kind, std::index_sequence<kinds...> /*all*/) {
  CallOfHalf call;
  const bool known = ((kind == kinds && (read(in, call.emplace<kinds>()), true)) || ...);
  if (!known) in.fail("an unknown call");
  return call;
}

RecordedCall read_call(ByteReader& in) {
  RecordedCall call;
  const size_t kind = in.u8();
  call.number = in.u64();
  call.time = read_duration(in);
  call.threw = read_bool(in);
  const size_t num_inputs = in.count(1);
  for (size_t i = 0; i < num_inputs && in.ok(); ++i) call.inputs.push_back(read_input(in));
  call.sent = in.u64();
  call.call = read_call_of(in, kind, std::make_index_sequence<std::variant_size_v<CallOfHalf>>());
  const size_t num_counts = in.count(sizeof(uint8_t) + sizeof(uint64_t));
  for (size_t i = 0; i < num_counts && in.ok(); ++i) {
    const auto counter = read_enum(in, static_cast<RecordCounter>(kNumRecordCounters - 1));
    call.counts.push_back({counter, in.u64()});
  }
  return call;
}

// The payload of the next frame; none if it is not whole.
std::optional<std::span<const std::byte>> next_frame(ByteReader& in) {
  const uint32_t length = in.u32();
  const uint64_t expected = in.u64();
  const auto payload = in.bytes(length);
  if (!in.ok() || checksum(payload) != expected) return std::nullopt;
  return payload;
}

}  // namespace

std::string_view to_string(RecordCounter counter) noexcept {
  static constexpr std::array<std::string_view, kNumRecordCounters> kNames = {
      "g1_to_g2", "g1_to_g3",        "g2_to_g1",        "g2_to_g3",        "g3_to_g1",
      "g3_to_g2", "failed",          "evicted_g2",      "evicted_g3",      "lost_g2",
      "lost_g3",  "dropped_no_room", "dropped_backlog", "evicted_unsaved", "disk_filtered",
      "drained",  "given_up",        "loads_timed_out", "forgotten_g2",    "forgotten_g3"};
  return kNames[static_cast<size_t>(counter)];
}

RecordCounts counts_of(const TierMetrics& metrics) {
  RecordCounts counts{};
  const auto count = [&](RecordCounter counter) -> uint64_t& {
    return counts[static_cast<size_t>(counter)];
  };
  const auto arrived = [](TierId from, TierId to) {
    if (from == TierId::kG1) {
      return to == TierId::kG2 ? RecordCounter::kG1ToG2 : RecordCounter::kG1ToG3;
    }
    if (from == TierId::kG2) {
      return to == TierId::kG1 ? RecordCounter::kG2ToG1 : RecordCounter::kG2ToG3;
    }
    return to == TierId::kG1 ? RecordCounter::kG3ToG1 : RecordCounter::kG3ToG2;
  };
  for (const RouteMetrics* route : metrics.routes()) {
    count(arrived(route->from(), route->to())) = route->blocks();
    count(RecordCounter::kFailed) += route->failed_blocks();
  }
  constexpr auto kG2 = static_cast<size_t>(TierId::kG2);
  constexpr auto kG3 = static_cast<size_t>(TierId::kG3);
  count(RecordCounter::kEvictedG2) = metrics.evictions(TierId::kG2);
  count(RecordCounter::kEvictedG3) = metrics.evictions(TierId::kG3);
  count(RecordCounter::kLostG2) = metrics.lost[kG2]->value();
  count(RecordCounter::kLostG3) = metrics.lost[kG3]->value();
  count(RecordCounter::kForgottenG2) = metrics.forgotten[kG2]->value();
  count(RecordCounter::kForgottenG3) = metrics.forgotten[kG3]->value();
  count(RecordCounter::kDroppedNoRoom) = metrics.store_dropped_no_room.value();
  count(RecordCounter::kDroppedBacklog) = metrics.store_dropped_backlog.value();
  count(RecordCounter::kEvictedUnsaved) = metrics.evicted_unsaved.value();
  count(RecordCounter::kFiltered) = metrics.filtered.value();
  count(RecordCounter::kDrained) = metrics.drained_blocks.value();
  count(RecordCounter::kGivenUp) = metrics.corrupt_or_unreadable.value();
  count(RecordCounter::kLoadsTimedOut) = metrics.loads_timed_out.value();
  return counts;
}

void shrink_places(TierManagerOptions& tiers, std::span<const CallInput> inputs) {
  for (const CallInput& input : inputs) {
    const auto* received = std::get_if<ReceivedInbox>(&input);
    if (received == nullptr) continue;
    for (const ShrunkPlace& shrunk : received->inbox.shrunk) {
      // As a leader ignores it.
      if (shrunk.rank.value() >= tiers.num_ranks || shrunk.place.tier == TierId::kG1) continue;
      for (PlaceSpec& spec : tiers.places) {
        if (spec.place != shrunk.place) continue;
        spec.num_blocks = std::min(spec.num_blocks, std::max(1U, shrunk.num_blocks));
      }
    }
  }
}

std::string describe(const CallOfHalf& call) {
  struct Describe {
    // Names come from outside, and may go to a terminal.
    static std::string of_request(const char* what, std::string name) {
      const auto is_control = [](char letter) {
        return static_cast<unsigned char>(letter) < ' ' || letter == '\x7f';
      };
      std::replace_if(name.begin(), name.end(), is_control, '?');
      return std::string(what) + " of request " + name;
    }
    std::string operator()(const ExtendCall& of) const { return of_request("extend", of.request); }
    std::string operator()(const MatchCall& of) const { return of_request("match", of.request); }
    std::string operator()(const AllocatedCall& of) const {
      return of_request("allocated", of.request);
    }
    std::string operator()(const BuildStepCall& of) const {
      return format_text("build_step of {} requests", of.scheduled.size());
    }
    std::string operator()(const FinishedCall& of) const {
      return of_request("finished", of.request);
    }
    std::string operator()(const PollCall& /*of*/) const { return "poll"; }
    std::string operator()(const ResetCall& /*of*/) const { return "reset"; }
    std::string operator()(const WaitIdleCall& /*of*/) const { return "wait_idle"; }
  };
  return std::visit(Describe{}, call);
}

std::vector<std::byte> encode(const RecordHeader& header) {
  ByteWriter out;
  out.bytes(kMagic);
  out.u16(kRecordVersion);
  Frame frame(out);
  out.u64(header.run);
  write(out, header.started.time_since_epoch());
  out.u64(header.file);
  out.u64(header.first_call);
  out.u64_array(header.counts);
  write(out, header.connector);
  write(out, header.tiers);
  frame.end();
  return std::move(out).take();
}

std::vector<std::byte> encode(const RecordedCall& call) {
  ByteWriter out;
  Frame frame(out);
  out.u8(static_cast<uint8_t>(call.call.index()));
  out.u64(call.number);
  write(out, call.time);
  write(out, call.threw);
  out.count(call.inputs.size());
  for (const CallInput& input : call.inputs) {
    std::visit([&out](const auto& value) { write(out, value); }, input);
  }
  out.u64(call.sent);
  std::visit([&out](const auto& value) { write(out, value); }, call.call);
  out.count(call.counts.size());
  for (const ChangedCount& changed : call.counts) {
    out.u8(static_cast<uint8_t>(changed.counter));
    out.u64(changed.value);
  }
  frame.end();
  return std::move(out).take();
}

bool is_record(std::span<const std::byte> beginning) noexcept {
  return beginning.size() >= kMagic.size() &&
         std::equal(kMagic.begin(), kMagic.end(), beginning.begin());
}

Result<RecordFile> decode_record_file(std::span<const std::byte> file) {
  ByteReader in(file);
  if (!is_record(in.bytes(kMagic.size()))) in.fail("no record: it does not begin with KVBR");
  const uint16_t version = in.u16();
  if (in.ok() && version != kRecordVersion) {
    return make_error(ErrorCode::kUnsupported,
                      format_text("a record of version {}; this program reads version {}", version,
                                  kRecordVersion));
  }
  const auto head = in.ok() ? next_frame(in) : std::nullopt;
  if (in.ok() && !head) in.fail("the record's header does not fit its checksum");
  KVBM_TRY(in.status());
  RecordFile record;
  ByteReader header(*head);
  record.header = read_header(header);
  KVBM_TRY(header.finish());
  record.whole_bytes = in.offset();
  uint64_t next = record.header.first_call;
  while (in.remaining() > 0) {
    const auto payload = next_frame(in);
    if (!payload) break;
    ByteReader body(*payload);
    RecordedCall call = read_call(body);
    if (call.number < next) body.fail("the calls are not in order");
    if (const Status read = body.finish(); !read) {
      return tl::unexpected(
          Error(read.error())
              .with_context(format_text("the call at offset {}", in.offset() - payload->size())));
    }
    next = call.number + 1;
    record.whole_bytes = in.offset();
    record.calls.push_back(std::move(call));
  }
  record.cut_off_bytes = file.size() - record.whole_bytes;
  return record;
}

}  // namespace kvbm
