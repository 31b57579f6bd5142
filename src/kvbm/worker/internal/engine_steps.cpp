// SPDX-License-Identifier: Apache-2.0
#include "kvbm/worker/internal/engine_steps.hpp"

#include <algorithm>
#include <utility>

#include "kvbm/base/contract.hpp"

namespace kvbm::internal {

EngineSteps::Point EngineSteps::begin(StepId step) {
  KVBM_CONTRACT(steps_.empty() || steps_.back().ended, "the step before has not ended");
  KVBM_CONTRACT(steps_.empty() || steps_.back().id < step, "steps are numbered upwards");
  steps_.push_back({.id = step});
  if (steps_.size() > kRemembered) {
    forgotten_ = steps_.front().id.value();
    steps_.pop_front();
  }
  return steps_.size() < 2 ? Point() : Point(steps_[steps_.size() - 2].events);
}

EngineSteps::Step& EngineSteps::open_step() {
  KVBM_CONTRACT(!steps_.empty() && !steps_.back().ended, "no step has begun");
  return steps_.back();
}

StepId EngineSteps::current() const {
  KVBM_CONTRACT(!steps_.empty() && !steps_.back().ended, "no step has begun");
  return steps_.back().id;
}

EngineSteps::Point EngineSteps::record(Event event) {
  Step& step = open_step();
  step.events.push_back(std::move(event));
  return step.events;
}

EngineSteps::Point EngineSteps::record_layer(LayerId layer, Event event) {
  Step& step = open_step();
  step.layers.insert_or_assign(layer, step.events.size());
  return record(std::move(event));
}

EngineSteps::Point EngineSteps::end(Event event) {
  const Point all = record(std::move(event));
  steps_.back().ended = true;
  return all;
}

std::optional<EngineSteps::Point> EngineSteps::find(uint64_t step,
                                                    std::optional<LayerId> layer) const {
  if (step == 0) return Point();  // before the first step
  const auto at = std::ranges::find(steps_, step, [](const Step& each) { return each.id.value(); });
  if (at != steps_.end()) {
    if (layer) {
      if (const auto written = at->layers.find(*layer); written != at->layers.end()) {
        return Point(at->events).first(written->second + 1);
      }
    }
    return at->ended ? std::optional<Point>(at->events) : std::nullopt;
  }
  if (steps_.empty() || step > steps_.back().id.value()) return std::nullopt;
  // Long ago, or left out. For the order a later end of a step will do; the first has none before
  // it.
  const auto later = std::ranges::find_if(
      steps_, [step](const Step& each) { return each.id.value() > step && each.ended; });
  if (later != steps_.end()) return Point(later->events);
  return steps_.size() < 2 ? Point() : Point(steps_[steps_.size() - 2].events);
}

}  // namespace kvbm::internal
