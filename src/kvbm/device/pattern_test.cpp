// SPDX-License-Identifier: Apache-2.0
#include "kvbm/device/pattern.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/contract.hpp"

#include "tests/support/error_code.hpp"

namespace kvbm {
namespace {

using testing::code_of;
using Place = PatternFindings::Place;

std::vector<std::byte> pattern_of(uint64_t seed, size_t bytes) {
  std::vector<std::byte> out(bytes);
  fill_pattern(seed, out);
  return out;
}

TEST(Pattern, WordsAreAsTheKernelsDefineThem) {
  // Worked out by hand of the definition in kernels.h.
  EXPECT_EQ(pattern_word(0, 0), 0u);
  EXPECT_EQ(pattern_word(1, 0), 0x0000'0000'0002'0001u);
  EXPECT_EQ(pattern_word(5, 3), pattern_word(5 + 3 * 0x9E3779B97F4A7C15u, 0));
  const std::vector<std::byte> bytes = pattern_of(1, 11);
  EXPECT_EQ(bytes[0], std::byte{1});
  EXPECT_EQ(bytes[2], std::byte{2});
  EXPECT_EQ(bytes[8], static_cast<std::byte>(pattern_word(1, 1) & 0xFF));
}

TEST(Pattern, StartsAlikeWhateverItsLength) {
  const std::vector<std::byte> longest = pattern_of(77, 20'000);
  for (const size_t bytes : {1, 7, 8, 9, 4095, 4096, 4097, 8191, 12'345}) {
    const std::vector<std::byte> some = pattern_of(77, bytes);
    EXPECT_TRUE(std::equal(some.begin(), some.end(), longest.begin())) << bytes;
  }
}

TEST(Pattern, PatternsOfTwoSeedsDifferInEveryWord) {
  for (const uint64_t other : {uint64_t{78}, uint64_t{77} << 32, ~uint64_t{0}}) {
    for (uint64_t i = 0; i < 1000; ++i) {
      ASSERT_NE(pattern_word(77, i), pattern_word(other, i)) << i;
    }
  }
}

TEST(Pattern, FindsTheFirstWrongByteWhereverItIs) {
  for (const size_t at : {0, 1, 4095, 4096, 9999, 10'002}) {
    std::vector<std::byte> bytes = pattern_of(3, 10'003);
    EXPECT_EQ(first_wrong_byte(3, bytes), std::nullopt);
    bytes[at] ^= std::byte{0x10};
    bytes.back() ^= std::byte{1};
    EXPECT_EQ(first_wrong_byte(3, bytes), at);
  }
}

/// Blocks of two pieces, of 24 and of 40 bytes.
struct Memory {
  std::vector<std::byte> bytes = std::vector<std::byte>(5 * 80);
  PatternBatch batch{
      .blocks = {BlockId(4), BlockId(0), BlockId(2)},
      .seeds = {10, 20, 30},
      .pieces = {{.data = bytes.data(), .block_stride = 80, .bytes = 24, .seed = 7},
                 {.data = bytes.data() + 30, .block_stride = 80, .bytes = 40, .seed = 1000}}};

  [[nodiscard]] std::shared_ptr<PatternFindings> compare() {
    PatternBatch compared = batch;
    compared.findings = std::make_shared<PatternFindings>(batch.blocks.size());
    run_pattern(compared);
    return compared.findings;
  }
};

TEST(Pattern, FillsThePiecesOfItsBlocksAndNothingElse) {
  Memory memory;
  run_pattern(memory.batch);
  std::vector<std::byte> expected(memory.bytes.size());
  const auto put = [&expected](size_t at, uint64_t seed, size_t bytes) {
    const std::vector<std::byte> piece = pattern_of(seed, bytes);
    std::copy(piece.begin(), piece.end(), expected.begin() + static_cast<std::ptrdiff_t>(at));
  };
  put(4 * 80, 17, 24);
  put(4 * 80 + 30, 1010, 40);
  put(0, 27, 24);
  put(30, 1020, 40);
  put(2 * 80, 37, 24);
  put(2 * 80 + 30, 1030, 40);
  EXPECT_EQ(memory.bytes, expected);
}

TEST(Pattern, TellsTheFirstWrongByteOfEachBlock) {
  Memory memory;
  run_pattern(memory.batch);
  const auto right = memory.compare();
  EXPECT_EQ(right->num_compared(), 3u);
  EXPECT_EQ(right->num_wrong(), 0u);

  memory.bytes[4 * 80 + 30 + 39] ^= std::byte{1};
  memory.bytes[2 * 80 + 30] ^= std::byte{1};
  memory.bytes[2 * 80 + 23] ^= std::byte{1};
  memory.bytes[4 * 80 + 24] ^= std::byte{1};  // between two pieces
  const auto wrong = memory.compare();
  EXPECT_EQ(wrong->num_wrong(), 2u);
  EXPECT_EQ(wrong->first_wrong(0), (Place{.piece = 1, .offset = 39}));
  EXPECT_EQ(wrong->first_wrong(1), std::nullopt);
  EXPECT_EQ(wrong->first_wrong(2), (Place{.piece = 0, .offset = 23}));
  EXPECT_THROW((void)wrong->first_wrong(3), ContractViolation);
  EXPECT_THROW(wrong->add(std::vector<uint64_t>(1)), ContractViolation);
}

TEST(Pattern, CountsItsBytesAndRefusesWhatMakesNoSense) {
  Memory memory;
  EXPECT_EQ(planned_bytes(memory.batch).value(), 3u * 64);
  EXPECT_EQ(planned_bytes(PatternBatch{}).value(), 0u);
  const auto refused = [&memory](auto change) {
    PatternBatch batch = memory.batch;
    change(batch);
    return code_of(planned_bytes(batch)) == ErrorCode::kInvalidArgument;
  };
  EXPECT_TRUE(refused([](PatternBatch& batch) { batch.seeds.pop_back(); }));
  EXPECT_TRUE(refused([](PatternBatch& batch) { batch.pieces[1].data = nullptr; }));
  EXPECT_TRUE(refused([](PatternBatch& batch) { batch.pieces[0].bytes = uint64_t{1} << 40; }));
  EXPECT_TRUE(refused([](PatternBatch& batch) { batch.pieces[0].block_stride = ~uint64_t{0}; }));
  EXPECT_TRUE(
      refused([](PatternBatch& batch) { batch.findings = std::make_shared<PatternFindings>(2); }));
  PatternBatch empty_piece = memory.batch;
  empty_piece.pieces[1] = {};
  EXPECT_EQ(planned_bytes(empty_piece).value(), 3u * 24);
}

}  // namespace
}  // namespace kvbm
