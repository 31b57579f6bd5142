// SPDX-License-Identifier: Apache-2.0
#include "strided_plan.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <iterator>
#include <memory>
#include <new>

namespace kvbm::kernels {
namespace {

/// a * b + c, or false if that is 2^64 and more.
bool multiply_add(uint64_t a, uint64_t b, uint64_t c, uint64_t& result) {
  return !__builtin_mul_overflow(a, b, &result) && !__builtin_add_overflow(result, c, &result);
}

bool is_empty(const kvbm_strided_piece& piece) {
  return piece.bytes == 0 || std::any_of(std::begin(piece.axes), std::end(piece.axes),
                                         [](const auto& axis) { return axis.count == 0; });
}

/// Whether two pieces differ in their bases alone.
bool same_form(const kvbm_strided_piece& a, const kvbm_strided_piece& b) {
  constexpr size_t kBases = offsetof(kvbm_strided_piece, src_block_stride);
  return std::memcmp(reinterpret_cast<const char*>(&a) + kBases,
                     reinterpret_cast<const char*>(&b) + kBases,
                     sizeof(kvbm_strided_piece) - kBases) == 0;
}

/// A digest has no destination: it is where the source is, so that one code serves both.
kvbm_strided_piece as_work(kvbm_strided_piece piece, Work work) {
  if (work == Work::kDigest) {
    piece.dst = const_cast<void*>(piece.src);
    piece.dst_block_stride = piece.src_block_stride;
    for (auto& axis : piece.axes) axis.dst_stride = axis.src_stride;
  }
  return piece;
}

/// What a launch needs of a piece, apart from its bases: axes of one entry are gone, runs and axes
/// that touch on both sides are one.
struct Shape {
  uint64_t bytes = 0;
  uint64_t src_block_stride = 0;
  uint64_t dst_block_stride = 0;
  uint32_t num_axes = 0;
  kvbm_strided_axis axes[kMaxAxes] = {};  ///< innermost first
  uint64_t bits = 0;                      ///< all sizes and strides or-ed: what their alignment is

