// SPDX-License-Identifier: Apache-2.0
// RemoteAgentContract: what every RemoteAgent does, as one typed suite.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/executor.hpp"
#include "kvbm/base/latch.hpp"
#include "kvbm/base/random.hpp"
#include "kvbm/device/event.hpp"
#include "kvbm/transfer/remote_agent.hpp"

#include "tests/support/error_code.hpp"

namespace kvbm::testing {

/// A harness is default constructible and has
///   Executor& executor();
///   RemoteAgent& agent(size_t index);      // 0, 1 and 2, which can reach each other
///   void destroy_agent(size_t index);      // afterwards agent(index) is not called
/// An agent holds from 16 to 4096 operations.
template <class Harness>
class RemoteAgentContract : public ::testing::Test {
 protected:
  using Bytes = std::vector<std::byte>;

  static constexpr uint64_t kBlock = 512;
  static constexpr uint32_t kBlocks = 64;
  static constexpr uint64_t kGuard = 4096;

  /// Registered memory of noise between two guards.
  struct Memory {
    Bytes bytes;
    AgentMemoryId id{};

    [[nodiscard]] std::byte* data() { return bytes.data() + kGuard; }
    [[nodiscard]] uint64_t address() { return reinterpret_cast<uintptr_t>(data()); }
    [[nodiscard]] MemoryRegion region() {
      return MemoryRegion::of_bytes(StorageKind::kSystem, data(), bytes.size() - 2 * kGuard);
    }
    [[nodiscard]] Bytes block(size_t index) const {
      const auto first = bytes.begin() + static_cast<ptrdiff_t>(kGuard + index * kBlock);
      return {first, first + kBlock};
    }
  };

  [[nodiscard]] RemoteAgent& agent(size_t index) { return harness_.agent(index); }

  /// Far enough away that only a hang gets there.
  [[nodiscard]] TimePoint soon() {
    return harness_.executor().clock().now() + std::chrono::seconds(60);
  }

  /// Each with its own noise.
  [[nodiscard]] std::unique_ptr<Memory> memory_of(size_t index, uint64_t size = kBlocks * kBlock) {
    auto memory = std::make_unique<Memory>();
    memory->bytes.resize(size + 2 * kGuard);
    for (std::byte& byte : memory->bytes) byte = static_cast<std::byte>(random_.uniform(256));
    const MemoryRegion region = memory->region();
    memory->id = agent(index).register_memory({}, {&region, 1}).value();
    return memory;
  }

  /// After all memory is registered.
  void introduce(size_t index, size_t to) {
    const AgentMetadata metadata = agent(index).metadata().value();
    const Status added = agent(to).add_peer(agent(index).name(), metadata);
    ASSERT_TRUE(added) << added.error();
  }

  [[nodiscard]] static BlockList ids(const std::vector<uint32_t>& values) {
    std::vector<BlockId> list;
    for (const uint32_t value : values) list.emplace_back(value);
    return make_block_list(std::move(list));
  }

  /// Whole blocks.
  [[nodiscard]] RemoteRequest request(RemoteOp op, size_t peer, Memory& here,
                                      const std::vector<uint32_t>& local, Memory& there,
                                      const std::vector<uint32_t>& remote) {
    return {.op = op,
            .peer = agent(peer).name(),
            .local = ids(local),
            .remote = ids(remote),
            .pieces = {{.local = here.data(),
                        .remote = there.address(),
                        .local_block_stride = kBlock,
                        .remote_block_stride = kBlock,
                        .bytes = kBlock}}};
  }

  /// To its end, whether the call refuses it or not.
  [[nodiscard]] Status run(size_t index, RemoteRequest request) {
    const Result<Completion> started = agent(index).submit(std::move(request));
    if (!started) return make_error(started.error());
    return started->wait(soon());
  }

  /// A moment for others; a stepped executor runs tasks.
  void pause() {
    const Latch never;
    static_cast<void>(harness_.executor().wait(
        never, harness_.executor().clock().now() + std::chrono::milliseconds(1)));
  }

