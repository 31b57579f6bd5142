// SPDX-License-Identifier: Apache-2.0
// TierManager: the leader. Decides which blocks go from which place to which, in what order.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/ids.hpp"
#include "kvbm/base/log.hpp"
#include "kvbm/base/metrics.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/blocks/block_registry.hpp"
#include "kvbm/events/event_sink.hpp"
#include "kvbm/protocol/messages.hpp"
#include "kvbm/tiers/match.hpp"
#include "kvbm/tiers/tier_metrics.hpp"

namespace kvbm {

namespace internal {
struct LoadIdTag : IdTag {};
class FrequencySketch;
}  // namespace internal
using LoadId = StrongId<internal::LoadIdTag, uint64_t>;  ///< one load of a leader

/// GPU blocks of one layer group, named by the engine that owns them: ids[i] holds position first +
/// i.
struct EngineBlocks {
  GroupId group;
  uint32_t first = 0;
  std::vector<BlockId> ids;
};

/// Blocks that the engine has written, or will have when `written` opens.
struct StoreRequest {
  GroupId group;
  std::span<const BlockKey> keys;   ///< of consecutive positions
  std::optional<BlockKey> parent;   ///< of keys.front(), if it has one
  std::span<const BlockId> blocks;  ///< one engine block a key
  Gate written;
};

/// What became of a StoreRequest: the three add up to its size.
struct StoreReceipt {
  uint32_t accepted = 0;
  uint32_t present = 0;  ///< already stored, or being stored
  uint32_t dropped = 0;  ///< no room, or too much under way
};

/// The end of a load. Positions below `num_blocks` are in the destinations; those above are not,
/// and are the engine's to compute.
struct LoadOutcome {
  LoadId load;
  Status status;  ///< kTimeout: copies may still write the destinations, see touching()
  uint32_t num_blocks = 0;
};

/// What a block id of the engine means.
enum class EngineIds : uint8_t {
  kByGroup,   ///< each layer group has blocks of its own
  kOfOnePool  ///< a block is the same memory in all groups, and belongs to one of them at a time
};

struct TierManagerOptions {
  std::vector<GroupSpec> groups;
  /// G1 of every group (owner kEngine), and G2 and G3 of all groups or of none.
  std::vector<PlaceSpec> places;
  uint32_t num_ranks = 1;
  PolicyKind policy = PolicyKind::kLineage;
  Duration timeout{0};  ///< of a load, and of an operation that waits to start; 0: none
  /// How many blocks stores under way may read at a time, over all groups; above it they are
  /// dropped. 0: as many as the nearest tier holds.
  uint32_t max_open_store_blocks = 0;
  /// Spares the disk: G2 writes down only what was stored or loaded twice, as far back as ten times
  /// the blocks of both tiers. What was seen once and evicted is computed again at most once more.
  bool disk_filter = false;
  WorkerId worker{0};  ///< named in events
  EngineIds engine_ids = EngineIds::kByGroup;
};

/// The leader's state machine over the tiers below the engine: writes through from G1 to the
/// nearest tier, writes dirty blocks down when G2 evicts them, keeps the disk copy when a block is
/// promoted, and loads what matches. It sees no byte, starts no thread and does no I/O: calls and
/// results go in, operations come out of take_ops(). A block becomes findable only when every rank
/// has confirmed it, and no block is reused while an operation may still touch it.
///
/// Ownership: borrows clock, events, metrics and log, which outlive it. Open operations own the
/// guards of the blocks they touch. Threads: owner thread only.
class TierManager {
 public:
  /// Errors: kInvalidArgument (a group without G1, a tier for some groups only, zero sizes, a place
  /// of no group, different bytes in the tiers of a group, groups of one pool with different
  /// numbers of engine blocks), kUnsupported (G4).
  [[nodiscard]] static Result<std::unique_ptr<TierManager>> create(TierManagerOptions options,
                                                                   const Clock& clock,
                                                                   EventSink& events,
                                                                   MetricsRegistry& metrics,
                                                                   LogSink& log);
  ~TierManager();
  TierManager(const TierManager&) = delete;
  TierManager& operator=(const TierManager&) = delete;

