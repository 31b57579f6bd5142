// SPDX-License-Identifier: Apache-2.0
// However a sequence came to be, it is what the definition says of its tokens.
#include <algorithm>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/bytes.hpp"
#include "kvbm/base/hash.hpp"
#include "kvbm/base/random.hpp"
#include "kvbm/tokens/token_block_sequence.hpp"

#include "tests/support/seed.hpp"

namespace kvbm {
namespace {

std::vector<Token> any_tokens(Random& random, size_t count) {
  std::vector<Token> tokens(count);
  for (Token& token : tokens) token = static_cast<Token>(random.next());
  return tokens;
}

/// The definition, written down again with explicit bytes.
std::vector<TokenBlock> blocks_by_definition(std::span<const Token> tokens, size_t block_size,
                                             SaltHash salt) {
  std::vector<TokenBlock> blocks;
  for (size_t start = 0; start + block_size <= tokens.size(); start += block_size) {
    ByteWriter token_bytes;
    for (const Token token : tokens.subspan(start, block_size)) token_bytes.u32(token);
    TokenBlock block;
    block.position = blocks.size();
    block.block_hash = BlockHash(xxh3_64(token_bytes.view(), salt.value()));
    if (blocks.empty()) {
      block.sequence_hash = SequenceHash(block.block_hash.value());
    } else {
      block.parent_sequence_hash = blocks.back().sequence_hash;
      ByteWriter link;
      link.u64(blocks.back().sequence_hash.value());
      link.u64(block.block_hash.value());
      block.sequence_hash = SequenceHash(xxh3_64(link.view(), 0));
    }
    blocks.push_back(block);
  }
  return blocks;
}

void expect_is(const TokenBlockSequence& sequence, const std::vector<Token>& tokens) {
  ASSERT_TRUE(std::ranges::equal(sequence.tokens(), tokens));
  const auto expected = blocks_by_definition(tokens, sequence.block_size(), sequence.salt());
  ASSERT_TRUE(std::ranges::equal(sequence.blocks(), expected));
  ASSERT_EQ(sequence.current_block().size(), tokens.size() % sequence.block_size());
  ASSERT_EQ(sequence, TokenBlockSequence(tokens, sequence.block_size(), sequence.salt()));
}

class TokenBlockSequenceProperty : public ::testing::Test {
 protected:
  Random random_{testing::test_seed()};
};

TEST_F(TokenBlockSequenceProperty, AppendingOneByOneExtendingAndConstructingAreTheSame) {
  for (int round = 0; round < 300; ++round) {
    const auto block_size = static_cast<uint32_t>(random_.uniform_between(1, 33));
    const SaltHash salt(random_.next());
    const std::vector<Token> tokens = any_tokens(random_, random_.uniform(200));

    TokenBlockSequence appended({}, block_size, salt);
    for (const Token token : tokens) {
      const size_t before = appended.num_blocks();
      const auto filled = appended.append(token);
      ASSERT_EQ(appended.num_blocks(), before + (filled ? 1 : 0));
      if (filled) {
        ASSERT_EQ(*filled, before);
      }
    }
    TokenBlockSequence extended({}, block_size, salt);
    for (size_t at = 0; at < tokens.size();) {
      const size_t piece = random_.uniform_between(1, tokens.size() - at);
      const size_t before = extended.num_blocks();
      const BlockRange filled = extended.extend(std::span(tokens).subspan(at, piece));
      ASSERT_EQ(filled, (BlockRange{before, extended.num_blocks()}));
      at += piece;
    }
    expect_is(appended, tokens);
    expect_is(extended, tokens);
  }
}

TEST_F(TokenBlockSequenceProperty, AnyWayOfGrowingAndShrinkingEndsAtTheDefinition) {
  for (int round = 0; round < 100; ++round) {
    const auto block_size = static_cast<uint32_t>(random_.uniform_between(1, 9));
    std::vector<Token> expected;
    TokenBlockSequence sequence({}, block_size, SaltHash(random_.next()));
    for (int step = 0; step < 60; ++step) {
      switch (random_.uniform(5)) {
        case 0: {
          const std::vector<Token> more = any_tokens(random_, random_.uniform(30));
          sequence.extend(more);
          expected.insert(expected.end(), more.begin(), more.end());
          break;
        }
        case 1: {
          const auto token = static_cast<Token>(random_.next());
          sequence.append(token);
          expected.push_back(token);
          break;
        }
        case 2: {
          const size_t keep = random_.uniform_between(0, expected.size());
          ASSERT_TRUE(sequence.truncate(keep));
          expected.resize(keep);
          break;
        }
        case 3: {
          const size_t drop = random_.uniform_between(0, std::min<size_t>(expected.size(), 12));
          ASSERT_TRUE(sequence.unwind(drop));
          expected.resize(expected.size() - drop);
          break;
        }
        default: {
          const auto last = sequence.pop();
          ASSERT_EQ(last.has_value(), !expected.empty());
          if (last) {
            ASSERT_EQ(*last, expected.back());
            expected.pop_back();
          }
        }
      }
      ASSERT_NO_FATAL_FAILURE(expect_is(sequence, expected));
    }
  }
}

}  // namespace
}  // namespace kvbm
