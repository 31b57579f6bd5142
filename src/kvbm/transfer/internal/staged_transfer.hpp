// SPDX-License-Identifier: Apache-2.0
// StagedTransfer: two hops through bounce slots, several slots at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvbm/base/mutex.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/layout/physical_layout.hpp"
#include "kvbm/transfer/internal/bounce_ring.hpp"
#include "kvbm/transfer/internal/transfer.hpp"
#include "kvbm/transfer/transfer_plan.hpp"
#include "kvbm/transfer/transfer_strategy.hpp"

namespace kvbm::internal {

/// Whole blocks of a layout, for one group of a transfer's blocks at a time.
struct BounceSlot {
  std::shared_ptr<const PhysicalLayout> layout;
  std::vector<BlockId> ids;
};

struct StagedSpec {
  TransferStrategy strategy = {};
  std::vector<BlockId> from = {};
  std::vector<BlockId> to = {};
  std::vector<SlotTag> tags = {};  ///< of a file on either side, or of both
  /// Of the hops that are copies; between a side and any of the slots.
  std::optional<TransferPlan> first_plan = std::nullopt;
  std::optional<TransferPlan> second_plan = std::nullopt;

  std::shared_ptr<BounceMemory> memory = nullptr;  ///< the manager's, or
  std::unique_ptr<BounceRing> own_ring = nullptr;  ///< of blocks that the caller lends
  std::vector<BounceSlot> slots = {};              ///< by their numbers in the ring
  uint32_t blocks_per_group = 1;
  std::unique_ptr<BounceLoan> loan = nullptr;  ///< set if the caller lends

  [[nodiscard]] BounceRing& ring() const noexcept { return own_ring ? *own_ring : memory->ring(); }
};

/// Cuts the blocks into groups. A group takes a slot, fills it by the first hop and empties it by
/// the second, each of them a transfer of its own; the blocks that the first one could not bring go
/// no further. A slot goes back when the second hop, or a first one that brought nothing, has
/// ended, so nothing touches it any more. Nothing here knows what the slots are made of.
///
/// Each turn takes the ends of hops that have come, then starts what can be started.
/// Threads: see Transfer.
class StagedTransfer final : public Transfer, public BounceWaiter {
 public:
  /// Contract: as many slots as the ring has, each with room for blocks_per_group blocks.
  StagedTransfer(TransferFrame frame, StagedSpec spec);

  /// Errors: those of start_after.
  Status start(std::span<const Event> events);

  void run() noexcept override;
  void slot_granted() noexcept override { wake(); }

 private:
  enum class Phase : uint8_t { kFree, kFirst, kSecond };
  /// By the number of its slot.
  struct Group {
    Phase phase = Phase::kFree;
    std::vector<uint32_t> positions = {};  ///< of blocks that are on their way
    std::vector<BlockId> ids = {};         ///< theirs in the slot
    TransferCompleteNotification hop = {};
  };

  void stop() noexcept override;
  void late() noexcept override { wake(); }
  void ending(const TransferResult& result) noexcept override;
  [[nodiscard]] std::string_view way() const noexcept override { return way_; }

  void wake() noexcept;
  void turn();
  void hop_ended(uint32_t slot) noexcept;
  void begin_groups();
  void begin(uint32_t slot, Phase phase) noexcept;
  void watch(uint32_t slot) noexcept;
  void free_slot(uint32_t slot) noexcept;
  void fail_group(uint32_t slot, const Error& error) noexcept;
  void give_up(const Error& error) noexcept;
  void fail(uint32_t position, const Error& error) noexcept;
  void conclude() noexcept;

  [[nodiscard]] uint32_t num_blocks() const noexcept {
    return static_cast<uint32_t>(frame().num_blocks);
  }

  const StagedSpec spec_;
  const std::string way_;

  // Of whoever runs.
  uint32_t next_ = 0;  ///< the first position that is in no group
  std::vector<Group> groups_;
  uint32_t num_open_ = 0;         ///< groups that have a slot
  std::vector<uint32_t> ended_;   ///< slots whose hop has
  std::optional<Error> no_more_;  ///< why nothing is begun any more
  uint64_t bytes_ = 0;
  std::optional<Error> first_failure_;
  uint32_t first_failed_ = 0;

  Mutex mutex_{LockRank::kTransfer, "transfer.staged"};
  std::vector<uint32_t> inbox_ KVBM_GUARDED_BY(mutex_);  // slots; has room for all
  bool running_ KVBM_GUARDED_BY(mutex_) = true;          // a run() is on its way
  bool woken_ KVBM_GUARDED_BY(mutex_) = false;           // while one was
  bool stopped_ KVBM_GUARDED_BY(mutex_) = false;
};

}  // namespace kvbm::internal
