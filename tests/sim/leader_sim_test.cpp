// SPDX-License-Identifier: Apache-2.0
// Simulation of the leader alone: a made-up engine and made-up workers, which move the names of
// blocks instead of bytes, do everything in random order, late, partly or not at all. A naive model
// knows what every slot of every rank holds at any moment, and so whether anything that the leader
// promises is true.
#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/random.hpp"
#include "kvbm/events/recording_sink.hpp"
#include "kvbm/tiers/tier_manager.hpp"

#include "tests/support/block_chains.hpp"
#include "tests/support/recording_log_sink.hpp"
#include "tests/support/seed.hpp"

namespace kvbm {
namespace {

using std::chrono::milliseconds;
using testing::test_key;

constexpr uint64_t kBlockBytes = 512;
constexpr uint32_t kMaxPositions = 7;
constexpr uint32_t kNumSequences = 5;

/// What breaks a program: something that must never happen.
struct Violation {
  std::string what;
};

void require(bool holds, const std::string& what) {
  if (!holds) throw Violation{what};
}

/// How often things go wrong in a program.
struct Faults {
  double fails = 0;       ///< an operation, altogether
  double fails_part = 0;  ///< some positions of an operation
  double lies = 0;        ///< reports success with too few bytes
  double corrupts = 0;    ///< a block written to disk cannot be read back
  double expires = 0;     ///< a waiting operation is given up
  double loses_rank = 0;
  double falls_short = 0;  ///< a rank, of host memory
};

struct Shape {
  uint32_t num_ranks = 1;
  std::vector<GroupSpec> groups;
  EngineIds engine_ids = EngineIds::kByGroup;
  uint32_t engine_blocks = 0;
  uint32_t host_blocks = 0;
  uint32_t disk_blocks = 0;
  Duration timeout{0};
  uint32_t max_open_store_blocks = 0;
  PolicyKind policy = PolicyKind::kLineage;

  /// The place whose memory a place is: of one pool, that of the first group.
  [[nodiscard]] Place memory_of(Place place) const {
    if (place.tier == TierId::kG1 && engine_ids == EngineIds::kOfOnePool) {
      place.group = groups.front().id;
    }
    return place;
  }
};

/// One slot of one rank.
struct Cell {
  std::optional<BlockKey> content;  ///< none: nothing that anybody may rely on
  Tag tag;                          ///< as the last write to disk left it
  bool corrupt = false;
  uint32_t readers = 0;
  uint32_t writers = 0;
};

struct EngineBlock {
  GroupId group;
  BlockId block;
  BlockKey key;
};

/// A step of the engine's compute: reads blocks, overwrites others.
struct Step {
  StepId id;
  std::vector<EngineBlock> reads;
  std::vector<EngineBlock> writes;
  std::vector<OpId> fences;
};

/// One rank: what a worker and its device would be.
class Rank {
 public:
  /// Of host memory there will not be more than `usable` blocks of each group, which shows once it
  /// falls short; until then what wants the others waits.
  Rank(RankId id, const Shape& shape, uint32_t usable) : usable_(usable), id_(id), shape_(shape) {
    for (const GroupSpec& group : shape.groups) {
      cells_[{TierId::kG1, group.id}].resize(shape.engine_blocks);
      cells_[{TierId::kG2, group.id}].resize(shape.host_blocks);
      cells_[{TierId::kG3, group.id}].resize(shape.disk_blocks);
    }
  }

  [[nodiscard]] const Cell& cell(Place place, BlockId block) const {
    return cells_.at(shape_.memory_of(place)).at(block.value());
  }
  [[nodiscard]] bool knows(OpId op) const { return ops_.contains(op); }
  [[nodiscard]] bool quiet() const {
    return ops_.empty() && steps_.empty() && results.empty() && shrunk.empty();
  }
  [[nodiscard]] uint32_t usable() const { return usable_; }
  [[nodiscard]] size_t num_open() const { return ops_.size(); }

  void receive(const CopyOp& op) {
    require(ops_.emplace(op.op, Operation{op, false}).second, "an operation was sent twice");
  }
  void receive(const Step& step) { steps_.push_back({step, false}); }

  /// The leader hears of it before it hears of what is cancelled for it.
  void fall_short() {
    if (usable_ == shape_.host_blocks || std::exchange(fell_short_, true)) return;
    for (const GroupSpec& group : shape_.groups) {
      shrunk.push_back({id_, {TierId::kG2, group.id}, usable_});
    }
  }

  /// Gives up an operation that has not started.
  void cancel(OpId op) {
    const auto it = ops_.find(op);
    if (it == ops_.end() || it->second.running) return;
    results.push_back({op, id_, Outcome::kCancelled, 0, {}});
    ops_.erase(it);
  }

