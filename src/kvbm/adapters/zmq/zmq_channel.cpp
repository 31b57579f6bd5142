// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/zmq/zmq_channel.hpp"

#include <algorithm>
#include <bit>
#include <exception>
#include <iterator>
#include <map>
#include <optional>
#include <string_view>
#include <utility>
#include <variant>

#include "kvbm/adapters/zmq/channel_message.hpp"
#include "kvbm/adapters/zmq/internal/channel_limits.hpp"
#include "kvbm/adapters/zmq/internal/message_socket.hpp"
#include "kvbm/adapters/zmq/internal/silence.hpp"
#include "kvbm/base/latch.hpp"
#include "kvbm/base/mutex.hpp"
#include "kvbm/base/text.hpp"

namespace kvbm {
namespace {

using internal::IncomingMessage;
using internal::MessageSocket;
using internal::SendOutcome;
using internal::Silence;
using internal::WakeUp;

constexpr std::string_view kComponent = "adapters.zmq";
/// For workers to hear of the end.
constexpr Duration kFarewell = std::chrono::milliseconds(500);
constexpr std::string_view kSaidGoodbye = "it said goodbye";
/// Between two questions to who may end a wait.
constexpr Duration kWaitSlice = std::chrono::milliseconds(20);

/// In a time that does not depend on where the two differ.
bool same_secret(std::string_view ours, std::string_view given) {
  volatile size_t differences = ours.size() ^ given.size();
  for (size_t i = 0; i < given.size(); ++i) {
    const char expected = ours.empty() ? '\0' : ours[i % ours.size()];
    differences = differences | static_cast<unsigned char>(expected ^ given[i]);
  }
  return differences == 0;
}

Status check(const ZmqChannelOptions& options) {
  const auto invalid = [](std::string message) {
    return make_error(ErrorCode::kInvalidArgument, std::move(message));
  };
  KVBM_TRY(internal::check_endpoint(options.endpoint, options.secret));
  if (options.num_ranks == 0) return invalid("a channel needs at least one rank");
  if (options.heartbeat_interval <= Duration::zero()) {
    return invalid("heartbeat_interval must be more than zero");
  }
  if (options.dead_after < 2 * options.heartbeat_interval) {
    return invalid("dead_after must be two heartbeat intervals at least");
  }
  return {};
}

/// "rank 1", "ranks 1, 3".
std::string name_ranks(const std::vector<RankId>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < ranks.size(); ++i) text += (i == 0 ? "" : ", ") + to_string(ranks[i]);
  return text;
}

/// "8 blocks of 256 bytes in G2 for layer group 0".
std::string describe(const PlaceSpec& spec) {
  return format_text("{} blocks of {} bytes in {} for layer group {}", spec.num_blocks,
                     spec.rank_block_bytes, to_string(spec.place.tier), spec.place.group.value());
}

}  // namespace

class ZmqChannel::Core {
 public:
  Core(const ZmqChannelOptions& options, Executor& executor, LogSink& log)
      : options_(options),
        executor_(executor),
        log_(log),
        ranks_(options.num_ranks),
        places_(options.num_ranks),
        num_alive_(options.num_ranks),
        answers_(options.num_ranks) {}

  Status start();
  void stop();

  [[nodiscard]] const std::string& endpoint() const noexcept { return socket_->endpoint(); }
  Result<std::vector<std::vector<PlaceSpec>>> wait_for_workers(TimePoint deadline,
                                                               const KeepWaiting& keep_waiting);
  Status provide(const PlaceSpec& spec, Duration limit, const KeepWaiting& keep_waiting);
  Status check_ranks() const;
  void send(std::span<const CopyOp> ops, std::span<const OpId> cancels);
  ChannelInbox receive();
  bool wait(TimePoint deadline);

 private:
  /// A rank as the thread of the channel knows it.
  struct Rank {
    std::string peer;  // empty: has not come, or is lost
    Silence silence;
    bool lost = false;
  };

  // Any thread.
  void post(std::vector<std::vector<std::byte>> messages);
  std::shared_ptr<Latch> next_change() KVBM_REQUIRES(mutex_);
  void changed();
  Result<bool> wait_until(const Latch& change, TimePoint deadline, const KeepWaiting& keep_waiting);
  std::vector<RankId> missing_ranks() const KVBM_REQUIRES(mutex_);

