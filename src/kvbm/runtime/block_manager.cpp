// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/block_manager.hpp"

#include <algorithm>
#include <map>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "kvbm/base/log_spdlog.hpp"
#include "kvbm/base/text.hpp"
#include "kvbm/base/thread_executor.hpp"
#include "kvbm/blocks/block_registry.hpp"
#include "kvbm/cluster/cluster.hpp"
#include "kvbm/cluster/inproc_channel.hpp"
#include "kvbm/cluster/logical_channel.hpp"
#include "kvbm/layout/slot_format.hpp"
#include "kvbm/runtime/internal/block_manager_rank.hpp"
#include "kvbm/runtime/resolved_config.hpp"

namespace kvbm {

using internal::BlockManagerRank;

namespace {

Error no_bytes() { return {ErrorCode::kUnsupported, "logical workers have no bytes to work on"}; }

}  // namespace

struct BlockManager::Impl {
  explicit Impl(const KvBlockManagerConfig& the_config, BlockManagerParts the_parts)
      : config(the_config),
        parts(std::move(the_parts)),
        own_log(parts.log != nullptr ? nullptr : SpdlogSink::to_stderr(config.log_level)),
        log(parts.log != nullptr ? *parts.log : *own_log),
        events(parts.events != nullptr ? *parts.events : own_events),
        metrics(parts.metrics != nullptr ? *parts.metrics : own_metrics) {}

  Status set_up();
  GroupId group_id(size_t group) const;
  size_t group_index(GroupId id) const;
  Status begin_step();
  Gate end_step();
  void emit(KvEventType type, const BlockKey& key, BlockId block, TierId from = TierId::kG1);
  void release_quarantine();
  void take_forgotten();
  void show_gpu_pools();

  KvBlockManagerConfig config;
  BlockManagerParts parts;
  std::unique_ptr<LogSink> own_log;  // unless one is given
  NullSink own_events;
  MetricsRegistry own_metrics;
  LogSink& log;
  EventSink& events;
  MetricsRegistry& metrics;

  std::vector<GroupSpec> groups;
  ModelLayout model;
  NamespaceId ns;
  std::vector<PlaceSpec> places;

  std::unique_ptr<ThreadExecutor> own_executor;
  Executor* executor = nullptr;
  std::vector<BlockManagerRank> ranks;  // none: logical workers
  std::unique_ptr<Channel> channel;
  std::unique_ptr<Cluster> cluster;

  std::optional<BlockRegistry> gpu_registry;
  std::vector<BlockPool> gpu_pools;  // by group
  PoolMetrics gpu_metrics{metrics, TierId::kG1, SameKey::kDuplicate};

  StepId step{0};
  bool step_open = false;
  std::vector<OpId> fences;  // of blocks that were allocated since the last step began

  /// Destinations of loads that ran out of time: kept until the copies have stopped.
  struct Quarantine {
    GroupId group;
    std::vector<BlockId> ids;
    std::vector<MutableBlock> blocks;
  };
  std::vector<Quarantine> quarantine;

