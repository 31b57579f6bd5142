// SPDX-License-Identifier: Apache-2.0
#include "kvbm/memory/pinned_memory.hpp"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <future>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/log.hpp"
#include "kvbm/base/stepped_executor.hpp"
#include "kvbm/base/thread_executor.hpp"
#include "kvbm/base/units.hpp"
#include "kvbm/device/host_pages.hpp"
#include "kvbm/memory/system_memory.hpp"

#include "tests/support/error_code.hpp"
#include "tests/support/pinner_double.hpp"

namespace kvbm {
namespace {

using testing::code_of;
using ::testing::ElementsAre;
using testing::PinnerDouble;

TEST(PinnedMemoryTest, PinsAllOfItInSlicesInOrderAndUnpinsThemAtTheEnd) {
  NullLogSink log;
  ThreadExecutor executor(log);
  const auto pinner = std::make_shared<PinnerDouble>();
  std::vector<uint64_t> progress;
  auto memory = PinnedMemory::create(
      {.executor = executor,
       .pinner = pinner,
       .size_bytes = 41 * kMiB + 5,
       .slice_bytes = 4 * kMiB,
       .num_threads = 4,
       .on_progress = [&progress](uint64_t bytes) { progress.push_back(bytes); }});
  ASSERT_TRUE(memory) << memory.error();
  ASSERT_TRUE(memory->wait_for(memory->size_bytes()));
  EXPECT_EQ(memory->ready_bytes(), 41 * kMiB + 5);
  EXPECT_EQ(memory->region().kind(), StorageKind::kPinned);
  EXPECT_EQ(memory->region().base(), memory->data());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(memory->data()) % (2 * kMiB), 0u);

  const auto pinned = pinner->pinned();
  ASSERT_EQ(pinned.size(), 11u);
  ASSERT_EQ(progress.size(), 11u);
  uint64_t at = 0;
  for (size_t i = 0; i < pinned.size(); ++i) {
    EXPECT_EQ(pinned[i].data, memory->data() + at) << i;
    at += pinned[i].size_bytes;
    EXPECT_EQ(progress[i], at);
  }
  EXPECT_EQ(at, memory->size_bytes());
  EXPECT_TRUE(std::all_of(memory->data(), memory->data() + memory->size_bytes(),
                          [](std::byte byte) { return byte == std::byte{0}; }));