  // The thread of the channel.
  void run() noexcept;
  void work();
  void broadcast(const std::vector<std::byte>& message);
  void send_to(RankId rank, std::span<const std::byte> message);
  bool receive_some();
  void take(const IncomingMessage& incoming);
  void take_hello(const std::string& peer, HelloMessage&& hello);
  void take_answer(RankId rank, uint64_t request, Status answer);
  void take_results(RankId rank, std::vector<OpResult>&& results);
  void take_shrunk(RankId rank, const ShrunkMessage& shrunk);
  void refuse(const std::string& peer, ErrorCode code, std::string text);
  void ignore(std::string_view why);
  void beat(TimePoint now);
  void part(RankId rank, std::string_view why);

  const ZmqChannelOptions options_;
  Executor& executor_;
  LogSink& log_;
  std::unique_ptr<WakeUp> wake_up_;
  std::unique_ptr<MessageSocket> socket_;  // of the thread, once it runs

  // Of the thread.
  std::vector<Rank> ranks_;
  std::map<std::string, RankId> peers_;  // that have come and are not lost
  std::map<RankId, std::string> going_;  // no connection: what they said is still to be read; why
  bool all_came_ = false;
  uint64_t num_ignored_ = 0;

  mutable Mutex mutex_{LockRank::kAdapter, "zmq.channel"};
  std::vector<std::vector<std::byte>> outbox_ KVBM_GUARDED_BY(mutex_);  // each to every rank
  ChannelInbox inbox_ KVBM_GUARDED_BY(mutex_);
  std::vector<std::optional<std::vector<PlaceSpec>>> places_ KVBM_GUARDED_BY(mutex_);
  bool complete_ KVBM_GUARDED_BY(mutex_) = false;     // from now on who goes is lost
  std::vector<RankId> lost_ KVBM_GUARDED_BY(mutex_);  // reported or not
  size_t num_alive_ KVBM_GUARDED_BY(mutex_);
  uint64_t request_ KVBM_GUARDED_BY(mutex_) = 0;                        // the last provide
  std::vector<std::optional<Status>> answers_ KVBM_GUARDED_BY(mutex_);  // to it
  std::shared_ptr<Latch> change_ KVBM_GUARDED_BY(mutex_);  // set by whatever somebody may wait for
  bool stopping_ KVBM_GUARDED_BY(mutex_) = false;

  std::unique_ptr<TaskQueue> thread_;  // last: joins first
};

// --- the owner ----------------------------------------------------------------------------------

Status ZmqChannel::Core::start() {
  KVBM_ASSIGN_OR_RETURN(wake_up_, WakeUp::create());
  KVBM_ASSIGN_OR_RETURN(socket_,
                        MessageSocket::bind(options_.endpoint, internal::kMaxWorkerMessageBytes));
  KVBM_ASSIGN_OR_RETURN(thread_, executor_.create_queue({.name = "kvbm-channel"}));
  return thread_->post([this] { run(); });
}

void ZmqChannel::Core::stop() {
  {
    const MutexLock lock(mutex_);
    stopping_ = true;
  }
  wake_up_->wake();
  if (thread_) thread_->stop();
}

std::shared_ptr<Latch> ZmqChannel::Core::next_change() {
  if (!change_) change_ = std::make_shared<Latch>();
  return change_;
}

void ZmqChannel::Core::changed() {
  std::shared_ptr<Latch> change;
  {
    const MutexLock lock(mutex_);
    change = std::exchange(change_, nullptr);
  }
  if (change) change->set();
}

std::vector<RankId> ZmqChannel::Core::missing_ranks() const {
  std::vector<RankId> missing;
  for (size_t i = 0; i < places_.size(); ++i) {
    if (!places_[i]) missing.emplace_back(static_cast<uint16_t>(i));
  }
  return missing;
}

/// False at the deadline. Errors: kCancelled.
Result<bool> ZmqChannel::Core::wait_until(const Latch& change, TimePoint deadline,
                                          const KeepWaiting& keep_waiting) {
  if (!keep_waiting) return executor_.wait(change, deadline);
  for (;;) {
    const TimePoint end = std::min(deadline, saturating_add(executor_.clock().now(), kWaitSlice));
    if (executor_.wait(change, end)) return true;
    if (!keep_waiting()) {
      return make_error(ErrorCode::kCancelled, "the wait for the workers was given up");
    }
    if (end == deadline) return false;
  }
}

