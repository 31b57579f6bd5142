// SPDX-License-Identifier: Apache-2.0
// ConnectorLeader: the scheduler half of an engine's connector: requests as slots, over a leader.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/ids.hpp"
#include "kvbm/base/log.hpp"
#include "kvbm/base/metrics.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/blocks/block_key.hpp"
#include "kvbm/cluster/cluster.hpp"
#include "kvbm/connector/circuit_breaker.hpp"
#include "kvbm/connector/connector_metrics.hpp"
#include "kvbm/connector/connector_step.hpp"
#include "kvbm/connector/group_parts.hpp"
#include "kvbm/connector/scheduler_half.hpp"

namespace kvbm {

/// When an engine waits for what is loaded.
enum class LoadMode : uint8_t {
  kAuto,         ///< in the step what lies in host memory, between steps what comes from farther
  kBetweenSteps  ///< the request is scheduled once its load has ended
};

struct ConnectorLeaderOptions {
  std::vector<LayerGroup> groups;  ///< in the engine's order
  NamespaceId ns;
  LoadMode load_mode = LoadMode::kAuto;
  /// Of a request's blocks those before the first one of a lower priority are stored, 0 to 100.
  uint32_t min_priority = 0;
  CircuitBreakerOptions breaker = {};  ///< after so many failed loads in a row nothing is offered
};

/// Follows the engine's requests from their first look-up to their end, decides with the leader
/// what is loaded and stored, and packs it into the engine's own steps. Engine-neutral: an engine
/// face translates its calls.
///
/// A block is stored once all its tokens are accepted and the step that computes the last of them
/// is under way; the copy waits for the end of that step. The block of a prompt's last token is
/// never loaded, as the engine has to compute something. A step fences whatever still touches the
/// engine blocks that were allocated for it, so that blocks need not be held when a request ends.
///
/// Where blocks of one group hold fewer tokens than those of another, the tiers see parts of groups
/// (split_groups), and what is offered, loaded and stored is in positions: blocks of the largest
/// size. A position is stored with the step that computes its last token.
///
/// When loads keep failing, nothing is offered for a while: the engine computes, and hears of it in
/// the log and in kvbm_bypass_open.
///
/// Ownership: borrows cluster, clock, metrics and log, which outlive it. The cluster keeps
/// operations on the engine's place for steps. Threads: one thread at a time, the engine's
/// scheduler.
class ConnectorLeader final : public SchedulerHalf {
 public:
  /// Requires: the cluster's leader has the groups of split_groups(options.groups).
  /// Errors: those of split_groups; kInvalidArgument (several parts, and a leader for which an
  /// engine block is another one in each group).
  [[nodiscard]] static Result<std::unique_ptr<ConnectorLeader>> create(
      ConnectorLeaderOptions options, Cluster& cluster, const Clock& clock,
      MetricsRegistry& metrics, LogSink& log);
  ~ConnectorLeader() override;
  ConnectorLeader(const ConnectorLeader&) = delete;
  ConnectorLeader& operator=(const ConnectorLeader&) = delete;

  /// Identities of a request that are known: what extend() goes on from.
  [[nodiscard]] uint32_t num_identities(std::string_view request) const override;
  /// The next full blocks of a request, of the smallest size that a group has, whose tokens are all
  /// accepted; each names itself and all before it. Their priority is how much they are worth
  /// keeping, 0 to 100; without one they are worth it.
  void extend(std::string_view request, std::span<const Identity> identities,
              std::optional<uint32_t> priority = std::nullopt) override;

  /// What can be loaded beyond `num_computed_tokens`, for a request of `num_tokens` tokens. Pins
  /// it until allocated(), the next match() or the end of the request; may be asked again.
  [[nodiscard]] ExternalMatch match(std::string_view request, uint32_t num_computed_tokens,
                                    uint32_t num_tokens) override;

  /// The engine has blocks for the request, and loads `num_external_tokens` of the match into them
  /// (0: nothing). `blocks` by group, all of the request. Contract: what match() offered last.
  Status allocated(std::string_view request, const std::vector<std::vector<BlockId>>& blocks,
                   uint32_t num_external_tokens) override;

  /// Ends the engine's scheduling of one step: the bytes of a ConnectorStep for every rank.
  [[nodiscard]] std::vector<std::byte> build_step(
      std::span<const ScheduledRequest> scheduled) override;

  /// The request has ended or was aborted: its slot goes. True if a load still writes to its
  /// blocks: they have to stay until its EndedLoad has come with a step.
  [[nodiscard]] bool finished(std::string_view request) override;

  /// Takes in what has ended between steps.
  void poll() override { cluster_.exchange(); }
  /// Waits until nothing is copied that needs no step of the engine. Errors: kTimeout.
  Status wait_idle(TimePoint deadline) override { return cluster_.wait_idle(deadline); }

  /// Empties the tiers: nothing that was stored, offered or computed before is offered or stored
  /// afterwards. Loads that the engine has taken run on. What a request has computed so far is not
  /// stored, nor what it computes from it; it begins anew with its next match(). The engine may
  /// keep its own prefix cache: a request that it gives old blocks to is not stored either.
  void reset() override;

  /// Requests that have not ended.
  [[nodiscard]] size_t num_requests() const noexcept override { return slots_.size(); }
  /// Loads whose EndedLoad has not been sent.
  [[nodiscard]] size_t num_open_loads() const noexcept override { return loads_.size(); }

 private:
  struct Slot;
  struct OpenLoad;
  /// What is sure to be what its key says.
  enum class Trust : uint8_t { kNone, kEarlierSteps, kThisStep };

  ConnectorLeader(ConnectorLeaderOptions options, SplitGroups split, Cluster& cluster,
                  const Clock& clock, MetricsRegistry& metrics, LogSink& log);
  [[nodiscard]] Slot& slot_of(std::string_view request);
  void take_scheduled(const ScheduledRequest& scheduled, Trust trust, std::vector<OpId>& fences);
  [[nodiscard]] bool builds_on_old_blocks(const Slot& slot, uint32_t num_computed_tokens) const;
  void mark(size_t group, std::span<const BlockId> written, bool is_new);
  void set_apart_loads_between_steps(StepPlan& plan) const;
  [[nodiscard]] Trust trust_in_steps() const;
  [[nodiscard]] uint32_t num_positions(const Slot& slot) const;
  void add_keys(Slot& slot) const;
  void store_written(Slot& slot, uint32_t end, uint32_t num_computed_tokens);
  void take_ended_loads(std::vector<EndedLoad>& ended);
  void note_outcome(const Status& outcome);

  const ConnectorLeaderOptions options_;
  const SplitGroups split_;
  Cluster& cluster_;
  const Clock& clock_;
  LogSink& log_;
  ConnectorMetrics metrics_;
  CircuitBreaker breaker_;
  uint64_t step_ = 0;  // the last one that was built
  NamespaceId ns_;     // another one after each reset
  uint64_t num_resets_ = 0;
  /// By group and engine block: its content is computed or loaded since the last reset, from
  /// nothing older. Kept from the first reset on.
  std::vector<std::vector<bool>> is_new_;
  std::map<std::string, std::unique_ptr<Slot>, std::less<>> slots_;
  std::map<LoadId, OpenLoad> loads_;
};

}  // namespace kvbm
