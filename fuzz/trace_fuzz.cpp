// SPDX-License-Identifier: Apache-2.0
// Traces: no input crashes the reader, what it refuses it explains in one printable line, and what
// it accepts it writes and reads back equal.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "kvbm/replay/trace.hpp"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  kvbm::TraceLimits limits;
  limits.max_line_bytes = 16 * kvbm::kKiB;
  const auto trace = kvbm::parse_trace(text, "input", limits);
  if (!trace) {
    const std::string& message = trace.error().message();
    require(trace.error().code() == kvbm::ErrorCode::kInvalidArgument);
    require(message.size() < 300);
    require(
        std::all_of(message.begin(), message.end(), [](char c) { return c >= ' ' && c <= '~'; }));
    return 0;
  }
  std::string written;
  for (const kvbm::TraceRequest& request : trace->requests) {
    kvbm::append_trace_line(written, request);
  }
  const auto again = kvbm::parse_trace(written);
  require(again.has_value() && *again == *trace);
  return 0;
}
