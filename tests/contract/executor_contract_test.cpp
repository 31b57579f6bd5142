// SPDX-License-Identifier: Apache-2.0
// The contract of executors, kept with threads and without.
#include "tests/contract/executor_contract.hpp"

#include <string>

#include <gtest/gtest.h>

#include "kvbm/base/stepped_executor.hpp"
#include "kvbm/base/thread_executor.hpp"

#include "tests/support/recording_log_sink.hpp"

namespace kvbm::testing {
namespace {

class ThreadHarness {
 public:
  [[nodiscard]] Executor& executor() { return executor_; }
  [[nodiscard]] RecordingLogSink& log() { return log_; }

  void freeze(TaskQueue& queue, const std::string& /*name*/) {
    Latch started;
    const Status posted = queue.post([this, &started] {
      started.set();
      static_cast<void>(thaw_.block_until(kNever));
    });
    EXPECT_TRUE(posted);
    EXPECT_TRUE(started.block_until(kNever));
  }
  void thaw(const std::string& /*name*/) { thaw_.set(); }

 private:
  RecordingLogSink log_;
  Latch thaw_;
  ThreadExecutor executor_{log_};
};

class SteppedHarness {
 public:
  [[nodiscard]] Executor& executor() { return executor_; }
  [[nodiscard]] RecordingLogSink& log() { return log_; }
  void freeze(TaskQueue& /*queue*/, const std::string& name) { executor_.hold(name); }
  void thaw(const std::string& name) { executor_.release(name); }

 private:
  RecordingLogSink log_;
  SteppedExecutor executor_{7, log_};
};

}  // namespace

INSTANTIATE_TYPED_TEST_SUITE_P(ThreadExecutor, ExecutorContract, ThreadHarness);
INSTANTIATE_TYPED_TEST_SUITE_P(SteppedExecutor, ExecutorContract, SteppedHarness);

}  // namespace kvbm::testing
