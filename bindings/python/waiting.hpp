// SPDX-License-Identifier: Apache-2.0
// How a call from Python waits: with a timeout in seconds, without the GIL, until Ctrl-C.
#pragma once

#include <algorithm>
#include <chrono>
#include <optional>

#include <nanobind/nanobind.h>

#include "kvbm/base/clock.hpp"

namespace kvbm {

/// How long a wait goes on before it looks for signals and lets other threads in.
inline constexpr Duration kWaitSlice = std::chrono::milliseconds(10);

inline TimePoint now() { return std::chrono::steady_clock::now(); }

/// `timeout` in seconds from now; none: never. Raises kvbm.InvalidArgumentError.
[[nodiscard]] TimePoint deadline_after(std::optional<double> timeout);

/// Calls `step(slice_end)` without the GIL until it returns true. False at `deadline`. Raises what
/// a signal's handler raises. Requires: the GIL.
template <class Step>
[[nodiscard]] bool wait_in_slices(TimePoint deadline, Step&& step) {
  for (;;) {
    const TimePoint end = std::min(deadline, now() + kWaitSlice);
    bool done = false;
    {
      const nanobind::gil_scoped_release released;
      done = step(end);
    }
    if (done) return true;
    if (PyErr_CheckSignals() != 0) throw nanobind::python_error();
    if (now() >= deadline) return false;
  }
}

}  // namespace kvbm
