// SPDX-License-Identifier: Apache-2.0
// run_replay: plays a trace against the block manager and reports what came of it.
#pragma once

#include "kvbm/base/log.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/replay/progress.hpp"
#include "kvbm/replay/replay_options.hpp"
#include "kvbm/replay/report.hpp"
#include "kvbm/replay/trace.hpp"

namespace kvbm {

/// Plays the requests one after the other, as the engine that owns G1. Wrong bytes are no error:
/// the first ones end the replay, and the report counts and names them.
/// Nor are loads that fail or run out of time: the engine computes what they did not bring, and the
/// report counts them.
/// Progress is started with the block accesses of the trace, and finished also on an error.
/// Errors: those of options.validate(); kExhausted, kIo, kNotFound from making the tiers;
/// kCancelled once progress.interrupted(), with nothing left behind. Without a log, records go to
/// standard error.
[[nodiscard]] Result<ReplayReport> run_replay(const Trace& trace, const ReplayOptions& options,
                                              Progress& progress, LogSink* log = nullptr);

}  // namespace kvbm
