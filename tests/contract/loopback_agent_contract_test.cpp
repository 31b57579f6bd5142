// SPDX-License-Identifier: Apache-2.0
// The contract of remote agents, kept by LoopbackAgent on threads and in steps, and by
// FaultyRemoteAgent without faults; and what FaultyRemoteAgent does with them.
#include <array>
#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "kvbm/base/log.hpp"
#include "kvbm/base/stepped_executor.hpp"
#include "kvbm/base/thread_executor.hpp"
#include "kvbm/transfer/loopback_agent.hpp"

#include "tests/contract/remote_agent_contract.hpp"
#include "tests/support/faulty_remote_agent.hpp"

namespace kvbm::testing {
namespace {

struct Threads {
  NullLogSink log;
  ThreadExecutor executor{log};
};

template <uint64_t seed>
struct Steps {
  SteppedExecutor executor{seed};
};

/// Two blocks a turn, so that there is a middle.
std::unique_ptr<RemoteAgent> loopback(LoopbackNetwork& network, Executor& executor, size_t index,
                                      bool device_memory = false) {
  return LoopbackAgent::create({.network = network,
                                .executor = executor,
                                .name = "agent-" + std::to_string(index),
                                .num_threads = 2,
                                .max_pending = 32,
                                .bytes_per_turn = 1024,
                                .device_memory = device_memory})
      .value();
}

template <class Executors, bool device_memory = false>
class LoopbackHarness {
 public:
  [[nodiscard]] Executor& executor() { return executors_.executor; }
  [[nodiscard]] RemoteAgent& agent(size_t index) { return *agents_.at(index); }
  void destroy_agent(size_t index) { agents_.at(index).reset(); }

 private:
  Executors executors_;
  LoopbackNetwork network_;
  std::array<std::unique_ptr<RemoteAgent>, 3> agents_{
      loopback(network_, executors_.executor, 0, device_memory),
      loopback(network_, executors_.executor, 1, device_memory),
      loopback(network_, executors_.executor, 2, device_memory)};
};

/// Late answers are no fault: the contract names no time.
template <class Executors>
class LateHarness {
 public:
  [[nodiscard]] Executor& executor() { return executors_.executor; }
  [[nodiscard]] RemoteAgent& agent(size_t index) { return *agents_.at(index); }
  void destroy_agent(size_t index) { agents_.at(index).reset(); }

 private:
  std::unique_ptr<RemoteAgent> late(size_t index) {
    return std::make_unique<FaultyRemoteAgent>(loopback(network_, executors_.executor, index),
                                               executors_.executor, RemoteFaults{.delay = 0.3});
  }

