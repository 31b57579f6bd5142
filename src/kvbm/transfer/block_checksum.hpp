// SPDX-License-Identifier: Apache-2.0
// BlockChecksum: BLAKE3 of a block, by which both sides of a copy can be compared.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "kvbm/base/ids.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/layout/layout_config.hpp"
#include "kvbm/layout/layout_view.hpp"

namespace kvbm {

/// The BLAKE3 hash, of 32 bytes, of what a view has of a block, in canonical order: by layer,
/// outer, page, head. Format and place have no part in it, so source and destination of a copy
/// agree, also if it transforms. An opaque chunk is hashed as it lies: it agrees with other formats
/// where it is in the order of OperationalNHD. Source: https://github.com/BLAKE3-team/BLAKE3-specs
struct BlockChecksum {
  std::array<std::byte, 32> bytes = {};

  friend bool operator==(const BlockChecksum&, const BlockChecksum&) = default;
};

/// 64 hexadecimal digits, as b3sum prints them.
[[nodiscard]] std::string to_string(const BlockChecksum& checksum);

/// The host reads the block: nothing may be writing to it.
/// Errors: kInvalidArgument (a block out of range), kUnsupported (memory of a device or of a file:
/// copy the block to host memory first).
[[nodiscard]] Result<BlockChecksum> block_checksum(const LayoutView& view, BlockId block);

/// The same of some layers of the layout. Errors: also kInvalidArgument (see LayoutView::slice).
[[nodiscard]] Result<BlockChecksum> block_checksum(const LayoutView& view, BlockId block,
                                                   LayerRange layers);

/// One for each id, in their order. Errors: as block_checksum.
[[nodiscard]] Result<std::vector<BlockChecksum>> block_checksums(const LayoutView& view,
                                                                 std::span<const BlockId> ids);

}  // namespace kvbm
