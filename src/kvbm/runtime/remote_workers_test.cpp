// SPDX-License-Identifier: Apache-2.0
// KvbmLeader and KvbmWorker over a channel between processes.
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <memory>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/latch.hpp"
#include "kvbm/base/thread_executor.hpp"
#include "kvbm/runtime/kvbm_leader.hpp"
#include "kvbm/runtime/kvbm_worker.hpp"

#include "tests/support/error_code.hpp"
#include "tests/support/recording_log_sink.hpp"
#include "tests/support/temporary_folder.hpp"

namespace kvbm {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::code_of;
using ::testing::HasSubstr;
using testing::RecordingLogSink;
using testing::TemporaryFolder;

constexpr uint32_t kNumBlocks = 16;
constexpr uint64_t kBlockBytes = 64;

/// One rank with an engine's tensor.
struct Rank {
  Rank(uint16_t rank, LogSink& log, uint64_t block_bytes = kBlockBytes)
      : tensor(kNumBlocks * block_bytes) {
    KvbmWorkerOptions options;
    options.rank = rank;
    options.num_blocks = kNumBlocks;
    options.groups.push_back({.run_bytes = block_bytes, .runs = {{tensor.data(), block_bytes}}});
    worker = KvbmWorker::create(std::move(options), log).value();
  }

  void fill(uint32_t block, int value) {
    std::fill_n(tensor.begin() + block * kBlockBytes, kBlockBytes, std::byte(value));
  }
  [[nodiscard]] bool holds(uint32_t block, int value) const {
    return std::all_of(tensor.begin() + block * kBlockBytes,
                       tensor.begin() + (block + 1) * kBlockBytes,
                       [value](std::byte byte) { return byte == std::byte(value); });
  }

  std::vector<std::byte> tensor;
  std::unique_ptr<KvbmWorker> worker;
};

KvbmLeaderOptions leader_options() {
  KvbmLeaderOptions options;
  options.ns = {.model = "m",
                .weights_epoch = 0,
                .dtype = "u8",
                .num_heads = 0,
                .num_layers = 0,
                .tokens_per_block = 4,
                .identity_scheme = "test",
                .tenant_salt = ""};
  options.groups = {{.block_tokens = 4}};
  options.host_blocks = 8;
  return options;
}

std::vector<Identity> identities(size_t count) {
  std::vector<Identity> ids;
  for (size_t i = 0; i < count; ++i) {
    const std::vector<std::byte> bytes(32, std::byte(i + 1));
    ids.push_back(Identity::from_bytes(bytes).value());
  }
  return ids;
}

class RemoteWorkersTest : public ::testing::Test {
 protected:
  [[nodiscard]] std::string endpoint() const {
    return "ipc://" + (folder_.path() / "leader").string();
  }
  [[nodiscard]] RemoteWorkers workers(uint16_t num_ranks, Duration init_timeout = seconds(30)) {
    return {.endpoint = endpoint(),
            .num_ranks = num_ranks,
            .secret = {},
            .init_timeout = init_timeout,
            .keep_waiting = nullptr};
  }

  bool eventually(const std::function<bool()>& what) {
    const Latch never;
    const Clock& clock = executor_.clock();
    for (const TimePoint deadline = clock.now() + seconds(20); clock.now() < deadline;) {
      if (what()) return true;
      static_cast<void>(executor_.wait(never, clock.now() + milliseconds(2)));
    }
    return what();
  }

  [[nodiscard]] int logged(LogLevel level, std::string_view text) const {
    const auto messages = log_.messages(level);
    return static_cast<int>(std::ranges::count_if(messages, [&](const std::string& message) {
      return message.find(text) != std::string::npos;
    }));
  }

