// SPDX-License-Identifier: Apache-2.0
#include "kvbm/replay/record_replay.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <exception>
#include <map>
#include <set>
#include <string_view>
#include <system_error>
#include <utility>

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "kvbm/base/metrics.hpp"
#include "kvbm/base/text.hpp"
#include "kvbm/cluster/cluster.hpp"
#include "kvbm/cluster/logical_channel.hpp"
#include "kvbm/connector/connector_step.hpp"
#include "kvbm/connector/recording_channel.hpp"
#include "kvbm/events/event_sink.hpp"
#include "kvbm/memory/file.hpp"
#include "kvbm/runtime/kv_block_manager_config.hpp"

namespace kvbm {
namespace {

constexpr std::string_view kExtension = ".kvbr";
constexpr uint32_t kMaxRanks = UINT16_MAX;

/// Gives back what was received in a call, at the same receive.
class PlayedChannel final : public Channel {
 public:
  explicit PlayedChannel(ManualClock& clock) : clock_(clock), started_(clock.now()) {}

  void begin_call(std::span<const CallInput> inputs) {
    inputs_ = inputs;
    num_receives_ = 0;
    sent_ = 0;
    stray_wait_ = false;
  }
  [[nodiscard]] uint64_t sent() const noexcept { return sent_; }
  /// Whether the call asked for exactly what it was given.
  [[nodiscard]] bool fits() const noexcept { return inputs_.empty() && !stray_wait_; }

  void send(std::span<const CopyOp> ops, std::span<const OpId> cancels) override {
    sent_ = sent_checksum(sent_, ops, cancels);
  }
  [[nodiscard]] ChannelInbox receive() override {
    const uint32_t receive = num_receives_++;
    if (inputs_.empty()) return {};
    const auto* next = std::get_if<ReceivedInbox>(&inputs_.front());
    if (next == nullptr || next->receive != receive) return {};
    inputs_ = inputs_.subspan(1);
    return next->inbox;
  }
  [[nodiscard]] bool wait(TimePoint /*deadline*/) override {
    const auto* next = inputs_.empty() ? nullptr : std::get_if<EndedWait>(&inputs_.front());
    if (next == nullptr) {
      stray_wait_ = true;
      return false;
    }
    inputs_ = inputs_.subspan(1);
    clock_.advance_to(saturating_add(started_, next->time));
    return next->has_come;
  }

 private:
  ManualClock& clock_;
  const TimePoint started_;
  std::span<const CallInput> inputs_;
  uint32_t num_receives_ = 0;
  uint64_t sent_ = 0;
  bool stray_wait_ = false;
};

/// Of what was received it gives back alone which places have shrunk: the copies are its own.
class ColdChannel final : public Channel {
 public:
  explicit ColdChannel(const TierManagerOptions& tiers) : logical_(tiers.num_ranks, tiers.places) {}

  void begin_call(std::span<const CallInput> inputs) {
    for (const CallInput& input : inputs) {
      const auto* received = std::get_if<ReceivedInbox>(&input);
      if (received == nullptr) continue;
      const std::vector<ShrunkPlace>& more = received->inbox.shrunk;
      shrunk_.insert(shrunk_.end(), more.begin(), more.end());
    }
  }

  void send(std::span<const CopyOp> ops, std::span<const OpId> cancels) override {
    logical_.send(ops, cancels);
  }
  [[nodiscard]] ChannelInbox receive() override {
    ChannelInbox inbox = logical_.receive();
    inbox.shrunk = std::exchange(shrunk_, {});
    return inbox;
  }
  [[nodiscard]] bool wait(TimePoint deadline) override {
    return !shrunk_.empty() || logical_.wait(deadline);
  }

