// SPDX-License-Identifier: Apache-2.0
// CopyList: a batch as the copies that a copy engine is asked for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvbm/device/strided_copy.hpp"

namespace kvbm::internal {

/// `rows` runs of `width` bytes, each `pitch` bytes after the one before. Units: bytes.
struct CopyRect {
  const std::byte* src = nullptr;
  std::byte* dst = nullptr;
  uint64_t width = 0;
  uint64_t rows = 0;
  uint64_t src_pitch = 0;
  uint64_t dst_pitch = 0;

  friend bool operator==(const CopyRect&, const CopyRect&) = default;
};

/// Rectangles, and plain runs as three arrays side by side. Keeps its memory from one batch to the
/// next.
/// Threads: one thread at a time.
struct CopyList {
  std::vector<CopyRect> rects;
  std::vector<const void*> run_src;
  std::vector<void*> run_dst;
  std::vector<size_t> run_bytes;

  void clear() noexcept;
};

/// What a copy engine takes as a pitch.
inline constexpr uint64_t kMostRectPitch = (uint64_t{1} << 31) - 1;

/// Appends the copies of every piece for every pair to `out`: as few as the order of ids and
/// axes allows, since each costs the host about a microsecond and a rectangle moves its rows at the
/// full rate of the link. No copy goes across one of the addresses `cuts` (ascending): host memory
/// that was pinned in slices ends there for the driver. Requires: planned_bytes() takes a batch of
/// these.
void expand(std::span<const StridedPiece> pieces, const BlockPairs& pairs,
            std::span<const uintptr_t> cuts, CopyList& out);

}  // namespace kvbm::internal
