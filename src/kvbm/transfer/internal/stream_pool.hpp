// SPDX-License-Identifier: Apache-2.0
// StreamPool: the streams of a TransferManager.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "kvbm/base/mutex.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/device/device.hpp"
#include "kvbm/transfer/transfer_route.hpp"

namespace kvbm::internal {

enum class StreamDirection : uint8_t { kToDevice, kToHost, kSide };
inline constexpr size_t kNumStreamDirections = 3;

[[nodiscard]] StreamDirection direction_of(TransferRoute route) noexcept;

struct StreamPoolOptions {
  size_t per_direction = 4;  ///< to the device, and as many to the host
  size_t side = 2;           ///< on the device, and on the host
  size_t waiting = 8;
};

/// Two sorts of streams. Those of a direction take work that waits for nothing, one group after
/// another; they are held only while a group is put on, so that groups are not mixed, or lent to
/// the manager's callers. A waiting stream belongs to one transfer until it is done, so that an
/// event which is late holds up nobody else.
///
/// All are made at the start: where a stream of an engine waits in the GPU, making one more may not
/// return before it goes on.
/// Ownership: borrows the device. Threads: any thread.
class StreamPool {
 public:
  /// Errors: those of Device::create_stream.
  [[nodiscard]] static Result<std::unique_ptr<StreamPool>> create(Device& device,
                                                                  const StreamPoolOptions& options);
  ~StreamPool();
  StreamPool(const StreamPool&) = delete;
  StreamPool& operator=(const StreamPool&) = delete;

  struct Held {
    StreamRef stream;
    StreamDirection direction = StreamDirection::kSide;  ///< whose it is
  };

  /// The one whose turn it is; one of another direction if all of this are held at this moment.
  /// Errors: kExhausted (all are: as many threads put something on, at this moment).
  [[nodiscard]] Result<Held> take(TransferRoute route);
  void give_back(const Held& held) noexcept;

  /// For somebody else, for as long as it likes. Errors: kExhausted (all but one are lent, or all
  /// held).
  [[nodiscard]] Result<StreamRef> lend(StreamDirection direction);
  /// The borrower has let go of it, and so has the device of what was put on it.
  void end_loan(StreamDirection direction, StreamRef stream) noexcept;

  /// None if all are in use.
  [[nodiscard]] std::optional<StreamRef> take_waiting();
  void give_back_waiting(StreamRef stream) noexcept;
  /// Instead of give_back_waiting, for one that may still have something queued. No other takes its
  /// place.
  void discard_waiting(StreamRef stream) noexcept;

  /// Destroys the streams; what is queued on them still runs. Idempotent.
  void close() noexcept;

 private:
  explicit StreamPool(Device& device) noexcept : device_(device) {}

  Status make(std::string_view name, size_t count, std::vector<StreamRef>& idle);

  Device& device_;
  Mutex mutex_{LockRank::kTransfer, "transfer.streams"};
  // Those that nobody holds, the one whose turn it is first. Have room for all of them.
  std::array<std::vector<StreamRef>, kNumStreamDirections> idle_ KVBM_GUARDED_BY(mutex_);
  std::array<size_t, kNumStreamDirections> num_lendable_ KVBM_GUARDED_BY(mutex_) = {};
  std::vector<StreamRef> waiting_idle_ KVBM_GUARDED_BY(mutex_);
  std::vector<StreamRef> all_ KVBM_GUARDED_BY(mutex_);
};

}  // namespace kvbm::internal
