// SPDX-License-Identifier: Apache-2.0
// The two ends of a channel between processes, over real sockets and with real processes.
#include "kvbm/adapters/zmq/zmq_channel.hpp"

#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <functional>
#include <future>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zmq.hpp>

#include "kvbm/adapters/zmq/channel_message.hpp"
#include "kvbm/adapters/zmq/internal/channel_limits.hpp"
#include "kvbm/adapters/zmq/internal/message_socket.hpp"
#include "kvbm/adapters/zmq/zmq_worker_end.hpp"
#include "kvbm/base/bytes.hpp"
#include "kvbm/base/contract.hpp"
#include "kvbm/base/hash.hpp"
#include "kvbm/base/latch.hpp"
#include "kvbm/base/thread_executor.hpp"

#include "tests/contract/channel_contract.hpp"
#include "tests/support/error_code.hpp"
#include "tests/support/rank_rig.hpp"
#include "tests/support/recording_log_sink.hpp"
#include "tests/support/temporary_folder.hpp"

namespace kvbm::testing {
namespace {

using internal::MessageSocket;
using internal::SendOutcome;
using internal::WakeUp;
using std::chrono::minutes;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr Duration kBeat = milliseconds(20);

// --- the cluster over it ------------------------------------------------------------------------

/// A leader's end and the ends of its workers, in one process.
class LinkedChannel final : public Channel {
 public:
  LinkedChannel(Executor& executor, LogSink& log, const std::vector<Worker*>& workers) {
    const ZmqChannelOptions options = {.endpoint = "ipc://" + (folder_.path() / "leader").string(),
                                       .num_ranks = static_cast<uint16_t>(workers.size()),
                                       .secret = {}};
    channel_ = ZmqChannel::create(options, executor, log).value();
    for (size_t i = 0; i < workers.size(); ++i) {
      const RankId rank(static_cast<uint16_t>(i));
      ends_.push_back(
          ZmqWorkerEnd::create(
              {.endpoint = channel_->endpoint(), .rank = rank, .secret = {}, .places = {}},
              *workers[i], executor, log)
              .value());
    }
    if (!channel_->wait_for_workers(executor.clock().now() + seconds(30))) {
      throw std::runtime_error("the workers did not come");
    }
  }

  void send(std::span<const CopyOp> ops, std::span<const OpId> cancels) override {
    channel_->send(ops, cancels);
  }
  [[nodiscard]] ChannelInbox receive() override { return channel_->receive(); }
  [[nodiscard]] bool wait(TimePoint deadline) override { return channel_->wait(deadline); }

 private:
  TemporaryFolder folder_;
  std::unique_ptr<ZmqChannel> channel_;
  std::vector<std::unique_ptr<ZmqWorkerEnd>> ends_;
};

struct ZmqWiring {
  static std::unique_ptr<Executor> make_executor(LogSink& log) {
    return std::make_unique<ThreadExecutor>(log);
  }
  static std::unique_ptr<Channel> connect(Executor& executor, LogSink& log,
                                          const std::vector<Worker*>& workers) {
    return std::make_unique<LinkedChannel>(executor, log, workers);
  }
};

INSTANTIATE_TYPED_TEST_SUITE_P(Zmq, ChannelContract, ZmqWiring);

// --- tools --------------------------------------------------------------------------------------

/// A process of its own. Made before this one has threads. Killed at the end, if it still is.
class Process {
 public:
  explicit Process(const std::function<void()>& run) : id_(::fork()) {
    if (id_ != 0) return;
    run();
    ::_exit(0);
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;
  ~Process() {
    tell(SIGKILL);
    ::waitpid(id_, nullptr, 0);
  }

  void tell(int signal) const { ::kill(id_, signal); }

 private:
  pid_t id_;
};

[[noreturn]] void wait_to_be_killed() {
  for (;;) ::pause();
}

/// Speaks as it likes.
class Peer {
 public:
  static Peer connect(const std::string& endpoint) {
    return Peer(MessageSocket::connect(endpoint, internal::kMaxLeaderMessageBytes).value());
  }
  static Peer bind(const std::string& endpoint) {
    return Peer(MessageSocket::bind(endpoint, internal::kMaxWorkerMessageBytes).value());
  }

  /// Waits for a connection, which a worker's side has to.
  void say(std::span<const std::byte> message, const std::string& to = {}) {
    for (int i = 0; i < 1000; ++i) {
      if (socket_->try_send(to, message) == SendOutcome::kSent) return;
      socket_->wait(*never_, milliseconds(10));
    }
    ADD_FAILURE() << "nobody is there";
  }
  void say(const ChannelMessage& message, const std::string& to = {}) { say(encode(message), to); }

  /// The next message that is no heartbeat.
  std::optional<ChannelMessage> hear() {
    for (int i = 0; i < 1000; ++i) {
      auto incoming = socket_->try_receive();
      if (!incoming) {
        socket_->wait(*never_, milliseconds(10));
        continue;
      }
      heard_from = incoming->peer;
      auto message = decode_channel_message(incoming->payload);
      if (!message) {
        ADD_FAILURE() << message.error();
        return std::nullopt;
      }
      if (!std::holds_alternative<HeartbeatMessage>(*message)) return *std::move(message);
    }
    ADD_FAILURE() << "nothing came";
    return std::nullopt;
  }
  template <class T>
  T hear_a() {
    const auto message = hear();
    if (!message || !std::holds_alternative<T>(*message)) {
      ADD_FAILURE() << "a " << (message ? name_of(*message) : "nothing") << " came";
      return {};
    }
    return std::get<T>(*message);
  }

  std::string heard_from;

 private:
  explicit Peer(std::unique_ptr<MessageSocket> socket) : socket_(std::move(socket)) {}

