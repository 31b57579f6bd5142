// SPDX-License-Identifier: Apache-2.0
// SchedulerHalf: the calls that an engine's scheduler makes, whoever answers them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/ids.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/blocks/block_key.hpp"

namespace kvbm {

/// What the tiers have of a request beyond the engine's own prefix hit.
struct ExternalMatch {
  uint32_t num_tokens = 0;     ///< whole positions
  bool between_steps = false;  ///< the load runs while the engine computes others

  friend bool operator==(const ExternalMatch&, const ExternalMatch&) = default;
};

/// What the engine's scheduler has decided for a request in one step.
struct ScheduledRequest {
  std::string_view request;
  /// By group: those that were allocated since the request was scheduled last, or all of them.
  std::vector<std::vector<BlockId>> blocks;
  bool replaces_blocks = false;       ///< new, or resumed after a preemption: `blocks` are all
  uint32_t num_computed_tokens = 0;   ///< before the step
  uint32_t num_scheduled_tokens = 0;  ///< computed in the step, drafts included
};

/// ConnectorLeader says what each call does; RecordingLeader writes them down on their way to it.
/// Nothing else reaches the leader of an engine, so that the calls and what comes through the
/// channel explain everything that it does.
/// Threads: one thread at a time, the engine's scheduler.
class SchedulerHalf {
 public:
  virtual ~SchedulerHalf() = default;
  SchedulerHalf(const SchedulerHalf&) = delete;
  SchedulerHalf& operator=(const SchedulerHalf&) = delete;

  [[nodiscard]] virtual uint32_t num_identities(std::string_view request) const = 0;
  virtual void extend(std::string_view request, std::span<const Identity> identities,
                      std::optional<uint32_t> priority = std::nullopt) = 0;
  [[nodiscard]] virtual ExternalMatch match(std::string_view request, uint32_t num_computed_tokens,
                                            uint32_t num_tokens) = 0;
  virtual Status allocated(std::string_view request,
                           const std::vector<std::vector<BlockId>>& blocks,
                           uint32_t num_external_tokens) = 0;
  [[nodiscard]] virtual std::vector<std::byte> build_step(
      std::span<const ScheduledRequest> scheduled) = 0;
  [[nodiscard]] virtual bool finished(std::string_view request) = 0;
  virtual void reset() = 0;
  virtual void poll() = 0;
  virtual Status wait_idle(TimePoint deadline) = 0;

  [[nodiscard]] virtual size_t num_requests() const noexcept = 0;
  [[nodiscard]] virtual size_t num_open_loads() const noexcept = 0;

 protected:
  SchedulerHalf() = default;
};

}  // namespace kvbm