  /// The longest restorable prefix of the sequence, of which the engine has `computed_blocks`
  /// already. May be asked again. Renews the recency of everything it finds. Contract: one entry a
  /// group, all of the same length.
  [[nodiscard]] Match find(std::span<const GroupKeys> keys, uint32_t computed_blocks);

  /// Starts to copy the match into the engine's blocks, which the engine's compute is done with
  /// when `free` opens. The copies also wait for operations that still read the destinations. Ends
  /// in one LoadOutcome. Contract: `destinations` has one entry for each entry of match.groups, in
  /// order, same positions. Errors: kUnavailable if a rank is lost.
  [[nodiscard]] Result<LoadId> load(Match&& match, std::span<const EngineBlocks> destinations,
                                    Gate free);

  /// Starts to copy new blocks to the nearest tier, first positions first.
  /// Contract: one block a key.
  StoreReceipt store(const StoreRequest& request);

  /// The open operations that read or write these engine blocks: what the engine fences before it
  /// overwrites them. Sorted, each once. Where ids are of one pool, the operations of all groups.
  [[nodiscard]] std::vector<OpId> touching(GroupId group, std::span<const BlockId> blocks) const;

  /// The answer of one rank. Unknown operations and second answers are ignored with a warning.
  void on_result(const OpResult& result);
  /// A rank has fewer blocks in a place than it was to: no rank uses the others any more, as a
  /// block has a shard on each. What is stored in those that are left stays. Of several ranks the
  /// one with the fewest counts. A place that is unknown is ignored with a warning.
  void on_place_shrunk(const ShrunkPlace& shrunk);
  /// A rank is gone, and with it its shard of every block: all stored blocks are dropped, open
  /// operations fail, and nothing is stored or found from now on.
  void on_rank_lost(RankId rank);
  /// Forgets all stored blocks, in every tier. Those that nothing pins are gone at once and their
  /// slots are free. Those that an open operation reads or fills go when it has ended; until then
  /// they can still be found, so who must not find them asks with other keys from now on. The
  /// events say of all of them now that they are gone, and nothing later. A match that nobody has
  /// loaded keeps what it pins: drop matches first. Returns how many are gone now.
  uint64_t forget();
  /// Forgets about the outcome of a load: what has not started is cancelled, and what it staged is
  /// not copied on. Until touching() is empty its destinations are not free.
  void give_up(LoadId load);
  /// Applies deadlines that have passed.
  void tick();
  /// When tick() has something to do next; kNever if no load is open or none has a deadline.
  [[nodiscard]] TimePoint next_deadline() const;

  /// Moves out what the workers have to do, in order; every rank gets the same.
  [[nodiscard]] std::vector<CopyOp> take_ops();
  [[nodiscard]] std::vector<OpId> take_cancels();
  [[nodiscard]] std::vector<LoadOutcome> take_loads();

  /// Starts to write down at most `max_blocks` idle blocks of G2 that G3 lacks, the next to be
  /// evicted first; returns how many. A drain is all calls up to the one that returns zero: nothing
  /// is left, or nothing has room. It is about the blocks that were idle when it came to their
  /// group, and of these about as many as G3 holds, those that G2 would evict last; it writes each
  /// once at most.
  uint32_t drain(uint32_t max_blocks);

  /// Brings the series of the pools up to date.
  void show_pools();

  /// Whether no operation is open.
  [[nodiscard]] bool idle() const noexcept { return ops_.empty(); }
  /// Stored blocks of a tier that can be found, over all groups.
  [[nodiscard]] uint64_t resident_blocks(TierId tier) const;
  /// That each layer group has in a tier below the engine; where it shrank, the fewest that one
  /// has.
  [[nodiscard]] uint32_t blocks_per_group(TierId tier) const;
  [[nodiscard]] const TierMetrics& metrics() const noexcept { return metrics_; }
  [[nodiscard]] bool has_tier(TierId tier) const noexcept;
  [[nodiscard]] EngineIds engine_ids() const noexcept { return options_.engine_ids; }

