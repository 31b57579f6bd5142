// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/transfer_notification.hpp"

#include <chrono>
#include <optional>

#include <gtest/gtest.h>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/stepped_executor.hpp"

namespace kvbm {
namespace {

class TransferNotificationTest : public ::testing::Test {
 protected:
  SteppedExecutor executor_{1};
};

TEST_F(TransferNotificationTest, OneThatIsReadyMovedNothingAndSucceeded) {
  const TransferCompleteNotification ready;
  EXPECT_TRUE(ready.done());
  EXPECT_TRUE(ready.wait());
  EXPECT_TRUE(ready.event().done());
  EXPECT_TRUE(ready.completion().done());
  EXPECT_TRUE(ready.result().status);
  EXPECT_EQ(ready.result().bytes, 0U);
  int calls = 0;
  ready.on_done(
      [&calls](const TransferResult& result) noexcept { calls += result.failed.empty(); });
  EXPECT_EQ(calls, 1);
}

TEST_F(TransferNotificationTest, EverybodySeesTheResultOnceItIsThere) {
  TransferSource source(executor_);
  const TransferCompleteNotification notification = source.notification();
  TransferCompleteNotification copy;
  copy = notification;
  EXPECT_FALSE(notification.done());
  EXPECT_THROW(static_cast<void>(notification.result()), ContractViolation);
  EXPECT_EQ(notification.wait(executor_.clock().now() + std::chrono::seconds(1)).error().code(),
            ErrorCode::kTimeout);
  uint64_t seen = 0;
  notification.on_done([&seen](const TransferResult& result) noexcept { seen = result.bytes; });

  source.resolve(
      {.status = make_error(ErrorCode::kIo, "one block is gone"), .bytes = 96, .failed = {2}});
  EXPECT_EQ(seen, 96U);
  EXPECT_TRUE(copy.done());
  EXPECT_EQ(copy.result().failed, std::vector<uint32_t>{2});
  EXPECT_EQ(copy.wait().error().code(), ErrorCode::kIo);
  EXPECT_EQ(copy.event().status().error().code(), ErrorCode::kIo);
  EXPECT_THROW(source.resolve({}), ContractViolation);
}

TEST_F(TransferNotificationTest, ADroppedSourceFailsTheTransfer) {
  std::optional<TransferSource> source(executor_);
  const TransferCompleteNotification notification = source->notification();
  source.reset();
  ASSERT_TRUE(notification.done());
  EXPECT_EQ(notification.wait().error().code(), ErrorCode::kInternal);
  EXPECT_FALSE(notification.result().status);
}

TEST_F(TransferNotificationTest, TheEventOfADeviceIsPassedOn) {
  EventSource device(executor_);
  TransferSource source(executor_);
  source.use_event(device.event());
  device.signal();
  EXPECT_TRUE(source.notification().event().done());
  EXPECT_FALSE(source.notification().done());
  source.resolve({});
  EXPECT_TRUE(source.notification().done());
}

}  // namespace
}  // namespace kvbm
