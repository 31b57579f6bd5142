// SPDX-License-Identifier: Apache-2.0
// What HostDevice adds to the contract of devices (tests/contract/).
#include "kvbm/device/host_device.hpp"

#include <array>
#include <atomic>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/log.hpp"
#include "kvbm/base/stepped_executor.hpp"
#include "kvbm/base/thread_executor.hpp"
#include "kvbm/base/units.hpp"

#include "tests/support/error_code.hpp"
#include "tests/support/temporary_folder.hpp"
#include "tests/support/wrapped_device.hpp"

namespace kvbm {
namespace {

using testing::code_of;

TEST(HostDevice, HasTheMemoryItWasTold) {
  SteppedExecutor executor(1);
  const auto device =
      HostDevice::create({.executor = executor, .ordinal = 3, .memory_bytes = kMiB}).value();
  EXPECT_EQ(device->info().total_bytes, kMiB);
  EXPECT_EQ(device->info().free_bytes, kMiB);
  EXPECT_EQ(device->info().kind, DeviceKind::kHost);
  EXPECT_EQ(device->info().ordinal, 3);
  DeviceMemory first = device->allocate(kMiB - 10, 1).value();
  EXPECT_EQ(device->info().free_bytes, 10u);

  const auto second = device->allocate(11, 1);
  ASSERT_FALSE(second);
  EXPECT_EQ(code_of(second), ErrorCode::kExhausted);
  EXPECT_NE(second.error().message().find("11 B"), std::string::npos) << second.error();
  EXPECT_NE(second.error().message().find("10 B"), std::string::npos) << second.error();

  first.reset();
  EXPECT_EQ(device->info().free_bytes, kMiB);
  EXPECT_TRUE(device->allocate(kMiB, 4096));
  EXPECT_EQ(device->info().free_bytes, kMiB) << "moved or destroyed memory was not given back once";
}

TEST(HostDevice, HasNoMoreThanItsControlGroupAllows) {
  testing::TemporaryFolder root;
  root.write("proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n");
  root.write("sys/fs/cgroup/memory.max", std::to_string(kGiB));
  root.write("sys/fs/cgroup/memory.current", std::to_string(kGiB / 4));
  SteppedExecutor executor(1);
  const auto device =
      HostDevice::create({.executor = executor, .machine_root = root.path()}).value();
  EXPECT_EQ(device->info().total_bytes, kGiB);
  EXPECT_EQ(device->info().free_bytes, kGiB * 3 / 4);
  EXPECT_TRUE(device->allocate(kGiB / 2, 1));
  const auto memory = device->allocate(kGiB, 1);
  ASSERT_FALSE(memory);
  EXPECT_EQ(code_of(memory), ErrorCode::kExhausted);
}

TEST(HostDevice, HasNoMoreThanTheMachineHasFree) {
  SteppedExecutor executor(1);
  const auto device = HostDevice::create({.executor = executor}).value();
  const auto memory = device->allocate(2 * device->info().total_bytes, 1);
  ASSERT_FALSE(memory);
  EXPECT_EQ(code_of(memory), ErrorCode::kExhausted);
  EXPECT_NE(memory.error().message().find("are free"), std::string::npos)
      << "left to the kernel: " << memory.error();
}

TEST(HostDevice, LeavesOutCopiesAfterAFailureUpToTheNextRecord) {
  SteppedExecutor executor(1);
  const auto device = HostDevice::create({.executor = executor}).value();
  const StreamRef stream = device->create_stream("stream").value();
  const std::vector<std::byte> src(64, std::byte{1});
  std::vector<std::byte> dst(128);
  const auto moved = std::make_shared<std::atomic<uint64_t>>(0);
  const auto copy_to = [&](size_t offset) {
    return device->copy(stream, {.pairs = make_block_pairs({BlockId(0)}),
                                 .pieces = {{.src = src.data(), .dst = &dst[offset], .bytes = 64}},
                                 .bytes_moved = moved});
  };
  ASSERT_TRUE(device->wait(stream, Event::ready(make_error(ErrorCode::kIo, "never read"))));
  ASSERT_TRUE(copy_to(0));
  const Event failed = device->record(stream);
  ASSERT_TRUE(copy_to(64));
  EXPECT_TRUE(device->synchronize(stream));
  EXPECT_FALSE(failed.status());
  EXPECT_EQ(*moved, 64u);
  EXPECT_EQ(dst.front(), std::byte{0});
  EXPECT_EQ(dst.back(), std::byte{1});
}

TEST(HostDevice, DropsWhatHasNotStartedWhenItIsDestroyed) {
  SteppedExecutor executor(1);
  auto device = HostDevice::create({.executor = executor, .operations_per_turn = 2}).value();
  const StreamRef stream = device->create_stream("stream").value();
  int ran = 0;
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(device->launch(stream, [&ran]() -> Status {
      ++ran;
      return {};
    }));
  }
  const Event end = device->record(stream);
  ASSERT_TRUE(executor.step());
  device.reset();
  EXPECT_EQ(ran, 2);
  EXPECT_EQ(code_of(end.status()), ErrorCode::kCancelled);
}

TEST(HostDevice, RefusesOptionsThatMakeNoSense) {
  SteppedExecutor executor(1);
  for (const HostDeviceOptions& options : {
           HostDeviceOptions{.executor = executor, .num_threads = 0},
           HostDeviceOptions{.executor = executor, .name = ""},
           HostDeviceOptions{.executor = executor, .max_streams = 0},
           HostDeviceOptions{.executor = executor, .max_queued = 0},
           HostDeviceOptions{.executor = executor, .operations_per_turn = 0},
       }) {
    const auto device = HostDevice::create(options);
    ASSERT_FALSE(device);
    EXPECT_EQ(code_of(device), ErrorCode::kInvalidArgument);
  }
}

TEST(HostDevice, BoundsItsStreamsUntilOneIsGone) {
  SteppedExecutor executor(1);
  const auto device = HostDevice::create({.executor = executor, .max_streams = 2}).value();
  const StreamRef first = device->create_stream("first").value();
  ASSERT_TRUE(device->create_stream("second"));
  EXPECT_EQ(code_of(device->create_stream("third")), ErrorCode::kExhausted);
  ASSERT_TRUE(device->launch(first, []() -> Status { return {}; }));
  ASSERT_TRUE(device->destroy_stream(first));
  EXPECT_EQ(code_of(device->create_stream("third")), ErrorCode::kExhausted)
      << "a stream that still has work was forgotten";
  executor.run_until_idle();
  EXPECT_TRUE(device->create_stream("third"));
}

TEST(HostDevice, BoundsTheOperationsOfAStream) {
  SteppedExecutor executor(1);
  const auto device = HostDevice::create({.executor = executor, .max_queued = 3}).value();
  const StreamRef stream = device->create_stream("stream").value();
  const auto launch = [&] { return device->launch(stream, []() -> Status { return {}; }); };
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(launch());
  EXPECT_EQ(code_of(launch()), ErrorCode::kExhausted);
  const Event refused = device->record(stream);
  ASSERT_TRUE(refused.done());
  EXPECT_EQ(code_of(refused.status()), ErrorCode::kExhausted);
  executor.run_until_idle();
  EXPECT_TRUE(launch());
  EXPECT_TRUE(device->synchronize(stream)) << "a refused operation left a trace";
}

TEST(HostDevice, RunsOnlyAsManyOperationsATurnAsItWasTold) {
  SteppedExecutor executor(1);
  const auto device = HostDevice::create({.executor = executor, .operations_per_turn = 4}).value();
  const StreamRef stream = device->create_stream("stream").value();
  int ran = 0;
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(device->launch(stream, [&ran]() -> Status {
      ++ran;
      return {};
    }));
  }
  EXPECT_TRUE(executor.step());
  EXPECT_EQ(ran, 4);
  EXPECT_TRUE(executor.step());
  EXPECT_EQ(ran, 8);
}

