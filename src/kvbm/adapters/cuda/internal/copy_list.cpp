// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cuda/internal/copy_list.hpp"

#include <algorithm>
#include <array>

namespace kvbm::internal {

namespace {

/// A loop around a run: an axis of a piece, or a row of blocks.
using Loop = StridedAxis;
constexpr size_t kMostLoops = kStridedAxes + 1;

struct Loops {
  std::array<Loop, kMostLoops> all;
  size_t count = 0;

  void add(const Loop& loop) { all[count++] = loop; }
  void remove(size_t i) {
    for (size_t k = i + 1; k < count; ++k) all[k - 1] = all[k];
    --count;
  }
};

class Expansion {
 public:
  Expansion(std::span<const uintptr_t> cuts, CopyList& out) : cuts_(cuts), out_(out) {}

  void add(const std::byte* src, std::byte* dst, uint64_t width, Loops loops) {
    merge(width, loops);
    // The longest loop whose rows do not overlap becomes the rows of a rectangle.
    size_t rows = loops.count;
    for (size_t i = 0; i < loops.count; ++i) {
      const Loop& loop = loops.all[i];
      const bool fits = loop.src_stride >= width && loop.dst_stride >= width &&
                        loop.src_stride <= kMostRectPitch && loop.dst_stride <= kMostRectPitch;
      if (fits && (rows == loops.count || loop.count > loops.all[rows].count)) rows = i;
    }
    Loop row_loop;
    if (rows < loops.count) {
      row_loop = loops.all[rows];
      loops.remove(rows);
    }
    walk(src, dst, width, row_loop, loops, 0);
  }

 private:
  /// Joins what touches on both sides.
  static void merge(uint64_t& width, Loops& loops) {
    for (bool again = true; again;) {
      again = false;
      for (size_t i = 0; i < loops.count && !again; ++i) {
        const Loop& loop = loops.all[i];
        if (loop.count == 1 || (loop.src_stride == width && loop.dst_stride == width)) {
          width *= loop.count;
          loops.remove(i);
          again = true;
        }
      }
      for (size_t i = 0; i < loops.count && !again; ++i) {
        for (size_t k = 0; k < loops.count && !again; ++k) {
          Loop& inner = loops.all[i];
          const Loop& outer = loops.all[k];
          if (i == k || outer.src_stride != inner.src_stride * inner.count ||
              outer.dst_stride != inner.dst_stride * inner.count) {
            continue;
          }
          inner.count *= outer.count;
          loops.remove(k);
          again = true;
        }
      }
    }
  }

  void walk(const std::byte* src, std::byte* dst, uint64_t width, const Loop& rows,
            const Loops& loops, size_t depth) {
    if (depth == loops.count) {
      add_rows(src, dst, width, rows);
      return;
    }
    const Loop& loop = loops.all[depth];
    for (uint64_t k = 0; k < loop.count; ++k) {
      walk(src + k * loop.src_stride, dst + k * loop.dst_stride, width, rows, loops, depth + 1);
    }
  }

  void add_rows(const std::byte* src, std::byte* dst, uint64_t width, Loop rows) {
    while (rows.count > 0) {
      const uint64_t whole = std::min(rows_before_cut(src, width, rows.src_stride, rows.count),
                                      rows_before_cut(dst, width, rows.dst_stride, rows.count));
      const uint64_t taken = std::max<uint64_t>(whole, 1);
      if (whole >= kLeastRows) {
        out_.rects.push_back({.src = src,
                              .dst = dst,
                              .width = width,
                              .rows = whole,
                              .src_pitch = rows.src_stride,
                              .dst_pitch = rows.dst_stride});
      } else {
        for (uint64_t i = 0; i < taken; ++i) {
          add_run(src + i * rows.src_stride, dst + i * rows.dst_stride, width);
        }
      }
      src += taken * rows.src_stride;
      dst += taken * rows.dst_stride;
      rows.count -= taken;
    }
  }

  /// Bytes until the next cut that lies inside the run, or all of it.
  [[nodiscard]] uint64_t bytes_before_cut(const void* base, uint64_t bytes) const {
    const auto address = reinterpret_cast<uintptr_t>(base);
    const auto cut = std::upper_bound(cuts_.begin(), cuts_.end(), address);
    return cut == cuts_.end() ? bytes : std::min(bytes, uint64_t{*cut - address});
  }

  [[nodiscard]] uint64_t rows_before_cut(const void* base, uint64_t width, uint64_t pitch,
                                         uint64_t rows) const {
    const uint64_t extent = (rows - 1) * pitch + width;
    const uint64_t until_cut = bytes_before_cut(base, extent);
    if (until_cut == extent) return rows;
    return until_cut < width ? 0 : 1 + (until_cut - width) / pitch;
  }

  void add_run(const std::byte* src, std::byte* dst, uint64_t bytes) {
    while (bytes > 0) {
      const uint64_t part = std::min(bytes_before_cut(src, bytes), bytes_before_cut(dst, bytes));
      if (!extend(src, dst, part)) {
        out_.run_src.push_back(src);
        out_.run_dst.push_back(dst);
        out_.run_bytes.push_back(part);
      }
      src += part;
      dst += part;
      bytes -= part;
    }
  }

  /// Makes the last run longer if this one touches it on both sides.
  [[nodiscard]] bool extend(const std::byte* src, const std::byte* dst, uint64_t bytes) {
    if (out_.run_bytes.empty()) return false;
    const uint64_t last = out_.run_bytes.back();
    if (static_cast<const std::byte*>(out_.run_src.back()) + last != src ||
        static_cast<const std::byte*>(out_.run_dst.back()) + last != dst || is_cut(src) ||
        is_cut(dst)) {
      return false;
    }
    out_.run_bytes.back() += bytes;
    return true;
  }

  [[nodiscard]] bool is_cut(const void* address) const {
    return std::binary_search(cuts_.begin(), cuts_.end(), reinterpret_cast<uintptr_t>(address));
  }

  std::span<const uintptr_t> cuts_;
  CopyList& out_;
};

}  // namespace

void CopyList::clear() noexcept {
  rects.clear();
  run_src.clear();
  run_dst.clear();
  run_bytes.clear();
}

void expand(std::span<const StridedPiece> pieces, const BlockPairs& pairs,
            std::span<const uintptr_t> cuts, CopyList& out) {
  const std::vector<BlockId>& from = pairs.from();
  const std::vector<BlockId>& to = pairs.to();
  Expansion expansion(cuts, out);
  for (const StridedPiece& each : pieces) {
    const bool empty =
        each.bytes == 0 ||
        std::ranges::any_of(each.axes, [](const StridedAxis& axis) { return axis.count == 0; });
    if (empty) continue;
    const StridedPiece piece = fold(each);
    Loops axes;
    for (const StridedAxis& axis : piece.axes) {
      if (axis.count > 1) axes.add(axis);
    }
    for (size_t i = 0; i < pairs.size();) {
      const size_t length = pairs.count_rows(i);
      Loops loops = axes;
      if (length > 1) {
        loops.add({.count = length,
                   .src_stride = (from[i + 1].value() - from[i].value()) * piece.src_block_stride,
                   .dst_stride = (to[i + 1].value() - to[i].value()) * piece.dst_block_stride});
      }
      expansion.add(piece.src + from[i].value() * piece.src_block_stride,
                    piece.dst + to[i].value() * piece.dst_block_stride, piece.bytes, loops);
      i += length;
    }
  }
}

}  // namespace kvbm::internal
