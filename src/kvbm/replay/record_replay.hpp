// SPDX-License-Identifier: Apache-2.0
// Replay of a flight record: the recorded calls go to a fresh leader, and their outcomes are
// compared.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kvbm/base/log.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/connector/record.hpp"
#include "kvbm/replay/report.hpp"

namespace kvbm {

/// What came of calls. Units: blocks, unless a name says otherwise; steps carry those of all
/// groups.
struct RecordTally {
  uint64_t requests = 0;
  uint64_t lookups = 0;
  uint64_t lookups_with_offer = 0;
  uint64_t offered_tokens = 0;
  uint64_t loads_begun = 0;
  uint64_t loads_ended_between_steps = 0;
  uint64_t failed_between_steps = 0;  ///< blocks of those loads that did not get their content
  uint64_t steps = 0;
  uint64_t loaded_by_steps = 0;
  uint64_t stored_by_steps = 0;
  uint64_t fences = 0;  ///< operations that steps wait for
  RecordCounts counts{};

  friend bool operator==(const RecordTally&, const RecordTally&) = default;
};

/// Calls that are missing in the record: `num` of them from number `first` on.
struct RecordGap {
  uint64_t first = 0;
  uint64_t num = 0;

  friend bool operator==(const RecordGap&, const RecordGap&) = default;
};

struct RecordReport {
  std::string record;  ///< its path
  WallTime started{};  ///< of the run
  uint64_t files = 0;
  uint64_t cut_off_bytes = 0;   ///< at the ends of files, after the last whole call
  uint64_t calls = 0;           ///< that were played
  uint64_t compared_calls = 0;  ///< of those, with the recorded outcomes
  Duration time{0};             ///< from the first call to the last one
  std::vector<RecordGap> gaps;  ///< the calls before a ring's oldest file are one
  RecordTally recorded;
  RecordTally replayed;
  std::string difference;  ///< the first one, where the replay ended; empty: none
};

/// Whether `path` is a file that begins as a record, or a folder with files that are named so.
[[nodiscard]] bool is_record_path(const std::filesystem::path& path);

/// Plays a file, or the files of a folder in their order. Up to the first gap each outcome, what
/// went to the channel, and each count is compared; the replay ends at the first difference. After
/// a gap nobody knows what the leader had: the replay goes on cold, in a leader that is empty,
/// whose copies all succeed at once and whose places have the blocks that the run's had, and
/// without the requests that had begun before. Only broken contracts are told then. Errors: those
/// of reading the files, kCorrupt, kUnsupported, kInvalidArgument (no record, files of two runs),
/// kCancelled once `interrupted` (null: never) is set.
[[nodiscard]] Result<RecordReport> replay_record(const std::filesystem::path& path, LogSink& log,
                                                 const std::atomic<bool>* interrupted = nullptr);

/// The table for people. Ends in a newline.
[[nodiscard]] std::string record_table(const RecordReport& report, TextStyle style = {});

/// Version kRecordReportVersion of the format in docs/formats/record.md.
[[nodiscard]] std::string record_json(const RecordReport& report);
inline constexpr int kRecordReportVersion = 1;

namespace internal {
/// Plays calls one by one, comparing: what replay_record() does with a record without gaps. Apart,
/// so that tests can play calls that nobody has recorded.
class RecordPlayer {
 public:
  enum class Mode : uint8_t { kExact, kCold };

  /// Ownership: borrows the log. Errors: kCorrupt (options that no leader takes).
  [[nodiscard]] static Result<std::unique_ptr<RecordPlayer>> create(const RecordHeader& header,
                                                                    Mode mode, LogSink& log);
  ~RecordPlayer();

  /// Adds to both tallies. Returns what is wrong.
  [[nodiscard]] std::optional<std::string> play(const RecordedCall& call, RecordTally& recorded,
                                                RecordTally& replayed);
  [[nodiscard]] RecordCounts counts() const;

 private:
  struct Impl;
  explicit RecordPlayer(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};
}  // namespace internal

}  // namespace kvbm
