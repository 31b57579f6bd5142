// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cuda/internal/kernel_copy.hpp"

#include <cuda.h>

#include <algorithm>
#include <optional>
#include <utility>

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

// --- what kernels reach --------------------------------------------------------------------------

/// What a driver says of addresses; `begin` to `end` is all that it knows.
struct FakeMemory {
  CUmemorytype type = CU_MEMORYTYPE_HOST;
  int ordinal = 0;
  uintptr_t begin = 0x10000;
  uintptr_t end = 0x20000;
  intptr_t moved = 0;  ///< to where the GPU has it
  bool tells_range = true;
  bool tells_mapping = true;
  uintptr_t mapped_begin = 0x0;  ///< of all that is mapped with it
  uintptr_t mapped_end = 0x200000;
};
FakeMemory fake_memory;

int fake_attributes(unsigned count, int* attributes, void** values, uintptr_t address) {
  const bool known = address >= std::max(fake_memory.begin, fake_memory.mapped_begin) &&
                     address < std::min(fake_memory.end, fake_memory.mapped_end);
  for (unsigned i = 0; i < count; ++i) {
    switch (attributes[i]) {
      case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        *static_cast<CUmemorytype*>(values[i]) = known ? fake_memory.type : CUmemorytype{};
        break;
      case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
        *static_cast<int*>(values[i]) = known ? fake_memory.ordinal : -2;
        break;
      case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
        *static_cast<CUdeviceptr*>(values[i]) =
            known ? address + static_cast<uintptr_t>(fake_memory.moved) : 0;
        break;
      case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
        *static_cast<CUdeviceptr*>(values[i]) =
            known && fake_memory.tells_range ? fake_memory.begin : 0;
        break;
      case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
        *static_cast<size_t*>(values[i]) =
            known && fake_memory.tells_range ? fake_memory.end - fake_memory.begin : 0;
        break;
      case CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR:
        *static_cast<CUdeviceptr*>(values[i]) =
            known && fake_memory.tells_mapping ? fake_memory.mapped_begin : 0;
        break;
      case CU_POINTER_ATTRIBUTE_MAPPING_SIZE:
        *static_cast<size_t*>(values[i]) = known && fake_memory.tells_mapping
                                               ? fake_memory.mapped_end - fake_memory.mapped_begin
                                               : 0;
        break;
      default:
        return CUDA_ERROR_INVALID_VALUE;
    }
  }
  return CUDA_SUCCESS;
}

class FindReach : public ::testing::Test {
 protected:
  FindReach() {
    fake_memory = {};
    driver_.pointer_attributes = fake_attributes;
  }
  /// On GPU 1.
  [[nodiscard]] std::optional<AddressRange> find(uintptr_t address) const {
    return find_reach(driver_, 1, address);
  }

  CudaDriver driver_;
};

TEST_F(FindReach, IsPinnedMemoryAndThatOfTheGpuItself) {
  for (const auto& [type, ordinal] :
       {std::pair(CU_MEMORYTYPE_HOST, 0), {CU_MEMORYTYPE_DEVICE, 1}}) {
    fake_memory.type = type;
    fake_memory.ordinal = ordinal;
    const auto found = find(0x12345);
    ASSERT_TRUE(found);
    EXPECT_EQ(found->begin, 0x10000u);
    EXPECT_EQ(found->end, 0x20000u);
  }
}

TEST_F(FindReach, IsNotPageableMemoryNorThatOfAnotherGpu) {
  EXPECT_FALSE(find(0x20000));
  fake_memory.type = CU_MEMORYTYPE_DEVICE;
  EXPECT_FALSE(find(0x12345));
}

TEST_F(FindReach, IsNotPinnedMemoryThatTheGpuHasElsewhere) {
  fake_memory.moved = 0x1000;
  EXPECT_FALSE(find(0x12345));
  fake_memory.moved = -0x12345;  // not mapped at all
  EXPECT_FALSE(find(0x12345));
}

TEST_F(FindReach, GoesAsFarAsThereIsMemoryBehindTheAddresses) {
  fake_memory.type = CU_MEMORYTYPE_DEVICE;
  fake_memory.ordinal = 1;
  fake_memory.mapped_begin = 0x12000;
  fake_memory.mapped_end = 0x14000;
  EXPECT_FALSE(find(0x14000));
  const auto found = find(0x12345);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->begin, 0x12000u);
  EXPECT_EQ(found->end, 0x14000u);
}

TEST_F(FindReach, IsTheAddressAloneWhereTheDriverDoesNotTellHowFarItGoes) {
  for (bool* const told : {&fake_memory.tells_range, &fake_memory.tells_mapping}) {
    *told = false;
    const auto found = find(0x12345);
    ASSERT_TRUE(found);
    EXPECT_EQ(found->begin, 0x12345u);
    EXPECT_EQ(found->end, 0x12346u);
    *told = true;
  }
}

TEST_F(FindReach, IsNothingWhereTheDriverFails) {
  driver_.pointer_attributes = [](unsigned, int*, void**, uintptr_t) -> int {
    return CUDA_ERROR_NOT_INITIALIZED;
  };
  EXPECT_FALSE(find(0x12345));
}

}  // namespace
}  // namespace kvbm::internal
