// SPDX-License-Identifier: Apache-2.0
#include "kvbm/device/strided_copy.hpp"

#include <algorithm>
#include <utility>

#include "kvbm/base/text.hpp"

namespace kvbm {

namespace {

uint64_t highest(const std::vector<BlockId>& ids) {
  return std::max_element(ids.begin(), ids.end())->value();
}

/// Whether base + block * block_stride + (count - 1) * stride + bytes is an address.
bool end_is_addressable(const void* base, uint64_t block, uint64_t block_stride, uint64_t count,
                        uint64_t stride, uint64_t bytes) {
  uint64_t offset = 0;
  uint64_t repeats = 0;
  return !__builtin_mul_overflow(block, block_stride, &offset) &&
         !__builtin_mul_overflow(count - 1, stride, &repeats) &&
         !__builtin_add_overflow(offset, repeats, &offset) &&
         !__builtin_add_overflow(offset, bytes, &offset) &&
         !__builtin_add_overflow(offset, reinterpret_cast<uintptr_t>(base), &offset);
}

}  // namespace

BlockList make_block_list(std::vector<BlockId> ids) {
  return std::make_shared<const std::vector<BlockId>>(std::move(ids));
}

Result<uint64_t> planned_bytes(const StridedCopyBatch& batch) {
  if (batch.from == nullptr || batch.to == nullptr) {
    return make_error(ErrorCode::kInvalidArgument, "a copy batch has no list of block ids");
  }
  if (batch.from->size() != batch.to->size()) {
    return make_error(ErrorCode::kInvalidArgument,
                      format_text("a copy batch goes from {} blocks to {}", batch.from->size(),
                                  batch.to->size()));
  }
  if (batch.from->empty()) return 0;

  const uint64_t last_from = highest(*batch.from);
  const uint64_t last_to = highest(*batch.to);
  uint64_t total = 0;
  for (size_t i = 0; i < batch.pieces.size(); ++i) {
    const StridedPiece& piece = batch.pieces[i];
    if (piece.bytes == 0 || piece.count == 0) continue;
    const auto invalid = [i](const char* what) {
      return make_error(ErrorCode::kInvalidArgument,
                        format_text("piece {} of a copy batch {}", i, what));
    };
    if (piece.src == nullptr || piece.dst == nullptr) return invalid("has a null base");
    if (!end_is_addressable(piece.src, last_from, piece.src_block_stride, piece.count,
                            piece.src_stride, piece.bytes) ||
        !end_is_addressable(piece.dst, last_to, piece.dst_block_stride, piece.count,
                            piece.dst_stride, piece.bytes)) {
      return invalid("ends beyond the address space");
    }
    uint64_t bytes = 0;
    if (__builtin_mul_overflow(piece.bytes, piece.count, &bytes) ||
        __builtin_mul_overflow(bytes, uint64_t{batch.from->size()}, &bytes) ||
        __builtin_add_overflow(total, bytes, &total)) {
      return invalid("makes the sum overflow");
    }
  }
  return total;
}

}  // namespace kvbm
