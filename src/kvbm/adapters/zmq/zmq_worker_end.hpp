// SPDX-License-Identifier: Apache-2.0
// ZmqWorkerEnd: a worker's end of the channel to a leader in another process of this host.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/executor.hpp"
#include "kvbm/base/ids.hpp"
#include "kvbm/base/log.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/protocol/messages.hpp"
#include "kvbm/worker/worker.hpp"

namespace kvbm {

struct ZmqWorkerEndOptions {
  std::string endpoint;  ///< ZmqChannelOptions::endpoint, as ZmqChannel::endpoint() gives it
  RankId rank;           ///< the worker's
  std::string secret;    ///< the leader's
  std::vector<PlaceSpec> places;  ///< the worker's G1
};

/// Comes to the leader, which may be there later, makes the places that it asks for, hands its
/// operations to the worker, and the worker's results and places that have shrunk to it. A leader
/// that is gone, by its own goodbye, its connection or its silence, is logged once. That is for
/// good: results are dropped from then on, what waits for operations that have not come ends, and
/// the worker goes on with what it is told here.
///
/// Ownership: borrows worker, executor and log, which outlive it; replaces the worker's
/// ResultCallback and ShrinkCallback and takes them away at the end; owns one thread, one more
/// while it makes places, and the two of a ZeroMQ context. Threads: any thread; its destructor not
/// on one of the worker's. Requires: an executor with real threads. Source: docs/formats/channel.md
class ZmqWorkerEnd {
 public:
  /// Returns at once. Errors: kInvalidArgument (options), kExhausted (thread), those of the
  /// connect.
  [[nodiscard]] static Result<std::unique_ptr<ZmqWorkerEnd>> create(ZmqWorkerEndOptions options,
                                                                    Worker& worker,
                                                                    Executor& executor,
                                                                    LogSink& log);
  /// Sends what the worker has answered so far, and goodbye. Stop the worker before, and the leader
  /// hears of all its operations; of others it hears that the rank is lost. Waits for places that
  /// are being made, and half a second at most for a leader that does not listen.
  ~ZmqWorkerEnd();
  ZmqWorkerEnd(const ZmqWorkerEnd&) = delete;
  ZmqWorkerEnd& operator=(const ZmqWorkerEnd&) = delete;

  /// Waits until the leader has taken this rank. Errors: kTimeout (it is waited for still), the
  /// leader's refusal (kRejected, kInvalidArgument, kUnsupported), kUnavailable (it is gone again).
  Status wait_for_leader(TimePoint deadline);

 private:
  class Core;
  explicit ZmqWorkerEnd(std::unique_ptr<Core> core);

  std::unique_ptr<Core> core_;
};

}  // namespace kvbm
