// SPDX-License-Identifier: Apache-2.0
#include "kvbm/tokens/token_block_sequence.hpp"

#include <numeric>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kvbm {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::IsEmpty;

const SaltHash kSalt = hash_salt("test");

std::vector<Token> count_up(size_t num_tokens) {
  std::vector<Token> tokens(num_tokens);
  std::iota(tokens.begin(), tokens.end(), Token{100});
  return tokens;
}

TEST(TokenBlockSequence, CutsTokensIntoFullBlocksAndARest) {
  const TokenBlockSequence sequence(count_up(10), 4, kSalt);
  EXPECT_EQ(sequence.total_tokens(), 10U);
  EXPECT_EQ(sequence.num_blocks(), 2U);
  EXPECT_EQ(sequence.block_size(), 4U);
  EXPECT_EQ(sequence.salt(), kSalt);
  EXPECT_THAT(sequence.tokens_of(0), ElementsAre(100, 101, 102, 103));
  EXPECT_THAT(sequence.tokens_of(1), ElementsAre(104, 105, 106, 107));
  EXPECT_THAT(sequence.current_block(), ElementsAre(108, 109));
  EXPECT_THROW(static_cast<void>(sequence.tokens_of(2)), ContractViolation);
}

TEST(TokenBlockSequence, BlocksNameTheirParents) {
  const TokenBlockSequence sequence(count_up(12), 4, kSalt);
  const auto blocks = sequence.blocks();
  ASSERT_EQ(blocks.size(), 3U);
  EXPECT_EQ(blocks[0].parent_sequence_hash, std::nullopt);
  EXPECT_EQ(blocks[0].sequence_hash.value(), blocks[0].block_hash.value());
  for (size_t i = 0; i < blocks.size(); ++i) {
    EXPECT_EQ(blocks[i].position, i);
    EXPECT_EQ(blocks[i].block_hash, hash_block(sequence.tokens_of(i), kSalt));
    if (i > 0) {
      EXPECT_EQ(blocks[i].parent_sequence_hash, blocks[i - 1].sequence_hash);
      EXPECT_EQ(blocks[i].sequence_hash,
                next_sequence_hash(blocks[i - 1].sequence_hash, blocks[i].block_hash));
    }
  }
}

TEST(TokenBlockSequence, AppendReportsTheBlockItFilled) {
  TokenBlockSequence sequence({}, 2, kSalt);
  EXPECT_THAT(sequence.blocks(), IsEmpty());
  EXPECT_EQ(sequence.append(1), std::nullopt);
  EXPECT_THAT(sequence.blocks(), IsEmpty());
  EXPECT_EQ(sequence.append(2), 0U);
  EXPECT_THAT(sequence.current_block(), IsEmpty());
  EXPECT_EQ(sequence.append(3), std::nullopt);
  EXPECT_EQ(sequence.append(4), 1U);
  EXPECT_THAT(sequence.tokens(), ElementsAre(1, 2, 3, 4));
}

TEST(TokenBlockSequence, ExtendReportsTheBlocksItFilled) {
  TokenBlockSequence sequence(count_up(3), 4, kSalt);
  EXPECT_EQ(sequence.extend({}), (BlockRange{0, 0}));
  EXPECT_EQ(sequence.extend(count_up(9)), (BlockRange{0, 3}));
  const BlockRange none = sequence.extend(count_up(3));
  EXPECT_EQ(none, (BlockRange{3, 3}));
  EXPECT_TRUE(none.empty());
  EXPECT_EQ(sequence.extend(count_up(1)).size(), 1U);
}

TEST(TokenBlockSequence, TruncateIsAsIfTheRestHadNeverCome) {
  TokenBlockSequence sequence(count_up(11), 4, kSalt);
  ASSERT_TRUE(sequence.truncate(11));
  ASSERT_TRUE(sequence.truncate(7));
  EXPECT_EQ(sequence, TokenBlockSequence(count_up(7), 4, kSalt));
  ASSERT_TRUE(sequence.truncate(4));
  EXPECT_EQ(sequence.num_blocks(), 1U);
  EXPECT_THAT(sequence.current_block(), IsEmpty());
  ASSERT_TRUE(sequence.truncate(0));
  EXPECT_EQ(sequence, TokenBlockSequence({}, 4, kSalt));
}

TEST(TokenBlockSequence, OtherTokensAfterATruncateGiveOtherBlocks) {
  TokenBlockSequence sequence(count_up(8), 4, kSalt);
  const TokenBlock before = sequence.blocks()[1];
  ASSERT_TRUE(sequence.truncate(7));
  EXPECT_EQ(sequence.append(9999), 1U);
  EXPECT_NE(sequence.blocks()[1].block_hash, before.block_hash);
  EXPECT_EQ(sequence.blocks()[1].parent_sequence_hash, before.parent_sequence_hash);
}

TEST(TokenBlockSequence, UnwindDropsFromTheEnd) {
  TokenBlockSequence sequence(count_up(11), 4, kSalt);
  ASSERT_TRUE(sequence.unwind(0));
  ASSERT_TRUE(sequence.unwind(4));
  EXPECT_EQ(sequence, TokenBlockSequence(count_up(7), 4, kSalt));
  ASSERT_TRUE(sequence.unwind(7));
  EXPECT_EQ(sequence.total_tokens(), 0U);
}

TEST(TokenBlockSequence, DroppingMoreThanThereIsChangesNothing) {
  TokenBlockSequence sequence(count_up(5), 4, kSalt);
  EXPECT_EQ(sequence.truncate(6).error().code(), ErrorCode::kInvalidArgument);
  EXPECT_EQ(sequence.unwind(6).error().code(), ErrorCode::kInvalidArgument);
  EXPECT_EQ(sequence, TokenBlockSequence(count_up(5), 4, kSalt));
}

TEST(TokenBlockSequence, PopReturnsTokensFromTheEnd) {
  TokenBlockSequence sequence(count_up(5), 4, kSalt);
  EXPECT_EQ(sequence.pop(), 104U);
  EXPECT_EQ(sequence.num_blocks(), 1U);
  EXPECT_EQ(sequence.pop(), 103U);
  EXPECT_EQ(sequence, TokenBlockSequence(count_up(3), 4, kSalt));
  while (sequence.pop()) {
  }
  EXPECT_EQ(sequence.pop(), std::nullopt);
  EXPECT_EQ(sequence.total_tokens(), 0U);
}

TEST(TokenBlockSequence, ClearKeepsBlockSizeAndSalt) {
  TokenBlockSequence sequence(count_up(9), 4, kSalt);
  sequence.clear();
  EXPECT_EQ(sequence, TokenBlockSequence({}, 4, kSalt));
  sequence.extend(count_up(9));
  EXPECT_EQ(sequence, TokenBlockSequence(count_up(9), 4, kSalt));
}

TEST(TokenBlockSequence, RefusesABlockSizeOfZeroAndItsOwnTokens) {
  EXPECT_THROW(TokenBlockSequence({}, 0, kSalt), ContractViolation);
  TokenBlockSequence sequence(count_up(9), 4, kSalt);
  EXPECT_THROW(sequence.extend(sequence.tokens_of(1)), ContractViolation);
  EXPECT_EQ(sequence, TokenBlockSequence(count_up(9), 4, kSalt));
}

}  // namespace
}  // namespace kvbm
