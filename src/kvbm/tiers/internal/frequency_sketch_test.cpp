// SPDX-License-Identifier: Apache-2.0
#include "kvbm/tiers/internal/frequency_sketch.hpp"

#include <algorithm>
#include <map>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/random.hpp"

#include "tests/support/seed.hpp"

namespace kvbm::internal {
namespace {

TEST(FrequencySketch, CountsAndStopsAtFifteen) {
  FrequencySketch sketch(1000);
  EXPECT_EQ(sketch.frequency(7), 0U);
  for (uint32_t i = 1; i <= 20; ++i) {
    sketch.see(7);
    EXPECT_EQ(sketch.frequency(7), std::min(i, 15U));
  }
  EXPECT_EQ(sketch.frequency(8), 0U);
}

TEST(FrequencySketch, HalvesAfterTenSightsAKey) {
  FrequencySketch sketch(100);
  for (int i = 0; i < 4; ++i) sketch.see(1);
  Random random(3);
  for (int i = 4; i < 999; ++i) sketch.see(random.next());
  const uint32_t before = sketch.frequency(1);
  EXPECT_GE(before, 4U);
  sketch.see(random.next());
  EXPECT_EQ(sketch.frequency(1), before / 2);
}

TEST(FrequencySketch, IsNeverTooLowAndSeldomTooHigh) {
  Random random(kvbm::testing::test_seed());
  constexpr uint32_t kKeys = 20'000;
  FrequencySketch sketch(kKeys);
  std::map<uint64_t, uint32_t> truth;
  std::vector<uint64_t> keys;
  for (uint32_t i = 0; i < kKeys; ++i) keys.push_back(random.next());
  for (uint32_t i = 0; i < 2 * kKeys; ++i) {
    const uint64_t key = keys[random.uniform(keys.size())];
    sketch.see(key);
    ++truth[key];
  }
  uint32_t wrong = 0;
  for (const uint64_t key : keys) {
    const auto found = truth.find(key);
    const uint32_t expected = found == truth.end() ? 0 : std::min(found->second, 15U);
    EXPECT_GE(sketch.frequency(key), expected);
    wrong += sketch.frequency(key) != expected ? 1 : 0;
  }
  EXPECT_LT(wrong, kKeys / 20);
}

}  // namespace
}  // namespace kvbm::internal
