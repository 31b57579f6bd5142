// SPDX-License-Identifier: Apache-2.0
// Patterns without a GPU: arguments, the host's twin, and what the kernels do with a plan, done by
// loops.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include <gtest/gtest.h>
#include <kvbm/kernels.h>

#include "random_copy.hpp"
#include "random_pattern.hpp"
#include "src/pattern_plan.hpp"

namespace kvbm::kernels {
namespace {

/// One warp's item, byte by byte.
void do_item(const PatternLaunch& launch, uint32_t index, std::vector<uint64_t>& touched,
             const char* arena) {
  const Division section = divide(index, launch.sections);
  const Division part = divide(section.quotient, launch.bases_count);
  const PatternBase base = launch.bases[part.remainder];
  const uint64_t begin = uint64_t{section.remainder} * kItemBytes;
  const uint64_t end = std::min<uint64_t>(begin + kItemBytes, launch.bytes);
  char* const data = base.data + launch.ids[part.quotient] * launch.block_stride;
  for (uint64_t at = begin; at < end; ++at) {
    ++touched[static_cast<size_t>(data + at - arena)];
    const uint64_t word = pattern_word(launch.seeds[part.quotient] + base.seed, at / 8);
    const char expected = static_cast<char>(word >> (at % 8 * 8));
    if (launch.first_wrong == nullptr) {
      data[at] = expected;
    } else if (data[at] != expected) {
      uint64_t& first = launch.first_wrong[part.quotient];
      first = std::min(first, pattern_place(launch.first_piece + part.remainder, at));
    }
  }
}

void do_launches(PatternPlan plan, std::vector<uint64_t>& touched, const char* arena) {
  PatternLaunch launch;
  while (plan.next(launch)) {
    for (uint32_t index = 0; index < launch.num_items; ++index) {
      do_item(launch, index, touched, arena);
    }
  }
}

TEST(Patterns, PlansTouchEachByteOnceAndFindWhatIsWrong) {
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    const RandomPattern pattern = make_random_pattern(seed);
    std::vector<char> bytes = random_bytes(pattern.bytes, seed);
    std::vector<char> expected = bytes;
    std::vector<uint64_t> touched(bytes.size());
    const auto pieces = pattern.place(bytes.data());
    PatternPlan plan(pieces.data(), pieces.size(), pattern.ids.data(), pattern.seeds.data(),
                     pattern.ids.size(), nullptr);
    ASSERT_EQ(plan.check(), KVBM_KERNELS_SUCCESS);
    do_launches(plan, touched, bytes.data());
    fill_on_host(pattern, expected, nullptr);
    ASSERT_TRUE(bytes == expected);

    uint64_t asked = 0;
    for (const auto& piece : pieces) asked += piece.bytes * pattern.ids.size();
    EXPECT_EQ(std::accumulate(touched.begin(), touched.end(), uint64_t{0}), asked);
    EXPECT_LE(*std::max_element(touched.begin(), touched.end()), 1u);

    spoil(bytes, seed);
    expected = bytes;
    std::vector<uint64_t> first_wrong(pattern.ids.size(), UINT64_MAX);
    std::vector<uint64_t> first_on_host(pattern.ids.size());
    PatternPlan compare(pieces.data(), pieces.size(), pattern.ids.data(), pattern.seeds.data(),
                        pattern.ids.size(), first_wrong.data());
    do_launches(compare, touched, bytes.data());
    fill_on_host(pattern, expected, first_on_host.data());
    EXPECT_EQ(first_wrong, first_on_host);
  }
}

TEST(Patterns, ALaunchHoldsAsManyItemsAsItCanNumber) {
  const std::vector<uint32_t> ids(100'000);
  const std::vector<uint64_t> seeds(ids.size());
  char byte = 0;
  const kvbm_pattern_piece large[] = {{&byte, 0, uint64_t{1} << 39, 0},
                                      {&byte, 0, uint64_t{1} << 39, 0}};
  PatternPlan plan(large, 2, ids.data(), seeds.data(), ids.size(), nullptr);
  PatternLaunch launch;
  uint64_t items = 0;
  for (int i = 0; i < 1000 && plan.next(launch); ++i) {
    ASSERT_LT(launch.num_items, kMaxItems);
    items += launch.num_items;
    EXPECT_EQ(launch.ids, ids.data() + i * launch.num_blocks);
  }
  EXPECT_EQ(items, 1000u * 7 * 2 * (uint64_t{1} << 27));

  const std::vector<kvbm_pattern_piece> many(1000, {&byte, 64, 32, 9});
  PatternPlan groups(many.data(), many.size(), ids.data(), seeds.data(), 3, nullptr);
  uint32_t bases = 0;
  while (groups.next(launch)) {
    EXPECT_EQ(launch.first_piece, bases);
    bases += launch.num_bases;
  }
  EXPECT_EQ(bases, 1000u);
}

TEST(Patterns, RefuseWhatMakesNoSense) {
  alignas(16) char memory[64] = {};
  const uint32_t ids[] = {0};
  const uint64_t seeds[] = {1};
  const auto launch = [&](const kvbm_pattern_piece& piece) {
    return kvbm_kernels_launch_pattern(&piece, 1, ids, seeds, 1, nullptr, nullptr);
  };
  EXPECT_EQ(launch({nullptr, 64, 64, 0}), KVBM_KERNELS_INVALID_VALUE);
  EXPECT_EQ(launch({memory, 64, uint64_t{1} << 40, 0}), KVBM_KERNELS_INVALID_VALUE);
  EXPECT_EQ(kvbm_kernels_launch_pattern(nullptr, 1, ids, seeds, 1, nullptr, nullptr),
            KVBM_KERNELS_INVALID_VALUE);
  const kvbm_pattern_piece piece = {memory, 64, 64, 0};
  EXPECT_EQ(kvbm_kernels_launch_pattern(&piece, 1, nullptr, seeds, 1, nullptr, nullptr),
            KVBM_KERNELS_INVALID_VALUE);
  EXPECT_EQ(kvbm_kernels_launch_pattern(&piece, 1, ids, nullptr, 1, nullptr, nullptr),
            KVBM_KERNELS_INVALID_VALUE);
  EXPECT_EQ(kvbm_kernels_pattern_on_host(nullptr, 0, 0, nullptr), KVBM_KERNELS_INVALID_VALUE);
  EXPECT_EQ(kvbm_kernels_launch_pattern(nullptr, 0, nullptr, nullptr, 1, nullptr, nullptr), 0);
  EXPECT_EQ(kvbm_kernels_launch_pattern(&piece, 1, nullptr, nullptr, 0, nullptr, nullptr), 0);
  EXPECT_EQ(launch({nullptr, 0, 0, 0}), 0);
  if (kvbm_kernels_is_stub_build()) {
    EXPECT_EQ(launch(piece), KVBM_KERNELS_NOT_SUPPORTED);
  }
}

}  // namespace
}  // namespace kvbm::kernels
