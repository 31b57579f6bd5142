// SPDX-License-Identifier: Apache-2.0
#include "kvbm/tiers/tier_manager.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "kvbm/base/hash.hpp"
#include "kvbm/tiers/internal/frequency_sketch.hpp"
#include "kvbm/tiers/internal/open_by_block.hpp"

namespace kvbm {
namespace {

constexpr TierId kLowerTiers[] = {TierId::kG2, TierId::kG3};

size_t index(TierId tier) { return static_cast<size_t>(tier); }

/// What a slot of a file place is marked with: the whole key, namespace and group included.
Tag tag_of(const BlockKey& key) {
  std::array<std::byte, sizeof(uint64_t) + sizeof(uint16_t) + 32> text{};
  const uint64_t ns = key.ns.value();
  const uint16_t group = key.group.value();
  for (size_t i = 0; i < sizeof(ns); ++i) text[i] = static_cast<std::byte>(ns >> (8 * i));
  for (size_t i = 0; i < sizeof(group); ++i) {
    text[sizeof(ns) + i] = static_cast<std::byte>(group >> (8 * i));
  }
  std::copy(key.identity.bytes.begin(), key.identity.bytes.end(),
            text.begin() + sizeof(ns) + sizeof(group));
  Tag tag;
  for (uint64_t word = 0; word < 4; ++word) {
    const uint64_t hash = xxh3_64(text, word);
    for (size_t i = 0; i < sizeof(hash); ++i) {
      tag.bytes[word * sizeof(hash) + i] = static_cast<std::byte>(hash >> (8 * i));
    }
  }
  return tag;
}

std::vector<BlockId> ids_of(const auto& guards) {
  std::vector<BlockId> ids;
  ids.reserve(guards.size());
  for (const auto& guard : guards) ids.push_back(guard.block_id());
  return ids;
}

std::vector<BlockKey> keys_of(std::span<const EvictedBlock> blocks) {
  std::vector<BlockKey> keys;
  keys.reserve(blocks.size());
  for (const EvictedBlock& block : blocks) keys.push_back(block.key);
  return keys;
}

template <class T>
void erase_value(std::vector<T>& values, const T& value) {
  values.erase(std::remove(values.begin(), values.end(), value), values.end());
}

}  // namespace

enum class TierManager::Purpose : uint8_t {
  kStore,  // engine -> nearest tier
  kSave,   // G2 -> G3, because the block is evicted
  kDrain,  // G2 -> G3, because the manager stops
  kStage,  // G3 -> G2, the first half of a load
  kLoad,   // a lower tier -> engine
};

struct TierManager::KeyedBlock {
  BlockKey key;
  std::optional<BlockKey> parent;
};

/// One layer group: its pools below the engine and what is under way for it.
struct TierManager::Group {
  GroupSpec spec;
  std::array<std::optional<BlockPool>, kNumTiers> pools;
  uint64_t rank_block_bytes = 0;  // the same in every tier
  std::array<std::unordered_set<BlockKey>, kNumTiers> filling;
  uint32_t num_engine_blocks = 0;
  std::shared_ptr<internal::OpenByBlock> engine_ops;  // of all groups, if ids are of one pool
  /// What the drain that is under way has left to look at, next one last; none: it has not begun
  /// with this group.
  std::optional<std::vector<IdleBlock>> drain_list;
};

/// An operation that not every rank has answered. Owns the guards of all blocks it touches.
struct TierManager::OpenOp {
  OpId id;
  Purpose purpose{};
  Group* group = nullptr;
  TierId from{};
  TierId to{};
  Priority priority{};
  uint32_t num_blocks = 0;

  std::vector<ImmutableBlock> sources;                      // empty for kStore and kSave
  std::shared_ptr<std::vector<MutableBlock>> slots;         // destination; none for kLoad
  std::shared_ptr<std::vector<MutableBlock>> source_slots;  // kSave: promised to another op
  std::vector<KeyedBlock> keyed;                            // what `slots` will hold
  std::vector<BlockId> engine_blocks;                       // kStore: sources, kLoad: destinations

  LoadId load;                        // kStage, kLoad
  std::vector<uint32_t> positions;    // kStage, kLoad: in the sequence
  std::vector<BlockId> destinations;  // kStage: where the blocks go next

