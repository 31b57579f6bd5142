// SPDX-License-Identifier: Apache-2.0
// From strided pieces to launches: pure arithmetic, the same in every build.
//
// A launch is a number of cells: accesses of one width. A part is what one piece has in one block;
// its cells are numbered in the order of its stream. Cells of all parts, blocks outermost, are one
// sequence, which chunks of kChunkCells cut for warps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <kvbm/kernels.h>

#include "host_device.hpp"

namespace kvbm::kernels {

inline constexpr uint32_t kWarp = 32;
/// Cells that a thread has in flight.
inline constexpr uint32_t kCellsPerThread = 4;
inline constexpr uint32_t kChunkCells = kWarp * kCellsPerThread;
inline constexpr uint32_t kMaxCells = uint32_t{1} << 31;
/// Their ids lie in shared memory.
inline constexpr uint32_t kMaxBlocks = 4096;
/// Words of a launch for bases, two each, and for the ids that travel with it, one a block: what is
/// left of the 4 KiB that every driver takes as parameters of a kernel.
inline constexpr uint32_t kTableWords = 478;
/// Keys and values of 80 layers, so that ids of as many blocks find room beside them.
inline constexpr uint32_t kMaxBases = 160;
inline constexpr uint32_t kMaxAxes = 4;

/// Of a nanosecond. A turn of a warp takes some 80 of these; the clock of a GPU, which counts
/// nanoseconds since 1970, has room for so many until 2116.
inline constexpr uint64_t kTicks = 4;

/// What `bytes` take at a rate, in ticks; at most 2^48, of which all warps of a launch can be added
/// to a clock. Requires: bytes_per_second > 0.
inline uint64_t paced_ticks(uint64_t bytes, uint64_t bytes_per_second) {
  constexpr uint64_t kMost = uint64_t{1} << 48;
  const double ticks =
      static_cast<double>(bytes) * 1e9 * kTicks / static_cast<double>(bytes_per_second) + 0.5;
  return ticks < static_cast<double>(kMost) ? static_cast<uint64_t>(ticks) : kMost;
}

/// When the next turn begins of those that launches take one after another: `next` is the end of
/// the last one. Time in which there was none is lost: it is not made up for by a burst. In ticks.
/// On the host: one thread at a time.
KVBM_HOST_DEVICE uint64_t take_turn(unsigned long long* next, uint64_t now, uint64_t turn_ticks) {
#ifdef __CUDA_ARCH__
  atomicMax(next, static_cast<unsigned long long>(now));
  return atomicAdd(next, static_cast<unsigned long long>(turn_ticks));
#else
  const uint64_t begin = *next > now ? *next : now;
  *next = begin + turn_ticks;
  return begin;
#endif
}

/// What a launch does with the bytes.
enum class Work { kCopy, kCopyAndDigest, kDigest };

/// Where the ids of blocks are.
enum class IdsIn {
  kMemory,  ///< that the device reads
  kLaunch,  ///< host memory, read by the plan: they travel as parameters
};

struct Axis {
  FastDivisor count;
  uint64_t src_stride = 0;
  uint64_t dst_stride = 0;
};

struct Base {
  const char* src;
  char* dst;
};

struct IdPair {
  uint32_t from;
  uint32_t to;
};

/// All pieces of one shape, for some blocks: the parameter of a kernel.
struct StridedLaunch {
  uint32_t width = 0;      ///< bytes of a cell
  uint32_t num_cells = 0;  ///< of all parts; with digests and a width below 8: words of all parts
  uint32_t num_blocks = 0;
  uint32_t num_bases = 0;
  uint32_t num_axes = 0;
  uint32_t num_pieces = 0;  ///< row length of `digests`
  /// If set, the cells that a thread has in one chunk are a constant stride apart.
  bool stepped = false;
  FastDivisor part_cells;  ///< with digests and a width below 8: words
  FastDivisor bases_count;
  FastDivisor run_cells;
  uint32_t cells_in_part = 0;  ///< always cells
  uint64_t src_block_stride = 0;
  uint64_t dst_block_stride = 0;
  uint64_t src_step = 0;
  uint64_t dst_step = 0;
  const uint32_t* from_ids = nullptr;  ///< null: the ids are in `table`
  const uint32_t* to_ids = nullptr;
  uint64_t* digests = nullptr;  ///< of the first base in the first block
  uint64_t turn_ticks = 0;      ///< that a turn of a warp takes of the pace; 0: there is none
  unsigned long long* shared_pace = nullptr;  ///< null: the launch has one of its own
  Axis axes[kMaxAxes] = {};                   ///< innermost first
  uint64_t table[kTableWords];  ///< source and destination of each base, then ids; the rest is left
};
static_assert(sizeof(StridedLaunch) <= 4096);

KVBM_HOST_DEVICE Base base_in(const StridedLaunch& launch, uint32_t index) {
  return {reinterpret_cast<const char*>(launch.table[2 * index]),
          reinterpret_cast<char*>(launch.table[2 * index + 1])};
}

/// Requires: ids that travel with the launch.
KVBM_HOST_DEVICE IdPair ids_in(const StridedLaunch& launch, uint32_t block) {
  const uint64_t word = launch.table[2 * launch.num_bases + block];
  return {static_cast<uint32_t>(word), static_cast<uint32_t>(word >> 32)};
}

/// Cells that a digest's word is made of.
KVBM_HOST_DEVICE constexpr uint32_t cells_of_word(uint32_t width) {
  return width < 8 ? 8 / width : 1;
}

struct Offsets {
  uint64_t src;
  uint64_t dst;
};

/// Where a cell of a part is, from the part's bases. Requires: cell < cells_in_part.
template <uint32_t kWidth>
KVBM_HOST_DEVICE Offsets offsets_in_part(const StridedLaunch& launch, uint32_t cell) {
  const Division run = divide(cell, launch.run_cells);
  Offsets offsets = {uint64_t{run.remainder} * kWidth, uint64_t{run.remainder} * kWidth};
  uint32_t rest = run.quotient;
#ifdef __CUDACC__
#pragma unroll
#endif
  for (uint32_t axis = 0; axis < kMaxAxes; ++axis) {
    if (axis < launch.num_axes) {
      uint32_t index = rest;
      if (axis + 1 < launch.num_axes) {
        const Division division = divide(rest, launch.axes[axis].count);
        rest = division.quotient;
        index = division.remainder;
      }
      offsets.src += index * launch.axes[axis].src_stride;
      offsets.dst += index * launch.axes[axis].dst_stride;
    }
  }
  return offsets;
}

struct Blocks {
  const uint32_t* from_ids = nullptr;
  const uint32_t* to_ids = nullptr;
  size_t count = 0;
  IdsIn ids_in = IdsIn::kMemory;
};

/// Pieces in groups of which each shares launches. Allocates nothing.
class PieceGroups {
 public:
  PieceGroups(const kvbm_strided_piece* pieces, size_t num_pieces, Work work)
      : pieces_(pieces), num_pieces_(num_pieces), work_(work) {}