  std::unique_ptr<MessageSocket> socket_;
  std::unique_ptr<WakeUp> never_ = WakeUp::create().value();
};

CopyOp copy(uint64_t id, uint32_t from, uint32_t to) {
  CopyOp op;
  op.op = OpId(id);
  op.src = {TierId::kG1, kGroup};
  op.dst = {TierId::kG2, kGroup};
  op.from = {BlockId(from)};
  op.to = {BlockId(to)};
  return op;
}

/// A rank has done an operation.
ResultsMessage success(uint64_t id, uint16_t rank) {
  OpResult result;
  result.op = OpId(id);
  result.rank = RankId(rank);
  return {.results = {result}};
}

PlaceSpec host_place(GroupId group = kGroup) {
  PlaceSpec spec;
  spec.place = {TierId::kG2, group};
  spec.num_blocks = 8;
  spec.rank_block_bytes = kRigBlockBytes;
  return spec;
}

size_t entries_of(const char* folder) {
  const std::filesystem::directory_iterator entries(folder);
  return static_cast<size_t>(std::distance(begin(entries), end(entries)));
}

/// Everything of one process. Processes are made before start().
class ZmqChannelTest : public ::testing::Test {
 protected:
  [[nodiscard]] std::string endpoint() const {
    return "ipc://" + (folder_.path() / "leader").string();
  }

  void start() {
    log_ = std::make_unique<RecordingLogSink>(LogLevel::kInfo);
    executor_ = std::make_unique<ThreadExecutor>(*log_);
  }

  [[nodiscard]] TimePoint soon() const { return executor_->clock().now() + seconds(20); }

  ZmqChannelOptions options(uint16_t num_ranks) const {
    return {.endpoint = endpoint(),
            .num_ranks = num_ranks,
            .secret = "open",
            .heartbeat_interval = kBeat,
            .dead_after = minutes(10)};
  }
  std::unique_ptr<ZmqChannel> leader(const ZmqChannelOptions& options) {
    return ZmqChannel::create(options, *executor_, *log_).value();
  }
  std::unique_ptr<ZmqChannel> leader(uint16_t num_ranks) { return leader(options(num_ranks)); }

  std::unique_ptr<RankRig> rig(uint16_t rank, const RankRigOptions& options = {}) {
    RankRigOptions of_rank = options;
    of_rank.rank = rank;
    return std::make_unique<RankRig>(*executor_, *log_, of_rank);
  }
  std::unique_ptr<ZmqWorkerEnd> end(RankRig& rig, uint16_t rank,
                                    const std::string& secret = "open") {
    return ZmqWorkerEnd::create({.endpoint = endpoint(),
                                 .rank = RankId(rank),
                                 .secret = secret,
                                 .places = {rig.specs.front()}},
                                *rig.worker, *executor_, *log_)
        .value();
  }

  /// A worker in a process of its own.
  std::unique_ptr<Process> worker_process(uint16_t rank) {
    return std::make_unique<Process>([this, rank] {
      ::setenv("TMPDIR", folder_.path().c_str(), 1);  // so that nothing is left
      start();
      const auto of_rank = rig(rank);
      const auto its_end = end(*of_rank, rank);
      wait_to_be_killed();
    });
  }

  bool eventually(const std::function<bool()>& what) const {
    const Latch never;
    for (const TimePoint deadline = soon(); executor_->clock().now() < deadline;) {
      if (what()) return true;
      static_cast<void>(executor_->wait(never, executor_->clock().now() + milliseconds(2)));
    }
    return what();
  }

  /// Records whose message holds the text.
  [[nodiscard]] int logged(LogLevel level, std::string_view text) const {
    const auto messages = log_->messages(level);
    return static_cast<int>(std::ranges::count_if(messages, [&](const std::string& message) {
      return message.find(text) != std::string::npos;
    }));
  }

  /// All that comes until nothing more can be wanted.
  ChannelInbox collect(Channel& channel, size_t num_results, size_t num_lost = 0) const {
    ChannelInbox all;
    while (all.results.size() < num_results || all.lost.size() < num_lost) {
      if (!channel.wait(soon())) break;
      ChannelInbox some = channel.receive();
      EXPECT_TRUE(some.results.empty() || all.lost.empty()) << "a result after the loss";
      std::ranges::move(some.results, std::back_inserter(all.results));
      std::ranges::move(some.lost, std::back_inserter(all.lost));
    }
    EXPECT_EQ(all.results.size(), num_results);
    EXPECT_EQ(all.lost.size(), num_lost);
    return all;
  }

