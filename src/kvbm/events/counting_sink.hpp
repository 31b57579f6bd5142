// SPDX-License-Identifier: Apache-2.0
// CountingSink: keeps a tally of events and nothing else.
#pragma once

#include "kvbm/base/mutex.hpp"
#include "kvbm/events/event_sink.hpp"
#include "kvbm/events/event_tally.hpp"

namespace kvbm {

/// Loses nothing, allocates nothing. Threads: any thread.
class CountingSink final : public EventSink {
 public:
  void publish(std::span<const KvEvent> events) noexcept override;

  /// All tiers at one moment, between two batches.
  [[nodiscard]] EventTally tally() const;

 private:
  mutable Mutex mutex_{LockRank::kEvents, "events.counting"};
  EventTally tally_ KVBM_GUARDED_BY(mutex_);
};

}  // namespace kvbm
