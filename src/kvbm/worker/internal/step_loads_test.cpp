// SPDX-License-Identifier: Apache-2.0
#include "kvbm/worker/internal/step_loads.hpp"

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/log.hpp"
#include "kvbm/base/thread_executor.hpp"
#include "kvbm/device/host_device.hpp"

namespace kvbm::internal {
namespace {

class StepLoadsTest : public ::testing::Test {
 protected:
  using Found = std::vector<std::pair<size_t, int>>;  // load and parts

  /// A load that goes as a whole, or by parts of two layers each.
  std::shared_ptr<WorkerOperation> add(size_t num_parts) {
    auto load = std::make_shared<WorkerOperation>();
    for (size_t i = 0; i < num_parts; ++i) {
      const LayerRange layers{LayerId(static_cast<uint16_t>(2 * i)), 2};
      load->parts.push_back({.layers = layers, .pieces = layers});
    }
    load->open_parts = num_parts;
    loads_.add(load);
    return load;
  }

  /// Asks, and waits if asked for.
  Found ask(StreamRef stream, std::optional<LayerId> layer) {
    const auto waits = loads_.waits_of(stream, layer, *device_);
    Found found;
    for (const StepLoads::Wait& wait : waits) found.emplace_back(wait.load, wait.parts);
    more_ = loads_.note(stream, waits);
    return found;
  }

  NullLogSink log_;
  ThreadExecutor executor_{log_};
  std::unique_ptr<HostDevice> device_ = HostDevice::create({.executor = executor_}).value();
  const StreamRef one_ = device_->create_stream("one").value();
  const StreamRef other_ = device_->create_stream("other").value();
  StepLoads loads_;
  bool more_ = false;
};

TEST_F(StepLoadsTest, AStreamWaitsForEachPartOnceAndForWholeLoadsAtTheFirstLayer) {
  add(2);
  add(0);
  EXPECT_EQ(ask(one_, LayerId(1)), (Found{{0, 1}, {1, 1}}));
  EXPECT_TRUE(more_);
  EXPECT_EQ(ask(one_, LayerId(0)), Found());
  EXPECT_EQ(ask(one_, LayerId(2)), (Found{{0, 2}}));
  EXPECT_FALSE(more_);
  EXPECT_EQ(ask(one_, std::nullopt), Found());
  EXPECT_EQ(ask(other_, std::nullopt), (Found{{0, 1}, {0, 2}, {1, 1}})) << "each stream by itself";
}

TEST_F(StepLoadsTest, WhatHasEndedNeedsNoWait) {
  const auto parted = add(3);
  const auto whole = add(0);
  whole->over = true;
  EXPECT_FALSE(parted->end_part(1, {}).whole);
  EXPECT_EQ(ask(one_, std::nullopt), (Found{{0, 1}, {0, 4}}));
  EXPECT_FALSE(more_);
}

TEST_F(StepLoadsTest, WhatNoLayerHasAskedForIsMissed) {
  add(2);
  const auto whole = add(0);
  EXPECT_EQ(loads_.missed_by(one_, *device_).size(), 2u) << "a stream that never asked";
  (void)ask(one_, LayerId(0));
  EXPECT_EQ(loads_.missed_by(one_, *device_).size(), 1u);
  whole->over = true;
  EXPECT_EQ(loads_.missed_by(other_, *device_).size(), 1u);
  (void)ask(one_, LayerId(3));
  EXPECT_TRUE(loads_.missed_by(one_, *device_).empty());
  loads_.clear();
  EXPECT_TRUE(loads_.missed_by(other_, *device_).empty());
}

TEST_F(StepLoadsTest, ALoadByPartsHasArrivedIfAllPartsHave) {
  const auto good = add(2);
  const Event first = good->end_event(*device_, 0);
  auto end = good->end_part(0, {.bytes = 5});
  ASSERT_TRUE(end.ended);
  end.ended->signal();
  EXPECT_TRUE(first.done());
  EXPECT_FALSE(end.whole);
  end = good->end_part(1, {.bytes = 6});
  ASSERT_TRUE(end.whole);
  EXPECT_TRUE(end.whole->status);
  EXPECT_EQ(end.whole->bytes, 11u);

  const auto bad = add(2);
  EXPECT_FALSE(bad->end_part(0, {.status = make_error(ErrorCode::kIo, "torn"), .bytes = 0}).whole);
  end = bad->end_part(1, {.bytes = 6});
  ASSERT_TRUE(end.whole);
  EXPECT_EQ(end.whole->status.error().message(), "torn");
  EXPECT_EQ(end.whole->bytes, 0u);
}

}  // namespace
}  // namespace kvbm::internal
