// SPDX-License-Identifier: Apache-2.0
// MemoryTransfer: blocks between two layouts with addresses, by one batch of Device::copy.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kvbm/base/result.hpp"
#include "kvbm/device/device.hpp"
#include "kvbm/transfer/internal/stream_pool.hpp"
#include "kvbm/transfer/internal/transfer.hpp"

namespace kvbm::internal {

/// Threads: see Transfer.
class MemoryTransfer final : public Transfer {
 public:
  /// `batch` without bytes_moved.
  MemoryTransfer(TransferFrame frame, StridedCopyBatch batch);

  // One of these, once; after an error, or an exception, nothing is on
  // its way, but for start_on_host, and the caller forgets the transfer.

  /// Puts everything on the caller's stream. Errors: those of the device.
  Status start_on(StreamRef stream, std::span<const Event> events);
  /// Waits on a stream that it keeps until it is done. Errors: those of the device.
  Status start_on_waiting(StreamRef stream, std::span<const Event> events);
  /// On a stream of the pool. Errors: those of the device, kExhausted (all are held).
  Status start_now();
  /// On a stream of the pool once the events are done. Errors: those of start_after.
  Status start_on_host(std::span<const Event> events);

  void run() noexcept override;
  [[nodiscard]] bool ends_by_itself() const noexcept override;

 private:
  enum class Lease : uint8_t { kNone, kWaiting };
  enum class EventOf : uint8_t { kTransfer, kDevice };  ///< of the notification
  struct BatchEnd;

  [[nodiscard]] Result<Event> put_on(StreamRef stream, std::span<const Event> events) noexcept;
  Status put_on_pool(const StreamPool::Held& held, EventOf event_of) noexcept;
  Status try_later();
  void await(Event end, StreamRef stream, EventOf event_of) noexcept;
  void seal(StreamRef stream) noexcept;
  void sealed() noexcept;
  void dropped() noexcept;
  void await_batch() noexcept;
  void copied(const Status& status) noexcept;

  StridedCopyBatch batch_;  // moved to the device
  const uint64_t planned_bytes_;
  const std::shared_ptr<BatchEnd> end_;
  Status
      refusal_;  ///< of the record behind the copies; written before anything waits for their end
  bool awaits_batch_ = false;
  std::vector<Event> waits_for_;
  Lease lease_ = Lease::kNone;
  bool callers_stream_ = false;
  StreamRef stream_;
};

}  // namespace kvbm::internal
