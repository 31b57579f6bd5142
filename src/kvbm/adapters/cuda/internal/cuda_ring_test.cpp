// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cuda/internal/cuda_ring.hpp"

#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/units.hpp"

namespace kvbm::internal {
namespace {

using ::testing::ElementsAre;

std::vector<size_t> groups(CopySide host, uint64_t block_bytes, size_t num_blocks,
                           uint64_t slot_bytes) {
  const RingPath path{.host = host, .image = {.bytes = block_bytes}};
  std::vector<size_t> all;
  for (size_t done = 0; done < num_blocks; done += all.back()) {
    all.push_back(blocks_of_next_group(path, slot_bytes, num_blocks, done));
  }
  return all;
}

std::vector<size_t> to_host(uint64_t block_bytes, size_t num_blocks, uint64_t slot_bytes) {
  return groups(CopySide::kDestination, block_bytes, num_blocks, slot_bytes);
}
std::vector<size_t> to_device(uint64_t block_bytes, size_t num_blocks, uint64_t slot_bytes) {
  return groups(CopySide::kSource, block_bytes, num_blocks, slot_bytes);
}

TEST(CudaRing, GroupsToTheHostBeginSmall) {
  EXPECT_THAT(to_host(5 * kMiB, 16, 40 * kMiB), ElementsAre(1, 1, 2, 4, 8));
  EXPECT_THAT(to_host(5 * kMiB, 35, 40 * kMiB), ElementsAre(1, 1, 2, 4, 8, 8, 8, 3));
  EXPECT_THAT(to_host(5 * kMiB, 1, 40 * kMiB), ElementsAre(1));
}

TEST(CudaRing, GroupsToTheDeviceEndSmall) {
  EXPECT_THAT(to_device(5 * kMiB, 16, 40 * kMiB), ElementsAre(8, 4, 2, 1, 1));
  EXPECT_THAT(to_device(5 * kMiB, 35, 40 * kMiB), ElementsAre(8, 8, 8, 6, 3, 1, 1));
  EXPECT_THAT(to_device(5 * kMiB, 1, 40 * kMiB), ElementsAre(1));
}

TEST(CudaRing, AGroupIsNotMoreThanASlotAndWorthItsSubmission) {
  EXPECT_THAT(to_host(5 * kMiB, 3, 5 * kMiB), ElementsAre(1, 1, 1));
  EXPECT_THAT(to_device(5 * kMiB, 3, 9 * kMiB), ElementsAre(1, 1, 1));
  EXPECT_THAT(to_host(64 * kKiB, 100, 40 * kMiB), ElementsAre(32, 32, 36));
  EXPECT_THAT(to_device(64 * kKiB, 100, 40 * kMiB), ElementsAre(50, 32, 18));
  EXPECT_THAT(to_device(64 * kKiB, 40, kMiB), ElementsAre(16, 16, 8)) << "if the slot has room";
}

}  // namespace
}  // namespace kvbm::internal
