// SPDX-License-Identifier: Apache-2.0
#include "apps/kvbm/console.hpp"

#include <langinfo.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <clocale>
#include <cstdio>
#include <cstdlib>
#include <system_error>
#include <utility>

#include "apps/kvbm/interrupt.hpp"

namespace kvbm {
namespace {

// A terminal that can go back on a line and show colours.
bool is_capable_terminal(int fd) {
  if (::isatty(fd) == 0) return false;
  const char* kind = std::getenv("TERM");
  return kind != nullptr && *kind != '\0' && std::string_view(kind) != "dumb";
}

// Source: https://no-color.org
bool colours_are_wanted() {
  const char* no_color = std::getenv("NO_COLOR");
  return no_color == nullptr || *no_color == '\0';
}

bool locale_is_utf8() {
  std::setlocale(LC_CTYPE, "");  // numbers stay as they are in C
  return std::string_view(::nl_langinfo(CODESET)) == "UTF-8";
}

constexpr std::string_view kClearLine = "\r\x1b[K";

void write_error(std::string_view text) {
  // Nobody is left to be told if this fails.
  static_cast<void>(std::fwrite(text.data(), 1, text.size(), stderr));
  std::fflush(stderr);
}

}  // namespace

void ErrorStream::draw(std::string_view text) {
  const MutexLock lock(mutex_);
  write_error(text);
  bar_may_be_shown_ = is_terminal_ && !text.ends_with('\n') && text != kClearLine;
}

void ErrorStream::write_line(std::string_view line) {
  const MutexLock lock(mutex_);
  std::string text(std::exchange(bar_may_be_shown_, false) ? kClearLine : "");
  text.append(line).append("\n");
  write_error(text);
}

void Console::Log::write(const LogRecord& record) {
  error_.write_line(
      format_text("{}: {}: {}", program_, to_string(record.level), format_record(record)));
}

Console::Console(std::string program)
    : program_(std::move(program)), error_is_terminal_(is_capable_terminal(STDERR_FILENO)) {
  const bool colours = colours_are_wanted();
  error_has_colours_ = error_is_terminal_ && colours;
  if (locale_is_utf8()) style_.letters = TextStyle::Letters::kUtf8;
  if (colours && is_capable_terminal(STDOUT_FILENO)) style_.colours = TextStyle::Colours::kOn;
}

void Console::print(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() && print_error_ == 0) {
    print_error_ = errno;
  }
}

void Console::flush() {
  if (std::fflush(stdout) != 0 && print_error_ == 0) print_error_ = errno;
}

void Console::complain(std::string_view message) {
  std::string line = program_ + ":";
  if (error_has_colours_) line = "\x1b[1;31m" + line + "\x1b[0m";
  line.append(" ").append(message);
  // What was printed so far comes first where both go to the same place.
  std::fflush(stdout);
  error_.write_line(line);
}

void Console::complain(const Error& error) { complain(explain(error)); }

ProgressOptions Console::progress(std::string label, std::string unit) const {
  ProgressOptions options;
  options.style = error_is_terminal_ ? ProgressStyle::kBar : ProgressStyle::kLines;
  options.label = std::move(label);
  options.unit = std::move(unit);
  options.interrupted = &interrupted();
  struct winsize size {};
  if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1) {
    // The last column would make some terminals go on in the next line.
    options.columns = std::min<uint32_t>(size.ws_col - 1U, 100);
  }
  return options;
}

Progress::Write Console::progress_writer() {
  return [this](std::string_view text) { error_.draw(text); };
}

Status Console::close() {
  if (std::fflush(stdout) != 0 && print_error_ == 0) print_error_ = errno;
  if (print_error_ == 0) return {};
  return errno_error("cannot write to standard output", print_error_);
}

std::string explain(const Error& error) {
  std::string text = error.message();
  if (error.native_domain() == NativeDomain::kErrno) {
    text.append(": ").append(
        std::generic_category().message(static_cast<int>(error.native_code())));
  }
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

}  // namespace kvbm