  *memory = PinnedMemory();
  EXPECT_TRUE(pinner->pinned().empty());
}

TEST(PinnedMemoryTest, ServesTheFirstSliceBeforeTheLastIsPinned) {
  SteppedExecutor executor(1);
  const auto pinner = std::make_shared<PinnerDouble>();
  bool others_were_not = false;
  PinnedMemory* self = nullptr;
  auto memory = PinnedMemory::create({.executor = executor,
                                      .pinner = pinner,
                                      .size_bytes = 64 * kMiB,
                                      .slice_bytes = 16 * kMiB,
                                      .num_threads = 1,
                                      .on_progress = [&](uint64_t bytes) {
                                        if (bytes == 16 * kMiB) {
                                          others_were_not = self->ready(bytes).done() &&
                                                            !self->ready(bytes + 1).done();
                                        }
                                      }});
  ASSERT_TRUE(memory);
  self = &*memory;
  EXPECT_EQ(memory->ready_bytes(), 0u);
  EXPECT_FALSE(memory->ready(1).done());
  EXPECT_TRUE(memory->ready(0).done());
  ASSERT_TRUE(memory->wait_for(64 * kMiB));
  EXPECT_TRUE(others_were_not);
}

TEST(PinnedMemoryTest, TellsTheErrorOfThePinnerAndKeepsWhatIsPinned) {
  NullLogSink log;
  ThreadExecutor executor(log);
  const auto pinner = std::make_shared<PinnerDouble>();
  pinner->refuse_from = 2;
  std::vector<std::pair<uint64_t, ErrorCode>> told;  // by one thread, before anybody is woken
  auto memory = PinnedMemory::create({.executor = executor,
                                      .pinner = pinner,
                                      .size_bytes = 16 * kMiB,
                                      .slice_bytes = 2 * kMiB,
                                      .num_threads = 3,
                                      .on_shortage = [&](uint64_t usable_bytes, const Error& why) {
                                        told.emplace_back(usable_bytes, why.code());
                                      }});
  ASSERT_TRUE(memory);
  EXPECT_TRUE(memory->wait_for(4 * kMiB));
  EXPECT_EQ(code_of(memory->wait_for(4 * kMiB + 1)), ErrorCode::kDevice);
  EXPECT_THAT(told, ElementsAre(std::pair(4 * kMiB, ErrorCode::kDevice)));
  EXPECT_EQ(code_of(memory->wait_for(16 * kMiB)), ErrorCode::kDevice);
  EXPECT_EQ(memory->ready_bytes(), 4 * kMiB);
  *memory = PinnedMemory();
  EXPECT_TRUE(pinner->pinned().empty());
}

TEST(PinnedMemoryTest, GivesBackWhatItHasTouchedAndCannotPin) {
  SteppedExecutor executor(1);
  const auto pinner = std::make_shared<PinnerDouble>();
  pinner->refuse_from = 2;
  // Chunks are 16 MiB, so that all is touched before the first slice is pinned.
  auto memory = PinnedMemory::create({.executor = executor,
                                      .pinner = pinner,
                                      .size_bytes = 16 * kMiB,
                                      .slice_bytes = 2 * kMiB,
                                      .num_threads = 3});
  ASSERT_TRUE(memory);
  EXPECT_TRUE(memory->wait_for(4 * kMiB));
  EXPECT_EQ(code_of(memory->wait_for(16 * kMiB)), ErrorCode::kDevice);  // and for the threads
  std::vector<unsigned char> resident(16 * kMiB / HostPages::page_bytes());
  ASSERT_EQ(::mincore(memory->data(), 16 * kMiB, resident.data()), 0);
  const auto quarter = resident.begin() + static_cast<ptrdiff_t>(resident.size() / 4);
  const auto is_resident = [](unsigned char page) { return (page & 1) != 0; };
  EXPECT_TRUE(std::all_of(resident.begin(), quarter, is_resident));
  EXPECT_TRUE(std::none_of(quarter, resident.end(), is_resident));
}

TEST(PinnedMemoryTest, GoesAwayWhileItIsBeingMade) {
  SteppedExecutor executor(1);
  const auto pinner = std::make_shared<PinnerDouble>();
  auto memory = PinnedMemory::create(
      {.executor = executor, .pinner = pinner, .size_bytes = 64 * kMiB, .slice_bytes = 2 * kMiB});
  ASSERT_TRUE(memory);
  const Completion all = memory->ready(64 * kMiB);
  *memory = PinnedMemory();
  EXPECT_TRUE(pinner->pinned().empty());
  ASSERT_TRUE(all.done());
  EXPECT_EQ(code_of(all.status()), ErrorCode::kCancelled);
}

/// The only node that the kernel prefers for a page; none without a preference, or unless it may be
/// asked.
std::optional<uint64_t> preferred_node(const std::byte* page) {
  constexpr int kPreferred = 1;  // MPOL_PREFERRED of <linux/mempolicy.h>
  constexpr int kOfAddress = 2;  // MPOL_F_ADDR
  std::array<unsigned long, 16> nodes{};
  int mode = 0;
  if (::syscall(SYS_get_mempolicy, &mode, nodes.data(), 1024UL, page, kOfAddress) != 0 ||
      mode != kPreferred) {
    return std::nullopt;
  }
  for (uint64_t node = 0; node < 1024; ++node) {
    if (nodes[node / 64] == 1UL << (node % 64)) return node;
  }
  return std::nullopt;
}

TEST(PinnedMemoryTest, GivesUpWhereItIs) {
  NullLogSink log;
  ThreadExecutor executor(log);
  const auto pinner = std::make_shared<PinnerDouble>();
  std::promise<void> refuse;
  pinner->refuse_from = 1;
  pinner->refuse_after = refuse.get_future().share();
  auto memory = PinnedMemory::create(
      {.executor = executor, .pinner = pinner, .size_bytes = 8 * kMiB, .slice_bytes = 2 * kMiB});
  ASSERT_TRUE(memory);
  ASSERT_TRUE(memory->wait_for(2 * kMiB));
  // On a thread that pins, which would end itself if it let go of the memory.
  std::thread::id ended_on;
  memory->ready(4 * kMiB).on_done(
      [&](const Status&) noexcept { ended_on = std::this_thread::get_id(); });
  refuse.set_value();
  memory->give_up();
  EXPECT_NE(ended_on, std::thread::id());
  EXPECT_EQ(memory->ready_bytes(), 2 * kMiB);
  EXPECT_TRUE(memory->ready(2 * kMiB).status());
  EXPECT_FALSE(memory->ready(8 * kMiB).status());
  memory->give_up();
  EXPECT_EQ(pinner->pinned().size(), 1U) << "what is pinned stays";
  *memory = PinnedMemory();
  EXPECT_TRUE(pinner->pinned().empty());
}

TEST(PinnedMemoryTest, IsOnTheNodeOfTheDevice) {
  // A container may forbid it: then the kernel refuses our own page too.
  SystemMemory page = SystemMemory::create({.size_bytes = 4096, .alignment = 4096}).value();
  const unsigned long first = 1;
  if (::syscall(SYS_mbind, page.data(), 4096UL, 1, &first, 65UL, 0) != 0 ||
      preferred_node(page.data()) != 0) {
    GTEST_SKIP() << "this process may not choose nodes";
  }
  NullLogSink log;
  ThreadExecutor executor(log);
  const auto pinner = std::make_shared<PinnerDouble>();
  pinner->node = 0;
  auto memory =
      PinnedMemory::create({.executor = executor, .pinner = pinner, .size_bytes = 6 * kMiB});
  ASSERT_TRUE(memory);
  EXPECT_TRUE(memory->wait_for(6 * kMiB));
  EXPECT_EQ(memory->numa_node(), 0U);
  EXPECT_EQ(preferred_node(memory->data()), 0U);
  EXPECT_EQ(preferred_node(memory->data() + 6 * kMiB - 1), 0U);
  // Without a node the kernel goes by its own mind.
  pinner->node = std::nullopt;
  memory = PinnedMemory::create({.executor = executor, .pinner = pinner, .size_bytes = 2 * kMiB});
  ASSERT_TRUE(memory);
  EXPECT_EQ(memory->numa_node(), std::nullopt);
  EXPECT_EQ(preferred_node(memory->data()), std::nullopt);
}

TEST(PinnedMemoryTest, ANodeThatTheKernelRefusesIsNone) {
  NullLogSink log;
  ThreadExecutor executor(log);
  const auto pinner = std::make_shared<PinnerDouble>();
  pinner->node = 100'000;  // no machine has it
  auto memory =
      PinnedMemory::create({.executor = executor, .pinner = pinner, .size_bytes = 2 * kMiB});
  ASSERT_TRUE(memory);
  EXPECT_TRUE(memory->wait_for(2 * kMiB));
  EXPECT_EQ(memory->numa_node(), std::nullopt) << "the kernel cannot have agreed";
}

TEST(PinnedMemoryTest, RefusesWhatMakesNoSense) {
  NullLogSink log;
  ThreadExecutor executor(log);
  const auto pinner = std::make_shared<PinnerDouble>();
  EXPECT_EQ(code_of(PinnedMemory::create({.executor = executor, .pinner = pinner})),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(
      code_of(PinnedMemory::create({.executor = executor, .pinner = nullptr, .size_bytes = 1})),
      ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of(PinnedMemory::create(
                {.executor = executor, .pinner = pinner, .size_bytes = 1, .slice_bytes = 0})),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of(PinnedMemory::create(
                {.executor = executor, .pinner = pinner, .size_bytes = 1, .num_threads = 0})),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of(PinnedMemory::create(
                {.executor = executor, .pinner = pinner, .size_bytes = uint64_t{1} << 62})),
            ErrorCode::kExhausted);
}

}  // namespace
}  // namespace kvbm
