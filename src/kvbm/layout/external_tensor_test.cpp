// SPDX-License-Identifier: Apache-2.0
#include "kvbm/layout/external_tensor.hpp"

#include <array>
#include <functional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/layout/physical_layout.hpp"

namespace kvbm {
namespace {

// 4 blocks of 3 layers, keys and values, 2 tokens of 3 heads of 2 elements of 2 bytes.
constexpr LayoutConfig kConfig{.num_blocks = 4,
                               .num_layers = 3,
                               .outer_dim = 2,
                               .page_size = 2,
                               .inner_dim = 6,
                               .dtype_width_bytes = 2,
                               .num_heads = 3,
                               .alignment = 1};

class ExternalTensorTest : public ::testing::Test {
 protected:
  /// [outer, block, page, head, head_dim] of one layer, packed, as vLLM has it.
  ExternalTensor layer_tensor(size_t layer) {
    return {
        .region = MemoryRegion::of_bytes(StorageKind::kSystem, bytes_.data() + layer * 192, 192),
        .dtype_width_bytes = 2,
        .axes = {TensorAxis::kOuter, TensorAxis::kBlock, TensorAxis::kPage, TensorAxis::kHead,
                 TensorAxis::kHeadDim},
        .shape = {2, 4, 2, 3, 2},
        .strides = {48, 12, 6, 2, 1}};
  }
  std::vector<ExternalTensor> layers() {
    return {layer_tensor(0), layer_tensor(1), layer_tensor(2)};
  }
  static void expect_refused(const Result<std::vector<PageMap>>& maps, const std::string& words) {
    ASSERT_FALSE(maps) << words;
    EXPECT_EQ(maps.error().code(), ErrorCode::kInvalidArgument);
    EXPECT_NE(maps.error().message().find(words), std::string::npos) << maps.error().message();
  }