  /// Does one thing, if there is one to do: starts or ends a step or an operation.
  bool act(Random& random, const Faults& faults) {
    std::vector<OpId> startable;
    std::vector<OpId> running;
    for (const auto& [id, operation] : ops_) {
      if (operation.running) {
        running.push_back(id);
      } else if (gates_open(operation.op) && (fell_short_ || is_usable(operation.op))) {
        startable.push_back(id);
      }
    }
    const bool step_can_start = !steps_.empty() && !steps_.front().running && fences_ended();
    const bool step_can_end = !steps_.empty() && steps_.front().running;
    const size_t choices = startable.size() + running.size() + (step_can_start || step_can_end);
    if (choices == 0) return false;
    size_t choice = random.uniform(choices);
    if (choice < startable.size()) {
      Operation& operation = ops_.at(startable[choice]);
      if (is_usable(operation.op)) {
        start(operation);
      } else {
        cancel(operation.op.op);
      }
      return true;
    }
    choice -= startable.size();
    if (choice < running.size()) {
      end(running[choice], random, faults);
      return true;
    }
    if (step_can_start) {
      start_step();
    } else {
      end_step();
    }
    return true;
  }

  /// One waiting operation runs out of time.
  void expire_one(Random& random) {
    std::vector<OpId> waiting;
    for (const auto& [id, operation] : ops_) {
      if (!operation.running) waiting.push_back(id);
    }
    if (!waiting.empty()) cancel(waiting[random.uniform(waiting.size())]);
  }

  std::deque<ShrunkPlace> shrunk;  ///< on their way to the leader, before the results
  std::deque<OpResult> results;    ///< on their way to the leader

 private:
  struct Operation {
    CopyOp op;
    bool running;
  };
  struct RunningStep {
    Step step;
    bool running;
  };

  Cell& at(Place place, BlockId block) {
    return cells_.at(shape_.memory_of(place)).at(block.value());
  }

  /// Whether the rank has, or may yet get, all blocks of the operation.
  [[nodiscard]] bool is_usable(const CopyOp& op) const {
    const auto has = [&](Place place, const std::vector<BlockId>& blocks) {
      return place.tier != TierId::kG2 ||
             std::all_of(blocks.begin(), blocks.end(),
                         [&](BlockId block) { return block.value() < usable_; });
    };
    return has(op.src, op.from) && has(op.dst, op.to);
  }
  [[nodiscard]] bool gates_open(const CopyOp& op) const {
    return std::all_of(op.after.begin(), op.after.end(), [&](const Gate& gate) {
      if (gate.kind == Gate::Kind::kOpDone) return !ops_.contains(OpId(gate.id));
      return gate.id <= last_ended_step_;
    });
  }
  [[nodiscard]] bool fences_ended() const {
    const auto& fences = steps_.front().step.fences;
    return std::none_of(fences.begin(), fences.end(), [&](OpId op) { return ops_.contains(op); });
  }

  void begin_read(Cell& cell, const std::string& who) {
    require(cell.writers == 0, who + " reads what is being written");
    ++cell.readers;
  }
  void begin_write(Cell& cell, const std::string& who) {
    require(cell.readers == 0, who + " overwrites what is being read");
    require(cell.writers == 0, who + " overwrites what is being written");
    ++cell.writers;
    cell.content.reset();
  }

  void start(Operation& operation) {
    const CopyOp& op = operation.op;
    const std::string who = "operation " + to_string(op.op);
    require(op.from.size() == op.to.size() && !op.from.empty(), who + " has odd lists");
    const bool on_disk = op.src.tier == TierId::kG3 || op.dst.tier == TierId::kG3;
    require(!on_disk || op.tags.size() == op.from.size(), who + " has not a tag a block");
    for (const BlockId block : op.from) begin_read(at(op.src, block), who);
    for (const BlockId block : op.to) begin_write(at(op.dst, block), who);
    operation.running = true;
  }

  void end(OpId id, Random& random, const Faults& faults) {
    const CopyOp op = std::move(ops_.at(id).op);
    ops_.erase(id);
    const bool fails = random.chance(faults.fails);
    const bool lies = !fails && random.chance(faults.lies);
    OpResult result{id, id_, Outcome::kSucceeded, 0, {}};
    for (uint32_t i = 0; i < op.from.size(); ++i) {
      Cell& src = at(op.src, op.from[i]);
      Cell& dst = at(op.dst, op.to[i]);
      --src.readers;
      --dst.writers;
      bool arrives = !fails && !lies && !random.chance(faults.fails_part);
      if (op.src.tier == TierId::kG3) {
        require(src.tag == op.tags[i], "the leader reads a slot that holds another block");
        if (src.corrupt) arrives = false;
      }
      if (!arrives) {
        result.failed.push_back(i);
        continue;
      }
      dst.content = src.content;
      result.bytes += kBlockBytes;
      if (op.dst.tier == TierId::kG3) {
        dst.tag = op.tags[i];
        dst.corrupt = random.chance(faults.corrupts);
      }
    }
    if (!result.failed.empty()) result.outcome = Outcome::kFailed;
    if (result.failed.size() == op.from.size() && random.chance(0.5)) result.failed.clear();
    if (lies) {
      result.outcome = Outcome::kSucceeded;
      result.failed.clear();
      result.bytes = kBlockBytes * random.uniform(op.from.size());
    }
    results.push_back(std::move(result));
  }

