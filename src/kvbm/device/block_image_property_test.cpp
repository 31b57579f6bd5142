// SPDX-License-Identifier: Apache-2.0
// Copies through images of blocks against the copies themselves, byte by byte.
#include <algorithm>
#include <array>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/random.hpp"
#include "kvbm/device/block_image.hpp"

namespace kvbm {
namespace {

constexpr size_t kLevels = kStridedAxes + 1;  // the axes, and the pieces
using Counts = std::array<uint64_t, kLevels>;

/// Calls `visit` with the addresses of each run on both sides.
template <class Visit>
void for_each_run(const StridedPiece& piece, BlockId from, BlockId to, const Visit& visit) {
  const auto& [a, b, c, d] = piece.axes;
  for (uint64_t i = 0; i < a.count * b.count * c.count * d.count; ++i) {
    const std::array<uint64_t, kStridedAxes> at = {i / (b.count * c.count * d.count),
                                                   i / (c.count * d.count) % b.count,
                                                   i / d.count % c.count, i % d.count};
    const std::byte* src = piece.src + from.value() * piece.src_block_stride;
    std::byte* dst = piece.dst + to.value() * piece.dst_block_stride;
    for (size_t k = 0; k < kStridedAxes; ++k) {
      src += at[k] * piece.axes[k].src_stride;
      dst += at[k] * piece.axes[k].dst_stride;
    }
    visit(src, dst);
  }
}

void copy(std::span<const StridedPiece> pieces, const std::vector<BlockId>& from,
          const std::vector<BlockId>& to) {
  for (const StridedPiece& piece : pieces) {
    for (size_t i = 0; i < from.size(); ++i) {
      for_each_run(piece, from[i], to[i], [&](const std::byte* src, std::byte* dst) {
        std::copy_n(src, piece.bytes, dst);
      });
    }
  }
}

/// The offsets in block 0 that the pieces touch.
std::set<uint64_t> touched(std::span<const StridedPiece> pieces, CopySide side,
                           const std::byte* memory) {
  std::set<uint64_t> offsets;
  for (const StridedPiece& piece : pieces) {
    for_each_run(piece, BlockId(0), BlockId(0), [&](const std::byte* src, const std::byte* dst) {
      const std::byte* const at = side == CopySide::kSource ? src : dst;
      for (uint64_t i = 0; i < piece.bytes; ++i) {
        offsets.insert(static_cast<uint64_t>(at - memory) + i);
      }
    });
  }
  return offsets;
}

/// Strides of the levels and of blocks, nested in any order from `bytes` on; levels may have gaps
/// where `has_gaps` says so, blocks may always.
struct Nest {
  Counts strides{};
  uint64_t block_stride = 0;
  uint64_t size = 0;
};

Nest nest(Random& random, uint64_t bytes, const Counts& counts, uint64_t num_blocks,
          bool blocks_are_outermost, bool has_gaps) {
  std::array<size_t, kLevels + 1> order{};  // innermost first; the last entry is the block
  std::iota(order.begin(), order.end(), size_t{0});
  random.shuffle(std::span(order).first(blocks_are_outermost ? kLevels : kLevels + 1));
  Nest result{.size = bytes};
  for (const size_t level : order) {
    const bool is_block = level == kLevels;
    const bool gap = (is_block || has_gaps) && random.chance(0.5);
    const uint64_t stride = result.size + (gap ? random.uniform_between(1, 9) : 0);
    (is_block ? result.block_stride : result.strides[level]) = stride;
    result.size = stride * (is_block ? num_blocks : counts[level]);
  }
  return result;
}

TEST(BlockImageProperty, ThroughImagesTheSameBytesComeToTheSamePlaces) {
  int images = 0;
  int without = 0;
  for (uint64_t seed = 1; seed <= 600; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    const CopySide side = random.chance(0.5) ? CopySide::kSource : CopySide::kDestination;
    const uint64_t num_blocks = random.uniform_between(1, 6);
    const uint64_t bytes = random.uniform_between(1, 9);
    Counts counts{};
    for (uint64_t& count : counts) count = random.chance(0.4) ? 1 : random.uniform_between(1, 4);
    const Nest imaged = nest(random, bytes, counts, num_blocks, true, random.chance(0.2));
    const Nest other = nest(random, bytes, counts, num_blocks, false, true);
    const bool is_source = side == CopySide::kSource;
    const Nest& src_nest = is_source ? imaged : other;
    const Nest& dst_nest = is_source ? other : imaged;

    std::vector<std::byte> src(src_nest.size);
    for (std::byte& byte : src) byte = static_cast<std::byte>(random.uniform(256));
    std::vector<std::byte> dst(dst_nest.size);

    // The pieces are the fifth level: layers, next to each other or interleaved.
    std::vector<StridedPiece> pieces;
    for (uint64_t p = 0; p < counts[kStridedAxes]; ++p) {
      pieces.push_back({.src = src.data() + p * src_nest.strides[kStridedAxes],
                        .dst = dst.data() + p * dst_nest.strides[kStridedAxes],
                        .src_block_stride = src_nest.block_stride,
                        .dst_block_stride = dst_nest.block_stride,
                        .bytes = bytes,
                        .axes = {}});
      for (size_t a = 0; a < kStridedAxes; ++a) {
        pieces.back().axes[a] = {.count = counts[a],
                                 .src_stride = src_nest.strides[a],
                                 .dst_stride = dst_nest.strides[a]};
      }
    }
    if (random.chance(0.3)) {  // a range of layers
      const size_t first = random.uniform(pieces.size());
      pieces.erase(pieces.begin(), pieces.begin() + static_cast<ptrdiff_t>(first));
    }
    if (random.chance(0.1))
      pieces.erase(pieces.begin() + static_cast<ptrdiff_t>(pieces.size() / 2));
    random.shuffle(std::span(pieces));
    if (random.chance(0.3)) pieces.push_back({});  // touches nothing

    const std::byte* const memory = is_source ? src.data() : dst.data();
    const std::set<uint64_t> offsets = touched(pieces, side, memory);
    const auto image = find_image(pieces, side);
    const bool is_run =
        !offsets.empty() && *offsets.rbegin() - *offsets.begin() + 1 == offsets.size();
    ASSERT_EQ(image.has_value(), is_run);
    ++(is_run ? images : without);
    if (!image) continue;
    EXPECT_EQ(image->base, memory + *offsets.begin());
    EXPECT_EQ(image->bytes, offsets.size());

    std::vector<BlockId> from;
    std::vector<BlockId> to;
    for (uint32_t i = 0; i < num_blocks; ++i) {
      from.emplace_back(static_cast<uint32_t>(random.uniform(num_blocks)));
      to.emplace_back(i);
    }
    random.shuffle(std::span(to));
    to.resize(random.uniform_between(1, num_blocks));
    from.resize(to.size());

    copy(pieces, from, to);
    const std::vector<std::byte> expected = std::exchange(dst, std::vector<std::byte>());
    dst.resize(expected.size());
    for (StridedPiece& piece : pieces) {
      if (piece.dst != nullptr) piece.dst = dst.data() + (piece.dst - expected.data());
    }
    const auto here = find_image(pieces, side);
    ASSERT_TRUE(here);
    std::vector<BlockId> inside;
    for (uint32_t i = 0; i < to.size(); ++i) inside.emplace_back(i);
    std::vector<std::byte> slot(to.size() * here->bytes, std::byte{0x5a});
    std::vector<StridedPiece> moved;
    for (const StridedPiece& piece : pieces) {
      if (piece.bytes > 0) moved.push_back(moved_to(piece, *here, side, slot.data()));
    }
    const StridedPiece whole[] = {image_piece(*here, side, slot.data())};
    if (is_source) {
      copy(whole, from, inside);
      copy(moved, inside, to);
    } else {
      copy(moved, from, inside);
      copy(whole, inside, to);
    }
    EXPECT_EQ(dst, expected);
  }
  EXPECT_GT(images, 100);
  EXPECT_GT(without, 100);
}

}  // namespace
}  // namespace kvbm
