// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/memory_pool.hpp"

#include <array>
#include <cstddef>
#include <memory>
#include <thread>
#include <utility>

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
  for (int i = 0; i < 100; ++i) round();
  std::array<std::shared_ptr<Object>, 2> both;
  const testing::AllocationMeter meter;
  for (auto& each : both) each = make_pooled<Object>(pool);
  EXPECT_EQ(meter.count(), 0U);
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
