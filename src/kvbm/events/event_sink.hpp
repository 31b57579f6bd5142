// SPDX-License-Identifier: Apache-2.0
// EventSink: where block events go.
#pragma once

#include <span>

#include "kvbm/events/kv_event.hpp"

namespace kvbm {

/// Takes events in the order in which they happened. It may lose events (a full queue, no memory),
/// and then counts them; it never makes its publisher wait for an outside party, and never fails.
/// Ownership: the events are the caller's again when publish() returns.
/// Threads: any thread. The batches of one thread stay in order, the events of one batch together.
/// Call it with no lock held.
class EventSink {
 public:
  virtual ~EventSink() = default;
  EventSink(const EventSink&) = delete;
  EventSink& operator=(const EventSink&) = delete;

  virtual void publish(std::span<const KvEvent> events) noexcept = 0;

 protected:
  EventSink() = default;
};

/// Drops everything.
class NullSink final : public EventSink {
 public:
  void publish(std::span<const KvEvent> /*events*/) noexcept override {}
};

}  // namespace kvbm
