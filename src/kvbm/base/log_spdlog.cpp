// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/log_spdlog.hpp"

#include <utility>

#include <spdlog/logger.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>

namespace kvbm {
namespace {

spdlog::level::level_enum spdlog_level(LogLevel level) noexcept {
  switch (level) {
    case LogLevel::kTrace:
      return spdlog::level::trace;
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
    case LogLevel::kOff:
      break;
  }
  return spdlog::level::off;
}

}  // namespace

struct SpdlogSink::Logger {
  explicit Logger(spdlog::sink_ptr sink) : logger("kvbm", std::move(sink)) {
    logger.set_pattern("%Y-%m-%d %H:%M:%S.%e %L %v");
    logger.set_level(spdlog::level::trace);  // LogSink has filtered already
    logger.flush_on(spdlog::level::warn);
    logger.set_error_handler([](const std::string&) {});  // the default one prints to stderr
  }

  // Not in spdlog's registry, which is global.
  spdlog::logger logger;
};

SpdlogSink::SpdlogSink(std::unique_ptr<Logger> logger, LogLevel level)
    : LogSink(level), logger_(std::move(logger)) {}

SpdlogSink::~SpdlogSink() = default;

std::unique_ptr<SpdlogSink> SpdlogSink::to_stderr(LogLevel level) {
  auto sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
  return std::unique_ptr<SpdlogSink>(
      new SpdlogSink(std::make_unique<Logger>(std::move(sink)), level));
}

Result<std::unique_ptr<SpdlogSink>> SpdlogSink::to_file(const std::string& path, LogLevel level) {
  try {
    auto sink = std::make_shared<spdlog::sinks::basic_file_sink_mt>(path);
    return std::unique_ptr<SpdlogSink>(
        new SpdlogSink(std::make_unique<Logger>(std::move(sink)), level));
  } catch (const spdlog::spdlog_ex& failure) {
    return make_error(ErrorCode::kIo,
                      format_text("cannot open the log file {}: {}", path, failure.what()));
  }
}

void SpdlogSink::flush() { logger_->logger.flush(); }

void SpdlogSink::write(const LogRecord& record) {
  // As a string_view: spdlog takes it as it is, braces included.
  const std::string line = format_record(record);
  logger_->logger.log(spdlog_level(record.level), spdlog::string_view_t(line.data(), line.size()));
}

}  // namespace kvbm
