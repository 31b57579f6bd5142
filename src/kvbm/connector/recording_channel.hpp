// SPDX-License-Identifier: Apache-2.0
// RecordingChannel and HeldClock: what comes in during a call of the scheduler, for a record.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "kvbm/base/clock.hpp"
#include "kvbm/cluster/channel.hpp"
#include "kvbm/connector/record.hpp"

namespace kvbm {

/// Another clock's time, as it was at the last renew(): a whole call has one time, which a record
/// can say. Ownership: borrows the clock. Threads: any thread; renew() by one thread at a time.
class HeldClock final : public Clock {
 public:
  explicit HeldClock(const Clock& clock) : clock_(clock), started_(clock.now()), now_(started_) {}

  [[nodiscard]] TimePoint now() const noexcept override { return now_.load(); }
  [[nodiscard]] WallTime wall_time() const noexcept override { return clock_.wall_time(); }

  void renew() noexcept { now_.store(clock_.now()); }
  [[nodiscard]] TimePoint started() const noexcept { return started_; }
  [[nodiscard]] Duration elapsed() const noexcept { return now() - started_; }

 private:
  const Clock& clock_;
  const TimePoint started_;
  std::atomic<TimePoint> now_;
};

/// The checksum of what was sent before and now.
[[nodiscard]] uint64_t sent_checksum(uint64_t before, std::span<const CopyOp> ops,
                                     std::span<const OpId> cancels);

/// Notes what goes through it. Ownership: borrows channel and clock. Threads: as any channel.
class RecordingChannel final : public Channel {
 public:
  RecordingChannel(Channel& inner, HeldClock& clock) : inner_(inner), clock_(clock) {}

  /// A call begins: what was noted before is forgotten.
  void begin_call();
  [[nodiscard]] std::vector<CallInput> take_inputs();
  [[nodiscard]] uint64_t sent() const noexcept { return sent_; }

  void send(std::span<const CopyOp> ops, std::span<const OpId> cancels) override;
  [[nodiscard]] ChannelInbox receive() override;
  [[nodiscard]] bool wait(TimePoint deadline) override;

 private:
  Channel& inner_;
  HeldClock& clock_;
  uint32_t num_receives_ = 0;
  std::vector<CallInput> inputs_;
  uint64_t sent_ = 0;
};

}  // namespace kvbm