  void start_step() {
    RunningStep& running = steps_.front();
    const std::string who = "step " + to_string(running.step.id);
    for (const EngineBlock& read : running.step.reads) {
      Cell& cell = at({TierId::kG1, read.group}, read.block);
      require(cell.content == read.key, who + " computes with wrong content");
      begin_read(cell, who);
    }
    for (const EngineBlock& write : running.step.writes) {
      begin_write(at({TierId::kG1, write.group}, write.block), who);
    }
    running.running = true;
  }

  void end_step() {
    const Step step = std::move(steps_.front().step);
    steps_.pop_front();
    for (const EngineBlock& read : step.reads) --at({TierId::kG1, read.group}, read.block).readers;
    for (const EngineBlock& write : step.writes) {
      Cell& cell = at({TierId::kG1, write.group}, write.block);
      --cell.writers;
      cell.content = write.key;
    }
    last_ended_step_ = step.id.value();
  }

  const uint32_t usable_;
  bool fell_short_ = false;
  RankId id_;
  const Shape& shape_;
  std::map<Place, std::vector<Cell>> cells_;
  std::map<OpId, Operation> ops_;
  std::deque<RunningStep> steps_;
  uint64_t last_ended_step_ = 0;
};

/// Key of a position of a sequence. Sequence s shares its first s positions with the one before it.
BlockKey key_of(uint32_t sequence, uint32_t position, GroupId group) {
  uint32_t owner = sequence;
  while (owner > 0 && position < owner) --owner;
  return test_key(owner * 100 + position, group);
}

class Simulation {
 public:
  explicit Simulation(uint64_t seed) : random_(seed) {
    shape_.num_ranks = static_cast<uint32_t>(random_.uniform_between(1, 3));
    shape_.groups = {{GroupId(0), Retention::full_prefix()}};
    if (random_.chance(0.5)) {
      shape_.groups.push_back({GroupId(1), Retention::last_window(static_cast<uint32_t>(
                                               random_.uniform_between(1, 3)))});
    }
    if (random_.chance(0.5)) shape_.engine_ids = EngineIds::kOfOnePool;
    shape_.engine_blocks = static_cast<uint32_t>(random_.uniform_between(10, 24));
    if (shape_.engine_ids == EngineIds::kOfOnePool) {
      shape_.engine_blocks *= static_cast<uint32_t>(shape_.groups.size());
    }
    shape_.host_blocks = random_.chance(0.15) ? 0 : pick_size();
    shape_.disk_blocks = random_.chance(0.15) ? 0 : pick_size();
    if (random_.chance(0.5)) shape_.timeout = milliseconds(6);
    shape_.max_open_store_blocks = random_.chance(0.5) ? 0 : 6;
    shape_.policy = static_cast<PolicyKind>(random_.uniform(3));
    if (random_.chance(0.75)) {
      faults_.fails = random_.chance(0.5) ? 0.1 : 0;
      faults_.fails_part = random_.chance(0.5) ? 0.05 : 0;
      faults_.lies = random_.chance(0.3) ? 0.05 : 0;
      faults_.corrupts = random_.chance(0.5) ? 0.1 : 0;
      faults_.expires = random_.chance(0.5) ? 0.3 : 0;
      faults_.loses_rank = random_.chance(0.1) ? 0.01 : 0;
      faults_.falls_short = random_.chance(0.3) && shape_.host_blocks > 1 ? 0.05 : 0;
    }
    TierManagerOptions options;
    options.groups = shape_.groups;
    options.engine_ids = shape_.engine_ids;
    for (const GroupSpec& group : shape_.groups) {
      const auto add = [&](TierId tier, Owner owner, uint32_t num_blocks) {
        if (num_blocks == 0) return;
        options.places.push_back(
            {{tier, group.id}, owner, Spread::kSharded, num_blocks, kBlockBytes});
      };
      add(TierId::kG1, Owner::kEngine, shape_.engine_blocks);
      add(TierId::kG2, Owner::kKvbm, shape_.host_blocks);
      add(TierId::kG3, Owner::kKvbm, shape_.disk_blocks);
    }
    options.num_ranks = shape_.num_ranks;
    options.policy = shape_.policy;
    options.timeout = shape_.timeout;
    options.max_open_store_blocks = shape_.max_open_store_blocks;
    leader_ = std::move(TierManager::create(options, clock_, events_, metrics_, log_).value());
    for (uint16_t rank = 0; rank < shape_.num_ranks; ++rank) {
      uint32_t usable = shape_.host_blocks;
      if (faults_.falls_short > 0 && random_.chance(0.7)) {
        usable = static_cast<uint32_t>(random_.uniform_between(1, shape_.host_blocks));
      }
      ranks_.push_back(std::make_unique<Rank>(RankId(rank), shape_, usable));
    }
    known_host_blocks_ = shape_.host_blocks;
    for (const GroupSpec& group : shape_.groups) {
      auto& blocks = free_[pool_of(group.id)];
      if (!blocks.empty()) continue;
      for (uint32_t block = 0; block < shape_.engine_blocks; ++block) blocks.emplace_back(block);
    }
  }

