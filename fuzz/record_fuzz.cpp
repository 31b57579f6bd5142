// SPDX-License-Identifier: Apache-2.0
// Flight records: no input crashes the reader, what it accepts encodes to the same bytes, and
// whatever the calls are, playing them ends.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "kvbm/base/bytes.hpp"
#include "kvbm/base/hash.hpp"
#include "kvbm/replay/record_replay.hpp"

namespace {

using kvbm::internal::RecordPlayer;

void require(bool condition) {
  if (!condition) std::abort();
}

kvbm::RecordHeader small_leader() {
  kvbm::RecordHeader header;
  header.connector.groups = {{.block_tokens = 4},
                             {.block_tokens = 8, .retention = kvbm::Retention::last_window(2)}};
  header.tiers.groups = kvbm::split_groups(header.connector.groups)->specs();
  header.tiers.engine_ids = kvbm::EngineIds::kOfOnePool;
  for (const kvbm::GroupSpec& group : header.tiers.groups) {
    for (const kvbm::TierId tier : {kvbm::TierId::kG1, kvbm::TierId::kG2, kvbm::TierId::kG3}) {
      header.tiers.places.push_back(
          {.place = {tier, group.id},
           .owner = tier == kvbm::TierId::kG1 ? kvbm::Owner::kEngine : kvbm::Owner::kKvbm,
           .num_blocks = 16,
           .rank_block_bytes = 512});
    }
  }
  return header;
}

void play(const std::vector<kvbm::RecordedCall>& calls, RecordPlayer::Mode mode) {
  kvbm::NullLogSink log;
  const auto player = RecordPlayer::create(small_leader(), mode, log);
  require(player.has_value());
  kvbm::RecordTally recorded;
  kvbm::RecordTally replayed;
  for (const kvbm::RecordedCall& call : calls) {
    if ((*player)->play(call, recorded, replayed)) return;
  }
}

void decode(std::span<const std::byte> input) {
  const auto file = kvbm::decode_record_file(input);
  if (!file) {
    const kvbm::ErrorCode code = file.error().code();
    require(code == kvbm::ErrorCode::kCorrupt || code == kvbm::ErrorCode::kUnsupported);
    return;
  }
  require(file->whole_bytes + file->cut_off_bytes == input.size());
  std::vector<std::byte> again = kvbm::encode(file->header);
  for (const kvbm::RecordedCall& call : file->calls) {
    const std::vector<std::byte> bytes = kvbm::encode(call);
    again.insert(again.end(), bytes.begin(), bytes.end());
  }
  require(std::ranges::equal(again, input.first(file->whole_bytes)));
  play(file->calls, RecordPlayer::Mode::kExact);
  play(file->calls, RecordPlayer::Mode::kCold);
}

void append_frame(kvbm::ByteWriter& out, std::span<const std::byte> payload) {
  out.count(payload.size());
  out.u64(kvbm::checksum(payload));
  out.bytes(payload);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> input = std::as_bytes(std::span(data, size));
  decode(input);
  // The same with frames that hold, so that what is in them is reached: see docs/formats/record.md.
  constexpr size_t kStart = 6;
  kvbm::ByteWriter as_header;
  as_header.bytes(kvbm::bytes_of("KVBR"));
  as_header.u16(kvbm::kRecordVersion);
  kvbm::ByteWriter as_calls;
  as_calls.bytes(kvbm::encode(small_leader()));
  if (size > kStart) append_frame(as_header, input.subspan(kStart));
  // Frame after frame as the input says, each with the checksum that it has to have.
  kvbm::ByteReader in(input.subspan(std::min(size, kStart)));
  while (in.remaining() > 0) {
    const uint32_t length = in.u32();
    in.skip(sizeof(uint64_t));
    if (!in.ok() || in.remaining() == 0) break;
    const auto payload = in.bytes(std::min<size_t>(length, in.remaining()));
    append_frame(as_calls, payload);
  }
  decode(as_header.view());
  decode(as_calls.view());
  return 0;
}
