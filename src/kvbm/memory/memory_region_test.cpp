// SPDX-License-Identifier: Apache-2.0
#include "kvbm/memory/memory_region.hpp"

#include <array>
#include <limits>

#include <gtest/gtest.h>

namespace kvbm {
namespace {

constexpr uint64_t kMost = std::numeric_limits<uint64_t>::max();

TEST(MemoryRegion, SlicesOfMemoryAreAtTheirAddress) {
  std::array<std::byte, 100> bytes;
  const auto region = MemoryRegion::of_bytes(StorageKind::kPinned, bytes.data(), bytes.size());
  EXPECT_EQ(region.kind(), StorageKind::kPinned);
  EXPECT_EQ(region.base(), bytes.data());
  const MemoryRegion slice = region.slice(10, 60).slice(5, 20);
  EXPECT_EQ(slice.kind(), StorageKind::kPinned);
  EXPECT_EQ(slice.base(), bytes.data() + 15);
  EXPECT_EQ(slice.size_bytes(), 20u);
}

TEST(MemoryRegion, SlicesOfAFileAreAtTheirOffset) {
  const FileRef file{.fd = 7, .alignment = {.memory = 512, .offset = 512}};
  const MemoryRegion slice = MemoryRegion::of_file(file, 1000, 500).slice(100, 400);
  EXPECT_TRUE(slice.is_file());
  EXPECT_EQ(slice.file(), file);
  EXPECT_EQ(slice.file_offset(), 1100u);
  EXPECT_EQ(slice.size_bytes(), 400u);
}

TEST(MemoryRegion, HasSlicesUpToItsEndAndNoFurther) {
  std::array<std::byte, 100> bytes;
  const auto region = MemoryRegion::of_bytes(StorageKind::kSystem, bytes.data(), bytes.size());
  EXPECT_EQ(region.slice(0, 100), region);
  EXPECT_EQ(region.slice(100, 0).size_bytes(), 0u);
  EXPECT_THROW((void)region.slice(0, 101), ContractViolation);
  EXPECT_THROW((void)region.slice(100, 1), ContractViolation);
  EXPECT_THROW((void)region.slice(101, 0), ContractViolation);
  EXPECT_THROW((void)region.slice(50, kMost), ContractViolation);
  EXPECT_THROW((void)region.slice(kMost, 2), ContractViolation);
  EXPECT_EQ(MemoryRegion().slice(0, 0), MemoryRegion());
  EXPECT_THROW((void)MemoryRegion().slice(0, 1), ContractViolation);
}

TEST(MemoryRegion, MixesUpNeitherAddressesAndOffsetsNorKinds) {
  std::byte byte{};
  const auto memory = MemoryRegion::of_bytes(StorageKind::kSystem, &byte, 1);
  EXPECT_THROW((void)memory.file(), ContractViolation);
  EXPECT_THROW((void)memory.file_offset(), ContractViolation);
  EXPECT_THROW((void)MemoryRegion::of_file({.fd = 3}, 0, 1).base(), ContractViolation);
  EXPECT_THROW((void)MemoryRegion::of_bytes(StorageKind::kFile, &byte, 1), ContractViolation);
}

TEST(MemoryRegion, RefusesBytesThatCannotBe) {
  std::byte byte{};
  EXPECT_THROW((void)MemoryRegion::of_bytes(StorageKind::kSystem, nullptr, 1), ContractViolation);
  EXPECT_THROW((void)MemoryRegion::of_bytes(StorageKind::kSystem, &byte, kMost), ContractViolation);
  EXPECT_THROW((void)MemoryRegion::of_file({}, 0, 1), ContractViolation);
  EXPECT_THROW((void)MemoryRegion::of_file({.fd = 3}, uint64_t{1} << 63, 0), ContractViolation);
  EXPECT_THROW((void)MemoryRegion::of_file({.fd = 3}, 1, (uint64_t{1} << 63) - 1),
               ContractViolation);
  EXPECT_NO_THROW((void)MemoryRegion::of_bytes(StorageKind::kSystem, nullptr, 0));
}

TEST(MemoryRegion, OfDeviceMemoryIsAllOfIt) {
  class Nowhere final : public DeviceAllocator {
    void free(std::byte*, uint64_t) noexcept override {}
  };
  std::array<std::byte, 8> bytes;
  const DeviceMemory memory(bytes.data(), bytes.size(), std::make_shared<Nowhere>());
  EXPECT_EQ(MemoryRegion::of(memory),
            MemoryRegion::of_bytes(StorageKind::kDevice, bytes.data(), 8));
}

TEST(StorageKind, HasANameForEach) {
  EXPECT_EQ(to_string(StorageKind::kSystem), "system");
  EXPECT_EQ(to_string(StorageKind::kPinned), "pinned");
  EXPECT_EQ(to_string(StorageKind::kDevice), "device");
  EXPECT_EQ(to_string(StorageKind::kFile), "file");
}

}  // namespace
}  // namespace kvbm