  struct Arriving {
    BlockKey key;
    std::optional<BlockKey> parent;
    TierId from;
  };
  /// What onboarding has begun and nobody has taken the result of. Owns the destinations.
  struct Onboarding {
    std::optional<LoadId> load;  // unless the result needs no copy
    Onboarded result;
    std::vector<EngineBlocks> into;
    std::vector<std::vector<Arriving>> arriving;  // by group
    std::vector<std::vector<MutableBlock>> destinations;
    bool forgotten = false;
  };
  Onboarded onboarded(Onboarding onboarding, LoadOutcome outcome);
  std::map<OnboardingId, Onboarding> onboardings;
  uint64_t last_onboarding = 0;
  bool stopped = false;
};

void BlockManager::Impl::show_gpu_pools() {
  PoolOccupancy occupancy;
  PoolStatistics statistics;
  for (const BlockPool& pool : gpu_pools) {
    add_to(occupancy, pool.occupancy());
    add_to(statistics, pool.statistics());
  }
  gpu_metrics.show(occupancy, statistics);
}

GroupId BlockManager::Impl::group_id(size_t group) const {
  KVBM_CONTRACT(group < groups.size(), "no layer group with index " + std::to_string(group));
  return groups[group].id;
}

size_t BlockManager::Impl::group_index(GroupId id) const {
  const auto it = std::find_if(groups.begin(), groups.end(),
                               [id](const GroupSpec& spec) { return spec.id == id; });
  KVBM_CONTRACT(it != groups.end(), "no layer group " + to_string(id));
  return static_cast<size_t>(it - groups.begin());
}

Status BlockManager::Impl::set_up() {
  executor = parts.executor;
  if (executor == nullptr) {
    own_executor = std::make_unique<ThreadExecutor>(log);
    executor = own_executor.get();
  }
  KVBM_TRY(config.validate());
  const bool real = parts.workers == BlockManagerParts::Workers::kReal;
  const internal::RankOptions rank_options{.config = config,
                                           .executor = *executor,
                                           .log = log,
                                           .metrics = metrics,
                                           .open_device = parts.open_device};
  if (real) {
    KVBM_ASSIGN_OR_RETURN(ranks, internal::make_ranks(rank_options));
  }
  uint64_t free_bytes = 0;
  if (config.num_blocks == 0) {
    KVBM_ASSIGN_OR_RETURN(free_bytes, internal::gpu_bytes_to_share(ranks));
  }
  KVBM_ASSIGN_OR_RETURN(const ResolvedConfig resolved, resolve(config, free_bytes));
  groups = resolved.groups;
  model = resolved.model;
  ns = resolved.ns;
  places = resolved.places;

  if (real) {
    for (uint16_t rank = 0; rank < config.num_ranks; ++rank) {
      KVBM_TRY(internal::start_rank(ranks[rank], RankId(rank), resolved, rank_options));
    }
    std::vector<Worker*> workers;
    for (BlockManagerRank& rank : ranks) workers.push_back(rank.worker.get());
    channel = std::make_unique<InprocChannel>(*executor, std::move(workers));
  } else {
    channel = std::make_unique<LogicalChannel>(config.num_ranks, places);
  }
  if (parts.wrap_channel) channel = parts.wrap_channel(std::move(channel));

  KVBM_ASSIGN_OR_RETURN(auto leader, TierManager::create({.groups = groups,
                                                          .places = places,
                                                          .num_ranks = config.num_ranks,
                                                          .policy = resolved.policy,
                                                          .timeout = config.transfer_timeout,
                                                          .worker = WorkerId{0}},
                                                         executor->clock(), events, metrics, log));
  cluster = std::make_unique<Cluster>(std::move(leader), *channel, executor->clock());

  KVBM_ASSIGN_OR_RETURN(auto registry, BlockRegistry::create({.groups = groups}));
  gpu_registry.emplace(std::move(registry));
  for (const PlaceSpec& place : places) {
    if (place.place.tier != TierId::kG1) continue;
    KVBM_ASSIGN_OR_RETURN(auto pool,
                          gpu_registry->create_pool({.tier = TierId::kG1,
                                                     .group = place.place.group,
                                                     .num_blocks = place.num_blocks,
                                                     .policy = resolved.policy,
                                                     .duplicates = DuplicatePolicy::kAllow}));
    gpu_pools.push_back(std::move(pool));
  }
  return {};
}

/// A step begins with the first launch after the last one ended, and with it the fences of all
/// blocks that were allocated meanwhile. Failed, it keeps the fences for the next one.
Status BlockManager::Impl::begin_step() {
  if (step_open && fences.empty()) return {};
  (void)end_step();
  step = StepId(step.value() + 1);
  step_open = true;
  StepPlan plan;
  plan.step = step;
  std::sort(fences.begin(), fences.end());
  fences.erase(std::unique(fences.begin(), fences.end()), fences.end());
  plan.fences = fences;
  if (parts.on_step_plan) parts.on_step_plan(plan);
  Status begun;
  for (BlockManagerRank& rank : ranks) {
    if (Status fenced = rank.worker->begin_step(plan, rank.compute); !fenced && begun) {
      begun = std::move(fenced);
    }
  }
  if (begun) fences.clear();
  return begun;
}

/// The gate that opens once all launches so far have ended.
Gate BlockManager::Impl::end_step() {
  if (step_open) {
    for (BlockManagerRank& rank : ranks) rank.worker->end_step(rank.compute);
    step_open = false;
  }
  return Gate::step_end(step);
}

void BlockManager::Impl::emit(KvEventType type, const BlockKey& key, BlockId block, TierId from) {
  KvEvent event;
  event.type = type;
  event.block_id = block.value();
  event.timestamp = executor->clock().wall_time();
  event.key = key;
  event.tier = TierId::kG1;
  event.from_tier = from;
  events.publish({&event, 1});
}

void BlockManager::Impl::release_quarantine() {
  std::erase_if(quarantine, [this](const Quarantine& kept) {
    return cluster->leader().touching(kept.group, kept.ids).empty();
  });
}

TierId PrefixHit::tier(uint32_t block) const {
  KVBM_CONTRACT(block < num_blocks(),
                "position " + std::to_string(block) + " is not part of the hit");
  TierId slowest = TierId::kG1;
  for (const MatchedGroup& group : below_.groups) {
    if (block >= group.first && block - group.first < group.blocks.size()) {
      slowest = std::max(slowest, group.blocks[block - group.first].tier());
    }
  }
  // Positions that only a last-window group skips count for the groups that hold them.
  return slowest;
}

size_t PrefixHit::num_destinations(size_t group) const {
  return below_.groups.empty() ? 0 : below_.groups.at(group).blocks.size();
}

void PrefixHit::keep_gpu_part() {
  below_.groups.clear();
  below_.num_blocks = below_.first_block;
}

std::span<std::byte> KvView::writable(size_t index, LayerId layer, uint32_t outer) const {
  KVBM_CONTRACT(index < writes_->size(), "the launch writes fewer blocks");
  const Slot& slot = (*writes_)[index];
  const MemoryRegion region = layouts_[slot.group].region(slot.block, layer, outer);
  return {region.base(), region.size_bytes()};
}

std::span<const std::byte> KvView::readable(size_t index, LayerId layer, uint32_t outer) const {
  KVBM_CONTRACT(index < reads_->size(), "the launch reads fewer blocks");
  const Slot& slot = (*reads_)[index];
  const MemoryRegion region = layouts_[slot.group].region(slot.block, layer, outer);
  return {region.base(), region.size_bytes()};
}

Result<std::unique_ptr<BlockManager>> BlockManager::create(const KvBlockManagerConfig& config,
                                                           BlockManagerParts parts) {
  // What is kept for each block is allocated here, and the number of blocks is the caller's.
  const auto exhausted = [](const char* what) {
    return make_error(ErrorCode::kExhausted,
                      format_text("there is no memory to keep account of all blocks ({}): ask for "
                                  "fewer, in num_blocks or the tiers below",
                                  what));
  };
  try {
    auto impl = std::make_unique<Impl>(config, std::move(parts));
    KVBM_TRY(impl->set_up());
    return std::unique_ptr<BlockManager>(new BlockManager(std::move(impl)));
  } catch (const std::bad_alloc& error) {
    return exhausted(error.what());
  } catch (const std::length_error& error) {
    return exhausted(error.what());
  }
}

BlockManager::BlockManager(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

BlockManager::~BlockManager() {
  for (BlockManagerRank& rank : impl_->ranks) (void)rank.worker->stop();
}

SequenceKeys BlockManager::keys(const TokenBlockSequence& tokens) const {
  KVBM_CONTRACT(tokens.block_size() == impl_->config.block_size,
                "the sequence has blocks of another size than the manager");
  SequenceKeys keys;
  for (const GroupSpec& group : impl_->groups) {
    keys.groups.push_back(block_keys_from_tokens(tokens, impl_->ns, group.id));
  }
  return keys;
}

SequenceKeys BlockManager::keys(std::span<const Identity> identities) const {
  SequenceKeys keys;
  for (const GroupSpec& group : impl_->groups) {
    auto& of_group = keys.groups.emplace_back();
    of_group.reserve(identities.size());
    for (const Identity& identity : identities) of_group.push_back({impl_->ns, group.id, identity});
  }
  return keys;
}

PrefixHit BlockManager::match(const SequenceKeys& keys) {
  KVBM_CONTRACT(keys.groups.size() == impl_->groups.size(), "keys of another manager");
  poll();
  std::vector<GroupKeys> asked;
  asked.reserve(keys.groups.size());
  for (size_t i = 0; i < keys.groups.size(); ++i) {
    asked.push_back({impl_->groups[i].id, keys.groups[i]});
  }
  PrefixMatch gpu = impl_->gpu_registry->match(asked);
  PrefixHit hit;
  hit.gpu_ = std::move(gpu.groups);
  hit.below_ = impl_->cluster->leader().find(asked, gpu.num_blocks);
  return hit;
}

Result<std::vector<MutableBlock>> BlockManager::allocate_blocks(size_t num_blocks, size_t group) {
  const GroupId id = impl_->group_id(group);
  const TimePoint start = clock().now();
  KVBM_ASSIGN_OR_RETURN(Allocation allocation, impl_->gpu_pools[group].allocate(num_blocks));
  impl_->gpu_metrics.allocation_took(clock().now() - start);
  impl_->gpu_metrics.evicted(allocation.evicted.size());
  for (const EvictedBlock& evicted : allocation.evicted) {
    impl_->emit(KvEventType::kDeleted, evicted.key, evicted.block);
  }
  std::vector<BlockId> ids;
  ids.reserve(allocation.blocks.size());
  for (const MutableBlock& block : allocation.blocks) ids.push_back(block.block_id());
  const std::vector<OpId> open = impl_->cluster->leader().touching(id, ids);
  impl_->fences.insert(impl_->fences.end(), open.begin(), open.end());
  return std::move(allocation.blocks);
}

Onboarded BlockManager::onboard(PrefixHit&& hit,
                                std::vector<std::vector<MutableBlock>> destinations) {
  const OnboardingId id = begin_onboard(std::move(hit), std::move(destinations));
  const auto it = impl_->onboardings.find(id);
  Impl::Onboarding onboarding = std::move(it->second);
  impl_->onboardings.erase(it);
  if (!onboarding.load) return std::move(onboarding.result);
  LoadOutcome outcome = impl_->cluster->wait_for(*onboarding.load);
  return impl_->onboarded(std::move(onboarding), std::move(outcome));
}

OnboardingId BlockManager::begin_onboard(PrefixHit&& hit,
                                         std::vector<std::vector<MutableBlock>> destinations) {
  const size_t num_groups = impl_->groups.size();
  if (!hit.below_.empty()) {
    KVBM_CONTRACT(destinations.size() == num_groups,
                  "onboarding needs destinations for each group");
    for (size_t i = 0; i < num_groups; ++i) {
      KVBM_CONTRACT(destinations[i].size() == hit.num_destinations(i),
                    "a group needs num_destinations() destinations");
    }
  }
  Impl::Onboarding onboarding;
  onboarding.result.num_blocks = hit.num_gpu_blocks();
  for (GroupMatch& group : hit.gpu_) {
    onboarding.result.groups.push_back({.first = group.first, .blocks = std::move(group.blocks)});
  }
  onboarding.result.groups.resize(num_groups);
  if (!hit.below_.empty()) {
    onboarding.arriving.resize(num_groups);
    for (size_t i = 0; i < num_groups; ++i) {
      const MatchedGroup& part = hit.below_.groups[i];
      EngineBlocks& to = onboarding.into.emplace_back();
      to.group = part.group;
      to.first = part.first;
      std::optional<BlockKey> parent = part.parent;
      for (size_t k = 0; k < part.blocks.size(); ++k) {
        to.ids.push_back(destinations[i][k].block_id());
        onboarding.arriving[i].push_back({part.blocks[k].key(), parent, part.blocks[k].tier()});
        parent = part.blocks[k].key();
      }
    }
    // What earlier launches still do to the destinations comes first; allocation took care of
    // copies.
    const Gate written = impl_->end_step();
    const Result<LoadId> load =
        impl_->cluster->leader().load(std::move(hit.below_), onboarding.into, written);
    if (load) {
      onboarding.load = *load;
      onboarding.destinations = std::move(destinations);
    } else {
      onboarding.result.status = tl::unexpected(load.error());
    }
  }
  const OnboardingId id(++impl_->last_onboarding);
  impl_->onboardings.emplace(id, std::move(onboarding));
  return id;
}

std::optional<Onboarded> BlockManager::finish_onboard(OnboardingId id, TimePoint deadline) {
  const auto it = impl_->onboardings.find(id);
  KVBM_CONTRACT(it != impl_->onboardings.end(), "the onboarding was finished or forgotten");
  std::optional<LoadOutcome> outcome;
  if (it->second.load) {
    outcome = impl_->cluster->wait_for(*it->second.load, deadline);
    if (!outcome) return std::nullopt;
  }
  Impl::Onboarding onboarding = std::move(it->second);
  impl_->onboardings.erase(it);
  if (!outcome) return std::move(onboarding.result);
  return impl_->onboarded(std::move(onboarding), *std::move(outcome));
}

void BlockManager::forget_onboard(OnboardingId id) {
  const auto it = impl_->onboardings.find(id);
  KVBM_CONTRACT(it != impl_->onboardings.end(), "the onboarding was finished or forgotten");
  it->second.forgotten = true;
  impl_->take_forgotten();
}

void BlockManager::Impl::take_forgotten() {
  for (auto it = onboardings.begin(); it != onboardings.end();) {
    if (!it->second.forgotten) {
      ++it;
      continue;
    }
    if (it->second.load) {
      std::optional<LoadOutcome> outcome =
          cluster->wait_for(*it->second.load, executor->clock().now());
      if (!outcome) {
        ++it;
        continue;
      }
      (void)onboarded(std::move(it->second), *std::move(outcome));
    }
    it = onboardings.erase(it);
  }
}

/// Takes in a load that has ended.
Onboarded BlockManager::Impl::onboarded(Onboarding onboarding, LoadOutcome outcome) {
  Onboarded& result = onboarding.result;
  std::vector<EngineBlocks>& into = onboarding.into;
  result.status = outcome.status;
  if (outcome.num_blocks <= result.num_blocks) {
    for (size_t i = 0; i < groups.size(); ++i) {
      if (cluster->leader().touching(into[i].group, into[i].ids).empty()) continue;
      quarantine.push_back(
          {into[i].group, std::move(into[i].ids), std::move(onboarding.destinations[i])});
    }
    return std::move(result);
  }
  result.num_blocks = outcome.num_blocks;
  for (size_t i = 0; i < groups.size(); ++i) {
    GpuBlocks& to = result.groups[i];
    const std::vector<Arriving>& arriving = onboarding.arriving[i];
    std::vector<CompleteBlock> complete;
    for (size_t k = 0; k < arriving.size(); ++k) {
      if (into[i].first + k >= outcome.num_blocks) break;
      complete.push_back(
          std::move(onboarding.destinations[i][k]).complete(arriving[k].key, arriving[k].parent));
    }
    if (to.first + to.blocks.size() != into[i].first) {
      // A last-window group whose window lies above what G1 has.
      to.blocks.clear();
      to.first = into[i].first;
    }
    std::vector<ImmutableBlock> loaded = gpu_pools[i].register_blocks(std::move(complete));
    for (size_t k = 0; k < loaded.size(); ++k) {
      if (!loaded[k].is_duplicate()) {
        emit(KvEventType::kMigrated, loaded[k].key(), loaded[k].block_id(), arriving[k].from);
      }
      to.blocks.push_back(std::move(loaded[k]));
    }
  }
  return std::move(result);
}

Result<Completion> BlockManager::launch(std::span<const MutableBlock> writes,
                                        std::span<const ImmutableBlock> reads, const KvTask& task) {
  if (impl_->ranks.empty()) return make_error(no_bytes());
  if (!impl_->ranks.front().device.device->info().capabilities.host_accessible) {
    return make_error(ErrorCode::kUnsupported,
                      format_text("a task of the host cannot address the memory of device = {}: "
                                  "use launch_patterns, store_kv or load_kv",
                                  impl_->config.device));
  }
  const auto slots = [this](const auto& blocks, auto group_of) {
    auto list = std::make_shared<std::vector<KvView::Slot>>();
    list->reserve(blocks.size());
    for (const auto& block : blocks) {
      list->push_back(
          {static_cast<uint32_t>(impl_->group_index(group_of(block))), block.block_id()});
    }
    return list;
  };
  KvView view;
  view.writes_ = slots(writes, [](const MutableBlock& block) { return block.group(); });
  view.reads_ = slots(reads, [](const ImmutableBlock& block) { return block.key().group; });
  KVBM_TRY(impl_->begin_step());
  std::vector<Completion> ended;
  for (size_t i = 0; i < impl_->ranks.size(); ++i) {
    BlockManagerRank& rank = impl_->ranks[i];
    KvView on_rank = view;
    on_rank.rank_ = RankId(static_cast<uint16_t>(i));
    on_rank.layouts_ = rank.gpu_layouts.data();
    KVBM_TRY(rank.device.device->launch(rank.compute, [task, on_rank] { return task(on_rank); }));
    ended.push_back(rank.worker->record(rank.compute).completion());
  }
  return Completion::all(ended);
}

Result<KvPatternRun> BlockManager::launch_patterns(const KvPatterns& patterns) {
  if (impl_->ranks.empty()) return make_error(no_bytes());
  KVBM_CONTRACT(patterns.write_seeds.size() == patterns.writes.size() &&
                    patterns.read_seeds.size() == patterns.reads.size(),
                "a pattern needs one seed for each block");
  const size_t num_groups = impl_->groups.size();
  std::vector<PatternBatch> reads(num_groups);
  std::vector<PatternBatch> writes(num_groups);
  KvPatternRun run;
  run.parts_.resize(num_groups);
  for (size_t i = 0; i < patterns.reads.size(); ++i) {
    const size_t group = impl_->group_index(patterns.reads[i].key().group);
    reads[group].blocks.push_back(patterns.reads[i].block_id());
    reads[group].seeds.push_back(patterns.read_seeds[i]);
    run.parts_[group].reads.push_back(i);
  }
  for (size_t i = 0; i < patterns.writes.size(); ++i) {
    const size_t group = impl_->group_index(patterns.writes[i].group());
    writes[group].blocks.push_back(patterns.writes[i].block_id());
    writes[group].seeds.push_back(patterns.write_seeds[i]);
  }
  KVBM_TRY(impl_->begin_step());
  std::vector<Completion> ended;
  for (BlockManagerRank& rank : impl_->ranks) {
    for (size_t group = 0; group < num_groups; ++group) {
      run.parts_[group].outer_dim = impl_->model.groups[group].config.outer_dim;
      if (reads[group].blocks.empty()) continue;
      PatternBatch batch = reads[group];
      batch.pieces = rank.patterns[group];
      batch.findings = std::make_shared<PatternFindings>(batch.blocks.size());
      run.parts_[group].by_rank.push_back(batch.findings);
      KVBM_TRY(rank.device.device->pattern(rank.compute, std::move(batch)));
    }
    for (size_t group = 0; group < num_groups; ++group) {
      if (writes[group].blocks.empty()) continue;
      PatternBatch batch = writes[group];
      batch.pieces = rank.patterns[group];
      KVBM_TRY(rank.device.device->pattern(rank.compute, std::move(batch)));
    }
    ended.push_back(rank.worker->record(rank.compute).completion());
  }
  run.ended_ = Completion::all(ended);
  return run;
}

Status BlockManager::store_kv(const MutableBlock& block, LayerId layer,
                              std::span<const std::byte> data, RankId rank) {
  const LayoutConfig& layout = *impl_->model.find(block.group());
  KVBM_CONTRACT(rank.value() < impl_->config.num_ranks, "no rank " + to_string(rank));
  KVBM_CONTRACT(layer.value() < layout.num_layers, "no layer " + to_string(layer));
  KVBM_CONTRACT(data.size() == layout.layer_bytes(),
                "a layer of a block has " + std::to_string(layout.layer_bytes()) + " bytes, not " +
                    std::to_string(data.size()));
  if (impl_->ranks.empty()) return make_error(no_bytes());
  BlockManagerRank& on = impl_->ranks[rank.value()];
  KVBM_ASSIGN_OR_RETURN(const std::span<std::byte> staging, on.staging_bytes(data.size()));
  std::ranges::copy(data, staging.begin());
  KVBM_TRY(impl_->begin_step());
  KVBM_TRY(on.copy_layer(BlockManagerRank::LayerCopy::kStore, impl_->group_index(block.group()),
                         block.block_id(), layer, staging));
  return on.worker->record(on.compute).wait();
}

Result<std::vector<std::byte>> BlockManager::load_kv(const ImmutableBlock& block, LayerId layer,
                                                     RankId rank) {
  const size_t group = impl_->group_index(block.key().group);
  const LayoutConfig& layout = impl_->model.groups[group].config;
  KVBM_CONTRACT(rank.value() < impl_->config.num_ranks, "no rank " + to_string(rank));
  KVBM_CONTRACT(layer.value() < layout.num_layers, "no layer " + to_string(layer));
  if (impl_->ranks.empty()) return make_error(no_bytes());
  BlockManagerRank& on = impl_->ranks[rank.value()];
  KVBM_ASSIGN_OR_RETURN(const std::span<std::byte> staging, on.staging_bytes(layout.layer_bytes()));
  KVBM_TRY(impl_->begin_step());
  KVBM_TRY(
      on.copy_layer(BlockManagerRank::LayerCopy::kLoad, group, block.block_id(), layer, staging));
  KVBM_TRY(on.worker->record(on.compute).wait());
  return std::vector<std::byte>(staging.begin(), staging.end());
}

std::vector<ImmutableBlock> BlockManager::register_blocks(std::vector<CompleteBlock>&& blocks) {
  if (blocks.empty()) return {};
  const size_t group = impl_->group_index(blocks.front().key().group);
  std::vector<BlockKey> keys;
  std::vector<std::optional<BlockKey>> parents;
  for (const CompleteBlock& block : blocks) {
    KVBM_CONTRACT(block.key().group == impl_->groups[group].id, "blocks of one group at a time");
    keys.push_back(block.key());
    parents.push_back(block.parent());
  }
  std::vector<ImmutableBlock> registered =
      impl_->gpu_pools[group].register_blocks(std::move(blocks));
  std::vector<BlockId> ids;
  ids.reserve(registered.size());
  for (const ImmutableBlock& block : registered) {
    ids.push_back(block.block_id());
    if (!block.is_duplicate()) impl_->emit(KvEventType::kCreated, block.key(), block.block_id());
  }
  // One store a chain: a block whose parent is not the block before it starts another.
  const Gate written = impl_->end_step();
  size_t start = 0;
  for (size_t i = 1; i <= keys.size(); ++i) {
    if (i < keys.size() && parents[i] == keys[i - 1]) continue;
    (void)impl_->cluster->leader().store({.group = impl_->groups[group].id,
                                          .keys = std::span(keys).subspan(start, i - start),
                                          .parent = parents[start],
                                          .blocks = std::span(ids).subspan(start, i - start),
                                          .written = written});
    start = i;
  }
  poll();
  return registered;
}

void BlockManager::release(std::vector<ImmutableBlock>&& blocks, size_t group) {
  (void)impl_->group_id(group);
  impl_->gpu_pools[group].release(std::move(blocks));
}

Status BlockManager::reset() {
  const auto refused = [](std::string why) {
    return make_error(ErrorCode::kUnavailable, "the tiers are not emptied: " + std::move(why));
  };
  if (!wait_idle(clock().now())) return refused("something is copied");
  for (const BlockPool& pool : impl_->gpu_pools) {
    const PoolOccupancy occupancy = pool.occupancy();
    const uint32_t num_held = occupancy.num_active + occupancy.num_mutable;
    if (num_held > 0) return refused(format_text("{} blocks of G1 are held", num_held));
  }
  for (BlockPool& pool : impl_->gpu_pools) {
    for (const EvictedBlock& gone : pool.reset_idle()) {
      impl_->emit(KvEventType::kDeleted, gone.key, gone.block);
    }
  }
  (void)impl_->cluster->leader().forget();
  impl_->show_gpu_pools();
  const uint64_t num_pinned = resident_blocks(TierId::kG2) + resident_blocks(TierId::kG3);
  if (num_pinned > 0) return refused(format_text("hits pin {} blocks below G1", num_pinned));
  return {};
}

void BlockManager::poll() {
  impl_->cluster->exchange();
  impl_->take_forgotten();
  impl_->show_gpu_pools();
  if (!impl_->quarantine.empty()) impl_->release_quarantine();
}

Status BlockManager::wait_idle(TimePoint deadline) {
  (void)impl_->end_step();
  Status idle = impl_->cluster->wait_idle(deadline);
  impl_->show_gpu_pools();
  if (!impl_->quarantine.empty()) impl_->release_quarantine();
  return idle;
}

Status BlockManager::stop(TimePoint deadline) {
  if (impl_->stopped) return {};
  (void)impl_->end_step();
  KVBM_TRY(impl_->cluster->drain(deadline));
  for (BlockManagerRank& rank : impl_->ranks) {
    KVBM_TRY(rank.worker->stop(deadline));
    // How launches ended is told by their own results.
    const Status idle = rank.device.device->synchronize(rank.compute, deadline);
    if (!idle && idle.error().code() == ErrorCode::kTimeout) return idle;
  }
  impl_->stopped = true;
  return {};
}

const KvBlockManagerConfig& BlockManager::config() const noexcept { return impl_->config; }
size_t BlockManager::num_groups() const noexcept { return impl_->groups.size(); }

const LayoutConfig& BlockManager::layout(size_t group) const {
  (void)impl_->group_id(group);
  return impl_->model.groups[group].config;
}

const PhysicalLayout& BlockManager::gpu_layout(RankId rank, size_t group) const {
  (void)impl_->group_id(group);
  KVBM_CONTRACT(rank.value() < impl_->ranks.size(), "no rank " + to_string(rank) + " has bytes");
  return impl_->ranks[rank.value()].gpu_layouts[group];
}

PoolOccupancy BlockManager::gpu_occupancy(size_t group) const {
  (void)impl_->group_id(group);
  return impl_->gpu_pools[group].occupancy();
}

uint64_t BlockManager::resident_blocks(TierId tier) const {
  if (tier != TierId::kG1) return impl_->cluster->leader().resident_blocks(tier);
  uint64_t blocks = 0;
  for (const BlockPool& pool : impl_->gpu_pools) {
    const PoolOccupancy occupancy = pool.occupancy();
    blocks += occupancy.num_idle + occupancy.num_active;
  }
  return blocks;
}

const TierMetrics& BlockManager::tier_metrics() const noexcept {
  return impl_->cluster->leader().metrics();
}
uint64_t BlockManager::evictions(TierId tier) const noexcept {
  return tier == TierId::kG1 ? impl_->gpu_metrics.evictions() : tier_metrics().evictions(tier);
}
MetricsRegistry& BlockManager::metrics() noexcept { return impl_->metrics; }
const Clock& BlockManager::clock() const noexcept { return impl_->executor->clock(); }

uint64_t BlockManager::configured_bytes(TierId tier) const noexcept {
  uint64_t bytes = 0;
  for (const PlaceSpec& place : impl_->places) {
    if (place.place.tier != tier) continue;
    // Valid since the places were made.
    const uint64_t slot_bytes = tier == TierId::kG3
                                    ? slot_geometry(place.rank_block_bytes)->slot_bytes
                                    : place.rank_block_bytes;
    bytes += place.num_blocks * slot_bytes;
  }
  return bytes * impl_->config.num_ranks;
}

}  // namespace kvbm
