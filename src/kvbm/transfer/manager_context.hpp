// SPDX-License-Identifier: Apache-2.0
// ManagerContext: what a TransferManager lends to its callers: streams and events.
#pragma once

#include <memory>

#include "kvbm/base/executor.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/device/device.hpp"

namespace kvbm {

namespace internal {
class TransferContext;
enum class StreamDirection : uint8_t;
}  // namespace internal

/// A stream of a transfer manager's own, for its holder alone.
/// Ownership: move-only. On destruction it goes back, once all that was put on it has ended. The
/// manager's end is its end: the device then refuses what is put on it.
/// Threads: one thread at a time.
class LentStream {
 public:
  LentStream(LentStream&& other) noexcept;
  LentStream& operator=(LentStream&&) = delete;
  LentStream(const LentStream&) = delete;
  LentStream& operator=(const LentStream&) = delete;
  ~LentStream();

  [[nodiscard]] StreamRef ref() const noexcept { return stream_; }

 private:
  friend class ManagerContext;
  LentStream(std::shared_ptr<internal::TransferContext> context,
             internal::StreamDirection direction, StreamRef stream) noexcept;

  std::shared_ptr<internal::TransferContext> context_;  // null: moved from
  internal::StreamDirection direction_;
  StreamRef stream_;
};

/// With these a caller makes completions of its own: work on a stream and the event behind it, or
/// an event that the host signals.
/// Ownership: a value; the manager outlives it. Threads: any thread.
class ManagerContext {
 public:
  /// To the device, to the host, on the device. All but one of each direction are lent; the last
  /// one stays the manager's. Errors: kExhausted.
  [[nodiscard]] Result<LentStream> acquire_h2d_stream() const;
  [[nodiscard]] Result<LentStream> acquire_d2h_stream() const;
  [[nodiscard]] Result<LentStream> acquire_d2d_stream() const;

  [[nodiscard]] Device& device() const noexcept;
  [[nodiscard]] Executor& executor() const noexcept;
  /// An event that the host signals.
  [[nodiscard]] EventSource create_event() const { return device().create_event(); }

 private:
  friend class TransferManager;
  explicit ManagerContext(std::shared_ptr<internal::TransferContext> context) noexcept;

  [[nodiscard]] Result<LentStream> lend(internal::StreamDirection direction) const;

  std::shared_ptr<internal::TransferContext> context_;
};

}  // namespace kvbm
