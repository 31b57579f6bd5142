// SPDX-License-Identifier: Apache-2.0
// From pieces of a pattern to launches: pure arithmetic, the same in every build.
//
// A launch is a number of items: kItemBytes of one piece in one block, for one warp. Items are
// numbered section by section of a piece, piece by piece, block by block.
#pragma once

#include <cstddef>
#include <cstdint>

#include <kvbm/kernels.h>

#include "host_device.hpp"

namespace kvbm::kernels {

inline constexpr uint32_t kItemBytes = 4096;
inline constexpr uint32_t kMaxItems = uint32_t{1} << 31;
/// What fits into the 4 KiB that every driver takes as parameters of a kernel.
inline constexpr uint32_t kMaxPatternBases = 240;
inline constexpr uint64_t kMaxPatternPieces = uint64_t{1} << 24;
inline constexpr uint64_t kMaxPatternBytes = uint64_t{1} << 40;

KVBM_HOST_DEVICE uint64_t pattern_word(uint64_t seed, uint64_t index) {
  uint64_t word = seed + index * 0x9E3779B97F4A7C15ULL;
  word ^= word >> 29;
  word += word << 17;
  return word ^ (word >> 32);
}

KVBM_HOST_DEVICE uint64_t pattern_place(uint64_t piece, uint64_t offset) {
  return piece << 40 | offset;
}

struct PatternBase {
  char* data = nullptr;
  uint64_t seed = 0;
};

/// Pieces of one length and stride that follow each other in the list, for some blocks: the
/// parameter of a kernel.
struct PatternLaunch {
  uint64_t bytes = 0;
  uint64_t block_stride = 0;
  const uint32_t* ids = nullptr;
  const uint64_t* seeds = nullptr;
  uint64_t* first_wrong = nullptr;  ///< null: the blocks are filled
  uint32_t num_items = 0;
  uint32_t num_blocks = 0;
  uint32_t num_bases = 0;
  uint32_t first_piece = 0;  ///< number of the first base's
  FastDivisor sections;      ///< of a piece
  FastDivisor bases_count;
  bool aligned = false;  ///< all of it starts at multiples of 16
  PatternBase bases[kMaxPatternBases] = {};
};
static_assert(sizeof(PatternLaunch) <= 4096);

/// The checks of a launch, and its cutting into PatternLaunches. Allocates nothing.
class PatternPlan {
 public:
  PatternPlan(const kvbm_pattern_piece* pieces, size_t num_pieces, const uint32_t* ids,
              const uint64_t* seeds, size_t num_blocks, uint64_t* first_wrong)
      : pieces_(pieces),
        num_pieces_(num_pieces),
        ids_(ids),
        seeds_(seeds),
        num_blocks_(num_blocks),
        first_wrong_(first_wrong) {}

  /// KVBM_KERNELS_SUCCESS or KVBM_KERNELS_INVALID_VALUE.
  int check() const;

  /// Whether there is anything to fill, or a result to write. Requires: check() succeeded.
  bool has_work() const;

  /// Fills in the next launch; false at the end. Requires: check() succeeded.
  bool next(PatternLaunch& launch);

 private:
  bool start_group();

  const kvbm_pattern_piece* pieces_;
  size_t num_pieces_;
  const uint32_t* ids_;
  const uint64_t* seeds_;
  size_t num_blocks_;
  uint64_t* first_wrong_;

  size_t next_piece_ = 0;  ///< the first that is in no group yet
  size_t next_block_ = 0;  ///< of the group in `group_`
  PatternLaunch group_;    ///< pieces of one shape, for all blocks
};

}  // namespace kvbm::kernels