  void run() {
    for (int action = 0; action < 400; ++action) act();
    for (const auto& rank : ranks_) rank->fall_short();
    settle();
    check_the_end();
    if (!lost_.empty()) return;
    check_that_nothing_leaked();
  }

  [[nodiscard]] uint64_t num_blocks_loaded() const { return blocks_loaded_; }
  [[nodiscard]] uint64_t num_loads_failed() const { return loads_failed_; }
  [[nodiscard]] uint64_t num_loads_timed_out() const { return loads_timed_out_; }
  /// Blocks of host memory that the leader has given up, and that it should have.
  [[nodiscard]] uint64_t num_short() const { return shape_.host_blocks - known_host_blocks_; }
  [[nodiscard]] uint64_t num_saved() const { return route_blocks(TierId::kG2, TierId::kG3).first; }

 private:
  /// What the engine knows of a request: the blocks of each group, from position `first` on.
  struct Request {
    uint32_t sequence = 0;
    uint32_t length = 0;
    uint32_t computed = 0;  // positions that are in the engine, now or before
    std::map<GroupId, std::map<uint32_t, BlockId>> blocks;  // by position; those with content
    std::optional<LoadId> loading;
    // While it loads.
    Match expected;  // emptied of its guards
    std::vector<EngineBlocks> destinations;
  };

  uint32_t pick_size() {
    return static_cast<uint32_t>(random_.chance(0.3) ? random_.uniform_between(1, 4)
                                                     : random_.uniform_between(5, 20));
  }

  std::vector<BlockKey> keys_of(uint32_t sequence, uint32_t length, GroupId group) const {
    std::vector<BlockKey> keys;
    for (uint32_t i = 0; i < length; ++i) keys.push_back(key_of(sequence, i, group));
    return keys;
  }

  // --- the leader, and what is between it and the ranks
  // ---------------------------------------------

  void exchange() {
    for (CopyOp& op : leader_->take_ops()) {
      Totals& route = totals_[{op.src.tier, op.dst.tier}];
      route.blocks += op.from.size();
      for (const Gate& gate : op.after) {
        require(gate.kind != Gate::Kind::kOpDone || OpId(gate.id) < op.op,
                "an operation waits for one that comes later");
      }
      const auto expect_known = [&](Place place, const std::vector<BlockId>& blocks) {
        for (const BlockId block : blocks) {
          require(place.tier != TierId::kG2 || block.value() < known_host_blocks_,
                  "the leader uses host memory that it knows a rank does not have");
        }
      };
      expect_known(op.src, op.from);
      expect_known(op.dst, op.to);
      std::set<BlockId> destinations(op.to.begin(), op.to.end());
      require(destinations.size() == op.to.size(), "an operation writes a block twice");
      open_[op.op] = {op, std::vector<bool>(shape_.num_ranks, false)};
      for (uint16_t rank = 0; rank < shape_.num_ranks; ++rank) {
        if (!lost_.contains(rank)) {
          ranks_[rank]->receive(op);
        } else {
          answered(op.op, rank);
        }
      }
    }
    for (const OpId op : leader_->take_cancels()) {
      for (uint16_t rank = 0; rank < shape_.num_ranks; ++rank) {
        if (!lost_.contains(rank) && random_.chance(0.7)) ranks_[rank]->cancel(op);
      }
    }
    for (const LoadOutcome& outcome : leader_->take_loads()) take_outcome(outcome);
    check_always();
  }

  void answered(OpId op, uint16_t rank) {
    const auto it = open_.find(op);
    require(it != open_.end(), "an operation was answered that is not open");
    it->second.answered[rank] = true;
    const auto& all = it->second.answered;
    if (std::all_of(all.begin(), all.end(), [](bool done) { return done; })) open_.erase(it);
  }

  bool deliver_one(uint16_t rank) {
    if (lost_.contains(rank)) return false;
    if (std::deque<ShrunkPlace>& shrunk = ranks_[rank]->shrunk; !shrunk.empty()) {
      for (const ShrunkPlace& place : std::exchange(shrunk, {})) leader_->on_place_shrunk(place);
      known_host_blocks_ = std::min(known_host_blocks_, ranks_[rank]->usable());
      require(leader_->blocks_per_group(TierId::kG2) == known_host_blocks_,
              "the leader says another size of host memory than the ranks have");
      exchange();
      return true;
    }
    if (ranks_[rank]->results.empty()) return false;
    const OpResult result = std::move(ranks_[rank]->results.front());
    ranks_[rank]->results.pop_front();
    const CopyOp& op = open_.at(result.op).op;
    totals_[{op.src.tier, op.dst.tier}].bytes += result.bytes;
    answered(result.op, rank);
    leader_->on_result(result);
    exchange();
    return true;
  }

