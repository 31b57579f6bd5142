// SPDX-License-Identifier: Apache-2.0
// Processes of one host talk over ZeroMQ.
#include <utility>

#include "kvbm/adapters/zmq/zmq_channel.hpp"
#include "kvbm/adapters/zmq/zmq_worker_end.hpp"
#include "kvbm/runtime/internal/rank_link.hpp"

namespace kvbm::internal {
namespace {

class ZmqWorkerLink final : public WorkerLink {
 public:
  explicit ZmqWorkerLink(std::unique_ptr<ZmqWorkerEnd> end) : end_(std::move(end)) {}

 private:
  std::unique_ptr<ZmqWorkerEnd> end_;
};

}  // namespace

Result<LeaderLink> wait_for_ranks(const LeaderLinkOptions& options, TimePoint deadline,
                                  Executor& executor, LogSink& log) {
  ZmqChannelOptions of_channel;
  of_channel.endpoint = options.endpoint;
  of_channel.num_ranks = options.num_ranks;
  of_channel.secret = options.secret;
  KVBM_ASSIGN_OR_RETURN(auto made, ZmqChannel::create(of_channel, executor, log));
  ZmqChannel& channel = *made;
  LeaderLink link;
  link.channel = std::move(made);
  KVBM_ASSIGN_OR_RETURN(link.engine_places,
                        channel.wait_for_workers(deadline, options.keep_waiting));
  link.provide = [&channel, limit = options.place_timeout,
                  keep_waiting = options.keep_waiting](std::span<const PlaceSpec> places) {
    return channel.provide(places, limit, keep_waiting);
  };
  return link;
}

Result<std::unique_ptr<WorkerLink>> connect_to_leader(WorkerLinkOptions options, Worker& worker,
                                                      Executor& executor, LogSink& log) {
  ZmqWorkerEndOptions of_end;
  of_end.endpoint = std::move(options.endpoint);
  of_end.rank = options.rank;
  of_end.secret = std::move(options.secret);
  of_end.places = std::move(options.engine_places);
  KVBM_ASSIGN_OR_RETURN(auto end, ZmqWorkerEnd::create(std::move(of_end), worker, executor, log));
  return std::unique_ptr<WorkerLink>(std::make_unique<ZmqWorkerLink>(std::move(end)));
}

}  // namespace kvbm::internal
