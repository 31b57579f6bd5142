// SPDX-License-Identifier: Apache-2.0
// Progress: how far a long run is, for a person who waits.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/unique_function.hpp"

namespace kvbm {

enum class ProgressStyle : uint8_t {
  kSilent,
  kLines,  ///< a line now and then, for logs
  kBar,    ///< one line that is drawn over and cleared at the end, for terminals
};

struct ProgressOptions {
  ProgressStyle style = ProgressStyle::kSilent;
  std::string label = "progress";
  std::string unit{};     ///< of what is counted: "accesses"
  uint32_t columns = 79;  ///< of the bar's line
  /// Set by a signal handler; nothing: never interrupted.
  const std::atomic<bool>* interrupted = nullptr;
};

/// The bar is drawn at most ten times a second; a line is written every ten seconds, or after ten
/// percent if that is at least a second. The clock is read about a thousand times in a run, however
/// often update() is called.
/// Ownership: borrows the clock and options.interrupted.
/// Threads: one thread at a time.
class Progress {
 public:
  using Write = UniqueFunction<void(std::string_view)>;

  /// `write` gets whole lines or whole redraws. It is called by start(), update() and finish()
  /// alone.
  Progress(ProgressOptions options, Write write, const Clock& clock);
  /// Silent, and never interrupted.
  explicit Progress(const Clock& clock) : Progress(ProgressOptions{}, Write(), clock) {}
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// Begins at zero of `total`. May be called again for another run.
  void start(uint64_t total);
  /// Cheap where nothing is due.
  void update(uint64_t done) {
    if (done >= next_look_) look(done);
  }
  /// Clears the bar.
  void finish();

  /// Whether the run is to stop.
  [[nodiscard]] bool interrupted() const noexcept {
    return options_.interrupted != nullptr && options_.interrupted->load(std::memory_order_relaxed);
  }

 private:
  void look(uint64_t done);
  void draw_bar(uint64_t done, Duration elapsed);
  void write_line(uint64_t done, Duration elapsed);

  ProgressOptions options_;
  Write write_;
  const Clock& clock_;
  uint64_t total_ = 0;
  uint64_t next_look_;
  TimePoint started_{};
  TimePoint shown_at_{};
  uint64_t shown_done_ = 0;
  bool bar_is_shown_ = false;
};

}  // namespace kvbm