  void lose_rank() {
    const auto rank = static_cast<uint16_t>(random_.uniform(shape_.num_ranks));
    if (!lost_.insert(rank).second) return;
    std::vector<OpId> unanswered;
    for (const auto& [id, op] : open_) {
      if (!op.answered[rank]) unanswered.push_back(id);
    }
    for (const OpId op : unanswered) answered(op, rank);
    leader_->on_rank_lost(RankId(rank));
    exchange();
  }

  void check_always() {
    for (const TierId tier : {TierId::kG2, TierId::kG3}) {
      const uint64_t resident = leader_->resident_blocks(tier);
      require(events_.tally().of(tier).resident() == static_cast<int64_t>(resident),
              "the events do not add up to what is resident in " + std::string(to_string(tier)));
    }
    require(leader_->idle() == open_.empty(), "the leader is idle with operations open, or is not");
    size_t in_flight = 0;
    for (const RouteMetrics* route : leader_->metrics().routes()) in_flight += route->num_open();
    require(in_flight == open_.size(), "the number of open operations is off");
    uint64_t being_stored = 0;
    for (const auto& [id, open] : open_) {
      if (open.op.src.tier == TierId::kG1) being_stored += open.op.from.size();
    }
    require(shape_.max_open_store_blocks == 0 || being_stored <= shape_.max_open_store_blocks,
            "more is being stored than may be");
    require(leader_->metrics().open_store_blocks.value() == static_cast<int64_t>(being_stored),
            "the number of blocks that are being stored is off");
  }

  // --- the engine
  // -----------------------------------------------------------------------------------

  void act() {
    switch (random_.uniform(20)) {
      case 0:
      case 1:
        start_request();
        break;
      case 2:
      case 3:
        compute();
        break;
      case 4:
        finish_request();
        break;
      case 5:
        if (random_.chance(0.3)) {
          (void)leader_->drain(static_cast<uint32_t>(random_.uniform_between(1, 4)));
          exchange();
        }
        break;
      case 6:
        clock_.advance(milliseconds(random_.uniform(5)));
        leader_->tick();
        exchange();
        break;
      case 7:
        if (random_.chance(0.5) || pins_.size() > 2) {
          pins_.clear();
        } else {
          pins_.push_back(find(pick_sequence(), kMaxPositions, 0));
        }
        break;
      case 8:
        if (random_.chance(faults_.expires)) pick_rank().expire_one(random_);
        if (random_.chance(faults_.loses_rank)) lose_rank();
        if (random_.chance(faults_.falls_short)) pick_rank().fall_short();
        break;
      case 9:
      case 10:
      case 11:
      case 12:
      case 13:
        (void)deliver_one(static_cast<uint16_t>(random_.uniform(shape_.num_ranks)));
        break;
      default:
        (void)pick_rank().act(random_, faults_);
    }
  }

  uint32_t pick_sequence() { return static_cast<uint32_t>(random_.uniform(kNumSequences)); }
  Rank& pick_rank() { return *ranks_[random_.uniform(ranks_.size())]; }

  /// Asks the leader, and checks that every block that it names is where it says, on every rank.
  Match find(uint32_t sequence, uint32_t length, uint32_t computed) {
    std::vector<std::vector<BlockKey>> keys;
    std::vector<GroupKeys> asked;
    for (const GroupSpec& group : shape_.groups) {
      keys.push_back(keys_of(sequence, length, group.id));
    }
    for (size_t i = 0; i < keys.size(); ++i) asked.push_back({shape_.groups[i].id, keys[i]});
    Match match = leader_->find(asked, computed);
    require(match.first_block == computed, "a match begins elsewhere");
    require(match.num_blocks >= computed && match.num_blocks <= length,
            "a match has an odd length");
    require(match.empty() || match.groups.size() == shape_.groups.size(), "a match lacks a group");
    for (size_t i = 0; i < match.groups.size(); ++i) {
      const MatchedGroup& part = match.groups[i];
      const uint32_t first =
          std::max(computed, shape_.groups[i].retention.first_needed(match.num_blocks));
      require(part.first == first && part.first + part.blocks.size() == match.num_blocks,
              "a match has other positions than its group needs");
      for (uint32_t k = 0; k < part.blocks.size(); ++k) {
        const BlockKey& key = keys[i][first + k];
        require(part.blocks[k].key() == key, "a match has another key");
        check_stored({part.blocks[k].tier(), part.group}, part.blocks[k].block_id(), key);
      }
    }
    return match;
  }

  void check_stored(Place place, BlockId block, const BlockKey& key) const {
    for (uint16_t rank = 0; rank < shape_.num_ranks; ++rank) {
      if (lost_.contains(rank)) continue;
      const Cell& cell = ranks_[rank]->cell(place, block);
      require(cell.content == key && cell.writers == 0,
              "a block can be found that rank " + std::to_string(rank) + " does not have");
    }
  }