  uint32_t width(const void* src, const void* dst) const {
    const uint64_t all =
        bits | 16 | reinterpret_cast<uintptr_t>(src) | reinterpret_cast<uintptr_t>(dst);
    return static_cast<uint32_t>(all & (~all + 1));
  }
};

Shape shape_of(const kvbm_strided_piece& piece) {
  Shape shape;
  shape.bytes = piece.bytes;
  shape.src_block_stride = piece.src_block_stride;
  shape.dst_block_stride = piece.dst_block_stride;
  for (size_t i = kMaxAxes; i-- > 0;) {
    const kvbm_strided_axis& axis = piece.axes[i];
    if (axis.count == 1) continue;
    kvbm_strided_axis* inner = shape.num_axes == 0 ? nullptr : &shape.axes[shape.num_axes - 1];
    if (inner == nullptr && axis.src_stride == shape.bytes && axis.dst_stride == shape.bytes) {
      shape.bytes *= axis.count;
    } else if (inner != nullptr && axis.src_stride == inner->count * inner->src_stride &&
               axis.dst_stride == inner->count * inner->dst_stride) {
      inner->count *= axis.count;
    } else {
      shape.axes[shape.num_axes++] = axis;
    }
  }
  shape.bits = shape.bytes | shape.src_block_stride | shape.dst_block_stride;
  for (uint32_t axis = 0; axis < shape.num_axes; ++axis) {
    shape.bits |= shape.axes[axis].src_stride | shape.axes[axis].dst_stride;
  }
  return shape;
}

/// What the check of a piece needs, apart from its bases.
struct Extent {
  bool overflows = false;
  uint64_t total = 0;  ///< bytes in a block
  uint64_t src_end = 0;
  uint64_t dst_end = 0;
};

Extent extent_of(const kvbm_strided_piece& piece) {
  Extent extent = {false, piece.bytes, piece.bytes, piece.bytes};
  for (const auto& axis : piece.axes) {
    extent.overflows |= !multiply_add(extent.total, axis.count, 0, extent.total);
    if (axis.count == 1) continue;
    extent.overflows |=
        !multiply_add(axis.count - 1, axis.src_stride, extent.src_end, extent.src_end) ||
        !multiply_add(axis.count - 1, axis.dst_stride, extent.dst_end, extent.dst_end);
  }
  return extent;
}

bool is_sound(const kvbm_strided_piece& piece, const Extent& extent, const Shape& shape) {
  return !extent.overflows && piece.src != nullptr && piece.dst != nullptr &&
         extent.src_end <= UINTPTR_MAX - reinterpret_cast<uintptr_t>(piece.src) &&
         extent.dst_end <= UINTPTR_MAX - reinterpret_cast<uintptr_t>(piece.dst) &&
         // Every count is at most the number of cells, so this holds for all of them.
         extent.total / shape.width(piece.src, piece.dst) < kMaxCells;
}

/// What makes the cells of a thread in a chunk a constant stride apart: a chunk stays inside one
/// run, or takes whole runs of the innermost axis; in both cases without a rest.
void find_step(StridedLaunch& launch) {
  const uint32_t run_cells = launch.run_cells.divisor;
  if (run_cells % kChunkCells == 0) {
    launch.stepped = true;
    launch.src_step = launch.dst_step = uint64_t{kWarp} * launch.width;
  } else if (kWarp % run_cells == 0 && launch.num_axes > 0 &&
             uint64_t{run_cells} * launch.axes[0].count.divisor % kChunkCells == 0) {
    launch.stepped = true;
    launch.src_step = kWarp / run_cells * launch.axes[0].src_stride;
    launch.dst_step = kWarp / run_cells * launch.axes[0].dst_stride;
  }
}

}  // namespace

int PieceGroups::check() {
  if (num_pieces_ == 0) return KVBM_KERNELS_SUCCESS;
  if (pieces_ == nullptr || num_pieces_ > UINT32_MAX) return KVBM_KERNELS_INVALID_VALUE;
  const kvbm_strided_piece* last = nullptr;  // pieces of one form are many as a rule
  Extent extent;
  Shape shape;
  for (size_t i = 0; i < num_pieces_; ++i) {
    if (last == nullptr || !same_form(pieces_[i], *last)) {
      if (last == pieces_ && num_alike_ == 0) num_alike_ = i;
      if (is_empty(pieces_[i])) continue;
      const kvbm_strided_piece piece = as_work(pieces_[i], work_);
      last = &pieces_[i];
      extent = extent_of(piece);
      shape = shape_of(piece);
    }
    const kvbm_strided_piece& piece = pieces_[i];
    const bool sound = work_ == Work::kDigest ? is_sound(as_work(piece, work_), extent, shape)
                                              : is_sound(piece, extent, shape);
    if (!sound) return KVBM_KERNELS_INVALID_VALUE;
  }
  if (last == pieces_ && num_alike_ == 0) num_alike_ = num_pieces_;
  return KVBM_KERNELS_SUCCESS;
}

bool PieceGroups::have_bytes() const {
  return !std::all_of(pieces_, pieces_ + num_pieces_,
                      [](const auto& piece) { return is_empty(piece); });
}

const kvbm_strided_piece& PieceGroups::first() const {
  const kvbm_strided_piece* const end = pieces_ + num_pieces_;
  const kvbm_strided_piece* const first =
      std::find_if(pieces_, end, [](const auto& piece) { return !is_empty(piece); });
  return first == end ? *pieces_ : *first;
}

bool PieceGroups::next(uint64_t* digests, StridedLaunch& group) {
  while (next_piece_ < num_pieces_ && is_empty(pieces_[next_piece_])) ++next_piece_;
  if (next_piece_ == num_pieces_) return false;

  const kvbm_strided_piece& raw = pieces_[next_piece_];
  const kvbm_strided_piece first = as_work(raw, work_);
  const Shape shape = shape_of(first);
  const uint32_t width = shape.width(first.src, first.dst);
  group = StridedLaunch();
  group.width = width;
  group.num_axes = shape.num_axes;
  group.num_pieces = static_cast<uint32_t>(num_pieces_);
  group.src_block_stride = shape.src_block_stride;
  group.dst_block_stride = shape.dst_block_stride;
  if (digests != nullptr) group.digests = digests + next_piece_;
  uint64_t cells = shape.bytes / width;
  group.run_cells = fast_divisor(static_cast<uint32_t>(cells));
  for (uint32_t axis = 0; axis < shape.num_axes; ++axis) {
    group.axes[axis] = {fast_divisor(static_cast<uint32_t>(shape.axes[axis].count)),
                        shape.axes[axis].src_stride, shape.axes[axis].dst_stride};
    cells *= shape.axes[axis].count;
  }
  group.cells_in_part = static_cast<uint32_t>(cells);
  if (work_ != Work::kCopy) {
    const uint32_t per_word = cells_of_word(width);
    cells = (cells + per_word - 1) / per_word;
  }
  group.part_cells = fast_divisor(static_cast<uint32_t>(cells));
  if (width == 16) find_step(group);

  const uint64_t most = std::min<uint64_t>(kMaxBases, (kMaxCells - 1) / cells);
  for (; next_piece_ < num_pieces_ && group.num_bases < most; ++next_piece_) {
    const kvbm_strided_piece& piece = pieces_[next_piece_];
    const void* const dst = work_ == Work::kDigest ? piece.src : piece.dst;
    if (next_piece_ >= num_alike_ && !same_form(piece, raw)) break;
    if (shape.width(piece.src, dst) != width) break;
    group.table[2 * group.num_bases] = reinterpret_cast<uintptr_t>(piece.src);
    group.table[2 * group.num_bases + 1] = reinterpret_cast<uintptr_t>(dst);
    ++group.num_bases;
  }
  group.bases_count = fast_divisor(group.num_bases);
  return true;
}

void cut_launch(const StridedLaunch& group, const Blocks& blocks, size_t& next_block,
                StridedLaunch& launch) {
  launch = group;
  const bool travel = blocks.ids_in == IdsIn::kLaunch;
  const uint64_t cells_of_block = uint64_t{group.part_cells.divisor} * group.num_bases;
  const uint64_t room = travel ? kTableWords - 2 * uint64_t{group.num_bases} : kMaxBlocks;
  const uint64_t most = std::min<uint64_t>(room, (kMaxCells - 1) / cells_of_block);
  launch.num_blocks = static_cast<uint32_t>(std::min<uint64_t>(most, blocks.count - next_block));
  launch.num_cells = static_cast<uint32_t>(cells_of_block * launch.num_blocks);
  const uint32_t* const from = blocks.from_ids + next_block;
  const uint32_t* const to = blocks.to_ids + next_block;
  if (travel) {
    uint64_t* const words = launch.table + 2 * size_t{group.num_bases};
    for (uint32_t i = 0; i < launch.num_blocks; ++i) words[i] = uint64_t{to[i]} << 32 | from[i];
  } else {
    launch.from_ids = from;
    launch.to_ids = to;
  }
  if (group.digests != nullptr) launch.digests += next_block * group.num_pieces;
  next_block += launch.num_blocks;
}

int StridedPlan::check() {
  if (num_pieces_ == 0 || blocks_.count == 0) return KVBM_KERNELS_SUCCESS;
  if (work_ != Work::kCopy &&
      (digests_ == nullptr || blocks_.count > UINT64_MAX / sizeof(uint64_t) / num_pieces_)) {
    return KVBM_KERNELS_INVALID_VALUE;
  }
  if (const int error = groups_.check(); error != KVBM_KERNELS_SUCCESS) return error;
  const bool has_ids = blocks_.from_ids != nullptr && blocks_.to_ids != nullptr;
  return has_ids || !groups_.have_bytes() ? KVBM_KERNELS_SUCCESS : KVBM_KERNELS_INVALID_VALUE;
}

bool StridedPlan::has_work() const {
  return blocks_.count != 0 && num_pieces_ != 0 && (work_ != Work::kCopy || groups_.have_bytes());
}

bool StridedPlan::next(StridedLaunch& launch) {
  if (blocks_.count == 0) return false;
  if (group_.num_bases == 0 || next_block_ == blocks_.count) {
    if (!groups_.next(digests_, group_)) return false;
    next_block_ = 0;
  }
  cut_launch(group_, blocks_, next_block_, launch);
  return true;
}

uint64_t digest_on_host(const kvbm_strided_piece& piece, uint32_t block) {
  const Shape shape = shape_of(as_work(piece, Work::kDigest));
  const char* base = static_cast<const char*>(piece.src) + block * piece.src_block_stride;
  uint64_t num_runs = 1;
  for (uint32_t axis = 0; axis < shape.num_axes; ++axis) num_runs *= shape.axes[axis].count;

  uint64_t digest = 0;
  uint64_t word = 0;
  size_t filled = 0;  // bytes of `word`
  uint32_t index = 0;
  for (uint64_t run = 0; run < num_runs; ++run) {
    const char* from = base;
    uint64_t rest = run;
    for (uint32_t axis = 0; axis < shape.num_axes; ++axis) {
      from += rest % shape.axes[axis].count * shape.axes[axis].src_stride;
      rest /= shape.axes[axis].count;
    }
    for (uint64_t left = shape.bytes; left > 0;) {
      const size_t bytes = std::min<uint64_t>(left, sizeof(word) - filled);
      std::memcpy(reinterpret_cast<char*>(&word) + filled, from, bytes);
      from += bytes;
      left -= bytes;
      filled += bytes;
      if (filled == sizeof(word)) {
        digest += digest_term(word, index++);
        word = 0;
        filled = 0;
      }
    }
  }
  return filled == 0 ? digest : digest + digest_term(word, index);
}

}  // namespace kvbm::kernels