Result<std::vector<std::vector<PlaceSpec>>> ZmqChannel::Core::wait_for_workers(
    TimePoint deadline, const KeepWaiting& keep_waiting) {
  for (bool late = false;;) {
    std::shared_ptr<Latch> change;
    {
      const MutexLock lock(mutex_);
      if (!lost_.empty()) {
        return make_error(ErrorCode::kUnavailable, name_ranks(lost_) + " came and was lost again");
      }
      if (complete_) {
        std::vector<std::vector<PlaceSpec>> places;
        for (const auto& of_rank : places_) places.push_back(*of_rank);
        return places;
      }
      if (late) {
        return make_error(
            ErrorCode::kTimeout,
            format_text("{} of {} did not come to {} in time; look at the logs of these workers",
                        name_ranks(missing_ranks()), options_.num_ranks, endpoint()));
      }
      change = next_change();
    }
    KVBM_ASSIGN_OR_RETURN(const bool has_changed, wait_until(*change, deadline, keep_waiting));
    late = !has_changed;
  }
}

Status ZmqChannel::Core::check_ranks() const {
  const MutexLock lock(mutex_);
  KVBM_CONTRACT(complete_, "provide() before all workers have come");
  if (lost_.empty()) return {};
  return make_error(ErrorCode::kUnavailable, "lost meanwhile: " + name_ranks(lost_));
}

Status ZmqChannel::Core::provide(const PlaceSpec& spec, Duration limit,
                                 const KeepWaiting& keep_waiting) {
  const TimePoint deadline = saturating_add(executor_.clock().now(), limit);
  uint64_t request = 0;
  {
    const MutexLock lock(mutex_);
    request = ++request_;
    answers_.assign(options_.num_ranks, std::nullopt);
    for (const RankId rank : lost_) {
      answers_[rank.value()] = make_error(ErrorCode::kUnavailable, "the rank is lost");
    }
  }
  post({encode(ProvideMessage{.request = request, .places = {spec}})});
  for (bool late = false;;) {
    std::shared_ptr<Latch> change;
    {
      const MutexLock lock(mutex_);
      std::vector<RankId> silent;
      for (uint16_t i = 0; i < options_.num_ranks; ++i) {
        if (!answers_[i]) silent.emplace_back(i);
      }
      if (silent.empty()) {
        for (uint16_t i = 0; i < options_.num_ranks; ++i) {
          if (*answers_[i]) continue;
          return make_error(Error(answers_[i]->error()).with_context("rank " + std::to_string(i)));
        }
        return {};
      }
      if (late) {
        return make_error(
            ErrorCode::kTimeout,
            format_text("{} did not make {} within {} s; look at the logs of these workers",
                        name_ranks(silent), describe(spec),
                        std::chrono::duration<double>(limit).count()));
      }
      change = next_change();
    }
    KVBM_ASSIGN_OR_RETURN(const bool has_changed, wait_until(*change, deadline, keep_waiting));
    late = !has_changed;
  }
}

void ZmqChannel::Core::post(std::vector<std::vector<std::byte>> messages) {
  {
    const MutexLock lock(mutex_);
    std::move(messages.begin(), messages.end(), std::back_inserter(outbox_));
  }
  wake_up_->wake();
}

void ZmqChannel::Core::send(std::span<const CopyOp> ops, std::span<const OpId> cancels) {
  // In messages that the workers accept, which have a limit.
  std::vector<std::vector<std::byte>> messages;
  while (!ops.empty()) {
    size_t count = 0;
    uint64_t bytes = 0;
    do {
      const uint64_t more = internal::wire_bytes(ops[count]);
      KVBM_CONTRACT(more <= internal::kMaxOperationBytes,
                    format_text("operation {} takes {} bytes", ops[count].op, more));
      if (count > 0 && bytes + more > internal::kMessageBytes) break;
      bytes += more;
    } while (++count < ops.size());
    messages.push_back(encode_operations(ops.first(count), {}));
    ops = ops.subspan(count);
  }
  while (!cancels.empty()) {
    const auto some = cancels.first(std::min(cancels.size(), internal::kMaxCancels));
    messages.push_back(encode_operations({}, some));
    cancels = cancels.subspan(some.size());
  }
  if (messages.empty()) return;
  {
    const MutexLock lock(mutex_);
    KVBM_CONTRACT(complete_, "send() before all workers have come");
  }
  post(std::move(messages));
}

