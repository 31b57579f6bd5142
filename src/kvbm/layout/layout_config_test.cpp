// SPDX-License-Identifier: Apache-2.0
#include "kvbm/layout/layout_config.hpp"

#include <functional>
#include <limits>
#include <string>

#include <gtest/gtest.h>

namespace kvbm {
namespace {

LayoutConfig good_config() {
  return {.num_blocks = 8,
          .num_layers = 4,
          .outer_dim = 2,
          .page_size = 16,
          .inner_dim = 96,
          .dtype_width_bytes = 2,
          .num_heads = 6,
          .alignment = 64};
}

TEST(LayoutConfig, SizesAreProductsOfTheDimensions) {
  const LayoutConfig config = good_config();
  ASSERT_TRUE(config.validate());
  EXPECT_EQ(config.chunk_bytes(), 16U * 96 * 2);
  EXPECT_EQ(config.layer_bytes(), 2U * 16 * 96 * 2);
  EXPECT_EQ(config.block_bytes(), 4U * 2 * 16 * 96 * 2);
}

TEST(LayoutConfig, AnErrorNamesTheFieldThatIsWrong) {
  struct Case {
    std::string field;
    std::function<void(LayoutConfig&)> spoil;
  };
  const Case cases[] = {
      {"num_blocks", [](LayoutConfig& c) { c.num_blocks = 0; }},
      {"num_layers", [](LayoutConfig& c) { c.num_layers = 0; }},
      {"num_layers", [](LayoutConfig& c) { c.num_layers = 65537; }},
      {"outer_dim", [](LayoutConfig& c) { c.outer_dim = 0; }},
      {"outer_dim", [](LayoutConfig& c) { c.outer_dim = 3; }},
      {"page_size", [](LayoutConfig& c) { c.page_size = 0; }},
      {"inner_dim", [](LayoutConfig& c) { c.inner_dim = 0; }},
      {"dtype_width_bytes", [](LayoutConfig& c) { c.dtype_width_bytes = 0; }},
      {"dtype_width_bytes", [](LayoutConfig& c) { c.dtype_width_bytes = 3; }},
      {"dtype_width_bytes", [](LayoutConfig& c) { c.dtype_width_bytes = 16; }},
      {"num_heads", [](LayoutConfig& c) { c.num_heads = 0; }},
      {"num_heads", [](LayoutConfig& c) { c.num_heads = 5; }},
      {"alignment", [](LayoutConfig& c) { c.alignment = 0; }},
      {"alignment", [](LayoutConfig& c) { c.alignment = 96; }},
  };
  for (const Case& broken : cases) {
    LayoutConfig config = good_config();
    broken.spoil(config);
    const Status status = config.validate();
    ASSERT_FALSE(status) << broken.field;
    EXPECT_EQ(status.error().code(), ErrorCode::kInvalidArgument);
    EXPECT_NE(status.error().message().find(broken.field), std::string::npos)
        << status.error().message();
  }
}

TEST(LayoutConfig, SizesBeyond63BitsAreRefused) {
  LayoutConfig config = good_config();
  config.num_heads.reset();
  config.page_size = std::numeric_limits<uint32_t>::max();
  config.inner_dim = std::numeric_limits<uint32_t>::max();
  EXPECT_FALSE(config.validate());  // overflows in the product of a chunk
  config.page_size = 1U << 20;
  config.inner_dim = 1U << 20;
  config.num_blocks = 1U << 19;
  EXPECT_FALSE(config.validate());  // 2^63
  config.num_blocks = (1U << 19) - 1;
  EXPECT_TRUE(config.validate());
  config = good_config();
  config.alignment = uint64_t{1} << 62;
  EXPECT_FALSE(config.validate());  // padding counts
}

TEST(LayoutConfig, BlockShapesDifferInEachFieldThatDescribesABlock) {
  const LayoutConfig src = good_config();
  LayoutConfig dst = src;
  dst.num_blocks = 3;
  dst.alignment = 1;
  dst.num_heads.reset();
  EXPECT_TRUE(check_same_block_shape(src, dst));

  // The same bytes with another meaning are another shape.
  dst.page_size = 32;
  dst.inner_dim = 48;
  const Status status = check_same_block_shape(src, dst);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code(), ErrorCode::kInvalidArgument);
  EXPECT_NE(status.error().message().find("page_size 16 and 32"), std::string::npos);
  EXPECT_NE(status.error().message().find("inner_dim 96 and 48"), std::string::npos);

  dst = src;
  dst.num_heads = 3;
  EXPECT_FALSE(check_same_block_shape(src, dst));
  for (uint32_t LayoutConfig::*field :
       {&LayoutConfig::num_layers, &LayoutConfig::outer_dim, &LayoutConfig::page_size,
        &LayoutConfig::inner_dim, &LayoutConfig::dtype_width_bytes}) {
    dst = src;
    dst.*field += 1;
    EXPECT_FALSE(check_same_block_shape(src, dst));
  }
}

TEST(LayoutConfig, ALayerRangeLiesInsideAndIsNotEmpty) {
  const LayoutConfig config = good_config();
  EXPECT_TRUE(check_layer_range(config, config.all_layers()));
  EXPECT_TRUE(check_layer_range(config, {LayerId{3}, 1}));
  EXPECT_FALSE(check_layer_range(config, {LayerId{0}, 0}));
  EXPECT_FALSE(check_layer_range(config, {LayerId{3}, 2}));
  EXPECT_FALSE(check_layer_range(config, {LayerId{4}, 1}));
  EXPECT_FALSE(check_layer_range(config, {LayerId{1}, std::numeric_limits<uint32_t>::max()}));
}

TEST(ModelLayout, GroupsAreFoundByIdAndCheckedOneByOne) {
  ModelLayout model;
  EXPECT_FALSE(model.validate());
  LayoutConfig latent = good_config();
  latent.outer_dim = 1;
  model.groups = {{GroupId{0}, good_config()}, {GroupId{7}, latent}};
  ASSERT_TRUE(model.validate());
  ASSERT_NE(model.find(GroupId{7}), nullptr);
  EXPECT_EQ(model.find(GroupId{7})->outer_dim, 1U);
  EXPECT_EQ(model.find(GroupId{1}), nullptr);

  model.groups[1].config.page_size = 0;
  const Status status = model.validate();
  ASSERT_FALSE(status);
  EXPECT_NE(status.error().message().find("layer group 7"), std::string::npos);
  model.groups[1] = model.groups[0];
  EXPECT_FALSE(model.validate());
}

}  // namespace
}  // namespace kvbm
