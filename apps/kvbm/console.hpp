// SPDX-License-Identifier: Apache-2.0
// Console: where the program prints, and what can be shown there.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "kvbm/base/log.hpp"
#include "kvbm/base/mutex.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/replay/progress.hpp"
#include "kvbm/replay/report.hpp"

namespace kvbm {

/// What the program ends with. Signals add 128 + their number.
enum class ExitCode : uint8_t {
  kSuccess = 0,
  kMismatch = 1,  ///< wrong bytes were found, or a replay had other outcomes than were recorded
  kFailed = 2,    ///< wrong options, files, sizes; anything that did not work
};

/// Standard error, where whole lines and a bar that is drawn over share the screen.
/// Threads: any thread.
class ErrorStream {
 public:
  explicit ErrorStream(bool is_terminal) : is_terminal_(is_terminal) {}

  /// Text of a Progress: a line, or a bar, which may be drawn over and ends in no newline.
  void draw(std::string_view text);
  /// A line of its own, in place of a bar; the bar comes back with its next redraw.
  void write_line(std::string_view line);

 private:
  const bool is_terminal_;
  Mutex mutex_{LockRank::kLog, "apps.error_stream"};
  bool bar_may_be_shown_ KVBM_GUARDED_BY(mutex_) = false;
};

/// Standard output and error of this process.
/// Threads: one thread at a time; log(): any thread.
class Console {
 public:
  /// Colours only on a terminal and without NO_COLOR; letters as the locale has them. Messages
  /// begin with the program's name.
  explicit Console(std::string program);

  [[nodiscard]] TextStyle style() const noexcept { return style_; }

  /// To standard output. What fails is told by close().
  void print(std::string_view text);
  /// Shows what was printed so far, where both streams go to one place.
  void flush();
  /// "kvbm: message" to standard error.
  void complain(std::string_view message);
  void complain(const Error& error);

  /// A bar on a terminal, lines elsewhere, on standard error.
  [[nodiscard]] ProgressOptions progress(std::string label, std::string unit) const;
  [[nodiscard]] Progress::Write progress_writer();

  /// Warnings and errors of the library, "kvbm: warning: [room] message" each, on standard error.
  [[nodiscard]] LogSink& log() noexcept { return log_; }

  /// Flushes standard output. Errors: kIo, kExhausted, if anything printed was lost.
  [[nodiscard]] Status close();

 private:
  class Log final : public LogSink {
   public:
    Log(ErrorStream& error, const std::string& program)
        : LogSink(LogLevel::kWarning), error_(error), program_(program) {}

   private:
    void write(const LogRecord& record) override;

    ErrorStream& error_;
    const std::string& program_;
  };

  const std::string program_;
  TextStyle style_;
  const bool error_is_terminal_;
  bool error_has_colours_ = false;
  ErrorStream error_{error_is_terminal_};
  Log log_{error_, program_};
  int print_error_ = 0;  // errno of the first print that failed
};

/// The message with what the system says about it, in one line.
[[nodiscard]] std::string explain(const Error& error);

}  // namespace kvbm
