// SPDX-License-Identifier: Apache-2.0
// The slot of a block in a file: a checked header, then the block in the order of its format.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kvbm/base/result.hpp"

namespace kvbm {

/// Opaque identity of a block's content: written with it and compared when it is read.
using SlotTag = std::array<std::byte, 32>;

/// Where things lie in a file of slots. Slot i starts at i * slot_bytes.
/// Units: bytes.
struct SlotGeometry {
  uint64_t header_bytes = 0;   ///< where the payload starts in a slot
  uint64_t payload_bytes = 0;  ///< the block, without gaps
  uint64_t slot_bytes = 0;     ///< from one slot to the next

  friend bool operator==(const SlotGeometry&, const SlotGeometry&) = default;
};

struct SlotOptions {
  /// Room for the header: a multiple of 64 up to 65472. A file with direct I/O takes the file's
  /// alignment here (usually 4096), so that the payload is aligned as well.
  uint64_t header_bytes = 64;
  uint64_t alignment = 4096;  ///< of slots; a power of two from 64 on
};

/// What files with direct I/O take.
inline constexpr SlotOptions kDirectSlots{.header_bytes = 4096, .alignment = 4096};

/// Errors: kInvalidArgument (an option outside its range, no payload, more than 2^63 bytes).
[[nodiscard]] Result<SlotGeometry> slot_geometry(uint64_t payload_bytes,
                                                 const SlotOptions& options = {});

/// What the header of a slot says.
/// Source: docs/formats/disk-slot.md
struct SlotHeader {
  uint64_t header_bytes = 0;
  uint64_t payload_bytes = 0;
  SlotTag tag{};
  uint64_t payload_checksum = 0;  ///< checksum() of the payload

  friend bool operator==(const SlotHeader&, const SlotHeader&) = default;
};

inline constexpr size_t kSlotHeaderBytes = 64;
inline constexpr uint16_t kSlotVersion = 1;

/// Writes the 64 bytes of the header and zeros up to header.header_bytes.
/// Contract: `out` has exactly header.header_bytes bytes, a multiple of 64 below 65536.
void encode_slot_header(const SlotHeader& header, std::span<std::byte> out);

/// Reads the first 64 bytes; what follows is not looked at. Takes hostile bytes.
/// Errors: kNotFound (64 zero bytes: nothing was ever written here, or it was erased), kUnsupported
/// (another version), kCorrupt (too short, no slot, or damaged; says which).
[[nodiscard]] Result<SlotHeader> decode_slot_header(std::span<const std::byte> in);

/// Whether a slot with this header is the one that is asked for, all but the payload's checksum.
/// Errors: kCorrupt (the sizes or the tag differ; says which).
[[nodiscard]] Status check_slot_header(const SlotHeader& header, const SlotGeometry& geometry,
                                       const SlotTag& tag);

}  // namespace kvbm
