// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/transfer_notification.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/log.hpp"
#include "kvbm/base/stepped_executor.hpp"
#include "kvbm/base/thread_executor.hpp"

#include "tests/support/allocation_meter.hpp"
#include "tests/support/coroutine.hpp"

namespace kvbm {
namespace {

using testing::AllocationFailure;
using testing::AllocationMeter;
using testing::Coroutine;

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

TEST_F(TransferNotificationTest, AReadyOneHasTheResultThatItWasGiven) {
  const auto ready = TransferCompleteNotification::ready(
      {.status = make_error(ErrorCode::kIo, "gone"), .bytes = 5, .failed = {1}});
  EXPECT_TRUE(ready.done());
  EXPECT_FALSE(ready.could_yield());
  EXPECT_EQ(ready.result().bytes, 5U);
  EXPECT_EQ(ready.wait().error().code(), ErrorCode::kIo);
  EXPECT_EQ(ready.event().status().error().code(), ErrorCode::kIo);
  EXPECT_EQ(ready.completion().status().error().code(), ErrorCode::kIo);
}

Coroutine await_result(TransferCompleteNotification notification, std::vector<ErrorCode>& codes,
                       uint64_t& bytes) {
  const Status outcome = co_await notification;
  if (!outcome) codes.push_back(outcome.error().code());
  bytes += notification.result().bytes;
}

TEST_F(TransferNotificationTest, ACoroutineGoesOnWithTheResultOnce) {
  std::vector<ErrorCode> codes;
  uint64_t bytes = 0;
  await_result(TransferCompleteNotification::ready({.bytes = 1}), codes, bytes);
  EXPECT_EQ(bytes, 1U);

  std::optional<TransferSource> source(executor_);
  EXPECT_TRUE(source->notification().could_yield());
  await_result(source->notification(), codes, bytes);
  EXPECT_EQ(bytes, 1U);
  source->resolve({.bytes = 10});
  EXPECT_EQ(bytes, 11U);
  EXPECT_TRUE(codes.empty());

  source.emplace(executor_);
  await_result(source->notification(), codes, bytes);
  source.reset();
  EXPECT_EQ(codes, std::vector<ErrorCode>{ErrorCode::kInternal});
  EXPECT_EQ(bytes, 11U);
}

// --- aggregate
// ----------------------------------------------------------------------------------

TEST_F(TransferNotificationTest, AnAggregateOfNothingIsReady) {
  const auto none = TransferCompleteNotification::aggregate({});
  EXPECT_TRUE(none.done());
  EXPECT_TRUE(none.result().status);
  EXPECT_EQ(none.result().bytes, 0U);
}

TEST_F(TransferNotificationTest, AnAggregateOfWhatIsDoneNeedsNoMemory) {
  TransferSource source(executor_);
  const std::array<TransferCompleteNotification, 3> parts = {
      TransferCompleteNotification::ready({.bytes = 3}), source.notification(),
      TransferCompleteNotification()};
  source.resolve({.bytes = 4});
  const AllocationMeter meter;
  const auto whole = TransferCompleteNotification::aggregate(parts);
  EXPECT_FALSE(whole.could_yield());
  EXPECT_TRUE(whole.wait());
  EXPECT_TRUE(whole.event().done());
  EXPECT_EQ(whole.result().bytes, 7U);
  EXPECT_EQ(meter.count(), 0U);
}

/// A part of each sort, in any order of ends: what is ready, what succeeds, what fails.
TEST_F(TransferNotificationTest, AnAggregateSumsUpInWhateverOrderItsPartsEnd) {
  const auto ready_failure = TransferCompleteNotification::ready(
      {.status = make_error(ErrorCode::kDevice, "lost"), .bytes = 1000, .failed = {0, 7}});
  size_t num_runs = 0;
  for (size_t place_of_ready = 0; place_of_ready <= 4; ++place_of_ready) {
    std::array<size_t, 4> order = {0, 1, 2, 3};
    do {
      std::vector<TransferSource> sources;
      std::vector<TransferCompleteNotification> parts;
      for (size_t i = 0; i < order.size(); ++i) {
        parts.push_back(sources.emplace_back(executor_).notification());
      }
      parts.insert(parts.begin() + static_cast<ptrdiff_t>(place_of_ready), ready_failure);
      const auto whole = TransferCompleteNotification::aggregate(parts);
      int calls = 0;
      whole.on_done([&calls](const TransferResult&) noexcept { ++calls; });
      std::vector<ErrorCode> codes;
      uint64_t bytes = 0;
      await_result(whole, codes, bytes);
      for (size_t i = 0; i < order.size(); ++i) {
        EXPECT_FALSE(whole.done() || whole.event().done());
        EXPECT_EQ(calls, 0);
        TransferResult result{.bytes = uint64_t{1} << order[i]};
        if (order[i] % 2 == 1) {
          result.status = make_error(order[i] == 1 ? ErrorCode::kIo : ErrorCode::kCorrupt, "bad");
          result.failed = {3};
        }
        sources[order[i]].resolve(std::move(result));
      }
      ASSERT_TRUE(whole.done() && whole.event().done());
      EXPECT_EQ(calls, 1);
      EXPECT_EQ(whole.result().bytes, 1015U);
      EXPECT_EQ(bytes, 1015U);
      // Sources 1 and 3 fail, and what was ready did.
      std::vector<uint32_t> failed = {static_cast<uint32_t>(place_of_ready),
                                      place_of_ready <= 1 ? 2U : 1U, place_of_ready <= 3 ? 4U : 3U};
      std::ranges::sort(failed);
      EXPECT_EQ(whole.result().failed, failed);
      const ErrorCode first = place_of_ready <= 1 ? ErrorCode::kDevice : ErrorCode::kIo;
      EXPECT_EQ(whole.wait().error().code(), first);
      EXPECT_EQ(codes, std::vector<ErrorCode>{first});
      ++num_runs;
    } while (std::ranges::next_permutation(order).found);
  }
  EXPECT_EQ(num_runs, 5 * 24U);
}

TEST_F(TransferNotificationTest, AnAggregateWaitsForItsPartsOnTheirExecutor) {
  TransferSource source(executor_);
  const std::array parts = {TransferCompleteNotification(), source.notification()};
  const auto whole = TransferCompleteNotification::aggregate(parts);
  EXPECT_EQ(whole.wait(executor_.clock().now() + std::chrono::seconds(1)).error().code(),
            ErrorCode::kTimeout);
  const auto queue = std::move(executor_.create_queue({.name = "q"}).value());
  ASSERT_TRUE(queue->post_after(std::chrono::seconds(2), [&] { source.resolve({.bytes = 2}); }));
  EXPECT_TRUE(whole.wait());
  EXPECT_EQ(whole.result().bytes, 2U);
}

TEST_F(TransferNotificationTest, TheEndOfAnAggregateNeedsNoMemory) {
  std::optional<TransferSource> dropped(executor_);
  TransferSource failing(executor_);
  const std::array parts = {failing.notification(), dropped->notification()};
  const auto whole = TransferCompleteNotification::aggregate(parts);
  dropped.reset();
  TransferResult result{.status = make_error(ErrorCode::kIo, std::string(100, 'x'))};
  {
    const AllocationFailure no_memory;
    failing.resolve(std::move(result));
    EXPECT_GT(no_memory.num_refused(), 0U);
  }
  ASSERT_TRUE(whole.done());
  EXPECT_EQ(whole.result().status.error().code(), ErrorCode::kIo);
  EXPECT_EQ(whole.result().failed, (std::vector<uint32_t>{0, 1}));
}

TEST_F(TransferNotificationTest, AggregatesOfManyPartsEndOnceOnManyThreads) {
  constexpr size_t kNumParts = 1000;
  NullLogSink log;
  ThreadExecutor executor(log);
  const auto queue = std::move(
      executor.create_queue({.name = "ends", .num_threads = 4, .capacity = kNumParts}).value());
  for (int round = 0; round < 20; ++round) {
    std::vector<TransferCompleteNotification> parts;
    for (size_t i = 0; i < kNumParts; ++i) {
      TransferSource source(executor);
      parts.push_back(source.notification());
      ASSERT_TRUE(
          queue->post([source = std::move(source), i]() mutable { source.resolve({.bytes = i}); }));
    }
    const auto whole = TransferCompleteNotification::aggregate(parts);
    ASSERT_TRUE(whole.wait());
    EXPECT_EQ(whole.result().bytes, kNumParts * (kNumParts - 1) / 2);
  }
}

}  // namespace
}  // namespace kvbm
