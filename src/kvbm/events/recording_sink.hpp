// SPDX-License-Identifier: Apache-2.0
// RecordingSink: keeps events in memory until somebody takes them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "kvbm/base/mutex.hpp"
#include "kvbm/events/event_sink.hpp"
#include "kvbm/events/event_tally.hpp"

namespace kvbm {

/// What to look for; an empty field takes all.
struct EventFilter {
  std::optional<KvEventType> type = {};
  std::optional<TierId> tier = {};

  [[nodiscard]] bool matches(const KvEvent& event) const noexcept {
    return (!type || event.type == *type) && (!tier || event.tier == *tier);
  }
};

/// Keeps the newest `capacity` events: when it is full, the oldest makes room. Without a capacity
/// it keeps all of them. What is lost, by that or for want of memory, is counted. Threads: any
/// thread.
class RecordingSink final : public EventSink {
 public:
  static constexpr size_t kDefaultCapacity = size_t{1} << 16;

  /// Contract: a capacity is not 0.
  explicit RecordingSink(std::optional<size_t> capacity = kDefaultCapacity);

  void publish(std::span<const KvEvent> events) noexcept override;

  /// Copies, oldest first.
  [[nodiscard]] std::vector<KvEvent> events(const EventFilter& filter = {}) const;
  /// Moves all of them out, oldest first.
  [[nodiscard]] std::vector<KvEvent> take();

  /// The events that are kept.
  [[nodiscard]] size_t size() const;
  /// The events that were lost since the beginning.
  [[nodiscard]] uint64_t dropped() const;
  /// Of all events since the beginning, lost and taken ones too.
  [[nodiscard]] EventTally tally() const;

 private:
  void add(const KvEvent& event) noexcept KVBM_REQUIRES(mutex_);

  const std::optional<size_t> capacity_;
  mutable Mutex mutex_{LockRank::kEvents, "events.recording"};
  // A ring once it has grown to the capacity; oldest_ is 0 before that.
  std::vector<KvEvent> ring_ KVBM_GUARDED_BY(mutex_);
  size_t oldest_ KVBM_GUARDED_BY(mutex_) = 0;
  uint64_t dropped_ KVBM_GUARDED_BY(mutex_) = 0;
  EventTally tally_ KVBM_GUARDED_BY(mutex_);
};

}  // namespace kvbm
