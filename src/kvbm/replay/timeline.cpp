// SPDX-License-Identifier: Apache-2.0
#include "kvbm/replay/timeline.hpp"

#include <utility>

namespace kvbm {

void Timeline::record(const TimelineSample& sample) {
  if (sample.accesses < next_) return;
  KVBM_CONTRACT(samples_.empty() || samples_.back().accesses <= sample.accesses,
                "the accesses of a timeline never fall");
  samples_.push_back(sample);
  next_ = (sample.accesses / interval_ + 1) * interval_;
}

std::vector<TimelineSample> Timeline::take(const TimelineSample& last) {
  if (samples_.empty() || samples_.back().accesses < last.accesses) samples_.push_back(last);
  return std::exchange(samples_, {});
}

}  // namespace kvbm