ChannelInbox ZmqChannel::Core::receive() {
  const MutexLock lock(mutex_);
  return std::exchange(inbox_, {});
}

bool ZmqChannel::Core::wait(TimePoint deadline) {
  for (;;) {
    std::shared_ptr<Latch> change;
    {
      const MutexLock lock(mutex_);
      if (!inbox_.empty()) return true;
      if (num_alive_ == 0) return false;
      change = next_change();
    }
    if (!executor_.wait(*change, deadline)) return false;
  }
}

// --- the thread ---------------------------------------------------------------------------------

void ZmqChannel::Core::run() noexcept {
  try {
    work();
  } catch (const std::exception& failure) {
    KVBM_LOG_ERROR(log_, kComponent, "the channel cannot go on, all ranks are lost: {}",
                   failure.what());
  }
  std::vector<RankId> left;
  {
    const MutexLock lock(mutex_);
    complete_ = true;
    for (uint16_t i = 0; i < options_.num_ranks; ++i) {
      if (!ranks_[i].lost) left.emplace_back(i);
    }
    for (const RankId rank : left) {
      lost_.push_back(rank);
      inbox_.lost.push_back(rank);
      auto& answer = answers_[rank.value()];
      if (!answer) answer = make_error(ErrorCode::kUnavailable, "the channel is closed");
    }
    num_alive_ = 0;
  }
  changed();
}

void ZmqChannel::Core::work() {
  const Clock& clock = executor_.clock();
  TimePoint next_beat = saturating_add(clock.now(), options_.heartbeat_interval);
  for (bool more = false;;) {
    const Duration until_beat = std::max(Duration::zero(), next_beat - clock.now());
    socket_->wait(*wake_up_, more ? Duration::zero() : until_beat);
    wake_up_->clear();
    std::vector<std::vector<std::byte>> outbox;
    bool stopping = false;
    {
      const MutexLock lock(mutex_);
      outbox.swap(outbox_);
      stopping = stopping_;
    }
    for (const auto& message : outbox) broadcast(message);
    if (stopping) break;
    more = receive_some();
    if (const TimePoint now = clock.now(); now >= next_beat) {
      beat(now);
      next_beat = saturating_add(now, options_.heartbeat_interval);
    }
    if (going_.empty()) continue;
    int turns = 0;
    while (receive_some() && ++turns < internal::kMaxDrainTurns) continue;
    for (const auto& [rank, why] : std::exchange(going_, {})) part(rank, why);
  }
  broadcast(encode(GoodbyeMessage{}));
  // Once the connection is gone, a worker's ZeroMQ forgets what it has not read: each says that it
  // has.
  const TimePoint deadline = saturating_add(clock.now(), kFarewell);
  while (going_.size() < peers_.size() && clock.now() < deadline) {
    wake_up_->clear();
    socket_->wait(*wake_up_, deadline - clock.now());
    receive_some();
  }
}

void ZmqChannel::Core::broadcast(const std::vector<std::byte>& message) {
  for (uint16_t i = 0; i < options_.num_ranks; ++i) send_to(RankId(i), message);
}

void ZmqChannel::Core::send_to(RankId rank, std::span<const std::byte> message) {
  const std::string& peer = ranks_[rank.value()].peer;
  if (peer.empty() || going_.contains(rank)) return;
  switch (socket_->try_send(peer, message)) {
    case SendOutcome::kSent:
      return;
    case SendOutcome::kGone:
      going_.emplace(rank, "its connection is gone");
      return;
    case SendOutcome::kFull:
      going_.emplace(rank, "it does not take what it is sent");
      return;
  }
}

/// Whether there may be more.
bool ZmqChannel::Core::receive_some() {
  for (int i = 0; i < internal::kMessagesPerTurn; ++i) {
    const std::optional<IncomingMessage> incoming = socket_->try_receive();
    if (!incoming) return false;
    take(*incoming);
  }
  return true;
}

