// SPDX-License-Identifier: Apache-2.0
#include "kvbm/device/strided_copy.hpp"

#include <algorithm>
#include <array>
#include <functional>
#include <numeric>
#include <optional>
#include <utility>

#include "kvbm/base/text.hpp"

namespace kvbm {

namespace {

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

/// Where a piece ends on one side, from its base on; none if that is beyond all addresses.
std::optional<uint64_t> end_of(uint64_t block, uint64_t block_stride, const StridedPiece& piece,
                               uint64_t StridedAxis::*stride) {
  uint64_t end = 0;
  if (__builtin_mul_overflow(block, block_stride, &end)) return std::nullopt;
  for (const StridedAxis& axis : piece.axes) {
    uint64_t reach = 0;
    if (__builtin_mul_overflow(axis.count - 1, axis.*stride, &reach) ||
        __builtin_add_overflow(end, reach, &end)) {
      return std::nullopt;
    }
  }
  if (__builtin_add_overflow(end, piece.bytes, &end)) return std::nullopt;
  return end;
}

bool is_addressable(const void* base, std::optional<uint64_t> end) {
  return end && *end <= UINTPTR_MAX - reinterpret_cast<uintptr_t>(base);
}

/// What a look at a piece is about, apart from its bases.
struct PieceForm {
  bool is_empty = true;
  std::optional<uint64_t> src_end = std::nullopt;
  std::optional<uint64_t> dst_end = std::nullopt;
  std::optional<uint64_t> bytes = std::nullopt;  ///< of all blocks; none if they cannot be counted
};

PieceForm form_of(const StridedPiece& piece, uint64_t last_from, uint64_t last_to,
                  uint64_t num_blocks) {
  const std::optional<uint64_t> steps = steps_of(piece);
  if (piece.bytes == 0 || steps == 0) return {};
  PieceForm form{
      .is_empty = false,
      .src_end = end_of(last_from, piece.src_block_stride, piece, &StridedAxis::src_stride),
      .dst_end = end_of(last_to, piece.dst_block_stride, piece, &StridedAxis::dst_stride)};
  uint64_t bytes = 0;
  if (steps && !__builtin_mul_overflow(piece.bytes, *steps, &bytes) &&
      !__builtin_mul_overflow(bytes, num_blocks, &bytes)) {
    form.bytes = bytes;
  }
  return form;
}

/// The runs of axes [axis, kStridedAxes).
void copy_axes(const StridedPiece& piece, size_t axis, const std::byte* src,
               std::byte* dst) noexcept {
  if (axis == kStridedAxes) {
    std::copy_n(src, piece.bytes, dst);
    return;
  }
  const StridedAxis& loop = piece.axes[axis];
  for (uint64_t k = 0; k < loop.count; ++k) {
    copy_axes(piece, axis + 1, src + k * loop.src_stride, dst + k * loop.dst_stride);
  }
}

}  // namespace

void copy_on_host(const StridedPiece& piece, BlockId from, BlockId to) noexcept {
  // Axes of one entry, as fold() leaves them in front, cost nothing.
  size_t axis = 0;
  while (axis < kStridedAxes && piece.axes[axis].count == 1) ++axis;
  copy_axes(piece, axis, piece.src + from.value() * piece.src_block_stride,
            piece.dst + to.value() * piece.dst_block_stride);
}

PieceList::PieceList(std::vector<StridedPiece> pieces)
    : shared_(std::make_shared<const Shared>(std::move(pieces))) {}

PieceList::PieceList(std::initializer_list<StridedPiece> pieces)
    : PieceList(std::vector<StridedPiece>(pieces)) {}

PieceList::Shared::Shared(std::vector<StridedPiece> all) : pieces(std::move(all)) {
  for (size_t i = 0; i < pieces.size(); ++i) {
    const StridedPiece& piece = pieces[i];
    if (i == 0 || !same_form(piece, pieces[i - 1])) runs.push_back({.begin = i});
    PieceRun& run = runs.back();
    run.end = i + 1;
    run.has_null_base = run.has_null_base || piece.src == nullptr || piece.dst == nullptr;
    run.last_src = std::max(run.last_src, piece.src, std::less<>());
    run.last_dst = std::max<const std::byte*>(run.last_dst, piece.dst, std::less<>());
  }
}

const PreparedPieces& PieceList::keep(
    std::unique_ptr<const PreparedPieces> prepared) const noexcept {
  const PreparedPieces* kept = nullptr;
  if (shared_->prepared.compare_exchange_strong(kept, prepared.get(), std::memory_order_acq_rel)) {
    return *prepared.release();
  }
  return *kept;
}

std::string_view to_string(CopyMethod method) noexcept {
  switch (method) {
    case CopyMethod::kEngine:
      return "engine";
    case CopyMethod::kKernel:
      return "kernel";
    case CopyMethod::kRing:
      return "ring";
  }
  return "unknown";
}

bool same_form(const StridedPiece& a, const StridedPiece& b) noexcept {
  return a.bytes == b.bytes && a.src_block_stride == b.src_block_stride &&
         a.dst_block_stride == b.dst_block_stride && a.axes == b.axes;
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

Result<uint64_t> planned_bytes(const StridedCopyBatch& batch) {
  if (batch.pairs == nullptr) {
    return make_error(ErrorCode::kInvalidArgument, "a copy batch has no list of block ids");
  }
  if (batch.method == CopyMethod::kEngine && batch.max_ctas != 0) {
    return make_error(
        ErrorCode::kInvalidArgument,
        format_text("a copy batch for the copy engine is to hold at most {} CTAs, and "
                    "holds none; leave max_ctas at 0",
                    batch.max_ctas));
  }
  if (batch.method != CopyMethod::kKernel && batch.max_bytes_per_second != 0) {
    return make_error(
        ErrorCode::kInvalidArgument,
        format_text("a copy batch for the {} is to move at most {} bytes per second, and keeps no "
                    "pace; leave max_bytes_per_second at 0",
                    batch.method == CopyMethod::kEngine ? "copy engine" : "ring",
                    batch.max_bytes_per_second));
  }
  const BlockPairs& pairs = *batch.pairs;
  if (pairs.empty()) return 0;

  uint64_t total = 0;
  for (const PieceRun& run : batch.pieces.runs()) {
    const PieceForm form = form_of(batch.pieces[run.begin], pairs.from_range().highest,
                                   pairs.to_range().highest, pairs.size());
    if (form.is_empty) continue;
    const auto invalid = [&run](const char* what) {
      return make_error(ErrorCode::kInvalidArgument,
                        format_text("one of the pieces {} to {} of a copy batch {}", run.begin,
                                    run.end - 1, what));
    };
    if (run.has_null_base) return invalid("has a null base");
    if (!is_addressable(run.last_src, form.src_end) ||
        !is_addressable(run.last_dst, form.dst_end)) {
      return invalid("ends beyond the address space");
    }
    uint64_t bytes = 0;
    if (!form.bytes || __builtin_mul_overflow(*form.bytes, run.end - run.begin, &bytes) ||
        __builtin_add_overflow(total, bytes, &total)) {
      return invalid("makes the sum overflow");
    }
  }
  return total;
}

}  // namespace kvbm
