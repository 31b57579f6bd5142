// SPDX-License-Identifier: Apache-2.0
#include "kvbm/replay/pretend_engine.hpp"

#include <algorithm>
#include <span>
#include <utility>

#include "kvbm/base/hash.hpp"
#include "kvbm/base/mutex.hpp"
#include "kvbm/replay/content.hpp"

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

}  // namespace

/// What the launches of all ranks found.
struct PretendEngine::Checker {
  std::atomic<uint64_t> verified_on_ranks{0};
  std::atomic<uint64_t> mismatches{0};
  Mutex mutex{LockRank::kReplay, "replay.checker"};
  std::optional<std::string> first KVBM_GUARDED_BY(mutex);
};

/// One launch: what its blocks hold or have to hold, in the order of the launch's lists.
struct PretendEngine::Work {
  struct Block {
    BlockKey key;
    BlockId id;
    TierId tier;  // where it came from
    LayoutConfig layout;
  };
  std::vector<Block> reads;
  std::vector<Block> writes;
};

PretendEngine::PretendEngine(BlockManager& manager, PretendEngineOptions options)
    : manager_(manager), options_(options), checker_(std::make_shared<Checker>()) {}

PretendEngine::~PretendEngine() = default;

uint64_t PretendEngine::verified_blocks() const noexcept {
  return checker_->verified_on_ranks.load() / manager_.config().num_ranks;
}

uint64_t PretendEngine::mismatches() const noexcept { return checker_->mismatches.load(); }

Status PretendEngine::first_mismatch() const {
  MutexLock lock(checker_->mutex);
  if (!checker_->first) return {};
  return make_error(ErrorCode::kCorrupt, *checker_->first);
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

  auto work = std::make_shared<Work>();
  std::vector<MutableBlock> writes;
  std::vector<ImmutableBlock> reads;
  for (size_t group = 0; group < num_groups; ++group) {
    const LayoutConfig& layout = manager_.layout(group);
    GpuBlocks& have = onboarded.groups[group];
    for (size_t i = 0; i < have.blocks.size(); ++i) {
      const TierId tier = tiers[have.first + i];
      work->reads.push_back({have.blocks[i].key(), have.blocks[i].block_id(), tier, layout});
      reads.push_back(std::move(have.blocks[i]));
    }
    KVBM_ASSIGN_OR_RETURN(std::vector<MutableBlock> blocks,
                          manager_.allocate_blocks(missing, group));
    for (uint32_t i = 0; i < missing; ++i) {
      work->writes.push_back(
          {keys.groups[group][restored + i], blocks[i].block_id(), TierId::kG1, layout});
      writes.push_back(std::move(blocks[i]));
    }
  }
  KVBM_TRY(compute(std::move(work), writes, reads));

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

Status PretendEngine::compute(std::shared_ptr<Work> work, std::vector<MutableBlock>& writes,
                              const std::vector<ImmutableBlock>& reads) {
  if (!options_.bytes) return {};
  KVBM_TRY(running_.wait());
  KVBM_TRY(first_mismatch());
  const auto task = [work, checker = checker_](const KvView& view) -> Status {
    for (size_t i = 0; i < work->reads.size(); ++i) {
      const Work::Block& block = work->reads[i];
      for (uint16_t layer = 0; layer < block.layout.num_layers; ++layer) {
        for (uint32_t outer = 0; outer < block.layout.outer_dim; ++outer) {
          const auto wrong = first_wrong_byte({block.key, view.rank(), LayerId(layer), outer},
                                              view.readable(i, LayerId(layer), outer));
          if (!wrong) continue;
          checker->mismatches.fetch_add(1);
          MutexLock lock(checker->mutex);
          if (checker->first) continue;
          checker->first = "wrong bytes in block " + to_string(block.id) + " (key " +
                           to_string(block.key) + "), restored from " +
                           std::string(to_string(block.tier)) + ", rank " + to_string(view.rank()) +
                           ", layer " + std::to_string(layer) + ", outer " + std::to_string(outer) +
                           ", offset " + std::to_string(*wrong);
        }
      }
      checker->verified_on_ranks.fetch_add(1);
    }
    for (size_t i = 0; i < work->writes.size(); ++i) {
      const Work::Block& block = work->writes[i];
      for (uint16_t layer = 0; layer < block.layout.num_layers; ++layer) {
        for (uint32_t outer = 0; outer < block.layout.outer_dim; ++outer) {
          fill_content({block.key, view.rank(), LayerId(layer), outer},
                       view.writable(i, LayerId(layer), outer));
        }
      }
    }
    return {};
  };
  KVBM_ASSIGN_OR_RETURN(running_, manager_.launch(writes, reads, task));
  if (options_.overlap) return {};
  KVBM_TRY(running_.wait());
  return first_mismatch();
}

Status PretendEngine::finish() {
  KVBM_TRY(running_.wait());
  return first_mismatch();
}

}  // namespace kvbm