  std::array<std::byte, 3 * 192> bytes_{};
};

TEST_F(ExternalTensorTest, OneTensorALayerBecomesOneMapEach) {
  const std::vector<PageMap> maps = page_maps_of(kConfig, layers()).value();
  ASSERT_EQ(maps.size(), 3U);
  EXPECT_EQ(maps[2].layers(), (LayerRange{LayerId{2}, 1}));
  const PhysicalLayout layout = PhysicalLayout::from_page_maps(kConfig, maps).value();
  EXPECT_EQ(layout.kv_block_layout(), KvBlockLayout::kOperationalNHD);
  EXPECT_EQ(layout.head_region(BlockId{3}, LayerId{2}, 1, 2, 1).base(),
            bytes_.data() + 2 * 192 + 2 * (48 + 3 * 12 + 6 + 2 * 2));
  EXPECT_EQ(layout.region(BlockId{3}, LayerId{2}, 1).size_bytes(), 24U);
}

TEST_F(ExternalTensorTest, TensorsWithLayersAreNumberedThrough) {
  // Two layers in the first tensor, [block, layer, outer, page, heads x head_dim], and one more.
  const ExternalTensor two{
      .region = MemoryRegion::of_bytes(StorageKind::kSystem, bytes_.data(), 384),
      .dtype_width_bytes = 2,
      .axes = {TensorAxis::kBlock, TensorAxis::kLayer, TensorAxis::kOuter, TensorAxis::kPage,
               TensorAxis::kHeadDim},
      .shape = {4, 2, 2, 2, 6},
      .strides = {48, 24, 12, 6, 1}};
  const std::vector<PageMap> maps =
      page_maps_of(kConfig, std::vector{two, layer_tensor(2)}).value();
  ASSERT_EQ(maps.size(), 2U);
  EXPECT_EQ(maps[0].layers(), (LayerRange{LayerId{0}, 2}));
  EXPECT_EQ(maps[1].layers(), (LayerRange{LayerId{2}, 1}));
  const PhysicalLayout layout = PhysicalLayout::from_page_maps(kConfig, maps).value();
  EXPECT_EQ(layout.kv_block_layout(), KvBlockLayout::kOperationalNHD);
  EXPECT_EQ(layout.head_region(BlockId{1}, LayerId{1}, 1, 2, 1).base(),
            bytes_.data() + 2 * (48 + 24 + 12 + 6 + 2 * 2));
  expect_refused(page_maps_of(kConfig, std::vector{two, two}), "tensor 1: the axis layer has 2");
  expect_refused(page_maps_of(kConfig, std::vector{two, layer_tensor(2), layer_tensor(2)}),
                 "the first 2 have all 3 layers");
}

TEST_F(ExternalTensorTest, PaddingAndTranspositionAreStrides) {
  ExternalTensor padded = layer_tensor(0);
  padded.region = MemoryRegion::of_bytes(StorageKind::kSystem, bytes_.data(), bytes_.size());
  // [outer, block, head, page, head_dim] in memory, heads 5 elements apart.
  padded.strides = {120, 24, 2, 5, 1};
  LayoutConfig one = kConfig;
  one.num_layers = 1;
  const std::vector<PageMap> maps = page_maps_of(one, std::vector{padded}).value();
  EXPECT_EQ(maps[0].strides(), (BlockStrides{0, 240, 10, 4}));
  EXPECT_EQ(PhysicalLayout::from_page_maps(one, maps)->kv_block_layout(),
            KvBlockLayout::kOperationalHND);
  // Unpadded, two tokens of neighbouring heads share a byte.
  padded.strides = {120, 24, 2, 3, 1};
  expect_refused(page_maps_of(one, std::vector{padded}), "tensor 0: page map: runs overlap");
}

TEST_F(ExternalTensorTest, WithoutHeadsAChunkIsOneRun) {
  LayoutConfig config = kConfig;
  config.num_heads = std::nullopt;
  ExternalTensor flat = layer_tensor(0);
  flat.axes = {TensorAxis::kOuter, TensorAxis::kBlock, TensorAxis::kPage, TensorAxis::kHeadDim};
  flat.shape = {2, 4, 2, 6};
  flat.strides = {48, 12, 6, 1};
  ExternalTensor second = flat;
  second.region = layer_tensor(1).region;
  ExternalTensor third = flat;
  third.region = layer_tensor(2).region;
  const std::vector<PageMap> maps = page_maps_of(config, std::vector{flat, second, third}).value();
  EXPECT_EQ(maps[0].run_bytes(), 24U);
  EXPECT_FALSE(PhysicalLayout::from_page_maps(config, maps)->kv_block_layout().is_known());
  flat.strides = {48, 12, 7, 1};
  expect_refused(page_maps_of(config, std::vector{flat}), "tokens of a chunk");
  expect_refused(page_maps_of(config, layers()), "no num_heads");
}

TEST_F(ExternalTensorTest, AxesOfOneEntryMayBeMissing) {
  // MLA: [block, page, head_dim], then without pages either.
  LayoutConfig config = kConfig;
  config.num_layers = 1;
  config.outer_dim = 1;
  config.num_heads = 1;
  ExternalTensor tensor = layer_tensor(0);
  tensor.axes = {TensorAxis::kBlock, TensorAxis::kPage, TensorAxis::kHeadDim};
  tensor.shape = {4, 2, 6};
  tensor.strides = {12, 6, 1};
  EXPECT_EQ(page_maps_of(config, std::vector{tensor})->front().run_bytes(), 12U);
  tensor.axes = {TensorAxis::kBlock, TensorAxis::kHeadDim};
  tensor.shape = {4, 6};
  tensor.strides = {6, 1};
  expect_refused(page_maps_of(config, std::vector{tensor}), "page has 1 entries");
  config.page_size = 1;
  EXPECT_TRUE(page_maps_of(config, std::vector{tensor}));
}

TEST_F(ExternalTensorTest, WhatIsNotTheConfigsIsRefusedByName) {
  using Change = std::function<void(ExternalTensor&)>;
  const std::vector<std::pair<Change, std::string>> changes{
      {[](ExternalTensor& t) { t.shape.pop_back(); }, "5 axes, 4 sizes and 5 strides"},
      {[](ExternalTensor& t) { t.strides.push_back(1); }, "5 axes, 5 sizes and 6 strides"},
      {[](ExternalTensor& t) { t.axes[0] = TensorAxis::kPage; }, "the axis page is there twice"},
      {[](ExternalTensor& t) { t.axes[1] = TensorAxis::kLayer; }, "the axis block is missing"},
      {[](ExternalTensor& t) { t.axes[4] = TensorAxis::kLayer; }, "the axis head_dim is missing"},
      {[](ExternalTensor& t) { t.dtype_width_bytes = 1; }, "its elements have 1 bytes"},
      {[](ExternalTensor& t) { t.shape[0] = 1; }, "the axis outer has 1 entries"},
      {[](ExternalTensor& t) { t.shape[1] = 5; }, "the axis block has 5 entries"},
      {[](ExternalTensor& t) { t.shape[2] = 4; }, "the axis page has 4 entries"},
      {[](ExternalTensor& t) { t.shape[3] = 6; }, "the axis head has 6 entries"},
      {[](ExternalTensor& t) { t.shape[4] = 1; }, "the axis head_dim has 1 entries"},
      {[](ExternalTensor& t) { t.strides[1] = -12; }, "the axis block has the stride -12"},
      {[](ExternalTensor& t) { t.strides[1] = int64_t{1} << 62; }, "2^63 bytes"},
      {[](ExternalTensor& t) { t.strides[4] = 2; }, "not side by side"},
      {[](ExternalTensor& t) { t.region = t.region.slice(0, 191); }, "byte 192 of a region of 191"},
  };
  for (const auto& [change, words] : changes) {
    std::vector<ExternalTensor> tensors = layers();
    change(tensors[1]);
    const Result<std::vector<PageMap>> maps = page_maps_of(kConfig, tensors);
    expect_refused(maps, words);
    ASSERT_FALSE(maps);
    EXPECT_NE(maps.error().message().find("tensor 1"), std::string::npos);
  }
  expect_refused(page_maps_of(kConfig, {}), "at least one tensor");
  EXPECT_TRUE(page_maps_of(kConfig, layers()));
}

}  // namespace
}  // namespace kvbm
