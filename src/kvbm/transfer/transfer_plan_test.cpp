// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/transfer_plan.hpp"

#include <algorithm>
#include <string>
#include <utility>
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

/// The axes are the innermost ones of the piece.
PlanPiece piece(uint32_t src_map, uint32_t dst_map, uint64_t src_offset, uint64_t dst_offset,
                uint64_t bytes, const std::vector<StridedAxis>& axes = {}) {
  PlanPiece made{src_map, dst_map, src_offset, dst_offset, bytes};
  std::ranges::copy_backward(axes, made.axes.end());
  return made;
}

TEST(TransferPlan, ContiguousToContiguousIsOnePiece) {
  const GuardedPlace src(kConfig, LayoutKind::kFullyContiguous);
  const GuardedPlace dst(kConfig, LayoutKind::kFullyContiguous);
  EXPECT_EQ(pieces_of(src, dst, kConfig.all_layers()),
            (std::vector<PlanPiece>{piece(0, 0, 0, 0, 120)}));
  EXPECT_EQ(pieces_of(src, dst, {LayerId{1}, 1}),
            (std::vector<PlanPiece>{piece(0, 0, 40, 40, 40)}));
}

TEST(TransferPlan, PiecesAreAsLongAsBothSidesAreContiguous) {
  const GuardedPlace whole(kConfig, LayoutKind::kFullyContiguous);
  const GuardedPlace first(kConfig, LayoutKind::kLayerSeparateBlockFirst);
  const GuardedPlace second(kConfig, LayoutKind::kLayerSeparateBlockSecond);
  EXPECT_EQ(pieces_of(whole, first, kConfig.all_layers()),
            (std::vector<PlanPiece>{piece(0, 0, 0, 0, 40), piece(0, 1, 40, 0, 40),
                                    piece(0, 2, 80, 0, 40)}));
  // Keys and values of a layer: two repetitions of one piece.
  EXPECT_EQ(pieces_of(second, whole, {LayerId{1}, 2}),
            (std::vector<PlanPiece>{piece(1, 0, 0, 40, 20, {{2, 80, 20}}),
                                    piece(2, 0, 0, 80, 20, {{2, 80, 20}})}));
  EXPECT_EQ(pieces_of(first, second, {LayerId{0}, 1}),
            (std::vector<PlanPiece>{piece(0, 0, 0, 0, 20, {{2, 20, 80}})}));
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
  const Result<TransferPlan> plan = TransferPlan::create(src.layout(), dst.layout());
  ASSERT_FALSE(plan);
  EXPECT_EQ(plan.error().code(), ErrorCode::kInvalidArgument);
  EXPECT_NE(plan.error().message().find("num_layers 3 and 2"), std::string::npos);
  EXPECT_NE(plan.error().message().find("inner_dim 5 and 10"), std::string::npos);
}

// 2 tokens of 5 heads of 2 elements of 2 bytes: a head of a token has 4 bytes.
constexpr LayoutConfig with_heads() {
  LayoutConfig config = kConfig;
  config.inner_dim = 10;
  config.num_heads = 5;
  return config;
}

TEST(TransferPlan, APermutationIsOnePieceWithAsFewAxesAsItsFormatsAllow) {
  const auto place = [](const KvBlockLayout& format) {
    return GuardedPlace(with_heads(), LayoutKind::kFullyContiguous, StorageKind::kSystem, {},
                        format);
  };
  const GuardedPlace nhd = place(KvBlockLayout::kOperationalNHD);
  const GuardedPlace hnd = place(KvBlockLayout::kOperationalHND);
  const GuardedPlace tp = place(KvBlockLayout::kUniversalTP);
  const GuardedPlace same =
      place(KvBlockLayout::custom(KvBlockLayout::kUniversalTP.order()).value());
  const auto pieces = [](const GuardedPlace& src, const GuardedPlace& dst) {
    const TransferPlan plan = TransferPlan::create(src.layout(), dst.layout()).value();
    EXPECT_EQ(plan.bytes_per_block(), 240U);
    return std::vector<PlanPiece>(plan.pieces().begin(), plan.pieces().end());
  };
  EXPECT_EQ(pieces(tp, same), (std::vector<PlanPiece>{piece(0, 0, 0, 0, 240)}));
  // Layer and outer stay together, so they are one axis of 6; heads and pages change places.
  EXPECT_EQ(pieces(nhd, hnd),
            (std::vector<PlanPiece>{piece(0, 0, 0, 0, 4, {{6, 40, 40}, {5, 4, 8}, {2, 20, 4}})}));
  EXPECT_EQ(pieces(hnd, nhd),
            (std::vector<PlanPiece>{piece(0, 0, 0, 0, 4, {{6, 40, 40}, {2, 4, 20}, {5, 8, 4}})}));
  // Of universal to NHD, layer, outer and page stay together.
  EXPECT_EQ(pieces(tp, nhd),
            (std::vector<PlanPiece>{piece(0, 0, 0, 0, 4, {{12, 4, 20}, {5, 48, 4}})}));
  EXPECT_EQ(pieces(hnd, tp),
            (std::vector<PlanPiece>{piece(0, 0, 0, 0, 8, {{5, 8, 48}, {6, 40, 8}})}));
}

