// SPDX-License-Identifier: Apache-2.0
#include "kvbm/layout/layout_view.hpp"

#include <string>

#include <gtest/gtest.h>

#include "kvbm/base/contract.hpp"

#include "tests/support/guarded_place.hpp"

namespace kvbm {
namespace {

using testing::GuardedPlace;

// 2 tokens of 3 heads of 2 elements of 2 bytes: a head of a token has 4 bytes, a chunk 24.
constexpr LayoutConfig kConfig{.num_blocks = 4,
                               .num_layers = 3,
                               .outer_dim = 2,
                               .page_size = 2,
                               .inner_dim = 6,
                               .dtype_width_bytes = 2,
                               .num_heads = 3,
                               .alignment = 1};

GuardedPlace place(LayoutKind kind, const KvBlockLayout& format = KvBlockLayout::kUnknown,
                   const LayoutConfig& config = kConfig) {
  return GuardedPlace(config, kind, StorageKind::kSystem, {}, format);
}

void expect_refused(const Result<LayoutView>& view, const std::string& words) {
  ASSERT_FALSE(view) << words;
  EXPECT_EQ(view.error().code(), ErrorCode::kInvalidArgument);
  EXPECT_NE(view.error().message().find(words), std::string::npos) << view.error().message();
}

TEST(LayoutView, StartsAsAllOfALayout) {
  const GuardedPlace opaque = place(LayoutKind::kFullyContiguous);
  const LayoutView all(opaque.layout());
  EXPECT_EQ(&all.layout(), &opaque.layout());
  EXPECT_EQ(all.layers(), kConfig.all_layers());
  EXPECT_EQ(all.heads(), (HeadRange{0, 1}));
  EXPECT_EQ(all.page_size(), 1U);
  EXPECT_EQ(all.run_bytes(), 24U);
  EXPECT_EQ(all.block_bytes(), kConfig.block_bytes());
  EXPECT_EQ(all.strides(0), (BlockStrides{48, 24, 0, 0}));

  const GuardedPlace known = place(LayoutKind::kFullyContiguous, KvBlockLayout::kUniversalTP);
  const LayoutView heads(known.layout());
  EXPECT_EQ(heads.heads(), (HeadRange{0, 3}));
  EXPECT_EQ(heads.page_size(), 2U);
  EXPECT_EQ(heads.run_bytes(), 4U);
  EXPECT_EQ(heads.block_bytes(), kConfig.block_bytes());
  EXPECT_EQ(heads.strides(0), (BlockStrides{16, 8, 48, 4}));
}

TEST(LayoutView, ASliceIsASmallerCountAndAMovedBase) {
  const GuardedPlace known = place(LayoutKind::kFullyContiguous, KvBlockLayout::kUniversalTP);
  const LayoutView view(known.layout());
  const LayoutView slice = view.slice(LayerRange{LayerId{1}, 2})->slice(HeadRange{2, 1}).value();
  EXPECT_EQ(slice.layers(), (LayerRange{LayerId{1}, 2}));
  EXPECT_EQ(slice.heads(), (HeadRange{2, 1}));
  EXPECT_EQ(slice.block_bytes(), 2U * 2 * 2 * 4);
  EXPECT_EQ(slice.offset(LayerId{1}), 2U * 48 + 16);
  EXPECT_EQ(slice.offset(LayerId{2}), 2U * 48 + 32);
  EXPECT_EQ(slice.strides(0), view.strides(0));

  expect_refused(view.slice(LayerRange{LayerId{2}, 2}), "2 layers from layer 2 on");
  expect_refused(view.slice(HeadRange{2, 2}), "2 heads from head 2 on");
  expect_refused(view.slice(HeadRange{0, 0}), "0 heads");
  expect_refused(view.slice(HeadRange{1, 0xffff'ffff}), "are not inside the 3 heads");
  const GuardedPlace opaque = place(LayoutKind::kFullyContiguous);
  expect_refused(LayoutView(opaque.layout()).slice(HeadRange{0, 1}), "format is unknown");
}

TEST(LayoutView, ReadsTheSameMemoryInAnotherFormat) {
  for (const LayoutKind kind : {LayoutKind::kFullyContiguous, LayoutKind::kFileSlots}) {
    const GuardedPlace opaque = place(kind);
    for (const KvBlockLayout& format :
         {KvBlockLayout::kUniversalTP, KvBlockLayout::kUniversalPP, KvBlockLayout::kOperationalHND,
          KvBlockLayout::kOperationalNHD}) {
      const GuardedPlace native = place(kind, format);
      const LayoutView view = LayoutView(opaque.layout()).as(format).value();
      EXPECT_EQ(view.kv_block_layout(), format);
      EXPECT_EQ(view.strides(0), LayoutView(native.layout()).strides(0)) << to_string(format);
      EXPECT_EQ(view.heads(), kConfig.all_heads());
      EXPECT_EQ(view.block_bytes(), kConfig.block_bytes());
      EXPECT_EQ(view.offset(LayerId{2}), LayoutView(native.layout()).offset(LayerId{2}));
      // And back.
      EXPECT_EQ(LayoutView(native.layout()).as(KvBlockLayout::kUniversalTP)->as(format)->strides(0),
                LayoutView(native.layout()).strides(0));
    }
  }
}

TEST(LayoutView, LayersThatLieApartAreReadInAnOperationalFormat) {
  for (const LayoutKind kind :
       {LayoutKind::kLayerSeparateBlockFirst, LayoutKind::kLayerSeparateBlockSecond}) {
    const GuardedPlace opaque = place(kind);
    for (const KvBlockLayout& format :
         {KvBlockLayout::kOperationalHND, KvBlockLayout::kOperationalNHD}) {
      const GuardedPlace native = place(kind, format);
      const LayoutView view = LayoutView(opaque.layout()).as(format).value();
      for (uint32_t map = 0; map < 3; ++map) {
        const BlockStrides found = view.strides(map);
        const BlockStrides expected = LayoutView(native.layout()).strides(map);
        EXPECT_EQ(found, expected) << to_string(format);
      }
    }
    expect_refused(LayoutView(opaque.layout()).as(KvBlockLayout::kUniversalTP),
                   "its layers lie apart");
  }
}

TEST(LayoutView, WhatCannotBeReadIsRefused) {
  const GuardedPlace known = place(LayoutKind::kFullyContiguous, KvBlockLayout::kUniversalTP);
  expect_refused(LayoutView(known.layout()).as(KvBlockLayout::kUnknown), "unknown format");
  LayoutConfig no_heads = kConfig;
  no_heads.num_heads = std::nullopt;
  const GuardedPlace opaque = place(LayoutKind::kFullyContiguous, {}, no_heads);
  expect_refused(LayoutView(opaque.layout()).as(KvBlockLayout::kUniversalTP), "set num_heads");

  // An engine's tensor with padded heads.
  const MemoryRegion memory = known.layout().page_maps().front().region();
  LayoutConfig one_block = kConfig;
  one_block.num_blocks = 1;
  const PageMap map = PageMap::create({.region = memory,
                                       .num_blocks = 1,
                                       .layers = {LayerId{0}, 3},
                                       .layer_stride = 80,
                                       .outer_dim = 2,
                                       .outer_stride = 40,
                                       .num_heads = 3,
                                       .head_stride = 6,
                                       .page_size = 2,
                                       .page_stride = 20,
                                       .run_bytes = 4})
                          .value();
  const auto tensor = PhysicalLayout::from_page_maps(one_block, {map});
  expect_refused(LayoutView(*tensor).as(KvBlockLayout::kOperationalHND),
                 "make the format operational_nhd, not operational_hnd");
  EXPECT_TRUE(LayoutView(*tensor).as(KvBlockLayout::kOperationalNHD));
  EXPECT_THROW(static_cast<void>(LayoutView(*tensor).strides(1)), ContractViolation);
}

}  // namespace
}  // namespace kvbm
