// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cuda/internal/cuda_rooms.hpp"

#include <array>
#include <atomic>
#include <optional>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/allocation_meter.hpp"
#include "tests/support/error_code.hpp"

namespace kvbm::internal {
namespace {

using testing::code_of;

class CudaRoomsTest : public ::testing::Test {
 protected:
  [[nodiscard]] CudaRooms rooms() {
    return CudaRooms(
        [this]() -> Result<CudaRoom> {
          if (no_memory_) return make_error(ErrorCode::kExhausted, "no memory");
          return CudaRoom{.found = &words_[made_++]};
        },
        [this](const CudaRoom& room) { EXPECT_TRUE(freed_.insert(room.found).second); });
  }

  std::vector<uint64_t> words_ = std::vector<uint64_t>(64);  // an address for each room
  std::atomic<size_t> made_ = 0;
  bool no_memory_ = false;
  std::set<const uint64_t*> freed_;
};

TEST_F(CudaRoomsTest, ARoomHasOneHolderAtATimeAndIsLentAgain) {
  CudaRooms all = rooms();
  auto first = all.take().value();
  const auto second = all.take().value();
  EXPECT_NE(first->found, second->found);
  const uint64_t* const words = first->found;
  std::shared_ptr<const CudaRoom> share = first;
  first.reset();
  EXPECT_NE(all.take().value()->found, words) << "its last share has not gone";
  share.reset();
  EXPECT_EQ(all.take().value()->found, words);
  EXPECT_EQ(made_, 3u);
}

TEST_F(CudaRoomsTest, WithoutMemoryForMoreTheOthersAreLentAllTheSame) {
  CudaRooms all = rooms();
  auto room = all.take().value();
  no_memory_ = true;
  EXPECT_EQ(code_of(all.take()), ErrorCode::kExhausted);
  room.reset();
  EXPECT_TRUE(all.take());
}

TEST_F(CudaRoomsTest, ComeBackWithoutMemory) {
  CudaRooms all = rooms();
  std::array<std::shared_ptr<const CudaRoom>, 3> lent;
  for (auto& room : lent) room = all.take().value();
  {
    const testing::AllocationFailure no_host_memory;
    lent = {};
    EXPECT_EQ(no_host_memory.num_refused(), 0u);
  }
  for (auto& room : lent) room = all.take().value();
  EXPECT_EQ(made_, 3u);
}

TEST_F(CudaRoomsTest, MemoryGoesAtTheEndAndOnce) {
  CudaRooms all = rooms();
  {
    const auto first = all.take().value();
    const auto second = all.take().value();
  }
  EXPECT_TRUE(freed_.empty());
  all.close();
  EXPECT_EQ(freed_, (std::set<const uint64_t*>{&words_[0], &words_[1]}));
  all.close();
}

TEST_F(CudaRoomsTest, ARoomMayOutliveWhoLentIt) {
  std::optional<CudaRooms> all(rooms());
  const auto room = all->take().value();
  all.reset();
  EXPECT_EQ(room->found, words_.data());
}

TEST_F(CudaRoomsTest, ThreadsNeverShareARoom) {
  constexpr size_t kThreads = 4;
  CudaRooms all = rooms();
  std::vector<std::thread> threads;
  std::atomic<size_t> good = 0;
  for (uint64_t i = 1; i <= kThreads; ++i) {
    threads.emplace_back([&, i] {
      for (int round = 0; round < 2000; ++round) {
        const auto room = all.take().value();
        *room->found = i;
        std::this_thread::yield();
        good += *room->found == i ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(good, kThreads * 2000);
  EXPECT_LE(made_, kThreads);
}

}  // namespace
}  // namespace kvbm::internal
