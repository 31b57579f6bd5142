// SPDX-License-Identifier: Apache-2.0
// DeviceContract: what every Device does, as one typed suite.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/executor.hpp"
#include "kvbm/base/hash.hpp"
#include "kvbm/base/ids.hpp"
#include "kvbm/base/mutex.hpp"
#include "kvbm/base/random.hpp"
#include "kvbm/device/device.hpp"

#include "tests/support/error_code.hpp"
#include "tests/support/require.hpp"

namespace kvbm::testing {

/// Numbers in the order in which tasks came by.
class Track {
 public:
  void add(uint64_t mark) {
    const MutexLock lock(mutex_);
    marks_.push_back(mark);
  }
  [[nodiscard]] std::vector<uint64_t> marks() const {
    const MutexLock lock(mutex_);
    return marks_;
  }

 private:
  mutable Mutex mutex_{LockRank::kDevice, "tests.track"};
  std::vector<uint64_t> marks_ KVBM_GUARDED_BY(mutex_);
};

/// A harness is default constructible and has
///   std::optional<std::string> missing();   // only if it may be: what the tests need and is not
///   here Executor& executor();  Device& device(); void destroy_device();   // afterwards device()
///   is not called
///   std::byte* host_memory(size_t size_bytes);   // only if it copies through a ring: memory that
///   the device copies, until the harness goes
///   void upload(std::byte* to, std::span<const std::byte> from);   // host to
///   device, at once void download(std::span<std::byte> to, const std::byte* from);
template <class Harness>
class DeviceContract : public ::testing::Test {
 protected:
  void SetUp() override {
    if constexpr (requires { harness_.missing(); }) {
      if (const std::optional<std::string> missing = harness_.missing()) KVBM_SKIP("gpu", *missing);
    }
  }

  [[nodiscard]] Device& device() { return harness_.device(); }

  /// Far enough away that only a hang gets there.
  [[nodiscard]] TimePoint soon() {
    return harness_.executor().clock().now() + std::chrono::seconds(60);
  }

  [[nodiscard]] StreamRef stream(std::string_view name = "stream") {
    return device().create_stream(name).value();
  }

  void launch(StreamRef stream, UniqueFunction<void()> task) {
    const Status queued = device().launch(stream, [task = std::move(task)]() mutable -> Status {
      task();
      return {};
    });
    ASSERT_TRUE(queued) << queued.error();
  }

  void launch_failure(StreamRef stream, ErrorCode code) {
    const Status queued = device().launch(
        stream, [code]() -> Status { return make_error(code, "as the test asked"); });
    ASSERT_TRUE(queued) << queued.error();
  }

  [[nodiscard]] DeviceMemory filled(std::span<const std::byte> bytes) {
    DeviceMemory memory = device().allocate(bytes.size(), 1).value();
    harness_.upload(memory.data(), bytes);
    return memory;
  }

  [[nodiscard]] std::vector<std::byte> content(const DeviceMemory& memory) {
    std::vector<std::byte> bytes(memory.size_bytes());
    harness_.download(bytes, memory.data());
    return bytes;
  }

  [[nodiscard]] static std::vector<std::byte> noise(Random& random, size_t size) {
    std::vector<std::byte> bytes(size);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random.uniform(256));
    return bytes;
  }

  /// One block of `bytes` bytes.
  [[nodiscard]] static StridedCopyBatch plain_copy(const std::byte* from, std::byte* to,
                                                   uint64_t bytes) {
    return {.pairs = make_block_pairs({BlockId(0)}),
            .pieces = {{.src = from, .dst = to, .bytes = bytes}}};
  }

  Harness harness_;
};

TYPED_TEST_SUITE_P(DeviceContract);

TYPED_TEST_P(DeviceContract, DescribesItself) {
  const DeviceInfo info = this->device().info();
  EXPECT_FALSE(info.name.empty());
  EXPECT_GT(info.total_bytes, 0u);
  EXPECT_GT(info.free_bytes, 0u);
  EXPECT_LE(info.free_bytes, info.total_bytes);
  EXPECT_GT(info.capabilities.page_bytes, 0u);
}

TYPED_TEST_P(DeviceContract, RunsTheOperationsOfAStreamInTheOrderOfTheCalls) {
  const StreamRef stream = this->stream();
  Track track;
  std::vector<uint64_t> expected(200);
  std::iota(expected.begin(), expected.end(), 0);
  for (const uint64_t mark : expected) this->launch(stream, [&track, mark] { track.add(mark); });
  const Status done = this->device().synchronize(stream, this->soon());
  ASSERT_TRUE(done) << done.error();
  EXPECT_EQ(track.marks(), expected);
}

TYPED_TEST_P(DeviceContract, StreamsThatWaitHoldUpNobody) {
  EventSource gate = this->device().create_event();
  std::vector<Event> parked;
  for (int i = 0; i < 40; ++i) {
    const StreamRef stream = this->stream();
    ASSERT_TRUE(this->device().wait(stream, gate.event()));
    parked.push_back(this->device().record(stream));
  }
  const StreamRef free_stream = this->stream("free");
  std::atomic<bool> ran{false};
  this->launch(free_stream, [&ran] { ran = true; });
  EXPECT_TRUE(this->device().synchronize(free_stream, this->soon()));
  EXPECT_TRUE(ran);
  for (const Event& event : parked) EXPECT_FALSE(event.done());

  gate.signal();
  for (const Event& event : parked) EXPECT_TRUE(event.wait(this->soon()));
}

TYPED_TEST_P(DeviceContract, AStreamGoesOnAfterTheEventOfAnotherStream) {
  const StreamRef first = this->stream("first");
  const StreamRef second = this->stream("second");
  EventSource gate = this->device().create_event();
  Track track;
  ASSERT_TRUE(this->device().wait(first, gate.event()));
  this->launch(first, [&track] { track.add(1); });
  ASSERT_TRUE(this->device().wait(second, this->device().record(first)));
  this->launch(second, [&track] { track.add(2); });
  const Event end = this->device().record(second);
  EXPECT_FALSE(end.done());
  gate.signal();
  ASSERT_TRUE(end.wait(this->soon()));
  EXPECT_EQ(track.marks(), (std::vector<uint64_t>{1, 2}));
}

TYPED_TEST_P(DeviceContract, AnEventThatIsDoneAlreadyHoldsNobody) {
  const StreamRef stream = this->stream();
  ASSERT_TRUE(this->device().wait(stream, Event()));
  EventSource signalled = this->device().create_event();
  signalled.signal();
  ASSERT_TRUE(this->device().wait(stream, signalled.event()));
  EXPECT_TRUE(this->device().synchronize(stream, this->soon()));
}

TYPED_TEST_P(DeviceContract, AnIdleStreamRecordsAnEventThatSucceeds) {
  const Event event = this->device().record(this->stream());
  EXPECT_TRUE(event.wait(this->soon()));
}

TYPED_TEST_P(DeviceContract, TellsCallbacksOnceAndLetsThemQueueMore) {
  const StreamRef stream = this->stream();
  EventSource gate = this->device().create_event();
  ASSERT_TRUE(this->device().wait(stream, gate.event()));
  const Event first = this->device().record(stream);
  std::atomic<int> calls{0};
  EventSource last = this->device().create_event();
  Device& device = this->device();
  first.on_done([&](const Status& status) noexcept {
    EXPECT_TRUE(status);
    EXPECT_TRUE(first.done());
    ++calls;
    EXPECT_TRUE(device.launch(stream, [&last]() -> Status {
      last.signal();
      return {};
    }));
  });
  gate.signal();
  EXPECT_TRUE(last.event().wait(this->soon()));
  EXPECT_EQ(calls, 1);
  EXPECT_TRUE(device.synchronize(stream, this->soon()));
}

