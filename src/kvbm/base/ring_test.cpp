// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/ring.hpp"

#include <deque>
#include <memory>

#include <gtest/gtest.h>

#include "kvbm/base/random.hpp"

#include "tests/support/allocation_meter.hpp"

namespace kvbm {
namespace {

TEST(RingTest, AgreesWithADeque) {
  Random random(1);
  Ring<uint64_t> ring;
  std::deque<uint64_t> model;
  for (uint64_t step = 0; step < 20'000; ++step) {
    if (random.chance(step < 10'000 ? 0.6 : 0.4)) {
      ring.push(uint64_t{step});
      model.push_back(step);
    } else if (!model.empty()) {
      ASSERT_EQ(ring.pop(), model.front());
      model.pop_front();
    }
    ASSERT_EQ(ring.size(), model.size());
    ASSERT_EQ(ring.empty(), model.empty());
    if (!model.empty()) {
      const uint64_t i = random.uniform(model.size());
      ASSERT_EQ(ring.front(), model.front());
      ASSERT_EQ(ring[i], model[i]);
    }
  }
}

TEST(RingTest, NeedsNoMemoryForWhatItHasRoomFor) {
  Ring<uint64_t> ring;
  for (uint64_t value = 0; value < 6; ++value) ring.push(uint64_t{value});
  for (uint64_t value = 0; value < 4; ++value) EXPECT_EQ(ring.pop(), value);
  ring.make_room(19);
  const testing::AllocationFailure no_memory;
  for (uint64_t value = 6; value < 25; ++value) ring.push(uint64_t{value});
  EXPECT_EQ(no_memory.num_refused(), 0U);
  for (uint64_t value = 4; value < 25; ++value) EXPECT_EQ(ring.pop(), value);
}

TEST(RingTest, KeepsNothingOfWhatWasTakenOut) {
  Ring<std::shared_ptr<int>> ring;
  const auto value = std::make_shared<int>(1);
  ring.push(std::shared_ptr(value));
  static_cast<void>(ring.pop());
  EXPECT_EQ(value.use_count(), 1);
}

}  // namespace
}  // namespace kvbm
