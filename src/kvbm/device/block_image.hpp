// SPDX-License-Identifier: Apache-2.0
// BlockImage: what the pieces of a batch touch of a block on one side, where that is one run of
// bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "kvbm/device/strided_copy.hpp"

namespace kvbm {

enum class CopySide : uint8_t { kSource, kDestination };

/// Where a block lies on a side, so that its bytes may lie elsewhere for a while: at the same
/// distances from each other, one block `bytes` after another.
struct BlockImage {
  const std::byte* base = nullptr;  ///< of block 0, the first byte that a piece touches
  uint64_t block_stride = 0;
  uint64_t bytes = 0;  ///< from the first to the last, of any block

  friend bool operator==(const BlockImage&, const BlockImage&) = default;
};

/// None where the pieces leave gaps in a block, come to different places of different blocks, or
/// touch nothing.
///
/// It is found by counting: as many bytes are copied as lie between the first and the last one.
/// Writes of a batch never overlap, so those of a destination leave no byte out. Reads may, and
/// then a source may have gaps and be taken for one without; its image holds bytes too that nobody
/// asks for, and every byte that somebody does.
///
/// A pure function, one look at each piece. Requires: planned_bytes() takes the pieces with a
/// block.
[[nodiscard]] std::optional<BlockImage> find_image(std::span<const StridedPiece> pieces,
                                                   CopySide side) noexcept;

/// The piece with that side moved to a memory of images, the i-th of which is for block id i there.
/// `memory`: of the image of block id 0. Requires: a piece that touches something, of the image.
[[nodiscard]] StridedPiece moved_to(const StridedPiece& piece, const BlockImage& image,
                                    CopySide side, std::byte* memory) noexcept;

/// Whole blocks between such a memory and the side itself.
[[nodiscard]] StridedPiece image_piece(const BlockImage& image, CopySide side,
                                       std::byte* memory) noexcept;

}  // namespace kvbm