 private:
  LogicalChannel logical_;
  std::vector<ShrunkPlace> shrunk_;
};

void add_to(RecordTally& tally, const RecordedCall& made) {
  if (made.threw) return;
  if (const auto* match = std::get_if<MatchCall>(&made.call)) {
    ++tally.lookups;
    tally.lookups_with_offer += match->offer.num_tokens > 0 ? 1 : 0;
    tally.offered_tokens += match->offer.num_tokens;
  } else if (const auto* allocated = std::get_if<AllocatedCall>(&made.call)) {
    tally.loads_begun += allocated->num_external_tokens > 0 && !allocated->error ? 1 : 0;
  } else if (const auto* built = std::get_if<BuildStepCall>(&made.call)) {
    ++tally.steps;
    const Result<ConnectorStep> step = decode_connector_step(built->step);
    if (!step) return;
    for (const auto* ops : {&step->plan.loads, &step->plan.stores}) {
      for (const CopyOp& op : *ops) {
        (op.dst.tier == TierId::kG1 ? tally.loaded_by_steps : tally.stored_by_steps) +=
            op.to.size();
      }
    }
    tally.fences += step->plan.fences.size();
    tally.loads_ended_between_steps += step->ended_loads.size();
    for (const EndedLoad& load : step->ended_loads) {
      tally.failed_between_steps += load.failed.size();
    }
  }
}

const std::string* request_of(const CallOfHalf& call) {
  return std::visit(
      [](const auto& of) -> const std::string* {
        if constexpr (requires { of.request; }) return &of.request;
        return nullptr;
      },
      call);
}

// How the parts of two steps differ.
std::string step_difference(std::span<const std::byte> recorded,
                            std::span<const std::byte> replayed) {
  const Result<ConnectorStep> was = decode_connector_step(recorded);
  const Result<ConnectorStep> is = decode_connector_step(replayed);
  if (!was || !is) return "a step that cannot be read";
  const auto part = [](std::string_view name, const auto& of_was, const auto& of_is) {
    return of_was == of_is
               ? std::string()
               : fmt::format("; {}: {} recorded, {} replayed{}", name, of_was.size(), of_is.size(),
                             of_was.size() == of_is.size() ? ", not the same" : "");
  };
  return fmt::format("step {} recorded, {} replayed", was->plan.step.value(),
                     is->plan.step.value()) +
         part("loads", was->plan.loads, is->plan.loads) +
         part("stores", was->plan.stores, is->plan.stores) +
         part("fences", was->plan.fences, is->plan.fences) +
         part("cancels", was->plan.cancels, is->plan.cancels) +
         part("ended loads", was->ended_loads, is->ended_loads);
}

std::string outcome_text(const CallOfHalf& call) {
  const auto error_text = [](const std::optional<ErrorCode>& error) {
    return error ? std::string(to_string(*error)) : std::string("success");
  };
  if (const auto* match = std::get_if<MatchCall>(&call)) {
    return fmt::format("{} tokens {}", match->offer.num_tokens,
                       match->offer.between_steps ? "between steps" : "in the step");
  }
  if (const auto* allocated = std::get_if<AllocatedCall>(&call)) {
    return error_text(allocated->error);
  }
  if (const auto* finished = std::get_if<FinishedCall>(&call)) {
    return finished->holds_blocks ? "blocks are held" : "blocks are free";
  }
  if (const auto* waited = std::get_if<WaitIdleCall>(&call)) return error_text(waited->error);
  if (const auto* extend = std::get_if<ExtendCall>(&call)) {
    return fmt::format("{} blocks before", extend->first);
  }
  return "success";
}

std::string call_difference(const RecordedCall& recorded, const RecordedCall& replayed) {
  const auto* was = std::get_if<BuildStepCall>(&recorded.call);
  const auto* is = std::get_if<BuildStepCall>(&replayed.call);
  if (was != nullptr && is != nullptr) return step_difference(was->step, is->step);
  return fmt::format("{} recorded, {} replayed", outcome_text(recorded.call),
                     outcome_text(replayed.call));
}

std::vector<ScheduledRequest> scheduled_of(const BuildStepCall& call) {
  std::vector<ScheduledRequest> scheduled;
  scheduled.reserve(call.scheduled.size());
  for (const RecordedRequest& request : call.scheduled) {
    scheduled.push_back({.request = request.request,
                         .blocks = request.blocks,
                         .replaces_blocks = request.replaces_blocks,
                         .num_computed_tokens = request.num_computed_tokens,
                         .num_scheduled_tokens = request.num_scheduled_tokens});
  }
  return scheduled;
}

std::optional<ErrorCode> code_of(const Status& status) {
  return status ? std::nullopt : std::optional(status.error().code());
}

}  // namespace

namespace internal {

struct RecordPlayer::Impl {
  explicit Impl(Mode the_mode) : mode(the_mode), played(clock) {}

  TimePoint time_of(Duration time) const {
    return time == Duration::max() ? kNever : saturating_add(started, time);
  }