TEST(TransferPlan, HeadsAndLayersOfOneSideBecomeOthersOfTheOther) {
  // Rank 1 of 2 has heads 2 and 3 of 4; its layers are 1 and 2 of 3.
  LayoutConfig all = with_heads();
  all.num_heads = 4;
  all.inner_dim = 8;
  LayoutConfig shard = all;
  shard.num_layers = 2;
  shard.num_heads = 2;
  shard.inner_dim = 4;
  const GuardedPlace whole(all, LayoutKind::kFullyContiguous, StorageKind::kSystem, {},
                           KvBlockLayout::kUniversalTP);
  const GuardedPlace part(shard, LayoutKind::kFullyContiguous, StorageKind::kSystem, {},
                          KvBlockLayout::kUniversalTP);
  const LayoutView slice =
      LayoutView(whole.layout()).slice(LayerRange{LayerId{1}, 2})->slice(HeadRange{2, 2}).value();
  const TransferPlan plan = TransferPlan::create(slice, part.layout()).value();
  // A head of the whole has 3 x 2 x 2 x 4 bytes, a layer of a head 16.
  EXPECT_EQ(std::vector<PlanPiece>(plan.pieces().begin(), plan.pieces().end()),
            (std::vector<PlanPiece>{piece(0, 0, 2 * 48 + 16, 0, 32, {{2, 48, 32}})}));
  EXPECT_EQ(plan.bytes_per_block(), shard.block_bytes());

  const Result<TransferPlan> too_many = TransferPlan::create(whole.layout(), part.layout());
  ASSERT_FALSE(too_many);
  EXPECT_EQ(too_many.error().code(), ErrorCode::kInvalidArgument);
  EXPECT_NE(too_many.error().message().find("num_layers 3 and 2, num_heads 4 and 2"),
            std::string::npos)
      << too_many.error().message();
}

TEST(TransferPlan, AFormatThatOneSideDoesNotKnowIsRefused) {
  const GuardedPlace known(with_heads(), LayoutKind::kFullyContiguous, StorageKind::kSystem, {},
                           KvBlockLayout::kOperationalNHD);
  const GuardedPlace opaque(with_heads(), LayoutKind::kFullyContiguous);
  for (const auto& [src, dst] : {std::pair(&known, &opaque), std::pair(&opaque, &known)}) {
    const Result<TransferPlan> plan = TransferPlan::create(src->layout(), dst->layout());
    ASSERT_FALSE(plan);
    EXPECT_EQ(plan.error().code(), ErrorCode::kUnsupported);
    EXPECT_NE(plan.error().message().find("operational_nhd"), std::string::npos);
    EXPECT_NE(plan.error().message().find("unknown"), std::string::npos);
  }
  // Saying which it is helps, and may be another one.
  const LayoutView read = LayoutView(opaque.layout()).as(KvBlockLayout::kUniversalPP).value();
  EXPECT_TRUE(TransferPlan::create(known.layout(), read));
  EXPECT_TRUE(TransferPlan::create(read, known.layout()));
}

TEST(TransferPlan, HeadsOfAnotherSizeAreRefused) {
  LayoutConfig config = with_heads();
  config.inner_dim = 5;
  const GuardedPlace src(with_heads(), LayoutKind::kFullyContiguous, StorageKind::kSystem, {},
                         KvBlockLayout::kOperationalNHD);
  const GuardedPlace dst(config, LayoutKind::kFullyContiguous, StorageKind::kSystem, {},
                         KvBlockLayout::kOperationalNHD);
  const Result<TransferPlan> plan = TransferPlan::create(src.layout(), dst.layout());
  ASSERT_FALSE(plan);
  EXPECT_NE(plan.error().message().find("head_dim 2 and 1"), std::string::npos);
}

TEST(TransferPlan, LayersOutsideAreRefused) {
  const GuardedPlace place(kConfig, LayoutKind::kFullyContiguous);
  EXPECT_FALSE(TransferPlan::create(place.layout(), place.layout(), {LayerId{0}, 0}));
  EXPECT_FALSE(TransferPlan::create(place.layout(), place.layout(), {LayerId{2}, 2}));
}

}  // namespace
}  // namespace kvbm
