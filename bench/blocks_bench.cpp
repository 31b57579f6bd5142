// SPDX-License-Identifier: Apache-2.0
// What the registry costs: matching, pinning, registering, evicting.
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include "kvbm/base/random.hpp"
#include "kvbm/blocks/block_registry.hpp"

namespace kvbm {
namespace {

constexpr GroupId kGroup{0};

BlockKey key_of(uint64_t number) {
  return {NamespaceId(1), kGroup,
          Identity::from_hashes(SequenceHash(number), BlockHash(~number), SequenceHash(0), 0)};
}

std::vector<BlockKey> chain(uint64_t first, size_t count) {
  std::vector<BlockKey> keys;
  for (size_t i = 0; i < count; ++i) keys.push_back(key_of(first + i));
  return keys;
}

std::vector<CompleteBlock> complete(std::vector<MutableBlock>&& blocks,
                                    std::span<const BlockKey> keys) {
  std::vector<CompleteBlock> result;
  result.reserve(blocks.size());
  for (size_t i = 0; i < blocks.size(); ++i) {
    result.push_back(
        std::move(blocks[i]).complete(keys[i], i > 0 ? std::optional(keys[i - 1]) : std::nullopt));
  }
  return result;
}

struct World {
  World(uint32_t num_blocks, PolicyKind policy, size_t num_tiers = 1)
      : registry(BlockRegistry::create({{{kGroup}}}).value()) {
    for (size_t tier = 0; tier < num_tiers; ++tier) {
      pools.push_back(registry
                          .create_pool({static_cast<TierId>(tier), kGroup, num_blocks, policy,
                                        DuplicatePolicy::kAllow})
                          .value());
    }
  }
  void add(std::span<const BlockKey> keys, size_t tier = 0) {
    pools[tier].release(pools[tier].register_blocks(
        complete(std::move(pools[tier].allocate(keys.size()).value().blocks), keys)));
  }

  BlockRegistry registry;
  std::vector<BlockPool> pools;
};

// Chains of `length` in a pool of `num_blocks`, asked for in random order: with a large pool, from
// memory and not from the processor's caches.
struct Chains {
  Chains(World& world, uint32_t num_blocks, size_t length, size_t num_tiers) {
    for (uint64_t first = 0; first + length <= num_blocks; first += length) {
      keys.push_back(chain(first, length));
      for (size_t tier = 0; tier < num_tiers; ++tier) world.add(keys.back(), tier);
    }
  }
  const std::vector<BlockKey>& any() { return keys[random.uniform(keys.size())]; }

  std::vector<std::vector<BlockKey>> keys;
  Random random{1};
};

void match(benchmark::State& state, bool time_the_match, size_t num_tiers) {
  const auto num_blocks = static_cast<uint32_t>(state.range(0));
  const auto length = static_cast<size_t>(state.range(1));
  World world(num_blocks, PolicyKind::kLineage, num_tiers);
  Chains chains(world, num_blocks, length, num_tiers);
  // Many at a time: stopping the clock takes a good part of a match.
  constexpr size_t kBatch = 64;
  std::vector<PrefixMatch> found(kBatch);
  while (state.KeepRunningBatch(kBatch)) {
    if (!time_the_match) state.PauseTiming();
    for (PrefixMatch& match : found) {
      const GroupKeys group{kGroup, chains.any()};
      match = world.registry.match({&group, 1});
    }
    if (time_the_match) {
      state.PauseTiming();
    } else {
      state.ResumeTiming();
    }
    for (PrefixMatch& match : found) world.registry.release(std::move(match));
    if (time_the_match) state.ResumeTiming();
  }
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(length));
}

void BM_Match(benchmark::State& state) { match(state, true, 1); }
void BM_MatchAndTouchASlowerTier(benchmark::State& state) { match(state, true, 2); }
void BM_Release(benchmark::State& state) { match(state, false, 1); }

// Both, without the cost of stopping the clock.
void BM_MatchAndRelease(benchmark::State& state) {
  const auto num_blocks = static_cast<uint32_t>(state.range(0));
  const auto length = static_cast<size_t>(state.range(1));
  World world(num_blocks, PolicyKind::kLineage);
  Chains chains(world, num_blocks, length, 1);
  for (auto _ : state) {
    const GroupKeys group{kGroup, chains.any()};
    world.registry.release(world.registry.match({&group, 1}));
  }
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(length));
}