  // Each makes one call, and puts the outcome in the place of the recorded one.
  void make(ExtendCall& call) {
    call.first = leader->num_identities(call.request);
    leader->extend(call.request, call.identities, call.priority);
  }
  void make(MatchCall& call) {
    call.offer = leader->match(call.request, call.num_computed_tokens, call.num_tokens);
    if (mode == Mode::kCold) offers[call.request] = call.offer.num_tokens;
  }
  void make(AllocatedCall& call) {
    if (mode == Mode::kCold) {
      // What the cold leader has, if there are blocks for it.
      const uint32_t offered = std::exchange(offers[call.request], 0);
      call.num_external_tokens = offered <= call.num_external_tokens ? offered : 0;
      placed.insert(call.request);
    }
    call.error = code_of(leader->allocated(call.request, call.blocks, call.num_external_tokens));
  }
  void make(BuildStepCall& call) {
    if (mode == Mode::kCold) {
      std::erase_if(call.scheduled, [this](const RecordedRequest& request) {
        return !request.replaces_blocks && !placed.contains(request.request);
      });
      for (const RecordedRequest& request : call.scheduled) placed.insert(request.request);
    }
    call.step = leader->build_step(scheduled_of(call));
    if (mode == Mode::kExact) return;
    const ConnectorStep step = decode_connector_step(call.step).value();
    cold->send(step.plan.loads, {});
    cold->send(step.plan.stores, {});
  }
  void make(FinishedCall& call) {
    call.holds_blocks = leader->finished(call.request);
    forget(call.request);
  }
  void make(PollCall& /*call*/) { leader->poll(); }
  void make(ResetCall& /*call*/) {
    leader->reset();
    offers.clear();
  }
  void make(WaitIdleCall& call) { call.error = code_of(leader->wait_idle(time_of(call.deadline))); }

  void forget(const std::string& request) {
    known.erase(request);
    placed.erase(request);
    offers.erase(request);
  }

  /// Whether a cold leader can make anything of the call.
  bool makes_sense(const CallOfHalf& call) {
    if (const auto* extend = std::get_if<ExtendCall>(&call)) {
      if (extend->first == leader->num_identities(extend->request)) {
        known.insert(extend->request);
        return true;
      }
      // It had begun before.
      static_cast<void>(leader->finished(extend->request));
      forget(extend->request);
      return false;
    }
    if (std::holds_alternative<MatchCall>(call)) {
      known.insert(*request_of(call));
      return true;
    }
    const std::string* request = request_of(call);
    return request == nullptr || known.contains(*request);
  }

  void add_request(const CallOfHalf& call, RecordTally& recorded, RecordTally& replayed) {
    const std::string* request = request_of(call);
    if (request == nullptr) return;
    if (std::holds_alternative<FinishedCall>(call)) {
      seen.erase(*request);
    } else if (seen.insert(*request).second) {
      ++recorded.requests;
      ++replayed.requests;
    }
  }

  std::string counts_difference() const {
    const RecordCounts is = counts_of(cluster->leader().metrics());
    for (size_t i = 0; i < is.size(); ++i) {
      if (is[i] == counts[i]) continue;
      return fmt::format("{}: {} recorded, {} replayed", to_string(static_cast<RecordCounter>(i)),
                         counts[i], is[i]);
    }
    return {};
  }