TYPED_TEST_P(DeviceContract, AFailureFailsTheNextEventAndNoLaterOne) {
  const StreamRef stream = this->stream();
  EventSource gate = this->device().create_event();
  ASSERT_TRUE(this->device().wait(stream, gate.event()));
  const Event before = this->device().record(stream);
  this->launch_failure(stream, ErrorCode::kDevice);
  this->launch_failure(stream, ErrorCode::kCorrupt);
  const Event failed = this->device().record(stream);
  const Event again = this->device().record(stream);
  this->launch(stream, [] {});
  const Event after = this->device().record(stream);
  gate.signal();

  EXPECT_TRUE(before.wait(this->soon()));
  EXPECT_EQ(code_of(failed.wait(this->soon())), ErrorCode::kDevice) << "not the first failure";
  EXPECT_EQ(code_of(again.wait(this->soon())), ErrorCode::kDevice) << "nothing was between the two";
  EXPECT_TRUE(after.wait(this->soon()));
}

TYPED_TEST_P(DeviceContract, AFailureIsNotLostWhenTheStreamIsIdleBeforeTheRecord) {
  const StreamRef stream = this->stream();
  EventSource ran = this->device().create_event();
  ASSERT_TRUE(this->device().launch(stream, [&ran]() -> Status {
    ran.signal();
    return make_error(ErrorCode::kDevice, "as the test asked");
  }));
  ASSERT_TRUE(ran.event().wait(this->soon()));
  EXPECT_EQ(code_of(this->device().record(stream).wait(this->soon())), ErrorCode::kDevice);
  EXPECT_EQ(code_of(this->device().record(stream).wait(this->soon())), ErrorCode::kDevice);
}

TYPED_TEST_P(DeviceContract, ATaskThatThrowsFailsAsInternal) {
  const StreamRef stream = this->stream();
  ASSERT_TRUE(this->device().launch(
      stream, []() -> Status { throw std::runtime_error("thrown by the test"); }));
  const Status outcome = this->device().synchronize(stream, this->soon());
  ASSERT_EQ(code_of(outcome), ErrorCode::kInternal);
  EXPECT_THAT(outcome.error().message(), ::testing::HasSubstr("thrown by the test"));
}

TYPED_TEST_P(DeviceContract, TasksRunAfterAFailureAllTheSame) {
  const StreamRef stream = this->stream();
  std::atomic<bool> ran{false};
  this->launch_failure(stream, ErrorCode::kDevice);
  this->launch(stream, [&ran] { ran = true; });
  EXPECT_EQ(code_of(this->device().synchronize(stream, this->soon())), ErrorCode::kDevice);
  EXPECT_TRUE(ran);
}

TYPED_TEST_P(DeviceContract, AWaitForAFailedEventFailsTheNextEventOfTheWaitingStream) {
  const StreamRef first = this->stream("first");
  const StreamRef second = this->stream("second");
  EventSource gate = this->device().create_event();
  ASSERT_TRUE(this->device().wait(first, gate.event()));
  ASSERT_TRUE(this->device().wait(second, this->device().record(first)));
  const Event end = this->device().record(second);
  gate.signal(make_error(ErrorCode::kIo, "the file behind the event failed"));
  EXPECT_EQ(code_of(end.wait(this->soon())), ErrorCode::kIo);

  ASSERT_TRUE(
      this->device().wait(first, Event::ready(make_error(ErrorCode::kCorrupt, "from before"))));
  EXPECT_EQ(code_of(this->device().synchronize(first, this->soon())), ErrorCode::kCorrupt);
}

TYPED_TEST_P(DeviceContract, AnEventSourceDroppedUnsignalledFailsWhoWaits) {
  const StreamRef stream = this->stream();
  std::optional<EventSource> gate(this->device().create_event());
  ASSERT_TRUE(this->device().wait(stream, gate->event()));
  const Event end = this->device().record(stream);
  EXPECT_FALSE(end.done());
  gate.reset();
  EXPECT_EQ(code_of(end.wait(this->soon())), ErrorCode::kInternal);
}

TYPED_TEST_P(DeviceContract, SynchronizeGivesUpAtTheDeadline) {
  const StreamRef stream = this->stream();
  EventSource gate = this->device().create_event();
  ASSERT_TRUE(this->device().wait(stream, gate.event()));
  const TimePoint deadline =
      this->harness_.executor().clock().now() + std::chrono::milliseconds(20);
  EXPECT_EQ(code_of(this->device().synchronize(stream, deadline)), ErrorCode::kTimeout);
  gate.signal();
  EXPECT_TRUE(this->device().synchronize(stream, this->soon()));
}

TYPED_TEST_P(DeviceContract, RefusesAStreamItDoesNotKnow) {
  const StreamRef unknown{0x7fff'0000'0000};
  EXPECT_EQ(code_of(this->device().launch(unknown, []() -> Status { return {}; })),
            ErrorCode::kNotFound);
  EXPECT_EQ(code_of(this->device().wait(unknown, Event())), ErrorCode::kNotFound);
  EXPECT_EQ(code_of(this->device().record(unknown).wait(this->soon())), ErrorCode::kNotFound);
  EXPECT_EQ(code_of(this->device().destroy_stream(unknown)), ErrorCode::kNotFound);
}

TYPED_TEST_P(DeviceContract, ADestroyedStreamFinishesWhatItHasAndTakesNoMore) {
  const StreamRef stream = this->stream();
  EventSource gate = this->device().create_event();
  std::atomic<bool> ran{false};
  ASSERT_TRUE(this->device().wait(stream, gate.event()));
  this->launch(stream, [&ran] { ran = true; });
  const Event end = this->device().record(stream);
  ASSERT_TRUE(this->device().destroy_stream(stream));
  EXPECT_EQ(code_of(this->device().destroy_stream(stream)), ErrorCode::kNotFound);
  EXPECT_EQ(code_of(this->device().wait(stream, Event())), ErrorCode::kNotFound);
  EXPECT_EQ(code_of(this->device().record(stream).wait(this->soon())), ErrorCode::kNotFound);
  gate.signal();
  EXPECT_TRUE(end.wait(this->soon()));
  EXPECT_TRUE(ran);
}

TYPED_TEST_P(DeviceContract, StreamsComeAndGo) {
  for (int i = 0; i < 1000; ++i) {
    const Result<StreamRef> stream = this->device().create_stream("short");
    ASSERT_TRUE(stream) << "stream " << i << ": " << stream.error();
    this->launch(*stream, [] {});
    const Event end = this->device().record(*stream);
    ASSERT_TRUE(this->device().destroy_stream(*stream));
    ASSERT_TRUE(end.wait(this->soon()));
  }
}

TYPED_TEST_P(DeviceContract, AllocatesAlignedMemoryThatReadsAsZero) {
  for (const uint64_t alignment : {uint64_t{1}, uint64_t{512}, uint64_t{4096}, uint64_t{1} << 21}) {
    for (const uint64_t size : {uint64_t{1}, uint64_t{4095}, uint64_t{4097}, uint64_t{3} << 18}) {
      const Result<DeviceMemory> memory = this->device().allocate(size, alignment);
      ASSERT_TRUE(memory) << memory.error();
      EXPECT_EQ(memory->size_bytes(), size);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(memory->data()) % alignment, 0u);
      EXPECT_EQ(this->content(*memory), std::vector<std::byte>(size));
      this->harness_.upload(memory->data(), std::vector<std::byte>(size, std::byte{0xff}));
    }
  }
}

