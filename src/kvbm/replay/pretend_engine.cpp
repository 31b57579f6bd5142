// SPDX-License-Identifier: Apache-2.0
#include "kvbm/replay/pretend_engine.hpp"

#include <algorithm>
#include <span>
#include <utility>

#include "kvbm/base/hash.hpp"
#include "kvbm/base/text.hpp"

namespace kvbm {
namespace {

/// An engine's own 32-byte hash of a block, as this engine would make it.
Identity identity_of(uint64_t hash_id, uint64_t seed) {
  Identity identity;
  for (uint64_t word = 0; word < 4; ++word) {
    const uint64_t hash = xxh3_64(std::as_bytes(std::span(&hash_id, 1)), seed * 4 + word);
    std::copy_n(std::as_bytes(std::span(&hash, 1)).begin(), sizeof(hash),
                identity.bytes.begin() + static_cast<std::ptrdiff_t>(word * sizeof(hash)));
  }
  return identity;
}

/// What a block of this key holds.
uint64_t seed_of(const BlockKey& key) {
  const struct {
    uint64_t identity;
    uint64_t ns;
    uint64_t group;
  } text{xxh3_64(key.identity.bytes, 0), key.ns.value(), key.group.value()};
  return xxh3_64(std::as_bytes(std::span(&text, 1)), 0);
}

}  // namespace

PretendEngine::PretendEngine(BlockManager& manager, PretendEngineOptions options)
    : manager_(manager), options_(options) {}

PretendEngine::~PretendEngine() = default;

/// Waits for the launch before this one, and takes in what it found.
Status PretendEngine::finish() {
  const Status ended = running_.ended().wait();
  const KvPatternRun run = std::exchange(running_, {});
  const std::vector<Read> reads = std::exchange(reads_, {});
  verified_blocks_ += run.num_compared();
  mismatches_ += run.num_wrong();
  if (const auto wrong = run.first_wrong(); wrong && !first_mismatch_) {
    const Read& read = reads[wrong->read];
    first_mismatch_ = Error(
        ErrorCode::kCorrupt,
        format_text("wrong bytes in block {} (key {}), restored from {}, rank {}, layer {}, outer "
                    "{}, offset {}",
                    read.id, to_string(read.key), read.tier, wrong->rank, wrong->layer,
                    wrong->outer, wrong->offset));
  }
  KVBM_TRY(ended);
  if (first_mismatch_) return make_error(*first_mismatch_);
  return {};
}

Result<Served> PretendEngine::serve(const TraceRequest& request) {
  const size_t num_groups = manager_.num_groups();
  identities_.clear();
  for (uint64_t hash_id : request.hash_ids) {
    identities_.push_back(identity_of(hash_id, options_.seed));
  }
  const SequenceKeys keys = manager_.keys(identities_);
  const uint32_t total = keys.num_blocks();

  PrefixHit hit = manager_.match(keys);
  std::vector<TierId> tiers(hit.num_blocks());
  for (uint32_t i = 0; i < hit.num_blocks(); ++i) tiers[i] = hit.tier(i);

  std::vector<std::vector<MutableBlock>> destinations(num_groups);
  for (size_t group = 0; group < num_groups; ++group) {
    auto blocks = manager_.allocate_blocks(hit.num_destinations(group), group);
    if (!blocks) {  // more than G1 holds
      hit.keep_gpu_part();
      destinations.clear();
      break;
    }
    destinations[group] = *std::move(blocks);
  }
  Onboarded onboarded = manager_.onboard(std::move(hit), std::move(destinations));
  if (!onboarded.status && failed_loads_++ == 0) {
    first_failed_load_ = onboarded.status.error().describe();
  }
  if (!options_.overlap) KVBM_TRY(manager_.wait_idle());

  Served served;
  const uint32_t restored = onboarded.num_blocks;
  for (uint32_t i = 0; i < restored; ++i) ++served.hits[static_cast<size_t>(tiers[i])];
  served.misses = total - restored;

  // Every group gets room for the same positions; what finds none is computed and forgotten.
  uint32_t missing = total - restored;
  for (size_t group = 0; group < num_groups; ++group) {
    const PoolOccupancy room = manager_.gpu_occupancy(group);
    missing = std::min(missing, room.num_free + room.num_idle);
  }
  served.uncached = total - restored - missing;

  std::vector<Read> read_from;
  std::vector<uint64_t> write_seeds;
  std::vector<MutableBlock> writes;
  std::vector<ImmutableBlock> reads;
  for (size_t group = 0; group < num_groups; ++group) {
    GpuBlocks& have = onboarded.groups[group];
    for (size_t i = 0; i < have.blocks.size(); ++i) {
      read_from.push_back({have.blocks[i].key(), have.blocks[i].block_id(), tiers[have.first + i]});
      reads.push_back(std::move(have.blocks[i]));
    }
    KVBM_ASSIGN_OR_RETURN(std::vector<MutableBlock> blocks,
                          manager_.allocate_blocks(missing, group));
    for (uint32_t i = 0; i < missing; ++i) {
      write_seeds.push_back(seed_of(keys.groups[group][restored + i]));
      writes.push_back(std::move(blocks[i]));
    }
  }
  KVBM_TRY(compute(writes, write_seeds, reads, std::move(read_from)));

  // Back into groups: register what is new, and let go of all, deepest first.
  auto read = reads.begin();
  auto written = writes.begin();
  for (size_t group = 0; group < num_groups; ++group) {
    const std::vector<BlockKey>& group_keys = keys.groups[group];
    std::vector<ImmutableBlock> held;
    for (size_t i = 0; i < onboarded.groups[group].blocks.size(); ++i)
      held.push_back(std::move(*read++));
    std::vector<CompleteBlock> complete;
    for (uint32_t i = 0; i < missing; ++i) {
      const uint32_t position = restored + i;
      complete.push_back(
          std::move(*written++)
              .complete(group_keys[position],
                        position > 0 ? std::optional(group_keys[position - 1]) : std::nullopt));
    }
    for (ImmutableBlock& block : manager_.register_blocks(std::move(complete))) {
      held.push_back(std::move(block));
    }
    manager_.release(std::move(held), group);
  }
  if (!options_.overlap) KVBM_TRY(manager_.wait_idle());
  return served;
}

Status PretendEngine::compute(const std::vector<MutableBlock>& writes,
                              const std::vector<uint64_t>& write_seeds,
                              const std::vector<ImmutableBlock>& reads,
                              std::vector<Read> read_from) {
  if (!options_.bytes) return {};
  KVBM_TRY(finish());
  std::vector<uint64_t> read_seeds;
  read_seeds.reserve(reads.size());
  for (const Read& read : read_from) read_seeds.push_back(seed_of(read.key));
  KVBM_ASSIGN_OR_RETURN(running_, manager_.launch_patterns({.writes = writes,
                                                            .write_seeds = write_seeds,
                                                            .reads = reads,
                                                            .read_seeds = read_seeds}));
  reads_ = std::move(read_from);
  if (options_.overlap) return {};
  return finish();
}

}  // namespace kvbm
