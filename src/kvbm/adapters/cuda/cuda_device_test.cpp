// SPDX-License-Identifier: Apache-2.0
// What CudaDevice says on a machine without a GPU; cuda_device_gpu_test.cpp is for one with.
#include "kvbm/adapters/cuda/cuda_device.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/log.hpp"
#include "kvbm/base/thread_executor.hpp"

#include "tests/support/error_code.hpp"

namespace kvbm {
namespace {

using ::testing::AnyOf;
using testing::code_of;
using ::testing::HasSubstr;

TEST(CudaDeviceWithoutGpu, SaysWhatIsMissing) {
  NullLogSink log;
  ThreadExecutor executor(log);
  const auto found = CudaDevice::find_all();
  if (found) GTEST_SKIP() << "there is a GPU here: " << found->front().name;
  EXPECT_THAT(code_of(found), AnyOf(ErrorCode::kUnavailable, ErrorCode::kUnsupported));
  EXPECT_THAT(found.error().message(), AnyOf(HasSubstr("libcuda.so.1"), HasSubstr("driver")));
  const auto device = CudaDevice::create({.executor = executor});
  ASSERT_FALSE(device);
  EXPECT_EQ(device.error(), found.error());
}

TEST(CudaDeviceWithoutGpu, RefusesOptionsThatMakeNoSense) {
  NullLogSink log;
  ThreadExecutor executor(log);
  EXPECT_EQ(code_of(CudaDevice::create({.executor = executor, .num_threads = 0})),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of(CudaDevice::create({.executor = executor, .max_streams = 0})),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of(CudaDevice::create({.executor = executor, .max_queued = 0})),
            ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace kvbm
