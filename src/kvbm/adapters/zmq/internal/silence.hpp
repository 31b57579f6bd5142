// SPDX-License-Identifier: Apache-2.0
// Silence: for how long a peer has said nothing while somebody listened.
#pragma once

#include <algorithm>

#include "kvbm/base/clock.hpp"

namespace kvbm::internal {

/// A listener that did not run itself, on a busy or a stopped machine, heard nothing either: from
/// one look to the next no more than `most` counts. Threads: one thread at a time.
class Silence {
 public:
  void end(TimePoint now) noexcept {
    lasted_ = Duration::zero();
    looked_ = now;
  }
  /// How long it has lasted.
  Duration go_on(TimePoint now, Duration most) noexcept {
    lasted_ += std::clamp<Duration>(now - looked_, Duration::zero(), most);
    looked_ = now;
    return lasted_;
  }

 private:
  Duration lasted_{0};
  TimePoint looked_{};
};

}  // namespace kvbm::internal