TYPED_TEST_P(DeviceContract, RefusesMemoryThatItDoesNotHave) {
  const DeviceInfo info = this->device().info();
  const Result<DeviceMemory> memory = this->device().allocate(2 * info.total_bytes, 1);
  ASSERT_FALSE(memory);
  EXPECT_EQ(code_of(memory), ErrorCode::kExhausted);
  const Result<DeviceMemory> huge =
      this->device().allocate(std::numeric_limits<uint64_t>::max() - 1, 4096);
  ASSERT_FALSE(huge);
  EXPECT_EQ(code_of(huge), ErrorCode::kExhausted);
}

TYPED_TEST_P(DeviceContract, RefusesMemoryOfNoByteOrOddAlignment) {
  for (const auto& [size, alignment] :
       std::vector<std::pair<uint64_t, uint64_t>>{{0, 1}, {64, 0}, {64, 3}}) {
    const Result<DeviceMemory> memory = this->device().allocate(size, alignment);
    ASSERT_FALSE(memory) << size << " bytes at " << alignment;
    EXPECT_EQ(code_of(memory), ErrorCode::kInvalidArgument);
  }
}

TYPED_TEST_P(DeviceContract, StridedCopiesMatchAnElementWiseOracle) {
  using Counts = std::array<uint64_t, kStridedAxes>;
  struct Side {
    uint64_t base;
    uint64_t block_stride;
    Counts strides;
  };
  const bool kernels = this->device().info().capabilities.kernel_copies;
  for (uint64_t seed = 1; seed <= 80; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    const uint64_t num_blocks = random.uniform_between(1, 12);
    const uint64_t num_pieces = random.uniform_between(1, 4);

    // A side nests blocks and axes in an order of its own, packed or with gaps; pieces follow each
    // other.
    const auto place = [&](uint64_t& cursor, uint64_t bytes, const Counts& counts) {
      const auto gap = [&] { return random.chance(0.5) ? 0 : random.uniform(40); };
      std::array<size_t, kStridedAxes + 1> order{};  // innermost first; the last entry is the block
      std::iota(order.begin(), order.end(), size_t{0});
      random.shuffle(std::span<size_t>(order));
      Side side{.base = cursor + gap(), .block_stride = 0, .strides = {}};
      uint64_t extent = bytes;
      for (const size_t axis : order) {
        const bool block = axis == kStridedAxes;
        (block ? side.block_stride : side.strides[axis]) = extent + gap();
        extent = (block ? num_blocks * side.block_stride : counts[axis] * side.strides[axis]);
      }
      cursor = side.base + extent + gap();
      return side;
    };
    struct Piece {
      Side src, dst;
      uint64_t bytes;
      Counts counts;
    };
    std::vector<Piece> pieces;
    uint64_t src_size = 0;
    uint64_t dst_size = 0;
    for (uint64_t p = 0; p < num_pieces; ++p) {
      const uint64_t bytes = random.chance(0.5) ? 16 * random.uniform_between(p == 0 ? 1 : 0, 8)
                                                : random.uniform_between(p == 0 ? 1 : 0, 100);
      Counts counts{};
      for (uint64_t& count : counts) {
        count = random.chance(0.5) ? 1 : random.uniform_between(p == 0 ? 1 : 0, 5);
      }
      const Side src = place(src_size, bytes, counts);
      pieces.push_back({src, place(dst_size, bytes, counts), bytes, counts});
    }
    src_size += 64;
    dst_size += 64;

    // Sources may repeat, destinations may not; both come in runs now and then.
    std::vector<BlockId> from;
    std::vector<BlockId> to;
    for (uint32_t i = 0; i < num_blocks; ++i) to.push_back(BlockId(i));
    if (random.chance(0.5)) random.shuffle(std::span(to));
    to.resize(random.uniform_between(1, num_blocks));
    for (size_t i = 0; i < to.size(); ++i) {
      const bool runs_on = i > 0 && random.chance(0.6) && from.back().value() + 1 < num_blocks;
      from.push_back(runs_on ? BlockId(from.back().value() + 1)
                             : BlockId(static_cast<uint32_t>(random.uniform(num_blocks))));
    }

    const std::vector<std::byte> src_image = this->noise(random, src_size);
    std::vector<std::byte> expected = this->noise(random, dst_size);
    const DeviceMemory src = this->filled(src_image);
    const DeviceMemory dst = this->filled(expected);
    uint64_t planned = 0;
    StridedCopyBatch batch{.pairs = make_block_pairs(from, to),
                           .bytes_moved = std::make_shared<std::atomic<uint64_t>>(0)};
    std::vector<StridedPiece> strided;
    for (const Piece& piece : pieces) {
      strided.push_back({.src = src.data() + piece.src.base,
                         .dst = dst.data() + piece.dst.base,
                         .src_block_stride = piece.src.block_stride,
                         .dst_block_stride = piece.dst.block_stride,
                         .bytes = piece.bytes,
                         .axes = {}});
      for (size_t a = 0; a < kStridedAxes; ++a) {
        strided.back().axes[a] = {.count = piece.counts[a],
                                  .src_stride = piece.src.strides[a],
                                  .dst_stride = piece.dst.strides[a]};
      }
      const auto offset = [](const Side& side, BlockId block, const Counts& at) {
        uint64_t sum = side.base + block.value() * side.block_stride;
        for (size_t a = 0; a < kStridedAxes; ++a) sum += at[a] * side.strides[a];
        return sum;
      };
      const auto [n0, n1, n2, n3] = piece.counts;
      for (uint64_t step = 0; step < n0 * n1 * n2 * n3; ++step) {
        const Counts at{step / (n1 * n2 * n3), step / (n2 * n3) % n1, step / n3 % n2, step % n3};
        for (size_t i = 0; i < from.size(); ++i) {
          for (uint64_t b = 0; b < piece.bytes; ++b, ++planned) {
            expected[offset(piece.dst, to[i], at) + b] =
                src_image[offset(piece.src, from[i], at) + b];
          }
        }
      }
    }
    batch.pieces = std::move(strided);
    if (kernels && random.chance(0.5)) {
      batch.method = CopyMethod::kKernel;
      batch.max_ctas = static_cast<uint32_t>(random.uniform(5));
      if (random.chance(0.5)) {
        batch.max_bytes_per_second = random.uniform_between(1'000'000'000, 100'000'000'000);
      }
    }
    ASSERT_EQ(planned_bytes(batch).value(), planned);
    const StreamRef stream = this->stream();
    const auto moved = batch.bytes_moved;
    ASSERT_TRUE(this->device().copy(stream, std::move(batch)));
    ASSERT_TRUE(this->device().synchronize(stream, this->soon()));
    EXPECT_EQ(*moved, planned);
    EXPECT_EQ(this->content(dst), expected);
    EXPECT_EQ(this->content(src), src_image);
    ASSERT_TRUE(this->device().destroy_stream(stream));
  }
}

