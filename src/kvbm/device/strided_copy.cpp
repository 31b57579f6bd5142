// SPDX-License-Identifier: Apache-2.0
#include "kvbm/device/strided_copy.hpp"

#include <algorithm>
#include <optional>
#include <utility>

#include "kvbm/base/text.hpp"

namespace kvbm {

namespace {

uint64_t highest(const std::vector<BlockId>& ids) {
  return std::max_element(ids.begin(), ids.end())->value();
}

/// Steps of a piece in each block; none if they cannot be counted.
std::optional<uint64_t> steps_of(const StridedPiece& piece) {
  uint64_t steps = 1;
  for (const StridedAxis& axis : piece.axes) {
    if (axis.count == 0) return 0;
  }
  for (const StridedAxis& axis : piece.axes) {
    if (__builtin_mul_overflow(steps, axis.count, &steps)) return std::nullopt;
  }
  return steps;
}

/// Whether the last byte that a piece touches on one side is an address.
bool end_is_addressable(const void* base, uint64_t block, uint64_t block_stride,
                        const StridedPiece& piece, uint64_t StridedAxis::*stride) {
  uint64_t end = 0;
  if (__builtin_mul_overflow(block, block_stride, &end)) return false;
  for (const StridedAxis& axis : piece.axes) {
    uint64_t reach = 0;
    if (__builtin_mul_overflow(axis.count - 1, axis.*stride, &reach) ||
        __builtin_add_overflow(end, reach, &end)) {
      return false;
    }
  }
  return !__builtin_add_overflow(end, piece.bytes, &end) &&
         !__builtin_add_overflow(end, reinterpret_cast<uintptr_t>(base), &end);
}

}  // namespace

BlockList make_block_list(std::vector<BlockId> ids) {
  return std::make_shared<const std::vector<BlockId>>(std::move(ids));
}

std::string_view to_string(CopyMethod method) noexcept {
  switch (method) {
    case CopyMethod::kEngine:
      return "engine";
    case CopyMethod::kKernel:
      return "kernel";
  }
  return "unknown";
}

StridedPiece fold(const StridedPiece& piece) noexcept {
  StridedPiece folded = piece;
  folded.axes = {};
  size_t next = kStridedAxes;  // axes from here on are taken, the innermost last
  for (size_t i = kStridedAxes; i > 0; --i) {
    const StridedAxis& axis = piece.axes[i - 1];
    if (axis.count == 1) continue;
    if (next < kStridedAxes) {
      StridedAxis& inner = folded.axes[next];
      if (axis.src_stride == inner.src_stride * inner.count &&
          axis.dst_stride == inner.dst_stride * inner.count) {
        inner.count *= axis.count;
        continue;
      }
    } else if (axis.src_stride == folded.bytes && axis.dst_stride == folded.bytes) {
      folded.bytes *= axis.count;
      continue;
    }
    folded.axes[--next] = axis;
  }
  return folded;
}

size_t count_rows(std::span<const BlockId> from, std::span<const BlockId> to,
                  size_t first) noexcept {
  const auto step = [](std::span<const BlockId> ids, size_t i) {
    return int64_t{ids[i + 1].value()} - int64_t{ids[i].value()};
  };
  if (first + 1 == from.size()) return 1;
  const int64_t from_step = step(from, first);
  const int64_t to_step = step(to, first);
  if (from_step <= 0 || to_step <= 0) return 1;
  size_t last = first + 1;
  while (last + 1 < from.size() && step(from, last) == from_step && step(to, last) == to_step) {
    ++last;
  }
  const size_t length = last - first + 1;
  return length == 2 && (from_step != 1 || to_step != 1) ? 1 : length;
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
  if (batch.method == CopyMethod::kEngine && batch.max_ctas != 0) {
    return make_error(
        ErrorCode::kInvalidArgument,
        format_text("a copy batch for the copy engine is to hold at most {} CTAs, and "
                    "holds none; leave max_ctas at 0",
                    batch.max_ctas));
  }
  if (batch.method == CopyMethod::kEngine && batch.max_bytes_per_second != 0) {
    return make_error(
        ErrorCode::kInvalidArgument,
        format_text("a copy batch for the copy engine is to move at most {} bytes per "
                    "second, and keeps no pace; leave max_bytes_per_second at 0",
                    batch.max_bytes_per_second));
  }
  if (batch.from->empty()) return 0;

  const uint64_t last_from = highest(*batch.from);
  const uint64_t last_to = highest(*batch.to);
  uint64_t total = 0;
  for (size_t i = 0; i < batch.pieces.size(); ++i) {
    const StridedPiece& piece = batch.pieces[i];
    const std::optional<uint64_t> steps = steps_of(piece);
    if (piece.bytes == 0 || steps == 0) continue;
    const auto invalid = [i](const char* what) {
      return make_error(ErrorCode::kInvalidArgument,
                        format_text("piece {} of a copy batch {}", i, what));
    };
    if (piece.src == nullptr || piece.dst == nullptr) return invalid("has a null base");
    if (!end_is_addressable(piece.src, last_from, piece.src_block_stride, piece,
                            &StridedAxis::src_stride) ||
        !end_is_addressable(piece.dst, last_to, piece.dst_block_stride, piece,
                            &StridedAxis::dst_stride)) {
      return invalid("ends beyond the address space");
    }
    uint64_t bytes = 0;
    if (!steps || __builtin_mul_overflow(piece.bytes, *steps, &bytes) ||
        __builtin_mul_overflow(bytes, uint64_t{batch.from->size()}, &bytes) ||
        __builtin_add_overflow(total, bytes, &total)) {
      return invalid("makes the sum overflow");
    }
  }
  return total;
}

}  // namespace kvbm
