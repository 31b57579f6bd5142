// SPDX-License-Identifier: Apache-2.0
// TransferContext: what the transfers of a manager share; outlives the manager while one of them
// runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/executor.hpp"
#include "kvbm/base/log.hpp"
#include "kvbm/base/memory_pool.hpp"
#include "kvbm/base/mutex.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/transfer/internal/bounce_ring.hpp"
#include "kvbm/transfer/internal/page_pool.hpp"
#include "kvbm/transfer/internal/stream_pool.hpp"
#include "kvbm/transfer/internal/transfer_blocks.hpp"
#include "kvbm/transfer/internal/transfer_metrics.hpp"
#include "kvbm/transfer/transfer_manager.hpp"

namespace kvbm::internal {

class Transfer;

/// Keeps the transfers that are not done, runs their tasks and wakes them at their deadlines.
/// Threads: any thread.
class TransferContext {
 public:
  TransferContext(const TransferConfig& config, std::unique_ptr<StreamPool> streams,
                  std::unique_ptr<TaskQueue> queue);
  TransferContext(const TransferContext&) = delete;
  TransferContext& operator=(const TransferContext&) = delete;

  /// What a queue of these transfers must hold: a task of each, and those of the clock. Parts
  /// beyond it run at once.
  [[nodiscard]] static size_t queue_capacity(size_t max_transfers) { return max_transfers + 64; }

  [[nodiscard]] const TransferConfig& config() const noexcept { return config_; }
  [[nodiscard]] Device& device() const noexcept { return config_.device; }
  [[nodiscard]] const DeviceCapabilities& capabilities() const noexcept { return capabilities_; }
  [[nodiscard]] Executor& executor() const noexcept { return config_.executor; }
  [[nodiscard]] LogSink& log() const noexcept { return config_.log; }
  [[nodiscard]] const TransferMetrics& metrics() const noexcept { return metrics_; }
  [[nodiscard]] StreamPool& streams() const noexcept { return *streams_; }
  /// Bounce blocks in memory of this kind, made when they are first asked for, and again after a
  /// failure. Errors: those of BounceMemory::create.
  [[nodiscard]] Result<std::shared_ptr<BounceMemory>> bounce_memory(StorageKind kind);
  [[nodiscard]] const std::shared_ptr<BounceLoans>& bounce_loans() const noexcept {
    return bounce_loans_;
  }
  /// Of what a transfer is made of: with it one that is like those before allocates nothing.
  [[nodiscard]] const MemoryPool& pool() const noexcept { return pool_; }
  [[nodiscard]] TransferBlocksPool& blocks() noexcept { return blocks_; }
  /// Buffers of file transfers.
  [[nodiscard]] PagePool& pages() noexcept { return pages_; }
  [[nodiscard]] TimePoint now() const noexcept { return config_.executor.clock().now(); }

  /// Keeps the transfer until forget(). Parts do not count. Errors: kExhausted, kUnavailable
  /// (closed).
  Status admit(std::shared_ptr<Transfer> transfer);
  /// It is about to be done: counts no more.
  void ending() noexcept;
  /// It is done.
  void forget(Transfer& transfer) noexcept;
  [[nodiscard]] size_t in_flight() const;

  /// Calls transfer->run() in a task, those of a higher priority first, else in the order of these
  /// calls; at once where there are no tasks any more.
  /// Requires: no other run() of it is on its way.
  void schedule(std::shared_ptr<Transfer> transfer) noexcept;
  /// Errors: those of TaskQueue::post_after. A task that is delayed when the manager goes never
  /// runs.
  Status post_after(Duration delay, Task task);
  /// Calls transfer->expire() at `deadline`, unless it is forgotten before. Errors: kExhausted.
  Status wake_at(TimePoint deadline, std::shared_ptr<Transfer> transfer);

  /// Stops what has not started, waits for what need not wait for others. Idempotent.
  void close();

 private:
  /// What four transfers through buffers need.
  static constexpr uint64_t kMaxKeptBytes = uint64_t{64} << 20;

  using TimerKey = std::pair<TimePoint, const Transfer*>;

  struct Ready {
    std::shared_ptr<Transfer> transfer;
    uint64_t turn = 0;  ///< of schedule()
  };
  /// The order of a heap: whether `a` comes after `b`.
  [[nodiscard]] static bool comes_later(const Ready& a, const Ready& b) noexcept;

  void run_next() noexcept;
  void tick();
  Status set_alarm(TimePoint time);

  const TransferConfig config_;
  const DeviceCapabilities capabilities_;
  const TransferMetrics metrics_;
  const std::unique_ptr<StreamPool> streams_;
  const MemoryPool pool_ = make_memory_pool();
  TransferBlocksPool blocks_{pool_};
  PagePool pages_{kMaxKeptBytes};
  const std::shared_ptr<BounceLoans> bounce_loans_ = std::make_shared<BounceLoans>();

  mutable Mutex mutex_{LockRank::kTransfer, "transfer.context"};
  bool closed_ KVBM_GUARDED_BY(mutex_) = false;
  size_t in_flight_ KVBM_GUARDED_BY(mutex_) = 0;
  std::list<std::shared_ptr<Transfer>> transfers_ KVBM_GUARDED_BY(mutex_);
  std::list<std::shared_ptr<Transfer>> places_ KVBM_GUARDED_BY(mutex_);  // empty, for the next ones
  std::map<TimerKey, std::weak_ptr<Transfer>> timers_ KVBM_GUARDED_BY(mutex_);
  TimePoint alarm_ KVBM_GUARDED_BY(mutex_) = kNever;
  std::map<StorageKind, std::shared_ptr<BounceMemory>> bounce_ KVBM_GUARDED_BY(mutex_);
  std::vector<Ready> ready_ KVBM_GUARDED_BY(mutex_);  // a heap; each has a task on its way
  uint64_t num_scheduled_ KVBM_GUARDED_BY(mutex_) = 0;

  const std::unique_ptr<TaskQueue> queue_;  // last: its tasks use what is above
};

}  // namespace kvbm::internal
