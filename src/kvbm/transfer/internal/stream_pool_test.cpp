// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/internal/stream_pool.hpp"

#include <memory>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/stepped_executor.hpp"
#include "kvbm/device/host_device.hpp"

#include "tests/support/error_code.hpp"

namespace kvbm::internal {
namespace {

using testing::code_of;

class StreamPoolTest : public ::testing::Test {
 protected:
  std::unique_ptr<StreamPool> pool(const StreamPoolOptions& options) {
    return StreamPool::create(*device_, options).value();
  }
  /// The streams of so many groups, each put on before the next one.
  static std::vector<StreamRef> turns(StreamPool& pool, TransferRoute route, size_t count) {
    std::vector<StreamRef> streams;
    for (size_t i = 0; i < count; ++i) {
      const StreamPool::Held held = pool.take(route).value();
      streams.push_back(held.stream);
      pool.give_back(held);
    }
    return streams;
  }

  SteppedExecutor executor_{1};
  std::unique_ptr<HostDevice> device_ = HostDevice::create({.executor = executor_}).value();
};

TEST_F(StreamPoolTest, TheStreamsOfADirectionTakeTurns) {
  const auto streams = pool({});
  std::set<StreamRef> all;
  for (const auto& [route, count] : {std::pair{TransferRoute::kHostToDevice, 4},
                                     {TransferRoute::kDeviceToHost, 4},
                                     {TransferRoute::kDeviceToDevice, 2}}) {
    const auto size = static_cast<size_t>(count);
    const std::vector<StreamRef> seen = turns(*streams, route, 3 * size);
    EXPECT_EQ(std::set(seen.begin(), seen.end()).size(), size);
    for (size_t i = size; i < seen.size(); ++i) EXPECT_EQ(seen[i], seen[i - size]) << i;
    all.insert(seen.begin(), seen.end());
  }
  EXPECT_EQ(all.size(), 10U) << "no direction has a stream of another";
}

TEST_F(StreamPoolTest, WhoFindsAllOfADirectionHeldTakesOneOfAnother) {
  const auto streams = pool({.per_direction = 1, .side = 1, .waiting = 0});
  const StreamPool::Held own = streams->take(TransferRoute::kHostToDevice).value();
  EXPECT_EQ(own.direction, StreamDirection::kToDevice);
  const StreamPool::Held second = streams->take(TransferRoute::kHostToDevice).value();
  const StreamPool::Held third = streams->take(TransferRoute::kHostToDevice).value();
  EXPECT_NE(second.direction, StreamDirection::kToDevice);
  EXPECT_NE(second.direction, third.direction);
  EXPECT_EQ(code_of(streams->take(TransferRoute::kHostToDevice)), ErrorCode::kExhausted);
  // Each goes back to those it came from.
  for (const auto& held : {second, third, own}) streams->give_back(held);
  const StreamPool::Held again = streams->take(TransferRoute::kHostToDevice).value();
  EXPECT_EQ(again.stream, own.stream);
  streams->give_back(again);
}

}  // namespace
}  // namespace kvbm::internal