TEST(HostDevice, DoesNothingUntilItsExecutorSteps) {
  SteppedExecutor executor(1);
  const auto device = HostDevice::create({.executor = executor}).value();
  const StreamRef stream = device->create_stream("stream").value();
  bool ran = false;
  ASSERT_TRUE(device->launch(stream, [&ran]() -> Status {
    ran = true;
    return {};
  }));
  const Event event = device->record(stream);
  EXPECT_FALSE(ran);
  EXPECT_FALSE(event.done());
  executor.run_until_idle();
  EXPECT_TRUE(ran);
  EXPECT_TRUE(event.done());
}

TEST(HostDevice, AStreamThatWaitsForItselfIsCancelledWithTheDevice) {
  SteppedExecutor executor(1);
  auto device = HostDevice::create({.executor = executor}).value();
  const StreamRef first = device->create_stream("first").value();
  const StreamRef second = device->create_stream("second").value();
  EventSource gate = device->create_event();
  ASSERT_TRUE(device->wait(first, gate.event()));
  const Event first_end = device->record(first);
  ASSERT_TRUE(device->wait(second, first_end));
  // The gate that `first` waits for is itself signalled by work queued behind it.
  ASSERT_TRUE(device->launch(second, [gate = std::move(gate)]() mutable -> Status {
    gate.signal();
    return {};
  }));
  const Event second_end = device->record(second);
  executor.run_until_idle();
  EXPECT_FALSE(first_end.done());
  device.reset();
  EXPECT_EQ(code_of(first_end.status()), ErrorCode::kCancelled);
  EXPECT_EQ(code_of(second_end.status()), ErrorCode::kCancelled);
}