  std::optional<std::vector<BlockId>> take_free(GroupId group, size_t count) {
    std::vector<BlockId>& blocks = free_.at(pool_of(group));
    if (blocks.size() < count) return std::nullopt;
    random_.shuffle(std::span(blocks));
    std::vector<BlockId> taken(blocks.end() - static_cast<std::ptrdiff_t>(count), blocks.end());
    blocks.resize(blocks.size() - count);
    return taken;
  }
  void give_back(GroupId group, BlockId block) { free_.at(pool_of(group)).push_back(block); }
  [[nodiscard]] GroupId pool_of(GroupId group) const {
    return shape_.memory_of({TierId::kG1, group}).group;
  }

  void start_request() {
    if (requests_.size() >= 4) return;
    Request request;
    request.sequence = pick_sequence();
    request.length = static_cast<uint32_t>(random_.uniform_between(1, kMaxPositions));
    // The engine says that it has some of the blocks already; nothing of them is of interest here.
    request.computed =
        random_.chance(0.3) ? static_cast<uint32_t>(random_.uniform(request.length)) : 0;
    Match match = find(request.sequence, request.length, request.computed);
    std::vector<EngineBlocks> destinations;
    for (const MatchedGroup& part : match.groups) {
      auto blocks = take_free(part.group, part.blocks.size());
      if (!blocks) {
        for (const EngineBlocks& taken : destinations) {
          for (const BlockId block : taken.ids) give_back(taken.group, block);
        }
        return;
      }
      destinations.push_back({part.group, part.first, *std::move(blocks)});
    }
    request.expected.first_block = match.first_block;
    request.expected.num_blocks = match.num_blocks;
    Result<LoadId> load =
        leader_->load(std::move(match), destinations, Gate::step_end(StepId(num_steps_)));
    if (!load) {
      require(!lost_.empty() && load.error().code() == ErrorCode::kUnavailable,
              "a load was refused: " + load.error().describe());
      return;
    }
    request.destinations = std::move(destinations);
    request.loading = *load;
    requests_.push_back(std::move(request));
    ++loads_started_;
    exchange();
  }

  void take_outcome(const LoadOutcome& outcome) {
    const auto it = std::find_if(requests_.begin(), requests_.end(), [&](const Request& request) {
      return request.loading == outcome.load;
    });
    require(it != requests_.end(), "a load ended that is not open, or ended twice");
    Request& request = *it;
    request.loading.reset();
    ++loads_ended_;
    const uint32_t expected = request.expected.num_blocks;
    if (outcome.status) {
      require(outcome.num_blocks == expected, "a load succeeded with another length");
    } else {
      require(outcome.num_blocks >= request.expected.first_block && outcome.num_blocks < expected,
              "a load failed with an odd length");
      (outcome.status.error().code() == ErrorCode::kTimeout ? loads_timed_out_ : loads_failed_)++;
    }
    request.computed = outcome.num_blocks;
    for (size_t i = 0; i < request.destinations.size(); ++i) {
      const uint32_t needed = shape_.groups[i].retention.first_needed(outcome.num_blocks);
      require(outcome.num_blocks == request.expected.first_block ||
                  std::max(needed, request.expected.first_block) >= request.destinations[i].first,
              "a load ended where a group cannot go on");
    }
    for (const EngineBlocks& part : request.destinations) {
      for (uint32_t k = 0; k < part.ids.size(); ++k) {
        const uint32_t position = part.first + k;
        if (position >= outcome.num_blocks) {
          give_back(part.group, part.ids[k]);
          continue;
        }
        check_stored({TierId::kG1, part.group}, part.ids[k],
                     key_of(request.sequence, position, part.group));
        require(leader_->touching(part.group, {&part.ids[k], 1}).empty(),
                "a block was loaded and is still touched");
        request.blocks[part.group][position] = part.ids[k];
        ++blocks_loaded_;
      }
    }
    request.destinations.clear();
  }

  std::vector<OpId> touched(const EngineBlocks& blocks) const {
    return leader_->touching(blocks.group, blocks.ids);
  }

  /// One step of the engine for a request: what is missing is computed and stored.
  void compute() {
    std::vector<Request*> ready;
    for (Request& request : requests_) {
      if (!request.loading) ready.push_back(&request);
    }
    if (ready.empty()) return;
    Request& request = *ready[random_.uniform(ready.size())];
    Step step;
    step.id = StepId(num_steps_ + 1);
    std::vector<EngineBlocks> written;
    for (const GroupSpec& group : shape_.groups) {
      for (const auto& [position, block] : request.blocks[group.id]) {
        step.reads.push_back({group.id, block, key_of(request.sequence, position, group.id)});
      }
      auto blocks = take_free(group.id, request.length - request.computed);
      if (!blocks) {
        for (const EngineBlocks& taken : written) {
          for (const BlockId block : taken.ids) give_back(taken.group, block);
        }
        return;
      }
      written.push_back({group.id, request.computed, *std::move(blocks)});
      for (uint32_t k = 0; k < written.back().ids.size(); ++k) {
        step.writes.push_back({group.id, written.back().ids[k],
                               key_of(request.sequence, request.computed + k, group.id)});
      }
      const std::vector<OpId> open = touched(written.back());
      step.fences.insert(step.fences.end(), open.begin(), open.end());
      check_touching(written.back(), open);
    }
    ++num_steps_;
    for (uint16_t rank = 0; rank < shape_.num_ranks; ++rank) {
      if (!lost_.contains(rank)) ranks_[rank]->receive(step);
    }
    for (const EngineBlocks& part : written) {
      for (uint32_t k = 0; k < part.ids.size(); ++k) {
        request.blocks[part.group][part.first + k] = part.ids[k];
      }
    }
    request.computed = request.length;
    store(request, Gate::step_end(step.id));
    exchange();
  }