int kvbm_kernels_digest_on_host(const kvbm_strided_piece* piece, uint32_t block, uint64_t* digest) {
  using namespace kvbm::kernels;
  if (piece == nullptr || digest == nullptr) return KVBM_KERNELS_INVALID_VALUE;
  StridedPlan plan(piece, 1, &block, &block, 1, digest, Work::kDigest);
  if (const int error = plan.check(); error != KVBM_KERNELS_SUCCESS) return error;
  *digest = is_empty(*piece) ? 0 : digest_on_host(*piece, block);
  return KVBM_KERNELS_SUCCESS;
}

int kvbm_kernels_strided_plan::check(const kvbm::kernels::Blocks& blocks,
                                     const kvbm_strided_copy_options* options) const {
  const bool needs_ids = blocks.count != 0 && !groups.empty();
  const bool has_ids = blocks.from_ids != nullptr && blocks.to_ids != nullptr;
  const bool has_digests = options != nullptr && options->digests != nullptr;
  return has_digests || (needs_ids && !has_ids) ? KVBM_KERNELS_INVALID_VALUE : KVBM_KERNELS_SUCCESS;
}

int kvbm_kernels_create_strided_plan(const kvbm_strided_piece* pieces, size_t num_pieces,
                                     kvbm_kernels_strided_plan** plan) {
  using namespace kvbm::kernels;
  if (plan == nullptr) return KVBM_KERNELS_INVALID_VALUE;
  PieceGroups all(pieces, num_pieces, Work::kCopy);
  if (const int error = all.check(); error != KVBM_KERNELS_SUCCESS) return error;
  try {
    auto made = std::make_unique<kvbm_kernels_strided_plan>();
    if (num_pieces > 0) made->first = all.first();
    StridedLaunch group;
    while (all.next(nullptr, group)) made->groups.push_back(group);
    *plan = made.release();
  } catch (const std::bad_alloc&) {
    return KVBM_KERNELS_NO_MEMORY;
  }
  return KVBM_KERNELS_SUCCESS;
}

void kvbm_kernels_destroy_strided_plan(kvbm_kernels_strided_plan* plan) { delete plan; }
