// SPDX-License-Identifier: Apache-2.0
// Where what is made from Python logs to.
#pragma once

#include "kvbm/base/log.hpp"

namespace kvbm {

/// Standard error, from warnings on. Lives as long as the process.
[[nodiscard]] LogSink& log_sink();

}  // namespace kvbm