  const Mode mode;
  ManualClock clock;
  const TimePoint started = clock.now();
  PlayedChannel played;
  std::unique_ptr<ColdChannel> cold;
  NullSink events;
  MetricsRegistry metrics;
  std::unique_ptr<Cluster> cluster;
  std::unique_ptr<ConnectorLeader> leader;
  RecordCounts counts{};         // as recorded
  std::set<std::string> seen;    // requests that have not ended
  std::set<std::string> known;   // cold: those whose identities the leader has from the first one
  std::set<std::string> placed;  // cold: those whose blocks it has
  std::map<std::string, uint32_t> offers;  // cold: tokens that a load may have
};

Result<std::unique_ptr<RecordPlayer>> RecordPlayer::create(const RecordHeader& header, Mode mode,
                                                           LogSink& log) {
  const TierManagerOptions& tiers = header.tiers;
  const bool is_sane =
      tiers.num_ranks <= kMaxRanks &&
      std::all_of(tiers.places.begin(), tiers.places.end(),
                  [](const PlaceSpec& place) { return place.num_blocks <= kMaxTierBlocks; });
  if (!is_sane) return make_error(ErrorCode::kCorrupt, "the record has tiers that are too large");
  auto impl = std::make_unique<Impl>(mode);
  auto leader = TierManager::create(tiers, impl->clock, impl->events, impl->metrics, log);
  const auto refused = [](Error error) {
    return make_error(ErrorCode::kCorrupt,
                      "no leader takes the options of the record: " + error.describe());
  };
  if (!leader) return refused(leader.error());
  impl->cold = std::make_unique<ColdChannel>(tiers);
  Channel& channel = mode == Mode::kExact ? static_cast<Channel&>(impl->played) : *impl->cold;
  impl->cluster = std::make_unique<Cluster>(*std::move(leader), channel, impl->clock,
                                            EngineOperations::kBySteps);
  auto requests =
      ConnectorLeader::create(header.connector, *impl->cluster, impl->clock, impl->metrics, log);
  if (!requests) return refused(requests.error());
  impl->leader = *std::move(requests);
  impl->counts = header.counts;
  return std::unique_ptr<RecordPlayer>(new RecordPlayer(std::move(impl)));
}

RecordPlayer::RecordPlayer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
RecordPlayer::~RecordPlayer() = default;

RecordCounts RecordPlayer::counts() const { return counts_of(impl_->cluster->leader().metrics()); }

std::optional<std::string> RecordPlayer::play(const RecordedCall& call, RecordTally& recorded,
                                              RecordTally& replayed) {
  Impl& impl = *impl_;
  const auto wrong = [&call](std::string_view what) {
    return fmt::format("call {} at {:.6f} s, {}: {}", call.number,
                       std::chrono::duration<double>(call.time).count(), describe(call.call), what);
  };
  impl.add_request(call.call, recorded, replayed);
  add_to(recorded, call);
  for (const ChangedCount& changed : call.counts) {
    impl.counts[static_cast<size_t>(changed.counter)] = changed.value;
  }
  impl.clock.advance_to(impl.time_of(call.time));
  impl.played.begin_call(call.inputs);
  impl.cold->begin_call(call.inputs);
  if (impl.mode == Mode::kCold && !impl.makes_sense(call.call)) return std::nullopt;
  RecordedCall made = call;
  made.threw = false;
  std::string broken;
  try {
    std::visit([&impl](auto& of) { impl.make(of); }, made.call);
  } catch (const std::exception& violation) {
    made.threw = true;
    broken = violation.what();
  }
  add_to(replayed, made);
  if (impl.mode == Mode::kCold) {
    if (made.threw) return wrong(broken);
    return std::nullopt;
  }
  if (made.threw != call.threw) {
    return wrong(made.threw ? "a broken contract in the replay alone: " + broken
                            : "a broken contract was recorded, and is none in the replay");
  }
  if (!made.threw && made.call != call.call) return wrong(call_difference(call, made));
  if (impl.played.sent() != call.sent) return wrong("other operations go to the channel");
  if (!impl.played.fits()) return wrong("the leader asks its channel at other times");
  if (const std::string counts = impl.counts_difference(); !counts.empty()) return wrong(counts);
  return std::nullopt;
}

}  // namespace internal

namespace {

Result<std::vector<std::byte>> read_file(const std::filesystem::path& path, size_t max_bytes) {
  const File file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  const auto failed = [&path](int error_number) {
    return errno_error(format_text("cannot read {}", path.native()), error_number);
  };
  struct stat status {};
  if (!file || ::fstat(file.fd(), &status) != 0) return failed(errno);
  if (S_ISDIR(status.st_mode)) return failed(EISDIR);
  if (!S_ISREG(status.st_mode)) {
    return make_error(ErrorCode::kInvalidArgument,
                      format_text("{} is no regular file", path.native()));
  }
  std::vector<std::byte> bytes(std::min(static_cast<size_t>(status.st_size), max_bytes));
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t got = ::read(file.fd(), bytes.data() + done, bytes.size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return failed(errno);
    if (got == 0) break;
    done += static_cast<size_t>(got);
  }
  bytes.resize(done);
  return bytes;
}

// The files of a record, oldest first.
Result<std::vector<std::filesystem::path>> files_of(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::is_directory(path, error)) return std::vector{path};
  std::vector<std::filesystem::path> files;
  for (std::filesystem::directory_iterator it(path, error), end; !error && it != end;
       it.increment(error)) {
    if (it->path().extension() == kExtension) files.push_back(it->path());
  }
  if (error) return errno_error(format_text("cannot read {}", path.native()), error.value());
  std::sort(files.begin(), files.end());
  return files;
}

/// Goes through the files, and from leader to leader.
class RecordReplay {
 public:
  RecordReplay(LogSink& log, const std::atomic<bool>* interrupted)
      : log_(log), interrupted_(interrupted) {}