  TemporaryFolder folder_;
  RecordingLogSink log_{LogLevel::kInfo};
  ThreadExecutor executor_{log_};
};

TEST_F(RemoteWorkersTest, WhatAStepWroteComesBackOnEveryRank) {
  Rank first(0, log_);
  Rank second(1, log_);
  const std::vector<Rank*> ranks = {&first, &second};
  for (Rank* rank : ranks) ASSERT_TRUE(rank->worker->connect(endpoint(), ""));
  auto created = KvbmLeader::create(leader_options(), workers(2), log_);
  ASSERT_TRUE(created) << created.error();
  KvbmLeader& leader = **created;
  EXPECT_EQ(leader.num_host_blocks(), 8U);
  const auto step = [&](std::string_view request, std::vector<BlockId> blocks, uint32_t computed,
                        uint32_t scheduled, const std::function<void()>& compute) {
    const ScheduledRequest one = {.request = request,
                                  .blocks = {std::move(blocks)},
                                  .replaces_blocks = true,
                                  .num_computed_tokens = computed,
                                  .num_scheduled_tokens = scheduled};
    const auto bytes = leader.requests().build_step({&one, 1});
    for (Rank* rank : ranks) {
      ASSERT_TRUE(rank->worker->hooks().begin_step(bytes));
      if (rank->worker->hooks().has_loads()) {
        ASSERT_TRUE(rank->worker->hooks().all_layers_needed());
      }
    }
    compute();
    for (Rank* rank : ranks) rank->worker->hooks().end_step();
  };

  leader.requests().extend("a", identities(2));
  step("a", {BlockId(0), BlockId(1)}, 0, 8, [&] {
    for (uint32_t block = 0; block < 2; ++block) {
      first.fill(block, 10 + static_cast<int>(block));
      second.fill(block, 20 + static_cast<int>(block));
    }
  });
  EXPECT_FALSE(leader.requests().finished("a"));
  leader.requests().extend("b", identities(2));
  ExternalMatch match;
  EXPECT_TRUE(eventually([&] {
    match = leader.requests().match("b", 0, 9);
    return match.num_tokens == 8;
  }));
  ASSERT_TRUE(leader.requests().allocated("b", {{BlockId(5), BlockId(6), BlockId(7)}}, 8));
  step("b", {BlockId(5), BlockId(6), BlockId(7)}, 8, 1, [] {});
  EXPECT_TRUE(first.holds(5, 10) && first.holds(6, 11));
  EXPECT_TRUE(second.holds(5, 20) && second.holds(6, 21));
  for (Rank* rank : ranks) {
    EXPECT_TRUE(rank->worker->hooks().take_failed_blocks().empty());
    EXPECT_TRUE(rank->worker->stop());
  }
  created->reset();
  EXPECT_EQ(folder_.num_entries(), 0U);
}

TEST_F(RemoteWorkersTest, RanksThatDoNotComeAreNamedWithTheVariable) {
  Rank first(0, log_);
  ASSERT_TRUE(first.worker->connect(endpoint(), ""));
  const auto created = KvbmLeader::create(leader_options(), workers(3, seconds(1)), log_);
  ASSERT_EQ(code_of(created), ErrorCode::kTimeout);
  EXPECT_THAT(created.error().message(), HasSubstr("ranks 1, 2 of 3 did not come"));
  EXPECT_THAT(created.error().message(),
              HasSubstr("DYN_KVBM_LEADER_WORKER_INIT_TIMEOUT_SECS sets the limit, which was 1 s"));
}

TEST_F(RemoteWorkersTest, WhoWaitsForRanksMayStopWaiting) {
  RemoteWorkers remote = workers(1);
  remote.keep_waiting = [] { return false; };
  EXPECT_EQ(code_of(KvbmLeader::create(leader_options(), remote, log_)), ErrorCode::kCancelled);
  EXPECT_EQ(folder_.num_entries(), 0U);
}

TEST_F(RemoteWorkersTest, ARankThatHangsWhileItMakesItsPlacesIsNamedWithTheOption) {
  Rank first(0, log_);
  ASSERT_TRUE(first.worker->connect(endpoint(), ""));
  RemoteWorkers remote = workers(1);
  remote.place_timeout = Duration(1);  // no rank is that fast
  const auto created = KvbmLeader::create(leader_options(), remote, log_);
  ASSERT_EQ(code_of(created), ErrorCode::kTimeout);
  EXPECT_THAT(created.error().message(),
              HasSubstr("rank 0 did not make 8 blocks of 64 bytes in G2 for layer group 0"));
  EXPECT_THAT(created.error().message(), HasSubstr("place_timeout sets the limit"));
}

TEST_F(RemoteWorkersTest, RanksWhoseTensorsDifferAreRefused) {
  Rank first(0, log_);
  Rank second(1, log_, 2 * kBlockBytes);
  ASSERT_TRUE(first.worker->connect(endpoint(), ""));
  ASSERT_TRUE(second.worker->connect(endpoint(), ""));
  const auto created = KvbmLeader::create(leader_options(), workers(2), log_);
  ASSERT_EQ(code_of(created), ErrorCode::kInvalidArgument);
  EXPECT_THAT(created.error().message(), HasSubstr("tensors differ"));
}

TEST_F(RemoteWorkersTest, ARankThatCannotMakeItsPlacesIsNamed) {
  Rank first(0, log_);  // without a disk directory
  ASSERT_TRUE(first.worker->connect(endpoint(), ""));
  KvbmLeaderOptions options = leader_options();
  options.disk_blocks = 8;
  const auto created = KvbmLeader::create(options, workers(1), log_);
  ASSERT_EQ(code_of(created), ErrorCode::kUnsupported);
  EXPECT_THAT(created.error().message(), HasSubstr("rank 0: "));
}

/// Forks before it has threads, unlike the fixture above.
/// A worker in a process of its own, which plays the steps that it is sent until it is killed.
class WorkerProcess {
 public:
  WorkerProcess(uint16_t rank, const std::string& endpoint) {
    std::array<int, 2> ends{};
    if (::pipe(ends.data()) != 0) return;
    child_ = ::fork();
    if (child_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // whatever ends the test
      RecordingLogSink log;
      Rank of_rank(rank, log);
      if (!of_rank.worker->connect(endpoint, "")) ::_exit(1);
      for (;;) play(ends[0], of_rank.worker->hooks());
    }
    steps_ = ends[1];
    ::close(ends[0]);
  }
  ~WorkerProcess() {
    kill();
    if (steps_ >= 0) ::close(steps_);
    if (runs()) ::waitpid(child_, nullptr, 0);
  }
  WorkerProcess(const WorkerProcess&) = delete;
  WorkerProcess& operator=(const WorkerProcess&) = delete;