  TemporaryFolder folder_;
  std::unique_ptr<RecordingLogSink> log_;
  std::unique_ptr<ThreadExecutor> executor_;
};

// --- the barrier --------------------------------------------------------------------------------

TEST_F(ZmqChannelTest, AllRanksComeByAFileOrByAPort) {
  start();
  for (const std::string& where : {endpoint(), std::string("tcp://127.0.0.1:*")}) {
    ZmqChannelOptions of_leader = options(3);
    of_leader.endpoint = where;
    const auto channel = leader(of_leader);
    EXPECT_THAT(channel->endpoint(), ::testing::Not(HasSubstr("*")));
    std::vector<std::unique_ptr<RankRig>> rigs;
    std::vector<std::unique_ptr<ZmqWorkerEnd>> ends;
    for (const uint16_t rank : {uint16_t{2}, uint16_t{0}, uint16_t{1}}) {
      rigs.push_back(rig(rank, {.engine_blocks = 10U + rank}));
      ends.push_back(ZmqWorkerEnd::create({.endpoint = channel->endpoint(),
                                           .rank = RankId(rank),
                                           .secret = "open",
                                           .places = {rigs.back()->specs.front()}},
                                          *rigs.back()->worker, *executor_, *log_)
                         .value());
    }
    const auto places = channel->wait_for_workers(soon());
    ASSERT_TRUE(places) << places.error();
    ASSERT_EQ(places->size(), 3U);
    for (uint32_t rank = 0; rank < 3; ++rank) {
      ASSERT_EQ((*places)[rank].size(), 1U);
      EXPECT_EQ((*places)[rank].front().place.tier, TierId::kG1);
      EXPECT_EQ((*places)[rank].front().num_blocks, 10 + rank);
    }
    for (const auto& one : ends) EXPECT_TRUE(one->wait_for_leader(soon()));
  }
}

TEST_F(ZmqChannelTest, WorkersMayComeBeforeTheirLeader) {
  start();
  const auto worker = rig(0);
  const auto its_end = end(*worker, 0);
  const Status early = its_end->wait_for_leader(executor_->clock().now() + milliseconds(50));
  EXPECT_EQ(code_of(early), ErrorCode::kTimeout);
  const auto channel = leader(1);
  EXPECT_TRUE(channel->wait_for_workers(soon()));
  EXPECT_TRUE(its_end->wait_for_leader(soon()));
}

TEST_F(ZmqChannelTest, RanksThatDoNotComeAreNamedAndMayComeLater) {
  start();
  const auto channel = leader(4);
  std::vector<std::unique_ptr<RankRig>> rigs;
  std::vector<std::unique_ptr<ZmqWorkerEnd>> ends;
  const auto come = [&](uint16_t rank) {
    rigs.push_back(rig(rank));
    ends.push_back(end(*rigs.back(), rank));
    EXPECT_TRUE(ends.back()->wait_for_leader(soon()));
  };
  come(0);
  come(2);
  const auto places = channel->wait_for_workers(executor_->clock().now() + milliseconds(20));
  ASSERT_EQ(code_of(places), ErrorCode::kTimeout);
  EXPECT_THAT(places.error().message(), HasSubstr("ranks 1, 3 of 4 did not come"));
  come(3);
  const auto again = channel->wait_for_workers(executor_->clock().now() + milliseconds(20));
  ASSERT_EQ(code_of(again), ErrorCode::kTimeout);
  EXPECT_THAT(again.error().message(), HasSubstr("rank 1 of 4 did not come"));
  come(1);
  EXPECT_TRUE(channel->wait_for_workers(soon()));
}

TEST_F(ZmqChannelTest, AWorkerThatGoesBeforeAllHaveComeMayBeReplaced) {
  start();
  const auto channel = leader(2);
  const auto first = rig(0);
  auto its_end = end(*first, 0);
  EXPECT_TRUE(its_end->wait_for_leader(soon()));
  its_end.reset();
  EXPECT_TRUE(eventually([&] { return logged(LogLevel::kWarning, "rank 0 went") == 1; }));
  const auto places = channel->wait_for_workers(executor_->clock().now());
  ASSERT_EQ(code_of(places), ErrorCode::kTimeout);
  EXPECT_THAT(places.error().message(), HasSubstr("ranks 0, 1"));
  const auto second = rig(0);
  const auto other = rig(1);
  const auto second_end = end(*second, 0);
  const auto other_end = end(*other, 1);
  EXPECT_TRUE(channel->wait_for_workers(soon()));
  EXPECT_TRUE(channel->receive().empty());
}

TEST_F(ZmqChannelTest, WhatAWorkerLackedThatWasReplacedIsForgotten) {
  start();
  const auto channel = leader(3);
  std::vector<Peer> peers;
  for (uint16_t rank = 0; rank < 2; ++rank) {
    peers.push_back(Peer::connect(endpoint()));
    peers.back().say(HelloMessage{.rank = RankId(rank), .secret = "open", .places = {}});
    static_cast<void>(peers.back().hear_a<WelcomeMessage>());
    peers.back().say(ShrunkMessage{{TierId::kG2, kGroup}, 3U + rank});
  }
  EXPECT_TRUE(channel->wait(soon()));
  peers[0].say(GoodbyeMessage{});
  EXPECT_TRUE(eventually([&] { return logged(LogLevel::kWarning, "rank 0 went") == 1; }));
  EXPECT_TRUE(channel->wait(soon()));
  EXPECT_THAT(channel->receive().shrunk,
              ElementsAre(ShrunkPlace{RankId(1), {TierId::kG2, kGroup}, 4}));
}

TEST_F(ZmqChannelTest, WhoHasAnotherSecretIsRefused) {
  start();
  const auto channel = leader(1);
  const auto worker = rig(0);
  for (const std::string secret : {"", "ope", "open.", "shut"}) {
    const auto stranger = end(*worker, 0, secret);
    EXPECT_EQ(code_of(stranger->wait_for_leader(soon())), ErrorCode::kRejected) << secret;
  }
  EXPECT_EQ(code_of(channel->wait_for_workers(executor_->clock().now())), ErrorCode::kTimeout);
  const auto friendly = end(*worker, 0);
  EXPECT_TRUE(channel->wait_for_workers(soon()));
}

TEST_F(ZmqChannelTest, ARankIsTakenOnceAndMustBeOneOfTheirs) {
  start();
  const auto channel = leader(2);
  const auto worker = rig(0);
  const auto twin = rig(0);
  const auto its_end = end(*worker, 0);
  EXPECT_TRUE(its_end->wait_for_leader(soon()));
  const auto its_twin = end(*twin, 0);
  EXPECT_EQ(code_of(its_twin->wait_for_leader(soon())), ErrorCode::kRejected);
  const auto third = end(*twin, 2);
  const Status refused = third->wait_for_leader(soon());
  ASSERT_EQ(code_of(refused), ErrorCode::kInvalidArgument);
  EXPECT_THAT(refused.error().message(), HasSubstr("rank 2 is not one of 2"));
  // The first has not noticed.
  EXPECT_TRUE(its_end->wait_for_leader(soon()));
  const auto other = rig(1);
  const auto other_end = end(*other, 1);
  EXPECT_TRUE(channel->wait_for_workers(soon()));
}

TEST_F(ZmqChannelTest, AnotherVersionIsRefusedOnEitherSide) {
  start();
  const auto another_version = [](const ChannelMessage& message) {
    std::vector<std::byte> bytes = encode(message);
    bytes[12] = std::byte{7};
    ByteWriter out;
    out.bytes(bytes);
    out.patch_u64(4, checksum(out.view().subspan(12)));
    return std::move(out).take();
  };
  {
    const auto channel = leader(1);
    Peer newer = Peer::connect(endpoint());
    newer.say(another_version(HelloMessage{}));
    const auto refusal = newer.hear_a<RefusalMessage>();
    EXPECT_EQ(refusal.code, ErrorCode::kUnsupported);
    EXPECT_THAT(refusal.text, HasSubstr("channel version 7"));
  }
  Peer newer = Peer::bind(endpoint());
  const auto worker = rig(0);
  const auto its_end = end(*worker, 0);
  EXPECT_EQ(newer.hear_a<HelloMessage>().secret, "open");
  newer.say(another_version(HeartbeatMessage{}), newer.heard_from);
  EXPECT_EQ(code_of(its_end->wait_for_leader(soon())), ErrorCode::kUnsupported);
}

TEST_F(ZmqChannelTest, OptionsThatMakeNoSenseAreRefused) {
  start();
  const auto expect_refused = [&](auto&& change) {
    ZmqChannelOptions wrong = options(1);
    change(wrong);
    EXPECT_EQ(code_of(ZmqChannel::create(wrong, *executor_, *log_)), ErrorCode::kInvalidArgument);
  };
  expect_refused([](auto& options) { options.endpoint = "inproc://leader"; });
  expect_refused([](auto& options) { options.endpoint = "ipc://*"; });
  expect_refused([](auto& options) { options.endpoint = "ipc://@anybody"; });
  expect_refused([](auto& options) { options.num_ranks = 0; });
  expect_refused([](auto& options) { options.heartbeat_interval = Duration::zero(); });
  expect_refused([](auto& options) { options.dead_after = kBeat; });
  expect_refused([](auto& options) { options.secret = std::string(4097, 'x'); });
  expect_refused([](auto& options) {
    options.endpoint = "tcp://127.0.0.1:*";
    options.secret = "";
  });
  ZmqChannelOptions no_folder = options(1);
  no_folder.endpoint = "ipc://" + (folder_.path() / "no" / "leader").string();
  EXPECT_FALSE(ZmqChannel::create(no_folder, *executor_, *log_));
  const auto worker = rig(0);
  const ZmqWorkerEndOptions tcp = {
      .endpoint = "tcp://127.0.0.1:1", .rank = RankId(0), .secret = {}, .places = {}};
  EXPECT_EQ(code_of(ZmqWorkerEnd::create(tcp, *worker->worker, *executor_, *log_)),
            ErrorCode::kInvalidArgument);
}

TEST_F(ZmqChannelTest, ASocketFileThatWasLeftBehindIsNoObstacle) {
  start();
  const std::filesystem::path path = folder_.path() / "leader";
  const int left = ::socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
  ASSERT_EQ(::bind(left, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  ::close(left);
  ASSERT_TRUE(std::filesystem::exists(path));
  const auto channel = leader(1);
  const auto worker = rig(0);
  const auto its_end = end(*worker, 0);
  EXPECT_TRUE(channel->wait_for_workers(soon()));
}

// --- places -------------------------------------------------------------------------------------

TEST_F(ZmqChannelTest, EveryRankMakesThePlacesThatItIsAskedFor) {
  start();
  const auto channel = leader(2);
  const auto first = rig(0, {.host_blocks = 0, .disk_blocks = 0});
  const auto second = rig(1, {.host_blocks = 0, .disk_blocks = 0});
  const auto first_end = end(*first, 0);
  const auto second_end = end(*second, 1);
  EXPECT_THROW(static_cast<void>(channel->provide({}, minutes(1))), ContractViolation);
  ASSERT_TRUE(channel->wait_for_workers(soon()));
  const PlaceSpec place = host_place();
  EXPECT_TRUE(channel->provide({&place, 1}, minutes(1)));
  const CopyOp op = copy(1, 0, 0);
  channel->send({&op, 1}, {});
  for (const OpResult& result : collect(*channel, 2).results) {
    EXPECT_EQ(result.outcome, Outcome::kSucceeded) << "rank " << result.rank;
    EXPECT_EQ(result.bytes, kRigBlockBytes);
  }
}

TEST_F(ZmqChannelTest, ARankThatCannotMakeAPlaceIsNamedWithItsReason) {
  start();
  const auto channel = leader(2);
  const auto first = rig(0, {.num_groups = 2, .host_blocks = 0, .disk_blocks = 0});
  const auto second = rig(1, {.num_groups = 1, .host_blocks = 0, .disk_blocks = 0});
  const auto first_end = end(*first, 0);
  const auto second_end = end(*second, 1);
  ASSERT_TRUE(channel->wait_for_workers(soon()));
  const PlaceSpec place = host_place(GroupId(1));
  const Status refused = channel->provide({&place, 1}, minutes(1));
  ASSERT_EQ(code_of(refused), ErrorCode::kInvalidArgument);
  EXPECT_THAT(refused.error().message(), HasSubstr("rank 1: "));
  const PlaceSpec other = host_place();
  EXPECT_TRUE(channel->provide({&other, 1}, minutes(1)));
}

/// A leader with a worker that is one and one that comes and then does as the test likes.
class ZmqPlacesTest : public ZmqChannelTest {
 protected:
  void SetUp() override {
    start();
    channel_ = leader(2);
    worker_ = rig(0, {.num_groups = 2, .host_blocks = 0, .disk_blocks = 0});
    end_ = end(*worker_, 0);
    peer_ = std::make_unique<Peer>(Peer::connect(endpoint()));
    peer_->say(HelloMessage{.rank = RankId(1), .secret = "open", .places = {}});
    static_cast<void>(peer_->hear_a<WelcomeMessage>());
    ASSERT_TRUE(channel_->wait_for_workers(soon()));
  }

  std::unique_ptr<ZmqChannel> channel_;
  std::unique_ptr<RankRig> worker_;
  std::unique_ptr<ZmqWorkerEnd> end_;
  std::unique_ptr<Peer> peer_;
};

TEST_F(ZmqPlacesTest, ARankThatHangsIsNamedWithWhatItWasToMake) {
  const std::vector<PlaceSpec> places = {host_place(), host_place(GroupId(1))};
  const Status silent = channel_->provide(places, milliseconds(500));
  ASSERT_EQ(code_of(silent), ErrorCode::kTimeout);
  EXPECT_THAT(silent.error().message(),
              HasSubstr("rank 1 did not make 8 blocks of 256 bytes in G2 for layer group 0 within "
                        "0.5 s"));
  // What is not made ends it: nobody is asked for more.
  EXPECT_THAT(peer_->hear_a<ProvideMessage>().places, ElementsAre(places.front()));
  peer_->say(ProvidedMessage{.request = 1});  // too late: of the request before
  const Status again = channel_->provide(std::span(places).last(1), milliseconds(500));
  ASSERT_EQ(code_of(again), ErrorCode::kTimeout);
  EXPECT_THAT(again.error().message(), HasSubstr("rank 1 did not make"));
}

TEST_F(ZmqPlacesTest, EachPlaceHasTheWholeLimit) {
  const std::vector<PlaceSpec> places = {host_place(), host_place(GroupId(1))};
  auto queue = executor_->create_queue({.name = "peer"}).value();
  ASSERT_TRUE(queue->post([this] {
    const Latch never;
    for (const uint64_t request : {uint64_t{1}, uint64_t{2}}) {
      EXPECT_EQ(peer_->hear_a<ProvideMessage>().request, request);
      static_cast<void>(executor_->wait(never, executor_->clock().now() + milliseconds(1200)));
      peer_->say(ProvidedMessage{.request = request});
    }
  }));
  EXPECT_TRUE(channel_->provide(places, milliseconds(2200)));
  queue->stop();
}

TEST_F(ZmqPlacesTest, ARankThatIsLostEndsTheWait) {
  auto queue = executor_->create_queue({.name = "peer"}).value();
  ASSERT_TRUE(queue->post([this] {
    static_cast<void>(peer_->hear_a<ProvideMessage>());
    peer_->say(GoodbyeMessage{});
  }));
  const PlaceSpec place = host_place();
  const Status lost = channel_->provide({&place, 1}, minutes(1));
  queue->stop();
  ASSERT_EQ(code_of(lost), ErrorCode::kUnavailable);
  EXPECT_THAT(lost.error().message(), HasSubstr("rank 1"));
  EXPECT_EQ(code_of(channel_->provide({}, minutes(1))), ErrorCode::kUnavailable);
}

TEST_F(ZmqPlacesTest, WhoWaitsMayStopWaiting) {
  int questions = 0;
  const KeepWaiting three_times = [&questions] { return ++questions < 3; };
  const PlaceSpec place = host_place();
  EXPECT_EQ(code_of(channel_->provide({&place, 1}, minutes(1), three_times)),
            ErrorCode::kCancelled);
  EXPECT_EQ(questions, 3);
  channel_.reset();
  channel_ = leader(3);
  questions = 0;
  EXPECT_EQ(code_of(channel_->wait_for_workers(soon(), three_times)), ErrorCode::kCancelled);
  EXPECT_EQ(questions, 3);
  // It asks until its deadline, and not longer.
  EXPECT_EQ(code_of(channel_->wait_for_workers(executor_->clock().now() + milliseconds(50),
                                               [] { return true; })),
            ErrorCode::kTimeout);
}

// --- operations ---------------------------------------------------------------------------------

TEST_F(ZmqChannelTest, ResultsComeInTheOrderInWhichTheWorkerGaveThem) {
  start();
  const auto channel = leader(1);
  const auto worker = rig(0, {.max_running_operations = 1});
  const auto its_end = end(*worker, 0);
  ASSERT_TRUE(channel->wait_for_workers(soon()));
  EXPECT_FALSE(channel->wait(executor_->clock().now() + milliseconds(5)));
  EXPECT_TRUE(channel->receive().empty());
  std::vector<CopyOp> ops;
  for (uint64_t id = 1; id <= 50; ++id) {
    ops.push_back(copy(id, 0, 0));
    // Each waits for the one that is sent after it: they end backwards.
    if (id < 50) ops.back().after = {Gate::op_done(OpId(id + 1))};
  }
  channel->send(ops, {});
  const ChannelInbox inbox = collect(*channel, 50);
  for (size_t i = 0; i < inbox.results.size(); ++i) {
    EXPECT_EQ(inbox.results[i].op, OpId(50 - i));
  }
}

TEST_F(ZmqChannelTest, CancelsReachTheWorker) {
  start();
  const auto channel = leader(1);
  const auto worker = rig(0);
  const auto its_end = end(*worker, 0);
  ASSERT_TRUE(channel->wait_for_workers(soon()));
  CopyOp gated = copy(1, 0, 0);
  gated.after = {Gate::step_end(StepId(1))};
  const OpId cancelled(1);
  channel->send({&gated, 1}, {&cancelled, 1});
  EXPECT_EQ(collect(*channel, 1).results.front().outcome, Outcome::kCancelled);
}

TEST_F(ZmqChannelTest, APlaceThatShrinksIsToldBeforeWhatIsCancelledForIt) {
  start();
  std::promise<void> refuse;
  const auto pinner = std::make_shared<PinnerDouble>();
  pinner->refuse_from = 1;
  pinner->refuse_after = refuse.get_future().share();
  const auto channel = leader(1);
  constexpr uint32_t kBlocksPerSlice = (uint32_t{2} << 20) / kRigBlockBytes;
  const auto worker = rig(0, {.host_blocks = 2 * kBlocksPerSlice,
                              .pinner = pinner,
                              .pin_slice_bytes = kBlocksPerSlice * kRigBlockBytes});
  const auto its_end = end(*worker, 0);
  ASSERT_TRUE(channel->wait_for_workers(soon()));
  const std::vector<CopyOp> ops = {copy(1, 0, kBlocksPerSlice), copy(2, 0, kBlocksPerSlice - 1)};
  channel->send(ops, {});
  ChannelInbox inbox = collect(*channel, 1);
  EXPECT_EQ(inbox.results.front().op, OpId(2));
  refuse.set_value();
  ASSERT_TRUE(channel->wait(soon()));
  inbox = channel->receive();
  EXPECT_THAT(inbox.shrunk,
              ElementsAre(ShrunkPlace{RankId(0), {TierId::kG2, kGroup}, kBlocksPerSlice}));
  if (inbox.results.empty()) inbox = collect(*channel, 1);
  EXPECT_EQ(inbox.results.front().outcome, Outcome::kCancelled);
}

TEST_F(ZmqChannelTest, LongListsTravelInSeveralMessages) {
  start();
  const auto channel = leader(1);
  Peer peer = Peer::connect(endpoint());
  peer.say(HelloMessage{.rank = RankId(0), .secret = "open", .places = {}});
  static_cast<void>(peer.hear_a<WelcomeMessage>());
  ASSERT_TRUE(channel->wait_for_workers(soon()));
  std::vector<CopyOp> ops(300, copy(1, 0, 0));
  for (size_t i = 0; i < ops.size(); ++i) {
    ops[i].op = OpId(i + 1);
    ops[i].from.resize(2000);
    ops[i].to.resize(2000);
  }
  const std::vector<OpId> cancels(internal::kMaxCancels + 1, OpId(4));
  channel->send(ops, cancels);
  std::vector<CopyOp> came;
  std::vector<OpId> cancelled;
  size_t num_messages = 0;
  while (cancelled.size() < cancels.size() && !HasFailure()) {
    auto message = peer.hear_a<OperationsMessage>();
    EXPECT_TRUE(message.ops.empty() || cancelled.empty()) << "a cancel before its operation";
    std::ranges::move(message.ops, std::back_inserter(came));
    std::ranges::move(message.cancels, std::back_inserter(cancelled));
    ++num_messages;
  }
  EXPECT_EQ(came, ops);
  EXPECT_EQ(cancelled, cancels);
  EXPECT_EQ(num_messages, 5U + 2U);  // 4.8 MB in messages of 1 MiB, and two lists of cancels

  CopyOp too_long = copy(301, 0, 0);
  too_long.from.resize(internal::kMaxOperationBytes / 8);
  too_long.to.resize(too_long.from.size());
  EXPECT_THROW(channel->send({&too_long, 1}, {}), ContractViolation);
}

TEST_F(ZmqChannelTest, WhatAWorkerAnsweredBeforeItsLeaderCameIsSentLater) {
  start();
  const auto worker = rig(0);
  const auto its_end = end(*worker, 0);
  constexpr uint64_t kCount = 60'000;
  std::vector<CopyOp> ops;
  for (uint64_t id = 1; id <= kCount; ++id) {
    ops.push_back(copy(id, 0, 0));
    ops.back().dst.tier = TierId::kG4;  // refused at once
  }
  worker->worker->submit(ops);
  Peer fake = Peer::bind(endpoint());
  static_cast<void>(fake.hear_a<HelloMessage>());
  fake.say(WelcomeMessage{.heartbeat_interval = kBeat, .dead_after = minutes(1)}, fake.heard_from);
  EXPECT_TRUE(its_end->wait_for_leader(soon()));
  uint64_t next = 1;
  size_t num_messages = 0;
  while (next <= kCount && !HasFailure()) {
    for (const OpResult& result : fake.hear_a<ResultsMessage>().results) {
      ASSERT_EQ(result.op, OpId(next++));
    }
    ++num_messages;
  }
  EXPECT_GE(num_messages, 2U);
}

// --- losses -------------------------------------------------------------------------------------

TEST_F(ZmqChannelTest, AKilledWorkerIsLostOnceAfterWhatItAnswered) {
  const auto staying = worker_process(0);
  const auto killed = worker_process(1);
  start();
  const auto channel = leader(2);
  ASSERT_TRUE(channel->wait_for_workers(soon()));
  std::vector<CopyOp> ops;
  for (uint64_t id = 1; id <= 20; ++id) {
    ops.push_back(copy(id, 0, 0));
    if (id > 1) ops.back().after = {Gate::op_done(OpId(id - 1))};
  }
  ops.back().after = {Gate::step_end(StepId(1))};  // which does not come
  channel->send(ops, {});
  EXPECT_EQ(collect(*channel, 2 * 19).lost.size(), 0U);

  const TimePoint before = executor_->clock().now();
  killed->tell(SIGKILL);
  EXPECT_THAT(collect(*channel, 0, 1).lost, ElementsAre(RankId(1)));
  // Long before its silence would have told: that takes ten minutes here.
  EXPECT_LT(executor_->clock().now() - before, seconds(10));
  EXPECT_EQ(logged(LogLevel::kError, "rank 1 is lost: its connection is gone"), 1);
  EXPECT_EQ(code_of(channel->wait_for_workers(soon())), ErrorCode::kUnavailable);

  // The other goes on, and the loss is not told again.
  const CopyOp more = copy(21, 1, 1);
  channel->send({&more, 1}, {});
  const ChannelInbox inbox = collect(*channel, 1);
  EXPECT_EQ(inbox.results.front().rank, RankId(0));
  staying->tell(SIGKILL);
  EXPECT_THAT(collect(*channel, 0, 1).lost, ElementsAre(RankId(0)));
  EXPECT_FALSE(channel->wait(kNever));  // nothing can come
}

TEST_F(ZmqChannelTest, ResultsOnTheWayAreReceivedBeforeTheLoss) {
  start();
  for (int round = 0; round < 20; ++round) {
    const auto channel = leader(1);
    {
      Peer peer = Peer::connect(endpoint());
      peer.say(HelloMessage{.rank = RankId(0), .secret = "open", .places = {}});
      static_cast<void>(peer.hear_a<WelcomeMessage>());
      ASSERT_TRUE(channel->wait_for_workers(soon()));
      for (uint64_t id = 1; id <= 200; ++id) {
        peer.say(success(id, 0));
      }
    }  // it goes without a word
    EXPECT_EQ(collect(*channel, 200, 1).results.back().op, OpId(200));
  }
}

TEST_F(ZmqChannelTest, AWorkerThatIsSilentForTooLongIsLost) {
  const auto stopped = worker_process(0);
  start();
  ZmqChannelOptions impatient = options(1);
  impatient.dead_after = seconds(1);
  const auto channel = leader(impatient);
  ASSERT_TRUE(channel->wait_for_workers(soon()));
  stopped->tell(SIGSTOP);
  EXPECT_THAT(collect(*channel, 0, 1).lost, ElementsAre(RankId(0)));
  EXPECT_EQ(logged(LogLevel::kError, "rank 0 is lost: it was silent for too long"), 1);
  // It cannot come again.
  stopped->tell(SIGCONT);
  const auto worker = rig(0);
  const auto again = end(*worker, 0);
  const Status refused = again->wait_for_leader(soon());
  ASSERT_EQ(code_of(refused), ErrorCode::kRejected);
  EXPECT_THAT(refused.error().message(), HasSubstr("was lost and cannot come again"));
}

TEST_F(ZmqChannelTest, AWorkerThatTakesNothingIsLost) {
  start();
  const auto channel = leader(1);
  Peer peer = Peer::connect(endpoint());
  peer.say(HelloMessage{.rank = RankId(0), .secret = "open", .places = {}});
  static_cast<void>(peer.hear_a<WelcomeMessage>());
  ASSERT_TRUE(channel->wait_for_workers(soon()));
  const std::vector<OpId> cancels(200, OpId(1));
  const auto is_lost = [&] { return logged(LogLevel::kError, "does not take") == 1; };
  for (int i = 0; i < 3 * internal::kMaxUnsentMessages && !is_lost(); ++i) {
    channel->send({}, cancels);
  }
  EXPECT_THAT(collect(*channel, 0, 1).lost, ElementsAre(RankId(0)));
  EXPECT_TRUE(is_lost());
}

TEST_F(ZmqChannelTest, AWorkerThatSaysGoodbyeIsLostWithoutAnError) {
  start();
  const auto channel = leader(1);
  const auto worker = rig(0);
  auto its_end = end(*worker, 0);
  ASSERT_TRUE(channel->wait_for_workers(soon()));
  const CopyOp op = copy(1, 0, 0);
  channel->send({&op, 1}, {});
  EXPECT_TRUE(channel->wait(soon()));
  EXPECT_TRUE(worker->worker->stop(soon()));
  its_end.reset();
  EXPECT_THAT(collect(*channel, 1, 1).lost, ElementsAre(RankId(0)));
  EXPECT_EQ(logged(LogLevel::kError, ""), 0);
  EXPECT_EQ(logged(LogLevel::kInfo, "rank 0 is lost: it said goodbye"), 1);
}

/// The worker does what it is told in its own process, and says why nobody hears of it, once.
TEST_F(ZmqChannelTest, AWorkerGoesOnWithoutItsLeader) {
  const Process killed([this] {
    start();
    const auto channel = leader(1);
    wait_to_be_killed();
  });
  start();
  const auto worker = rig(0);
  const auto its_end = end(*worker, 0);
  ASSERT_TRUE(its_end->wait_for_leader(soon()));
  killed.tell(SIGKILL);
  const std::string gone = "the leader of rank 0 is gone: the connection is gone";
  EXPECT_TRUE(eventually([&] { return logged(LogLevel::kError, gone) == 1; }));
  EXPECT_EQ(code_of(its_end->wait_for_leader(soon())), ErrorCode::kUnavailable);
  std::vector<OpResult> seen;
  worker->worker->observe_results([&](const OpResult& result) { seen.push_back(result); });
  const CopyOp op = copy(1, 0, 0);
  worker->worker->submit({&op, 1});
  EXPECT_TRUE(eventually([&] { return worker->worker->num_open() == 0; }));
  EXPECT_TRUE(worker->worker->stop(soon()));
  ASSERT_EQ(seen.size(), 1U);
  EXPECT_EQ(seen.front().outcome, Outcome::kSucceeded);
  EXPECT_EQ(logged(LogLevel::kError, ""), 1);
}

TEST_F(ZmqChannelTest, AFenceOnWhatTheLeaderDidNotSendEndsWithTheLeader) {
  start();
  auto channel = leader(1);
  const auto worker = rig(0);
  const auto its_end = end(*worker, 0);
  ASSERT_TRUE(its_end->wait_for_leader(soon()));
  StepPlan step;
  step.step = StepId(1);
  step.fences = {OpId(2)};
  ASSERT_TRUE(worker->worker->begin_step(step, worker->compute));
  CopyOp op = copy(1, 0, 0);
  op.after = {Gate::op_done(OpId(2))};
  worker->worker->submit({&op, 1});
  EXPECT_EQ(code_of(worker->device->synchronize(worker->compute,
                                                executor_->clock().now() + milliseconds(50))),
            ErrorCode::kTimeout);
  channel.reset();
  EXPECT_TRUE(worker->device->synchronize(worker->compute, soon()));
  EXPECT_TRUE(eventually([&] { return worker->worker->num_open() == 0; }));
  worker->worker->end_step(worker->compute);
}

TEST_F(ZmqChannelTest, ALeaderThatSaysGoodbyeIsNoError) {
  start();
  auto channel = leader(1);
  const auto worker = rig(0);
  const auto its_end = end(*worker, 0);
  ASSERT_TRUE(its_end->wait_for_leader(soon()));
  channel.reset();
  EXPECT_TRUE(eventually([&] { return logged(LogLevel::kInfo, "it said goodbye") == 1; }));
  EXPECT_EQ(code_of(its_end->wait_for_leader(soon())), ErrorCode::kUnavailable);
  EXPECT_EQ(logged(LogLevel::kError, ""), 0);
}

TEST_F(ZmqChannelTest, ALeaderThatIsSilentForTooLongIsGone) {
  start();
  Peer silent = Peer::bind(endpoint());
  const auto worker = rig(0);
  const auto its_end = end(*worker, 0);
  static_cast<void>(silent.hear_a<HelloMessage>());
  silent.say(WelcomeMessage{.heartbeat_interval = kBeat, .dead_after = 5 * kBeat},
             silent.heard_from);
  EXPECT_TRUE(
      eventually([&] { return logged(LogLevel::kError, "it was silent for too long") == 1; }));
  EXPECT_EQ(code_of(its_end->wait_for_leader(soon())), ErrorCode::kUnavailable);
}

// --- strangers ----------------------------------------------------------------------------------

TEST_F(ZmqChannelTest, StrangersDoNoHarm) {
  start();
  const auto channel = leader(2);
  const auto worker = rig(0);
  const auto its_end = end(*worker, 0);
  ASSERT_TRUE(its_end->wait_for_leader(soon()));

  Peer nobody = Peer::connect(endpoint());
  nobody.say(std::vector<std::byte>{});
  nobody.say(std::vector<std::byte>(100, std::byte{0x5A}));
  nobody.say(success(1, 0));
  nobody.say(ProvidedMessage{.request = 1});
  nobody.say(GoodbyeMessage{});
  // Several frames; a raw connection; more than is taken at once.
  zmq::context_t context(1);
  zmq::socket_t request(context, zmq::socket_type::req);
  request.set(zmq::sockopt::linger, 0);
  request.connect(endpoint());
  request.send(zmq::str_buffer("hello"), zmq::send_flags::none);
  const int raw = ::socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, (folder_.path() / "leader").c_str(), sizeof(address.sun_path) - 1);
  ASSERT_EQ(::connect(raw, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  EXPECT_EQ(::send(raw, "GET / HTTP/1.1\r\n\r\n", 18, MSG_NOSIGNAL), 18);
  Peer large = Peer::connect(endpoint());
  large.say(std::vector<std::byte>(internal::kMaxWorkerMessageBytes + 1));
  nobody.say(HelloMessage{.rank = RankId(1), .secret = "shut", .places = {}});
  EXPECT_EQ(nobody.hear_a<RefusalMessage>().code, ErrorCode::kRejected);

  // A rank speaks for itself alone, and says nothing that only a leader says.
  Peer known = Peer::connect(endpoint());
  known.say(HelloMessage{.rank = RankId(1), .secret = "open", .places = {}});
  static_cast<void>(known.hear_a<WelcomeMessage>());
  ASSERT_TRUE(channel->wait_for_workers(soon()));
  known.say(success(99, 0));
  known.say(OperationsMessage{.ops = {copy(1, 0, 0)}, .cancels = {}});
  known.say(std::vector<std::byte>(7));
  const CopyOp op = copy(1, 0, 0);
  channel->send({&op, 1}, {});
  EXPECT_EQ(known.hear_a<OperationsMessage>().ops.size(), 1U);
  known.say(success(1, 1));
  const ChannelInbox inbox = collect(*channel, 2);
  for (const OpResult& result : inbox.results) EXPECT_EQ(result.op, OpId(1));
  EXPECT_NE(inbox.results.front().rank, inbox.results.back().rank);
  EXPECT_GT(logged(LogLevel::kWarning, "ignored message number 1 "), 0);
  ::close(raw);
}

// --- the end ------------------------------------------------------------------------------------

TEST_F(ZmqChannelTest, LeavesNoThreadNoDescriptorAndNoFile) {
  start();
  const auto worker = rig(0, {.host_blocks = 0, .disk_blocks = 0});
  const size_t threads = entries_of("/proc/self/task");
  const size_t descriptors = entries_of("/proc/self/fd");
  for (int round = 0; round < 3; ++round) {
    auto channel = leader(2);  // the other never comes
    auto its_end = end(*worker, 0);
    EXPECT_TRUE(its_end->wait_for_leader(soon()));
    EXPECT_GT(entries_of("/proc/self/task"), threads);
    if (round % 2 == 0) channel.reset();
    its_end.reset();
    channel.reset();
    EXPECT_TRUE(eventually([&] { return entries_of("/proc/self/task") == threads; }));
    EXPECT_EQ(entries_of("/proc/self/fd"), descriptors);
    EXPECT_EQ(folder_.num_entries(), 0U);
  }
}

}  // namespace
}  // namespace kvbm::testing
