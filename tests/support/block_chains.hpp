// SPDX-License-Identifier: Apache-2.0
// Keys and chains of blocks for tests of pools.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/blocks/block_registry.hpp"

namespace kvbm::testing {

/// The key number `number` of a group; numbers far apart share nothing.
[[nodiscard]] inline BlockKey test_key(uint64_t number, GroupId group = GroupId(0)) {
  return {NamespaceId(0x7e57), group,
          Identity::from_hashes(SequenceHash(number), BlockHash(~number), SequenceHash(0), 0)};
}

[[nodiscard]] inline std::vector<BlockKey> test_keys(std::initializer_list<uint64_t> numbers,
                                                     GroupId group = GroupId(0)) {
  std::vector<BlockKey> keys;
  for (const uint64_t number : numbers) keys.push_back(test_key(number, group));
  return keys;
}

/// Keys first, first + 1, …
[[nodiscard]] inline std::vector<BlockKey> test_chain(uint64_t first, size_t count,
                                                      GroupId group = GroupId(0)) {
  std::vector<BlockKey> keys;
  for (size_t i = 0; i < count; ++i) keys.push_back(test_key(first + i, group));
  return keys;
}

[[nodiscard]] inline BlockRegistry make_registry(std::vector<GroupSpec> groups = {
                                                     {GroupId(0), Retention::full_prefix()}}) {
  return BlockRegistry::create({std::move(groups)}).value();
}

[[nodiscard]] inline BlockPool make_pool(BlockRegistry& registry, uint32_t num_blocks,
                                         TierId tier = TierId::kG1, GroupId group = GroupId(0),
                                         PolicyKind policy = PolicyKind::kLineage,
                                         DuplicatePolicy duplicates = DuplicatePolicy::kAllow) {
  return registry.create_pool({tier, group, num_blocks, policy, duplicates}).value();
}

/// Allocates and completes one block for each key; each key's parent is the one before it.
[[nodiscard]] inline std::vector<CompleteBlock> complete_chain(
    BlockPool& pool, std::span<const BlockKey> keys,
    std::optional<BlockKey> parent = std::nullopt) {
  Allocation allocation = pool.allocate(keys.size()).value();
  std::vector<CompleteBlock> complete;
  for (size_t i = 0; i < keys.size(); ++i) {
    complete.push_back(std::move(allocation.blocks[i]).complete(keys[i], parent));
    parent = keys[i];
  }
  return complete;
}

/// Allocates, completes and registers a chain, and holds it.
[[nodiscard]] inline std::vector<ImmutableBlock> hold_chain(
    BlockPool& pool, std::span<const BlockKey> keys,
    std::optional<BlockKey> parent = std::nullopt) {
  return pool.register_blocks(complete_chain(pool, keys, parent));
}

/// The same, and lets it go, deepest block first: it is idle afterwards.
inline void add_chain(BlockPool& pool, std::span<const BlockKey> keys,
                      std::optional<BlockKey> parent = std::nullopt) {
  pool.release(hold_chain(pool, keys, parent));
}

[[nodiscard]] inline std::vector<BlockKey> keys_of(std::span<const EvictedBlock> blocks) {
  std::vector<BlockKey> keys;
  for (const EvictedBlock& block : blocks) keys.push_back(block.key);
  return keys;
}

/// What an allocation would evict, next one first.
[[nodiscard]] inline std::vector<EvictedBlock> idle_content(const BlockPool& pool) {
  return pool.describe(pool.idle_blocks());
}

[[nodiscard]] inline std::vector<BlockKey> idle_keys(const BlockPool& pool) {
  return keys_of(idle_content(pool));
}

[[nodiscard]] inline std::vector<BlockKey> keys_of(std::span<const ImmutableBlock> blocks) {
  std::vector<BlockKey> keys;
  for (const ImmutableBlock& block : blocks) keys.push_back(block.key());
  return keys;
}

inline void expect_occupancy(const BlockPool& pool, uint32_t num_free, uint32_t num_idle,
                             uint32_t num_active, uint32_t num_mutable) {
  const PoolOccupancy occupancy = pool.occupancy();
  EXPECT_EQ(occupancy.num_free, num_free);
  EXPECT_EQ(occupancy.num_idle, num_idle);
  EXPECT_EQ(occupancy.num_active, num_active);
  EXPECT_EQ(occupancy.num_mutable, num_mutable);
}

}  // namespace kvbm::testing