void BM_MatchMiss(benchmark::State& state) {
  World world(65'536, PolicyKind::kLineage);
  Chains chains(world, 65'536, 128, 1);
  const std::vector<BlockKey> keys = chain(1'000'000, 128);
  for (auto _ : state) {
    const GroupKeys group{kGroup, keys};
    benchmark::DoNotOptimize(world.registry.match({&group, 1}));
  }
}

// Allocate, complete, register; in a full pool each allocation evicts.
void BM_Register(benchmark::State& state) {
  const auto num_blocks = static_cast<uint32_t>(state.range(0));
  const auto count = static_cast<size_t>(state.range(1));
  const auto policy = static_cast<PolicyKind>(state.range(2));
  World world(num_blocks, policy);
  uint64_t first = 0;
  std::vector<BlockKey> keys;
  const auto next_keys = [&] {
    keys = chain(first, count);
    first += count;
  };
  while (first < num_blocks) {
    next_keys();
    world.add(keys);
  }
  for (auto _ : state) {
    state.PauseTiming();
    next_keys();
    state.ResumeTiming();
    std::vector<ImmutableBlock> held = world.pools[0].register_blocks(
        complete(std::move(world.pools[0].allocate(count).value().blocks), keys));
    state.PauseTiming();
    world.pools[0].release(std::move(held));
    state.ResumeTiming();
  }
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(count));
  state.SetLabel(std::string(to_string(policy)));
}

// Conversations that grow turn by turn over a few shared system prompts, as an engine sees them.
void BM_PrefixWorkload(benchmark::State& state) {
  const auto num_blocks = static_cast<uint32_t>(state.range(0));
  const auto policy = static_cast<PolicyKind>(state.range(1));
  constexpr size_t kAccesses = 288'500;
  Random random(1);
  std::vector<std::vector<BlockKey>> requests;
  std::vector<std::vector<BlockKey>> conversations(2'000);
  uint64_t next = 1'000'000;
  for (size_t accesses = 0; accesses < kAccesses; accesses += requests.back().size()) {
    std::vector<BlockKey>& keys = conversations[random.uniform(conversations.size())];
    if (keys.empty()) keys = chain(10 * random.uniform(5), 4);
    for (uint64_t blocks = 1 + random.uniform(8); blocks > 0; --blocks) {
      keys.push_back(key_of(next++));
    }
    requests.push_back(keys);
    if (keys.size() > 60) keys.clear();
  }
  uint64_t hits = 0;
  uint64_t accesses = 0;
  for (auto _ : state) {
    World world(num_blocks, policy);
    BlockPool& pool = world.pools[0];
    for (const std::vector<BlockKey>& keys : requests) {
      std::vector<ImmutableBlock> held = pool.match_prefix(keys);
      const size_t known = held.size();
      hits += known;
      accesses += keys.size();
      Allocation allocation = pool.allocate(keys.size() - known).value();
      std::vector<CompleteBlock> rest;
      rest.reserve(allocation.blocks.size());
      for (size_t i = known; i < keys.size(); ++i) {
        rest.push_back(std::move(allocation.blocks[i - known])
                           .complete(keys[i], i > 0 ? std::optional(keys[i - 1]) : std::nullopt));
      }
      held.reserve(keys.size());
      for (ImmutableBlock& block : pool.register_blocks(std::move(rest))) {
        held.push_back(std::move(block));
      }
      pool.release(std::move(held));
    }
  }
  state.SetItemsProcessed(static_cast<int64_t>(accesses));
  state.counters["hit_share"] = static_cast<double>(hits) / static_cast<double>(accesses);
  state.SetLabel(std::string(to_string(policy)));
}

void BM_CloneAndDrop(benchmark::State& state) {
  World world(16, PolicyKind::kLineage);
  world.add(chain(0, 1));
  const std::optional<ImmutableBlock> block = world.pools[0].find(key_of(0));
  for (auto _ : state) benchmark::DoNotOptimize(block->clone());
}

// One root with as many children as there are blocks, all given up: no step may look at all of
// them.
void BM_EvictAWideTree(benchmark::State& state) {
  const auto num_blocks = static_cast<uint32_t>(state.range(0));
  const std::vector<BlockKey> keys = chain(0, num_blocks);
  for (auto _ : state) {
    state.PauseTiming();
    {
      World world(num_blocks, PolicyKind::kLineage);
      BlockPool& pool = world.pools[0];
      std::vector<MutableBlock> blocks = std::move(pool.allocate(num_blocks).value().blocks);
      std::vector<CompleteBlock> rest;
      for (size_t i = 0; i < blocks.size(); ++i) {
        rest.push_back(
            std::move(blocks[i]).complete(keys[i], i > 0 ? std::optional(keys[0]) : std::nullopt));
      }
      pool.release(pool.register_blocks(std::move(rest)));
      state.ResumeTiming();
      const Allocation allocation = pool.allocate(num_blocks).value();
      state.PauseTiming();
    }
    state.ResumeTiming();
  }
  state.SetItemsProcessed(state.iterations() * int64_t{num_blocks});
}

BENCHMARK(BM_Match)
    ->Args({4'096, 128})
    ->Args({65'536, 128})
    ->Args({1'048'576, 128})
    ->Args({65'536, 8});
BENCHMARK(BM_MatchAndTouchASlowerTier)->Args({65'536, 128});
BENCHMARK(BM_Release)->Args({4'096, 128})->Args({65'536, 128})->Args({1'048'576, 128});
BENCHMARK(BM_MatchAndRelease)->Args({4'096, 128})->Args({65'536, 128})->Args({1'048'576, 128});
BENCHMARK(BM_MatchMiss);
BENCHMARK(BM_Register)
    ->Args({65'536, 1'024, 0})
    ->Args({65'536, 1'024, 1})
    ->Args({65'536, 1'024, 2})
    ->Args({1'048'576, 1'024, 0});
BENCHMARK(BM_PrefixWorkload)
    ->Args({9'139, 0})
    ->Args({36'558, 0})
    ->Args({9'139, 1})
    ->Args({9'139, 2})
    ->Unit(benchmark::kMillisecond);
BENCHMARK(BM_CloneAndDrop);
BENCHMARK(BM_EvictAWideTree)->Arg(10'000)->Arg(100'000);

}  // namespace
}  // namespace kvbm
