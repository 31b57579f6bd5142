// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cuda/internal/copy_list.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/random.hpp"

#include "tests/support/seed.hpp"

namespace kvbm::internal {
namespace {

std::vector<BlockId> ids(std::initializer_list<uint32_t> values) {
  std::vector<BlockId> list;
  for (const uint32_t value : values) list.emplace_back(value);
  return list;
}

StridedCopyBatch batch_of(const StridedPiece& piece, const std::vector<BlockId>& from,
                          const std::vector<BlockId>& to) {
  return {.pairs = make_block_pairs(from, to), .pieces = {piece}};
}

CopyList expanded(const StridedCopyBatch& batch, std::vector<uintptr_t> cuts = {}) {
  CopyList list;
  expand(batch.pieces, *batch.pairs, cuts, list);
  return list;
}

class CopyListTest : public ::testing::Test {
 protected:
  std::vector<std::byte> src_ = std::vector<std::byte>(1 << 16);
  std::vector<std::byte> dst_ = std::vector<std::byte>(1 << 16);

  [[nodiscard]] StridedPiece piece(uint64_t bytes, uint64_t src_stride, uint64_t dst_stride) {
    return {.src = src_.data(),
            .dst = dst_.data(),
            .src_block_stride = src_stride,
            .dst_block_stride = dst_stride,
            .bytes = bytes};
  }
};

TEST_F(CopyListTest, NeighbouringBlocksAreOneCopy) {
  const CopyList list =
      expanded(batch_of(piece(512, 512, 512), ids({3, 4, 5, 6, 9}), ids({0, 1, 2, 3, 4})));
  EXPECT_TRUE(list.rects.empty());
  EXPECT_EQ(list.run_bytes, (std::vector<size_t>{4 * 512, 512}));
  EXPECT_EQ(list.run_src[1], src_.data() + 9 * 512);
  EXPECT_EQ(list.run_dst[1], dst_.data() + 4 * 512);
}

TEST_F(CopyListTest, TheChunksOfABlockAreOneRectangle) {
  StridedPiece chunks = piece(64, 64, 64 * 16);
  chunks.axes[0] = {.count = 8, .src_stride = 4096, .dst_stride = 128};
  chunks.axes[1] = {.count = 2, .src_stride = 2048, .dst_stride = 64};
  const CopyList list = expanded(batch_of(chunks, ids({5, 2}), ids({1, 0})));
  EXPECT_TRUE(list.run_bytes.empty());
  ASSERT_EQ(list.rects.size(), 2u);
  EXPECT_EQ(list.rects[0], (CopyRect{.src = src_.data() + 5 * 64,
                                     .dst = dst_.data() + 1024,
                                     .width = 64,
                                     .rows = 16,
                                     .src_pitch = 2048,
                                     .dst_pitch = 64}));
}

TEST_F(CopyListTest, BlocksInEqualStepsAreTheRows) {
  std::vector<BlockId> from;
  std::vector<BlockId> to;
  for (uint32_t i = 0; i < 9; ++i) {
    from.emplace_back(2 * i);
    to.emplace_back(i + 1);
  }
  const CopyList list = expanded(batch_of(piece(100, 256, 128), from, to));
  EXPECT_TRUE(list.run_bytes.empty());
  ASSERT_EQ(list.rects.size(), 1u);
  EXPECT_EQ(list.rects[0].rows, 9u);
  EXPECT_EQ(list.rects[0].src_pitch, 512u);
  EXPECT_EQ(list.rects[0].dst_pitch, 128u);
}

TEST_F(CopyListTest, FewRowsAreRuns) {
  StridedPiece rows = piece(8, 0, 0);
  rows.axes[0] = {.count = kLeastRows - 1, .src_stride = 64, .dst_stride = 32};
  EXPECT_EQ(expanded(batch_of(rows, ids({0}), ids({0}))).run_bytes.size(), kLeastRows - 1);
  rows.axes[0].count = kLeastRows;
  EXPECT_EQ(expanded(batch_of(rows, ids({0}), ids({0}))).rects.size(), 1u);
}

TEST_F(CopyListTest, APitchThatTheEngineDoesNotTakeMakesRuns) {
  StridedPiece far = piece(8, 0, 0);
  far.axes[0] = {.count = 12, .src_stride = kMostRectPitch, .dst_stride = 64};
  EXPECT_EQ(expanded(batch_of(far, ids({0}), ids({0}))).rects.size(), 1u);
  far.axes[0].src_stride = kMostRectPitch + 1;
  EXPECT_EQ(expanded(batch_of(far, ids({0}), ids({0}))).run_bytes.size(), 12u);
  far.axes[0].src_stride = 0;  // one source for all
  EXPECT_EQ(expanded(batch_of(far, ids({0}), ids({0}))).run_bytes.size(), 12u);
}

TEST_F(CopyListTest, NothingGoesAcrossACut) {
  const auto at = [this](size_t offset) {
    return reinterpret_cast<uintptr_t>(src_.data()) + offset;
  };
  const StridedCopyBatch run = batch_of(piece(1000, 1000, 1000), ids({0, 1, 2}), ids({0, 1, 2}));
  EXPECT_EQ(expanded(run, {at(0), at(1000), at(1500), at(3000)}).run_bytes,
            (std::vector<size_t>{1000, 500, 1500}));

  // 20 rows of 100 bytes every 256: a cut in a row, one between two, one behind the last.
  std::vector<BlockId> rows;
  for (uint32_t i = 0; i < 20; ++i) rows.emplace_back(i);
  const StridedCopyBatch rect = batch_of(piece(100, 256, 100), rows, rows);
  const CopyList in_a_row = expanded(rect, {at(9 * 256 + 30)});
  ASSERT_EQ(in_a_row.rects.size(), 2u);
  EXPECT_EQ(in_a_row.rects[0].rows, 9u);
  EXPECT_EQ(in_a_row.rects[1].rows, 10u);
  EXPECT_EQ(in_a_row.run_bytes, (std::vector<size_t>{30, 70}));
  const CopyList between = expanded(rect, {at(10 * 256)});
  ASSERT_EQ(between.rects.size(), 2u);
  EXPECT_TRUE(between.run_bytes.empty());
  EXPECT_EQ(between.rects[0].rows, 10u);
  EXPECT_EQ(expanded(rect, {at(19 * 256 + 100)}).rects.size(), 1u);
}

/// Moves the bytes as the copies say, and proves that none crosses a cut.
void execute(const CopyList& list, std::span<const uintptr_t> cuts) {
  const auto move = [cuts](void* dst, const void* src, uint64_t bytes) {
    std::memcpy(dst, src, bytes);
    for (const void* const base : {static_cast<const void*>(dst), src}) {
      const auto first = reinterpret_cast<uintptr_t>(base);
      for (const uintptr_t cut : cuts) EXPECT_FALSE(first < cut && cut < first + bytes);
    }
  };
  for (const CopyRect& rect : list.rects) {
    EXPECT_GE(rect.rows, kLeastRows);
    EXPECT_GE(rect.src_pitch, rect.width);
    EXPECT_GE(rect.dst_pitch, rect.width);
    for (const auto& [base, pitch] :
         {std::pair{rect.src, rect.src_pitch},
          std::pair{static_cast<const std::byte*>(rect.dst), rect.dst_pitch}}) {
      const auto first = reinterpret_cast<uintptr_t>(base);
      const uintptr_t end = first + (rect.rows - 1) * pitch + rect.width;
      for (const uintptr_t cut : cuts) EXPECT_FALSE(first < cut && cut < end);
    }
    for (uint64_t row = 0; row < rect.rows; ++row) {
      move(rect.dst + row * rect.dst_pitch, rect.src + row * rect.src_pitch, rect.width);
    }
  }
  for (size_t i = 0; i < list.run_bytes.size(); ++i) {
    move(list.run_dst[i], list.run_src[i], list.run_bytes[i]);
  }
}

TEST_F(CopyListTest, MovesTheBytesOfTheBatchWhateverItsShape) {
  const uint64_t first_seed = testing::test_seed();
  uint64_t with_rects = 0;
  uint64_t with_runs = 0;
  CopyList list;
  for (uint64_t seed = first_seed; seed < first_seed + 400; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    const uint64_t num_blocks = random.uniform_between(1, 30);
    StridedPiece piece{.bytes = random.uniform_between(1, 40)};
    for (StridedAxis& axis : piece.axes) {
      axis.count = random.chance(0.5) ? 1 : random.uniform_between(random.chance(0.1) ? 0 : 2, 6);
    }
    // Each side nests its loops in an order of its own, with or without gaps.
    const auto nest = [&](uint64_t StridedAxis::*stride, uint64_t& block_stride) {
      std::array<size_t, kStridedAxes + 1> order{};
      std::iota(order.begin(), order.end(), size_t{0});
      random.shuffle(std::span<size_t>(order));
      uint64_t extent = piece.bytes;
      for (const size_t axis : order) {
        const uint64_t gap = random.chance(0.6) ? 0 : random.uniform(20);
        if (axis == kStridedAxes) {
          block_stride = extent + gap;
          extent = num_blocks * block_stride;
        } else {
          piece.axes[axis].*stride = extent + gap;
          extent = std::max<uint64_t>(1, piece.axes[axis].count) * (extent + gap);
        }
      }
      return extent;
    };
    const uint64_t src_size = nest(&StridedAxis::src_stride, piece.src_block_stride);
    const uint64_t dst_size = nest(&StridedAxis::dst_stride, piece.dst_block_stride);
    std::vector<std::byte> src(src_size);
    for (std::byte& byte : src) byte = static_cast<std::byte>(random.uniform(256));
    std::vector<std::byte> dst(dst_size);
    std::vector<std::byte> expected(dst_size);
    piece.src = src.data();
    piece.dst = dst.data();
    std::vector<BlockId> to;
    for (uint32_t i = 0; i < num_blocks; ++i) to.emplace_back(i);
    if (random.chance(0.5)) random.shuffle(std::span(to));
    to.resize(random.uniform_between(1, num_blocks));
    const double same = random.chance(0.5) ? 1.0 : 0.7;
    std::vector<BlockId> from;
    for (size_t i = 0; i < to.size(); ++i) {
      from.emplace_back(random.chance(same) ? to[i].value()
                                            : static_cast<uint32_t>(random.uniform(num_blocks)));
    }
    std::vector<uintptr_t> cuts;
    for (uint64_t i = random.uniform(4); i > 0; --i) {
      cuts.push_back(reinterpret_cast<uintptr_t>(src.data()) + random.uniform(src_size));
      cuts.push_back(reinterpret_cast<uintptr_t>(dst.data()) + random.uniform(dst_size));
    }
    std::ranges::sort(cuts);

    const auto [n0, n1, n2, n3] = std::array{piece.axes[0].count, piece.axes[1].count,
                                             piece.axes[2].count, piece.axes[3].count};
    for (size_t i = 0; i < to.size(); ++i) {
      for (uint64_t step = 0; step < n0 * n1 * n2 * n3; ++step) {
        const std::array at{step / (n1 * n2 * n3), step / (n2 * n3) % n1, step / n3 % n2,
                            step % n3};
        uint64_t here = from[i].value() * piece.src_block_stride;
        uint64_t there = to[i].value() * piece.dst_block_stride;
        for (size_t axis = 0; axis < kStridedAxes; ++axis) {
          here += at[axis] * piece.axes[axis].src_stride;
          there += at[axis] * piece.axes[axis].dst_stride;
        }
        std::memcpy(expected.data() + there, src.data() + here, piece.bytes);
      }
    }
    list.clear();
    expand(std::span(&piece, 1), BlockPairs(from, to), cuts, list);
    execute(list, cuts);
    ASSERT_EQ(dst, expected);
    if (!list.rects.empty()) ++with_rects;
    if (!list.run_bytes.empty()) ++with_runs;
  }
  EXPECT_GT(with_rects, 40u);
  EXPECT_GT(with_runs, 40u);
}

}  // namespace
}  // namespace kvbm::internal
