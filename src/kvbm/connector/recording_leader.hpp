// SPDX-License-Identifier: Apache-2.0
// RecordingLeader: the calls of an engine's scheduler, written down on their way to the leader.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "kvbm/connector/record_writer.hpp"
#include "kvbm/connector/recording_channel.hpp"
#include "kvbm/connector/scheduler_half.hpp"
#include "kvbm/tiers/tier_metrics.hpp"

namespace kvbm {

/// Everything below `inner` has to take its time from `clock` and its results from `channel`; the
/// calls do what they do without it, at the one time at which they began.
/// Ownership: borrows all that it is made of. Threads: those of the inner one.
class RecordingLeader final : public SchedulerHalf {
 public:
  RecordingLeader(SchedulerHalf& inner, RecordingChannel& channel, HeldClock& clock,
                  const TierMetrics& metrics, RecordWriter& writer)
      : inner_(inner), channel_(channel), clock_(clock), metrics_(metrics), writer_(writer) {}

  [[nodiscard]] uint32_t num_identities(std::string_view request) const override {
    return inner_.num_identities(request);
  }
  void extend(std::string_view request, std::span<const Identity> identities,
              std::optional<uint32_t> priority) override;
  [[nodiscard]] ExternalMatch match(std::string_view request, uint32_t num_computed_tokens,
                                    uint32_t num_tokens) override;
  Status allocated(std::string_view request, const std::vector<std::vector<BlockId>>& blocks,
                   uint32_t num_external_tokens) override;
  [[nodiscard]] std::vector<std::byte> build_step(
      std::span<const ScheduledRequest> scheduled) override;
  [[nodiscard]] bool finished(std::string_view request) override;
  void reset() override;
  void poll() override;
  Status wait_idle(TimePoint deadline) override;
  [[nodiscard]] size_t num_requests() const noexcept override { return inner_.num_requests(); }
  [[nodiscard]] size_t num_open_loads() const noexcept override { return inner_.num_open_loads(); }

 private:
  template <class Call, class Run>
  void record(Call call, Run run);

  SchedulerHalf& inner_;
  RecordingChannel& channel_;
  HeldClock& clock_;
  const TierMetrics& metrics_;
  RecordWriter& writer_;
};

}  // namespace kvbm
