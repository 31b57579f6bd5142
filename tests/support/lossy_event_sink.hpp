// SPDX-License-Identifier: Apache-2.0
// LossyEventSink: passes events on and loses some, to show that nothing depends on them.
#pragma once

#include <cstdint>
#include <span>

#include "kvbm/base/mutex.hpp"
#include "kvbm/base/random.hpp"
#include "kvbm/events/event_sink.hpp"

namespace kvbm::testing {

/// Loses each batch with the probability `loss`; the seed decides which.
/// Ownership: borrows `next`. Threads: any thread.
class LossyEventSink final : public EventSink {
 public:
  LossyEventSink(EventSink& next, double loss, uint64_t seed)
      : next_(next), loss_(loss), random_(seed) {}

  void publish(std::span<const KvEvent> events) noexcept override {
    {
      const MutexLock lock(mutex_);
      if (random_.chance(loss_)) {
        dropped_ += events.size();
        return;
      }
    }
    next_.publish(events);
  }

  [[nodiscard]] uint64_t dropped() const {
    const MutexLock lock(mutex_);
    return dropped_;
  }

 private:
  EventSink& next_;
  const double loss_;
  mutable Mutex mutex_{LockRank::kEvents, "tests.lossy_event_sink", 1};
  Random random_ KVBM_GUARDED_BY(mutex_);
  uint64_t dropped_ KVBM_GUARDED_BY(mutex_) = 0;
};

}  // namespace kvbm::testing
