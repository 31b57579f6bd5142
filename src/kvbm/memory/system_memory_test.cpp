// SPDX-License-Identifier: Apache-2.0
#include "kvbm/memory/system_memory.hpp"

#include <algorithm>
#include <utility>

#include <gtest/gtest.h>

#include "tests/support/error_code.hpp"

namespace kvbm {
namespace {

using testing::code_of;

TEST(SystemMemory, IsOneRegionOfZeros) {
  auto memory = SystemMemory::create({.size_bytes = 100'000, .alignment = 65536}).value();
  EXPECT_EQ(memory.bytes().size(), 100'000u);
  EXPECT_TRUE(std::all_of(memory.bytes().begin(), memory.bytes().end(),
                          [](std::byte byte) { return byte == std::byte{0}; }));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(memory.data()) % 65536, 0u);
  EXPECT_EQ(memory.region(),
            MemoryRegion::of_bytes(StorageKind::kSystem, memory.data(), memory.size_bytes()));
  std::byte* const data = memory.data();
  const SystemMemory moved = std::move(memory);
  EXPECT_EQ(moved.data(), data);
  moved.bytes().back() = std::byte{1};
}

TEST(SystemMemory, OfNothingIsAnEmptyRegion) {
  const SystemMemory memory;
  EXPECT_EQ(memory.region().size_bytes(), 0u);
  EXPECT_TRUE(memory.bytes().empty());
}

TEST(SystemMemory, PassesOnWhyItCannotBe) {
  EXPECT_EQ(code_of(SystemMemory::create({.size_bytes = 0})), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of(SystemMemory::create({.size_bytes = uint64_t{1} << 60})),
            ErrorCode::kExhausted);
}

}  // namespace
}  // namespace kvbm
