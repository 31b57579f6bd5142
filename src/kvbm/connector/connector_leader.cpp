// SPDX-License-Identifier: Apache-2.0
#include "kvbm/connector/connector_leader.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/hash.hpp"
#include "kvbm/base/text.hpp"

namespace kvbm {

/// A request of the engine.
struct ConnectorLeader::Slot {
  std::vector<Identity> identities;          // of its full blocks of the smallest size, accepted
  std::vector<std::vector<BlockKey>> keys;   // by part and position
  std::vector<std::vector<BlockId>> blocks;  // by the engine's groups, its blocks in order
  uint32_t num_offered = 0;                  // positions that were offered for storing
  uint32_t max_stored = UINT32_MAX;          // positions from here on are not stored
  std::optional<Match> match;                // pinned for the engine
  PrefixLookup lookup;                       // the last one, until it is counted
  bool between_steps = false;
  std::optional<LoadId> load;
  bool is_stale = false;  // it has blocks that are older than the last reset
};

/// A load that is not over. Its destinations are not free before it is.
struct ConnectorLeader::OpenLoad {
  std::string request;
  bool between_steps = false;
  bool given_up = false;                     // with its request
  uint64_t step = 0;                         // the one that begins with it, or is next
  std::vector<uint32_t> firsts;              // by part: the position of blocks[part][0]
  std::vector<std::vector<BlockId>> blocks;  // by part
  std::optional<LoadOutcome> outcome;
};

namespace {

/// The engine's blocks of the positions from `first` up to `end`. `blocks`: by the engine's groups.
std::vector<BlockId> blocks_of(const GroupPart& part,
                               const std::vector<std::vector<BlockId>>& blocks, size_t first,
                               size_t end) {
  const std::vector<BlockId>& of_group = blocks[part.group];
  KVBM_CONTRACT(first == end || part.block_at(end - 1) < of_group.size(),
                "the engine has no block for what it computes or loads");
  std::vector<BlockId> ids;
  ids.reserve(end - first);
  for (size_t position = first; position < end; ++position) {
    ids.push_back(of_group[part.block_at(position)]);
  }
  return ids;
}

/// One that is filled in part counts.
uint32_t blocks_for(uint32_t num_tokens, const LayerGroup& group) {
  return num_tokens / group.block_tokens + (num_tokens % group.block_tokens != 0 ? 1 : 0);
}

/// The first block of a request that the engine is sure to hold, as it goes on after these tokens.
uint32_t first_needed(const LayerGroup& group, uint32_t num_computed_tokens) {
  return group.retention.first_needed(blocks_for(num_computed_tokens, group));
}

}  // namespace

Result<std::unique_ptr<ConnectorLeader>> ConnectorLeader::create(ConnectorLeaderOptions options,
                                                                 Cluster& cluster,
                                                                 const Clock& clock,
                                                                 MetricsRegistry& metrics,
                                                                 LogSink& log) {
  KVBM_ASSIGN_OR_RETURN(SplitGroups split, split_groups(options.groups));
  if (split.parts.size() > 1 && cluster.leader().engine_ids() != EngineIds::kOfOnePool) {
    return make_error(ErrorCode::kInvalidArgument,
                      "the blocks of an engine with several layer groups are of one pool, and the "
                      "leader takes those of each group for others");
  }
  return std::unique_ptr<ConnectorLeader>(
      new ConnectorLeader(std::move(options), std::move(split), cluster, clock, metrics, log));
}

ConnectorLeader::ConnectorLeader(ConnectorLeaderOptions options, SplitGroups split,
                                 Cluster& cluster, const Clock& clock, MetricsRegistry& metrics,
                                 LogSink& log)
    : options_(std::move(options)),
      split_(std::move(split)),
      cluster_(cluster),
      clock_(clock),
      log_(log),
      metrics_(metrics),
      breaker_(options_.breaker),
      ns_(options_.ns) {}

ConnectorLeader::~ConnectorLeader() = default;

ConnectorLeader::Slot& ConnectorLeader::slot_of(std::string_view request) {
  const auto found = slots_.find(request);
  if (found != slots_.end()) return *found->second;
  auto slot = std::make_unique<Slot>();
  slot->keys.resize(split_.parts.size());
  slot->blocks.resize(options_.groups.size());
  return *slots_.emplace(std::string(request), std::move(slot)).first->second;
}

uint32_t ConnectorLeader::num_identities(std::string_view request) const {
  const auto found = slots_.find(request);
  return found == slots_.end() ? 0 : static_cast<uint32_t>(found->second->identities.size());
}

void ConnectorLeader::extend(std::string_view request, std::span<const Identity> identities,
                             std::optional<uint32_t> priority) {
  Slot& slot = slot_of(request);
  if (priority && *priority < options_.min_priority) {
    slot.max_stored = std::min(slot.max_stored, num_positions(slot));
  }
  slot.identities.insert(slot.identities.end(), identities.begin(), identities.end());
  add_keys(slot);
}

/// Positions whose tokens are all accepted.
uint32_t ConnectorLeader::num_positions(const Slot& slot) const {
  const uint32_t per_position = split_.position_tokens / split_.identity_tokens;
  return static_cast<uint32_t>(slot.identities.size() / per_position);
}

/// A block is named by the last identity in it.
void ConnectorLeader::add_keys(Slot& slot) const {
  const size_t end = num_positions(slot);
  for (size_t i = 0; i < split_.parts.size(); ++i) {
    const GroupPart& part = split_.parts[i];
    const size_t per_block = options_.groups[part.group].block_tokens / split_.identity_tokens;
    for (size_t position = slot.keys[i].size(); position < end; ++position) {
      const size_t last = (part.block_at(position) + 1) * per_block - 1;
      slot.keys[i].push_back({ns_, part.spec.id, slot.identities[last]});
    }
  }
}

ExternalMatch ConnectorLeader::match(std::string_view request, uint32_t num_computed_tokens,
                                     uint32_t num_tokens) {
  Slot& slot = slot_of(request);
  slot.match.reset();
  slot.lookup = {};
  if (slot.load) return {};
  slot.is_stale = false;
  if (num_tokens == 0 || num_computed_tokens % split_.position_tokens != 0) return {};
  cluster_.exchange();
  const uint32_t computed = num_computed_tokens / split_.position_tokens;
  // The engine computes at least the last token.
  const uint32_t most = std::min((num_tokens - 1) / split_.position_tokens, num_positions(slot));
  if (computed >= most) return {};
  if (!breaker_.allows(clock_.now())) {
    metrics_.bypassed.add();
    return {};
  }
  std::vector<GroupKeys> keys;
  keys.reserve(split_.parts.size());
  for (size_t i = 0; i < split_.parts.size(); ++i) {
    keys.push_back({split_.parts[i].spec.id, std::span(slot.keys[i]).first(most)});
  }
  Match found = cluster_.leader().find(keys, computed);
  slot.lookup.blocks = static_cast<uint32_t>((most - computed) * split_.parts.size());
  if (found.empty()) return {};
  for (const MatchedGroup& group : found.groups) {
    for (const ImmutableBlock& block : group.blocks) {
      ++(block.tier() == TierId::kG2 ? slot.lookup.on_host : slot.lookup.on_disk);
    }
  }
  const bool from_host = slot.lookup.on_disk == 0;
  slot.between_steps = options_.load_mode == LoadMode::kBetweenSteps ||
                       (options_.load_mode == LoadMode::kAuto && !from_host);
  ExternalMatch offer;
  offer.num_tokens = (found.num_blocks - found.first_block) * split_.position_tokens;
  offer.between_steps = slot.between_steps;
  slot.match = std::move(found);
  return offer;
}

Status ConnectorLeader::allocated(std::string_view request,
                                  const std::vector<std::vector<BlockId>>& blocks,
                                  uint32_t num_external_tokens) {
  Slot& slot = slot_of(request);
  KVBM_CONTRACT(blocks.size() == options_.groups.size(), "blocks of every layer group");
  slot.blocks = blocks;
  // However often a request was looked up before it had blocks, it counts once.
  metrics_.looked_up(std::exchange(slot.lookup, {}));
  if (num_external_tokens == 0) {
    slot.match.reset();
    return {};
  }
  KVBM_CONTRACT(slot.match, "a load that no match has offered");
  Match match = *std::exchange(slot.match, std::nullopt);
  KVBM_CONTRACT(
      num_external_tokens == (match.num_blocks - match.first_block) * split_.position_tokens,
      "the engine loads what was offered");
  OpenLoad load;
  load.request = std::string(request);
  load.between_steps = slot.between_steps;
  load.step = step_ + 1;
  std::vector<EngineBlocks> into;
  for (size_t i = 0; i < match.groups.size(); ++i) {
    const MatchedGroup& matched = match.groups[i];
    EngineBlocks to{.group = matched.group,
                    .first = matched.first,
                    .ids = blocks_of(split_.parts[i], blocks, matched.first,
                                     matched.first + matched.blocks.size())};
    load.firsts.push_back(matched.first);
    load.blocks.push_back(to.ids);
    mark(split_.parts[i].group, to.ids, true);
    into.push_back(std::move(to));
  }
  slot.num_offered = std::max(slot.num_offered, match.num_blocks);
  // What the steps so far still do to the blocks comes first.
  KVBM_ASSIGN_OR_RETURN(const LoadId id, cluster_.leader().load(std::move(match), into,
                                                                Gate::step_end(StepId(step_))));
  slot.load = id;
  metrics_.matched_tokens.add(num_external_tokens);
  loads_.emplace(id, std::move(load));
  return {};
}

std::vector<std::byte> ConnectorLeader::build_step(std::span<const ScheduledRequest> scheduled) {
  ConnectorStep step;
  step.plan.step = StepId(++step_);
  cluster_.exchange();
  take_ended_loads(step.ended_loads);
  const Trust trust = trust_in_steps();
  for (const ScheduledRequest& request : scheduled) {
    take_scheduled(request, trust, step.plan.fences);
  }
  cluster_.take_engine_operations(step.plan);
  set_apart_loads_between_steps(step.plan);
  std::vector<OpId>& fences = step.plan.fences;
  std::sort(fences.begin(), fences.end());
  fences.erase(std::unique(fences.begin(), fences.end()), fences.end());
  return encode(step);
}

/// No step reads what they bring before the engine has heard of their end.
void ConnectorLeader::set_apart_loads_between_steps(StepPlan& plan) const {
  if (plan.loads.empty()) return;
  std::vector<BlockId> destinations;  // the engine gives them to nobody else before the end
  for (const auto& [id, load] : loads_) {
    if (!load.between_steps) continue;
    for (const auto& blocks : load.blocks) {
      destinations.insert(destinations.end(), blocks.begin(), blocks.end());
    }
  }
  std::sort(destinations.begin(), destinations.end());
  const auto apart =
      std::stable_partition(plan.loads.begin(), plan.loads.end(), [&](const CopyOp& op) {
        return !std::binary_search(destinations.begin(), destinations.end(), op.to.front());
      });
  plan.stores.insert(plan.stores.end(), std::make_move_iterator(apart),
                     std::make_move_iterator(plan.loads.end()));
  plan.loads.erase(apart, plan.loads.end());
}

/// A step that begins with a load computes nonsense if the load fails, in whatever request shares
/// the blocks; the engine computes it again. So it is stored only once the load has arrived.
ConnectorLeader::Trust ConnectorLeader::trust_in_steps() const {
  Trust trust = Trust::kThisStep;
  for (const auto& [id, load] : loads_) {
    if (load.between_steps) continue;
    if (load.step < step_) return Trust::kNone;
    trust = Trust::kEarlierSteps;
  }
  return trust;
}

void ConnectorLeader::take_scheduled(const ScheduledRequest& scheduled, Trust trust,
                                     std::vector<OpId>& fences) {
  Slot& slot = slot_of(scheduled.request);
  KVBM_CONTRACT(scheduled.blocks.size() == options_.groups.size(), "blocks of every layer group");
  for (size_t group = 0; group < options_.groups.size(); ++group) {
    const std::vector<BlockId>& given = scheduled.blocks[group];
    std::vector<BlockId>& blocks = slot.blocks[group];
    if (scheduled.replaces_blocks) {
      blocks = given;
    } else {
      blocks.insert(blocks.end(), given.begin(), given.end());
    }
  }
  if (scheduled.replaces_blocks && builds_on_old_blocks(slot, scheduled.num_computed_tokens)) {
    slot.is_stale = true;
  }
  for (size_t group = 0; group < options_.groups.size(); ++group) {
    // Blocks below what is computed are read alone.
    const std::span<const BlockId> given(scheduled.blocks[group]);
    const uint32_t computed = scheduled.num_computed_tokens / options_.groups[group].block_tokens;
    const size_t first_written =
        scheduled.replaces_blocks ? std::min<size_t>(computed, given.size()) : 0;
    const std::span<const BlockId> written = given.subspan(first_written);
    mark(group, written, !slot.is_stale);
    // Of one pool: this finds the operations of all parts of all groups.
    const auto open = cluster_.leader().touching(split_.parts.front().spec.id, written);
    fences.insert(fences.end(), open.begin(), open.end());
  }
  if (scheduled.replaces_blocks) {
    // A window's blocks below its reach are not there; a full prefix may be offered once more.
    const bool all_full =
        std::all_of(options_.groups.begin(), options_.groups.end(),
                    [](const LayerGroup& group) { return group.retention.is_full_prefix(); });
    slot.num_offered = all_full ? 0 : scheduled.num_computed_tokens / split_.position_tokens;
  }
  if (trust == Trust::kNone || slot.is_stale) return;
  const uint32_t written_tokens = scheduled.num_computed_tokens +
                                  (trust == Trust::kThisStep ? scheduled.num_scheduled_tokens : 0);
  const uint32_t written = written_tokens / split_.position_tokens;
  store_written(slot, std::min({written, num_positions(slot), slot.max_stored}),
                scheduled.num_computed_tokens);
}

/// Whether some of what the engine gives a request as computed, and needs to go on, is older than
/// the last reset.
bool ConnectorLeader::builds_on_old_blocks(const Slot& slot, uint32_t num_computed_tokens) const {
  if (num_resets_ == 0) return false;
  for (size_t group = 0; group < options_.groups.size(); ++group) {
    const uint32_t num_computed = blocks_for(num_computed_tokens, options_.groups[group]);
    const std::vector<BlockId>& blocks = slot.blocks[group];
    const std::vector<bool>& is_new = is_new_[group];
    const size_t end = std::min<size_t>(num_computed, blocks.size());
    // What a window does not reach may not be there.
    for (size_t i = first_needed(options_.groups[group], num_computed_tokens); i < end; ++i) {
      const size_t id = blocks[i].value();
      if (id >= is_new.size() || !is_new[id]) return true;
    }
  }
  return false;
}

void ConnectorLeader::mark(size_t group, std::span<const BlockId> written, bool is_new) {
  if (num_resets_ == 0) return;
  std::vector<bool>& marks = is_new_[group];
  for (const BlockId block : written) {
    if (block.value() >= marks.size()) marks.resize(size_t{block.value()} + 1);
    marks[block.value()] = is_new;
  }
}

/// What is offered later than it was computed may be below the reach of a window by now: the engine
/// has taken such blocks away, and somebody else writes to them.
void ConnectorLeader::store_written(Slot& slot, uint32_t end, uint32_t num_computed_tokens) {
  if (end <= slot.num_offered) return;
  for (size_t i = 0; i < split_.parts.size(); ++i) {
    const GroupPart& part = split_.parts[i];
    const uint32_t first_held = first_needed(options_.groups[part.group], num_computed_tokens);
    uint32_t first = slot.num_offered;
    while (first < end && part.block_at(first) < first_held) ++first;
    if (first == end) continue;
    const std::vector<BlockId> blocks = blocks_of(part, slot.blocks, first, end);
    const std::span<const BlockKey> keys(slot.keys[i]);
    (void)cluster_.leader().store(
        {.group = split_.parts[i].spec.id,
         .keys = keys.subspan(first, end - first),
         .parent = first > 0 ? std::optional(keys[first - 1]) : std::nullopt,
         .blocks = blocks,
         .written = Gate::step_end(StepId(step_))});
  }
  slot.num_offered = end;
}

void ConnectorLeader::take_ended_loads(std::vector<EndedLoad>& ended) {
  for (LoadOutcome& outcome : cluster_.take_loads()) {
    const auto found = loads_.find(outcome.load);
    if (found != loads_.end()) found->second.outcome = std::move(outcome);
  }
  for (auto it = loads_.begin(); it != loads_.end();) {
    OpenLoad& load = it->second;
    bool is_touched = !load.outcome;
    for (size_t i = 0; i < load.blocks.size() && !is_touched; ++i) {
      is_touched = !cluster_.leader().touching(split_.parts[i].spec.id, load.blocks[i]).empty();
    }
    if (is_touched) {
      ++it;
      continue;
    }
    EndedLoad end{.request = load.request, .failed = {}};
    const auto slot = slots_.find(load.request);
    if (!load.given_up) note_outcome(load.outcome->status);
    // Nobody needs the blocks of a request that has ended.
    for (size_t part = 0; part < load.blocks.size() && slot != slots_.end(); ++part) {
      for (size_t i = 0; i < load.blocks[part].size(); ++i) {
        if (load.firsts[part] + i >= load.outcome->num_blocks) {
          end.failed.push_back(load.blocks[part][i]);
        }
      }
    }
    if (!load.outcome->status) {
      KVBM_LOG_WARNING(log_, "connector", "{} blocks of request {} are computed anew: {}",
                       end.failed.size(), load.request, load.outcome->status.error().describe());
    }
    if (slot != slots_.end() && slot->second->load == it->first) {
      slot->second->load.reset();
      slot->second->num_offered = std::min(slot->second->num_offered, load.outcome->num_blocks);
    }
    if (load.between_steps) ended.push_back(std::move(end));
    it = loads_.erase(it);
  }
}

void ConnectorLeader::note_outcome(const Status& outcome) {
  if (outcome) {
    if (breaker_.is_open()) {
      KVBM_LOG_WARNING(log_, "connector", "loads succeed again: blocks are offered as before");
    }
    breaker_.succeeded();
  } else if (breaker_.failed(clock_.now())) {
    KVBM_LOG_ERROR(
        log_, "connector",
        "{} loads in a row have failed: nothing is offered for {} s, the engine computes "
        "everything; the last one: {}",
        options_.breaker.max_failures,
        std::chrono::duration_cast<std::chrono::seconds>(options_.breaker.pause).count(),
        outcome.error().describe());
  }
  metrics_.bypass_open.set(breaker_.is_open() ? 1 : 0);
}

void ConnectorLeader::reset() {
  // Keys that nobody has used: what is still on its way under the old ones cannot be found.
  const uint64_t first = options_.ns.value();
  ns_ = NamespaceId(xxh3_64(std::as_bytes(std::span(&first, 1)), ++num_resets_));
  for (auto& [request, slot] : slots_) {
    slot->match.reset();
    for (std::vector<BlockKey>& keys : slot->keys) {
      for (BlockKey& key : keys) key.ns = ns_;
    }
    for (const std::vector<BlockId>& blocks : slot->blocks) slot->is_stale |= !blocks.empty();
  }
  is_new_.assign(options_.groups.size(), {});
  const uint64_t gone = cluster_.leader().forget();
  KVBM_LOG_INFO(log_, "connector", "emptied on demand: {} blocks are forgotten", gone);
}

bool ConnectorLeader::finished(std::string_view request) {
  const auto found = slots_.find(request);
  if (found == slots_.end()) return false;
  const std::optional<LoadId> load = found->second->load;
  slots_.erase(found);
  if (!load) return false;
  OpenLoad& open = loads_.at(*load);
  if (!open.outcome) {
    cluster_.leader().give_up(*load);
    open.given_up = true;
    open.outcome = LoadOutcome{.load = *load, .status = {}, .num_blocks = 0};
  }
  return open.between_steps;
}

}  // namespace kvbm
