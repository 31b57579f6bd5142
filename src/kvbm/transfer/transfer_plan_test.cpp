// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/transfer_plan.hpp"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/guarded_place.hpp"

namespace kvbm {
namespace {

using testing::GuardedPlace;

constexpr LayoutConfig kConfig{.num_blocks = 4,
                               .num_layers = 3,
                               .outer_dim = 2,
                               .page_size = 2,
                               .inner_dim = 5,
                               .dtype_width_bytes = 2,
                               .num_heads = std::nullopt,
                               .alignment = 1};

std::vector<PlanPiece> pieces_of(const GuardedPlace& src, const GuardedPlace& dst,
                                 LayerRange layers) {
  const TransferPlan plan = TransferPlan::create(src.layout(), dst.layout(), layers).value();
  EXPECT_EQ(plan.bytes_per_block(), 40U * layers.count);
  return {plan.pieces().begin(), plan.pieces().end()};
}

TEST(TransferPlan, ContiguousToContiguousIsOnePiece) {
  const GuardedPlace src(kConfig, LayoutKind::kFullyContiguous);
  const GuardedPlace dst(kConfig, LayoutKind::kFullyContiguous);
  EXPECT_EQ(pieces_of(src, dst, kConfig.all_layers()),
            (std::vector<PlanPiece>{{0, 0, 0, 0, 120, 1, 0, 0}}));
  EXPECT_EQ(pieces_of(src, dst, {LayerId{1}, 1}),
            (std::vector<PlanPiece>{{0, 0, 40, 40, 40, 1, 0, 0}}));
}

TEST(TransferPlan, PiecesAreAsLongAsBothSidesAreContiguous) {
  const GuardedPlace whole(kConfig, LayoutKind::kFullyContiguous);
  const GuardedPlace first(kConfig, LayoutKind::kLayerSeparateBlockFirst);
  const GuardedPlace second(kConfig, LayoutKind::kLayerSeparateBlockSecond);
  EXPECT_EQ(
      pieces_of(whole, first, kConfig.all_layers()),
      (std::vector<PlanPiece>{
          {0, 0, 0, 0, 40, 1, 0, 0}, {0, 1, 40, 0, 40, 1, 0, 0}, {0, 2, 80, 0, 40, 1, 0, 0}}));
  // Keys and values of a layer: two repetitions of one piece.
  EXPECT_EQ(pieces_of(second, whole, {LayerId{1}, 2}),
            (std::vector<PlanPiece>{{1, 0, 0, 40, 20, 2, 80, 20}, {2, 0, 0, 80, 20, 2, 80, 20}}));
  EXPECT_EQ(pieces_of(first, second, {LayerId{0}, 1}),
            (std::vector<PlanPiece>{{0, 0, 0, 0, 20, 2, 20, 80}}));
}

TEST(TransferPlan, HasAsManyPiecesForAMillionBlocksAsForOne) {
  LayoutConfig config = kConfig;
  config.num_blocks = 1'000'000;
  std::vector<MemoryRegion> far_away;
  for (uintptr_t layer = 0; layer < config.num_layers; ++layer) {
    // Addresses that nobody follows.
    far_away.push_back(MemoryRegion::of_bytes(
        StorageKind::kDevice, reinterpret_cast<std::byte*>((layer + 1) << 40), 1ULL << 32));
  }
  const auto src = PhysicalLayout::layer_separate(config, BlockDimension::kBlockIsSecond, far_away);
  const TransferPlan plan = TransferPlan::create(*src, *src, config.all_layers()).value();
  EXPECT_EQ(plan.pieces().size(), 3U);
}

TEST(TransferPlan, ShapesThatDifferAreRefusedWithWhatDiffers) {
  const GuardedPlace src(kConfig, LayoutKind::kFullyContiguous);
  LayoutConfig config = kConfig;
  config.num_layers = 2;
  config.inner_dim = 10;
  const GuardedPlace dst(config, LayoutKind::kFullyContiguous);
  const Result<TransferPlan> plan =
      TransferPlan::create(src.layout(), dst.layout(), {LayerId{0}, 1});
  ASSERT_FALSE(plan);
  EXPECT_EQ(plan.error().code(), ErrorCode::kInvalidArgument);
  EXPECT_NE(plan.error().message().find("num_layers 3 and 2"), std::string::npos);
  EXPECT_NE(plan.error().message().find("inner_dim 5 and 10"), std::string::npos);
}

TEST(TransferPlan, LayersOutsideAreRefused) {
  const GuardedPlace place(kConfig, LayoutKind::kFullyContiguous);
  EXPECT_FALSE(TransferPlan::create(place.layout(), place.layout(), {LayerId{0}, 0}));
  EXPECT_FALSE(TransferPlan::create(place.layout(), place.layout(), {LayerId{2}, 2}));
}

}  // namespace
}  // namespace kvbm
