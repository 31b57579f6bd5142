// SPDX-License-Identifier: Apache-2.0
// MessageSocket: a ZeroMQ socket as the two ends of a channel use it; nothing else sees ZeroMQ.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/result.hpp"

namespace kvbm::internal {

/// Ends a wait of another thread, the next one if none waits now. Threads: any thread.
class WakeUp {
 public:
  /// Errors: kExhausted (no file descriptor).
  [[nodiscard]] static Result<std::unique_ptr<WakeUp>> create();
  ~WakeUp();
  WakeUp(const WakeUp&) = delete;
  WakeUp& operator=(const WakeUp&) = delete;

  void wake() noexcept;
  void clear() noexcept;
  [[nodiscard]] int descriptor() const noexcept { return descriptor_; }

 private:
  explicit WakeUp(int descriptor) noexcept : descriptor_(descriptor) {}

  const int descriptor_;
};

struct IncomingMessage {
  std::string peer;                ///< on the leader's side; a connection has one name as it lasts
  std::vector<std::byte> payload;  ///< empty if it was not one frame
};

enum class SendOutcome : uint8_t {
  kSent,  ///< it will arrive while the connection lasts
  kGone,  ///< there is no connection (to this peer)
  kFull,  ///< the peer has not taken kMaxUnsentMessages messages
};

inline constexpr int kMaxUnsentMessages = 100'000;

/// Messages of one peer arrive whole and in order, and those that arrived before it went can still
/// be received. Closing waits half a second at most for what is not sent yet.
/// Threads: one thread at a time.
class MessageSocket {
 public:
  /// The leader's side: peers come and go. Errors: those of errno.
  [[nodiscard]] static Result<std::unique_ptr<MessageSocket>> bind(const std::string& endpoint,
                                                                   int64_t max_message_bytes);
  /// A worker's side: connects, and connects again, until it is destroyed; there need not be
  /// anybody yet. Errors: as bind().
  [[nodiscard]] static Result<std::unique_ptr<MessageSocket>> connect(const std::string& endpoint,
                                                                      int64_t max_message_bytes);
  ~MessageSocket();
  MessageSocket(const MessageSocket&) = delete;
  MessageSocket& operator=(const MessageSocket&) = delete;

  /// Where others connect to: what `*` in the endpoint stands for is known now.
  [[nodiscard]] const std::string& endpoint() const noexcept;

  /// Until a message has come, somebody wakes it, or the time is over. May return for nothing.
  void wait(const WakeUp& wake_up, Duration at_most);
  [[nodiscard]] std::optional<IncomingMessage> try_receive();
  /// A worker's side names no peer.
  [[nodiscard]] SendOutcome try_send(std::string_view peer, std::span<const std::byte> payload);

 private:
  struct Impl;
  explicit MessageSocket(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace kvbm::internal
