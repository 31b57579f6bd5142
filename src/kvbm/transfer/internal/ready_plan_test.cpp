// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/internal/ready_plan.hpp"

#include <memory>
#include <utility>

#include <gtest/gtest.h>

#include "tests/support/guarded_place.hpp"

namespace kvbm::internal {
namespace {

constexpr LayoutConfig kConfig{.num_blocks = 2,
                               .num_layers = 2,
                               .outer_dim = 1,
                               .page_size = 1,
                               .inner_dim = 8,
                               .dtype_width_bytes = 1};

constexpr LayoutHandle handle(uint64_t worker, uint16_t layout) {
  return {WorkerId{worker}, layout};
}

PlanCache::Plan some_plan() {
  static const testing::GuardedPlace place(kConfig, LayoutKind::kFullyContiguous);
  const auto layout = std::make_shared<const PhysicalLayout>(place.layout());
  return std::make_shared<const ReadyPlan>(
      ReadyPlan{.src = layout,
                .dst = layout,
                .src_end = {},
                .dst_end = {},
                .from = *layout,
                .to = *layout,
                .plan = TransferPlan::create(*layout, *layout).value(),
                .strategy = {}});
}

TEST(PlanCache, FindsWhatItKeepsByAllOfTheKey) {
  PlanCache cache(16);
  const PlanKey key{.src = handle(1, 2), .dst = handle(1, 3)};
  const PlanCache::Plan plan = some_plan();
  EXPECT_EQ(cache.find(key), nullptr);
  EXPECT_EQ(cache.keep(key, plan, cache.generation()), nullptr);
  EXPECT_EQ(cache.find(key), plan);
  const auto differs = [&](auto&& change) {
    PlanKey other = key;
    change(other);
    return cache.find(other) == nullptr;
  };
  EXPECT_TRUE(differs([](PlanKey& other) { std::swap(other.src, other.dst); }));
  EXPECT_TRUE(differs([](PlanKey& other) { other.src.worker = WorkerId{2}; }));
  EXPECT_TRUE(differs([](PlanKey& other) { other.layers = kConfig.all_layers(); }));
  EXPECT_TRUE(differs([](PlanKey& other) { other.src_format = KvBlockLayout::kUnknown; }));
  EXPECT_TRUE(differs([](PlanKey& other) { other.dst_format = KvBlockLayout::kUniversalTP; }));
  EXPECT_TRUE(differs([](PlanKey& other) { other.src_heads = HeadRange{0, 1}; }));
  EXPECT_TRUE(differs([](PlanKey& other) { other.dst_heads = HeadRange{0, 1}; }));
}

TEST(PlanCache, ThePlanThatWasNotUsedForTheLongestTimeMakesRoom) {
  PlanCache cache(2);
  const PlanKey first{.src = handle(1, 0), .dst = handle(1, 1)};
  const PlanKey second{.src = handle(1, 0), .dst = handle(1, 2)};
  const PlanKey third{.src = handle(1, 0), .dst = handle(1, 3)};
  const PlanCache::Plan of_second = some_plan();
  EXPECT_EQ(cache.keep(first, some_plan(), cache.generation()), nullptr);
  EXPECT_EQ(cache.keep(second, of_second, cache.generation()), nullptr);
  EXPECT_NE(cache.find(first), nullptr);
  EXPECT_EQ(cache.keep(third, some_plan(), cache.generation()), of_second);
  EXPECT_NE(cache.find(first), nullptr);
  EXPECT_EQ(cache.find(second), nullptr);
  EXPECT_NE(cache.find(third), nullptr);
}

TEST(PlanCache, WhatHasALayoutOrAWorkerOnASideGoesWithIt) {
  PlanCache cache(16);
  const PlanKey in{.src = handle(1, 0), .dst = handle(1, 1)};
  const PlanKey out{.src = handle(1, 1), .dst = handle(2, 0)};
  const PlanKey other{.src = handle(1, 0), .dst = handle(1, 2)};
  const auto fill = [&] {
    for (const PlanKey& key : {in, out, other}) {
      EXPECT_EQ(cache.keep(key, some_plan(), cache.generation()), nullptr);
    }
  };
  fill();
  EXPECT_EQ(cache.forget(handle(1, 1)).size(), 2U);
  EXPECT_EQ(cache.find(in), nullptr);
  EXPECT_EQ(cache.find(out), nullptr);
  EXPECT_NE(cache.find(other), nullptr);
  fill();
  EXPECT_EQ(cache.forget(WorkerId{2}).size(), 1U);
  EXPECT_NE(cache.find(in), nullptr);
  EXPECT_EQ(cache.find(out), nullptr);
}

TEST(PlanCache, APlanBegunBeforeSomethingWasForgottenIsNotKept) {
  PlanCache cache(16);
  const PlanKey key{.src = handle(1, 0), .dst = handle(1, 1)};
  const uint64_t begun = cache.generation();
  EXPECT_TRUE(cache.forget(handle(1, 1)).empty());
  EXPECT_EQ(cache.keep(key, some_plan(), begun), nullptr);
  EXPECT_EQ(cache.find(key), nullptr);
  EXPECT_EQ(cache.keep(key, some_plan(), cache.generation()), nullptr);
  EXPECT_NE(cache.find(key), nullptr);
}

}  // namespace
}  // namespace kvbm::internal