TEST(HostDevice, TwoDevicesWaitForEachOthersEvents) {
  NullLogSink log;
  ThreadExecutor executor(log);
  const auto left = HostDevice::create({.executor = executor, .name = "left"}).value();
  const auto right = HostDevice::create({.executor = executor, .name = "right"}).value();
  const StreamRef here = left->create_stream("here").value();
  const StreamRef there = right->create_stream("there").value();
  std::atomic<int> turns{0};
  for (int i = 0; i < 500; ++i) {
    ASSERT_TRUE(left->launch(here, [&turns, i]() -> Status {
      EXPECT_EQ(turns.exchange(2 * i + 1), 2 * i);
      return {};
    }));
    ASSERT_TRUE(right->wait(there, left->record(here)));
    ASSERT_TRUE(right->launch(there, [&turns, i]() -> Status {
      EXPECT_EQ(turns.exchange(2 * i + 2), 2 * i + 1);
      return {};
    }));
    ASSERT_TRUE(left->wait(here, right->record(there)));
  }
  EXPECT_TRUE(left->synchronize(here));
  EXPECT_EQ(turns, 1000);
}

TEST(HostDevice, TakesWorkFromManyThreadsAtOnce) {
  constexpr size_t kCallers = 4;
  constexpr int kCalls = 300;
  NullLogSink log;
  ThreadExecutor executor(log);
  const auto device = HostDevice::create({.executor = executor}).value();
  const auto callers = executor.create_queue({.name = "callers", .num_threads = kCallers}).value();
  const StreamRef shared = device->create_stream("shared").value();
  uint64_t in_stream_order = 0;  // no atomic: the stream serialises it
  std::array<std::atomic<uint64_t>, kCallers> own{};
  for (size_t caller = 0; caller < kCallers; ++caller) {
    ASSERT_TRUE(callers->post([&, caller] {
      const StreamRef stream = device->create_stream("own").value();
      for (int i = 0; i < kCalls; ++i) {
        EXPECT_TRUE(device->launch(stream, [&own, caller]() -> Status {
          ++own[caller];
          return {};
        }));
        EXPECT_TRUE(device->launch(shared, [&in_stream_order]() -> Status {
          ++in_stream_order;
          return {};
        }));
        EXPECT_TRUE(device->wait(shared, device->record(stream)));
        EXPECT_TRUE(device->wait(stream, device->record(shared)));
      }
      EXPECT_TRUE(device->synchronize(stream));
      EXPECT_TRUE(device->destroy_stream(stream));
    }));
  }
  callers->stop();
  EXPECT_TRUE(device->synchronize(shared));
  EXPECT_EQ(in_stream_order, kCallers * kCalls);
  for (const auto& count : own) EXPECT_EQ(count, kCalls);
}

