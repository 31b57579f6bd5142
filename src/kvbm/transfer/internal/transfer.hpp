// SPDX-License-Identifier: Apache-2.0
// Transfer: one transfer from its start to its only end.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/mutex.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/device/event.hpp"
#include "kvbm/layout/physical_layout.hpp"
#include "kvbm/transfer/internal/transfer_blocks.hpp"
#include "kvbm/transfer/internal/transfer_context.hpp"
#include "kvbm/transfer/transfer_notification.hpp"
#include "kvbm/transfer/transfer_route.hpp"

namespace kvbm::internal {

enum class TransferKind : uint8_t {
  kWhole,  ///< somebody's transfer; counts as one
  kPart,   ///< a hop of some blocks of one
};

/// What all transfers ask of the manager, beside their bytes.
struct TransferFrame {
  std::shared_ptr<TransferContext> context;
  TransferKind kind = TransferKind::kWhole;
  TransferRoute route = TransferRoute::kHostToHost;
  size_t num_blocks = 0;
  uint64_t block_bytes = 0;
  std::shared_ptr<TransferBlocks> blocks = nullptr;  ///< never null
  TimePoint deadline = kNever;
  TransferPriority priority = TransferPriority::kNormal;
  /// Kept until the transfer has ended, with the memory that they own.
  std::array<std::shared_ptr<const PhysicalLayout>, 2> layouts = {};
};

/// Waits for events on the host, then runs; ends in finish() exactly once, by whichever comes
/// first: its work, a failed event, the deadline or a cancel, the last three only before it has
/// started. Threads: any thread; run() one at a time.
class Transfer : public std::enable_shared_from_this<Transfer> {
 public:
  explicit Transfer(TransferFrame frame) : frame_(std::move(frame)) {
    failed().reserve(frame_.num_blocks);
  }
  virtual ~Transfer() = default;
  Transfer(const Transfer&) = delete;
  Transfer& operator=(const Transfer&) = delete;

  /// Makes the notification, before anybody else knows the transfer.
  void open() { source_.emplace(frame_.context->executor(), frame_.context->pool()); }

  /// Schedules run() for when all `events` are done. Errors: kExhausted and others of a lack of
  /// memory, and it has ended without a word.
  Status start_after(std::span<const Event> events);

  /// Contract: open() was called.
  [[nodiscard]] TransferCompleteNotification notification() const {
    return source_.value().notification();
  }
  [[nodiscard]] TransferKind kind() const noexcept { return frame_.kind; }
  [[nodiscard]] TimePoint deadline() const noexcept { return frame_.deadline; }
  [[nodiscard]] TransferPriority priority() const noexcept { return frame_.priority; }

  virtual void run() noexcept = 0;
  void expire() noexcept;
  void cancel() noexcept;

  /// Whether it comes to an end without help from outside the device and the file engine.
  [[nodiscard]] virtual bool ends_by_itself() const noexcept { return true; }

  /// Before it has started, or by whoever runs it.
  void fail_all(const Error& error) noexcept;

 protected:
  /// The notification has a device's event instead. Requires: nobody has been given it yet.
  // NOLINTNEXTLINE(bugprone-exception-escape): moving a Status or a pointer does not throw.
  void use_event(Event event) noexcept { source_->use_event(std::move(event)); }

  /// Says that it has started without start_after.
  void started();
  /// Called once if it has started: begin nothing more.
  virtual void stop() noexcept {}
  /// Called at the deadline if it has started.
  virtual void late() noexcept {}
  /// Called once before it is done, with the outcome.
  virtual void ending(const TransferResult& result) noexcept;
  /// For people, in the log.
  [[nodiscard]] virtual std::string_view way() const noexcept { return to_string(frame_.route); }

  void finish(TransferResult result) noexcept;

  [[nodiscard]] TransferContext& context() const noexcept { return *frame_.context; }
  [[nodiscard]] const TransferFrame& frame() const noexcept { return frame_; }

  /// Positions that failed. Has room for all blocks from the start, so that failing needs no
  /// memory. Of whoever runs.
  [[nodiscard]] std::vector<uint32_t>& failed() noexcept { return frame_.blocks->failed; }

 private:
  friend class TransferContext;
  enum class State : uint8_t { kWaiting, kStarted, kEnded };

  Status wait_for(std::span<const Event> events);
  void event_done(const Status& status) noexcept;
  void log_failure(const TransferResult& result) const noexcept;
  /// Whether this caller is the one that ends a transfer that has not started.
  [[nodiscard]] bool end_waiting() noexcept;

  const TransferFrame frame_;
  std::optional<TransferSource> source_;

  Mutex mutex_{LockRank::kTransfer, "transfer.state"};
  State state_ KVBM_GUARDED_BY(mutex_) = State::kWaiting;
  size_t pending_ KVBM_GUARDED_BY(mutex_) = 0;

  /// Where the context keeps it, and under the lock of the context. None: nowhere.
  std::optional<std::list<std::shared_ptr<Transfer>>::iterator> place_;
};

}  // namespace kvbm::internal
