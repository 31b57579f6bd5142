// SPDX-License-Identifier: Apache-2.0
#include "kvbm/blocks/block_key.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <set>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/random.hpp"
#include "kvbm/tokens/token_block_sequence.hpp"

namespace kvbm {
namespace {

std::vector<std::byte> bytes(std::initializer_list<int> values) {
  std::vector<std::byte> result;
  for (const int value : values) result.push_back(static_cast<std::byte>(value));
  return result;
}

TEST(Identity, OfDifferentLengthsNeverCollide) {
  const std::vector<std::byte> zeros(31);
  std::set<std::array<std::byte, 32>> seen;
  for (size_t length = 1; length <= zeros.size(); ++length) {
    const Result<Identity> identity = Identity::from_bytes(std::span(zeros).first(length));
    ASSERT_TRUE(identity);
    EXPECT_TRUE(seen.insert(identity->bytes).second) << length;
  }
}

TEST(Identity, Of32BytesIsTakenAsItIs) {
  std::vector<std::byte> hash(32);
  for (size_t i = 0; i < hash.size(); ++i) hash[i] = static_cast<std::byte>(i * 7 + 1);
  const Result<Identity> identity = Identity::from_bytes(hash);
  ASSERT_TRUE(identity);
  EXPECT_TRUE(std::equal(hash.begin(), hash.end(), identity->bytes.begin()));
}

TEST(Identity, IsNeverEmptyOrLongerThan32Bytes) {
  const std::vector<std::byte> too_long(33);
  EXPECT_EQ(Identity::from_bytes({}).error().code(), ErrorCode::kInvalidArgument);
  EXPECT_EQ(Identity::from_bytes(too_long).error().code(), ErrorCode::kInvalidArgument);
}

TEST(Identity, FromHashesIsFourLittleEndianWords) {
  const Identity identity =
      Identity::from_hashes(SequenceHash(0x0807060504030201), BlockHash(0x1817161514131211),
                            SequenceHash(0x2827262524232221), 0x3837363534333231);
  EXPECT_THAT(identity.bytes, ::testing::ElementsAreArray(bytes(
                                  {0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x11, 0x12, 0x13,
                                   0x14, 0x15, 0x16, 0x17, 0x18, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26,
                                   0x27, 0x28, 0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37, 0x38})));
}

Namespace some_namespace() {
  return {.model = "m",
          .weights_epoch = 1,
          .dtype = "bf16",
          .num_heads = 8,
          .num_layers = 32,
          .tokens_per_block = 16,
          .identity_scheme = "sha256",
          .tenant_salt = "t"};
}

TEST(Namespace, EveryFieldChangesTheId) {
  std::vector<Namespace> all(9, some_namespace());
  all[1].model = "n";
  all[2].weights_epoch = 2;
  all[3].dtype = "fp8";
  all[4].num_heads = 9;
  all[5].num_layers = 33;
  all[6].tokens_per_block = 32;
  all[7].identity_scheme = "other";
  all[8].tenant_salt = "u";
  std::set<NamespaceId> ids;
  for (const Namespace& description : all) ids.insert(description.id());
  EXPECT_EQ(ids.size(), all.size());
  EXPECT_EQ(all[0].id(), some_namespace().id());
}

TEST(Namespace, TextsDoNotRunIntoEachOther) {
  Namespace a = some_namespace();
  Namespace b = some_namespace();
  a.identity_scheme = "ab";
  a.tenant_salt = "c";
  b.identity_scheme = "a";
  b.tenant_salt = "bc";
  EXPECT_NE(a.id(), b.id());
}

BlockKey some_key() {
  return {NamespaceId(1), GroupId(2),
          Identity::from_hashes(SequenceHash(3), BlockHash(4), SequenceHash(5), 6)};
}

TEST(BlockKey, DiffersInEveryField) {
  const BlockKey key = some_key();
  EXPECT_EQ(key, some_key());
  BlockKey other = key;
  other.ns = NamespaceId(9);
  EXPECT_FALSE(other == key);
  other = key;
  other.group = GroupId(9);
  EXPECT_FALSE(other == key);
  for (size_t i = 0; i < Identity::kSize; ++i) {
    other = key;
    other.identity.bytes[i] ^= std::byte{1};
    EXPECT_FALSE(other == key) << i;
  }
}

// Each bit of the key changes about half of the bits of the hash, high half included, on average.
TEST(BlockKey, TheHashMixesEveryBit) {
  Random random(1);
  const auto flips_of = [&](auto&& change) {
    double flips = 0;
    constexpr int kRounds = 200;
    for (int round = 0; round < kRounds; ++round) {
      BlockKey key{NamespaceId(random.next()), GroupId(static_cast<uint16_t>(random.next())),
                   Identity::from_hashes(SequenceHash(random.next()), BlockHash(random.next()),
                                         SequenceHash(random.next()), random.next())};
      const uint64_t before = hash_of(key);
      change(key);
      flips += std::popcount((before ^ hash_of(key)) >> 32);
    }
    return flips / kRounds;
  };
  for (size_t bit = 0; bit < 8 * Identity::kSize; ++bit) {
    const double flips = flips_of([&](BlockKey& key) {
      key.identity.bytes[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
    });
    EXPECT_GT(flips, 13) << bit;
    EXPECT_LT(flips, 19) << bit;
  }
  for (uint32_t bit = 0; bit < 64; ++bit) {
    const double flips = flips_of(
        [&](BlockKey& key) { key.ns = NamespaceId(key.ns.value() ^ (uint64_t{1} << bit)); });
    EXPECT_GT(flips, 13) << bit;
  }
  for (uint32_t bit = 0; bit < 16; ++bit) {
    const double flips = flips_of([&](BlockKey& key) {
      key.group = GroupId(static_cast<uint16_t>(key.group.value() ^ (1U << bit)));
    });
    EXPECT_GT(flips, 13) << bit;
  }
}

TEST(BlockKey, SmallNumbersDoNotCollide) {
  std::set<uint32_t> fragments;
  constexpr uint64_t kCount = 20'000;
  for (uint64_t i = 0; i < kCount; ++i) {
    const BlockKey key{NamespaceId(0), GroupId(0),
                       Identity::from_hashes(SequenceHash(i), BlockHash(0), SequenceHash(0), 0)};
    fragments.insert(static_cast<uint32_t>(hash_of(key) >> 32));
  }
  EXPECT_GT(fragments.size(), kCount - 5);  // chance alone gives 0.05 collisions
}

TEST(BlockKey, PrintsItsThreeParts) {
  EXPECT_EQ(to_string(some_key()),
            "0000000000000001/2/"
            "0300000000000000040000000000000005000000000000000600000000000000");
}

std::vector<BlockKey> keys_of(std::vector<Token> tokens, GroupId group = GroupId(3)) {
  return block_keys_from_tokens(TokenBlockSequence(tokens, 2, SaltHash(5)), NamespaceId(7), group);
}

TEST(BlockKeysFromTokens, AreMadeOfTheHashesOfFullBlocks) {
  const std::vector<Token> tokens = {1, 2, 3, 4, 5};
  const TokenBlockSequence sequence(tokens, 2, SaltHash(5));
  const std::vector<BlockKey> keys = keys_of(tokens);
  ASSERT_EQ(keys.size(), 2U);
  const TokenBlock& first = sequence.blocks()[0];
  const TokenBlock& second = sequence.blocks()[1];
  EXPECT_EQ(keys[0].ns, NamespaceId(7));
  EXPECT_EQ(keys[0].group, GroupId(3));
  EXPECT_EQ(keys[0].identity,
            Identity::from_hashes(first.sequence_hash, first.block_hash, SequenceHash(0), 0));
  EXPECT_EQ(keys[1].identity,
            Identity::from_hashes(second.sequence_hash, second.block_hash, first.sequence_hash, 1));
}

TEST(BlockKeysFromTokens, DependOnTheWholePrefix) {
  const std::vector<BlockKey> keys = keys_of({1, 2, 3, 4, 5, 6});
  const std::vector<BlockKey> other_root = keys_of({1, 9, 3, 4, 5, 6});
  const std::vector<BlockKey> other_leaf = keys_of({1, 2, 3, 4, 5, 9});
  for (size_t i = 0; i < 3; ++i) EXPECT_FALSE(keys[i] == other_root[i]);
  EXPECT_EQ(keys[0], other_leaf[0]);
  EXPECT_EQ(keys[1], other_leaf[1]);
  EXPECT_FALSE(keys[2] == other_leaf[2]);
  EXPECT_TRUE(keys_of({1}).empty());
}

}  // namespace
}  // namespace kvbm
