// SPDX-License-Identifier: Apache-2.0
// EngineSteps: what was recorded in the steps of an engine, for the gates that wait for it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "kvbm/device/event.hpp"
#include "kvbm/layout/layout_config.hpp"
#include "kvbm/protocol/messages.hpp"

namespace kvbm::internal {

/// Steps are numbered upwards, not all of them come, and one at a time is open. The events of the
/// last kRemembered of them are kept.
/// Threads: one thread at a time.
class EngineSteps {
 public:
  /// An engine is never this many steps ahead of its stores; what an older step has written is not
  /// stored, as its outcome is not known.
  static constexpr size_t kRemembered = 64;

  /// What a gate waits for: done with the last of these, succeeded if all have. Empty: nothing.
  /// Valid until events are added.
  using Point = std::span<const Event>;

  /// Opens a step; the end of the one before. Contract: that has ended, and has a lower number.
  Point begin(StepId step);
  /// Contract of these: a step is open. The point of what was recorded.
  Point record(Event event);
  Point record_layer(LayerId layer, Event event);
  Point end(Event event);
  /// Contract: a step is open.
  [[nodiscard]] StepId current() const;

  /// Where the step has written the layer, without one where it has ended. Of a step that was left
  /// out, or is forgotten, it is the end of another that is no earlier, if there is one. Nothing:
  /// it is still to come.
  [[nodiscard]] std::optional<Point> find(uint64_t step, std::optional<LayerId> layer) const;
  /// Whether nobody knows any more how the step has ended.
  [[nodiscard]] bool is_forgotten(uint64_t step) const noexcept {
    return step > 0 && step <= forgotten_;
  }

 private:
  struct Step {
    StepId id;
    std::vector<Event> events = {};         // all that were recorded in it; the last one is its end
    std::map<LayerId, size_t> layers = {};  // of events
    bool ended = false;
  };

  Step& open_step();

  std::deque<Step> steps_;
  uint64_t forgotten_ = 0;  // the last step whose events are gone
};

}  // namespace kvbm::internal
