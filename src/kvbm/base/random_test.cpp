// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/random.hpp"

#include <array>
#include <numeric>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/contract.hpp"

namespace kvbm {
namespace {

// The numbers that the authors' reference programs give.
TEST(Random, Splitmix64KnownAnswers) {
  uint64_t state = 1234567;
  EXPECT_EQ(splitmix64(state), 6457827717110365317U);
  EXPECT_EQ(splitmix64(state), 3203168211198807973U);
  EXPECT_EQ(splitmix64(state), 9817491932198370423U);
  EXPECT_EQ(splitmix64(state), 4593380528125082431U);
  EXPECT_EQ(splitmix64(state), 16408922859458223821U);
}

TEST(Random, Xoshiro256StarStarKnownAnswers) {
  Random random(std::array<uint64_t, 4>{1, 2, 3, 4});
  EXPECT_EQ(random.next(), 11520U);
  EXPECT_EQ(random.next(), 0U);
  EXPECT_EQ(random.next(), 1509978240U);
  EXPECT_EQ(random.next(), 1215971899390074240U);
  EXPECT_EQ(random.next(), 1216172134540287360U);
}

TEST(Random, TheSeedDecidesEverything) {
  Random a(5);
  Random b(5);
  Random c(6);
  EXPECT_EQ(a.next(), b.next());
  EXPECT_NE(a.next(), c.next());
  EXPECT_THROW(Random(std::array<uint64_t, 4>{}), ContractViolation);
}

TEST(Random, UniformStaysBelowItsBoundAndReachesEveryNumber) {
  Random random(1);
  std::array<int, 6> hits{};
  for (int i = 0; i < 6000; ++i) ++hits.at(static_cast<size_t>(random.uniform(6)));
  EXPECT_THAT(hits, ::testing::Each(::testing::AllOf(::testing::Gt(850), ::testing::Lt(1150))));
  EXPECT_EQ(random.uniform(1), 0U);
  EXPECT_THROW(static_cast<void>(random.uniform(0)), ContractViolation);
}

TEST(Random, UniformIsFairForBoundsThatDoNotDivideTheRange) {
  // With plain `% bound` two thirds of the numbers would be below half of this bound.
  Random random(1);
  const uint64_t bound = (uint64_t{1} << 63U) + (uint64_t{1} << 62U);
  int low = 0;
  for (int i = 0; i < 3000; ++i) low += random.uniform(bound) < bound / 2 ? 1 : 0;
  EXPECT_GT(low, 1350);
  EXPECT_LT(low, 1650);
}

TEST(Random, UniformBetweenIncludesBothEnds) {
  Random random(3);
  bool saw_low = false;
  bool saw_high = false;
  for (int i = 0; i < 200; ++i) {
    const uint64_t drawn = random.uniform_between(10, 13);
    ASSERT_TRUE(drawn >= 10 && drawn <= 13);
    saw_low = saw_low || drawn == 10;
    saw_high = saw_high || drawn == 13;
  }
  EXPECT_TRUE(saw_low && saw_high);
  EXPECT_EQ(random.uniform_between(4, 4), 4U);
  static_cast<void>(random.uniform_between(0, Random::max()));
  EXPECT_THROW(static_cast<void>(random.uniform_between(5, 4)), ContractViolation);
}

TEST(Random, ChanceKeepsItsEnds) {
  Random random(2);
  int hits = 0;
  for (int i = 0; i < 2000; ++i) {
    ASSERT_FALSE(random.chance(0));
    ASSERT_TRUE(random.chance(1));
    hits += random.chance(0.25) ? 1 : 0;
  }
  EXPECT_GT(hits, 400);
  EXPECT_LT(hits, 600);
}

TEST(Random, ShuffleKeepsTheItems) {
  Random random(9);
  std::vector<int> items(50);
  std::iota(items.begin(), items.end(), 0);
  const std::vector<int> before = items;
  random.shuffle(std::span(items));
  EXPECT_NE(items, before);
  EXPECT_THAT(items, ::testing::UnorderedElementsAreArray(before));
}

TEST(Random, AForkHasItsOwnNumbers) {
  Random parent(4);
  Random twin(4);
  Random child = parent.fork();
  Random same_child = twin.fork();
  for (int i = 0; i < 100; ++i) static_cast<void>(child.next());
  EXPECT_EQ(parent.next(), twin.next());
  EXPECT_NE(same_child.next(), twin.next());
}

}  // namespace
}  // namespace kvbm
