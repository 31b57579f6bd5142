// SPDX-License-Identifier: Apache-2.0
#include "kvbm/replay/progress.hpp"

#include <algorithm>
#include <chrono>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include "kvbm/base/units.hpp"

namespace kvbm {
namespace {

using std::chrono::milliseconds;

constexpr uint64_t kNeverLook = std::numeric_limits<uint64_t>::max();
constexpr uint64_t kLooks = 1000;  // in a run
constexpr milliseconds kBarInterval{100};
constexpr milliseconds kShortestLineInterval{1'000};
constexpr milliseconds kLongestLineInterval{10'000};
constexpr uint64_t kLinesAtLeast = 10;  // unless they come too fast
constexpr size_t kBarCells = 24;
constexpr std::string_view kClearLine = "\r\x1b[K";

double fraction(uint64_t done, uint64_t total) {
  return total == 0 ? 1.0 : std::min(1.0, static_cast<double>(done) / static_cast<double>(total));
}

std::string rate_text(uint64_t done, Duration elapsed) {
  const double seconds = std::chrono::duration<double>(elapsed).count();
  if (seconds <= 0) return "-";
  return format_count(static_cast<uint64_t>(static_cast<double>(done) / seconds));
}

}  // namespace

Progress::Progress(ProgressOptions options, Write write, const Clock& clock)
    : options_(std::move(options)),
      write_(std::move(write)),
      clock_(clock),
      next_look_(kNeverLook) {
  KVBM_CONTRACT(options_.style == ProgressStyle::kSilent || static_cast<bool>(write_),
                "progress that shows itself needs somewhere to write to");
}

Progress::~Progress() {
  try {
    finish();
  } catch (...) {  // a bar that stays on the screen is no reason to end the program
  }
}

void Progress::start(uint64_t total) {
  finish();
  total_ = total;
  shown_done_ = 0;
  if (options_.style == ProgressStyle::kSilent) return;
  started_ = clock_.now();
  shown_at_ = started_;
  next_look_ = total_ / kLooks + 1;
  if (options_.style == ProgressStyle::kBar) draw_bar(0, Duration::zero());
}

void Progress::look(uint64_t done) {
  next_look_ = done + total_ / kLooks + 1;
  const TimePoint now = clock_.now();
  const Duration since_shown = now - shown_at_;
  if (options_.style == ProgressStyle::kBar) {
    if (since_shown < kBarInterval) return;
    draw_bar(done, now - started_);
  } else {
    const bool moved_on = done - shown_done_ >= total_ / kLinesAtLeast;
    if (since_shown < (moved_on ? kShortestLineInterval : kLongestLineInterval)) return;
    write_line(done, now - started_);
  }
  shown_at_ = now;
  shown_done_ = done;
}

void Progress::draw_bar(uint64_t done, Duration elapsed) {
  const double share = fraction(done, total_);
  const auto full = static_cast<size_t>(share * kBarCells);
  std::string line =
      fmt::format("{} [{}{}] {:3.0f} %  {} of {} {}, {}/s", options_.label, std::string(full, '#'),
                  std::string(kBarCells - full, '.'), 100 * share, format_count(done),
                  format_count(total_), options_.unit, rate_text(done, elapsed));
  if (done > 0 && share < 1) {
    const double left = std::chrono::duration<double>(elapsed).count() * (1 - share) / share;
    if (left < 1e6) {
      line += fmt::format(", {} left",
                          format_duration(std::chrono::seconds(static_cast<int64_t>(left + 0.5))));
    }
  }
  if (line.size() > options_.columns) line.resize(options_.columns);
  write_(std::string(kClearLine) + line);
  bar_is_shown_ = true;
}

void Progress::write_line(uint64_t done, Duration elapsed) {
  write_(fmt::format("{}: {:.0f} %, {} of {} {} after {}\n", options_.label,
                     100 * fraction(done, total_), format_count(done), format_count(total_),
                     options_.unit, format_duration(elapsed)));
}

void Progress::finish() {
  next_look_ = kNeverLook;
  if (std::exchange(bar_is_shown_, false)) write_(kClearLine);
}

}  // namespace kvbm