TYPED_TEST_P(DeviceContract, CopiesThroughTheRingMatchAnElementWiseOracle) {
  if constexpr (!requires { this->harness_.host_memory(size_t{1}); }) {
    GTEST_SKIP() << "this device has no ring";
  } else {
    ASSERT_TRUE(this->device().info().capabilities.ring_copies);
    constexpr size_t kLevels = kStridedAxes + 1;  // the axes, and the pieces
    using Counts = std::array<uint64_t, kLevels>;
    struct Nest {
      Counts strides{};
      uint64_t block_stride = 0;
      uint64_t size = 0;
    };
    constexpr size_t kMostBytes = 1 << 20;
    std::byte* const host = this->harness_.host_memory(kMostBytes);
    for (uint64_t seed = 1; seed <= 80; ++seed) {
      SCOPED_TRACE("seed " + std::to_string(seed));
      Random random(seed);
      const bool to_host = random.chance(0.5);
      const uint64_t num_blocks = random.uniform_between(1, 40);
      const uint64_t bytes = random.chance(0.5) ? 16 : random.uniform_between(1, 23);
      Counts counts{};
      for (uint64_t& count : counts) count = random.chance(0.5) ? 1 : random.uniform_between(1, 4);
      // On the host a block is packed, in any order of its levels; on the device anything goes.
      const auto nest = [&](bool is_host) {
        std::array<size_t, kLevels + 1> order{};  // innermost first; the last entry is the block
        std::iota(order.begin(), order.end(), size_t{0});
        random.shuffle(std::span(order).first(is_host ? kLevels : kLevels + 1));
        Nest result{.size = bytes};
        for (const size_t level : order) {
          const bool is_block = level == kLevels;
          const bool gap = (is_block || !is_host) && random.chance(0.5);
          const uint64_t stride = result.size + (gap ? random.uniform_between(1, 20) : 0);
          (is_block ? result.block_stride : result.strides[level]) = stride;
          result.size = stride * (is_block ? num_blocks : counts[level]);
        }
        return result;
      };
      const Nest near = nest(false);
      const Nest far = nest(true);
      const uint64_t host_at = random.uniform(17);
      const uint64_t host_size = host_at + far.size;
      ASSERT_LE(host_size, kMostBytes);

      std::vector<BlockId> from;
      std::vector<BlockId> to;
      for (uint32_t i = 0; i < num_blocks; ++i) to.emplace_back(i);
      if (random.chance(0.5)) random.shuffle(std::span(to));
      to.resize(random.uniform_between(1, num_blocks));
      for (size_t i = 0; i < to.size(); ++i) {
        from.emplace_back(static_cast<uint32_t>(random.uniform(num_blocks)));
      }

      std::vector<std::byte> device_image = this->noise(random, near.size);
      std::vector<std::byte> host_image = this->noise(random, host_size);
      std::ranges::copy(host_image, host);
      const DeviceMemory device = this->filled(device_image);
      std::vector<StridedPiece> pieces;
      uint64_t planned = 0;
      for (uint64_t p = 0; p < counts[kStridedAxes]; ++p) {
        const uint64_t near_at = p * near.strides[kStridedAxes];
        const uint64_t far_at = host_at + p * far.strides[kStridedAxes];
        StridedPiece piece{.src = to_host ? device.data() + near_at : host + far_at,
                           .dst = to_host ? host + far_at : device.data() + near_at,
                           .src_block_stride = to_host ? near.block_stride : far.block_stride,
                           .dst_block_stride = to_host ? far.block_stride : near.block_stride,
                           .bytes = bytes,
                           .axes = {}};
        for (size_t a = 0; a < kStridedAxes; ++a) {
          piece.axes[a] = {.count = counts[a],
                           .src_stride = to_host ? near.strides[a] : far.strides[a],
                           .dst_stride = to_host ? far.strides[a] : near.strides[a]};
        }
        pieces.push_back(piece);
        const uint64_t n1 = counts[1];
        const uint64_t n2 = counts[2];
        const uint64_t n3 = counts[3];
        for (uint64_t step = 0; step < counts[0] * n1 * n2 * n3; ++step) {
          const std::array<uint64_t, kStridedAxes> at{step / (n1 * n2 * n3), step / (n2 * n3) % n1,
                                                      step / n3 % n2, step % n3};
          uint64_t near_step = near_at;
          uint64_t far_step = far_at;
          for (size_t a = 0; a < kStridedAxes; ++a) {
            near_step += at[a] * near.strides[a];
            far_step += at[a] * far.strides[a];
          }
          for (size_t i = 0; i < to.size(); ++i, planned += bytes) {
            const uint64_t near_block = (to_host ? from[i] : to[i]).value() * near.block_stride;
            const uint64_t far_block = (to_host ? to[i] : from[i]).value() * far.block_stride;
            const auto in_device =
                device_image.begin() + static_cast<ptrdiff_t>(near_block + near_step);
            const auto in_host = host_image.begin() + static_cast<ptrdiff_t>(far_block + far_step);
            if (to_host) {
              std::copy_n(in_device, bytes, in_host);
            } else {
              std::copy_n(in_host, bytes, in_device);
            }
          }
        }
      }
      random.shuffle(std::span(pieces));
      StridedCopyBatch batch{.pairs = make_block_pairs(from, to),
                             .pieces = std::move(pieces),
                             .method = CopyMethod::kRing,
                             .max_ctas = static_cast<uint32_t>(random.uniform(5)),
                             .bytes_moved = std::make_shared<std::atomic<uint64_t>>(0)};
      const auto moved = batch.bytes_moved;
      const StreamRef stream = this->stream();
      const Status copied = this->device().copy(stream, std::move(batch));
      ASSERT_TRUE(copied) << copied.error();
      ASSERT_TRUE(this->device().synchronize(stream, this->soon()));
      EXPECT_EQ(*moved, planned);
      EXPECT_EQ(this->content(device), device_image);
      EXPECT_EQ(std::vector<std::byte>(host, host + host_size), host_image);
      ASSERT_TRUE(this->device().destroy_stream(stream));
    }
  }
}

TYPED_TEST_P(DeviceContract, RefusesAMethodThatItLacks) {
  const DeviceCapabilities capabilities = this->device().info().capabilities;
  if (capabilities.kernel_copies && capabilities.ring_copies) {
    GTEST_SKIP() << "it has every method";
  }
  const DeviceMemory memory = this->device().allocate(64, 1).value();
  const StreamRef stream = this->stream();
  for (const CopyMethod method : {CopyMethod::kKernel, CopyMethod::kRing}) {
    if (method == CopyMethod::kKernel && capabilities.kernel_copies) continue;
    StridedCopyBatch batch = this->plain_copy(memory.data(), memory.data() + 32, 32);
    batch.method = method;
    EXPECT_EQ(code_of(this->device().copy(stream, std::move(batch))), ErrorCode::kUnsupported)
        << to_string(method);
  }
  EXPECT_TRUE(this->device().synchronize(stream, this->soon()));
}

TYPED_TEST_P(DeviceContract, RefusesALimitOfKernelsForTheCopyEngine) {
  const DeviceMemory memory = this->device().allocate(64, 1).value();
  const StreamRef stream = this->stream();
  StridedCopyBatch few = this->plain_copy(memory.data(), memory.data() + 32, 32);
  few.max_ctas = 1;
  EXPECT_EQ(code_of(this->device().copy(stream, std::move(few))), ErrorCode::kInvalidArgument);
  StridedCopyBatch slow = this->plain_copy(memory.data(), memory.data() + 32, 32);
  slow.max_bytes_per_second = 1'000'000;
  EXPECT_EQ(code_of(this->device().copy(stream, std::move(slow))), ErrorCode::kInvalidArgument);
  StridedCopyBatch ring = this->plain_copy(memory.data(), memory.data() + 32, 32);
  ring.method = CopyMethod::kRing;
  ring.max_bytes_per_second = 1'000'000;
  EXPECT_EQ(code_of(this->device().copy(stream, std::move(ring))), ErrorCode::kInvalidArgument);
  EXPECT_TRUE(this->device().synchronize(stream, this->soon()));
}

