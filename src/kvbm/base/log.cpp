// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/log.hpp"

#include <algorithm>

namespace kvbm {
namespace {

bool is_plain(char c) { return c > ' ' && c != '"' && c != '\\' && c != '=' && c != 0x7F; }

void append_quoted(std::string& out, std::string_view text) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  out.push_back('"');
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out.append({'\\', c});
    } else if (c == '\n') {
      out.append("\\n");
    } else if (byte < ' ' || byte == 0x7F) {
      out.append({'\\', 'x', kDigits[byte >> 4U], kDigits[byte & 0xFU]});
    } else {
      out.push_back(c);
    }
  }
  out.push_back('"');
}

}  // namespace

std::string_view to_string(LogLevel level) noexcept {
  switch (level) {
    case LogLevel::kTrace:
      return "trace";
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarning:
      return "warning";
    case LogLevel::kError:
      return "error";
    case LogLevel::kOff:
      return "off";
  }
  return "unknown";
}

void LogSink::log(const LogRecord& record) noexcept {
  if (!enabled(record.level)) return;
  try {
    write(record);
  } catch (...) {  // NOLINT(bugprone-empty-catch): a log that fails has nowhere to say so
  }
}

void LogSink::log(LogLevel level, std::string_view component, std::string_view message,
                  std::initializer_list<LogField> fields) noexcept {
  log(LogRecord{
      .level = level, .component = component, .message = message, .fields = std::span(fields)});
}

std::string format_record(const LogRecord& record) {
  std::string line = "[";
  line.append(record.component).append("] ").append(record.message);
  for (const LogField& field : record.fields) {
    line.append(" ").append(field.key).append("=");
    const auto* text = std::get_if<std::string_view>(&field.value.variant());
    if (text != nullptr && (text->empty() || !std::ranges::all_of(*text, is_plain))) {
      append_quoted(line, *text);
    } else {
      field.value.append_to(line);
    }
  }
  return line;
}

namespace internal {

void log_filled_in(LogSink& sink, LogLevel level, std::string_view component,
                   std::string_view format, std::span<const TextValue> values) noexcept {
  try {
    const std::string message = fill_in(format, values);
    sink.log(LogRecord{.level = level, .component = component, .message = message, .fields = {}});
  } catch (...) {  // NOLINT(bugprone-empty-catch): out of memory for a log line
  }
}

}  // namespace internal
}  // namespace kvbm
