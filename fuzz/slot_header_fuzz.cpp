// SPDX-License-Identifier: Apache-2.0
// Slot headers: no input crashes the decoder, and what it accepts encodes to the same bytes.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "kvbm/base/bytes.hpp"
#include "kvbm/base/hash.hpp"
#include "kvbm/layout/slot_format.hpp"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

void decode(std::span<const std::byte> input) {
  const kvbm::Result<kvbm::SlotHeader> header = kvbm::decode_slot_header(input);
  if (!header) {
    const kvbm::ErrorCode code = header.error().code();
    require(code == kvbm::ErrorCode::kCorrupt || code == kvbm::ErrorCode::kNotFound ||
            code == kvbm::ErrorCode::kUnsupported);
    return;
  }
  std::vector<std::byte> again(header->header_bytes);
  kvbm::encode_slot_header(*header, again);
  require(std::ranges::equal(std::span(again).first(kvbm::kSlotHeaderBytes),
                             input.first(kvbm::kSlotHeaderBytes)));
  const kvbm::SlotGeometry geometry{header->header_bytes, header->payload_bytes, 0};
  require(kvbm::check_slot_header(*header, geometry, header->tag).has_value());
  kvbm::SlotTag other = header->tag;
  other[0] ^= std::byte{1};
  require(!kvbm::check_slot_header(*header, geometry, other));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> input = std::as_bytes(std::span(data, size));
  decode(input);
  if (size < kvbm::kSlotHeaderBytes) return 0;
  // The same with the start and the checksum that a header has, so that the fields are reached: see
  // docs/formats/disk-slot.md.
  kvbm::ByteWriter header(kvbm::kSlotHeaderBytes);
  header.bytes(kvbm::bytes_of("KVBS"));
  header.u16(kvbm::kSlotVersion);
  header.bytes(input.subspan(6, 50));
  header.u64(kvbm::checksum(header.view()));
  decode(header.view());
  return 0;
}
