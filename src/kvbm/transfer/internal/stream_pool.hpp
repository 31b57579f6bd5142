// SPDX-License-Identifier: Apache-2.0
// StreamPool: the streams of a TransferManager.
#pragma once

#include <array>
#include <cstddef>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "kvbm/base/mutex.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/device/device.hpp"
#include "kvbm/transfer/transfer_route.hpp"

namespace kvbm::internal {

/// Two sorts of streams. Those of a direction take work that waits for nothing, one group after
/// another; they are held only while a group is put on, so that groups are not mixed. A waiting
/// stream belongs to one transfer until it is done, so that an event which is late holds up nobody
/// else. Ownership: borrows the device. Threads: any thread.
class StreamPool {
 public:
  /// Errors: those of Device::create_stream.
  [[nodiscard]] static Result<std::unique_ptr<StreamPool>> create(Device& device,
                                                                  size_t streams_per_direction,
                                                                  size_t max_waiting_streams);
  ~StreamPool();
  StreamPool(const StreamPool&) = delete;
  StreamPool& operator=(const StreamPool&) = delete;

  /// The one whose turn it is; one more is made if all are held at this moment.
  [[nodiscard]] Result<StreamRef> take(TransferRoute route);
  void give_back(TransferRoute route, StreamRef stream) noexcept;

  /// None if all are in use, or the device makes no more.
  [[nodiscard]] std::optional<StreamRef> take_waiting();
  void give_back_waiting(StreamRef stream) noexcept;
  /// Instead of give_back_waiting, for one that may still have something queued.
  void discard_waiting(StreamRef stream) noexcept;

  /// Destroys the streams; what is queued on them still runs. Idempotent.
  void close() noexcept;

 private:
  StreamPool(Device& device, size_t max_waiting_streams) noexcept
      : device_(device), max_waiting_streams_(max_waiting_streams) {}

  Result<StreamRef> make(std::string_view name);

  static constexpr size_t kNumDirections = 3;

  Device& device_;
  const size_t max_waiting_streams_;
  Mutex mutex_{LockRank::kTransfer, "transfer.streams"};
  std::array<std::deque<StreamRef>, kNumDirections> idle_ KVBM_GUARDED_BY(mutex_);
  std::vector<StreamRef> waiting_idle_ KVBM_GUARDED_BY(mutex_);
  size_t num_waiting_ KVBM_GUARDED_BY(mutex_) = 0;
  std::vector<StreamRef> all_ KVBM_GUARDED_BY(mutex_);
};

}  // namespace kvbm::internal
