// SPDX-License-Identifier: Apache-2.0
#include "kvbm/tokens/token_hash.hpp"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/tokens/token_block_sequence.hpp"

namespace kvbm {
namespace {

struct KnownAnswer {
  std::string salt_hex;
  uint64_t salt_hash;
  uint32_t block_size;
  size_t num_tokens;
  uint32_t seed;
  std::vector<uint64_t> block_hashes;
  std::vector<uint64_t> sequence_hashes;
};

const std::vector<KnownAnswer>& known_answers() {
  static const std::vector<KnownAnswer> kAnswers = {
#include "kvbm/tokens/known_answers.inc"
  };
  return kAnswers;
}

// scripts/make_token_known_answers.py has the same formula.
std::vector<Token> tokens_of(const KnownAnswer& answer) {
  std::vector<Token> tokens(answer.num_tokens);
  for (uint32_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = (i + answer.seed) * 2654435761U + answer.seed;
  }
  return tokens;
}

std::string salt_of(const KnownAnswer& answer) {
  std::string salt;
  for (size_t i = 0; i < answer.salt_hex.size(); i += 2) {
    salt.push_back(static_cast<char>(std::stoi(answer.salt_hex.substr(i, 2), nullptr, 16)));
  }
  return salt;
}

TEST(TokenHash, KnownAnswers) {
  ASSERT_EQ(known_answers().size(), 20U);
  for (const KnownAnswer& answer : known_answers()) {
    SCOPED_TRACE("seed " + std::to_string(answer.seed));
    const SaltHash salt = hash_salt(salt_of(answer));
    EXPECT_EQ(salt, SaltHash(answer.salt_hash));
    const TokenBlockSequence sequence(tokens_of(answer), answer.block_size, salt);
    ASSERT_EQ(sequence.num_blocks(), answer.block_hashes.size());
    for (size_t i = 0; i < sequence.num_blocks(); ++i) {
      EXPECT_EQ(sequence.blocks()[i].block_hash, BlockHash(answer.block_hashes[i])) << i;
      EXPECT_EQ(sequence.blocks()[i].sequence_hash, SequenceHash(answer.sequence_hashes[i])) << i;
    }
  }
}

TEST(TokenHash, TheSaltKeepsEqualTokensApart) {
  const std::vector<Token> tokens = {1, 2, 3, 4};
  EXPECT_NE(hash_block(tokens, hash_salt("tenant a")), hash_block(tokens, hash_salt("tenant b")));
  EXPECT_EQ(hash_salt("x"), hash_salt(std::as_bytes(std::span("x", 1))));
}

TEST(TokenHash, ABlockKeepsItsHashAtAnotherPlaceAndChangesItsSequenceHash) {
  const std::vector<Token> tokens = {5, 6, 5, 6};
  const TokenBlockSequence sequence(tokens, 2, hash_salt(""));
  EXPECT_EQ(sequence.blocks()[0].block_hash, sequence.blocks()[1].block_hash);
  EXPECT_NE(sequence.blocks()[0].sequence_hash, sequence.blocks()[1].sequence_hash);
}

}  // namespace
}  // namespace kvbm