 private:
  struct Group;
  struct OpenOp;
  struct OpenLoad;
  enum class Purpose : uint8_t;
  struct KeyedBlock;

  TierManager(TierManagerOptions options, const Clock& clock, EventSink& events,
              MetricsRegistry& metrics, LogSink& log);
  Status set_up();
  Status check_place(const PlaceSpec& place) const;

  Group& group_of(GroupId id);
  const Group& group_of(GroupId id) const;
  OpenOp& open(Purpose purpose, Group& group, TierId from, TierId to);
  void issue(OpenOp& op, std::vector<BlockId> from, std::vector<BlockId> to,
             std::vector<Gate> after);
  void finish(OpenOp& op);
  [[nodiscard]] std::vector<bool> are_present(const Group& group, std::span<const BlockKey> keys,
                                              TierId tier) const;
  void settle_destination(OpenOp& op, const std::vector<bool>& arrived);
  void renew(Group& group, std::vector<ImmutableBlock> blocks);
  void release_sources(OpenOp& op);
  void end_load_part(OpenOp& op, const std::vector<bool>& arrived);
  OpenOp& copy_to_engine(LoadId load, Group& group, std::vector<ImmutableBlock> blocks,
                         std::vector<uint32_t> positions, std::vector<BlockId> destinations);
  void stage(LoadId load, Group& group, std::vector<ImmutableBlock> blocks,
             std::vector<KeyedBlock> keyed, std::vector<uint32_t> positions,
             std::vector<BlockId> destinations);
  std::optional<OpId> save_evicted(Group& group, TierId tier,
                                   const std::vector<EvictedBlock>& evicted,
                                   const std::shared_ptr<std::vector<MutableBlock>>& slots,
                                   Priority priority);
  void finish_load_if_done(LoadId id);
  void note_seen(const BlockKey& key);
  [[nodiscard]] bool is_worth_disk(const BlockKey& key) const;
  void list_for_drain(Group& group);
  uint32_t drain_group(Group& group, uint32_t max_blocks);
  void emit(KvEventType type, const BlockKey& key, BlockId block, TierId tier, TierId from);
  Allocation allocate(Group& group, TierId tier, size_t num_blocks);
  void emit_deleted(const std::vector<EvictedBlock>& deleted, TierId tier);
  uint64_t drop_idle(const std::array<Counter*, kNumTiers>& counters);
  void tell_pinned_as_deleted();
  [[nodiscard]] bool is_forgotten(const BlockPool& pool, BlockId block) const;
  void forget_blocks(BlockPool& pool, std::vector<ImmutableBlock> blocks);
  void count_lost_stores();
  void add_open_stores(int64_t num_blocks);

  TierManagerOptions options_;
  const Clock& clock_;
  EventSink& events_;
  LogSink& log_;
  TierMetrics metrics_;

  std::optional<BlockRegistry> registry_;
  std::vector<std::unique_ptr<Group>> groups_;
  std::optional<TierId> nearest_;  ///< the tier that stores go to; none: nothing below the engine
  std::unique_ptr<internal::FrequencySketch> seen_;  ///< of the disk filter; none: no filter
  uint32_t max_open_store_blocks_ = 0;
  uint32_t open_store_blocks_ = 0;
  bool rank_lost_ = false;

  std::unordered_map<OpId, std::unique_ptr<OpenOp>> ops_;
  std::map<LoadId, std::unique_ptr<OpenLoad>> loads_;  // in order, so that deadlines pass in order
  uint64_t next_op_ = 1;
  uint64_t next_load_ = 1;
  std::vector<CopyOp> ready_ops_;
  std::vector<OpId> ready_cancels_;
  std::vector<LoadOutcome> ended_loads_;
};

}  // namespace kvbm
