// SPDX-License-Identifier: Apache-2.0
// KvbmLeader: the scheduler's side of an engine's connector, composed: tiers, cluster, slots.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kvbm/base/log.hpp"
#include "kvbm/base/metrics.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/blocks/block_key.hpp"
#include "kvbm/connector/connector_leader.hpp"
#include "kvbm/events/kv_event.hpp"
#include "kvbm/runtime/kvbm_worker.hpp"
#include "kvbm/tiers/tier_metrics.hpp"

namespace kvbm {

namespace internal {
struct LeaderLink;
}

/// Sizes are over all ranks; a number of blocks is of each part of a group, and has precedence over
/// bytes.
struct KvbmLeaderOptions {
  Namespace ns;  ///< what the engine's hashes do not tell
  /// In the engine's order. A worker has one group of tensors for each part of them (split_groups).
  std::vector<LayerGroup> groups;
  LoadMode load_mode = LoadMode::kAuto;
  uint64_t host_bytes = 0;
  uint64_t disk_bytes = 0;
  uint32_t host_blocks = 0;
  uint32_t disk_blocks = 0;
  std::string policy = "lineage";
  bool disk_filter = false;   ///< see TierManagerOptions
  uint32_t min_priority = 0;  ///< see ConnectorLeaderOptions
  /// The share of the engine's blocks, above 0 and at most 1, that stores under way may read at a
  /// time; what is beyond it is not stored. None: 5 %, but not less than 1024 blocks.
  std::optional<double> store_budget;
  /// Where http://…:port/metrics is served; 0: any free port. If that fails a warning says so.
  std::optional<uint16_t> metrics_port;
  std::string record_directory;                ///< a flight record goes there; empty: none
  Duration timeout{std::chrono::seconds(30)};  ///< of a load, and of a copy that waits to start
  size_t max_events = 0;  ///< block events that are kept for take_events(); 0: none
};

/// Workers in other processes of this host, which come by themselves: KvbmWorker::connect.
struct RemoteWorkers {
  std::string endpoint;  ///< "ipc://" and a path, in a folder of the owner's; or tcp with a secret
  uint16_t num_ranks = 1;
  std::string secret;
  /// For all to come. What they take to make their places is not counted.
  Duration init_timeout{std::chrono::seconds(120)};
  /// For all to make one place, the memory or the file of a layer group in a tier. Large ones take
  /// minutes, most of all a file that is filled.
  Duration place_timeout{std::chrono::minutes(30)};
  KeepWaiting keep_waiting;  ///< null: to the limits
};

/// A rank that is lost takes all stored blocks with it; nothing is stored or found from then on,
/// and the engine computes. The log names it.
///
/// Ownership: owns leader and tiers; borrows the workers of this process and the log, which outlive
/// it.
/// Threads: the engine's scheduler thread.
class KvbmLeader {
 public:
  /// Makes the tiers' places on every worker. Errors: kInvalidArgument (no worker, workers that
  /// differ, no tier, a store budget that is no share), those of split_groups, of Worker::provide
  /// and of RecordWriter::create.
  [[nodiscard]] static Result<std::unique_ptr<KvbmLeader>> create(
      const KvbmLeaderOptions& options, std::span<KvbmWorker* const> workers, LogSink& log);
  /// The same on workers of other processes, which it waits for. Errors: also kTimeout (names the
  /// ranks that did not come, or what they did not make), kCancelled (`keep_waiting` said no),
  /// kUnavailable (one was lost meanwhile), kUnsupported (this build has no channel between
  /// processes), those of binding the endpoint.
  [[nodiscard]] static Result<std::unique_ptr<KvbmLeader>> create(const KvbmLeaderOptions& options,
                                                                  const RemoteWorkers& workers,
                                                                  LogSink& log);
  ~KvbmLeader();
  KvbmLeader(const KvbmLeader&) = delete;
  KvbmLeader& operator=(const KvbmLeader&) = delete;

  [[nodiscard]] SchedulerHalf& requests() noexcept;
  /// Of each part of a group; fewer than asked for once a worker could not have all of its memory,
  /// as poll() has heard.
  [[nodiscard]] uint32_t num_host_blocks() const;
  [[nodiscard]] uint32_t num_disk_blocks() const;
  /// Blocks that can be found below the engine, over all groups.
  [[nodiscard]] uint64_t resident_blocks(TierId tier) const;
  [[nodiscard]] const TierMetrics& tier_metrics() const noexcept;
  [[nodiscard]] MetricsRegistry& metrics() noexcept;
  /// Moves out the block events since the last call, oldest first; their groups are the engine's.
  /// Where more than max_events have
  /// come, the oldest are lost and counted in kvbm_events_dropped_total.
  [[nodiscard]] std::vector<KvEvent> take_events();
  /// Of the leader and the workers of this process; none if nothing is served.
  [[nodiscard]] std::optional<uint16_t> metrics_port() const noexcept;
  /// Takes in what has ended between steps.
  void poll();
  /// Waits until nothing is copied that needs no step of the engine. Errors: kTimeout.
  Status wait_idle(TimePoint deadline);

 private:
  struct Impl;
  [[nodiscard]] static Result<std::unique_ptr<KvbmLeader>> build(std::unique_ptr<Impl> impl,
                                                                 const KvbmLeaderOptions& options,
                                                                 internal::LeaderLink link,
                                                                 LogSink& log);
  explicit KvbmLeader(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace kvbm