  /// Those that have come within a while.
  [[nodiscard]] std::vector<RemoteNotification> notifications(size_t index, size_t count) {
    std::vector<RemoteNotification> all;
    const TimePoint deadline = soon();
    while (all.size() < count && harness_.executor().clock().now() < deadline) {
      for (RemoteNotification& one : agent(index).take_notifications()) {
        all.push_back(std::move(one));
      }
      if (all.size() == count) break;
      pause();  // nothing tells that one has come
    }
    return all;
  }

  Random random_{42};
  Harness harness_;
};

TYPED_TEST_SUITE_P(RemoteAgentContract);

TYPED_TEST_P(RemoteAgentContract, DescribesItself) {
  const RemoteAgentCapabilities capabilities = this->agent(0).capabilities();
  EXPECT_FALSE(capabilities.backend.empty());
  EXPECT_GE(capabilities.max_pending, 16u);
  EXPECT_LE(capabilities.max_pending, 4096u);
  EXPECT_FALSE(this->agent(0).name().empty());
  EXPECT_NE(this->agent(0).name(), this->agent(1).name());
  EXPECT_FALSE(this->agent(0).metadata().value().empty());
}

TYPED_TEST_P(RemoteAgentContract, ReadsWhatThePeerHas) {
  const auto here = this->memory_of(0);
  const auto there = this->memory_of(1);
  this->introduce(1, 0);
  auto expected = here->bytes;
  for (const auto& [to, from] : {std::pair<uint64_t, uint64_t>{5, 40}, {6, 41}, {0, 3}}) {
    std::copy_n(there->data() + from * this->kBlock, this->kBlock,
                expected.begin() + static_cast<ptrdiff_t>(this->kGuard + to * this->kBlock));
  }
  const auto untouched = there->bytes;
  const Status read =
      this->run(0, this->request(RemoteOp::kRead, 1, *here, {5, 6, 0}, *there, {40, 41, 3}));
  ASSERT_TRUE(read) << read.error();
  EXPECT_EQ(here->bytes, expected);
  EXPECT_EQ(there->bytes, untouched);
}

TYPED_TEST_P(RemoteAgentContract, WritesToThePeer) {
  const auto here = this->memory_of(0);
  const auto there = this->memory_of(1);
  this->introduce(1, 0);
  auto expected = there->bytes;
  for (const auto& [from, to] : {std::pair<uint64_t, uint64_t>{63, 0}, {0, 63}}) {
    std::copy_n(here->data() + from * this->kBlock, this->kBlock,
                expected.begin() + static_cast<ptrdiff_t>(this->kGuard + to * this->kBlock));
  }
  const auto untouched = here->bytes;
  const Status write =
      this->run(0, this->request(RemoteOp::kWrite, 1, *here, {63, 0}, *there, {0, 63}));
  ASSERT_TRUE(write) << write.error();
  EXPECT_EQ(there->bytes, expected);
  EXPECT_EQ(here->bytes, untouched);
}

TYPED_TEST_P(RemoteAgentContract, MovesStridedPiecesAsAnOracleDoes) {
  const auto here = this->memory_of(0);
  const auto there = this->memory_of(1);
  this->introduce(1, 0);
  for (uint64_t seed = 1; seed <= 24; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    const RemoteOp op = random.chance(0.5) ? RemoteOp::kRead : RemoteOp::kWrite;
    // A block is 512 bytes as [a, b, c, run] here and as a permutation of that there.
    const uint64_t run = uint64_t{1} << random.uniform(5);
    const uint64_t a = 2;
    const uint64_t b = uint64_t{1} << random.uniform(3);
    const uint64_t c = 128 / run / b;
    RemotePiece piece{.local = here->data(),
                      .remote = there->address(),
                      .local_block_stride = this->kBlock,
                      .remote_block_stride = this->kBlock,
                      .bytes = run};
    piece.axes[1] = {.count = a, .local_stride = b * c * run, .remote_stride = run};
    piece.axes[2] = {.count = b, .local_stride = c * run, .remote_stride = run * a};
    piece.axes[3] = {.count = c, .local_stride = run, .remote_stride = run * a * b};
    // The second half of a block there has its bytes from elsewhere here.
    RemotePiece second = piece;
    second.remote += 256;
    second.local += 256;
    std::vector<uint32_t> local(this->kBlocks);
    std::vector<uint32_t> remote(this->kBlocks);
    for (uint32_t i = 0; i < this->kBlocks; ++i) local[i] = remote[i] = i;
    random.shuffle(std::span(local));
    random.shuffle(std::span(remote));
    const size_t count = 1 + random.uniform(this->kBlocks);
    local.resize(count);
    remote.resize(count);

    auto expected_here = here->bytes;
    auto expected_there = there->bytes;
    for (size_t i = 0; i < count; ++i) {
      for (const uint64_t half : {uint64_t{0}, uint64_t{256}}) {
        for (uint64_t at = 0; at < 256; ++at) {
          const uint64_t ia = at / run / c / b;
          const uint64_t ib = at / run / c % b;
          const uint64_t ic = at / run % c;
          const uint64_t in_local = this->kGuard + local[i] * this->kBlock + half + at;
          const uint64_t in_remote = this->kGuard + remote[i] * this->kBlock + half +
                                     (ic * a * b + ib * a + ia) * run + at % run;
          if (op == RemoteOp::kRead) {
            expected_here[in_local] = there->bytes[in_remote];
          } else {
            expected_there[in_remote] = here->bytes[in_local];
          }
        }
      }
    }
    const auto moved = std::make_shared<std::atomic<uint64_t>>(0);
    const Status status = this->run(0, {.op = op,
                                        .peer = this->agent(1).name(),
                                        .local = this->ids(local),
                                        .remote = this->ids(remote),
                                        .pieces = {piece, second},
                                        .bytes_moved = moved});
    ASSERT_TRUE(status) << status.error();
    EXPECT_EQ(moved->load(), count * this->kBlock);
    EXPECT_EQ(here->bytes, expected_here);
    EXPECT_EQ(there->bytes, expected_there);
  }
}

TYPED_TEST_P(RemoteAgentContract, ThePeerIsToldOnceTheBytesAreThere) {
  const auto here = this->memory_of(0);
  const auto there = this->memory_of(1);
  const auto other = this->memory_of(2);
  this->introduce(1, 0);
  this->introduce(2, 0);
  const std::string self = this->agent(0).name();
  for (uint32_t i = 0; i < 8; ++i) {
    auto write = this->request(RemoteOp::kWrite, 1, *here, {i}, *there, {i + 8});
    write.notification = uint64_t{1} << (8 * i);
    const Completion done = this->agent(0).submit(std::move(write)).value();
    const auto told = this->notifications(1, 1);
    ASSERT_EQ(told, (std::vector<RemoteNotification>{{self, uint64_t{1} << (8 * i)}}));
    EXPECT_EQ(there->block(i + 8), here->block(i));
    EXPECT_TRUE(done.wait(this->soon()));
  }
  // Of a read: its memory has been read.
  auto read = this->request(RemoteOp::kRead, 2, *here, {1}, *other, {2});
  read.notification = 0;
  ASSERT_TRUE(this->run(0, std::move(read)));
  EXPECT_THAT(this->notifications(2, 1), ::testing::ElementsAre(RemoteNotification{self, 0}));
  // Nobody is told who was not to be, nor twice.
  ASSERT_TRUE(this->run(0, this->request(RemoteOp::kRead, 2, *here, {1}, *other, {2})));
  for (size_t index = 0; index < 3; ++index) {
    EXPECT_THAT(this->agent(index).take_notifications(), ::testing::IsEmpty());
  }
}

TYPED_TEST_P(RemoteAgentContract, NotificationsComeInTheOrderInWhichOperationsEnded) {
  const auto here = this->memory_of(0);
  const auto there = this->memory_of(1);
  this->introduce(1, 0);
  std::vector<RemoteNotification> expected;
  for (uint64_t value = 0; value < 20; ++value) {
    auto write = this->request(RemoteOp::kWrite, 1, *here, {0}, *there, {0});
    write.notification = 100 - value;
    ASSERT_TRUE(this->run(0, std::move(write)));
    expected.push_back({this->agent(0).name(), 100 - value});
  }
  EXPECT_EQ(this->notifications(1, 20), expected);
}

TYPED_TEST_P(RemoteAgentContract, WithoutBlocksItTellsThePeerOrDoesNothing) {
  const auto here = this->memory_of(0);
  const auto there = this->memory_of(1);
  this->introduce(1, 0);
  const auto untouched = there->bytes;
  ASSERT_TRUE(this->run(0, this->request(RemoteOp::kWrite, 1, *here, {}, *there, {})));
  EXPECT_THAT(this->agent(1).take_notifications(), ::testing::IsEmpty());
  auto tell = this->request(RemoteOp::kWrite, 1, *here, {}, *there, {});
  tell.notification = 7;
  ASSERT_TRUE(this->run(0, std::move(tell)));
  EXPECT_EQ(this->notifications(1, 1).size(), 1u);
  EXPECT_EQ(there->bytes, untouched);
}

TYPED_TEST_P(RemoteAgentContract, AddressesOutsideOfWhatIsRegisteredAreRefused) {
  const auto here = this->memory_of(0);
  const auto there = this->memory_of(1);
  const auto others = this->memory_of(2);
  this->introduce(1, 0);
  const auto mine = here->bytes;
  const auto theirs = there->bytes;
  for (const RemoteOp op : {RemoteOp::kRead, RemoteOp::kWrite}) {
    for (int what = 0; what < 7; ++what) {
      SCOPED_TRACE(std::string(to_string(op)) + ", case " + std::to_string(what));
      auto bad = this->request(op, 1, *here, {0, 1}, *there, {0, 1});
      RemotePiece& piece = bad.pieces[0];
      if (what == 0) piece.remote -= 1;
      if (what == 1) bad.remote = this->ids({0, this->kBlocks});
      if (what == 2) piece.axes[3] = {.count = 64, .local_stride = 0, .remote_stride = 1024};
      if (what == 3) piece.local -= 1;
      if (what == 4) bad.local = this->ids({this->kBlocks, 0});
      if (what == 5) piece.remote = others->address();  // of another agent
      if (what == 6) bad.remote_memory.device_id = 1;
      bad.notification = 1;
      EXPECT_EQ(code_of(this->run(0, std::move(bad))), ErrorCode::kInvalidArgument);
    }
  }
  EXPECT_EQ(here->bytes, mine);
  EXPECT_EQ(there->bytes, theirs);
  EXPECT_THAT(this->agent(1).take_notifications(), ::testing::IsEmpty());
}

TYPED_TEST_P(RemoteAgentContract, MemoryIsReachedForAsLongAsItIsRegistered) {
  const auto here = this->memory_of(0);
  const auto there = this->memory_of(1);
  const auto more = this->memory_of(1);
  this->introduce(1, 0);
  const auto read = [&](auto& memory) {
    return this->run(0, this->request(RemoteOp::kRead, 1, *here, {1}, memory, {1}));
  };
  ASSERT_TRUE(read(*there));
  ASSERT_TRUE(this->agent(1).unregister_memory(there->id).value().wait(this->soon()));
  EXPECT_FALSE(read(*there));
  EXPECT_TRUE(read(*more));
  EXPECT_EQ(code_of(this->agent(1).unregister_memory(there->id)), ErrorCode::kNotFound);
  // The same on this side.
  ASSERT_TRUE(this->agent(0).unregister_memory(here->id).value().wait(this->soon()));
  EXPECT_EQ(code_of(read(*more)), ErrorCode::kInvalidArgument);
}

TYPED_TEST_P(RemoteAgentContract, WhatIsUnregisteredIsNotTouchedAnyMore) {
  for (const size_t side : {size_t{0}, size_t{1}}) {
    SCOPED_TRACE(side == 0 ? "memory of the agent that asks" : "memory of the peer");
    const auto here = this->memory_of(0);
    const auto there = this->memory_of(1);
    if (side == 0) this->introduce(1, 0);
    if (side == 1) {
      ASSERT_TRUE(this->agent(0).remove_peer(this->agent(1).name()));
      this->introduce(1, 0);
    }
    const RemoteOp op = side == 0 ? RemoteOp::kRead : RemoteOp::kWrite;
    std::vector<uint32_t> all;
    for (uint32_t i = 0; i < this->kBlocks; ++i) all.push_back(i);
    std::vector<Completion> under_way;
    for (int i = 0; i < 8; ++i) {
      under_way.push_back(
          this->agent(0).submit(this->request(op, 1, *here, all, *there, all)).value());
    }
    auto& memory = side == 0 ? *here : *there;
    const Completion left = this->agent(side).unregister_memory(memory.id).value();
    ASSERT_TRUE(left.wait(this->soon()));
    // Now it is the caller's: a late byte would show, here or under a sanitizer.
    std::ranges::fill(memory.bytes, std::byte{0x77});
    for (const Completion& operation : under_way) {
      const Status ended = operation.wait(this->soon());
      if (side == 0) {
        EXPECT_TRUE(ended) << "own operations are finished first";
      } else if (!ended) {
        EXPECT_EQ(code_of(ended), ErrorCode::kUnavailable);
      }
    }
    EXPECT_TRUE(
        std::ranges::all_of(memory.bytes, [](std::byte byte) { return byte == std::byte{0x77}; }));
    // The next round's may be at the same address.
    const AgentMemoryId other = side == 0 ? there->id : here->id;
    ASSERT_TRUE(this->agent(1 - side).unregister_memory(other).value().wait(this->soon()));
  }
}

TYPED_TEST_P(RemoteAgentContract, RefusesMemoryThatIsNone) {
  auto& agent = this->agent(0);
  EXPECT_EQ(code_of(agent.register_memory({}, {})), ErrorCode::kInvalidArgument);
  const MemoryRegion empty;
  EXPECT_EQ(code_of(agent.register_memory({}, {&empty, 1})), ErrorCode::kInvalidArgument);
  const MemoryRegion file = MemoryRegion::of_file({.fd = 0}, 0, 4096);
  EXPECT_EQ(code_of(agent.register_memory({.type = MemoryType::kFile}, {&file, 1})),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of(agent.register_memory({}, {&file, 1})), ErrorCode::kInvalidArgument);
  std::byte byte{};
  const MemoryRegion device = MemoryRegion::of_bytes(StorageKind::kDevice, &byte, 1);
  const auto registered = agent.register_memory({.type = MemoryType::kVram}, {&device, 1});
  if (agent.capabilities().device_memory) {
    ASSERT_TRUE(registered);
    EXPECT_TRUE(agent.unregister_memory(*registered).value().wait(this->soon()));
  } else {
    EXPECT_EQ(code_of(registered), ErrorCode::kUnsupported);
  }
}

TYPED_TEST_P(RemoteAgentContract, APeerIsKnownFromItsMetadataUntilItIsRemoved) {
  const auto here = this->memory_of(0);
  const auto there = this->memory_of(1);
  const auto read = [&] {
    return this->run(0, this->request(RemoteOp::kRead, 1, *here, {0}, *there, {0}));
  };
  const std::string peer = this->agent(1).name();
  EXPECT_EQ(code_of(read()), ErrorCode::kNotFound);
  EXPECT_EQ(code_of(this->agent(0).remove_peer(peer)), ErrorCode::kNotFound);
  this->introduce(1, 0);
  EXPECT_TRUE(read());
  EXPECT_EQ(code_of(this->agent(0).add_peer(peer, this->agent(1).metadata().value())),
            ErrorCode::kInvalidArgument);
  EXPECT_TRUE(read());
  ASSERT_TRUE(this->agent(0).remove_peer(peer));
  EXPECT_EQ(code_of(read()), ErrorCode::kNotFound);
  this->introduce(1, 0);
  EXPECT_TRUE(read());
  EXPECT_EQ(
      code_of(this->agent(0).add_peer(this->agent(0).name(), this->agent(0).metadata().value())),
      ErrorCode::kInvalidArgument);
}

TYPED_TEST_P(RemoteAgentContract, MetadataThatWasAlteredIsRefused) {
  const auto here = this->memory_of(0);
  const auto there = this->memory_of(1);
  const AgentMetadata good = this->agent(1).metadata().value();
  const std::string peer = this->agent(1).name();
  for (size_t bit = 0; bit < good.size() * 8; ++bit) {
    AgentMetadata altered = good;
    altered[bit / 8] ^= std::byte{1} << (bit % 8);
    EXPECT_FALSE(this->agent(0).add_peer(peer, altered)) << "bit " << bit;
  }
  for (size_t size = 0; size < good.size(); ++size) {
    EXPECT_FALSE(this->agent(0).add_peer(peer, std::span(good).first(size))) << size << " bytes";
  }
  AgentMetadata longer = good;
  longer.push_back(std::byte{0});
  EXPECT_FALSE(this->agent(0).add_peer(peer, longer));
  EXPECT_FALSE(this->agent(0).add_peer(this->agent(2).name(), good)) << "of another agent";
  EXPECT_TRUE(this->agent(0).add_peer(peer, good));
}

TYPED_TEST_P(RemoteAgentContract, RefusesRequestsThatMakeNoSense) {
  const auto here = this->memory_of(0);
  const auto there = this->memory_of(1);
  this->introduce(1, 0);
  for (int what = 0; what < 5; ++what) {
    SCOPED_TRACE("case " + std::to_string(what));
    auto bad = this->request(RemoteOp::kRead, 1, *here, {0, 1}, *there, {0, 1});
    if (what == 0) bad.local = nullptr;
    if (what == 1) bad.remote = this->ids({0});
    if (what == 2) bad.pieces[0].local = nullptr;
    if (what == 3) bad.pieces[0].remote_block_stride = ~uint64_t{0};
    if (what == 4) bad.pieces[0].axes[0] = {.count = 3, .remote_stride = uint64_t{1} << 63};
    EXPECT_EQ(code_of(this->agent(0).submit(std::move(bad))), ErrorCode::kInvalidArgument);
  }
}

TYPED_TEST_P(RemoteAgentContract, ADeadlineThatHasPassedIsATimeout) {
  const auto here = this->memory_of(0);
  const auto there = this->memory_of(1);
  this->introduce(1, 0);
  const auto untouched = there->bytes;
  auto late = this->request(RemoteOp::kWrite, 1, *here, {0}, *there, {0});
  late.deadline = this->harness_.executor().clock().now();
  late.notification = 1;
  EXPECT_EQ(code_of(this->run(0, std::move(late))), ErrorCode::kTimeout);
  EXPECT_EQ(there->bytes, untouched);
  EXPECT_THAT(this->agent(1).take_notifications(), ::testing::IsEmpty());
}

TYPED_TEST_P(RemoteAgentContract, APeerThatIsGoneIsUnavailable) {
  const auto here = this->memory_of(0);
  const auto there = this->memory_of(1);
  const auto other = this->memory_of(2);
  this->introduce(1, 0);
  this->introduce(2, 0);
  const std::string peer = this->agent(1).name();
  const AgentMetadata metadata = this->agent(1).metadata().value();
  auto read = this->request(RemoteOp::kRead, 1, *here, {0}, *there, {0});
  this->harness_.destroy_agent(1);
  read.notification = 1;
  EXPECT_EQ(code_of(this->run(0, read)), ErrorCode::kUnavailable);
  EXPECT_TRUE(this->run(0, this->request(RemoteOp::kRead, 2, *here, {0}, *other, {0})));
  ASSERT_TRUE(this->agent(0).remove_peer(peer));
  EXPECT_EQ(code_of(this->agent(0).add_peer(peer, metadata)), ErrorCode::kUnavailable);
}

TYPED_TEST_P(RemoteAgentContract, APeerThatGoesInTheMiddleEndsEachOperationOnce) {
  const auto here = this->memory_of(0);
  auto there = this->memory_of(1);
  this->introduce(1, 0);
  std::vector<uint32_t> all;
  for (uint32_t i = 0; i < this->kBlocks; ++i) all.push_back(i);
  std::vector<Completion> under_way;
  const auto ends = std::make_shared<std::atomic<int>>(0);
  for (int i = 0; i < 16; ++i) {
    const RemoteOp op = i % 2 == 0 ? RemoteOp::kRead : RemoteOp::kWrite;
    under_way.push_back(
        this->agent(0).submit(this->request(op, 1, *here, all, *there, all)).value());
    under_way.back().on_done([ends](const Status&) noexcept { ends->fetch_add(1); });
  }
  ASSERT_TRUE(under_way[0].wait(this->soon()));
  this->harness_.destroy_agent(1);
  there.reset();  // nobody touches it: a sanitizer would see
  for (const Completion& operation : under_way) {
    const Status ended = operation.wait(this->soon());
    if (!ended) {
      EXPECT_EQ(code_of(ended), ErrorCode::kUnavailable);
    }
  }
  // Whoever waits may be there before the callback.
  const TimePoint deadline = this->soon();
  while (ends->load() < 16 && this->harness_.executor().clock().now() < deadline) this->pause();
  EXPECT_EQ(ends->load(), 16);
}

TYPED_TEST_P(RemoteAgentContract, WhatHasNotEndedWithTheAgentIsCancelled) {
  auto here = this->memory_of(0);
  const auto there = this->memory_of(1);
  this->introduce(1, 0);
  std::vector<uint32_t> all;
  for (uint32_t i = 0; i < this->kBlocks; ++i) all.push_back(i);
  std::vector<Completion> under_way;
  for (int i = 0; i < 16; ++i) {
    under_way.push_back(
        this->agent(0).submit(this->request(RemoteOp::kRead, 1, *here, all, *there, all)).value());
  }
  this->harness_.destroy_agent(0);
  here.reset();
  for (const Completion& operation : under_way) {
    ASSERT_TRUE(operation.done());
    if (!operation.status()) {
      EXPECT_EQ(code_of(operation.status()), ErrorCode::kCancelled);
    }
  }
}

TYPED_TEST_P(RemoteAgentContract, AFullAgentRefusesAndTakesItLater) {
  const auto here = this->memory_of(0);
  const auto there = this->memory_of(1);
  this->introduce(1, 0);
  const size_t room = this->agent(0).capabilities().max_pending;
  const auto read = this->request(RemoteOp::kRead, 1, *here, {0}, *there, {0});
  std::vector<Completion> under_way;
  bool was_full = false;
  for (size_t i = 0; i < room + 16; ++i) {
    Result<Completion> started = this->agent(0).submit(read);
    if (started) {
      under_way.push_back(*started);
      continue;
    }
    EXPECT_EQ(code_of(started), ErrorCode::kExhausted);
    was_full = true;
    break;
  }
  for (const Completion& operation : under_way) {
    const Status ended = operation.wait(this->soon());
    EXPECT_TRUE(ended) << ended.error();
  }
  EXPECT_TRUE(was_full || under_way.size() == room + 16);
  EXPECT_TRUE(this->run(0, read));
}

TYPED_TEST_P(RemoteAgentContract, WhoIsToldCanSubmitAgainAtOnce) {
  const auto here = this->memory_of(0);
  const auto there = this->memory_of(1);
  this->introduce(1, 0);
  const auto second = std::make_shared<std::vector<Completion>>();
  EventSource started(this->harness_.executor());
  const Completion first =
      this->agent(0).submit(this->request(RemoteOp::kRead, 1, *here, {0}, *there, {0})).value();
  auto next = this->request(RemoteOp::kRead, 1, *here, {1}, *there, {1});
  first.on_done([this, second, &started, &next](const Status&) noexcept {
    Result<Completion> again = this->agent(0).submit(next);
    if (again) second->push_back(*again);
    started.signal();
  });
  ASSERT_TRUE(started.event().wait(this->soon()));
  ASSERT_EQ(second->size(), 1u);
  EXPECT_TRUE(second->front().wait(this->soon()));
  EXPECT_EQ(here->block(1), there->block(1));
}

REGISTER_TYPED_TEST_SUITE_P(
    RemoteAgentContract, DescribesItself, ReadsWhatThePeerHas, WritesToThePeer,
    MovesStridedPiecesAsAnOracleDoes, ThePeerIsToldOnceTheBytesAreThere,
    NotificationsComeInTheOrderInWhichOperationsEnded, WithoutBlocksItTellsThePeerOrDoesNothing,
    AddressesOutsideOfWhatIsRegisteredAreRefused, MemoryIsReachedForAsLongAsItIsRegistered,
    WhatIsUnregisteredIsNotTouchedAnyMore, RefusesMemoryThatIsNone,
    APeerIsKnownFromItsMetadataUntilItIsRemoved, MetadataThatWasAlteredIsRefused,
    RefusesRequestsThatMakeNoSense, ADeadlineThatHasPassedIsATimeout, APeerThatIsGoneIsUnavailable,
    APeerThatGoesInTheMiddleEndsEachOperationOnce, WhatHasNotEndedWithTheAgentIsCancelled,
    AFullAgentRefusesAndTakesItLater, WhoIsToldCanSubmitAgainAtOnce);

}  // namespace kvbm::testing
