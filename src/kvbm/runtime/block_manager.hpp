// SPDX-License-Identifier: Apache-2.0
// BlockManager: the face of kvbm: one leader and its workers behind a few calls.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kvbm/base/completion.hpp"
#include "kvbm/base/executor.hpp"
#include "kvbm/base/log.hpp"
#include "kvbm/base/metrics.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/base/unique_function.hpp"
#include "kvbm/blocks/block.hpp"
#include "kvbm/blocks/block_key.hpp"
#include "kvbm/blocks/block_pool.hpp"
#include "kvbm/blocks/block_registry.hpp"
#include "kvbm/cluster/channel.hpp"
#include "kvbm/events/event_sink.hpp"
#include "kvbm/layout/layout_config.hpp"
#include "kvbm/protocol/messages.hpp"
#include "kvbm/runtime/devices.hpp"
#include "kvbm/runtime/kv_block_manager_config.hpp"
#include "kvbm/runtime/kv_pattern.hpp"
#include "kvbm/tiers/match.hpp"
#include "kvbm/tiers/tier_metrics.hpp"
#include "kvbm/tokens/token_block_sequence.hpp"

namespace kvbm {

class PhysicalLayout;

/// The keys of one sequence for every layer group: position i of group g is groups[g][i].
struct SequenceKeys {
  std::vector<std::vector<BlockKey>> groups;

  [[nodiscard]] uint32_t num_blocks() const noexcept {
    return groups.empty() ? 0 : static_cast<uint32_t>(groups.front().size());
  }
};

/// What a sequence has in all tiers, pinned until it is dropped or onboarded.
/// Positions [0, num_gpu_blocks()) are in G1; [num_gpu_blocks(), num_blocks()) are below and can be
/// onboarded. A last-window group holds only what its window reaches.
/// Ownership: move-only. Threads: one thread at a time.
class PrefixHit {
 public:
  [[nodiscard]] uint32_t num_blocks() const noexcept { return below_.num_blocks; }
  [[nodiscard]] uint32_t num_gpu_blocks() const noexcept { return below_.first_block; }
  /// The slowest tier that position `block` is restored from, over all groups.
  /// Contract: block < num_blocks().
  [[nodiscard]] TierId tier(uint32_t block) const;
  /// How many GPU blocks of a group onboarding needs. Contract: `group` is an index of the
  /// configuration.
  [[nodiscard]] size_t num_destinations(size_t group) const;
  /// Forgets what is below G1, where there is no room to onboard it.
  void keep_gpu_part();

 private:
  friend class BlockManager;
  PrefixHit() = default;

  std::vector<GroupMatch> gpu_;
  Match below_;
};

/// One layer group's blocks of a sequence in G1: blocks[i] holds position first + i.
struct GpuBlocks {
  uint32_t first = 0;
  std::vector<ImmutableBlock> blocks;
};

/// Positions [0, num_blocks) are in G1 and pinned. `status` says why that is less than the hit, if
/// it is; the rest is the engine's to compute.
struct Onboarded {
  uint32_t num_blocks = 0;
  std::vector<GpuBlocks> groups;
  Status status;
};

namespace internal {
struct OnboardingIdTag : IdTag {};
}  // namespace internal
/// Names copies that begin_onboard() has begun.
using OnboardingId = StrongId<internal::OnboardingIdTag, uint64_t>;

/// The bytes of the blocks named in a launch, on one rank. Valid while the task runs.
class KvView {
 public:
  /// The part of layer `layer` (within the group) and `outer` (0: keys, 1: values) of
  /// writes[index]. Shape: [page_size, num_heads, head_dim] elements of one rank. Contract: all in
  /// range.
  [[nodiscard]] std::span<std::byte> writable(size_t index, LayerId layer, uint32_t outer) const;
  /// The same of reads[index].
  [[nodiscard]] std::span<const std::byte> readable(size_t index, LayerId layer,
                                                    uint32_t outer) const;
  [[nodiscard]] RankId rank() const noexcept { return rank_; }

 private:
  friend class BlockManager;
  struct Slot {
    uint32_t group;
    BlockId block;
  };
  KvView() = default;

