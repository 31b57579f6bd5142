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
  return {.from = make_block_list({BlockId(3), BlockId(1)}),
          .to = make_block_list({BlockId(0), BlockId(7)}),
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
  batch.from = batch.to = make_block_list({});
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

std::vector<BlockId> ids_in_steps(uint32_t first, uint32_t step, size_t count) {
  std::vector<BlockId> ids;
  for (size_t i = 0; i < count; ++i) ids.emplace_back(first + static_cast<uint32_t>(i) * step);
  return ids;
}

TEST(HighestId, IsFoundWhereverItStands) {
  EXPECT_EQ(highest_id({}), 0U);
  for (size_t at = 0; at < 21; ++at) {
    std::vector<BlockId> ids = ids_in_steps(5, 1, 21);
    ids[at] = BlockId(1000);
    EXPECT_EQ(highest_id(ids), 1000U) << at;
  }
}

TEST(CountRows, EndsWhereAStepDiffersOnEitherSide) {
  for (size_t length = 3; length < 200; ++length) {
    std::vector<BlockId> from = ids_in_steps(3, 2, 230);
    const std::vector<BlockId> to = ids_in_steps(7, 5, 230);
    EXPECT_EQ(count_rows(from, to, 0), 230U);
    from[length] = BlockId(from[length].value() + 1);
    EXPECT_EQ(count_rows(from, to, 0), length);
    EXPECT_EQ(count_rows(to, from, 0), length);
  }
}

TEST(CountRows, StepsThatDifferByAllIdsAreNotEqual) {
  // 0, 3 * 2^30, 2^31, 2^30, 0 …: modulo 2^32 in equal steps.
  const std::vector<BlockId> wraps = ids_in_steps(0, 0xc000'0000, 400);
  const std::vector<BlockId> rises = ids_in_steps(0, 1, 400);
  EXPECT_EQ(count_rows(wraps, rises, 0), 1U);
  // Ten of these are below 2^32.
  const std::vector<BlockId> later = ids_in_steps(0, 0x1c00'0000, 400);
  EXPECT_EQ(count_rows(rises, later, 0), 10U);
  const std::vector<BlockId> much_later = ids_in_steps(0, 0x0100'0000, 400);
  EXPECT_EQ(count_rows(rises, much_later, 0), 256U);
}

TEST(SummaryOf, FindsTheHighestOfBothInAnyOrder) {
  EXPECT_EQ(summary_of({}, {}).highest_from, 0U);
  for (const size_t count : {1U, 2U, 3U, 64U, 200U}) {
    const std::vector<BlockId> from = ids_in_steps(4, 1, count);
    const std::vector<BlockId> to = ids_in_steps(9, 3, count);
    const auto highest_from = static_cast<uint32_t>(3 + count);
    const auto highest_to = static_cast<uint32_t>(9 + 3 * (count - 1));
    const PairSummary rising = summary_of(from, to);
    EXPECT_EQ(rising.highest_from, highest_from);
    EXPECT_EQ(rising.highest_to, highest_to);
    EXPECT_EQ(rising.in_equal_steps, count != 2) << "two in steps of three are no row";
    std::vector<BlockId> swapped = to;
    std::swap(swapped.front(), swapped.back());
    const PairSummary other = summary_of(from, swapped);
    EXPECT_EQ(other.highest_from, highest_from);
    EXPECT_EQ(other.highest_to, highest_to);
    EXPECT_EQ(other.in_equal_steps, count == 1);
  }
}

}  // namespace
}  // namespace kvbm
