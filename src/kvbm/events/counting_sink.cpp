// SPDX-License-Identifier: Apache-2.0
#include "kvbm/events/counting_sink.hpp"

namespace kvbm {

void CountingSink::publish(std::span<const KvEvent> events) noexcept {
  const MutexLock lock(mutex_);
  tally_.add(events);
}

EventTally CountingSink::tally() const {
  const MutexLock lock(mutex_);
  return tally_;
}

}  // namespace kvbm
