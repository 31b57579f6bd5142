// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/memory_pool.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/allocation_meter.hpp"

namespace kvbm {
namespace {

using Object = std::array<std::byte, 300>;

TEST(MemoryPool, WhatWasFreedOnAnyThreadIsUsedAgain) {
  const MemoryPool pool = make_memory_pool();
  const auto round = [&] {
    auto first = make_pooled<Object>(pool);
    auto second = make_pooled<Object>(pool);
    std::thread([gone = std::exchange(first, nullptr)]() mutable { gone.reset(); }).join();
    second.reset();
  };
  round();
  std::array<std::shared_ptr<Object>, 2> both;
  uint64_t elsewhere = 1;
  {
    const testing::AllocationMeter meter;
    both[0] = make_pooled<Object>(pool);
    EXPECT_EQ(meter.count(), 0U);
  }
  std::thread([&] {
    const testing::AllocationMeter meter;
    both[1] = make_pooled<Object>(pool);
    elsewhere = meter.count();
  }).join();
  EXPECT_EQ(elsewhere, 0U);
}

TEST(MemoryPool, GoesOnAfterAnAllocationThatFailed) {
  const MemoryPool pool = make_memory_pool();
  for (size_t after = 0; after < 6; ++after) {
    const testing::AllocationFailure no_memory(after);
    try {
      static_cast<void>(make_pooled<Object>(pool));
    } catch (const std::bad_alloc&) {
    }
  }
  EXPECT_NE(make_pooled<Object>(pool), nullptr);
}

TEST(MemoryPool, GivesEverySizeItsOwnMemory) {
  const MemoryPool pool = make_memory_pool();
  std::vector<std::pair<std::byte*, size_t>> taken;
  for (int round = 0; round < 3; ++round) {
    for (size_t bytes = 1; bytes < 9000; bytes += bytes < 200 ? 1 : 37) {
      auto* const data = static_cast<std::byte*>(pool->allocate(bytes));
      std::fill_n(data, bytes, static_cast<std::byte>(bytes % 251));
      taken.emplace_back(data, bytes);
    }
    for (const auto& [data, bytes] : taken) {
      EXPECT_EQ(std::count(data, data + bytes, static_cast<std::byte>(bytes % 251)), bytes);
      pool->deallocate(data, bytes);
    }
    taken.clear();
  }
  void* const aligned = pool->allocate(100, 256);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(aligned) % 256, 0U);
  pool->deallocate(aligned, 100, 256);
}

TEST(MemoryPool, StaysWhileAnObjectOfItDoes) {
  MemoryPool pool = make_memory_pool();
  const std::weak_ptr<std::pmr::memory_resource> watch = pool;
  auto object = make_pooled<Object>(pool);
  pool.reset();
  EXPECT_FALSE(watch.expired());
  object->fill(std::byte{1});
  object.reset();
  EXPECT_TRUE(watch.expired());
}

TEST(MemoryPool, NoneIsOperatorNew) {
  const testing::AllocationMeter meter;
  const auto object = make_pooled<Object>(nullptr);
  EXPECT_NE(object, nullptr);
  EXPECT_EQ(meter.count(), 1U);
}

}  // namespace
}  // namespace kvbm
