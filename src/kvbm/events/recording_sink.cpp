// SPDX-License-Identifier: Apache-2.0
#include "kvbm/events/recording_sink.hpp"

#include <algorithm>
#include <exception>
#include <utility>

#include "kvbm/base/contract.hpp"

namespace kvbm {

RecordingSink::RecordingSink(std::optional<size_t> capacity) : capacity_(capacity) {
  KVBM_CONTRACT(!capacity || *capacity > 0, "a RecordingSink of no capacity; NullSink drops all");
}

void RecordingSink::publish(std::span<const KvEvent> events) noexcept {
  const MutexLock lock(mutex_);
  for (const KvEvent& event : events) add(event);
  tally_.add(events);
}

void RecordingSink::add(const KvEvent& event) noexcept {
  try {
    if (!capacity_ || ring_.size() < *capacity_) {
      ring_.push_back(event);
      return;
    }
    KvEvent copy = event;
    ring_[oldest_] = std::move(copy);
    oldest_ = (oldest_ + 1) % ring_.size();
    ++dropped_;  // the oldest
  } catch (const std::exception&) {
    ++dropped_;  // this one: no memory
  }
}

std::vector<KvEvent> RecordingSink::events(const EventFilter& filter) const {
  std::vector<KvEvent> found;
  const MutexLock lock(mutex_);
  for (size_t i = 0; i < ring_.size(); ++i) {
    const KvEvent& event = ring_[(oldest_ + i) % ring_.size()];
    if (filter.matches(event)) found.push_back(event);
  }
  return found;
}

std::vector<KvEvent> RecordingSink::take() {
  std::vector<KvEvent> taken;
  size_t oldest = 0;
  {
    const MutexLock lock(mutex_);
    taken.swap(ring_);
    oldest = std::exchange(oldest_, 0);
  }
  std::rotate(taken.begin(), taken.begin() + static_cast<std::ptrdiff_t>(oldest), taken.end());
  return taken;
}

size_t RecordingSink::size() const {
  const MutexLock lock(mutex_);
  return ring_.size();
}

uint64_t RecordingSink::dropped() const {
  const MutexLock lock(mutex_);
  return dropped_;
}

EventTally RecordingSink::tally() const {
  const MutexLock lock(mutex_);
  return tally_;
}

}  // namespace kvbm
