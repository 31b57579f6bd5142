// SPDX-License-Identifier: Apache-2.0
// What KvbmLeader and KvbmWorker need of a channel between processes. Which adapter gives it, if
// any, is chosen by file: rank_link_zmq.cpp or rank_link_absent.cpp.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/executor.hpp"
#include "kvbm/base/ids.hpp"
#include "kvbm/base/log.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/cluster/channel.hpp"
#include "kvbm/protocol/messages.hpp"
#include "kvbm/worker/worker.hpp"

namespace kvbm::internal {

/// A leader's ranks, all of which are there.
struct LeaderLink {
  std::unique_ptr<Channel> channel;
  std::vector<std::vector<PlaceSpec>> engine_places;  ///< G1, by rank
  /// Every rank makes these.
  std::function<Status(std::span<const PlaceSpec>)> provide;
  std::vector<const MetricsRegistry*> registries;  ///< of the ranks of this process
};

struct LeaderLinkOptions {
  std::string endpoint;
  uint16_t num_ranks = 1;
  std::string secret;
  Duration place_timeout{0};
  KeepWaiting keep_waiting;  ///< asked here and in LeaderLink::provide
};

/// Waits for all ranks. Errors: kTimeout (names who is missing), kCancelled (not to keep waiting),
/// kUnsupported (this build has no such channel), those of ZmqChannel.
[[nodiscard]] Result<LeaderLink> wait_for_ranks(const LeaderLinkOptions& options,
                                                TimePoint deadline, Executor& executor,
                                                LogSink& log);

/// A worker's connection to its leader, which may come later. Says goodbye at its end.
class WorkerLink {
 public:
  virtual ~WorkerLink() = default;
  WorkerLink(const WorkerLink&) = delete;
  WorkerLink& operator=(const WorkerLink&) = delete;

 protected:
  WorkerLink() = default;
};

struct WorkerLinkOptions {
  std::string endpoint;
  RankId rank;
  std::string secret;
  std::vector<PlaceSpec> engine_places;
};

/// Returns at once. Errors: as above.
[[nodiscard]] Result<std::unique_ptr<WorkerLink>> connect_to_leader(WorkerLinkOptions options,
                                                                    Worker& worker,
                                                                    Executor& executor,
                                                                    LogSink& log);

}  // namespace kvbm::internal
