// SPDX-License-Identifier: Apache-2.0
// ZmqChannel: the channel to workers in other processes of this host.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/executor.hpp"
#include "kvbm/base/log.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/cluster/channel.hpp"
#include "kvbm/protocol/messages.hpp"

namespace kvbm {

struct ZmqChannelOptions {
  /// Where workers connect to: "ipc:///run/kvbm/7.leader" (at most 107 bytes of path, in a folder
  /// of the owner's) or "tcp://127.0.0.1:5600". A `*` instead of the port: one that is free.
  std::string endpoint;
  uint16_t num_ranks = 1;
  /// What workers have to know, at most 4096 bytes. With tcp there must be one; it travels in the
  /// clear.
  std::string secret;
  Duration heartbeat_interval = std::chrono::seconds(1);  ///< of both ends
  Duration dead_after = std::chrono::seconds(10);         ///< of silence, at either end
};

/// The leader's end. A rank that has come counts as lost once its connection is gone, which the
/// next heartbeat notices, once it is silent for `dead_after`, or once it leaves 100,000 messages
/// untaken. What it answered before is received before the loss. It cannot come again.
///
/// Ownership: borrows executor and log, which outlive it; owns one thread, and the two of a ZeroMQ
/// context. Threads: one thread at a time. Requires: an executor with real threads. Errors: if its
/// own thread fails, every rank is lost.
/// Source: docs/formats/channel.md
class ZmqChannel final : public Channel {
 public:
  /// Returns at once. Errors: kInvalidArgument (options), kExhausted (thread), those of the bind.
  [[nodiscard]] static Result<std::unique_ptr<ZmqChannel>> create(const ZmqChannelOptions& options,
                                                                  Executor& executor, LogSink& log);
  /// Says goodbye. Waits a second at most for workers that do not listen.
  ~ZmqChannel() override;

  /// Where workers connect to, without `*`.
  [[nodiscard]] const std::string& endpoint() const noexcept;

  /// The start-up barrier: waits until every rank has come, and gives each one's G1. Before that a
  /// worker that goes may be replaced by another. Errors: kTimeout (names who is missing; may be
  /// called again), kCancelled (the same; `keep_waiting` said no), kUnavailable (one is lost
  /// already).
  [[nodiscard]] Result<std::vector<std::vector<PlaceSpec>>> wait_for_workers(
      TimePoint deadline, const KeepWaiting& keep_waiting = nullptr);

  /// Has every rank make these places, one after the other, and gives them `limit` for each. A rank
  /// that dies meanwhile is noticed; the limit is for one that lives and hangs. Errors: the first
  /// refusal with its rank, kUnavailable (a rank is lost), kTimeout (names who has not answered,
  /// and what it was to make), kCancelled (`keep_waiting` said no). After an error some ranks have
  /// some of the places; nothing takes them back.
  /// Requires: wait_for_workers has succeeded, here and below.
  Status provide(std::span<const PlaceSpec> specs, Duration limit,
                 const KeepWaiting& keep_waiting = nullptr);

  /// Contract: one operation with its lists takes at most 64 MiB.
  void send(std::span<const CopyOp> ops, std::span<const OpId> cancels) override;
  [[nodiscard]] ChannelInbox receive() override;
  [[nodiscard]] bool wait(TimePoint deadline) override;

 private:
  class Core;
  explicit ZmqChannel(std::unique_ptr<Core> core);

  std::unique_ptr<Core> core_;
};

}  // namespace kvbm
