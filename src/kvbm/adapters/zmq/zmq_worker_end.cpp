// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/zmq/zmq_worker_end.hpp"

#include <algorithm>
#include <chrono>
#include <exception>
#include <iterator>
#include <optional>
#include <span>
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

/// Between two attempts to say hello, while nobody listens and while nobody answers.
constexpr Duration kKnockInterval = std::chrono::milliseconds(20);
constexpr Duration kHelloInterval = std::chrono::seconds(1);

/// All but the code, which travels apart.
std::string reason_of(const Error& error) {
  return error.describe().substr(to_string(error.code()).size() + 2);
}

/// What goes to the leader, from any thread; callbacks of the worker may outlive the end.
class Outbox {
 public:
  struct Content {
    std::vector<OpResult> results;
    std::vector<ShrunkPlace> shrunk;
    std::vector<std::pair<uint64_t, Status>> answers;  // to requests for places
    bool stopping = false;
  };

  explicit Outbox(std::unique_ptr<WakeUp> wake_up) : wake_up_(std::move(wake_up)) {}

  void add(OpResult&& result) {
    {
      const MutexLock lock(mutex_);
      if (closed_) return;
      const bool is_first = content_.results.empty();
      content_.results.push_back(std::move(result));
      if (!is_first) return;  // the thread is awake, or about to be
    }
    wake_up_->wake();
  }

  void add(const ShrunkPlace& shrunk) {
    {
      const MutexLock lock(mutex_);
      if (closed_) return;
      content_.shrunk.push_back(shrunk);
    }
    wake_up_->wake();
  }

  void answer(uint64_t request, Status status) {
    {
      const MutexLock lock(mutex_);
      content_.answers.emplace_back(request, std::move(status));
    }
    wake_up_->wake();
  }

  void stop() {
    {
      const MutexLock lock(mutex_);
      content_.stopping = true;
    }
    wake_up_->wake();
  }

  /// Nothing of the worker comes any more, and what is there is dropped.
  void close() {
    const MutexLock lock(mutex_);
    closed_ = true;
    content_.results.clear();
    content_.shrunk.clear();
  }

  [[nodiscard]] Content take() {
    wake_up_->clear();
    const MutexLock lock(mutex_);
    const bool stopping = content_.stopping;
    Content content = std::exchange(content_, {});
    content_.stopping = stopping;
    return content;
  }

  [[nodiscard]] const WakeUp& wake_up() const noexcept { return *wake_up_; }

 private:
  const std::unique_ptr<WakeUp> wake_up_;
  Mutex mutex_{LockRank::kAdapter, "zmq.outbox"};
  Content content_ KVBM_GUARDED_BY(mutex_);
  bool closed_ KVBM_GUARDED_BY(mutex_) = false;
};

}  // namespace

class ZmqWorkerEnd::Core {
 public:
  Core(ZmqWorkerEndOptions options, Worker& worker, Executor& executor, LogSink& log)
      : options_(std::move(options)), worker_(worker), executor_(executor), log_(log) {}

  Status start();
  void stop();
  Status wait_for_leader(TimePoint deadline);

 private:
  void forget_worker();

  // The thread of the end.
  void run() noexcept;
  void work();
  void say(std::span<const std::byte> message);
  void send(Outbox::Content&& content);
  bool receive_some();
  void take(const IncomingMessage& incoming);
  void take_welcome(const WelcomeMessage& welcome);
  void take_provide(ProvideMessage&& request);
  void tick(TimePoint now);
  void end(Error why, LogLevel level = LogLevel::kError);
  [[nodiscard]] Duration interval() const noexcept;

  const ZmqWorkerEndOptions options_;
  Worker& worker_;
  Executor& executor_;
  LogSink& log_;
  std::shared_ptr<Outbox> outbox_;
  std::unique_ptr<MessageSocket> socket_;  // of the thread, once it runs

  // Of the thread.
  std::optional<WelcomeMessage> welcome_;  // the leader has taken this rank
  std::vector<OpResult> early_;            // results from before that
  std::vector<ShrunkPlace> early_shrunk_;
  bool said_hello_ = false;
  bool going_ = false;  // no connection: what the leader said is still to be read
  bool over_ = false;
  Silence silence_;
  size_t num_requests_ = 0;           // without an answer
  std::unique_ptr<TaskQueue> maker_;  // while there are any

  Mutex mutex_{LockRank::kAdapter, "zmq.worker_end"};
  std::optional<Status> verdict_ KVBM_GUARDED_BY(mutex_);  // of the leader
  std::shared_ptr<Latch> change_ KVBM_GUARDED_BY(mutex_);  // set when it is there

  std::unique_ptr<TaskQueue> thread_;  // last: joins first
};

