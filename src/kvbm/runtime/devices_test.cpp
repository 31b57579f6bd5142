// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/devices.hpp"

#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/log.hpp"
#include "kvbm/base/thread_executor.hpp"

#include "tests/support/error_code.hpp"

namespace kvbm {
namespace {

using testing::code_of;
using ::testing::HasSubstr;

class DevicesTest : public ::testing::Test {
 protected:
  [[nodiscard]] Result<OpenedDevice> open(std::string name) {
    return open_device({.name = std::move(name), .executor = executor_});
  }

  NullLogSink log_;
  ThreadExecutor executor_{log_};
};

TEST_F(DevicesTest, TheHostIsAlwaysThere) {
  const auto host = open("host");
  ASSERT_TRUE(host);
  EXPECT_EQ(host->device->info().kind, DeviceKind::kHost);
  EXPECT_EQ(host->pinner, nullptr);
  EXPECT_FALSE(host->adopt_stream) << "it has no native streams";
  EXPECT_EQ(host->identity.pci_address, "");
}

TEST_F(DevicesTest, AGpuIsThereOrTheReasonIs) {
  const auto found = find_accelerators();
  for (const std::string name : {"cuda", "cuda:0"}) {
    const auto gpu = open(name);
    ASSERT_EQ(gpu.has_value(), found.has_value()) << name;
    if (gpu) {
      EXPECT_EQ(gpu->device->info().kind, DeviceKind::kCuda);
      EXPECT_NE(gpu->pinner, nullptr);
      EXPECT_TRUE(gpu->adopt_stream);
      EXPECT_EQ(gpu->identity.name, gpu->device->info().name);
      EXPECT_NE(gpu->identity.pci_address, "");
      EXPECT_EQ(found->front().device, "cuda:0");
    } else {
      EXPECT_EQ(gpu.error(), found.error());
      EXPECT_THAT(gpu.error().message(),
                  ::testing::AnyOf(HasSubstr("driver"), HasSubstr("KVBM_WITH_CUDA")));
    }
  }
}

TEST_F(DevicesTest, RefusesANameThatIsNone) {
  for (const std::string name :
       {"", "gpu", "cuda:", "cuda:-1", "cuda:1x", "cuda:99999999999", "cuda0"}) {
    const auto device = open(name);
    EXPECT_EQ(code_of(device), ErrorCode::kInvalidArgument) << name;
  }
}

TEST(AdviceOnKernels, IsForGpusThatTheBuildHasNoCodeFor) {
  AcceleratorInfo gpu{.device = "cuda:1", .sm = 121, .has_kernels = true};
  EXPECT_EQ(advice_on_kernels(gpu), "");
  gpu.kernels_from_ptx = true;
  EXPECT_EQ(advice_on_kernels(gpu),
            "cuda:1 has SM 12.1, and this build has no code for it: its driver compiles the "
            "kernels at the first use, which takes a moment; build with 121 in CUDA_ARCHS");
  gpu = {.device = "cuda:0", .sm = 75};
  EXPECT_EQ(advice_on_kernels(gpu),
            "cuda:0 has SM 7.5, and this build has no code for it: it copies by its engines "
            "alone; build with 75 in CUDA_ARCHS");
}

}  // namespace
}  // namespace kvbm