  /// What the leader says is open on blocks is what is.
  void check_touching(const EngineBlocks& blocks, const std::vector<OpId>& open) const {
    std::vector<OpId> expected;
    const Place engine = shape_.memory_of({TierId::kG1, blocks.group});
    for (const auto& [id, known] : open_) {
      const auto names = [&](const Place& place, const std::vector<BlockId>& ids) {
        return shape_.memory_of(place) == engine &&
               std::any_of(ids.begin(), ids.end(), [&](BlockId block) {
                 return std::find(blocks.ids.begin(), blocks.ids.end(), block) != blocks.ids.end();
               });
      };
      if (names(known.op.src, known.op.from) || names(known.op.dst, known.op.to)) {
        expected.push_back(id);
      }
    }
    require(open == expected, "touching() forgets an operation, or names too many");
  }

  void store(const Request& request, Gate written) {
    for (const GroupSpec& group : shape_.groups) {
      const auto found = request.blocks.find(group.id);
      if (found == request.blocks.end() || found->second.empty()) continue;
      // Runs of consecutive positions.
      std::vector<BlockKey> keys;
      std::vector<BlockId> blocks;
      uint32_t first = found->second.begin()->first;
      const auto flush = [&] {
        if (keys.empty()) return;
        const StoreReceipt receipt = leader_->store(
            {.group = group.id,
             .keys = keys,
             .parent = first > 0 ? std::optional(key_of(request.sequence, first - 1, group.id))
                                 : std::nullopt,
             .blocks = blocks,
             .written = written});
        require(receipt.accepted + receipt.present + receipt.dropped == keys.size(),
                "a receipt does not add up");
        accepted_ += receipt.accepted;
        keys.clear();
        blocks.clear();
      };
      uint32_t next = first;
      for (const auto& [position, block] : found->second) {
        if (position != next) {
          flush();
          first = position;
        }
        keys.push_back(key_of(request.sequence, position, group.id));
        blocks.push_back(block);
        next = position + 1;
      }
      flush();
    }
  }

  void finish_request() {
    if (requests_.empty()) return;
    const auto it =
        requests_.begin() + static_cast<std::ptrdiff_t>(random_.uniform(requests_.size()));
    if (it->loading) return;
    for (const auto& [group, blocks] : it->blocks) {
      for (const auto& [position, block] : blocks) give_back(group, block);
    }
    requests_.erase(it);
  }

  // --- the end
  // --------------------------------------------------------------------------------------

  /// Lets everything come to its end.
  void settle() {
    pins_.clear();
    for (int round = 0; round < 100'000; ++round) {
      bool quiet = true;
      for (uint16_t rank = 0; rank < shape_.num_ranks; ++rank) {
        if (lost_.contains(rank)) continue;
        const bool acted = ranks_[rank]->act(random_, faults_);
        require(acted || ranks_[rank]->num_open() == 0,
                "a rank has operations that can never start");
        const bool delivered = deliver_one(rank);
        if (acted || delivered || !ranks_[rank]->quiet()) quiet = false;
      }
      if (quiet) return;
    }
    require(false, "it never ends");
  }
  void check_the_end() {
    leader_->tick();
    exchange();
    require(leader_->idle(), "operations are open at the end");
    require(open_.empty(), "operations were not answered");
    require(loads_started_ == loads_ended_, "a load has no outcome");
    require(leader_->next_deadline() == kNever, "a load is open at the end");
    for (const std::string& warning : log_.messages(LogLevel::kWarning)) {
      require(warning.find(" goes on with ") != std::string::npos,
              "the leader did not know an operation");
    }
    for (const GroupSpec& group : shape_.groups) {
      for (uint32_t block = 0; block < shape_.engine_blocks; ++block) {
        const BlockId id(block);
        require(leader_->touching(group.id, {&id, 1}).empty(), "an engine block is still touched");
      }
    }
    if (!lost_.empty()) {
      require(leader_->resident_blocks(TierId::kG2) + leader_->resident_blocks(TierId::kG3) == 0,
              "blocks are left of a lost rank");
    }
    for (const auto& [route, total] : totals_) {
      const auto [blocks, failed] = route_blocks(route.first, route.second);
      require(blocks + failed == total.blocks, "a route has lost blocks from its counters");
      if (lost_.empty()) {
        require(route_bytes(route.first, route.second) == total.bytes, "a route has odd bytes");
      }
      if (route.first == TierId::kG1) {
        require(total.blocks == accepted_, "stores were accepted and never started");
      }
    }
  }

