// SPDX-License-Identifier: Apache-2.0
// SpdlogSink: log records to stderr or a file, through spdlog.
#pragma once

#include <memory>
#include <string>

#include "kvbm/base/log.hpp"
#include "kvbm/base/result.hpp"

namespace kvbm {

/// Lines read "2026-01-31 12:00:00.123 W [tiers] message key=value key=\"two words\"". Warnings and
/// errors are flushed at once.
/// Threads: any thread.
class SpdlogSink final : public LogSink {
 public:
  [[nodiscard]] static std::unique_ptr<SpdlogSink> to_stderr(LogLevel level = LogLevel::kInfo);

  /// Appends to `path`. Errors: kIo if it cannot be opened.
  [[nodiscard]] static Result<std::unique_ptr<SpdlogSink>> to_file(
      const std::string& path, LogLevel level = LogLevel::kInfo);
  ~SpdlogSink() override;

  void flush();

 private:
  struct Logger;
  SpdlogSink(std::unique_ptr<Logger> logger, LogLevel level);
  void write(const LogRecord& record) override;

  std::unique_ptr<Logger> logger_;
};

}  // namespace kvbm
