// SPDX-License-Identifier: Apache-2.0
#include "kvbm/connector/connector_leader.hpp"

#include <algorithm>
#include <utility>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/hash.hpp"
#include "kvbm/base/text.hpp"

namespace kvbm {

/// A request of the engine.
struct ConnectorLeader::Slot {
  std::vector<Identity> identities;          // of its full blocks, accepted
  std::vector<std::vector<BlockKey>> keys;   // by group, of the same positions
  std::vector<std::vector<BlockId>> blocks;  // by group and position, the engine's
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
  std::vector<uint32_t> firsts;              // by group: the position of blocks[group][0]
  std::vector<std::vector<BlockId>> blocks;  // by group
  std::optional<LoadOutcome> outcome;
};

Result<std::unique_ptr<ConnectorLeader>> ConnectorLeader::create(ConnectorLeaderOptions options,
                                                                 Cluster& cluster,
                                                                 const Clock& clock,
                                                                 MetricsRegistry& metrics,
                                                                 LogSink& log) {
  if (options.groups.empty()) {
    return make_error(ErrorCode::kInvalidArgument, "a connector needs at least one layer group");
  }
  if (options.block_tokens == 0) {
    return make_error(ErrorCode::kInvalidArgument, "block_tokens is 0");
  }
  return std::unique_ptr<ConnectorLeader>(
      new ConnectorLeader(std::move(options), cluster, clock, metrics, log));
}

ConnectorLeader::ConnectorLeader(ConnectorLeaderOptions options, Cluster& cluster,
                                 const Clock& clock, MetricsRegistry& metrics, LogSink& log)
    : options_(std::move(options)),
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
  slot->keys.resize(options_.groups.size());
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
    slot.max_stored = std::min(slot.max_stored, static_cast<uint32_t>(slot.identities.size()));
  }
  slot.identities.insert(slot.identities.end(), identities.begin(), identities.end());
  for (size_t group = 0; group < options_.groups.size(); ++group) {
    for (const Identity& identity : identities) {
      slot.keys[group].push_back({ns_, options_.groups[group].id, identity});
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
  if (num_tokens == 0 || num_computed_tokens % options_.block_tokens != 0) return {};
  cluster_.exchange();
  const uint32_t computed = num_computed_tokens / options_.block_tokens;
  // The engine computes at least the last token.
  const auto most =
      std::min<size_t>((num_tokens - 1) / options_.block_tokens, slot.identities.size());
  if (computed >= most) return {};
  if (!breaker_.allows(clock_.now())) {
    metrics_.bypassed.add();
    return {};
  }
  std::vector<GroupKeys> keys;
  keys.reserve(options_.groups.size());
  for (size_t group = 0; group < options_.groups.size(); ++group) {
    keys.push_back({options_.groups[group].id, std::span(slot.keys[group]).first(most)});
  }
  Match found = cluster_.leader().find(keys, computed);
  slot.lookup.blocks = static_cast<uint32_t>((most - computed) * options_.groups.size());
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
  offer.num_tokens = (found.num_blocks - found.first_block) * options_.block_tokens;
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
      num_external_tokens == (match.num_blocks - match.first_block) * options_.block_tokens,
      "the engine loads what was offered");
  OpenLoad load;
  load.request = std::string(request);
  load.between_steps = slot.between_steps;
  load.step = step_ + 1;
  std::vector<EngineBlocks> into;
  for (size_t group = 0; group < match.groups.size(); ++group) {
    const MatchedGroup& part = match.groups[group];
    KVBM_CONTRACT(part.first + part.blocks.size() <= blocks[group].size(),
                  "the engine has no block for what it loads");
    EngineBlocks to{.group = part.group, .first = part.first, .ids = {}};
    const auto first = blocks[group].begin() + part.first;
    to.ids.assign(first, first + static_cast<std::ptrdiff_t>(part.blocks.size()));
    load.firsts.push_back(part.first);
    load.blocks.push_back(to.ids);
    mark(group, to.ids, true);
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
  std::vector<OpId>& fences = step.plan.fences;
  std::sort(fences.begin(), fences.end());
  fences.erase(std::unique(fences.begin(), fences.end()), fences.end());
  return encode(step);
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
  const uint32_t computed = scheduled.num_computed_tokens / options_.block_tokens;
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
    const size_t first_written =
        scheduled.replaces_blocks ? std::min<size_t>(computed, given.size()) : 0;
    const std::span<const BlockId> written = given.subspan(first_written);
    mark(group, written, !slot.is_stale);
    const auto open = cluster_.leader().touching(options_.groups[group].id, written);
    fences.insert(fences.end(), open.begin(), open.end());
  }
  if (scheduled.replaces_blocks) {
    // A window's blocks below its reach are not there; a full prefix may be offered once more.
    const bool all_full =
        std::all_of(options_.groups.begin(), options_.groups.end(),
                    [](const GroupSpec& group) { return group.retention.is_full_prefix(); });
    slot.num_offered = all_full ? 0 : computed;
  }
  if (trust == Trust::kNone || slot.is_stale) return;
  const uint32_t written_tokens = scheduled.num_computed_tokens +
                                  (trust == Trust::kThisStep ? scheduled.num_scheduled_tokens : 0);
  const uint32_t written = written_tokens / options_.block_tokens;
  store_written(
      slot, std::min({written, static_cast<uint32_t>(slot.identities.size()), slot.max_stored}));
}