TYPED_TEST_P(DeviceContract, ABatchKeepsItsBlockListsUntilItIsDone) {
  Random random(7);
  const std::vector<std::byte> image = this->noise(random, 256);
  const DeviceMemory src = this->filled(image);
  const DeviceMemory dst = this->device().allocate(256, 1).value();
  const StreamRef stream = this->stream();
  EventSource gate = this->device().create_event();
  ASSERT_TRUE(this->device().wait(stream, gate.event()));
  StridedCopyBatch batch = this->plain_copy(src.data(), dst.data(), 256);
  batch.bytes_moved = std::make_shared<std::atomic<uint64_t>>(0);
  const std::weak_ptr<const BlockPairs> pairs = batch.pairs;
  const std::weak_ptr<std::atomic<uint64_t>> moved = batch.bytes_moved;
  ASSERT_TRUE(this->device().copy(stream, std::move(batch)));
  EXPECT_FALSE(pairs.expired());
  EXPECT_FALSE(moved.expired());
  gate.signal();
  ASSERT_TRUE(this->device().synchronize(stream, this->soon()));
  EXPECT_TRUE(moved.expired()) << "the end of the copies cannot be told without an event";
  EXPECT_EQ(this->content(dst), image);
}

TYPED_TEST_P(DeviceContract, CopiesFollowTheOrderOfTheirStream) {
  constexpr uint64_t kBytes = 4096;
  Random random(11);
  const std::vector<std::byte> image = this->noise(random, kBytes);
  const DeviceMemory src = this->filled(image);
  std::vector<DeviceMemory> chain;
  const StreamRef stream = this->stream();
  EventSource gate = this->device().create_event();
  ASSERT_TRUE(this->device().wait(stream, gate.event()));
  const std::byte* last = src.data();
  for (int i = 0; i < 20; ++i) {
    chain.push_back(this->device().allocate(kBytes, 1).value());
    ASSERT_TRUE(this->device().copy(stream, this->plain_copy(last, chain.back().data(), kBytes)));
    last = chain.back().data();
  }
  gate.signal();
  ASSERT_TRUE(this->device().synchronize(stream, this->soon()));
  EXPECT_EQ(this->content(chain.back()), image);
}

TYPED_TEST_P(DeviceContract, CopiesAndRecordsInOneCall) {
  Random random(13);
  const std::vector<std::byte> image = this->noise(random, 4096);
  const DeviceMemory src = this->filled(image);
  const StreamRef stream = this->stream();
  const DeviceMemory first = this->device().allocate(4096, 1).value();
  const Event copied =
      this->device()
          .copy_and_record(stream, this->plain_copy(src.data(), first.data(), 4096))
          .value();
  ASSERT_TRUE(copied.wait(this->soon()));
  EXPECT_EQ(this->content(first), image);

  EventSource gate = this->device().create_event();
  ASSERT_TRUE(this->device().wait(stream, gate.event()));
  const DeviceMemory second = this->device().allocate(4096, 1).value();
  const Event behind =
      this->device()
          .copy_and_record(stream, this->plain_copy(first.data(), second.data(), 4096))
          .value();
  EXPECT_FALSE(behind.done());
  gate.signal();
  ASSERT_TRUE(behind.wait(this->soon()));
  EXPECT_EQ(this->content(second), image);

  // Like any record(): of all since the one before, the first failure.
  this->launch_failure(stream, ErrorCode::kCorrupt);
  const Event failed =
      this->device()
          .copy_and_record(stream, this->plain_copy(src.data(), second.data(), 4096))
          .value();
  EXPECT_EQ(code_of(failed.wait(this->soon())), ErrorCode::kCorrupt);
  EXPECT_TRUE(this->device()
                  .copy_and_record(stream, this->plain_copy(src.data(), second.data(), 4096))
                  .value()
                  .wait(this->soon()));

  StridedCopyBatch bad = this->plain_copy(src.data(), second.data(), 4096);
  bad.pairs = nullptr;
  EXPECT_EQ(code_of(this->device().copy_and_record(stream, std::move(bad))),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of(this->device().copy_and_record(
                StreamRef{999}, this->plain_copy(src.data(), second.data(), 4096))),
            ErrorCode::kNotFound);
  EXPECT_TRUE(this->device().synchronize(stream, this->soon())) << "a refused call left a trace";
}

TYPED_TEST_P(DeviceContract, RefusesBatchesThatMakeNoSense) {
  const DeviceMemory memory = this->device().allocate(4096, 1).value();
  const StreamRef stream = this->stream();
  const StridedCopyBatch good = this->plain_copy(memory.data(), memory.data() + 2048, 64);
  std::vector<StridedCopyBatch> bad(4, good);
  bad[0].pairs = nullptr;
  const auto changed = [&](auto&& change) {
    StridedPiece piece = good.pieces[0];
    change(piece);
    return PieceList{piece};
  };
  bad[1].pieces = changed([](StridedPiece& piece) { piece.src = nullptr; });
  bad[2].pieces = changed([](StridedPiece& piece) { piece.dst = nullptr; });
  bad[3].pairs = make_block_pairs({BlockId(2)}, {BlockId(0)});
  bad[3].pieces = changed([](StridedPiece& piece) {
    piece.src_block_stride = std::numeric_limits<uint64_t>::max() / 2;
  });
  for (size_t i = 0; i < bad.size(); ++i) {
    EXPECT_EQ(code_of(this->device().copy(stream, bad[i])), ErrorCode::kInvalidArgument) << i;
  }
  EXPECT_TRUE(this->device().synchronize(stream, this->soon())) << "a refused call left a trace";
}

TYPED_TEST_P(DeviceContract, TakesEmptyBatches) {
  const DeviceMemory memory = this->device().allocate(64, 1).value();
  const StreamRef stream = this->stream();
  StridedCopyBatch no_blocks = this->plain_copy(memory.data(), memory.data(), 8);
  no_blocks.pairs = make_block_pairs({});
  EXPECT_TRUE(this->device().copy(stream, no_blocks));
  StridedCopyBatch no_pieces = this->plain_copy(memory.data(), memory.data(), 8);
  no_pieces.pieces = {};
  EXPECT_TRUE(this->device().copy(stream, no_pieces));
  EXPECT_TRUE(this->device().synchronize(stream, this->soon()));
}