void ZmqChannel::Core::take(const IncomingMessage& incoming) {
  Result<ChannelMessage> message = decode_channel_message(incoming.payload);
  const auto it = peers_.find(incoming.peer);
  const bool is_known = it != peers_.end();
  if (!message) {
    const Error& error = message.error();
    if (is_known || error.code() != ErrorCode::kUnsupported) return ignore(error.message());
    return refuse(incoming.peer, error.code(), error.message());
  }
  if (auto* hello = std::get_if<HelloMessage>(&*message)) {
    take_hello(incoming.peer, std::move(*hello));
    return;
  }
  if (!is_known) {
    return ignore(format_text("a {} from nobody that it knows", name_of(*message)));
  }
  const RankId rank = it->second;
  ranks_[rank.value()].silence.end(executor_.clock().now());
  if (auto* results = std::get_if<ResultsMessage>(&*message)) {
    take_results(rank, std::move(results->results));
  } else if (const auto* shrunk = std::get_if<ShrunkMessage>(&*message)) {
    take_shrunk(rank, *shrunk);
  } else if (const auto* provided = std::get_if<ProvidedMessage>(&*message)) {
    take_answer(rank, provided->request, {});
  } else if (auto* refusal = std::get_if<RefusalMessage>(&*message)) {
    take_answer(rank, refusal->request, make_error(refusal->code, std::move(refusal->text)));
  } else if (std::holds_alternative<GoodbyeMessage>(*message)) {
    going_.emplace(rank, kSaidGoodbye);
  } else if (!std::holds_alternative<HeartbeatMessage>(*message)) {
    ignore(format_text("a {} from rank {}", name_of(*message), rank.value()));
  }
}

void ZmqChannel::Core::take_hello(const std::string& peer, HelloMessage&& hello) {
  if (!same_secret(options_.secret, hello.secret)) {
    return refuse(peer, ErrorCode::kRejected,
                  "the worker's secret is not the leader's: they are of two runs; give each run an "
                  "endpoint of its own");
  }
  const uint16_t index = hello.rank.value();
  if (index >= options_.num_ranks) {
    return refuse(peer, ErrorCode::kInvalidArgument,
                  format_text("rank {} is not one of {}", index, options_.num_ranks));
  }
  Rank& rank = ranks_[index];
  if (rank.lost) {
    return refuse(peer, ErrorCode::kRejected,
                  format_text("rank {} was lost and cannot come again; start the leader and all "
                              "workers anew",
                              index));
  }
  const std::vector<std::byte> welcome = encode(WelcomeMessage{
      .heartbeat_interval = options_.heartbeat_interval, .dead_after = options_.dead_after});
  // One that is gone leaves room for another, as long as nothing was built on it.
  if (!rank.peer.empty() && rank.peer != peer) {
    send_to(hello.rank, encode(HeartbeatMessage{}));
    if (!all_came_ && going_.erase(hello.rank) > 0) part(hello.rank, "its connection is gone");
  }
  if (rank.peer == peer) return send_to(hello.rank, welcome);  // it asked again
  if (!rank.peer.empty() || peers_.contains(peer)) {
    return refuse(peer, ErrorCode::kRejected,
                  format_text("rank {} is taken by another worker", index));
  }
  rank.peer = peer;
  rank.silence.end(executor_.clock().now());
  peers_.emplace(peer, hello.rank);
  send_to(hello.rank, welcome);
  KVBM_LOG_INFO(log_, kComponent, "rank {} has come", index);
  {
    const MutexLock lock(mutex_);
    places_[index] = std::move(hello.places);
    all_came_ = complete_ = missing_ranks().empty();
  }
  changed();
}

void ZmqChannel::Core::take_answer(RankId rank, uint64_t request, Status answer) {
  {
    const MutexLock lock(mutex_);
    auto& place = answers_[rank.value()];
    if (request != request_ || request == 0 || place) return;  // too late
    place = std::move(answer);
  }
  changed();
}

void ZmqChannel::Core::take_results(RankId rank, std::vector<OpResult>&& results) {
  const bool is_own = std::all_of(results.begin(), results.end(),
                                  [rank](const OpResult& result) { return result.rank == rank; });
  if (!is_own) return ignore(format_text("results of others from rank {}", rank.value()));
  {
    const MutexLock lock(mutex_);
    std::move(results.begin(), results.end(), std::back_inserter(inbox_.results));
  }
  changed();
}

