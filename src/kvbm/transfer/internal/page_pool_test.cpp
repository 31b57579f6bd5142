// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/internal/page_pool.hpp"

#include <sys/mman.h>

#include <cstring>
#include <memory>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/executor.hpp"
#include "kvbm/base/log.hpp"
#include "kvbm/base/thread_executor.hpp"

#include "tests/support/error_code.hpp"

namespace kvbm::internal {
namespace {

using testing::code_of;

constexpr uint64_t kKiB = 1024;

bool is_mapped(std::byte* page) {
  unsigned char in_core = 0;
  return ::mincore(page, 1, &in_core) == 0;
}

TEST(PagePool, WhatComesBackIsTakenAgain) {
  PagePool pool(256 * kKiB);
  std::byte* first = nullptr;
  {
    const PooledPages pages = pool.take(60 * kKiB).value();
    first = pages.data();
    std::memset(first, 7, 60 * kKiB);
    EXPECT_EQ(pool.kept_bytes(), 0U);
  }
  EXPECT_EQ(pool.kept_bytes(), 64 * kKiB);
  EXPECT_TRUE(is_mapped(first));
  const PooledPages smaller = pool.take(4 * kKiB).value();  // of another size
  EXPECT_NE(smaller.data(), first);
  const PooledPages again = pool.take(40 * kKiB).value();
  EXPECT_EQ(again.data(), first);
  EXPECT_EQ(again.data()[40 * kKiB], std::byte{7});
  const PooledPages other = pool.take(40 * kKiB).value();  // there is no other one
  EXPECT_NE(other.data(), first);
}

TEST(PagePool, KeepsNoMoreThanItMayAndTheYoungest) {
  PagePool pool(256 * kKiB);
  std::vector<std::byte*> data;
  {
    std::vector<std::unique_ptr<PooledPages>> pages;
    for (int i = 0; i < 3; ++i) {
      pages.push_back(std::make_unique<PooledPages>(pool.take(100 * kKiB).value()));
      data.push_back(pages.back()->data());
    }
    for (auto& one : pages) {  // in this order
      one.reset();
      EXPECT_LE(pool.kept_bytes(), 256 * kKiB);
    }
  }
  EXPECT_EQ(pool.kept_bytes(), 256 * kKiB);
  EXPECT_FALSE(is_mapped(data[0]));
  EXPECT_TRUE(is_mapped(data[1]) && is_mapped(data[2]));
  // So large that nothing else could be kept: not larger than asked for.
  std::byte* large = nullptr;
  {
    const PooledPages pages = pool.take(200 * kKiB).value();
    large = pages.data();
  }
  EXPECT_EQ(pool.kept_bytes(), 200 * kKiB);
  // More than may be kept is for once.
  {
    const PooledPages pages = pool.take(260 * kKiB).value();
    large = pages.data();
  }
  EXPECT_FALSE(is_mapped(large));
  EXPECT_EQ(pool.kept_bytes(), 200 * kKiB);
}

TEST(PagePool, OfManySmallOnesKeepsSome) {
  PagePool pool(uint64_t{64} << 20);
  {
    std::vector<PooledPages> pages;
    for (int i = 0; i < 200; ++i) pages.push_back(pool.take(4 * kKiB).value());
  }
  EXPECT_EQ(pool.kept_bytes(), 64 * 4 * kKiB);
}

TEST(PagePool, WhatCannotBeMappedIsRefused) {
  PagePool pool(256 * kKiB);
  EXPECT_EQ(code_of(pool.take(0)), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of(pool.take(uint64_t{1} << 62)), ErrorCode::kExhausted);
}

TEST(PagePool, SeveralThreadsHaveDifferentOnes) {
  NullLogSink log;
  ThreadExecutor executor(log);
  PagePool pool(16 * kKiB);
  auto queue = executor.create_queue({.name = "takers", .num_threads = 4, .capacity = 64}).value();
  for (int task = 0; task < 32; ++task) {
    ASSERT_TRUE(queue->post([&pool, task] {
      for (int i = 0; i < 50; ++i) {
        const PooledPages pages = pool.take(4 * kKiB).value();
        const auto mark = static_cast<std::byte>(task * 7 + i);
        std::memset(pages.data(), static_cast<int>(mark), 4 * kKiB);
        for (uint64_t at = 0; at < 4 * kKiB; at += 512) EXPECT_EQ(pages.data()[at], mark);
      }
    }));
  }
  queue->stop();
  EXPECT_LE(pool.kept_bytes(), 16 * kKiB);
}

}  // namespace
}  // namespace kvbm::internal
