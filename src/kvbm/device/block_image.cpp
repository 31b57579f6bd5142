// SPDX-License-Identifier: Apache-2.0
#include "kvbm/device/block_image.hpp"

#include <algorithm>
#include <functional>

namespace kvbm {
namespace {

struct Side {
  const std::byte* base;
  uint64_t block_stride;
};

Side side_of(const StridedPiece& piece, CopySide side) {
  return side == CopySide::kSource ? Side{piece.src, piece.src_block_stride}
                                   : Side{piece.dst, piece.dst_block_stride};
}

/// Of a piece in one block.
struct Footprint {
  uint64_t extent = 0;  ///< from the first byte to the last
  uint64_t bytes = 0;   ///< that are copied; 0: it touches nothing
};

Footprint footprint_of(const StridedPiece& piece, CopySide side) {
  Footprint footprint{.extent = piece.bytes, .bytes = piece.bytes};
  for (const StridedAxis& axis : piece.axes) {
    if (axis.count == 0) return {};
    footprint.bytes *= axis.count;
    footprint.extent +=
        (axis.count - 1) * (side == CopySide::kSource ? axis.src_stride : axis.dst_stride);
  }
  return footprint;
}

}  // namespace

std::optional<BlockImage> find_image(std::span<const StridedPiece> pieces, CopySide side) noexcept {
  const std::byte* first = nullptr;
  uintptr_t end = 0;
  uint64_t bytes = 0;
  uint64_t block_stride = 0;
  Footprint footprint;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const StridedPiece& piece = pieces[i];
    if (i == 0 || !same_form(piece, pieces[i - 1])) footprint = footprint_of(piece, side);
    if (footprint.bytes == 0) continue;
    const Side at = side_of(piece, side);
    if (first == nullptr) {
      first = at.base;
      block_stride = at.block_stride;
    }
    if (at.block_stride != block_stride) return std::nullopt;
    first = std::min(first, at.base, std::less<>());
    end = std::max(end, reinterpret_cast<uintptr_t>(at.base) + footprint.extent);
    bytes += footprint.bytes;
  }
  if (first == nullptr || end - reinterpret_cast<uintptr_t>(first) != bytes) return std::nullopt;
  return BlockImage{.base = first, .block_stride = block_stride, .bytes = bytes};
}

StridedPiece moved_to(const StridedPiece& piece, const BlockImage& image, CopySide side,
                      std::byte* memory) noexcept {
  StridedPiece moved = piece;
  if (side == CopySide::kSource) {
    moved.src = memory + (piece.src - image.base);
    moved.src_block_stride = image.bytes;
  } else {
    moved.dst = memory + (piece.dst - image.base);
    moved.dst_block_stride = image.bytes;
  }
  return moved;
}

StridedPiece image_piece(const BlockImage& image, CopySide side, std::byte* memory) noexcept {
  if (side == CopySide::kSource) {
    return {.src = image.base,
            .dst = memory,
            .src_block_stride = image.block_stride,
            .dst_block_stride = image.bytes,
            .bytes = image.bytes};
  }
  return {.src = memory,
          .dst = const_cast<std::byte*>(image.base),  // of pieces that write there
          .src_block_stride = image.bytes,
          .dst_block_stride = image.block_stride,
          .bytes = image.bytes};
}

}  // namespace kvbm
