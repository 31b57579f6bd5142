// SPDX-License-Identifier: Apache-2.0
// Event: a point in a stream, or a signal of the host, that others can wait for.
#pragma once

#include <memory>
#include <utility>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/completion.hpp"
#include "kvbm/base/executor.hpp"
#include "kvbm/base/result.hpp"

namespace kvbm {

/// What a device attaches to the events it records, so that it can make a stream wait for them
/// without the host. Only the device that made it looks inside.
class NativeEvent {
 public:
  virtual ~NativeEvent() = default;
  NativeEvent(const NativeEvent&) = delete;
  NativeEvent& operator=(const NativeEvent&) = delete;

 protected:
  NativeEvent() = default;
};

/// Done once, with an outcome that never changes. Copies share it; one that is done from the start
/// allocates nothing.
/// Ownership: a value. Until it is done it refers to the executor of its device, which outlives it.
/// Threads: any thread (with a SteppedExecutor: its owner thread).
// NOLINTNEXTLINE(bugprone-exception-escape): moving a Status or a pointer does not throw.
class Event {
 public:
  /// Done, succeeded.
  Event() : completion_(Completion::ready()) {}
  explicit Event(Completion completion, std::shared_ptr<const NativeEvent> native = nullptr)
      : completion_(std::move(completion)), native_(std::move(native)) {}

  /// Done from the start, with this outcome.
  [[nodiscard]] static Event ready(Status status = {}) {
    return Event(Completion::ready(std::move(status)));
  }

  [[nodiscard]] bool done() const noexcept { return completion_.done(); }

  /// The outcome. Contract: done().
  [[nodiscard]] const Status& status() const { return completion_.status(); }

  /// Waits through the executor: the outcome, or kTimeout at `deadline` (the work goes on).
  [[nodiscard]] Status wait(TimePoint deadline = kNever) const {
    return completion_.wait(deadline);
  }

  /// Calls `callback(const Status&) noexcept` once; see Completion::on_done.
  template <class F>
  void on_done(F&& callback) const {
    completion_.on_done(std::forward<F>(callback));
  }

  /// The same outcome in the words of everything that is not a device.
  [[nodiscard]] const Completion& completion() const noexcept { return completion_; }

  /// Null for events that no device recorded.
  [[nodiscard]] const NativeEvent* native() const noexcept { return native_.get(); }

 private:
  Completion completion_;
  std::shared_ptr<const NativeEvent> native_;
};

/// The host's side of an event: streams and threads wait for event(), the host signals. Dropped
/// unsignalled it fails as kInternal, so nobody waits for ever.
/// Ownership: move-only; borrows the executor that wait() goes through.
/// Threads: one thread at a time, apart from try_signal.
class EventSource {
 public:
  explicit EventSource(Executor& executor) : source_(executor) {}

  [[nodiscard]] Event event() const { return Event(source_.completion()); }

  /// Contract: not signalled before.
  void signal(Status status = {}) { source_.resolve(std::move(status)); }

  /// Signals unless that has happened; returns whether it did. Threads: any thread.
  bool try_signal(Status status = {}) noexcept { return source_.try_resolve(std::move(status)); }

 private:
  CompletionSource source_;
};

}  // namespace kvbm
