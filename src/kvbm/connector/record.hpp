// SPDX-License-Identifier: Apache-2.0
//
// A flight record: every call of an engine's scheduler with its outcome, and whatever came in
// from outside and decided it. Plain values and their bytes, docs/formats/record.md.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/error.hpp"
#include "kvbm/base/ids.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/blocks/block_key.hpp"
#include "kvbm/cluster/channel.hpp"
#include "kvbm/connector/connector_leader.hpp"
#include "kvbm/connector/scheduler_half.hpp"
#include "kvbm/tiers/tier_manager.hpp"

namespace kvbm {

inline constexpr uint16_t kRecordVersion = 3;

/// What a leader counts, as far as a record says it. The values are in the format.
enum class RecordCounter : uint8_t {
  kG1ToG2,  ///< blocks that arrived
  kG1ToG3,
  kG2ToG1,
  kG2ToG3,
  kG3ToG1,
  kG3ToG2,
  kFailed,  ///< blocks whose copy failed, on any route
  kEvictedG2,
  kEvictedG3,
  kLostG2,
  kLostG3,
  kDroppedNoRoom,
  kDroppedBacklog,
  kEvictedUnsaved,
  kFiltered,
  kDrained,
  kGivenUp,
  kLoadsTimedOut,
  kForgottenG2,
  kForgottenG3,
};
inline constexpr size_t kNumRecordCounters = 20;
[[nodiscard]] std::string_view to_string(RecordCounter counter) noexcept;

/// By RecordCounter.
using RecordCounts = std::array<uint64_t, kNumRecordCounters>;
[[nodiscard]] RecordCounts counts_of(const TierMetrics& metrics);

/// What each file begins with, so that it stands alone.
struct RecordHeader {
  uint64_t run = 0;         ///< the same in all files of a run, and in no other
  WallTime started{};       ///< of the run
  uint64_t file = 0;        ///< number of the file in its run
  uint64_t first_call = 1;  ///< number of the file's first call
  RecordCounts counts{};    ///< before that call
  ConnectorLeaderOptions connector;
  /// Its groups are those of split_groups(connector.groups), and its places as they were before
  /// that call: see shrink_places().
  TierManagerOptions tiers;
};

/// An inbox that was not empty: of the call's receives the `receive`th, from 0.
struct ReceivedInbox {
  uint32_t receive = 0;
  ChannelInbox inbox;

  friend bool operator==(const ReceivedInbox& a, const ReceivedInbox& b) {
    return a.receive == b.receive && a.inbox.results == b.inbox.results &&
           a.inbox.lost == b.inbox.lost && a.inbox.shrunk == b.inbox.shrunk;
  }
};
/// A wait for the channel: its answer, and the time after it.
struct EndedWait {
  bool has_come = false;
  Duration time{0};

  friend bool operator==(const EndedWait&, const EndedWait&) = default;
};
/// In the order in which they came.
using CallInput = std::variant<ReceivedInbox, EndedWait>;

struct ExtendCall {
  std::string request;
  uint32_t first = 0;  ///< position of the first one: what was known before
  std::vector<Identity> identities;
  std::optional<uint32_t> priority;

  friend bool operator==(const ExtendCall&, const ExtendCall&) = default;
};
struct MatchCall {
  std::string request;
  uint32_t num_computed_tokens = 0;
  uint32_t num_tokens = 0;
  ExternalMatch offer;  ///< outcome

  friend bool operator==(const MatchCall&, const MatchCall&) = default;
};
struct AllocatedCall {
  std::string request;
  std::vector<std::vector<BlockId>> blocks;
  uint32_t num_external_tokens = 0;
  std::optional<ErrorCode> error;  ///< outcome

  friend bool operator==(const AllocatedCall&, const AllocatedCall&) = default;
};
/// ScheduledRequest with a name of its own.
struct RecordedRequest {
  std::string request;
  std::vector<std::vector<BlockId>> blocks;
  bool replaces_blocks = false;
  uint32_t num_computed_tokens = 0;
  uint32_t num_scheduled_tokens = 0;

  friend bool operator==(const RecordedRequest&, const RecordedRequest&) = default;
};
struct BuildStepCall {
  std::vector<RecordedRequest> scheduled;
  std::vector<std::byte> step;  ///< outcome

  friend bool operator==(const BuildStepCall&, const BuildStepCall&) = default;
};
struct FinishedCall {
  std::string request;
  bool holds_blocks = false;  ///< outcome

  friend bool operator==(const FinishedCall&, const FinishedCall&) = default;
};
struct PollCall {
  friend bool operator==(const PollCall&, const PollCall&) = default;
};
struct WaitIdleCall {
  Duration deadline = Duration::max();  ///< as a time of the record; max(): none
  std::optional<ErrorCode> error;       ///< outcome

  friend bool operator==(const WaitIdleCall&, const WaitIdleCall&) = default;
};
struct ResetCall {
  friend bool operator==(const ResetCall&, const ResetCall&) = default;
};
/// In the order of their numbers in the format.
using CallOfHalf = std::variant<ExtendCall, MatchCall, AllocatedCall, BuildStepCall, FinishedCall,
                                PollCall, WaitIdleCall, ResetCall>;

struct ChangedCount {
  RecordCounter counter{};
  uint64_t value = 0;

  friend bool operator==(const ChangedCount&, const ChangedCount&) = default;
};

/// Units: times since the record began.
struct RecordedCall {
  uint64_t number = 0;  ///< from 1 without gaps; one that is missing was dropped
  Duration time{0};     ///< what the clock said during the call, up to its first wait
  bool threw = false;   ///< a broken contract: there is no outcome
  std::vector<CallInput> inputs;
  uint64_t sent = 0;  ///< checksum of what went to the channel; 0: nothing
  CallOfHalf call;
  std::vector<ChangedCount> counts;  ///< since the last call that is in the record

  friend bool operator==(const RecordedCall&, const RecordedCall&) = default;
};

/// Gives places the blocks that are left after a call: what came in with it may say that they have
/// shrunk. At least one block each, since no leader takes a place without any.
void shrink_places(TierManagerOptions& tiers, std::span<const CallInput> inputs);

/// "match of request cmpl-7".
[[nodiscard]] std::string describe(const CallOfHalf& call);

/// The beginning of a file, with its header.
[[nodiscard]] std::vector<std::byte> encode(const RecordHeader& header);
/// What follows it, one call each.
[[nodiscard]] std::vector<std::byte> encode(const RecordedCall& call);

struct RecordFile {
  RecordHeader header;
  std::vector<RecordedCall> calls;
  uint64_t whole_bytes = 0;    ///< up to the end of the last whole call
  uint64_t cut_off_bytes = 0;  ///< after it: what a crash left, or what does not fit its checksum
};

/// Whether a file begins as a record does.
[[nodiscard]] bool is_record(std::span<const std::byte> beginning) noexcept;

/// `file` may be cut off anywhere, and hostile. What is accepted is what encode() would have
/// written, byte for byte. Errors: kUnsupported (another version), kCorrupt (no whole header, a
/// call that fits its checksum and makes no sense).
[[nodiscard]] Result<RecordFile> decode_record_file(std::span<const std::byte> file);

}  // namespace kvbm
