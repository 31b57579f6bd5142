// SPDX-License-Identifier: Apache-2.0
#include "kvbm/device/strided_copy.hpp"

#include <limits>

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
  StridedCopyBatch batch = batch_of({.bytes = 10, .count = 3, .src_stride = 16, .dst_stride = 10});
  EXPECT_EQ(planned_bytes(batch), 60u);
  batch.pieces.push_back(batch.pieces.front());
  EXPECT_EQ(planned_bytes(batch), 120u);
}

TEST(PlannedBytes, IsZeroForNoBlocksNoPiecesAndNoRepeats) {
  StridedCopyBatch batch = batch_of({.bytes = 10, .count = 0});
  EXPECT_EQ(planned_bytes(batch), 0u);
  batch.pieces.clear();
  EXPECT_EQ(planned_bytes(batch), 0u);
  batch.from = batch.to = make_block_list({});
  EXPECT_EQ(planned_bytes(batch), 0u);
}

TEST(PlannedBytes, AllowsAStrideThatIsNotUsed) {
  EXPECT_EQ(planned_bytes(batch_of({.bytes = 8, .count = 1, .src_stride = kMost})), 16u);
}

TEST(PlannedBytes, RefusesAnEndBeyondTheAddressSpace) {
  for (const StridedPiece& piece : {
           StridedPiece{.src_block_stride = kMost / 2, .bytes = 1},
           StridedPiece{.dst_block_stride = kMost / 4, .bytes = 1},
           StridedPiece{.bytes = 1, .count = 3, .src_stride = kMost / 2},
           StridedPiece{.bytes = 1, .count = kMost, .dst_stride = 2},
           StridedPiece{.bytes = kMost},
       }) {
    const Result<uint64_t> bytes = planned_bytes(batch_of(piece));
    ASSERT_FALSE(bytes);
    EXPECT_EQ(code_of(bytes), ErrorCode::kInvalidArgument);
  }
}

TEST(PlannedBytes, RefusesASumThatOverflows) {
  // Repeats on the spot reach no far address, but move more than can be counted.
  const Result<uint64_t> bytes = planned_bytes(batch_of({.bytes = 4096, .count = kMost / 4096}));
  ASSERT_FALSE(bytes);
  EXPECT_EQ(code_of(bytes), ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace kvbm
