// SPDX-License-Identifier: Apache-2.0
#include "kvbm/memory/internal/pinnable_pages.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include <gtest/gtest.h>

namespace kvbm::internal {
namespace {

/// Memory of which the first half can be had and the second half is SIGBUS, as with reserved pages
/// beyond a cgroup's limit: a file of half the size.
std::byte* map_half(uint64_t size_bytes) {
  const int file = ::memfd_create("half", 0);
  EXPECT_EQ(::ftruncate(file, static_cast<off_t>(size_bytes / 2)), 0);
  void* const mapped = ::mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
  ::close(file);
  EXPECT_NE(mapped, MAP_FAILED);
  return static_cast<std::byte*>(mapped);
}

std::byte* map_none(uint64_t /*size_bytes*/) { return nullptr; }

TEST(PinnablePages, TakesPlainPagesWhereReservedOnesAreNotToBeHad) {
  constexpr uint64_t kBytes = 4 * kHugePageBytes - 5;
  Result<PinnablePages> pages = PinnablePages::map(kBytes, map_half);
  ASSERT_TRUE(pages);
  std::byte* const data = pages->data();
  EXPECT_TRUE(pages->touch(0, 2 * kHugePageBytes));
  EXPECT_TRUE(pages->are_reserved());
  data[0] = std::byte{1};
  EXPECT_TRUE(pages->touch(3 * kHugePageBytes, kBytes));
  EXPECT_FALSE(pages->are_reserved());
  EXPECT_TRUE(pages->touch(2 * kHugePageBytes, 3 * kHugePageBytes));
  EXPECT_EQ(pages->data(), data);
  EXPECT_EQ(data[0], std::byte{1}) << "what was there stays";
  EXPECT_TRUE(
      std::all_of(data + 1, data + kBytes, [](std::byte byte) { return byte == std::byte{0}; }));
  std::fill(data, data + kBytes, std::byte{7});
}

TEST(PinnablePages, ArePlainWithoutReservedOnes) {
  Result<PinnablePages> pages = PinnablePages::map(kHugePageBytes + 1, map_none);
  ASSERT_TRUE(pages);
  EXPECT_FALSE(pages->are_reserved());
  EXPECT_TRUE(pages->touch(0, kHugePageBytes + 1));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(pages->data()) % kHugePageBytes, 0U);
}

/// Bytes of those that take memory.
uint64_t resident_bytes(const std::byte* data, uint64_t size_bytes) {
  const uint64_t page = HostPages::page_bytes();
  std::vector<unsigned char> pages((size_bytes + page - 1) / page);
  EXPECT_EQ(::mincore(const_cast<std::byte*>(data), size_bytes, pages.data()), 0);
  return page * static_cast<uint64_t>(std::count_if(pages.begin(), pages.end(),
                                                    [](unsigned char one) { return one & 1; }));
}

TEST(PinnablePages, GivesBackWhatNobodyWillUseAndNothingElse) {
  constexpr uint64_t kBytes = 5 * kHugePageBytes - 5;
  constexpr uint64_t kKept = kHugePageBytes;
  for (const auto map_reserved : {map_none, map_half}) {
    Result<PinnablePages> pages = PinnablePages::map(kBytes, map_reserved);
    ASSERT_TRUE(pages);
    for (uint64_t at = 0; at < kBytes; at += kHugePageBytes) {
      ASSERT_TRUE(pages->touch(at, std::min(at + kHugePageBytes, kBytes)));
    }
    std::byte* const data = pages->data();
    std::fill(data, data + kBytes, std::byte{7});
    pages->give_back(kKept);
    EXPECT_TRUE(
        std::all_of(data, data + kKept, [](std::byte byte) { return byte == std::byte{7}; }));
    if (map_reserved == map_none) {
      EXPECT_EQ(resident_bytes(data, kKept), kKept);
      EXPECT_EQ(resident_bytes(data + kKept, kBytes - kKept), 0U);
    }
    EXPECT_TRUE(std::all_of(data + kKept, data + kBytes,
                            [](std::byte byte) { return byte == std::byte{0}; }));
    pages->give_back(6 * kHugePageBytes);  // there are none
  }
}

}  // namespace
}  // namespace kvbm::internal