  Status play(const RecordFile& file) {
    if (report_.files == 0) {
      run_ = file.header.run;
      report_.started = file.header.started;
      first_counts_ = file.header.counts;
    } else if (file.header.run != run_) {
      return make_error(ErrorCode::kInvalidArgument,
                        "the folder has files of two runs: replay one file, or take one run away");
    }
    ++report_.files;
    report_.cut_off_bytes += file.cut_off_bytes;
    if (file.header.first_call < next_call_) {
      return make_error(ErrorCode::kCorrupt, "the files of the record are not in order");
    }
    for (const RecordedCall& call : file.calls) {
      if (interrupted_ != nullptr && *interrupted_) {
        return make_error(ErrorCode::kCancelled, "interrupted");
      }
      KVBM_TRY(play(file.header, call));
      if (!report_.difference.empty()) break;
    }
    return {};
  }
  bool is_over() const noexcept { return !report_.difference.empty(); }

  RecordReport finish() {
    end_player();
    for (size_t i = 0; i < kNumRecordCounters; ++i) {
      report_.recorded.counts[i] = last_counts_[i] - first_counts_[i];
    }
    return std::move(report_);
  }

 private:
  using Player = internal::RecordPlayer;

  Status play(const RecordHeader& header, const RecordedCall& call) {
    const bool is_new_file = last_number_file_ != header.file || report_.calls == 0;
    if (is_new_file) tiers_ = header.tiers;
    if (!player_ || call.number != next_call_) {
      if (call.number != next_call_) {
        report_.gaps.push_back({next_call_, call.number - next_call_});
      }
      mode_ = call.number == 1 ? Player::Mode::kExact : Player::Mode::kCold;
      end_player();
      RecordHeader begun = header;
      begun.tiers = tiers_;
      KVBM_ASSIGN_OR_RETURN(player_, Player::create(begun, mode_, log_));
      if (report_.calls == 0) first_time_ = call.time;
    }
    shrink_places(tiers_, call.inputs);
    next_call_ = call.number + 1;
    ++report_.calls;
    report_.time = call.time - first_time_;
    if (is_new_file) last_counts_ = header.counts;
    last_number_file_ = header.file;
    for (const ChangedCount& changed : call.counts) {
      last_counts_[static_cast<size_t>(changed.counter)] = changed.value;
    }
    if (mode_ == Player::Mode::kExact) ++report_.compared_calls;
    if (auto wrong = player_->play(call, report_.recorded, report_.replayed)) {
      report_.difference = *std::move(wrong);
    }
    return {};
  }

  void end_player() {
    if (!player_) return;
    const RecordCounts counts = player_->counts();
    for (size_t i = 0; i < counts.size(); ++i) report_.replayed.counts[i] += counts[i];
    player_.reset();
  }

  LogSink& log_;
  const std::atomic<bool>* interrupted_;
  RecordReport report_;
  uint64_t run_ = 0;
  uint64_t next_call_ = 1;
  Duration first_time_{0};
  uint64_t last_number_file_ = 0;
  TierManagerOptions tiers_;  // of the file, less what has shrunk since
  RecordCounts first_counts_{};
  RecordCounts last_counts_{};
  Player::Mode mode_ = Player::Mode::kExact;
  std::unique_ptr<Player> player_;
};

struct Row {
  const char* name;
  const char* key;
  uint64_t RecordTally::*value;
};
constexpr Row kRows[] = {
    {"requests", "requests", &RecordTally::requests},
    {"look-ups", "lookups", &RecordTally::lookups},
    {"with an offer", "lookups_with_offer", &RecordTally::lookups_with_offer},
    {"tokens offered", "offered_tokens", &RecordTally::offered_tokens},
    {"loads begun", "loads_begun", &RecordTally::loads_begun},
    {"ended between steps", "loads_ended_between_steps", &RecordTally::loads_ended_between_steps},
    {"blocks failed there", "failed_between_steps", &RecordTally::failed_between_steps},
    {"steps", "steps", &RecordTally::steps},
    {"blocks loaded", "loaded_by_steps", &RecordTally::loaded_by_steps},
    {"blocks stored", "stored_by_steps", &RecordTally::stored_by_steps},
    {"fences", "fences", &RecordTally::fences},
};

}  // namespace

bool is_record_path(const std::filesystem::path& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    const auto files = files_of(path);
    return files && !files->empty();
  }
  if (!std::filesystem::is_regular_file(path, error)) return false;
  constexpr size_t kMagicBytes = 4;
  const auto beginning = read_file(path, kMagicBytes);
  return beginning && is_record(*beginning);
}

