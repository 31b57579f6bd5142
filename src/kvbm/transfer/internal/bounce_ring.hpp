// SPDX-License-Identifier: Apache-2.0
// BounceRing: the slots between the two hops of staged transfers.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "kvbm/base/mutex.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/device/event.hpp"
#include "kvbm/memory/memory_region.hpp"
#include "kvbm/memory/pinned_memory.hpp"
#include "kvbm/memory/system_memory.hpp"
#include "kvbm/transfer/layout_handle.hpp"
#include "kvbm/transfer/transfer_options.hpp"

namespace kvbm::internal {

/// Somebody who waits for a slot.
class BounceWaiter {
 public:
  virtual ~BounceWaiter() = default;
  /// A slot is his: take() gives it. Called once after a take() that gave none.
  virtual void slot_granted() noexcept = 0;
};

/// Numbers of slots, one holder each. Who comes when all are held waits: the higher priority first,
/// then whoever came first.
/// Threads: any thread.
class BounceRing {
 public:
  explicit BounceRing(uint32_t num_slots);

  [[nodiscard]] uint32_t num_slots() const noexcept { return num_slots_; }

  /// A slot, or none, and then slot_granted() when one is free. Contract: one thread at a time of a
  /// waiter.
  [[nodiscard]] std::optional<uint32_t> take(const std::shared_ptr<BounceWaiter>& waiter,
                                             TransferPriority priority);
  void give_back(uint32_t slot) noexcept;
  /// Waits for none any more.
  void withdraw(const BounceWaiter& waiter) noexcept;

 private:
  struct Waiter {
    std::shared_ptr<BounceWaiter> who;
    TransferPriority priority = TransferPriority::kNormal;
    std::optional<uint32_t> granted = std::nullopt;
  };

  const uint32_t num_slots_;
  Mutex mutex_{LockRank::kTransfer, "transfer.bounce"};
  std::vector<uint32_t> free_ KVBM_GUARDED_BY(mutex_);   // has room for all
  std::vector<Waiter> waiters_ KVBM_GUARDED_BY(mutex_);  // in the order in which they came
};

struct BounceMemoryOptions {
  Executor& executor;
  std::shared_ptr<HostPinner> pinner = nullptr;
  uint32_t num_slots = 0;
  uint64_t slot_bytes = 0;
};

/// A ring with memory of its own, in slots of one size.
/// Threads: any thread.
class BounceMemory {
 public:
  /// Returns before pinned memory is ready. Errors: kUnsupported (pinned memory and no pinner),
  /// kExhausted and others of the memory.
  [[nodiscard]] static Result<std::shared_ptr<BounceMemory>> create(
      StorageKind kind, const BounceMemoryOptions& options);

  [[nodiscard]] BounceRing& ring() noexcept { return ring_; }
  [[nodiscard]] uint64_t slot_bytes() const noexcept { return slot_bytes_; }
  [[nodiscard]] MemoryRegion slot(uint32_t index) const;
  /// Nobody touches it before.
  [[nodiscard]] const Event& ready() const noexcept { return ready_; }

 private:
  explicit BounceMemory(const BounceMemoryOptions& options)
      : ring_(options.num_slots), slot_bytes_(options.slot_bytes) {}

  BounceRing ring_;
  const uint64_t slot_bytes_;
  SystemMemory system_;
  PinnedMemory pinned_;
  MemoryRegion region_;
  Event ready_;
};

/// The blocks that callers have lent to transfers under way: none is in two of them.
/// Threads: any thread.
class BounceLoans {
 public:
  /// All or none. Errors: kInvalidArgument (one is lent already; one is there twice).
  Status take(LayoutHandle layout, std::span<const BlockId> ids);
  void give_back(LayoutHandle layout, std::span<const BlockId> ids) noexcept;

 private:
  Mutex mutex_{LockRank::kTransfer, "transfer.loans"};
  std::set<std::pair<LayoutHandle, BlockId>> lent_ KVBM_GUARDED_BY(mutex_);
};

/// Ownership: gives back on destruction, or before. Threads: one thread at a time.
class BounceLoan {
 public:
  /// Errors: those of BounceLoans::take.
  [[nodiscard]] static Result<std::unique_ptr<BounceLoan>> create(
      std::shared_ptr<BounceLoans> loans, LayoutHandle layout, std::vector<BlockId> ids);
  BounceLoan(const BounceLoan&) = delete;
  BounceLoan& operator=(const BounceLoan&) = delete;
  ~BounceLoan() { release(); }

  void release() noexcept;

 private:
  BounceLoan(std::shared_ptr<BounceLoans> loans, LayoutHandle layout,
             std::vector<BlockId> ids) noexcept
      : loans_(std::move(loans)), layout_(layout), ids_(std::move(ids)) {}

  std::shared_ptr<BounceLoans> loans_;  // null: given back
  const LayoutHandle layout_;
  const std::vector<BlockId> ids_;
};

}  // namespace kvbm::internal