Status ZmqWorkerEnd::Core::start() {
  KVBM_TRY(internal::check_endpoint(options_.endpoint, options_.secret));
  KVBM_ASSIGN_OR_RETURN(auto wake_up, WakeUp::create());
  outbox_ = std::make_shared<Outbox>(std::move(wake_up));
  KVBM_ASSIGN_OR_RETURN(
      socket_, MessageSocket::connect(options_.endpoint, internal::kMaxLeaderMessageBytes));
  KVBM_ASSIGN_OR_RETURN(
      thread_, executor_.create_queue({.name = "kvbm-leader-" + to_string(options_.rank)}));
  worker_.on_result([outbox = outbox_](OpResult&& result) { outbox->add(std::move(result)); });
  worker_.on_shrunk([outbox = outbox_](const ShrunkPlace& shrunk) { outbox->add(shrunk); });
  Status posted = thread_->post([this] { run(); });
  if (!posted) forget_worker();
  return posted;
}

void ZmqWorkerEnd::Core::forget_worker() {
  worker_.on_result(nullptr);
  worker_.on_shrunk(nullptr);
}

void ZmqWorkerEnd::Core::stop() {
  forget_worker();
  outbox_->stop();
  thread_->stop();
}

Status ZmqWorkerEnd::Core::wait_for_leader(TimePoint deadline) {
  for (bool late = false;;) {
    std::shared_ptr<Latch> change;
    {
      const MutexLock lock(mutex_);
      if (verdict_) return *verdict_;
      if (late) {
        return make_error(ErrorCode::kTimeout,
                          format_text("no leader has answered at {}", options_.endpoint));
      }
      if (!change_) change_ = std::make_shared<Latch>();
      change = change_;
    }
    late = !executor_.wait(*change, deadline);
  }
}

void ZmqWorkerEnd::Core::run() noexcept {
  try {
    work();
  } catch (const std::exception& failure) {
    end({ErrorCode::kInternal, failure.what()});
  }
  outbox_->close();
  maker_.reset();
  socket_.reset();
}

Duration ZmqWorkerEnd::Core::interval() const noexcept {
  if (welcome_) return welcome_->heartbeat_interval;
  return said_hello_ ? kHelloInterval : kKnockInterval;
}

void ZmqWorkerEnd::Core::work() {
  const Clock& clock = executor_.clock();
  TimePoint next_tick = clock.now();
  for (bool more = false; !over_;) {
    const Duration until_tick = std::max(Duration::zero(), next_tick - clock.now());
    socket_->wait(outbox_->wake_up(), more ? Duration::zero() : until_tick);
    Outbox::Content content = outbox_->take();
    const bool stopping = content.stopping;
    send(std::move(content));
    if (stopping) {
      say(encode(GoodbyeMessage{}));
      return;
    }
    const bool was_taken = welcome_.has_value();
    more = receive_some();
    const TimePoint now = clock.now();
    if (!over_ && now >= next_tick) tick(now);
    if (now >= next_tick || welcome_.has_value() != was_taken) {
      next_tick = saturating_add(now, interval());
    }
    if (!going_) continue;
    int turns = 0;
    while (receive_some() && ++turns < internal::kMaxDrainTurns) continue;
    end({ErrorCode::kUnavailable, "the connection is gone"});
  }
}

/// To a leader that has taken this rank.
void ZmqWorkerEnd::Core::say(std::span<const std::byte> message) {
  if (!welcome_ || over_ || going_) return;
  going_ = socket_->try_send({}, message) != SendOutcome::kSent;
}

void ZmqWorkerEnd::Core::send(Outbox::Content&& content) {
  for (auto& [request, status] : content.answers) {
    if (status) {
      say(encode(ProvidedMessage{.request = request}));
    } else {
      say(encode(RefusalMessage{
          .request = request, .code = status.error().code(), .text = reason_of(status.error())}));
    }
    if (--num_requests_ == 0) maker_.reset();
  }
  early_shrunk_.insert(early_shrunk_.end(), content.shrunk.begin(), content.shrunk.end());
  if (welcome_) {
    // Before the results of what is cancelled for it.
    for (const ShrunkPlace& shrunk : std::exchange(early_shrunk_, {})) {
      say(encode(ShrunkMessage{.place = shrunk.place, .num_blocks = shrunk.num_blocks}));
    }
  }
  std::vector<OpResult> results = std::exchange(early_, {});
  std::move(content.results.begin(), content.results.end(), std::back_inserter(results));
  if (!welcome_) {
    early_ = std::move(results);
    return;
  }
  for (std::span<OpResult> left = results; !left.empty() && !over_;) {
    size_t count = 0;
    uint64_t bytes = 0;
    while (count < left.size() && bytes < internal::kMessageBytes) {
      OpResult& result = left[count++];
      if (result.failed.size() > internal::kMaxFailedPositions) result.failed.clear();
      bytes += internal::wire_bytes(result);
    }
    say(encode_results(left.first(count)));
    left = left.subspan(count);
  }
}

/// Whether there may be more.
bool ZmqWorkerEnd::Core::receive_some() {
  for (int i = 0; i < internal::kMessagesPerTurn && !over_; ++i) {
    const std::optional<IncomingMessage> incoming = socket_->try_receive();
    if (!incoming) return false;
    silence_.end(executor_.clock().now());
    take(*incoming);
  }
  return true;
}