Result<RecordReport> replay_record(const std::filesystem::path& path, LogSink& log,
                                   const std::atomic<bool>* interrupted) {
  KVBM_ASSIGN_OR_RETURN(const auto files, files_of(path));
  if (files.empty()) {
    return make_error(ErrorCode::kInvalidArgument,
                      format_text("the folder {} has no record in it", path.native()));
  }
  RecordReplay replay(log, interrupted);
  for (const std::filesystem::path& name : files) {
    KVBM_ASSIGN_OR_RETURN(const auto bytes, read_file(name, SIZE_MAX));
    auto file = decode_record_file(bytes);
    if (!file) return make_error(std::move(file).error().with_context(name.native()));
    KVBM_TRY(replay.play(*file));
    if (replay.is_over()) break;
  }
  RecordReport report = replay.finish();
  report.record = path.native();
  return report;
}

std::string record_table(const RecordReport& report, TextStyle style) {
  const auto painted = [style](std::string_view text, std::string_view code) {
    if (style.colours == TextStyle::Colours::kOff) return std::string(text);
    return fmt::format("\x1b[{}m{}\x1b[0m", code, text);
  };
  std::string out;
  const auto line = [&out](std::string_view name, std::string_view value) {
    out += fmt::format("  {:<22}{}\n", name, value);
  };
  out += painted("record " + report.record, "1") + "\n";
  line("run began",
       fmt::format(
           "{:%Y-%m-%d %H:%M:%S} UTC",
           std::chrono::time_point_cast<std::chrono::seconds>(
               std::chrono::time_point_cast<std::chrono::system_clock::duration>(report.started))));
  line("files", std::to_string(report.files));
  line("calls",
       fmt::format("{} in {:.3f} s, {} compared", report.calls,
                   std::chrono::duration<double>(report.time).count(), report.compared_calls));
  for (const RecordGap& gap : report.gaps) {
    line("missing", fmt::format("{} calls from call {} on: played cold after them, not compared",
                                gap.num, gap.first));
  }
  if (report.cut_off_bytes > 0) {
    line("cut off", fmt::format("{} bytes after the last whole call", report.cut_off_bytes));
  }
  out +=
      "\n" + painted(fmt::format("  {:<22}{:>14}{:>14}", "", "recorded", "replayed"), "1") + "\n";
  const auto row = [&out](std::string_view name, uint64_t was, uint64_t is) {
    out += fmt::format("  {:<22}{:>14}{:>14}\n", name, was, is);
  };
  for (const Row& each : kRows) {
    row(each.name, report.recorded.*each.value, report.replayed.*each.value);
  }
  for (size_t i = 0; i < kNumRecordCounters; ++i) {
    if (report.recorded.counts[i] == 0 && report.replayed.counts[i] == 0) continue;
    row(to_string(static_cast<RecordCounter>(i)), report.recorded.counts[i],
        report.replayed.counts[i]);
  }
  out += "\n  ";
  if (!report.difference.empty()) {
    out += painted("different: " + report.difference, "1;31");
  } else if (report.compared_calls == report.calls) {
    out += "equal";
  } else if (report.compared_calls > 0) {
    out += "equal up to the first missing call; the rest was not compared";
  } else {
    out += "played cold: nothing was compared";
  }
  return out + "\n";
}

std::string record_json(const RecordReport& report) {
  const auto tally = [](const RecordTally& of) {
    nlohmann::ordered_json json;
    for (const Row& row : kRows) json[row.key] = of.*row.value;
    for (size_t i = 0; i < kNumRecordCounters; ++i) {
      json["counts"][std::string(to_string(static_cast<RecordCounter>(i)))] = of.counts[i];
    }
    return json;
  };
  nlohmann::ordered_json json;
  json["format"] = "kvbm-record-report";
  json["version"] = kRecordReportVersion;
  json["record"] = report.record;
  json["started_ns"] = report.started.time_since_epoch().count();
  json["files"] = report.files;
  json["cut_off_bytes"] = report.cut_off_bytes;
  json["calls"] = report.calls;
  json["compared_calls"] = report.compared_calls;
  json["time_ns"] = report.time.count();
  json["gaps"] = nlohmann::ordered_json::array();
  for (const RecordGap& gap : report.gaps) {
    json["gaps"].push_back({{"first", gap.first}, {"num", gap.num}});
  }
  json["recorded"] = tally(report.recorded);
  json["replayed"] = tally(report.replayed);
  json["difference"] = nullptr;
  if (!report.difference.empty()) json["difference"] = report.difference;
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace kvbm