TEST(HostDevice, SignalsThatRaceWithTheEndOfTheDeviceAreHarmless) {
  NullLogSink log;
  ThreadExecutor executor(log);
  const auto signaller = executor.create_queue({.name = "signaller"}).value();
  for (int round = 0; round < 200; ++round) {
    auto device = HostDevice::create({.executor = executor}).value();
    std::vector<Event> ends;
    std::vector<EventSource> gates;
    for (int i = 0; i < 8; ++i) {
      const StreamRef stream = device->create_stream("stream").value();
      gates.push_back(device->create_event());
      ASSERT_TRUE(device->wait(stream, gates.back().event()));
      ends.push_back(device->record(stream));
    }
    ASSERT_TRUE(signaller->post([gates = std::move(gates)]() mutable {
      for (EventSource& gate : gates) gate.signal();
    }));
    device.reset();
    for (const Event& end : ends) {
      ASSERT_TRUE(end.done());
      if (!end.status()) {
        EXPECT_EQ(code_of(end.status()), ErrorCode::kCancelled);
      }
    }
  }
}

TEST(HostDevice, JoinsBlocksThatTouchWithoutChangingTheResult) {
  SteppedExecutor executor(1);
  const auto device = HostDevice::create({.executor = executor}).value();
  const StreamRef stream = device->create_stream("stream").value();
  std::vector<std::byte> src(64);
  for (size_t i = 0; i < src.size(); ++i) src[i] = static_cast<std::byte>(i + 1);
  std::vector<std::byte> dst(64);
  // Blocks of two runs of four bytes, dense on both sides; ids run on, jump, and run on at one side
  // only.
  ASSERT_TRUE(device->copy(
      stream, {.pairs = make_block_pairs(
                   {BlockId(0), BlockId(1), BlockId(4), BlockId(5), BlockId(6), BlockId(2)},
                   {BlockId(2), BlockId(3), BlockId(0), BlockId(1), BlockId(7), BlockId(6)}),
               .pieces = {{.src = src.data(),
                           .dst = dst.data(),
                           .src_block_stride = 8,
                           .dst_block_stride = 8,
                           .bytes = 4,
                           .axes = {{{2, 4, 4}}}}}}));
  ASSERT_TRUE(device->synchronize(stream));
  std::vector<std::byte> expected(64);
  const std::array<std::array<size_t, 2>, 6> pairs{
      {{0, 2}, {1, 3}, {4, 0}, {5, 1}, {6, 7}, {2, 6}}};
  for (const auto& [from, to] : pairs) std::copy_n(&src[from * 8], 8, &expected[to * 8]);
  EXPECT_EQ(dst, expected);
}

TEST(HostDevice, WhatIsCopiedAndCannotBeRecordedIsNoRefusedCopy) {
  class ForgetfulDevice final : public testing::WrappedDevice {
   public:
    using WrappedDevice::WrappedDevice;
    [[nodiscard]] Event record(StreamRef /*stream*/) override { throw std::bad_alloc(); }
  };
  SteppedExecutor executor(1);
  const auto device = HostDevice::create({.executor = executor}).value();
  ForgetfulDevice forgetful(*device);
  const StreamRef stream = device->create_stream("stream").value();
  const std::byte src{7};
  std::byte dst{0};
  const auto event =
      forgetful.copy_and_record(stream, {.pairs = make_block_pairs({BlockId(0)}),
                                         .pieces = {{.src = &src, .dst = &dst, .bytes = 1}}});
  ASSERT_TRUE(event) << "the copy is on its way";
  ASSERT_TRUE(event->done());
  EXPECT_EQ(code_of(event->status()), ErrorCode::kExhausted);
  ASSERT_TRUE(device->synchronize(stream));
  EXPECT_EQ(dst, src);
}

}  // namespace
}  // namespace kvbm
