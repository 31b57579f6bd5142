// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cuda/internal/kernel_copy.hpp"

#include <gtest/gtest.h>

namespace kvbm::internal {
namespace {

TEST(KernelSupport, CodeRunsOnItsGenerationFromItsVersionOn) {
  constexpr int32_t kBuilt[] = {80, 86, 90, 120};
  EXPECT_EQ(kernel_support(80, kBuilt), KernelSupport::kCompiled);
  EXPECT_EQ(kernel_support(86, kBuilt), KernelSupport::kCompiled);
  EXPECT_EQ(kernel_support(89, kBuilt), KernelSupport::kCompiled);
  EXPECT_EQ(kernel_support(90, kBuilt), KernelSupport::kCompiled);
  EXPECT_EQ(kernel_support(121, kBuilt), KernelSupport::kCompiled);
}

TEST(KernelSupport, TheDriverCompilesForWhatTheBuildDoesNotKnow) {
  constexpr int32_t kBuilt[] = {86, 90};
  EXPECT_EQ(kernel_support(100, kBuilt), KernelSupport::kFromPtx);
  EXPECT_EQ(kernel_support(80, kBuilt), KernelSupport::kNone) << "PTX runs on nothing older";
  EXPECT_EQ(kernel_support(75, kBuilt), KernelSupport::kNone);
  EXPECT_EQ(kernel_support(90, {}), KernelSupport::kNone);
}

}  // namespace
}  // namespace kvbm::internal