void ZmqChannel::Core::take_shrunk(RankId rank, const ShrunkMessage& shrunk) {
  {
    const MutexLock lock(mutex_);
    inbox_.shrunk.push_back({rank, shrunk.place, shrunk.num_blocks});
  }
  changed();
}

void ZmqChannel::Core::refuse(const std::string& peer, ErrorCode code, std::string text) {
  ignore(text);
  // Whether it arrives is the stranger's affair.
  static_cast<void>(socket_->try_send(
      peer, encode(RefusalMessage{.request = 0, .code = code, .text = std::move(text)})));
}

/// Of many only some are logged: a stranger must not fill the disk.
void ZmqChannel::Core::ignore(std::string_view why) {
  if (!std::has_single_bit(++num_ignored_)) return;
  KVBM_LOG_WARNING(log_, kComponent, "ignored message number {} that is none for this leader: {}",
                   num_ignored_, why);
}

void ZmqChannel::Core::beat(TimePoint now) {
  broadcast(encode(HeartbeatMessage{}));
  for (uint16_t i = 0; i < options_.num_ranks; ++i) {
    Rank& rank = ranks_[i];
    if (rank.peer.empty()) continue;
    if (rank.silence.go_on(now, options_.heartbeat_interval) < options_.dead_after) continue;
    going_.emplace(RankId(i), "it was silent for too long");
  }
}

/// A rank that has come is there no more.
void ZmqChannel::Core::part(RankId id, std::string_view why) {
  Rank& rank = ranks_[id.value()];
  static_cast<void>(socket_->try_send(rank.peer, encode(GoodbyeMessage{})));
  peers_.erase(rank.peer);
  rank.peer.clear();
  if (all_came_) {
    rank.lost = true;
    // One that says goodbye was stopped on purpose.
    const LogLevel level = why == kSaidGoodbye ? LogLevel::kInfo : LogLevel::kError;
    KVBM_LOG_AT(log_, level, kComponent, "rank {} is lost: {}", id.value(), why);
  } else {
    KVBM_LOG_WARNING(log_, kComponent, "rank {} went before all had come: {}", id.value(), why);
  }
  {
    const MutexLock lock(mutex_);
    if (all_came_) {
      lost_.push_back(id);
      inbox_.lost.push_back(id);
      --num_alive_;
      auto& answer = answers_[id.value()];
      if (!answer) answer = make_error(ErrorCode::kUnavailable, "the rank is lost");
    } else {
      places_[id.value()] = std::nullopt;
      // Another worker may come in its place.
      std::erase_if(inbox_.shrunk, [id](const ShrunkPlace& shrunk) { return shrunk.rank == id; });
    }
  }
  changed();
}

// --- ZmqChannel ---------------------------------------------------------------------------------

Result<std::unique_ptr<ZmqChannel>> ZmqChannel::create(const ZmqChannelOptions& options,
                                                       Executor& executor, LogSink& log) {
  KVBM_TRY(check(options));
  auto core = std::make_unique<Core>(options, executor, log);
  KVBM_TRY(core->start());
  return std::unique_ptr<ZmqChannel>(new ZmqChannel(std::move(core)));
}

ZmqChannel::ZmqChannel(std::unique_ptr<Core> core) : core_(std::move(core)) {}
ZmqChannel::~ZmqChannel() { core_->stop(); }

const std::string& ZmqChannel::endpoint() const noexcept { return core_->endpoint(); }

Result<std::vector<std::vector<PlaceSpec>>> ZmqChannel::wait_for_workers(
    TimePoint deadline, const KeepWaiting& keep_waiting) {
  return core_->wait_for_workers(deadline, keep_waiting);
}

Status ZmqChannel::provide(std::span<const PlaceSpec> specs, Duration limit,
                           const KeepWaiting& keep_waiting) {
  KVBM_TRY(core_->check_ranks());
  for (const PlaceSpec& spec : specs) KVBM_TRY(core_->provide(spec, limit, keep_waiting));
  return {};
}

void ZmqChannel::send(std::span<const CopyOp> ops, std::span<const OpId> cancels) {
  core_->send(ops, cancels);
}

ChannelInbox ZmqChannel::receive() { return core_->receive(); }

bool ZmqChannel::wait(TimePoint deadline) { return core_->wait(deadline); }

}  // namespace kvbm
