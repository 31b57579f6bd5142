// SPDX-License-Identifier: Apache-2.0
#include "kvbm/layout/slot_format.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <optional>

#include "kvbm/base/bytes.hpp"
#include "kvbm/base/contract.hpp"
#include "kvbm/base/hash.hpp"
#include "kvbm/base/text.hpp"
#include "kvbm/layout/layout_config.hpp"

namespace kvbm {
namespace {

// docs/formats/disk-slot.md
constexpr uint32_t kMagic = 0x5342'564b;  // "KVBS"
constexpr size_t kChecksumOffset = 56;
constexpr uint64_t kHeaderUnit = 64;
constexpr uint64_t kMaxHeaderBytes = 65536 - kHeaderUnit;

bool valid_header_bytes(uint64_t bytes) {
  return bytes >= kHeaderUnit && bytes <= kMaxHeaderBytes && bytes % kHeaderUnit == 0;
}

}  // namespace

Result<SlotGeometry> slot_geometry(uint64_t payload_bytes, const SlotOptions& options) {
  if (payload_bytes == 0) {
    return make_error(ErrorCode::kInvalidArgument, "a slot needs a payload, not 0 bytes");
  }
  if (!valid_header_bytes(options.header_bytes)) {
    return make_error(ErrorCode::kInvalidArgument,
                      format_text("slot header_bytes is {}, not a multiple of 64 up to {}",
                                  options.header_bytes, kMaxHeaderBytes));
  }
  if (options.alignment < kHeaderUnit || !std::has_single_bit(options.alignment)) {
    return make_error(
        ErrorCode::kInvalidArgument,
        format_text("slot alignment is {}, not a power of two from 64 on", options.alignment));
  }
  std::optional<uint64_t> bytes = internal::checked_add(options.header_bytes, payload_bytes);
  if (bytes) bytes = internal::checked_round_up(*bytes, options.alignment);
  if (!bytes || *bytes > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return make_error(ErrorCode::kInvalidArgument,
                      format_text("a slot of {} bytes is 2^63 bytes or more", payload_bytes));
  }
  return SlotGeometry{options.header_bytes, payload_bytes, *bytes};
}

void encode_slot_header(const SlotHeader& header, std::span<std::byte> out) {
  KVBM_CONTRACT(valid_header_bytes(header.header_bytes) && out.size() == header.header_bytes,
                format_text("a slot header of {} bytes into {}", header.header_bytes, out.size()));
  ByteWriter writer(kSlotHeaderBytes);
  writer.u32(kMagic);
  writer.u16(kSlotVersion);
  writer.u16(static_cast<uint16_t>(header.header_bytes));
  writer.u64(header.payload_bytes);
  writer.bytes(header.tag);
  writer.u64(header.payload_checksum);
  writer.u64(checksum(writer.view()));
  std::memcpy(out.data(), writer.view().data(), kSlotHeaderBytes);
  std::ranges::fill(out.subspan(kSlotHeaderBytes), std::byte{0});
}

Result<SlotHeader> decode_slot_header(std::span<const std::byte> in) {
  if (in.size() < kSlotHeaderBytes) {
    return make_error(ErrorCode::kCorrupt, format_text("a slot header takes {} bytes, there are {}",
                                                       kSlotHeaderBytes, in.size()));
  }
  in = in.first(kSlotHeaderBytes);
  if (std::ranges::all_of(in, [](std::byte byte) { return byte == std::byte{0}; })) {
    return make_error(ErrorCode::kNotFound, "the slot is empty");
  }
  ByteReader reader(in);
  if (const uint32_t magic = reader.u32(); magic != kMagic) {
    return make_error(ErrorCode::kCorrupt,
                      format_text("no slot header: it starts with {}", HexText{magic}));
  }
  if (const uint16_t version = reader.u16(); version != kSlotVersion) {
    return make_error(
        ErrorCode::kUnsupported,
        format_text("slot version is {}, this build reads version {}", version, kSlotVersion));
  }
  SlotHeader header;
  header.header_bytes = reader.u16();
  header.payload_bytes = reader.u64();
  std::ranges::copy(reader.bytes(header.tag.size()), header.tag.begin());
  header.payload_checksum = reader.u64();
  if (const uint64_t stored = reader.u64(); stored != checksum(in.first(kChecksumOffset))) {
    return make_error(ErrorCode::kCorrupt, "the checksum of the slot header does not match");
  }
  if (!valid_header_bytes(header.header_bytes)) {
    return make_error(ErrorCode::kCorrupt,
                      format_text("a slot header says that it has {} bytes", header.header_bytes));
  }
  return header;
}

Status check_slot_header(const SlotHeader& header, const SlotGeometry& geometry,
                         const SlotTag& tag) {
  if (header.header_bytes != geometry.header_bytes ||
      header.payload_bytes != geometry.payload_bytes) {
    return make_error(ErrorCode::kCorrupt,
                      format_text("the slot has {} + {} bytes of header and payload, not {} + {}",
                                  header.header_bytes, header.payload_bytes, geometry.header_bytes,
                                  geometry.payload_bytes));
  }
  if (header.tag != tag) {
    return make_error(ErrorCode::kCorrupt, "the slot holds another block: its tag differs");
  }
  return {};
}

}  // namespace kvbm
