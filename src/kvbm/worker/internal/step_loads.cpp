// SPDX-License-Identifier: Apache-2.0
#include "kvbm/worker/internal/step_loads.hpp"

#include <algorithm>
#include <utility>

#include "kvbm/base/contract.hpp"

namespace kvbm::internal {

void StepLoads::clear() {
  loads_.clear();
  streams_.clear();
}

void StepLoads::add(std::shared_ptr<WorkerOperation> load) {
  KVBM_CONTRACT(streams_.empty(), "a stream has asked for layers already");
  loads_.push_back(std::move(load));
}

const StepLoads::OfStream* StepLoads::find(StreamRef stream) const {
  const auto known = std::ranges::find(streams_, stream, &OfStream::stream);
  return known == streams_.end() ? nullptr : &*known;
}

StepLoads::OfStream& StepLoads::of(StreamRef stream) {
  const auto known = std::ranges::find(streams_, stream, &OfStream::stream);
  if (known != streams_.end()) return *known;
  OfStream& added = streams_.emplace_back();
  added.stream = stream;
  added.missing.reserve(loads_.size());
  for (const auto& load : loads_) {
    const size_t num_parts = std::max<size_t>(1, load->parts.size());
    added.missing.push_back(static_cast<PartSet>((1U << num_parts) - 1));
  }
  return added;
}

std::vector<Event> StepLoads::missed_by(StreamRef stream, Device& device) {
  const OfStream* const known = find(stream);
  std::vector<Event> ends;
  for (size_t i = 0; i < loads_.size(); ++i) {
    if (loads_[i]->over || (known != nullptr && known->missing[i] == 0)) continue;
    ends.push_back(loads_[i]->end_event(device));
  }
  return ends;
}

std::vector<StepLoads::Wait> StepLoads::waits_of(StreamRef stream, std::optional<LayerId> layer,
                                                 Device& device) {
  OfStream& asking = of(stream);
  std::vector<Wait> waits;
  if (asking.waits_for_all) return waits;
  for (size_t i = 0; i < loads_.size(); ++i) {
    WorkerOperation& load = *loads_[i];
    PartSet& missing = asking.missing[i];
    if (load.over) missing = 0;
    if (missing == 0) continue;
    if (load.parts.empty()) {
      waits.push_back({.load = i, .parts = missing, .event = load.end_event(device)});
      continue;
    }
    for (size_t k = 0; k < load.parts.size(); ++k) {
      const WorkerOperation::Part& part = load.parts[k];
      const auto bit = static_cast<PartSet>(1U << k);
      if ((missing & bit) == 0) continue;
      if (layer && (*layer < part.layers.first || layer->value() >= part.layers.end())) continue;
      if (part.done) {
        missing &= static_cast<PartSet>(~bit);
        continue;
      }
      waits.push_back({.load = i, .parts = bit, .event = load.end_event(device, k)});
    }
  }
  return waits;
}

bool StepLoads::note(StreamRef stream, std::span<const Wait> waits) {
  OfStream& waiting = of(stream);
  for (const Wait& wait : waits) waiting.missing[wait.load] &= static_cast<PartSet>(~wait.parts);
  waiting.waits_for_all =
      std::ranges::all_of(waiting.missing, [](PartSet missing) { return missing == 0; });
  return !waiting.waits_for_all;
}

}  // namespace kvbm::internal