void ZmqWorkerEnd::Core::take(const IncomingMessage& incoming) {
  Result<ChannelMessage> message = decode_channel_message(incoming.payload);
  if (!message) return end(std::move(message).error());
  if (const auto* welcome = std::get_if<WelcomeMessage>(&*message)) {
    return take_welcome(*welcome);
  }
  if (auto* refusal = std::get_if<RefusalMessage>(&*message)) {
    return end({refusal->code, std::move(refusal->text)});
  }
  if (std::holds_alternative<GoodbyeMessage>(*message)) {
    say(encode(GoodbyeMessage{}));
    return end({ErrorCode::kUnavailable, "it said goodbye"}, LogLevel::kInfo);
  }
  if (!welcome_) return;
  if (const auto* operations = std::get_if<OperationsMessage>(&*message)) {
    if (!operations->ops.empty()) worker_.submit(operations->ops);
    if (!operations->cancels.empty()) worker_.cancel(operations->cancels);
  } else if (auto* provide = std::get_if<ProvideMessage>(&*message)) {
    take_provide(std::move(*provide));
  }
}

void ZmqWorkerEnd::Core::take_welcome(const WelcomeMessage& welcome) {
  if (welcome_) return;  // two hellos, two answers
  welcome_ = welcome;
  KVBM_LOG_INFO(log_, kComponent, "the leader at {} has taken rank {}", options_.endpoint,
                options_.rank.value());
  std::shared_ptr<Latch> change;
  {
    const MutexLock lock(mutex_);
    verdict_ = Status();
    change = std::exchange(change_, nullptr);
  }
  if (change) change->set();
}

/// Not here: memory and files take their time, and heartbeats must go on.
void ZmqWorkerEnd::Core::take_provide(ProvideMessage&& request) {
  ++num_requests_;
  const uint64_t number = request.request;
  Status posted;
  if (!maker_) {
    auto queue = executor_.create_queue({.name = "kvbm-places-" + to_string(options_.rank)});
    if (queue) {
      maker_ = *std::move(queue);
    } else {
      posted = make_error(std::move(queue).error());
    }
  }
  if (maker_) {
    posted = maker_->try_post([this, asked = std::move(request)] {
      Status made;
      try {
        for (const PlaceSpec& spec : asked.places) {
          if (made) made = worker_.provide(spec);
        }
      } catch (const std::exception& failure) {
        made = make_error(ErrorCode::kInternal, failure.what());
      }
      outbox_->answer(asked.request, std::move(made));
    });
  }
  if (!posted) outbox_->answer(number, std::move(posted));
}

void ZmqWorkerEnd::Core::tick(TimePoint now) {
  if (!welcome_) {
    const auto hello = encode(
        HelloMessage{.rank = options_.rank, .secret = options_.secret, .places = options_.places});
    said_hello_ = socket_->try_send({}, hello) == SendOutcome::kSent;
    return;
  }
  say(encode(HeartbeatMessage{}));
  if (!over_ && silence_.go_on(now, welcome_->heartbeat_interval) >= welcome_->dead_after) {
    end({ErrorCode::kUnavailable, "it was silent for too long"});
  }
}

void ZmqWorkerEnd::Core::end(Error why, LogLevel level) {
  if (std::exchange(over_, true)) return;
  if (welcome_) {
    KVBM_LOG_AT(log_, level, kComponent, "the leader of rank {} is gone: {}", options_.rank.value(),
                why.message());
    why = Error(ErrorCode::kUnavailable, "the leader is gone: " + why.message());
  } else {
    KVBM_LOG_ERROR(log_, kComponent, "the leader does not take rank {}: {}", options_.rank.value(),
                   why.describe());
  }
  outbox_->close();
  worker_.expect_only_steps();
  std::shared_ptr<Latch> change;
  {
    const MutexLock lock(mutex_);
    verdict_ = make_error(std::move(why));
    change = std::exchange(change_, nullptr);
  }
  if (change) change->set();
}

Result<std::unique_ptr<ZmqWorkerEnd>> ZmqWorkerEnd::create(ZmqWorkerEndOptions options,
                                                           Worker& worker, Executor& executor,
                                                           LogSink& log) {
  auto core = std::make_unique<Core>(std::move(options), worker, executor, log);
  KVBM_TRY(core->start());
  return std::unique_ptr<ZmqWorkerEnd>(new ZmqWorkerEnd(std::move(core)));
}

ZmqWorkerEnd::ZmqWorkerEnd(std::unique_ptr<Core> core) : core_(std::move(core)) {}
ZmqWorkerEnd::~ZmqWorkerEnd() { core_->stop(); }

Status ZmqWorkerEnd::wait_for_leader(TimePoint deadline) {
  return core_->wait_for_leader(deadline);
}

}  // namespace kvbm
