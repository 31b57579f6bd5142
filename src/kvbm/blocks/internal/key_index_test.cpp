// SPDX-License-Identifier: Apache-2.0
#include "kvbm/blocks/internal/key_index.hpp"

#include <map>
#include <unordered_map>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/random.hpp"

#include "tests/support/block_chains.hpp"

namespace kvbm::internal {
namespace {

using testing::test_key;

TEST(KeyIndex, FindsNothingBeforeItHasRoom) {
  KeyIndex index;
  const BlockKey key = test_key(1);
  EXPECT_EQ(index.find(key, hash_of(key)), kNone);
  uint32_t found = 0;
  index.find_batch({&key, 1}, {&found, 1});
  EXPECT_EQ(found, kNone);
}

TEST(KeyIndex, ANewNodeIsBlank) {
  KeyIndex index;
  index.reserve(4);
  const BlockKey key = test_key(1);
  const uint32_t node = index.insert(key, hash_of(key));
  EXPECT_EQ(index.find(key, hash_of(key)), node);
  EXPECT_EQ(index.node(node).key, key);
  EXPECT_EQ(index.links(node).parent, kNone);
  EXPECT_FALSE(index.node(node).is_resident());
  EXPECT_FALSE(index.links(node).has_children());
}

TEST(KeyIndex, NodesStayWhereTheyAreWhenItGrows) {
  KeyIndex index;
  index.reserve(10);
  const BlockKey key = test_key(1);
  const uint32_t node = index.insert(key, hash_of(key));
  const Node* address = &index.node(node);
  index.reserve(100'000);
  EXPECT_EQ(index.find(key, hash_of(key)), node);
  EXPECT_EQ(&index.node(node), address);
}

// Hashes are given by hand: few homes, at both ends of the table, so that runs are long, wrap
// around and overlap, and many keys with equal fragments.
TEST(KeyIndex, AgreesWithAMapUnderCollisions) {
  Random random(3);
  for (int round = 0; round < 40; ++round) {
    KeyIndex index;
    const size_t capacity = 1 + random.uniform(40);
    index.reserve(capacity);
    const uint64_t num_hashes = 1 + random.uniform(6);
    const auto made_up_hash = [&](uint64_t number) {
      const uint64_t choice = number % num_hashes;
      const uint64_t from_an_end = choice * 0x0200'0000;
      return (choice % 2 == 0 ? from_an_end : 0xffff'ffff - from_an_end) << 32;
    };
    std::map<uint64_t, uint32_t> model;
    for (int step = 0; step < 2'000; ++step) {
      const uint64_t number = random.uniform(2 * capacity);
      const BlockKey key = test_key(number);
      const auto known = model.find(number);
      ASSERT_EQ(index.find(key, made_up_hash(number)),
                known == model.end() ? kNone : known->second);
      if (known != model.end()) {
        ASSERT_EQ(index.node(known->second).key, key);
        index.erase(known->second);
        model.erase(known);
      } else if (model.size() < capacity) {
        model[number] = index.insert(key, made_up_hash(number));
      }
      ASSERT_EQ(index.size(), model.size());
    }
  }
}

TEST(KeyIndex, ABatchFindsWhatSingleLookupsFind) {
  Random random(5);
  KeyIndex index;
  index.reserve(500);
  for (uint64_t number = 0; number < 1'000; number += 2) {
    const BlockKey key = test_key(number);
    static_cast<void>(index.insert(key, hash_of(key)));
  }
  for (size_t count = 0; count <= KeyIndex::kBatch; ++count) {
    std::vector<BlockKey> keys;
    for (size_t i = 0; i < count; ++i) keys.push_back(test_key(random.uniform(1'000)));
    std::vector<uint32_t> nodes(count);
    index.find_batch(keys, nodes);
    for (size_t i = 0; i < count; ++i) {
      EXPECT_EQ(nodes[i], index.find(keys[i], hash_of(keys[i])));
    }
  }
}

TEST(KeyIndex, ABatchTellsKeysWithEqualFragmentsApart) {
  std::unordered_map<uint32_t, uint64_t> by_fragment;
  size_t num_pairs = 0;
  for (uint64_t number = 0; number < 400'000; ++number) {
    const auto fragment = static_cast<uint32_t>(hash_of(test_key(number)) >> 32);
    const auto [other, first] = by_fragment.try_emplace(fragment, number);
    if (first) continue;
    ++num_pairs;
    KeyIndex index;
    index.reserve(4);
    const std::vector<BlockKey> keys = {test_key(number), test_key(other->second)};
    std::vector<uint32_t> nodes(2);
    const uint32_t one = index.insert(keys[0], hash_of(keys[0]));
    index.find_batch(keys, nodes);
    EXPECT_EQ(nodes, (std::vector<uint32_t>{one, kNone}));
    const uint32_t two = index.insert(keys[1], hash_of(keys[1]));
    index.find_batch(keys, nodes);
    EXPECT_EQ(nodes, (std::vector<uint32_t>{one, two}));
    index.erase(one);
    index.find_batch(keys, nodes);
    EXPECT_EQ(nodes, (std::vector<uint32_t>{kNone, two}));
  }
  EXPECT_GT(num_pairs, 0U);  // chance gives 18
}

TEST(KeyIndex, FreedNodesAreUsedAgain) {
  KeyIndex index;
  index.reserve(2);
  for (uint64_t number = 0; number < 100'000; ++number) {
    const BlockKey key = test_key(number);
    const uint32_t node = index.insert(key, hash_of(key));
    ASSERT_LT(node, 2U);
    index.erase(node);
  }
}

}  // namespace
}  // namespace kvbm::internal
