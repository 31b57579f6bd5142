// SPDX-License-Identifier: Apache-2.0
#include "kvbm/device/strided_copy.hpp"

#include <limits>
#include <memory>

#include <gtest/gtest.h>

#include "tests/support/error_code.hpp"

namespace kvbm {
namespace {

using testing::code_of;

constexpr uint64_t kMost = std::numeric_limits<uint64_t>::max();

StridedCopyBatch batch_of(StridedPiece piece) {
  static std::byte memory[1];
  piece.src = memory;
  piece.dst = memory;
  return {.pairs = make_block_pairs({BlockId(3), BlockId(1)}, {BlockId(0), BlockId(7)}),
          .pieces = {piece}};
}

TEST(PlannedBytes, CountsBlocksTimesRepeatsTimesBytes) {
  StridedCopyBatch batch = batch_of({.bytes = 10, .axes = {{{3, 16, 10}}}});
  EXPECT_EQ(planned_bytes(batch), 60u);
  batch.pieces = {batch.pieces[0], batch.pieces[0]};
  EXPECT_EQ(planned_bytes(batch), 120u);
}

TEST(PlannedBytes, IsZeroForNoBlocksNoPiecesAndNoRepeats) {
  StridedCopyBatch batch = batch_of({.bytes = 10, .axes = {{{5, 10, 10}, {0}}}});
  EXPECT_EQ(planned_bytes(batch), 0u);
  batch.pieces = {};
  EXPECT_EQ(planned_bytes(batch), 0u);
  batch.pairs = make_block_pairs({});
  EXPECT_EQ(planned_bytes(batch), 0u);
}

TEST(PlannedBytes, AllowsAStrideThatIsNotUsed) {
  EXPECT_EQ(planned_bytes(batch_of({.bytes = 8, .axes = {{{1, kMost, 0}}}})), 16u);
}

TEST(PlannedBytes, RefusesAnEndBeyondTheAddressSpace) {
  for (const StridedPiece& piece : {
           StridedPiece{.src_block_stride = kMost / 2, .bytes = 1},
           StridedPiece{.dst_block_stride = kMost / 4, .bytes = 1},
           StridedPiece{.bytes = 1, .axes = {{{3, kMost / 2, 0}}}},
           StridedPiece{.bytes = 1, .axes = {{{2, kMost / 2, 0}, {2, kMost / 2, 0}}}},
           StridedPiece{.bytes = 1, .axes = {{{kMost, 0, 2}}}},
           StridedPiece{.bytes = kMost},
       }) {
    const Result<uint64_t> bytes = planned_bytes(batch_of(piece));
    ASSERT_FALSE(bytes);
    EXPECT_EQ(code_of(bytes), ErrorCode::kInvalidArgument);
  }
}

TEST(PlannedBytes, RefusesASumThatOverflows) {
  // Repeats on the spot reach no far address, but move more than can be counted.
  const Result<uint64_t> bytes =
      planned_bytes(batch_of({.bytes = 4096, .axes = {{{kMost / 4096}}}}));
  ASSERT_FALSE(bytes);
  EXPECT_EQ(code_of(bytes), ErrorCode::kInvalidArgument);
}

TEST(PieceList, KnowsRunsOfOneFormAndTheirHighestBases) {
  std::byte memory[64];
  const StridedPiece first = {.src = memory + 8, .dst = memory + 32, .bytes = 8};
  StridedPiece higher = first;
  higher.src = memory + 16;
  higher.dst = memory;
  StridedPiece other = first;
  other.bytes = 4;
  StridedPiece null = other;
  null.src = nullptr;
  const PieceList pieces = {first, higher, first, other, null, first};
  ASSERT_EQ(pieces.runs().size(), 3u);
  EXPECT_EQ(pieces.runs()[0].begin, 0u);
  EXPECT_EQ(pieces.runs()[0].end, 3u);
  EXPECT_EQ(pieces.runs()[0].last_src, memory + 16);
  EXPECT_EQ(pieces.runs()[0].last_dst, memory + 32);
  EXPECT_FALSE(pieces.runs()[0].has_null_base);
  EXPECT_EQ(pieces.runs()[1].end, 5u);
  EXPECT_TRUE(pieces.runs()[1].has_null_base);
  EXPECT_EQ(pieces.runs()[2].end, 6u);
  EXPECT_TRUE(PieceList().runs().empty());
}

TEST(PieceList, KeepsWhatADeviceMadeOfItFirstUntilItsEnd) {
  struct Made final : PreparedPieces {
    explicit Made(int& left) : left_(left) { ++left_; }
    ~Made() override { --left_; }
    int& left_;
  };
  int left = 0;
  {
    const PieceList pieces = {StridedPiece()};
    const PieceList copy = pieces;
    EXPECT_EQ(pieces.prepared(), nullptr);
    const PreparedPieces& first = pieces.keep(std::make_unique<const Made>(left));
    EXPECT_EQ(copy.prepared(), &first);
    EXPECT_EQ(&copy.keep(std::make_unique<const Made>(left)), &first);
    EXPECT_EQ(left, 1);
  }
  EXPECT_EQ(left, 0);
}

TEST(PlannedBytes, LooksAtTheBasesOfPiecesOfOneForm) {
  StridedCopyBatch batch = batch_of({.bytes = 8, .axes = {{{2, 8, 8}}}});
  const StridedPiece first = batch.pieces[0];
  batch.pieces = {first, first};
  EXPECT_EQ(planned_bytes(batch), 64u);
  StridedPiece other = first;
  other.axes[0].count = 3;
  batch.pieces = {first, other};
  EXPECT_EQ(planned_bytes(batch), 80u);
  batch.pieces = {first, other, first};
  EXPECT_EQ(planned_bytes(batch), 112u);
  StridedPiece astray = first;
  astray.dst = nullptr;
  batch.pieces = {first, other, astray};
  EXPECT_EQ(code_of(planned_bytes(batch)), ErrorCode::kInvalidArgument);
  astray.dst = reinterpret_cast<std::byte*>(kMost - 8);
  batch.pieces = {first, other, astray};
  EXPECT_EQ(code_of(planned_bytes(batch)), ErrorCode::kInvalidArgument);
}

TEST(PlannedBytes, RefusesMoreStepsThanCanBeCounted) {
  EXPECT_EQ(code_of(planned_bytes(batch_of({.bytes = 1, .axes = {{{kMost}, {kMost}}}}))),
            ErrorCode::kInvalidArgument);
}

TEST(PlannedBytes, RefusesACtaBudgetForACopyEngine) {
  StridedCopyBatch batch = batch_of({.bytes = 8});
  batch.max_ctas = 4;
  EXPECT_EQ(code_of(planned_bytes(batch)), ErrorCode::kInvalidArgument);
  batch.method = CopyMethod::kKernel;
  EXPECT_EQ(planned_bytes(batch), 16u);
}

TEST(PlannedBytes, RefusesAPaceForACopyEngine) {
  StridedCopyBatch batch = batch_of({.bytes = 8});
  batch.max_bytes_per_second = 1;
  EXPECT_EQ(code_of(planned_bytes(batch)), ErrorCode::kInvalidArgument);
  batch.method = CopyMethod::kKernel;
  EXPECT_EQ(planned_bytes(batch), 16u);
}

TEST(Fold, JoinsRunsThatTouchOnBothSides) {
  const StridedPiece piece = fold({.bytes = 8, .axes = {{{3, 32, 64}, {1, 7, 7}, {4, 8, 8}}}});
  EXPECT_EQ(piece.bytes, 32u);
  EXPECT_EQ(piece.axes, (StridedAxes{{{}, {}, {}, {3, 32, 64}}}));
  EXPECT_EQ(fold({.bytes = 8, .axes = {{{3, 32, 32}, {4, 8, 8}}}}).bytes, 96u);
}

TEST(Fold, MakesOneAxisOfTwoWhoseStepsFollowEachOther) {
  const StridedPiece piece = fold({.bytes = 8, .axes = {{{5, 64, 128}, {4, 16, 32}}}});
  EXPECT_EQ(piece.bytes, 8u);
  EXPECT_EQ(piece.axes, (StridedAxes{{{}, {}, {}, {20, 16, 32}}}));
}

TEST(Fold, KeepsAxesThatTouchOnOneSideAlone) {
  const StridedAxes axes{{{2, 32, 8}, {4, 8, 16}}};
  const StridedPiece piece = fold({.bytes = 8, .axes = axes});
  EXPECT_EQ(piece.bytes, 8u);
  EXPECT_EQ(piece.axes, (StridedAxes{{{}, {}, axes[0], axes[1]}}));
}

}  // namespace
}  // namespace kvbm