  RankId rank_;
  const PhysicalLayout* layouts_ = nullptr;  // by group
  std::shared_ptr<const std::vector<Slot>> writes_;
  std::shared_ptr<const std::vector<Slot>> reads_;
};

/// What plays the engine's kernel. Runs once a rank, on the rank's compute stream.
using KvTask = std::function<Status(const KvView&)>;

/// What a program or a test may give a BlockManager instead of what it makes by itself.
/// Ownership: borrowed; everything outlives the manager.
struct BlockManagerParts {
  Executor* executor = nullptr;
  EventSink* events = nullptr;
  MetricsRegistry* metrics = nullptr;
  /// Records are dropped by the sink's own level, not by log_level. Null: standard error, from
  /// log_level on.
  LogSink* log = nullptr;
  /// Logical workers move no bytes and answer at once.
  enum class Workers : uint8_t { kReal, kLogical } workers = Workers::kReal;
  /// Instead of the devices that the configuration names, for one rank after the other (whose
  /// number is `host_ordinal`); null: open_device().
  DeviceOpener open_device = nullptr;
  /// Wraps the channel between leader and workers.
  std::function<std::unique_ptr<Channel>(std::unique_ptr<Channel>)> wrap_channel = nullptr;
  /// Sees every step plan on its way to the workers, and may change it.
  std::function<void(StepPlan&)> on_step_plan = nullptr;
};

/// Finds, keeps and restores the KV blocks of an engine over GPU, host and disk.
///
/// An engine asks match() for a prefix, gives GPU blocks from allocate_blocks() to onboard(), fills
/// the blocks that are missing, completes them with their keys and hands them to register_blocks();
/// what is registered can be matched, and is copied down in the background. Dropping a guard lets
/// the block go. Writes are fenced: a block that a running copy still reads is not overwritten
/// before the copy ended.
///
/// Ownership: guards may outlive the manager. Errors: a guard of another manager or an index out of
/// range is a ContractViolation.
/// Threads: one thread at a time, apart from dropping guards.
class BlockManager {
 public:
  /// Reserves and maps all memory and files. Errors: kInvalidArgument (see
  /// KvBlockManagerConfig::validate; a device without memory to take a share of, and no
  /// num_blocks), kExhausted, kIo and kNotFound (the offload directory), those of open_device().
  [[nodiscard]] static Result<std::unique_ptr<BlockManager>> create(
      const KvBlockManagerConfig& config, BlockManagerParts parts = {});
  /// Stops without draining, if stop() was not called.
  ~BlockManager();
  BlockManager(const BlockManager&) = delete;
  BlockManager& operator=(const BlockManager&) = delete;

  /// The keys of the full blocks of a token sequence, whose block size is the configuration's.
  [[nodiscard]] SequenceKeys keys(const TokenBlockSequence& tokens) const;
  /// The keys of a sequence whose blocks the engine identifies itself.
  [[nodiscard]] SequenceKeys keys(std::span<const Identity> identities) const;

  [[nodiscard]] PrefixHit match(const SequenceKeys& keys);

  /// GPU blocks to fill, evicting idle ones. All or nothing. Errors: kExhausted.
  [[nodiscard]] Result<std::vector<MutableBlock>> allocate_blocks(size_t num_blocks,
                                                                  size_t group = 0);

  /// Copies what the hit has below G1 into `destinations` (one list a group,
  /// num_destinations(group) blocks each) and waits for it. A failed copy makes the result shorter,
  /// never wrong.
  [[nodiscard]] Onboarded onboard(PrefixHit&& hit,
                                  std::vector<std::vector<MutableBlock>> destinations);

  /// onboard() without the wait. Ask finish_onboard() for the result, or forget_onboard() it.
  [[nodiscard]] OnboardingId begin_onboard(PrefixHit&& hit,
                                           std::vector<std::vector<MutableBlock>> destinations);
  /// The result, once the copies have ended. Nothing at `deadline`: they go on, and it may be
  /// asked again. Contract: begun here, neither finished nor forgotten.
  [[nodiscard]] std::optional<Onboarded> finish_onboard(OnboardingId id, TimePoint deadline);
  /// Nobody will ask for the result: poll() takes it in, and what has arrived can be matched in G1.
  void forget_onboard(OnboardingId id);