  std::vector<bool> answered;  // by rank
  uint32_t ranks_left = 0;
  std::vector<bool> failed;  // by position in the operation
  bool cancelled = false;
  bool forgotten = false;  // what it reads or fills is not kept
  uint64_t bytes = 0;
  TimePoint issued{};
};

struct TierManager::OpenLoad {
  uint32_t first_block = 0;
  uint32_t num_blocks = 0;
  uint32_t first_failed = UINT32_MAX;
  bool all_or_nothing = false;  // a last-window group cannot be cut shorter
  bool reported = false;        // the deadline has passed, or nobody waits for it
  TimePoint deadline = kNever;
  Gate free;  // the engine's compute is done with the destinations
  std::vector<OpId> ops;
};

Result<std::unique_ptr<TierManager>> TierManager::create(TierManagerOptions options,
                                                         const Clock& clock, EventSink& events,
                                                         MetricsRegistry& metrics, LogSink& log) {
  std::unique_ptr<TierManager> manager(
      new TierManager(std::move(options), clock, events, metrics, log));
  KVBM_TRY(manager->set_up());
  return manager;
}

TierManager::TierManager(TierManagerOptions options, const Clock& clock, EventSink& events,
                         MetricsRegistry& metrics, LogSink& log)
    : options_(std::move(options)), clock_(clock), events_(events), log_(log), metrics_(metrics) {}

TierManager::~TierManager() = default;

Status TierManager::check_place(const PlaceSpec& place) const {
  const std::string where = "the place in " + std::string(to_string(place.place.tier)) +
                            " of layer group " + to_string(place.place.group);
  const bool known =
      std::any_of(options_.groups.begin(), options_.groups.end(),
                  [&](const GroupSpec& spec) { return spec.id == place.place.group; });
  if (!known) return make_error(ErrorCode::kInvalidArgument, where + " belongs to no group");
  if (place.num_blocks == 0 || place.rank_block_bytes == 0) {
    return make_error(ErrorCode::kInvalidArgument, where + " has no blocks or no bytes");
  }
  if (place.place.tier > TierId::kG3) {
    return make_error(ErrorCode::kUnsupported, where + ": tiers below G3 are not supported");
  }
  return {};
}

Status TierManager::set_up() {
  if (options_.groups.empty()) {
    return make_error(ErrorCode::kInvalidArgument, "a model needs at least one layer group");
  }
  if (options_.num_ranks == 0) {
    return make_error(ErrorCode::kInvalidArgument, "num_ranks is 0; at least one rank is needed");
  }
  KVBM_ASSIGN_OR_RETURN(auto registry, BlockRegistry::create({.groups = options_.groups}));
  registry_.emplace(std::move(registry));
  for (const PlaceSpec& place : options_.places) KVBM_TRY(check_place(place));
  for (const GroupSpec& spec : options_.groups) {
    auto group = std::make_unique<Group>();
    group->spec = spec;
    for (const PlaceSpec& place : options_.places) {
      if (place.place.group != spec.id) continue;
      const TierId tier = place.place.tier;
      if (group->rank_block_bytes != 0 && group->rank_block_bytes != place.rank_block_bytes) {
        return make_error(ErrorCode::kInvalidArgument,
                          "layer group " + to_string(spec.id) + " has blocks of " +
                              std::to_string(group->rank_block_bytes) + " and of " +
                              std::to_string(place.rank_block_bytes) +
                              " bytes; tiers hold the same");
      }
      group->rank_block_bytes = place.rank_block_bytes;
      if (tier == TierId::kG1) {
        if (group->num_engine_blocks != 0) {
          return make_error(ErrorCode::kInvalidArgument,
                            "layer group " + to_string(spec.id) + " has two places in G1");
        }
        group->num_engine_blocks = place.num_blocks;
        continue;
      }
      KVBM_ASSIGN_OR_RETURN(auto pool,
                            registry_->create_pool({.tier = tier,
                                                    .group = spec.id,
                                                    .num_blocks = place.num_blocks,
                                                    .policy = options_.policy,
                                                    .duplicates = DuplicatePolicy::kReject}));
      group->pools[index(tier)].emplace(std::move(pool));
    }
    if (group->num_engine_blocks == 0) {
      return make_error(ErrorCode::kInvalidArgument,
                        "layer group " + to_string(spec.id) + " has no place in G1");
    }
    if (options_.engine_ids == EngineIds::kOfOnePool && !groups_.empty()) {
      if (group->num_engine_blocks != groups_.front()->num_engine_blocks) {
        return make_error(ErrorCode::kInvalidArgument,
                          "layer groups have " + std::to_string(group->num_engine_blocks) +
                              " and " + std::to_string(groups_.front()->num_engine_blocks) +
                              " blocks of one pool of the engine");
      }
      group->engine_ops = groups_.front()->engine_ops;
    } else {
      group->engine_ops = std::make_shared<internal::OpenByBlock>();
    }
    groups_.push_back(std::move(group));
  }
  uint32_t nearest_blocks = 0;
  for (TierId tier : kLowerTiers) {
    size_t having = 0;
    for (const auto& group : groups_) having += group->pools[index(tier)].has_value() ? 1 : 0;
    if (having == 0) continue;
    if (having != groups_.size()) {
      return make_error(ErrorCode::kInvalidArgument,
                        std::string(to_string(tier)) + " exists for some layer groups only");
    }
    if (!nearest_) {
      nearest_ = tier;
      for (const auto& group : groups_) nearest_blocks += group->pools[index(tier)]->num_blocks();
    }
  }
  if (options_.disk_filter) {
    uint64_t num_blocks = 0;
    for (const auto& group : groups_) {
      for (TierId tier : kLowerTiers) {
        const auto& pool = group->pools[index(tier)];
        if (pool) num_blocks += pool->num_blocks();
      }
    }
    seen_ = std::make_unique<internal::FrequencySketch>(num_blocks);
  }
  max_open_store_blocks_ =
      options_.max_open_store_blocks != 0 ? options_.max_open_store_blocks : nearest_blocks;
  metrics_.store_budget_blocks.set(max_open_store_blocks_);
  show_pools();
  return {};
}

bool TierManager::has_tier(TierId tier) const noexcept {
  return groups_.front()->pools[index(tier)].has_value();
}

uint64_t TierManager::resident_blocks(TierId tier) const {
  uint64_t blocks = 0;
  for (const auto& group : groups_) {
    if (const auto& pool = group->pools[index(tier)])
      blocks += pool->num_idle() + pool->num_active();
  }
  return blocks;
}

uint32_t TierManager::blocks_per_group(TierId tier) const {
  if (!has_tier(tier)) return 0;
  uint32_t fewest = UINT32_MAX;
  for (const auto& group : groups_) {
    fewest = std::min(fewest, group->pools[index(tier)]->limit());
  }
  return fewest;
}

TierManager::Group& TierManager::group_of(GroupId id) {
  return const_cast<Group&>(std::as_const(*this).group_of(id));
}

const TierManager::Group& TierManager::group_of(GroupId id) const {
  for (const auto& group : groups_) {
    if (group->spec.id == id) return *group;
  }
  KVBM_CONTRACT(false, "no layer group " + to_string(id));
  std::abort();
}

Match TierManager::find(std::span<const GroupKeys> keys, uint32_t computed_blocks) {
  KVBM_CONTRACT(keys.size() == groups_.size(), "a find needs the keys of every layer group");
  for (const GroupKeys& part : keys) {
    KVBM_CONTRACT(part.keys.size() == keys.front().keys.size(),
                  "a find needs as many keys of every layer group");
  }
  Match match{.first_block = computed_blocks, .num_blocks = computed_blocks, .groups = {}};
  if (!nearest_ || rank_lost_) return match;
  PrefixMatch found = registry_->match(keys, {.first_block = computed_blocks});
  if (found.num_blocks <= computed_blocks) return match;
  match.num_blocks = found.num_blocks;
  match.groups.reserve(found.groups.size());
  for (size_t i = 0; i < found.groups.size(); ++i) {
    GroupMatch& part = found.groups[i];
    MatchedGroup matched{.group = part.group,
                         .first = part.first,
                         .blocks = std::move(part.blocks),
                         .parent = std::nullopt};
    if (part.first > 0) matched.parent = keys[i].keys[part.first - 1];
    match.groups.push_back(std::move(matched));
  }
  return match;
}

Result<LoadId> TierManager::load(Match&& match, std::span<const EngineBlocks> destinations,
                                 Gate free) {
  KVBM_CONTRACT(destinations.size() == match.groups.size(),
                "a load needs destinations for each group");
  for (size_t i = 0; i < destinations.size(); ++i) {
    const MatchedGroup& part = match.groups[i];
    KVBM_CONTRACT(destinations[i].group == part.group && destinations[i].first == part.first &&
                      destinations[i].ids.size() == part.blocks.size(),
                  "the destinations of a load do not fit the match");
    for (BlockId block : destinations[i].ids) {
      KVBM_CONTRACT(block.value() < group_of(part.group).num_engine_blocks,
                    "engine block " + to_string(block) + " is out of range");
    }
  }
  if (rank_lost_) {
    return make_error(ErrorCode::kUnavailable, "a rank is lost and with it the stored blocks");
  }
  const LoadId id{next_load_++};
  auto& load = *loads_.emplace(id, std::make_unique<OpenLoad>()).first->second;
  load.first_block = match.first_block;
  load.num_blocks = match.num_blocks;
  load.free = free;
  if (options_.timeout.count() > 0) load.deadline = saturating_add(clock_.now(), options_.timeout);

  for (size_t i = 0; i < destinations.size(); ++i) {
    MatchedGroup& part = match.groups[i];
    Group& group = group_of(part.group);
    load.all_or_nothing |= !group.spec.retention.is_full_prefix();
    struct Part {
      std::vector<ImmutableBlock> blocks;
      std::vector<KeyedBlock> keyed;
      std::vector<uint32_t> positions;
      std::vector<BlockId> destinations;
    };
    std::array<Part, kNumTiers> parts;
    std::optional<BlockKey> parent = part.parent;
    for (size_t k = 0; k < part.blocks.size(); ++k) {
      const BlockKey key = part.blocks[k].key();
      note_seen(key);
      Part& to = parts[index(part.blocks[k].tier())];
      to.blocks.push_back(std::move(part.blocks[k]));
      to.keyed.push_back({key, parent});
      to.positions.push_back(part.first + static_cast<uint32_t>(k));
      to.destinations.push_back(destinations[i].ids[k]);
      parent = key;
    }
    for (TierId tier : kLowerTiers) {
      Part& from = parts[index(tier)];
      if (from.blocks.empty()) continue;
      metrics_.hits[index(tier)]->add(from.blocks.size());
      if (tier == *nearest_) {
        copy_to_engine(id, group, std::move(from.blocks), std::move(from.positions),
                       std::move(from.destinations));
      } else {
        stage(id, group, std::move(from.blocks), std::move(from.keyed), std::move(from.positions),
              std::move(from.destinations));
      }
    }
  }
  finish_load_if_done(id);
  return id;
}

TierManager::OpenOp& TierManager::open(Purpose purpose, Group& group, TierId from, TierId to) {
  auto op = std::make_unique<OpenOp>();
  op->id = OpId{next_op_++};
  op->purpose = purpose;
  op->group = &group;
  op->from = from;
  op->to = to;
  op->priority = purpose == Purpose::kStage || purpose == Purpose::kLoad ? Priority::kOnboard
                                                                         : Priority::kOffload;
  op->answered.assign(options_.num_ranks, false);
  op->ranks_left = options_.num_ranks;
  OpenOp& opened = *op;
  ops_.emplace(opened.id, std::move(op));
  return opened;
}

void TierManager::issue(OpenOp& op, std::vector<BlockId> from, std::vector<BlockId> to,
                        std::vector<Gate> after) {
  op.num_blocks = static_cast<uint32_t>(from.size());
  op.failed.assign(from.size(), false);
  CopyOp copy;
  copy.op = op.id;
  copy.src = {op.from, op.group->spec.id};
  copy.dst = {op.to, op.group->spec.id};
  copy.from = std::move(from);
  copy.to = std::move(to);
  if (op.from == TierId::kG3 || op.to == TierId::kG3) {
    copy.tags.reserve(op.num_blocks);
    for (uint32_t i = 0; i < op.num_blocks; ++i) {
      copy.tags.push_back(tag_of(op.keyed.empty() ? op.sources[i].key() : op.keyed[i].key));
    }
  }
  copy.after = std::move(after);
  copy.timeout = options_.timeout;
  copy.priority = op.priority;
  for (BlockId block : op.engine_blocks) op.group->engine_ops->add(block, op.id);
  for (const KeyedBlock& block : op.keyed) op.group->filling[index(op.to)].insert(block.key);
  if (op.purpose == Purpose::kStore) add_open_stores(op.num_blocks);
  op.issued = clock_.now();
  metrics_.route(op.from, op.to).started(op.issued);
  ready_ops_.push_back(std::move(copy));
}

TierManager::OpenOp& TierManager::copy_to_engine(LoadId load, Group& group,
                                                 std::vector<ImmutableBlock> blocks,
                                                 std::vector<uint32_t> positions,
                                                 std::vector<BlockId> destinations) {
  std::vector<Gate> after{loads_.at(load)->free};
  for (OpId reader : touching(group.spec.id, destinations)) after.push_back(Gate::op_done(reader));
  OpenOp& op = open(Purpose::kLoad, group, blocks.front().tier(), TierId::kG1);
  op.load = load;
  op.positions = std::move(positions);
  op.engine_blocks = destinations;
  op.sources = std::move(blocks);
  loads_.at(load)->ops.push_back(op.id);
  issue(op, ids_of(op.sources), std::move(destinations), std::move(after));
  return op;
}

void TierManager::stage(LoadId load, Group& group, std::vector<ImmutableBlock> blocks,
                        std::vector<KeyedBlock> keyed, std::vector<uint32_t> positions,
                        std::vector<BlockId> destinations) {
  Allocation room = allocate(group, *nearest_, blocks.size());
  const size_t staged = room.blocks.size();
  if (staged < blocks.size()) {
    // No slot for the rest: straight to the engine, without a copy in the nearest tier.
    const auto tail = [staged](auto& values) {
      std::remove_reference_t<decltype(values)> rest(
          std::make_move_iterator(values.begin() + static_cast<std::ptrdiff_t>(staged)),
          std::make_move_iterator(values.end()));
      values.erase(values.begin() + static_cast<std::ptrdiff_t>(staged), values.end());
      return rest;
    };
    keyed.erase(keyed.begin() + static_cast<std::ptrdiff_t>(staged), keyed.end());
    copy_to_engine(load, group, tail(blocks), tail(positions), tail(destinations));
    if (staged == 0) return;
  }
  auto slots = std::make_shared<std::vector<MutableBlock>>(std::move(room.blocks));
  std::vector<Gate> after;
  if (auto save = save_evicted(group, *nearest_, room.evicted, slots, Priority::kOnboard)) {
    after.push_back(Gate::op_done(*save));
  }
  OpenOp& op = open(Purpose::kStage, group, TierId::kG3, *nearest_);
  op.load = load;
  op.positions = std::move(positions);
  op.destinations = std::move(destinations);
  op.sources = std::move(blocks);
  op.keyed = std::move(keyed);
  op.slots = std::move(slots);
  loads_.at(load)->ops.push_back(op.id);
  issue(op, ids_of(op.sources), ids_of(*op.slots), std::move(after));
}

StoreReceipt TierManager::store(const StoreRequest& request) {
  KVBM_CONTRACT(request.keys.size() == request.blocks.size(), "a store needs one block a key");
  StoreReceipt receipt;
  const auto asked = static_cast<uint32_t>(request.keys.size());
  if (!nearest_ || rank_lost_) {
    receipt.dropped = asked;
    return receipt;
  }
  Group& group = group_of(request.group);

  for (const BlockKey& key : request.keys) note_seen(key);
  for (uint32_t i = 0; i < asked; ++i) {
    KVBM_CONTRACT(request.keys[i].group == request.group, "a key of another group");
    KVBM_CONTRACT(request.blocks[i].value() < group.num_engine_blocks,
                  "engine block " + to_string(request.blocks[i]) + " is out of range");
  }
  std::vector<KeyedBlock> keyed;
  std::vector<BlockId> sources;
  const std::vector<bool> present = are_present(group, request.keys, *nearest_);
  for (uint32_t i = 0; i < asked; ++i) {
    if (present[i]) {
      ++receipt.present;
      continue;
    }
    keyed.push_back({request.keys[i], i > 0 ? std::optional(request.keys[i - 1]) : request.parent});
    sources.push_back(request.blocks[i]);
  }

  auto wanted = static_cast<uint32_t>(keyed.size());
  const uint32_t budget =
      max_open_store_blocks_ - std::min(open_store_blocks_, max_open_store_blocks_);
  if (wanted > budget) {
    metrics_.store_dropped_backlog.add(wanted - budget);
    receipt.dropped += wanted - budget;
    wanted = budget;
  }
  if (wanted == 0) return receipt;
  Allocation room = allocate(group, *nearest_, wanted);
  receipt.accepted = static_cast<uint32_t>(room.blocks.size());
  if (receipt.accepted < wanted) {
    metrics_.store_dropped_no_room.add(wanted - receipt.accepted);
    receipt.dropped += wanted - receipt.accepted;
  }
  if (receipt.accepted == 0) return receipt;
  keyed.resize(receipt.accepted);
  sources.resize(receipt.accepted);

  auto slots = std::make_shared<std::vector<MutableBlock>>(std::move(room.blocks));
  std::vector<Gate> after{request.written};
  if (auto save = save_evicted(group, *nearest_, room.evicted, slots, Priority::kOffload)) {
    after.push_back(Gate::op_done(*save));
  }
  OpenOp& op = open(Purpose::kStore, group, TierId::kG1, *nearest_);
  op.keyed = std::move(keyed);
  op.engine_blocks = sources;
  op.slots = std::move(slots);
  issue(op, std::move(sources), ids_of(*op.slots), std::move(after));
  return receipt;
}

void TierManager::add_open_stores(int64_t num_blocks) {
  open_store_blocks_ = static_cast<uint32_t>(open_store_blocks_ + num_blocks);
  metrics_.open_store_blocks.set(open_store_blocks_);
}

/// Which of the keys, all of this group, a tier has or is being given.
std::vector<bool> TierManager::are_present(const Group& group, std::span<const BlockKey> keys,
                                           TierId tier) const {
  std::vector<bool> present = registry_->are_resident(keys, tier);
  const auto& filling = group.filling[index(tier)];
  if (filling.empty()) return present;
  for (size_t i = 0; i < keys.size(); ++i) present[i] = present[i] || filling.contains(keys[i]);
  return present;
}

void TierManager::note_seen(const BlockKey& key) {
  if (seen_) seen_->see(hash_of(key));
}

bool TierManager::is_worth_disk(const BlockKey& key) const {
  return !seen_ || seen_->frequency(hash_of(key)) >= 2;
}

/// Writes the evicted blocks that no lower tier has to G3. Until that operation has ended their
/// slots, which `slots` owns, must not be overwritten: the caller gates on it, and lends it its
/// priority.
std::optional<OpId> TierManager::save_evicted(
    Group& group, TierId tier, const std::vector<EvictedBlock>& evicted,
    const std::shared_ptr<std::vector<MutableBlock>>& slots, Priority priority) {
  auto& below = group.pools[index(TierId::kG3)];
  if (tier != TierId::kG2 || !below) return std::nullopt;
  std::vector<KeyedBlock> keyed;
  std::vector<BlockId> from;
  const std::vector<bool> clean = are_present(group, keys_of(evicted), TierId::kG3);
  for (size_t i = 0; i < evicted.size(); ++i) {
    if (clean[i]) continue;
    if (!is_worth_disk(evicted[i].key)) {
      metrics_.filtered.add();
      continue;
    }
    keyed.push_back({evicted[i].key, evicted[i].parent});
    from.push_back(evicted[i].block);
  }
  if (keyed.empty()) return std::nullopt;
  Allocation room = allocate(group, TierId::kG3, keyed.size());
  metrics_.evicted_unsaved.add(keyed.size() - room.blocks.size());
  if (room.blocks.empty()) return std::nullopt;
  keyed.resize(room.blocks.size());
  from.resize(room.blocks.size());
  OpenOp& op = open(Purpose::kSave, group, TierId::kG2, TierId::kG3);
  op.priority = priority;
  op.keyed = std::move(keyed);
  op.source_slots = slots;
  op.slots = std::make_shared<std::vector<MutableBlock>>(std::move(room.blocks));
  issue(op, std::move(from), ids_of(*op.slots), {});
  return op.id;
}

uint32_t TierManager::drain(uint32_t max_blocks) {
  uint32_t started = 0;
  for (const auto& group : groups_) {
    if (!rank_lost_) started += drain_group(*group, max_blocks - started);
  }
  // Only when no group has anything left to start is the drain over, and the next call a new one. A
  // group that is done before the others must not list its blocks again: it would find those that
  // its own writes have pushed out of G3.
  if (started == 0 && max_blocks > 0) {
    for (const auto& group : groups_) group->drain_list.reset();
  }
  return started;
}

/// What the group has to look at: no more than G3 holds, so that the writes of one drain do not
/// push each other out, and of those the blocks that G2 would keep longest.
void TierManager::list_for_drain(Group& group) {
  std::vector<IdleBlock> idle = group.pools[index(TierId::kG2)]->idle_blocks();
  const size_t listed =
      std::min<size_t>(idle.size(), group.pools[index(TierId::kG3)]->num_blocks());
  group.drain_list.emplace(idle.rbegin(), idle.rbegin() + static_cast<std::ptrdiff_t>(listed));
}

uint32_t TierManager::drain_group(Group& group, uint32_t max_blocks) {
  auto& above = group.pools[index(TierId::kG2)];
  auto& below = group.pools[index(TierId::kG3)];
  if (!above || !below || max_blocks == 0) return 0;
  if (!group.drain_list) list_for_drain(group);
  std::vector<IdleBlock>& list = *group.drain_list;
  const PoolOccupancy occupancy = below->occupancy();
  const size_t room = std::min<size_t>(max_blocks, occupancy.num_free + occupancy.num_idle);

  std::vector<KeyedBlock> keyed;
  std::vector<ImmutableBlock> sources;
  while (keyed.size() < room && !list.empty()) {
    const size_t count = std::min(room - keyed.size(), list.size());
    std::vector<IdleBlock> next(list.rbegin(), list.rbegin() + static_cast<std::ptrdiff_t>(count));
    list.resize(list.size() - count);
    const std::vector<EvictedBlock> blocks = above->describe(next);
    const std::vector<bool> present = are_present(group, keys_of(blocks), TierId::kG3);
    std::vector<ImmutableBlock> clean;
    for (size_t i = 0; i < blocks.size(); ++i) {
      if (present[i]) {
        // On disk it had better outlive what is not in host memory.
        if (auto copy = below->find(blocks[i].key)) clean.push_back(*std::move(copy));
      } else if (!is_worth_disk(blocks[i].key)) {
        metrics_.filtered.add();
      } else if (auto block = above->find(blocks[i].key)) {
        keyed.push_back({blocks[i].key, blocks[i].parent});
        sources.push_back(*std::move(block));
      }
    }
    renew(group, std::move(clean));
  }
  Allocation slots = allocate(group, TierId::kG3, keyed.size());
  const auto saved = static_cast<uint32_t>(slots.blocks.size());
  if (saved == 0) return 0;
  keyed.resize(saved);
  sources.erase(sources.begin() + saved, sources.end());
  OpenOp& op = open(Purpose::kDrain, group, TierId::kG2, TierId::kG3);
  op.keyed = std::move(keyed);
  op.sources = std::move(sources);
  op.slots = std::make_shared<std::vector<MutableBlock>>(std::move(slots.blocks));
  issue(op, ids_of(op.sources), ids_of(*op.slots), {});
  return saved;
}

std::vector<OpId> TierManager::touching(GroupId group, std::span<const BlockId> blocks) const {
  const Group& of = group_of(group);
  std::vector<OpId> found;
  for (BlockId block : blocks) {
    KVBM_CONTRACT(block.value() < of.num_engine_blocks,
                  "engine block " + to_string(block) + " is out of range");
    of.engine_ops->find(block, found);
  }
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

void TierManager::on_result(const OpResult& result) {
  const auto it = ops_.find(result.op);
  if (it == ops_.end() || result.rank.value() >= options_.num_ranks ||
      it->second->answered[result.rank.value()]) {
    KVBM_LOG_WARNING(log_, "tiers", "rank {} answered operation {}, which it was not asked for",
                     result.rank.value(), result.op.value());
    return;
  }
  OpenOp& op = *it->second;
  op.answered[result.rank.value()] = true;
  op.bytes += result.bytes;

  uint64_t arrived = op.num_blocks;
  switch (result.outcome) {
    case Outcome::kSucceeded:
      break;
    case Outcome::kCancelled:
      op.cancelled = true;
      arrived = 0;
      break;
    case Outcome::kFailed: {
      std::vector<bool> missing(op.num_blocks, result.failed.empty());
      for (uint32_t position : result.failed) {
        if (position < op.num_blocks) {
          missing[position] = true;
        } else {
          missing.assign(op.num_blocks, true);
        }
      }
      for (uint32_t i = 0; i < op.num_blocks; ++i) op.failed[i] = op.failed[i] || missing[i];
      arrived = static_cast<uint64_t>(std::count(missing.begin(), missing.end(), false));
      break;
    }
  }
  const uint64_t expected = arrived * op.group->rank_block_bytes;
  if (result.outcome != Outcome::kCancelled && result.bytes != expected) {
    KVBM_LOG_ERROR(log_, "tiers", "operation {} on rank {} moved {} bytes instead of {}",
                   result.op.value(), result.rank.value(), result.bytes, expected);
    op.failed.assign(op.num_blocks, true);
  }
  if (--op.ranks_left == 0) finish(op);
}

void TierManager::on_place_shrunk(const ShrunkPlace& shrunk) {
  const TierId tier = shrunk.place.tier;
  const GroupId group_id = shrunk.place.group;
  const auto group = std::find_if(groups_.begin(), groups_.end(),
                                  [&](const auto& one) { return one->spec.id == group_id; });
  if (shrunk.rank.value() >= options_.num_ranks || group == groups_.end() ||
      !(*group)->pools[index(tier)]) {
    KVBM_LOG_WARNING(log_, "tiers", "rank {} has shrunk {} of layer group {}, which is not known",
                     shrunk.rank.value(), to_string(tier), group_id.value());
    return;
  }
  BlockPool& pool = *(*group)->pools[index(tier)];
  if (shrunk.num_blocks >= pool.limit()) return;  // another rank has fewer
  const auto asked =
      std::find_if(options_.places.begin(), options_.places.end(),
                   [&](const PlaceSpec& spec) { return spec.place == shrunk.place; });
  std::vector<EvictedBlock> gone = pool.shrink(shrunk.num_blocks);
  std::erase_if(gone, [&](const EvictedBlock& block) { return is_forgotten(pool, block.block); });
  emit_deleted(gone, tier);
  KVBM_LOG_WARNING(
      log_, "tiers",
      "layer group {} goes on with {} of {} blocks in {} on every rank, as rank {} has "
      "no more: its log says why. Stored blocks that are lost: {}",
      group_id.value(), shrunk.num_blocks, asked->num_blocks, to_string(tier), shrunk.rank.value(),
      gone.size());
  if (tier != nearest_ || rank_lost_) return;
  uint64_t nearest_blocks = 0;
  for (const auto& one : groups_) nearest_blocks += one->pools[index(tier)]->limit();
  max_open_store_blocks_ =
      static_cast<uint32_t>(std::min<uint64_t>(max_open_store_blocks_, nearest_blocks));
  metrics_.store_budget_blocks.set(max_open_store_blocks_);
}

void TierManager::on_rank_lost(RankId rank) {
  KVBM_CONTRACT(rank.value() < options_.num_ranks, "no rank " + to_string(rank));
  KVBM_LOG_ERROR(log_, "tiers", "rank {} is lost; all stored blocks are dropped", rank.value());
  if (!std::exchange(rank_lost_, true)) count_lost_stores();
  metrics_.store_budget_blocks.set(0);
  std::vector<OpId> complete;
  for (auto& [id, op] : ops_) {
    if (op->answered[rank.value()]) continue;
    op->answered[rank.value()] = true;
    op->cancelled = true;
    if (--op->ranks_left == 0) complete.push_back(id);
  }
  std::sort(complete.begin(), complete.end());
  for (OpId id : complete) finish(*ops_.at(id));
  drop_idle(metrics_.lost);
}

uint64_t TierManager::forget() {
  tell_pinned_as_deleted();
  for (auto& [id, op] : ops_) op->forgotten = true;
  return drop_idle(metrics_.forgotten);
}

/// What open operations read is gone for whoever follows the events: told by identity alone, a
/// later end could not be told from that of the same block stored anew.
void TierManager::tell_pinned_as_deleted() {
  std::vector<const OpenOp*> reading;
  for (const auto& [id, op] : ops_) {
    if (!op->sources.empty() && !op->forgotten) reading.push_back(op.get());
  }
  std::sort(reading.begin(), reading.end(),
            [](const OpenOp* a, const OpenOp* b) { return a->id < b->id; });
  std::array<std::unordered_set<BlockKey>, kNumTiers> told;
  for (const OpenOp* op : reading) {
    const uint32_t limit = op->group->pools[index(op->from)]->limit();
    for (const ImmutableBlock& block : op->sources) {
      if (block.block_id().value() >= limit) continue;  // told when the place shrank
      if (!told[index(op->from)].insert(block.key()).second) continue;
      emit(KvEventType::kDeleted, block.key(), block.block_id(), op->from, op->from);
    }
  }
}

/// Whether tell_pinned_as_deleted() has told it, and it is still being read.
bool TierManager::is_forgotten(const BlockPool& pool, BlockId block) const {
  return std::any_of(ops_.begin(), ops_.end(), [&](const auto& entry) {
    const OpenOp& op = *entry.second;
    return op.forgotten && op.from == pool.tier() && op.group->spec.id == pool.group() &&
           std::any_of(op.sources.begin(), op.sources.end(),
                       [&](const ImmutableBlock& source) { return source.block_id() == block; });
  });
}

/// Of a lost rank, those that are pinned now go with a later tick().
uint64_t TierManager::drop_idle(const std::array<Counter*, kNumTiers>& counters) {
  uint64_t num_dropped = 0;
  for (const auto& group : groups_) {
    for (TierId tier : kLowerTiers) {
      auto& pool = group->pools[index(tier)];
      if (!pool) continue;
      const std::vector<EvictedBlock> dropped = pool->reset_idle();
      counters[index(tier)]->add(dropped.size());
      num_dropped += dropped.size();
      emit_deleted(dropped, tier);
    }
  }
  return num_dropped;
}

/// The last pin of each goes, and the block with it. No event: see forget().
void TierManager::forget_blocks(BlockPool& pool, std::vector<ImmutableBlock> blocks) {
  for (ImmutableBlock& block : blocks) {
    if (pool.discard(std::move(block))) metrics_.forgotten[index(pool.tier())]->add();
  }
}

/// Those that were on their way into a tier. What is staged or drained is counted where it comes
/// from.
void TierManager::count_lost_stores() {
  for (const auto& [id, op] : ops_) {
    if ((op->purpose != Purpose::kStore && op->purpose != Purpose::kSave) || op->cancelled)
      continue;
    metrics_.lost[index(op->to)]->add(
        static_cast<uint64_t>(std::count(op->failed.begin(), op->failed.end(), false)));
  }
}

void TierManager::finish(OpenOp& op) {
  std::vector<bool> arrived(op.num_blocks);
  uint64_t num_arrived = 0;
  // No rank has a block that one of them does not have, whatever it says.
  const uint32_t limit = op.slots ? op.group->pools[index(op.to)]->limit() : 0;
  for (uint32_t i = 0; i < op.num_blocks; ++i) {
    arrived[i] = !op.failed[i] && !op.cancelled && !rank_lost_ &&
                 (!op.slots || (*op.slots)[i].block_id().value() < limit);
    num_arrived += arrived[i] ? 1 : 0;
  }
  const TimePoint now = clock_.now();
  metrics_.route(op.from, op.to)
      .ended(now, {.time = now - op.issued,
                   .blocks = num_arrived,
                   .failed_blocks = op.num_blocks - num_arrived,
                   .bytes = op.bytes,
                   .cancelled = op.cancelled});
  for (BlockId block : op.engine_blocks) op.group->engine_ops->remove(block, op.id);
  for (const KeyedBlock& block : op.keyed) op.group->filling[index(op.to)].erase(block.key);
  if (op.purpose == Purpose::kStore) add_open_stores(-int64_t{op.num_blocks});
  if (op.purpose == Purpose::kDrain) metrics_.drained_blocks.add(num_arrived);

  release_sources(op);
  if (op.slots) settle_destination(op, arrived);
  if (op.purpose == Purpose::kLoad) end_load_part(op, arrived);

  const LoadId load = op.load;
  const bool loading = op.purpose == Purpose::kStage || op.purpose == Purpose::kLoad;
  if (loading) erase_value(loads_.at(load)->ops, op.id);
  ops_.erase(op.id);
  if (loading) finish_load_if_done(load);
}

/// Lets go of what was copied. A stored copy that could not be read is not offered again.
void TierManager::release_sources(OpenOp& op) {
  if (op.sources.empty()) return;
  BlockPool& pool = *op.group->pools[index(op.from)];
  std::vector<ImmutableBlock> kept;
  kept.reserve(op.sources.size());
  for (uint32_t i = 0; i < op.num_blocks; ++i) {
    if (op.from != TierId::kG3 || !op.failed[i]) {
      kept.push_back(std::move(op.sources[i]));
      continue;
    }
    const BlockKey key = op.sources[i].key();
    const BlockId block = op.sources[i].block_id();
    if (pool.discard(std::move(op.sources[i]))) {
      metrics_.corrupt_or_unreadable.add();
      if (!op.forgotten) emit(KvEventType::kDeleted, key, block, op.from, op.from);
    }
  }
  op.sources.clear();
  if (op.forgotten) {
    forget_blocks(pool, std::move(kept));
  } else {
    pool.release(std::move(kept));
  }
}

void TierManager::settle_destination(OpenOp& op, const std::vector<bool>& arrived) {
  BlockPool& pool = *op.group->pools[index(op.to)];
  std::vector<CompleteBlock> complete;
  std::vector<uint32_t> came;  // their positions in the operation
  std::vector<BlockId> slots;
  complete.reserve(op.num_blocks);
  came.reserve(op.num_blocks);
  slots.reserve(op.num_blocks);
  for (uint32_t i = 0; i < op.num_blocks; ++i) {
    if (!arrived[i]) {
      if (op.purpose == Purpose::kStage) {
        OpenLoad& load = *loads_.at(op.load);
        load.first_failed = std::min(load.first_failed, op.positions[i]);
      }
      continue;
    }
    came.push_back(i);
    slots.push_back((*op.slots)[i].block_id());
    complete.push_back(std::move((*op.slots)[i]).complete(op.keyed[i].key, op.keyed[i].parent));
  }
  op.slots.reset();
  if (came.empty()) return;
  std::vector<ImmutableBlock> settled = pool.register_blocks(std::move(complete));
  for (size_t k = 0; k < came.size() && !op.forgotten; ++k) {
    if (settled[k].block_id() != slots[k]) continue;  // the key was there
    emit(KvEventType::kMigrated, op.keyed[came[k]].key, slots[k], op.to, op.from);
  }
  if (op.purpose == Purpose::kStage && !loads_.at(op.load)->reported) {
    std::vector<uint32_t> positions;
    std::vector<BlockId> destinations;
    for (const uint32_t i : came) {
      positions.push_back(op.positions[i]);
      destinations.push_back(op.destinations[i]);
    }
    OpenOp& copy = copy_to_engine(op.load, *op.group, std::move(settled), std::move(positions),
                                  std::move(destinations));
    copy.forgotten = op.forgotten;
    return;
  }
  if (op.forgotten) {
    forget_blocks(pool, std::move(settled));
    return;
  }
  // Stored and staged blocks come in prefix order, but what is written to disk in the order of
  // eviction, which is the order that it had better keep.
  if (op.purpose == Purpose::kSave || op.purpose == Purpose::kDrain) {
    renew(*op.group, std::move(settled));
    return;
  }
  pool.release(std::move(settled));
}

/// Lets go of blocks of G3 so that they leave it in the given order, after all that is idle there.
void TierManager::renew(Group& group, std::vector<ImmutableBlock> blocks) {
  // release() drops a full-prefix chain from its end.
  if (group.spec.retention.is_full_prefix()) std::reverse(blocks.begin(), blocks.end());
  group.pools[index(TierId::kG3)]->release(std::move(blocks));
}

void TierManager::end_load_part(OpenOp& op, const std::vector<bool>& arrived) {
  OpenLoad& load = *loads_.at(op.load);
  for (uint32_t i = 0; i < op.num_blocks; ++i) {
    if (!arrived[i]) load.first_failed = std::min(load.first_failed, op.positions[i]);
  }
}

void TierManager::finish_load_if_done(LoadId id) {
  const auto it = loads_.find(id);
  if (it == loads_.end() || !it->second->ops.empty()) return;
  const OpenLoad& load = *it->second;
  if (!load.reported) {
    LoadOutcome outcome{.load = id, .status = {}, .num_blocks = load.num_blocks};
    if (load.first_failed != UINT32_MAX) {
      outcome.num_blocks = load.all_or_nothing ? load.first_block : load.first_failed;
      outcome.status = rank_lost_
                           ? Status(make_error(ErrorCode::kUnavailable, "a rank was lost"))
                           : Status(make_error(ErrorCode::kIo, "some blocks did not arrive"));
    }
    ended_loads_.push_back(std::move(outcome));
  }
  loads_.erase(it);
}

void TierManager::give_up(LoadId load) {
  const auto it = loads_.find(load);
  if (it == loads_.end() || it->second->reported) return;
  it->second->reported = true;
  const std::vector<OpId>& ops = it->second->ops;
  ready_cancels_.insert(ready_cancels_.end(), ops.begin(), ops.end());
}

void TierManager::show_pools() {
  for (TierId tier : kLowerTiers) {
    if (!has_tier(tier)) continue;
    PoolOccupancy occupancy;
    PoolStatistics statistics;
    for (const auto& group : groups_) {
      const BlockPool& pool = *group->pools[index(tier)];
      add_to(occupancy, pool.occupancy());
      add_to(statistics, pool.statistics());
    }
    metrics_.pool(tier).show(occupancy, statistics);
  }
}

void TierManager::tick() {
  if (rank_lost_) drop_idle(metrics_.lost);
  const TimePoint now = clock_.now();
  for (auto& [id, load] : loads_) {
    if (load->reported || now < load->deadline) continue;
    give_up(id);
    metrics_.loads_timed_out.add();
    ended_loads_.push_back(
        {.load = id,
         .status = make_error(ErrorCode::kTimeout, "the load did not end within its deadline"),
         .num_blocks = load->first_block});
  }
}

TimePoint TierManager::next_deadline() const {
  TimePoint next = kNever;
  for (const auto& [id, load] : loads_) {
    if (!load->reported) next = std::min(next, load->deadline);
  }
  return next;
}

std::vector<CopyOp> TierManager::take_ops() { return std::exchange(ready_ops_, {}); }
std::vector<OpId> TierManager::take_cancels() { return std::exchange(ready_cancels_, {}); }
std::vector<LoadOutcome> TierManager::take_loads() { return std::exchange(ended_loads_, {}); }

void TierManager::emit(KvEventType type, const BlockKey& key, BlockId block, TierId tier,
                       TierId from) {
  KvEvent event;
  event.type = type;
  event.block_id = block.value();
  event.worker_id = options_.worker;
  event.timestamp = clock_.wall_time();
  event.key = key;
  event.tier = tier;
  event.from_tier = from;
  events_.publish({&event, 1});
}

/// As many blocks as there are, up to `num_blocks`; what they held is gone from the tier.
Allocation TierManager::allocate(Group& group, TierId tier, size_t num_blocks) {
  PoolMetrics& metrics = metrics_.pool(tier);
  const TimePoint start = clock_.now();
  Allocation room = group.pools[index(tier)]->allocate_up_to(num_blocks);
  metrics.allocation_took(clock_.now() - start);
  metrics.evicted(room.evicted.size());
  emit_deleted(room.evicted, tier);
  return room;
}

void TierManager::emit_deleted(const std::vector<EvictedBlock>& deleted, TierId tier) {
  for (const EvictedBlock& block : deleted) {
    emit(KvEventType::kDeleted, block.key, block.block, tier, tier);
  }
}

}  // namespace kvbm
