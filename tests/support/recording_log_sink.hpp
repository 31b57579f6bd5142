// SPDX-License-Identifier: Apache-2.0
// RecordingLogSink: a log sink that keeps what it gets.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "kvbm/base/log.hpp"
#include "kvbm/base/mutex.hpp"

namespace kvbm::testing {

/// Threads: any thread.
class RecordingLogSink final : public LogSink {
 public:
  struct Record {
    LogLevel level;
    std::string component;
    std::string message;
    std::string line;  ///< as format_record writes it, fields included
  };

  explicit RecordingLogSink(LogLevel level = LogLevel::kTrace) : LogSink(level) {}

  [[nodiscard]] std::vector<Record> records() const {
    const MutexLock lock(mutex_);
    return records_;
  }

  /// The messages of one level.
  [[nodiscard]] std::vector<std::string> messages(LogLevel level) const {
    const MutexLock lock(mutex_);
    std::vector<std::string> texts;
    for (const Record& record : records_) {
      if (record.level == level) texts.push_back(record.message);
    }
    return texts;
  }

 private:
  void write(const LogRecord& record) override {
    Record copy{.level = record.level,
                .component = std::string(record.component),
                .message = std::string(record.message),
                .line = format_record(record)};
    const MutexLock lock(mutex_);
    records_.push_back(std::move(copy));
  }

  mutable Mutex mutex_{LockRank::kLog, "tests.recording_log_sink"};
  std::vector<Record> records_ KVBM_GUARDED_BY(mutex_);
};

}  // namespace kvbm::testing