  [[nodiscard]] bool runs() const { return child_ > 0; }
  void kill() const {
    if (runs()) ::kill(child_, SIGKILL);  // not -1, which is everybody
  }
  /// A step, of few bytes, in which nothing is computed.
  [[nodiscard]] bool send(const std::vector<std::byte>& step) const {
    const uint32_t size = static_cast<uint32_t>(step.size());
    return ::write(steps_, &size, sizeof(size)) == ssize_t{sizeof(size)} &&
           ::write(steps_, step.data(), size) == static_cast<ssize_t>(size);
  }

 private:
  static void play(int steps, ConnectorWorker& hooks) {
    uint32_t size = 0;
    if (::read(steps, &size, sizeof(size)) != ssize_t{sizeof(size)}) ::_exit(2);
    std::vector<std::byte> step(size);
    if (::read(steps, step.data(), size) != static_cast<ssize_t>(size)) ::_exit(3);
    if (!hooks.begin_step(step)) ::_exit(4);
    hooks.end_step();
  }

  pid_t child_ = -1;
  int steps_ = -1;
};

TEST(RemoteWorkers, AKilledWorkerIsNamedAndItsBlocksAreGone) {
  const TemporaryFolder folder;
  const std::string endpoint = "ipc://" + (folder.path() / "leader").string();
  const WorkerProcess first(0, endpoint);
  const WorkerProcess second(1, endpoint);
  ASSERT_TRUE(first.runs() && second.runs());
  RecordingLogSink log;
  ThreadExecutor executor(log);
  auto created = KvbmLeader::create(
      leader_options(),
      {.endpoint = endpoint, .num_ranks = 2, .secret = {}, .keep_waiting = nullptr}, log);
  ASSERT_TRUE(created) << created.error();
  KvbmLeader& leader = **created;
  const auto eventually = [&](const std::function<bool()>& what) {
    const Latch never;
    const TimePoint deadline = executor.clock().now() + seconds(20);
    while (!what() && executor.clock().now() < deadline) {
      static_cast<void>(executor.wait(never, executor.clock().now() + milliseconds(5)));
    }
    return what();
  };
  const auto build_step = [&](std::string_view request) {
    const ScheduledRequest one = {.request = request,
                                  .blocks = {{BlockId(0), BlockId(1), BlockId(2)}},
                                  .replaces_blocks = true,
                                  .num_computed_tokens = 0,
                                  .num_scheduled_tokens = 9};
    return leader.requests().build_step({&one, 1});
  };
  const auto found = [&](std::string_view request) {
    return leader.requests().match(request, 0, 9).num_tokens;
  };

  leader.requests().extend("a", identities(2));
  const auto step = build_step("a");
  EXPECT_TRUE(first.send(step) && second.send(step));
  EXPECT_FALSE(leader.requests().finished("a"));
  leader.requests().extend("b", identities(2));
  EXPECT_TRUE(eventually([&] { return found("b") == 8; }));  // both ranks have stored their parts

  second.kill();
  EXPECT_TRUE(eventually([&] {
    leader.poll();
    const auto errors = log.messages(LogLevel::kError);
    return std::ranges::any_of(errors, [](const std::string& message) {
      return message.find("rank 1 is lost; all stored blocks are dropped") != std::string::npos;
    });
  }));
  // The engine goes on and computes: its steps are built, and nothing is stored or offered.
  EXPECT_EQ(found("b"), 0U);
  const auto after = decode_connector_step(build_step("b"));
  EXPECT_TRUE(after && after->plan.stores.empty());
  EXPECT_FALSE(leader.requests().finished("b"));
  std::ostringstream page;
  write_prometheus_text(leader.metrics(), page);
  EXPECT_THAT(page.str(), HasSubstr("\nkvbm_lost_blocks_total{tier=\"g2\"} 2\n"));
}

}  // namespace
}  // namespace kvbm
