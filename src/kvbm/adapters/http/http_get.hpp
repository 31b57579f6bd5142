// SPDX-License-Identifier: Apache-2.0
// http_get: reads one text over HTTP.
#pragma once

#include <string>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/result.hpp"

namespace kvbm {

/// The text behind "http://host[:port][/path]" (or https). `timeout` is for each of connecting and
/// waiting for bytes. Errors: kInvalidArgument (no such URL), kUnavailable (nobody answers),
/// kTimeout, kNotFound (the server has no such page), kExhausted (more than 64 MiB), kIo (among
/// others: the server ends the connection too early). Threads: any thread; waits.
[[nodiscard]] Result<std::string> http_get(const std::string& url, Duration timeout);

}  // namespace kvbm
