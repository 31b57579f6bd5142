// SPDX-License-Identifier: Apache-2.0
// Trace: requests to an engine, as block hashes, read from and written to JSON lines.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvbm/base/result.hpp"
#include "kvbm/base/units.hpp"

namespace kvbm {

/// One request. Block i of its input is named by hash_ids[i]; equal ids mean equal blocks after
/// equal prefixes. The last one may be a part of a block.
struct TraceRequest {
  std::chrono::milliseconds timestamp{0};  ///< of the arrival, since the start of the trace
  uint64_t input_length = 0;               ///< tokens of the prompt
  uint64_t output_length = 0;              ///< tokens of the answer
  std::vector<uint64_t> hash_ids;          ///< each at most once

  friend bool operator==(const TraceRequest&, const TraceRequest&) = default;
};

/// Requests in the order of their timestamps.
struct Trace {
  std::vector<TraceRequest> requests;

  friend bool operator==(const Trace&, const Trace&) = default;
};

struct TraceLimits {
  std::optional<uint64_t> max_requests{};  ///< what comes after them is not looked at
  uint64_t max_line_bytes = 16 * kMiB;
  /// Set by a signal handler: what is under way ends as kCancelled. Nothing: never.
  const std::atomic<bool>* interrupted = nullptr;
};

/// Reads a trace request by request, in memory that does not grow with the file.
/// Source: docs/formats/trace.md
/// Threads: one thread at a time.
class TraceReader {
 public:
  /// A pipe may have no writer yet: next() waits for one.
  /// Errors: those of open(2), in words that name `path`; kInvalidArgument for a directory.
  [[nodiscard]] static Result<TraceReader> open(const std::filesystem::path& path,
                                                TraceLimits limits = {});
  /// Borrows `text`, which outlives the reader. `name` is for messages.
  [[nodiscard]] static TraceReader over(std::string_view text, std::string_view name,
                                        TraceLimits limits = {});

  TraceReader(TraceReader&&) noexcept;
  TraceReader& operator=(TraceReader&&) noexcept;
  ~TraceReader();

  /// Fills `request` with the next one; false at the end, or after limits.max_requests.
  /// Errors: kInvalidArgument for a broken line, with its number and the reason; kIo; kCancelled.
  /// The same error again if called after one.
  [[nodiscard]] Result<bool> next(TraceRequest& request);

 private:
  class Impl;
  explicit TraceReader(std::unique_ptr<Impl> impl) noexcept;

  std::unique_ptr<Impl> impl_;
};

/// The whole trace. Errors: as TraceReader; kInvalidArgument if there is no request.
[[nodiscard]] Result<Trace> read_trace(const std::filesystem::path& path, TraceLimits limits = {});

/// The same from memory.
[[nodiscard]] Result<Trace> parse_trace(std::string_view text, std::string_view name = "trace",
                                        TraceLimits limits = {});

/// Appends the request as one line, newline included. Checks nothing.
void append_trace_line(std::string& out, const TraceRequest& request);

/// Writes what read_trace reads back equal, or leaves `path` as it was.
/// Errors: kIo and others of write(2); kInvalidArgument for a trace that read_trace would refuse;
/// kCancelled once `interrupted` is set.
[[nodiscard]] Status write_trace(const Trace& trace, const std::filesystem::path& path,
                                 const std::atomic<bool>* interrupted = nullptr);

}  // namespace kvbm