  Executors executors_;
  LoopbackNetwork network_;
  std::array<std::unique_ptr<RemoteAgent>, 3> agents_{late(0), late(1), late(2)};
};

using LoopbackHarnesses = ::testing::Types<LoopbackHarness<Threads>, LoopbackHarness<Threads, true>,
                                           LoopbackHarness<Steps<1>>, LoopbackHarness<Steps<2>>>;
INSTANTIATE_TYPED_TEST_SUITE_P(LoopbackAgent, RemoteAgentContract, LoopbackHarnesses);
using LateHarnesses = ::testing::Types<LateHarness<Threads>, LateHarness<Steps<1>>>;
INSTANTIATE_TYPED_TEST_SUITE_P(FaultyRemoteAgentWithoutFaults, RemoteAgentContract, LateHarnesses);

TEST(LoopbackAgent, RefusesOptionsThatMakeNoSense) {
  SteppedExecutor executor(1);
  LoopbackNetwork network;
  const auto first = loopback(network, executor, 0);
  for (const LoopbackAgentOptions& options : {
           LoopbackAgentOptions{.network = network, .executor = executor, .name = ""},
           LoopbackAgentOptions{.network = network, .executor = executor, .name = "agent-0"},
           LoopbackAgentOptions{
               .network = network, .executor = executor, .name = "x", .num_threads = 0},
           LoopbackAgentOptions{
               .network = network, .executor = executor, .name = "x", .max_pending = 0},
           LoopbackAgentOptions{
               .network = network, .executor = executor, .name = "x", .max_notifications = 0},
           LoopbackAgentOptions{
               .network = network, .executor = executor, .name = "x", .bytes_per_turn = 0},
       }) {
    EXPECT_EQ(code_of(LoopbackAgent::create(options)), ErrorCode::kInvalidArgument);
  }
}

TEST(LoopbackAgent, AnAgentOfTheSameNameThatCameLaterIsAnotherOne) {
  SteppedExecutor executor(1);
  LoopbackNetwork network;
  const auto here = loopback(network, executor, 0);
  auto peer = loopback(network, executor, 1);
  const AgentMetadata of_first = peer->metadata().value();
  peer.reset();
  peer = loopback(network, executor, 1);
  EXPECT_EQ(code_of(here->add_peer("agent-1", of_first)), ErrorCode::kUnavailable);
  EXPECT_TRUE(here->add_peer("agent-1", peer->metadata().value()));
  LoopbackNetwork other;
  const auto elsewhere = loopback(other, executor, 1);
  EXPECT_EQ(code_of(loopback(other, executor, 2)->add_peer("agent-1", peer->metadata().value())),
            ErrorCode::kUnavailable);
}

TEST(LoopbackAgent, TellsTheSenderWhenThePeerHasNoRoomForANotification) {
  SteppedExecutor executor(1);
  LoopbackNetwork network;
  const auto here = loopback(network, executor, 0);
  const auto there =
      LoopbackAgent::create(
          {.network = network, .executor = executor, .name = "agent-1", .max_notifications = 2})
          .value();
  ASSERT_TRUE(here->add_peer("agent-1", there->metadata().value()));
  const auto tell = [&](uint64_t value) {
    return here
        ->submit({.peer = "agent-1",
                  .local = make_block_list({}),
                  .remote = make_block_list({}),
                  .notification = value})
        .value()
        .wait();
  };
  EXPECT_TRUE(tell(1));
  EXPECT_TRUE(tell(2));
  EXPECT_EQ(code_of(tell(3)), ErrorCode::kExhausted);
  EXPECT_EQ(there->take_notifications().size(), 2u);
  EXPECT_TRUE(tell(4));
}

/// Two registered buffers of 16 blocks of 512 bytes, and agents that take two blocks a turn.
class LoopbackTurns : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const size_t side : {size_t{0}, size_t{1}}) {
      const MemoryRegion region =
          MemoryRegion::of_bytes(StorageKind::kSystem, memory_[side].data(), 16 * 512);
      id_[side] = agents_[side]->register_memory({}, {&region, 1}).value();
    }
    ASSERT_TRUE(agents_[0]->add_peer("agent-1", agents_[1]->metadata().value()));
  }

  [[nodiscard]] Completion write(RemoteRequest request = {}) {
    std::vector<BlockId> ids;
    for (uint32_t i = 0; i < 16; ++i) ids.emplace_back(i);
    request.op = RemoteOp::kWrite;
    request.peer = "agent-1";
    request.local = request.remote = make_block_list(ids);
    request.pieces = {{.local = memory_[0].data(),
                       .remote = reinterpret_cast<uintptr_t>(memory_[1].data()),
                       .local_block_stride = 512,
                       .remote_block_stride = 512,
                       .bytes = 512}};
    request.bytes_moved = moved_;
    return agents_[0]->submit(std::move(request)).value();
  }
  void steps(int count) {
    for (int i = 0; i < count; ++i) ASSERT_TRUE(executor_.step());
  }

  SteppedExecutor executor_{1};
  LoopbackNetwork network_;
  std::array<std::vector<std::byte>, 2> memory_{std::vector(16 * 512, std::byte{1}),
                                                std::vector(16 * 512, std::byte{2})};
  std::array<std::unique_ptr<RemoteAgent>, 2> agents_{loopback(network_, executor_, 0),
                                                      loopback(network_, executor_, 1)};
  std::array<AgentMemoryId, 2> id_{};
  std::shared_ptr<std::atomic<uint64_t>> moved_ = std::make_shared<std::atomic<uint64_t>>(0);
};

