// SPDX-License-Identifier: Apache-2.0
#include "kvbm/device/host_pages.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <limits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/units.hpp"

#include "tests/support/error_code.hpp"

namespace kvbm {
namespace {

using testing::code_of;

bool is_mapped(const std::byte* page) {
  return ::msync(const_cast<std::byte*>(page), 1, MS_ASYNC) == 0 || errno != ENOMEM;
}

TEST(HostPages, ReadAsZeroAndTakeWrites) {
  auto pages = HostPages::map({.size_bytes = 10000}).value();
  EXPECT_EQ(pages.size_bytes(), 10000u);
  EXPECT_EQ(std::count(pages.data(), pages.data() + 10000, std::byte{0}), 10000);
  std::fill_n(pages.data(), 10000, std::byte{1});
}

/// The address space of the process, in pages.
uint64_t mapped_pages() {
  uint64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  return pages;
}

TEST(HostPages, GiveBackTheSlackOfTheirAlignment) {
  constexpr uint64_t kAlignment = 64 * kMiB;
  constexpr uint64_t kTimes = 32;
  // The kernel places mappings next to each other: small ones leave slack at one end, large ones at
  // the other.
  for (const uint64_t size : {HostPages::page_bytes(), 60 * kMiB}) {
    const uint64_t before = mapped_pages();
    std::vector<HostPages> kept;
    for (uint64_t i = 0; i < kTimes; ++i) {
      kept.push_back(HostPages::map({.size_bytes = size, .alignment = kAlignment}).value());
    }
    EXPECT_LT((mapped_pages() - before) * HostPages::page_bytes(), kTimes * size + kAlignment);
  }
}

TEST(HostPages, StartWhereTheAlignmentSays) {
  for (uint64_t alignment = 1; alignment <= 64 * kMiB; alignment *= 4) {
    const auto pages =
        HostPages::map({.size_bytes = 3 * HostPages::page_bytes() - 1, .alignment = alignment});
    ASSERT_TRUE(pages) << pages.error();
    const auto address = reinterpret_cast<uintptr_t>(pages->data());
    EXPECT_EQ(address % alignment, 0u);
    EXPECT_EQ(address % HostPages::page_bytes(), 0u);
    pages->data()[pages->size_bytes() - 1] = std::byte{1};
  }
}

TEST(HostPages, AreUnmappedOnDestructionAndOnAssignment) {
  std::byte* first = nullptr;
  {
    auto pages = HostPages::map({.size_bytes = 64 * kMiB, .alignment = 16 * kMiB}).value();
    first = pages.data();
    ASSERT_TRUE(is_mapped(first));
    pages = HostPages();
    EXPECT_FALSE(is_mapped(first));
    pages = HostPages::map({.size_bytes = 64 * kMiB}).value();
    first = pages.data();
  }
  EXPECT_FALSE(is_mapped(first));
}

TEST(HostPages, AreGivenUpByReleaseAlone) {
  auto pages = HostPages::map({.size_bytes = 4096}).value();
  HostPages moved = std::move(pages);
  std::byte* const data = moved.release();
  moved = HostPages();
  ASSERT_TRUE(is_mapped(data));
  HostPages::unmap(data, 4096);
  EXPECT_FALSE(is_mapped(data));
}

TEST(HostPages, TakeAdviceAboutHugePages) {
  const auto pages =
      HostPages::map({.size_bytes = 4 * kMiB, .huge_pages = HugePages::kAdvise}).value();
  EXPECT_EQ(reinterpret_cast<uintptr_t>(pages.data()) % (2 * kMiB), 0u);
  pages.data()[4 * kMiB - 1] = std::byte{1};
}

TEST(HostPages, RefuseWhatCannotBe) {
  EXPECT_EQ(code_of(HostPages::map({.size_bytes = 0})), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of(HostPages::map({.size_bytes = 1, .alignment = 0})),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of(HostPages::map({.size_bytes = 1, .alignment = 48})),
            ErrorCode::kInvalidArgument);
  for (const uint64_t size : {uint64_t{1} << 60, std::numeric_limits<uint64_t>::max()}) {
    const auto pages = HostPages::map({.size_bytes = size});
    ASSERT_FALSE(pages);
    EXPECT_EQ(code_of(pages), ErrorCode::kExhausted);
    EXPECT_EQ(pages.error().native_code(), ENOMEM);
  }
  EXPECT_EQ(code_of(HostPages::map({.size_bytes = 1, .alignment = uint64_t{1} << 63})),
            ErrorCode::kExhausted);
}

}  // namespace
}  // namespace kvbm