  /// Writes one layer of one rank. `data` is [outer, page_size, num_heads, head_dim]. Waits for it.
  Status store_kv(const MutableBlock& block, LayerId layer, std::span<const std::byte> data,
                  RankId rank = RankId{0});
  /// Reads one layer of one rank, in the shape of store_kv.
  [[nodiscard]] Result<std::vector<std::byte>> load_kv(const ImmutableBlock& block, LayerId layer,
                                                       RankId rank = RankId{0});

  /// Compares and fills blocks on every rank's compute stream, as launch() runs tasks there; wrong
  /// bytes are no failure. On any device that has patterns. Contract: a seed for each block.
  /// Errors: kUnsupported (logical workers; a device without patterns), those of Device::wait and
  /// Device::pattern.
  [[nodiscard]] Result<KvPatternRun> launch_patterns(const KvPatterns& patterns);

  /// Runs a task on every rank's compute stream, after the copies that still read `writes`. The
  /// guards may be completed or dropped meanwhile, as streams keep the order.
  /// A task that fails leaves its blocks unwritten: nothing below G1 takes them, but G1 itself
  /// finds what was registered. Wait for the result before register_blocks() if a failure is not
  /// the end. Errors: kUnsupported (logical workers; memory that the host does not address), those
  /// of Device::wait and Device::launch.
  [[nodiscard]] Result<Completion> launch(std::span<const MutableBlock> writes,
                                          std::span<const ImmutableBlock> reads,
                                          const KvTask& task);

  /// Makes written blocks findable and starts to copy them down once all launches so far have
  /// ended. Blocks of one chain come in order.
  [[nodiscard]] std::vector<ImmutableBlock> register_blocks(std::vector<CompleteBlock>&& blocks);

  /// Drops pins of one group of G1 under one lock, deepest first.
  void release(std::vector<ImmutableBlock>&& blocks, size_t group = 0);

  /// Empties all tiers, so that nothing that was registered is found. Errors: kUnavailable: a block
  /// of G1 is held or something is copied, and nothing has changed; or hits pin blocks below G1,
  /// and all others are gone.
  Status reset();

  /// Takes in what has ended; match(), onboard() and register_blocks() do so too.
  void poll();
  /// Waits until nothing is copied any more. Errors: kTimeout.
  Status wait_idle(TimePoint deadline = kNever);
  /// Writes dirty host blocks to disk, waits for all copies and stops the workers. Idempotent.
  Status stop(TimePoint deadline = kNever);

  [[nodiscard]] const KvBlockManagerConfig& config() const noexcept;
  [[nodiscard]] size_t num_groups() const noexcept;
  /// The shape of a group's blocks in G1 on each rank.
  [[nodiscard]] const LayoutConfig& layout(size_t group = 0) const;
  /// Where the blocks of a group are in G1 on one rank, as long as the manager lives. Who touches
  /// these bytes outside of a launch has waited for a launch that names the block. The addresses
  /// are the device's. Contract: real workers.
  [[nodiscard]] const PhysicalLayout& gpu_layout(RankId rank, size_t group = 0) const;
  [[nodiscard]] PoolOccupancy gpu_occupancy(size_t group = 0) const;
  [[nodiscard]] uint64_t resident_blocks(TierId tier) const;
  [[nodiscard]] const TierMetrics& tier_metrics() const noexcept;
  /// Blocks that left a tier to make room.
  [[nodiscard]] uint64_t evictions(TierId tier) const noexcept;
  [[nodiscard]] MetricsRegistry& metrics() noexcept;
  [[nodiscard]] const Clock& clock() const noexcept;
  /// The memory and file space that the tiers may use, over all ranks.
  [[nodiscard]] uint64_t configured_bytes(TierId tier) const noexcept;

 private:
  struct Impl;
  explicit BlockManager(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace kvbm