TEST_F(LoopbackTurns, AnOperationStopsWhereThePeerUnregisters) {
  const Completion done = write({.notification = 1});
  steps(3);
  EXPECT_FALSE(done.done());
  EXPECT_EQ(*moved_, 6 * 512u);
  EXPECT_TRUE(agents_[1]->unregister_memory(id_[1]).value().done()) << "no turn is under way";
  memory_[1].assign(16 * 512, std::byte{3});
  executor_.run_until_idle();
  EXPECT_EQ(code_of(done.status()), ErrorCode::kUnavailable);
  EXPECT_EQ(*moved_, 6 * 512u);
  EXPECT_EQ(memory_[1], std::vector(16 * 512, std::byte{3}));
  EXPECT_TRUE(agents_[1]->take_notifications().empty());
}

TEST_F(LoopbackTurns, AnOperationStopsAtItsDeadline) {
  const Completion done =
      write({.notification = 1, .deadline = executor_.clock().now() + std::chrono::seconds(1)});
  steps(2);
  executor_.advance(std::chrono::seconds(1));
  executor_.run_until_idle();
  EXPECT_EQ(code_of(done.status()), ErrorCode::kTimeout);
  EXPECT_EQ(*moved_, 4 * 512u);
  EXPECT_TRUE(agents_[1]->take_notifications().empty());
}

TEST_F(LoopbackTurns, OwnMemoryIsLeftOnceOwnOperationsHaveEnded) {
  const Completion done = write();
  steps(1);
  const Completion left = agents_[0]->unregister_memory(id_[0]).value();
  EXPECT_FALSE(left.done());
  executor_.run_until_idle();
  EXPECT_TRUE(done.status());
  EXPECT_TRUE(left.done());
  EXPECT_EQ(memory_[1], memory_[0]);
}

TEST_F(LoopbackTurns, APeerThatIsRemovedIsStillWrittenToByWhatRuns) {
  const Completion done = write({.notification = 5});
  steps(1);
  ASSERT_TRUE(agents_[0]->remove_peer("agent-1"));
  executor_.run_until_idle();
  EXPECT_TRUE(done.status());
  EXPECT_EQ(agents_[1]->take_notifications().size(), 1u);
}

TEST_F(LoopbackTurns, FaultsAreWhatTheSeedSays) {
  FaultyRemoteAgent faulty(loopback(network_, executor_, 2), executor_,
                           {.seed = 3, .fail = 0.2, .torn = 0.2, .lie = 0.2});
  const MemoryRegion region =
      MemoryRegion::of_bytes(StorageKind::kSystem, memory_[0].data(), 16 * 512);
  ASSERT_TRUE(faulty.register_memory({}, {&region, 1}));
  ASSERT_TRUE(faulty.add_peer("agent-1", agents_[1]->metadata().value()));
  std::vector<BlockId> ids;
  for (uint32_t i = 0; i < 16; ++i) ids.emplace_back(i);
  uint64_t failed = 0;
  uint64_t lies = 0;
  for (int i = 0; i < 100; ++i) {
    const auto moved = std::make_shared<std::atomic<uint64_t>>(0);
    const Status outcome =
        faulty
            .submit({.op = RemoteOp::kWrite,
                     .peer = "agent-1",
                     .local = make_block_list(ids),
                     .remote = make_block_list(ids),
                     .pieces = {{.local = memory_[0].data(),
                                 .remote = reinterpret_cast<uintptr_t>(memory_[1].data()),
                                 .local_block_stride = 512,
                                 .remote_block_stride = 512,
                                 .bytes = 512}},
                     .notification = 1,
                     .bytes_moved = moved})
            .value()
            .wait();
    if (!outcome) {
      ++failed;
      EXPECT_EQ(code_of(outcome), ErrorCode::kUnavailable);
      EXPECT_LT(*moved, 16 * 512u);
    } else if (*moved < 16 * 512u) {
      ++lies;
    }
    EXPECT_EQ(agents_[1]->take_notifications().size(), *moved == 16 * 512u ? 1u : 0u);
  }
  const RemoteFaultCounts counts = faulty.counts();
  EXPECT_EQ(failed, counts.failed + counts.torn);
  EXPECT_EQ(lies, counts.lies);
  EXPECT_GT(counts.failed, 5u);
  EXPECT_GT(counts.torn, 5u);
  EXPECT_GT(counts.lies, 5u);
}

}  // namespace
}  // namespace kvbm::testing