TYPED_TEST_P(DeviceContract, PatternsAreThoseOfTheHost) {
  ASSERT_TRUE(this->device().info().capabilities.patterns);
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    // Aligned or not, short and long, pieces of one length and of several.
    const uint64_t unit = seed % 2 == 0 ? 16 : 1;
    const uint64_t num_blocks = random.uniform_between(1, 9);
    std::vector<uint64_t> starts;
    std::vector<uint64_t> lengths;
    uint64_t block_bytes = unit * random.uniform(3);
    for (uint64_t piece = random.uniform_between(1, 5); piece > 0; --piece) {
      const bool alike = !lengths.empty() && random.chance(0.6);
      starts.push_back(block_bytes);
      lengths.push_back(alike ? lengths.back()
                              : unit * random.uniform(random.chance(0.3) ? 20'000 / unit : 40));
      block_bytes += lengths.back() + unit * random.uniform(3);
    }
    block_bytes += unit;
    std::vector<std::byte> expected = this->noise(random, (num_blocks + 2) * block_bytes);
    const DeviceMemory memory = this->filled(expected);
    const auto batch_at = [&](std::byte* base) {
      PatternBatch batch;
      Random same(seed);
      for (uint32_t i = 0; i < num_blocks; ++i) {
        batch.blocks.emplace_back(i + 1);
        batch.seeds.push_back(same.next());
      }
      same.shuffle(std::span(batch.blocks));
      for (size_t p = 0; p < starts.size(); ++p) {
        batch.pieces.push_back({.data = base + starts[p],
                                .block_stride = block_bytes,
                                .bytes = lengths[p],
                                .seed = same.next()});
      }
      return batch;
    };
    const StreamRef stream = this->stream();
    ASSERT_TRUE(this->device().pattern(stream, batch_at(memory.data())));
    ASSERT_TRUE(this->device().synchronize(stream, this->soon()));
    run_pattern(batch_at(expected.data()));
    ASSERT_EQ(this->content(memory), expected);

    // A few wrong bytes, some of them in no piece.
    for (int wrong = 0; wrong < 4; ++wrong) {
      const uint64_t at = random.uniform(expected.size());
      expected[at] ^= std::byte{0x40};
      this->harness_.upload(memory.data() + at, std::span(expected).subspan(at, 1));
    }
    PatternBatch here = batch_at(memory.data());
    here.findings = std::make_shared<PatternFindings>(num_blocks);
    PatternBatch there = batch_at(expected.data());
    there.findings = std::make_shared<PatternFindings>(num_blocks);
    run_pattern(there);
    ASSERT_TRUE(this->device().pattern(stream, here));
    ASSERT_TRUE(this->device().synchronize(stream, this->soon())) << "wrong bytes are no failure";
    EXPECT_EQ(here.findings->num_compared(), num_blocks);
    for (size_t i = 0; i < num_blocks; ++i) {
      EXPECT_EQ(here.findings->first_wrong(i), there.findings->first_wrong(i)) << "block " << i;
    }
    EXPECT_EQ(this->content(memory), expected) << "a comparison wrote";
    ASSERT_TRUE(this->device().destroy_stream(stream));
  }
}

TYPED_TEST_P(DeviceContract, PatternsFollowTheOrderOfTheirStream) {
  constexpr uint64_t kBytes = 4096;
  const DeviceMemory first = this->device().allocate(kBytes, 256).value();
  const DeviceMemory second = this->device().allocate(kBytes, 256).value();
  const auto pattern = [](const DeviceMemory& memory, uint64_t seed) {
    return PatternBatch{.blocks = {BlockId(0)},
                        .seeds = {seed},
                        .pieces = {{.data = memory.data(), .bytes = kBytes}}};
  };
  for (const bool held : {false, true}) {
    const StreamRef stream = this->stream();
    EventSource gate = this->device().create_event();
    if (held) {
      ASSERT_TRUE(this->device().wait(stream, gate.event()));
    }
    PatternBatch compared = pattern(second, 1);
    compared.findings = std::make_shared<PatternFindings>(1);
    ASSERT_TRUE(this->device().pattern(stream, pattern(first, 1)));
    ASSERT_TRUE(this->device().copy(stream, this->plain_copy(first.data(), second.data(), kBytes)));
    ASSERT_TRUE(this->device().pattern(stream, pattern(first, 2)));
    ASSERT_TRUE(this->device().pattern(stream, compared));
    const Event end = this->device().record(stream);
    gate.signal();
    ASSERT_TRUE(end.wait(this->soon()));
    EXPECT_EQ(compared.findings->num_compared(), 1u);
    EXPECT_EQ(compared.findings->num_wrong(), 0u);
    EXPECT_EQ(first_wrong_byte(2, this->content(first)), std::nullopt);
  }
}

TYPED_TEST_P(DeviceContract, PatternsTakeMoreBlocksThanOneLaunch) {
  constexpr uint32_t kBlocks = 40'000;
  constexpr uint64_t kBytes = 16;
  const DeviceMemory memory = this->device().allocate(kBlocks * kBytes, 256).value();
  PatternBatch batch{.pieces = {{.data = memory.data(), .block_stride = kBytes, .bytes = kBytes}}};
  for (uint32_t i = 0; i < kBlocks; ++i) {
    batch.blocks.emplace_back(kBlocks - 1 - i);
    batch.seeds.push_back(i);
  }
  const StreamRef stream = this->stream();
  ASSERT_TRUE(this->device().pattern(stream, batch));
  batch.findings = std::make_shared<PatternFindings>(kBlocks);
  batch.seeds[33'333] = 7;
  ASSERT_TRUE(this->device().pattern(stream, batch));
  ASSERT_TRUE(this->device().synchronize(stream, this->soon()));
  EXPECT_EQ(batch.findings->num_compared(), kBlocks);
  EXPECT_EQ(batch.findings->num_wrong(), 1u);
  EXPECT_EQ(batch.findings->first_wrong(33'333), (PatternFindings::Place{.piece = 0, .offset = 0}));
}

TYPED_TEST_P(DeviceContract, APatternThatWasLeftOutComparedNothing) {
  const DeviceMemory memory = this->device().allocate(64, 256).value();
  PatternBatch batch{.blocks = {BlockId(0)},
                     .seeds = {1},
                     .pieces = {{.data = memory.data(), .bytes = 64}},
                     .findings = std::make_shared<PatternFindings>(1)};
  const StreamRef stream = this->stream();
  EventSource gate = this->device().create_event();
  ASSERT_TRUE(this->device().wait(stream, gate.event()));
  ASSERT_TRUE(this->device().pattern(stream, batch));
  const Event end = this->device().record(stream);
  gate.signal(make_error(ErrorCode::kIo, "what fills the block failed"));
  EXPECT_EQ(code_of(end.wait(this->soon())), ErrorCode::kIo);
  EXPECT_EQ(batch.findings->num_compared(), 0u);
}

TYPED_TEST_P(DeviceContract, RefusesPatternsThatMakeNoSense) {
  const StreamRef stream = this->stream();
  const PatternBatch no_seed{.blocks = {BlockId(0)}, .seeds = {}, .pieces = {}};
  EXPECT_EQ(code_of(this->device().pattern(stream, no_seed)), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of(this->device().pattern(StreamRef{0x7fff'0000'0000}, {})), ErrorCode::kNotFound);
  EXPECT_TRUE(this->device().pattern(stream, {}));
  EXPECT_TRUE(this->device().synchronize(stream, this->soon()));
}

TYPED_TEST_P(DeviceContract, ChecksumsAreThoseOfTheHost) {
  ASSERT_TRUE(this->device().info().capabilities.checksums);
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    // From one unit to a few hundred, in one run or in many.
    const uint64_t num_blocks = random.uniform_between(1, 9);
    struct Part {
      uint64_t start, bytes, count, stride;
    };
    std::vector<Part> parts;
    uint64_t block_bytes = 16 * random.uniform(4);
    for (uint64_t piece = random.uniform_between(1, 5); piece > 0; --piece) {
      const uint64_t bytes = kChecksumUnit * random.uniform_between(1, random.chance(0.3) ? 90 : 4);
      const uint64_t count = random.uniform_between(1, 4);
      const uint64_t stride = bytes + 16 * random.uniform(5);
      parts.push_back({block_bytes, bytes, count, stride});
      block_bytes += count * stride + 16 * random.uniform(3);
    }
    const std::vector<std::byte> bytes = this->noise(random, (num_blocks + 1) * block_bytes);
    const DeviceMemory memory = this->filled(bytes);
    ChecksumBatch batch{.checksums = std::make_shared<BlockChecksums>(num_blocks)};
    for (uint32_t i = 0; i < num_blocks; ++i) batch.blocks.emplace_back(i + 1);
    random.shuffle(std::span(batch.blocks));
    for (const Part& part : parts) {
      batch.pieces.push_back({.data = memory.data() + part.start,
                              .block_stride = block_bytes,
                              .bytes = part.bytes,
                              .count = static_cast<uint32_t>(part.count),
                              .stride = part.stride});
    }
    // A piece of no byte, which needs no address.
    batch.pieces.insert(batch.pieces.begin() + static_cast<ptrdiff_t>(random.uniform(parts.size())),
                        ChecksumPiece{});
    const StreamRef stream = this->stream();
    ASSERT_TRUE(this->device().checksum(stream, batch));
    ASSERT_TRUE(this->device().synchronize(stream, this->soon()));
    ASSERT_EQ(batch.checksums->num_known(), num_blocks);
    for (size_t i = 0; i < num_blocks; ++i) {
      std::vector<std::byte> joined;
      for (const Part& part : parts) {
        for (uint64_t run = 0; run < part.count; ++run) {
          const auto begin =
              bytes.begin() + static_cast<ptrdiff_t>(batch.blocks[i].value() * block_bytes +
                                                     part.start + run * part.stride);
          joined.insert(joined.end(), begin, begin + static_cast<ptrdiff_t>(part.bytes));
        }
      }
      EXPECT_EQ(batch.checksums->at(i), checksum(joined)) << "block " << i;
    }
    EXPECT_EQ(this->content(memory), bytes) << "a checksum wrote";
    ASSERT_TRUE(this->device().destroy_stream(stream));
  }
}

TYPED_TEST_P(DeviceContract, ChecksumsFollowTheOrderOfTheirStream) {
  constexpr uint64_t kBytes = 4096;
  const DeviceMemory memory = this->device().allocate(kBytes, 256).value();
  const auto fill = [&](uint64_t seed) {
    return PatternBatch{.blocks = {BlockId(0)},
                        .seeds = {seed},
                        .pieces = {{.data = memory.data(), .bytes = kBytes}}};
  };
  const auto sum = [&] {
    return ChecksumBatch{.blocks = {BlockId(0)},
                         .pieces = {{.data = memory.data(), .bytes = kBytes}},
                         .checksums = std::make_shared<BlockChecksums>(1)};
  };
  for (const bool held : {false, true}) {
    const StreamRef stream = this->stream();
    EventSource gate = this->device().create_event();
    if (held) {
      ASSERT_TRUE(this->device().wait(stream, gate.event()));
    }
    const ChecksumBatch first = sum();
    const ChecksumBatch second = sum();
    ASSERT_TRUE(this->device().pattern(stream, fill(1)));
    ASSERT_TRUE(this->device().checksum(stream, first));
    ASSERT_TRUE(this->device().pattern(stream, fill(2)));
    ASSERT_TRUE(this->device().checksum(stream, second));
    const Event end = this->device().record(stream);
    gate.signal();
    ASSERT_TRUE(end.wait(this->soon()));
    std::vector<std::byte> expected(kBytes);
    fill_pattern(1, expected);
    EXPECT_EQ(first.checksums->at(0), checksum(expected));
    fill_pattern(2, expected);
    EXPECT_EQ(second.checksums->at(0), checksum(expected));
  }
}

TYPED_TEST_P(DeviceContract, ChecksumsTakeMoreBlocksThanOneLaunch) {
  constexpr uint32_t kBlocks = 20'000;
  const DeviceMemory memory = this->device().allocate(kBlocks * kChecksumUnit, 256).value();
  PatternBatch fill{
      .pieces = {{.data = memory.data(), .block_stride = kChecksumUnit, .bytes = kChecksumUnit}}};
  ChecksumBatch batch{
      .pieces = {{.data = memory.data(), .block_stride = kChecksumUnit, .bytes = kChecksumUnit}},
      .checksums = std::make_shared<BlockChecksums>(kBlocks)};
  for (uint32_t i = 0; i < kBlocks; ++i) {
    fill.blocks.emplace_back(i);
    fill.seeds.push_back(i);
    batch.blocks.emplace_back(kBlocks - 1 - i);
  }
  const StreamRef stream = this->stream();
  ASSERT_TRUE(this->device().pattern(stream, fill));
  ASSERT_TRUE(this->device().checksum(stream, batch));
  ASSERT_TRUE(this->device().synchronize(stream, this->soon()));
  ASSERT_EQ(batch.checksums->num_known(), kBlocks);
  std::vector<std::byte> expected(kChecksumUnit);
  for (const uint32_t i : {0U, 9'999U, 16'383U, 16'384U, kBlocks - 1}) {
    fill_pattern(kBlocks - 1 - i, expected);
    EXPECT_EQ(batch.checksums->at(i), checksum(expected)) << i;
  }
}

/// Who waits for checksums alone hears of their end without an event, and also of a bad one.
TYPED_TEST_P(DeviceContract, LetsGoOfChecksumsWhateverBecomesOfThem) {
  const DeviceMemory memory = this->device().allocate(kChecksumUnit, 256).value();
  for (const bool fails : {false, true}) {
    const auto sums = std::make_shared<BlockChecksums>(1);
    std::atomic<int> let_go{0};
    ChecksumBatch batch{.blocks = {BlockId(0)},
                        .pieces = {{.data = memory.data(), .bytes = kChecksumUnit}},
                        .checksums = {sums.get(), [&](BlockChecksums*) { ++let_go; }}};
    const StreamRef stream = this->stream();
    EventSource gate = this->device().create_event();
    ASSERT_TRUE(this->device().wait(stream, gate.event()));
    ASSERT_TRUE(this->device().checksum(stream, std::move(batch)));
    const Event end = this->device().record(stream);
    EXPECT_EQ(let_go, 0);
    gate.signal(fails ? Status(make_error(ErrorCode::kIo, "what fills the block failed"))
                      : Status());
    EXPECT_EQ(end.wait(this->soon()).has_value(), !fails);
    EXPECT_EQ(let_go, 1);
    EXPECT_EQ(sums->num_known(), fails ? 0U : 1U);
  }
}

TYPED_TEST_P(DeviceContract, RefusesChecksumsThatMakeNoSense) {
  const StreamRef stream = this->stream();
  EXPECT_EQ(code_of(this->device().checksum(stream, {})), ErrorCode::kInvalidArgument);
  const ChecksumBatch none{.checksums = std::make_shared<BlockChecksums>(0)};
  EXPECT_EQ(code_of(this->device().checksum(StreamRef{0x7fff'0000'0000}, none)),
            ErrorCode::kNotFound);
  EXPECT_TRUE(this->device().checksum(stream, none));
  EXPECT_TRUE(this->device().synchronize(stream, this->soon()));
}

TYPED_TEST_P(DeviceContract, ThousandsOfEventsPassBetweenTwoStreams) {
  constexpr uint64_t kRounds = 4000;
  const StreamRef ping = this->stream("ping");
  const StreamRef pong = this->stream("pong");
  EventSource gate = this->device().create_event();
  ASSERT_TRUE(this->device().wait(ping, gate.event()));
  Track track;
  std::vector<Event> events;
  for (uint64_t i = 0; i < kRounds; ++i) {
    const StreamRef here = i % 2 == 0 ? ping : pong;
    const StreamRef there = i % 2 == 0 ? pong : ping;
    this->launch(here, [&track, i] { track.add(i); });
    events.push_back(this->device().record(here));
    ASSERT_TRUE(this->device().wait(there, events.back()));
  }
  gate.signal();
  for (const Event& event : events) ASSERT_TRUE(event.wait(this->soon()));
  const std::vector<uint64_t> marks = track.marks();
  ASSERT_EQ(marks.size(), kRounds);
  EXPECT_TRUE(std::is_sorted(marks.begin(), marks.end()));
}

TYPED_TEST_P(DeviceContract, RandomWorkKeepsEveryOrderThatEventsAskFor) {
  constexpr size_t kStreams = 6;
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    struct Mark {
      Event event;
      std::optional<uint64_t> after;  // the last launch it covers
    };
    std::vector<StreamRef> streams;
    std::vector<std::optional<uint64_t>> last(kStreams);  // last launch of each stream
    std::vector<std::vector<uint64_t>> due(kStreams);     // launches its next one comes after
    std::vector<std::vector<uint64_t>> predecessors;      // of each launch
    std::vector<Mark> marks;
    std::vector<EventSource> gates;
    Track track;
    for (size_t i = 0; i < kStreams; ++i) streams.push_back(this->stream());
    for (int step = 0; step < 400; ++step) {
      const auto s = static_cast<size_t>(random.uniform(kStreams));
      const uint64_t choice = random.uniform(10);
      if (choice < 4) {
        const uint64_t id = predecessors.size();
        predecessors.push_back(std::exchange(due[s], {}));
        if (last[s].has_value()) predecessors.back().push_back(*last[s]);
        last[s] = id;
        this->launch(streams[s], [&track, id] { track.add(id); });
      } else if (choice < 6) {
        marks.push_back({this->device().record(streams[s]), last[s]});
      } else if (choice < 9 && !marks.empty()) {
        const Mark& mark = marks[random.uniform(marks.size())];
        ASSERT_TRUE(this->device().wait(streams[s], mark.event));
        if (mark.after.has_value()) due[s].push_back(*mark.after);
      } else if (gates.size() < 8) {
        gates.push_back(this->device().create_event());
        ASSERT_TRUE(this->device().wait(streams[s], gates.back().event()));
      } else {
        random.shuffle(std::span(gates));
        gates.back().signal();
        gates.pop_back();
      }
    }
    for (EventSource& gate : gates) gate.signal();
    for (const StreamRef stream : streams) {
      ASSERT_TRUE(this->device().synchronize(stream, this->soon()));
      ASSERT_TRUE(this->device().destroy_stream(stream));
    }
    const std::vector<uint64_t> order = track.marks();
    ASSERT_EQ(order.size(), predecessors.size());
    std::vector<size_t> position(order.size());
    for (size_t i = 0; i < order.size(); ++i) position[order[i]] = i;
    for (uint64_t id = 0; id < predecessors.size(); ++id) {
      for (const uint64_t before : predecessors[id]) {
        EXPECT_LT(position[before], position[id]) << before << " runs before " << id;
      }
    }
  }
}

TYPED_TEST_P(DeviceContract, ADeviceThatIsDestroyedEndsEverythingThatIsQueued) {
  Random random(3);
  const std::vector<std::byte> image = this->noise(random, 4096);
  const DeviceMemory src = this->filled(image);
  const DeviceMemory dst = this->device().allocate(4096, 1).value();
  const StreamRef held = this->stream("held");
  const StreamRef behind = this->stream("behind");
  std::optional<EventSource> gate(this->device().create_event());
  const auto token = std::make_shared<int>(1);
  ASSERT_TRUE(this->device().wait(held, gate->event()));
  this->launch(held, [token] { ADD_FAILURE() << "a dropped task ran"; });
  ASSERT_TRUE(this->device().copy(held, this->plain_copy(src.data(), dst.data(), 4096)));
  const Event first = this->device().record(held);
  ASSERT_TRUE(this->device().wait(behind, first));
  const Event second = this->device().record(behind);
  std::vector<StreamRef> busy;
  for (int i = 0; i < 8; ++i) {
    busy.push_back(this->stream("busy"));
    for (int k = 0; k < 100; ++k) this->launch(busy.back(), [token] {});
  }
  std::atomic<int> told{0};
  second.on_done([&told](const Status&) noexcept { ++told; });

  this->harness_.destroy_device();
  ASSERT_TRUE(first.done());
  ASSERT_TRUE(second.done());
  EXPECT_EQ(code_of(first.status()), ErrorCode::kCancelled);
  EXPECT_EQ(code_of(second.status()), ErrorCode::kCancelled);
  EXPECT_EQ(told, 1);
  EXPECT_EQ(token.use_count(), 1) << "a task is still held";
  gate->signal();  // nobody is left to hear it
  gate.reset();
}

TYPED_TEST_P(DeviceContract, MemoryMayOutliveItsDevice) {
  DeviceMemory memory = this->device().allocate(1 << 16, 4096).value();
  this->harness_.destroy_device();
  memory.reset();
  EXPECT_FALSE(memory);
}

REGISTER_TYPED_TEST_SUITE_P(
    DeviceContract, DescribesItself, RunsTheOperationsOfAStreamInTheOrderOfTheCalls,
    StreamsThatWaitHoldUpNobody, AStreamGoesOnAfterTheEventOfAnotherStream,
    AnEventThatIsDoneAlreadyHoldsNobody, AnIdleStreamRecordsAnEventThatSucceeds,
    TellsCallbacksOnceAndLetsThemQueueMore, AFailureFailsTheNextEventAndNoLaterOne,
    AFailureIsNotLostWhenTheStreamIsIdleBeforeTheRecord, ATaskThatThrowsFailsAsInternal,
    TasksRunAfterAFailureAllTheSame, AWaitForAFailedEventFailsTheNextEventOfTheWaitingStream,
    AnEventSourceDroppedUnsignalledFailsWhoWaits, SynchronizeGivesUpAtTheDeadline,
    RefusesAStreamItDoesNotKnow, ADestroyedStreamFinishesWhatItHasAndTakesNoMore, StreamsComeAndGo,
    AllocatesAlignedMemoryThatReadsAsZero, RefusesMemoryThatItDoesNotHave,
    RefusesMemoryOfNoByteOrOddAlignment, StridedCopiesMatchAnElementWiseOracle,
    CopiesThroughTheRingMatchAnElementWiseOracle, RefusesAMethodThatItLacks,
    RefusesALimitOfKernelsForTheCopyEngine, ABatchKeepsItsBlockListsUntilItIsDone,
    CopiesFollowTheOrderOfTheirStream, CopiesAndRecordsInOneCall, RefusesBatchesThatMakeNoSense,
    TakesEmptyBatches, PatternsAreThoseOfTheHost, PatternsFollowTheOrderOfTheirStream,
    PatternsTakeMoreBlocksThanOneLaunch, APatternThatWasLeftOutComparedNothing,
    RefusesPatternsThatMakeNoSense, ChecksumsAreThoseOfTheHost,
    ChecksumsFollowTheOrderOfTheirStream, ChecksumsTakeMoreBlocksThanOneLaunch,
    LetsGoOfChecksumsWhateverBecomesOfThem, RefusesChecksumsThatMakeNoSense,
    ThousandsOfEventsPassBetweenTwoStreams, RandomWorkKeepsEveryOrderThatEventsAskFor,
    ADeviceThatIsDestroyedEndsEverythingThatIsQueued, MemoryMayOutliveItsDevice);

}  // namespace kvbm::testing
