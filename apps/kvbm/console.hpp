// SPDX-License-Identifier: Apache-2.0
// Console: where the program prints, and what can be shown there.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "kvbm/base/result.hpp"
#include "kvbm/replay/progress.hpp"
#include "kvbm/replay/report.hpp"

namespace kvbm {

/// What the program ends with. Signals add 128 + their number.
enum class ExitCode : uint8_t {
  kSuccess = 0,
  kMismatch = 1,  ///< a replay found wrong bytes
  kFailed = 2,    ///< wrong options, files, sizes; anything that did not work
  kInterrupted = 130,
};

/// Standard output and error of this process.
/// Threads: one thread at a time.
class Console {
 public:
  /// Colours only on a terminal and without NO_COLOR; letters as the locale has them.
  Console();

  [[nodiscard]] TextStyle style() const noexcept { return style_; }

  /// To standard output. What fails is told by close().
  void print(std::string_view text);
  /// "kvbm: message" to standard error.
  void complain(std::string_view message);
  void complain(const Error& error);

  /// A bar on a terminal, lines elsewhere, on standard error.
  [[nodiscard]] ProgressOptions progress(std::string label, std::string unit) const;
  [[nodiscard]] static Progress::Write progress_writer();

  /// Flushes standard output. Errors: kIo, kExhausted, if anything printed was lost.
  [[nodiscard]] Status close();

 private:
  TextStyle style_;
  bool error_is_terminal_ = false;
  bool error_has_colours_ = false;
  int print_error_ = 0;  // errno of the first print that failed
};

/// The message with what the system says about it, in one line.
[[nodiscard]] std::string explain(const Error& error);

}  // namespace kvbm
