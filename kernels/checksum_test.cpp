// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include <gtest/gtest.h>
#include <kvbm/kernels.h>

#include "src/checksum_plan.hpp"

namespace kvbm::kernels {
namespace {

constexpr uint64_t kSeed = 0x6b76626d2d73756d;
constexpr size_t kBytes = 192 * kUnitBytes;

class Checksums : public ::testing::Test {
 protected:
  Checksums() {
    for (size_t i = 0; i < kBytes; ++i)
      memory_.get()[i] = static_cast<unsigned char>(i * 7 + i / 256);
  }

  [[nodiscard]] static uint64_t of(const std::vector<kvbm_checksum_piece>& pieces,
                                   uint32_t block = 0, uint64_t seed = kSeed) {
    uint64_t checksum = 0;
    EXPECT_EQ(kvbm_kernels_checksum_on_host(pieces.data(), pieces.size(), block, seed, &checksum),
              0);
    return checksum;
  }
  [[nodiscard]] kvbm_checksum_piece piece(uint64_t first, uint64_t units, uint64_t stride = 0,
                                          uint32_t count = 1) const {
    return {.data = memory_.get() + first * kUnitBytes,
            .block_stride = 64 * kUnitBytes,
            .bytes = units * kUnitBytes,
            .stride = stride * kUnitBytes,
            .count = count};
  }

  std::unique_ptr<unsigned char, void (*)(void*)> memory_{
      static_cast<unsigned char*>(std::aligned_alloc(16, kBytes)), &std::free};
};

/// What the library of its authors (0.8.1) says of the same bytes.
TEST_F(Checksums, AreThoseOfXxh3) {
  struct Answer {
    uint64_t units, seeded, plain;
  };
  for (const Answer& known : {Answer{1, 0x81e9b404f919b25d, 0x71bee625238addb4},
                              Answer{2, 0x3a6ae09fa0e966b1, 0x3293e8238bd8f743},
                              Answer{5, 0xe93df363440f24c5, 0x659a4214fca57f82},
                              Answer{64, 0x08eca902e9b165d0, 0x9ae973f97c1f3eba},
                              Answer{130, 0x54d9e831724ffa2d, 0x698169a6b9d9b946}}) {
    const std::vector<kvbm_checksum_piece> one = {piece(0, known.units)};
    EXPECT_EQ(of(one), known.seeded) << known.units;
    EXPECT_EQ(of(one, 0, 0), known.plain) << known.units;
  }
}

TEST_F(Checksums, KnowNoBordersBetweenRunsAndPieces) {
  const uint64_t whole = of({piece(0, 64)});
  EXPECT_EQ(of({piece(0, 1), piece(1, 3), {}, piece(4, 20, 20, 3)}), whole);
  EXPECT_EQ(of({piece(0, 2, 2, 32)}), whole);
  EXPECT_NE(of({piece(1, 1), piece(0, 1), piece(2, 62)}), whole);
  // More pieces than one launch takes.
  std::vector<kvbm_checksum_piece> many;
  for (uint64_t i = 0; i < 130; ++i) many.push_back(piece(i, 1));
  EXPECT_EQ(of(many), of({piece(0, 130)}));
  EXPECT_EQ(of({piece(0, 64)}, 2), of({piece(128, 64)}));
}

TEST_F(Checksums, GoOnFromLaunchToLaunch) {
  std::vector<kvbm_checksum_piece> many;
  for (uint64_t i = 0; i < 2 * kMaxChecksumPieces + 5; ++i) many.push_back(piece(i % 130, 1));
  const uint32_t id = 0;
  uint64_t sums[kLanes] = {};
  ChecksumPlan plan(many.data(), many.size(), &id, 1, kSeed, sums);
  ASSERT_EQ(plan.check(), 0);
  ChecksumLaunch launch;
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(plan.next(launch));
    EXPECT_EQ(launch.is_first, i == 0);
    EXPECT_EQ(launch.is_last, i == 2);
    EXPECT_EQ(launch.num_units(), i == 2 ? 5 : kMaxChecksumPieces);
    EXPECT_EQ(launch.block_bytes, many.size() * kUnitBytes);
  }
  EXPECT_FALSE(plan.next(launch));
}

TEST_F(Checksums, RefuseWhatMakesNoSense) {
  const uint32_t id = 0;
  uint64_t sums[kLanes] = {};
  const auto launch = [&](const kvbm_checksum_piece& piece) {
    return kvbm_kernels_launch_checksum(&piece, 1, &id, 1, kSeed, sums, nullptr);
  };
  const kvbm_checksum_piece good = piece(0, 2);
  const auto refused = [&](auto&& change) {
    kvbm_checksum_piece bad = good;
    change(bad);
    return launch(bad) == KVBM_KERNELS_INVALID_VALUE;
  };
  EXPECT_TRUE(refused([](kvbm_checksum_piece& bad) { bad.data = nullptr; }));
  EXPECT_TRUE(refused([](kvbm_checksum_piece& bad) { bad.bytes -= 16; }));
  EXPECT_TRUE(refused([](kvbm_checksum_piece& bad) { bad.bytes = 0; }));
  EXPECT_TRUE(refused([](kvbm_checksum_piece& bad) { bad.count = 0; }));
  EXPECT_TRUE(refused([](kvbm_checksum_piece& bad) { bad.block_stride += 8; }));
  EXPECT_TRUE(refused([](kvbm_checksum_piece& bad) { bad.stride = 8; }));
  EXPECT_TRUE(refused([](kvbm_checksum_piece& bad) { bad.bytes = uint64_t{1} << 40; }));
  EXPECT_EQ(kvbm_kernels_launch_checksum(nullptr, 1, &id, 1, kSeed, sums, nullptr),
            KVBM_KERNELS_INVALID_VALUE);
  EXPECT_EQ(kvbm_kernels_launch_checksum(&good, 1, nullptr, 1, kSeed, sums, nullptr),
            KVBM_KERNELS_INVALID_VALUE);
  EXPECT_EQ(kvbm_kernels_launch_checksum(&good, 1, &id, 1, kSeed, nullptr, nullptr),
            KVBM_KERNELS_INVALID_VALUE);
  EXPECT_EQ(kvbm_kernels_checksum_on_host(&good, 1, 0, kSeed, nullptr), KVBM_KERNELS_INVALID_VALUE);
  EXPECT_EQ(kvbm_kernels_launch_checksum(nullptr, 0, nullptr, 0, kSeed, nullptr, nullptr), 0);
  if (kvbm_kernels_is_stub_build()) {
    EXPECT_EQ(launch(good), KVBM_KERNELS_NOT_SUPPORTED);
  }
}

}  // namespace
}  // namespace kvbm::kernels
