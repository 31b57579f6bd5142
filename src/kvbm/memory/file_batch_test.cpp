// SPDX-License-Identifier: Apache-2.0
#include "kvbm/memory/file_batch.hpp"

#include <memory>
#include <optional>

#include <gtest/gtest.h>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/stepped_executor.hpp"

#include "tests/support/error_code.hpp"

namespace kvbm {
namespace {

using testing::code_of;

TEST(FileBatch, OfNoRequestIsDone) {
  const FileBatch batch;
  EXPECT_EQ(batch.size(), 0u);
  EXPECT_TRUE(batch.done());
  EXPECT_TRUE(batch.wait());
  EXPECT_EQ(batch.bytes(), 0u);
  EXPECT_THROW((void)batch.completion(0), ContractViolation);
}

TEST(FileBatch, IsDoneWhenItsLastRequestIs) {
  SteppedExecutor executor(1);
  const FileBatchSource source(executor, 3);
  const FileBatch batch = source.batch();
  source.finish(2, {.bytes = 30});
  EXPECT_TRUE(batch.completion(2).done());
  EXPECT_FALSE(batch.completion(0).done());
  EXPECT_FALSE(batch.done());
  EXPECT_EQ(batch.bytes(), 30u);
  source.finish(0, {.bytes = 10});
  source.finish(1, {.bytes = 20});
  EXPECT_TRUE(batch.done());
  EXPECT_TRUE(batch.completion().status());
  EXPECT_EQ(batch.bytes(), 60u);
  EXPECT_EQ(batch.result(1).bytes, 20u);
}

TEST(FileBatch, FailsWithTheFirstFailureInItsOrder) {
  SteppedExecutor executor(1);
  const FileBatchSource source(executor, 3);
  const FileBatch batch = source.batch();
  source.finish(2, {.status = make_error(ErrorCode::kIo, "third"), .bytes = 1});
  source.finish(1, {.status = make_error(ErrorCode::kExhausted, "second"), .bytes = 2});
  source.finish(0, {.bytes = 4});
  EXPECT_EQ(batch.completion().status().error().message(), "second");
  EXPECT_EQ(batch.result(2).status.error().message(), "third");
  EXPECT_TRUE(batch.result(0).status);
  EXPECT_EQ(batch.bytes(), 7u) << "bytes that moved before a failure count";
}

TEST(FileBatch, HasTheResultBeforeItsCallbacksRun) {
  SteppedExecutor executor(1);
  const FileBatchSource source(executor, 1);
  const FileBatch batch = source.batch();
  uint64_t seen = 0;
  batch.completion(0).on_done(
      [&seen, &batch](const Status&) noexcept { seen = batch.result(0).bytes; });
  source.finish(0, {.bytes = 5});
  EXPECT_EQ(seen, 5u);
}

TEST(FileBatch, TellsItsMisusers) {
  SteppedExecutor executor(1);
  const FileBatchSource source(executor, 2);
  const FileBatch batch = source.batch();
  EXPECT_THROW((void)batch.result(0), ContractViolation) << "not done";
  EXPECT_THROW((void)batch.result(2), ContractViolation);
  EXPECT_THROW(source.finish(2, {}), ContractViolation);
  source.finish(0, {.bytes = 1});
  EXPECT_THROW(source.finish(0, {.bytes = 1}), ContractViolation);
  EXPECT_EQ(batch.bytes(), 1u);
  source.finish(1, {});
}

TEST(FileBatch, FailsWhatNobodyFinished) {
  SteppedExecutor executor(1);
  std::optional<FileBatchSource> source(std::in_place, executor, 2);
  std::optional<FileBatchSource> copy = source;
  const FileBatch batch = source->batch();
  source->finish(0, {.bytes = 8});
  source.reset();
  EXPECT_FALSE(batch.done());
  copy.reset();
  ASSERT_TRUE(batch.done());
  EXPECT_TRUE(batch.result(0).status);
  EXPECT_EQ(code_of(batch.result(1).status), ErrorCode::kInternal);
}

TEST(FileBatch, SurvivesACallbackThatDropsItsSource) {
  SteppedExecutor executor(1);
  auto source = std::make_unique<FileBatchSource>(executor, 1);
  const FileBatch batch = source->batch();
  batch.completion(0).on_done([&source](const Status&) noexcept { source.reset(); });
  source->finish(0, {.bytes = 3});
  EXPECT_TRUE(batch.done());
  EXPECT_EQ(source, nullptr);
}

}  // namespace
}  // namespace kvbm