  /// KVBM_KERNELS_SUCCESS or KVBM_KERNELS_INVALID_VALUE.
  int check();

  /// Whether there are bytes in any. Requires: check() succeeded.
  bool have_bytes() const;
  /// The first that is not empty, or the first. Requires: there is one.
  const kvbm_strided_piece& first() const;

  /// Fills in the next group, all but its blocks; false at the end. `digests` is null, or that of
  /// the first piece in the first block. Requires: check() succeeded.
  bool next(uint64_t* digests, StridedLaunch& group);

 private:
  const kvbm_strided_piece* pieces_;
  size_t num_pieces_;
  Work work_;
  size_t num_alike_ = 0;   ///< from the first on that check() has found to be of one form
  size_t next_piece_ = 0;  ///< the first that is in no group yet
};

/// The launch of a group for blocks from `next_block` on, which moves behind those that it takes.
/// Requires: next_block < blocks.count.
void cut_launch(const StridedLaunch& group, const Blocks& blocks, size_t& next_block,
                StridedLaunch& launch);

/// The checks of a call, and its cutting into StridedLaunches. Allocates nothing.
class StridedPlan {
 public:
  StridedPlan(const kvbm_strided_piece* pieces, size_t num_pieces, const uint32_t* from_ids,
              const uint32_t* to_ids, size_t num_blocks, uint64_t* digests, Work work,
              IdsIn ids_in = IdsIn::kMemory)
      : groups_(pieces, num_pieces, work),
        num_pieces_(num_pieces),
        blocks_{from_ids, to_ids, num_blocks, ids_in},
        digests_(digests),
        work_(work) {}

  /// KVBM_KERNELS_SUCCESS or KVBM_KERNELS_INVALID_VALUE.
  int check();

  /// Whether there is anything to copy, or a digest to write. Requires: check() succeeded.
  bool has_work() const;
  /// Requires: has_work().
  const kvbm_strided_piece& first_piece() const { return groups_.first(); }

  /// Fills in the next launch; false at the end. Requires: check() succeeded.
  bool next(StridedLaunch& launch);

 private:
  PieceGroups groups_;
  size_t num_pieces_;
  Blocks blocks_;
  uint64_t* digests_;
  Work work_;

  size_t next_block_ = 0;  ///< of the group in `group_`
  StridedLaunch group_;
};

/// The digest of the source side of one part in host memory. Requires: check() of a plan of it
/// succeeded.
uint64_t digest_on_host(const kvbm_strided_piece& piece, uint32_t block);

}  // namespace kvbm::kernels

struct kvbm_kernels_strided_plan {
  std::vector<kvbm::kernels::StridedLaunch> groups;  ///< without their blocks
  kvbm_strided_piece first;                          ///< that tells where the memory is

  /// KVBM_KERNELS_SUCCESS or KVBM_KERNELS_INVALID_VALUE.
  int check(const kvbm::kernels::Blocks& blocks, const kvbm_strided_copy_options* options) const;
};