  [[nodiscard]] std::pair<uint64_t, uint64_t> route_blocks(TierId from, TierId to) const {
    for (const RouteMetrics* route : leader_->metrics().routes()) {
      if (route->from() == from && route->to() == to) {
        return {route->blocks(), route->failed_blocks()};
      }
    }
    return {0, 0};
  }
  [[nodiscard]] uint64_t route_bytes(TierId from, TierId to) const {
    for (const RouteMetrics* route : leader_->metrics().routes()) {
      if (route->from() == from && route->to() == to) return route->bytes();
    }
    return 0;
  }

  /// Fills every tier with new blocks: a slot that is still held by something would be missing.
  void check_that_nothing_leaked() {
    faults_ = {};
    uint32_t fresh = 1'000'000;
    const uint32_t nearest = shape_.host_blocks > 0 ? known_host_blocks_ : shape_.disk_blocks;
    if (nearest == 0) return;
    const uint32_t deepest = shape_.disk_blocks;
    for (const GroupSpec& group : shape_.groups) {
      for (uint32_t stored = 0; stored <= nearest + deepest; ++stored) {
        const BlockKey key = test_key(fresh++, group.id);
        const BlockId block(0);
        const StoreReceipt receipt = leader_->store({.group = group.id,
                                                     .keys = {&key, 1},
                                                     .parent = std::nullopt,
                                                     .blocks = {&block, 1},
                                                     .written = Gate::step_end(StepId(0))});
        require(receipt.accepted == 1, "there is no room at the end");
        exchange();
        settle();
      }
    }
    const auto num_groups = static_cast<uint32_t>(shape_.groups.size());
    require(leader_->resident_blocks(TierId::kG2) == known_host_blocks_ * num_groups,
            "a slot of host memory was lost");
    require(leader_->resident_blocks(TierId::kG3) == shape_.disk_blocks * num_groups,
            "a slot of the disk was lost");
  }

  struct OpenOp {
    CopyOp op;
    std::vector<bool> answered;
  };
  struct Totals {
    uint64_t blocks = 0;
    uint64_t bytes = 0;
  };

  Random random_;
  Shape shape_;
  Faults faults_;
  ManualClock clock_;
  RecordingSink events_{1};
  MetricsRegistry metrics_;
  testing::RecordingLogSink log_{LogLevel::kWarning};
  std::unique_ptr<TierManager> leader_;
  std::vector<std::unique_ptr<Rank>> ranks_;
  std::set<uint16_t> lost_;
  uint32_t known_host_blocks_ = 0;  // of each group, as the leader has been told

  std::map<OpId, OpenOp> open_;
  std::map<std::pair<TierId, TierId>, Totals> totals_;
  std::map<GroupId, std::vector<BlockId>> free_;
  std::vector<Request> requests_;
  std::vector<Match> pins_;
  uint64_t num_steps_ = 0;
  uint64_t accepted_ = 0;
  uint64_t loads_started_ = 0;
  uint64_t loads_ended_ = 0;
  uint64_t loads_failed_ = 0;
  uint64_t loads_timed_out_ = 0;
  uint64_t blocks_loaded_ = 0;
};

TEST(LeaderSimulation, KeepsItsPromisesWhateverTheWorkersDo) {
  constexpr uint64_t kPrograms = 2500;
  const uint64_t seed = testing::test_seed();
  uint64_t blocks_loaded = 0;
  uint64_t loads_failed = 0;
  uint64_t loads_timed_out = 0;
  uint64_t saved = 0;
  uint64_t num_short = 0;
  for (uint64_t program = 0; program < kPrograms; ++program) {
    uint64_t state = seed + program;
    Simulation simulation(splitmix64(state));
    try {
      simulation.run();
    } catch (const Violation& violation) {
      FAIL() << violation.what << " (run it alone: KVBM_SEED=" << seed + program << ")";
    }
    blocks_loaded += simulation.num_blocks_loaded();
    loads_failed += simulation.num_loads_failed();
    loads_timed_out += simulation.num_loads_timed_out();
    saved += simulation.num_saved();
    num_short += simulation.num_short();
  }
  std::printf(
      "%llu blocks loaded, %llu loads failed, %llu timed out, %llu blocks written back\n",
      static_cast<unsigned long long>(blocks_loaded), static_cast<unsigned long long>(loads_failed),
      static_cast<unsigned long long>(loads_timed_out), static_cast<unsigned long long>(saved));
  // The programs reach what they are for.
  EXPECT_GT(blocks_loaded, kPrograms);
  EXPECT_GT(loads_failed, kPrograms / 100);
  EXPECT_GT(loads_timed_out, kPrograms / 100);
  EXPECT_GT(saved, kPrograms);
  EXPECT_GT(num_short, kPrograms / 2);
}

}  // namespace
}  // namespace kvbm