/// Whether some of what the engine gives a request as computed, and needs to go on, is older than
/// the last reset.
bool ConnectorLeader::builds_on_old_blocks(const Slot& slot, uint32_t num_computed_tokens) const {
  if (num_resets_ == 0) return false;
  // A block that is computed in part counts.
  const uint32_t num_computed = num_computed_tokens / options_.block_tokens +
                                (num_computed_tokens % options_.block_tokens != 0 ? 1 : 0);
  for (size_t group = 0; group < options_.groups.size(); ++group) {
    const std::vector<BlockId>& blocks = slot.blocks[group];
    const std::vector<bool>& is_new = is_new_[group];
    const size_t end = std::min<size_t>(num_computed, blocks.size());
    // What a window does not reach may not be there.
    for (size_t i = options_.groups[group].retention.first_needed(num_computed); i < end; ++i) {
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

void ConnectorLeader::store_written(Slot& slot, uint32_t end) {
  if (end <= slot.num_offered) return;
  const uint32_t first = slot.num_offered;
  for (size_t group = 0; group < options_.groups.size(); ++group) {
    KVBM_CONTRACT(end <= slot.blocks[group].size(), "the engine computes what it has no block for");
    const std::span<const BlockKey> keys(slot.keys[group]);
    (void)cluster_.leader().store(
        {.group = options_.groups[group].id,
         .keys = keys.subspan(first, end - first),
         .parent = first > 0 ? std::optional(keys[first - 1]) : std::nullopt,
         .blocks = std::span<const BlockId>(slot.blocks[group]).subspan(first, end - first),
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
    for (size_t group = 0; group < load.blocks.size() && !is_touched; ++group) {
      is_touched =
          !cluster_.leader().touching(options_.groups[group].id, load.blocks[group]).empty();
    }
    if (is_touched) {
      ++it;
      continue;
    }
    EndedLoad end{.request = load.request, .failed = {}};
    const auto slot = slots_.find(load.request);
    if (!load.given_up) note_outcome(load.outcome->status);
    // Nobody needs the blocks of a request that has ended.
    for (size_t group = 0; group < load.blocks.size() && slot != slots_.end(); ++group) {
      for (size_t i = 0; i < load.blocks[group].size(); ++i) {
        if (load.firsts[group] + i >= load.outcome->num_blocks) {
          end.failed.push_back(load.blocks[group][i]);
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
    for (size_t group = 0; group < slot->keys.size(); ++group) {
      for (BlockKey& key : slot->keys[group]) key.ns = ns_;
      slot->is_stale |= !slot->blocks[group].empty();
    }
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
