// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cuda/internal/cuda_stream.hpp"

#include <memory>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/memory_pool.hpp"

#include "tests/support/allocation_meter.hpp"

namespace kvbm::internal {
namespace {

TEST(CudaStreamList, TakesStreamsWithoutMemoryAndGivesEachBackOnce) {
  std::vector<std::shared_ptr<CudaStream>> streams;
  for (uint64_t id = 0; id < 20; ++id) {
    streams.push_back(std::make_shared<CudaStream>(id, "own", nullptr, false, MemoryPool()));
  }
  std::vector<int> times(streams.size());
  CudaStreamList fresh;
  CudaStreamList active;
  {
    const testing::AllocationFailure no_memory;
    for (int round = 0; round < 3; ++round) {
      for (const auto& stream : streams) fresh.push(stream);
      while (!fresh.empty()) active.push(fresh.pop());
      while (!active.empty()) ++times[active.pop()->id];
    }
  }
  EXPECT_EQ(times, std::vector<int>(streams.size(), 3));
  for (const auto& stream : streams) EXPECT_EQ(stream.use_count(), 1);
}

TEST(CudaStreamList, LetsGoOfItsStreams) {
  const auto stream = std::make_shared<CudaStream>(1, "own", nullptr, false, MemoryPool());
  {
    CudaStreamList list;
    list.push(stream);
    list.push(std::make_shared<CudaStream>(2, "own", nullptr, false, MemoryPool()));
    EXPECT_EQ(stream.use_count(), 2);
  }
  EXPECT_EQ(stream.use_count(), 1);
}

}  // namespace
}  // namespace kvbm::internal
