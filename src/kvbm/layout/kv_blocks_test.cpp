// SPDX-License-Identifier: Apache-2.0
#include "kvbm/layout/kv_blocks.hpp"

#include <string>

#include <gtest/gtest.h>

#include "kvbm/base/contract.hpp"
#include "kvbm/layout/layout_builder.hpp"

namespace kvbm {
namespace {

constexpr LayoutConfig kConfig{.num_blocks = 4,
                               .num_layers = 2,
                               .outer_dim = 2,
                               .page_size = 2,
                               .inner_dim = 6,
                               .dtype_width_bytes = 2,
                               .num_heads = 3,
                               .alignment = 1};

std::shared_ptr<const PhysicalLayout> whole(const KvBlockLayout& format) {
  return std::make_shared<const PhysicalLayout>(PhysicalLayout::builder("agent")
                                                    .with_config(kConfig)
                                                    .fully_contiguous()
                                                    .with_block_layout(format)
                                                    .allocate_system()
                                                    .build()
                                                    .value());
}

TEST(KvBlocks, HaveTheFormatOfTheirLayoutOrAnother) {
  const auto layout = whole(KvBlockLayout::kOperationalNHD);
  const KvBlocks plain = KvBlocks::create(layout, {BlockId{3}, BlockId{0}}).value();
  EXPECT_EQ(plain.layout(), layout);
  EXPECT_EQ(plain.ids().size(), 2U);
  EXPECT_EQ(plain.ids()[0], BlockId{3});
  EXPECT_FALSE(plain.has_override());
  EXPECT_EQ(plain.kv_block_layout(), KvBlockLayout::kOperationalNHD);
  EXPECT_EQ(plain.view().strides(0), LayoutView(*layout).strides(0));

  const KvBlocks other =
      KvBlocks::create(layout, {BlockId{1}}, KvBlockLayout::kUniversalTP).value();
  EXPECT_TRUE(other.has_override());
  EXPECT_EQ(other.kv_block_layout(), KvBlockLayout::kUniversalTP);
  EXPECT_EQ(other.view().strides(0), LayoutView(*whole(KvBlockLayout::kUniversalTP)).strides(0));
  EXPECT_TRUE(plain.requires_transform_to(other));
  EXPECT_TRUE(other.requires_transform_to(plain));
  EXPECT_FALSE(plain.requires_transform_to(plain));
}

TEST(KvBlocks, AnOverrideOfTheLayoutsOwnOrderIsNone) {
  const auto layout = whole(KvBlockLayout::kOperationalNHD);
  for (const KvBlockLayout& same :
       {KvBlockLayout::kOperationalNHD,
        KvBlockLayout::custom(KvBlockLayout::kOperationalNHD.order()).value()}) {
    const KvBlocks blocks = KvBlocks::create(layout, {}, same).value();
    EXPECT_FALSE(blocks.has_override());
    EXPECT_EQ(blocks.kv_block_layout(), KvBlockLayout::kOperationalNHD);
  }
  EXPECT_TRUE(KvBlocks::create(whole(KvBlockLayout::kUnknown), {}, KvBlockLayout::kOperationalNHD)
                  ->has_override());
}

TEST(KvBlocks, AnIdOutOfRangeIsRefusedWithTheNumberOfBlocks) {
  const Result<KvBlocks> blocks =
      KvBlocks::create(whole(KvBlockLayout::kUnknown), {BlockId{1}, BlockId{4}});
  ASSERT_FALSE(blocks);
  EXPECT_EQ(blocks.error().code(), ErrorCode::kInvalidArgument);
  EXPECT_NE(blocks.error().message().find("block 4 of a layout of 4 blocks"), std::string::npos);
  EXPECT_THROW(static_cast<void>(KvBlocks::create(nullptr, {})), ContractViolation);
}

TEST(KvBlocks, LayersThatLieApartTakeAnOperationalOverride) {
  const auto separate =
      std::make_shared<const PhysicalLayout>(PhysicalLayout::builder("agent")
                                                 .with_config(kConfig)
                                                 .layer_separate(BlockDimension::kBlockIsSecond)
                                                 .allocate_system()
                                                 .build()
                                                 .value());
  EXPECT_TRUE(KvBlocks::create(separate, {}, KvBlockLayout::kOperationalHND));
  const Result<KvBlocks> universal = KvBlocks::create(separate, {}, KvBlockLayout::kUniversalPP);
  ASSERT_FALSE(universal);
  EXPECT_EQ(universal.error().code(), ErrorCode::kInvalidArgument);
  EXPECT_FALSE(KvBlocks::create(separate, {}, KvBlockLayout::kUnknown));
}

TEST(KvBlocks, KeepTheMemoryOfTheirLayoutAlive) {
  const KvBlocks blocks =
      KvBlocks::create(whole(KvBlockLayout::kOperationalNHD), {BlockId{2}}).value();
  std::byte* last = blocks.layout()->region(BlockId{3}, LayerId{1}, 1).base() + 23;
  *last = std::byte{7};
  EXPECT_EQ(*last, std::byte{7});
}

}  // namespace
}  // namespace kvbm
