// SPDX-License-Identifier: Apache-2.0
// Logging: a sink that is handed in, never a global one.
#pragma once

#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>

#include "kvbm/base/text.hpp"

namespace kvbm {

enum class LogLevel : uint8_t { kTrace, kDebug, kInfo, kWarning, kError, kOff };

/// "trace", "debug", "info", "warning", "error", "off".
[[nodiscard]] std::string_view to_string(LogLevel level) noexcept;

/// A named value beside the message.
struct LogField {
  std::string_view key;
  TextValue value;
};

/// One line of a log. Borrows everything; valid during write() alone.
struct LogRecord {
  LogLevel level = LogLevel::kInfo;
  std::string_view component;  ///< the room or part that speaks: "tiers", "adapters.nixl"
  std::string_view message;
  std::span<const LogField> fields;
};

/// Where log records go. Records below its level are dropped before they are formatted.
/// Threads: any thread.
class LogSink {
 public:
  explicit LogSink(LogLevel level = LogLevel::kInfo) noexcept : level_(level) {}
  virtual ~LogSink() = default;
  LogSink(const LogSink&) = delete;
  LogSink& operator=(const LogSink&) = delete;

  [[nodiscard]] LogLevel level() const noexcept { return level_.load(std::memory_order_relaxed); }
  void set_level(LogLevel level) noexcept { level_.store(level, std::memory_order_relaxed); }
  [[nodiscard]] bool enabled(LogLevel level) const noexcept {
    return level >= this->level() && level != LogLevel::kOff;
  }

  /// Writes the record if its level is enabled. What write() throws is swallowed.
  void log(const LogRecord& record) noexcept;
  /// `log(LogLevel::kInfo, "tiers", "load ended", {{"op", op}, {"bytes", bytes}});`
  void log(LogLevel level, std::string_view component, std::string_view message,
           std::initializer_list<LogField> fields = {}) noexcept;

 protected:
  /// Called by any thread, several at a time.
  virtual void write(const LogRecord& record) = 0;

 private:
  std::atomic<LogLevel> level_;
};

/// Drops everything.
class NullLogSink final : public LogSink {
 public:
  NullLogSink() noexcept : LogSink(LogLevel::kOff) {}

 private:
  void write(const LogRecord& /*record*/) override {}
};

/// The record in one line: `[tiers] message key=value key="two words"`. For sinks that write text.
[[nodiscard]] std::string format_record(const LogRecord& record);

namespace internal {
void log_filled_in(LogSink& sink, LogLevel level, std::string_view component,
                   std::string_view format, std::span<const TextValue> values) noexcept;

template <class... Args>
void log_text(LogSink& sink, LogLevel level, std::string_view component,
              TextFormat<std::type_identity_t<Args>...> format, const Args&... args) noexcept {
  if constexpr (sizeof...(Args) == 0) {
    log_filled_in(sink, level, component, format.text(), {});
  } else {
    const TextValue values[] = {TextValue(args)...};
    log_filled_in(sink, level, component, format.text(), values);
  }
}
}  // namespace internal
}  // namespace kvbm

/// KVBM_LOG_INFO(sink, "tiers", "loaded {} blocks into {}", count, tier): see format_text.
/// Arguments are evaluated only if the level is enabled.
#define KVBM_LOG_AT(sink, level, component, ...)                                 \
  do {                                                                           \
    if (::kvbm::LogSink& kvbm_log_sink = (sink); kvbm_log_sink.enabled(level)) { \
      ::kvbm::internal::log_text(kvbm_log_sink, level, component, __VA_ARGS__);  \
    }                                                                            \
  } while (false)

#define KVBM_LOG_TRACE(sink, ...) KVBM_LOG_AT(sink, ::kvbm::LogLevel::kTrace, __VA_ARGS__)
#define KVBM_LOG_DEBUG(sink, ...) KVBM_LOG_AT(sink, ::kvbm::LogLevel::kDebug, __VA_ARGS__)
#define KVBM_LOG_INFO(sink, ...) KVBM_LOG_AT(sink, ::kvbm::LogLevel::kInfo, __VA_ARGS__)
#define KVBM_LOG_WARNING(sink, ...) KVBM_LOG_AT(sink, ::kvbm::LogLevel::kWarning, __VA_ARGS__)
#define KVBM_LOG_ERROR(sink, ...) KVBM_LOG_AT(sink, ::kvbm::LogLevel::kError, __VA_ARGS__)
