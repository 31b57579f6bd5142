// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/fill.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/guarded_place.hpp"
#include "tests/support/transfer_rig.hpp"

namespace kvbm {
namespace {

using testing::block_ids;
using testing::GuardedPlace;

constexpr LayoutConfig kConfig{.num_blocks = 4,
                               .num_layers = 3,
                               .outer_dim = 2,
                               .page_size = 2,
                               .inner_dim = 6,
                               .dtype_width_bytes = 2,
                               .num_heads = 3,
                               .alignment = 1};
const std::vector<BlockId> kAll = block_ids({0, 1, 2, 3});

GuardedPlace place(const KvBlockLayout& format, const LayoutConfig& config = kConfig,
                   LayoutKind kind = LayoutKind::kFullyContiguous) {
  return GuardedPlace(config, kind, StorageKind::kSystem, {}, format);
}

std::optional<FillMismatch> mismatch(const LayoutView& view, const std::vector<BlockId>& ids,
                                     const FillPattern& pattern) {
  return find_fill_mismatch(view, ids, ids, pattern).value();
}

TEST(Fill, ConstantAndSequentialBytesAreFixed) {
  GuardedPlace nhd = place(KvBlockLayout::kOperationalNHD);
  ASSERT_TRUE(fill(nhd.layout(), block_ids({1}), FillPattern::constant(std::byte{0xab})));
  EXPECT_EQ(nhd.read(BlockId{1}), std::vector<std::byte>(144, std::byte{0xab}));
  EXPECT_TRUE(nhd.untouched(BlockId{0}));

  std::vector<std::byte> expected(144);
  for (size_t i = 0; i < expected.size(); ++i) expected[i] = static_cast<std::byte>(200 + i);
  LayoutConfig config = kConfig;
  config.num_blocks = 201;
  for (const KvBlockLayout& format : {KvBlockLayout::kUnknown, KvBlockLayout::kUniversalTP}) {
    GuardedPlace sequential = place(format, config);
    ASSERT_TRUE(fill(sequential.layout(), block_ids({200}), FillPattern::sequential()));
    EXPECT_EQ(sequential.read(BlockId{200}), expected) << to_string(format);
  }
  EXPECT_TRUE(nhd.guards_hold());
}

TEST(Fill, APatternIsTheSameInEveryFormatAndSlice) {
  for (const FillPattern& pattern : {FillPattern::sequential(), FillPattern::position(7)}) {
    GuardedPlace opaque = place(KvBlockLayout::kUnknown);
    ASSERT_TRUE(fill(opaque.layout(), kAll, pattern));
    for (const KvBlockLayout& format :
         {KvBlockLayout::kUniversalTP, KvBlockLayout::kUniversalPP, KvBlockLayout::kOperationalHND,
          KvBlockLayout::kOperationalNHD}) {
      GuardedPlace other = place(format);
      // In two slices of heads by two of layers.
      const LayoutView view(other.layout());
      for (const LayerRange layers : {LayerRange{LayerId{0}, 1}, LayerRange{LayerId{1}, 2}}) {
        for (const HeadRange heads : {HeadRange{0, 2}, HeadRange{2, 1}}) {
          ASSERT_TRUE(fill(view.slice(layers)->slice(heads).value(), kAll, pattern));
        }
      }
      for (const BlockId id : kAll) EXPECT_EQ(other.read(id), opaque.read(id)) << to_string(format);
      EXPECT_EQ(mismatch(view, kAll, pattern), std::nullopt);
      EXPECT_TRUE(other.guards_hold());
    }
  }
}

TEST(Fill, NoTwoElementsOfThePositionPatternAreAlike) {
  LayoutConfig config = kConfig;
  config.dtype_width_bytes = 8;
  GuardedPlace wide = place(KvBlockLayout::kOperationalNHD, config);
  ASSERT_TRUE(fill(wide.layout(), kAll, FillPattern::position(1)));
  std::map<uint64_t, size_t> seen;
  for (const BlockId id : kAll) {
    const std::vector<std::byte> bytes = wide.read(id);
    for (size_t i = 0; i < bytes.size(); i += 8) {
      uint64_t value = 0;
      std::memcpy(&value, bytes.data() + i, 8);
      ++seen[value];
    }
  }
  EXPECT_EQ(seen.size(), 4U * 3 * 2 * 2 * 6);
  EXPECT_NE(mismatch(wide.layout(), kAll, FillPattern::position(2)), std::nullopt);
}

TEST(Fill, AMismatchIsFoundWhereItIs) {
  GuardedPlace tp = place(KvBlockLayout::kUniversalTP);
  const FillPattern pattern = FillPattern::position(3);
  ASSERT_TRUE(fill(tp.layout(), kAll, pattern));
  std::byte* run = tp.layout().head_region(BlockId{2}, LayerId{1}, 1, 2, 1).base();
  run[3] ^= std::byte{1};
  EXPECT_EQ(mismatch(tp.layout(), kAll, pattern), (FillMismatch{BlockId{2}, LayerId{1}, 1, 2, 1}));
  EXPECT_EQ(mismatch(tp.layout(), block_ids({0, 1, 3}), pattern), std::nullopt);
  run[3] ^= std::byte{1};
  EXPECT_EQ(mismatch(tp.layout(), kAll, pattern), std::nullopt);
  // Keys and values that changed places.
  GuardedPlace nhd =
      place(KvBlockLayout::kOperationalNHD, kConfig, LayoutKind::kLayerSeparateBlockSecond);
  ASSERT_TRUE(fill(nhd.layout(), kAll, pattern));
  const MemoryRegion keys = nhd.layout().region(BlockId{1}, LayerId{2}, 0);
  const MemoryRegion values = nhd.layout().region(BlockId{1}, LayerId{2}, 1);
  std::swap_ranges(keys.base(), keys.base() + keys.size_bytes(), values.base());
  EXPECT_EQ(mismatch(nhd.layout(), kAll, pattern), (FillMismatch{BlockId{1}, LayerId{2}, 0, 0, 0}));
}

TEST(Fill, ACopyHasThePatternOfItsSource) {
  testing::TransferRig rig;
  GuardedPlace src = place(KvBlockLayout::kOperationalNHD);
  GuardedPlace dst = place(KvBlockLayout::kUniversalTP);
  const FillPattern pattern = FillPattern::position(9);
  ASSERT_TRUE(fill(src.layout(), kAll, pattern));
  const auto copied =
      rig.execute(rig.manager->register_layout(src.layout()).value(), block_ids({3, 1}),
                  rig.manager->register_layout(dst.layout()).value(), block_ids({0, 2}));
  ASSERT_TRUE(copied->wait());
  EXPECT_EQ(find_fill_mismatch(dst.layout(), block_ids({0, 2}), block_ids({3, 1}), pattern).value(),
            std::nullopt);
  EXPECT_NE(find_fill_mismatch(dst.layout(), block_ids({0, 2}), block_ids({1, 3}), pattern).value(),
            std::nullopt);
}

TEST(Fill, WhatTheHostCannotReachIsRefused) {
  const FillPattern pattern = FillPattern::sequential();
  const GuardedPlace file(kConfig, LayoutKind::kFileSlots);
  const GuardedPlace device(kConfig, LayoutKind::kFullyContiguous, StorageKind::kDevice);
  for (const GuardedPlace* refused : {&file, &device}) {
    EXPECT_EQ(fill(refused->layout(), kAll, pattern).error().code(), ErrorCode::kUnsupported);
    EXPECT_FALSE(find_fill_mismatch(refused->layout(), kAll, kAll, pattern));
  }
  const GuardedPlace memory = place(KvBlockLayout::kUnknown);
  const Status status = fill(memory.layout(), block_ids({0, 4}), pattern);
  EXPECT_EQ(status.error().code(), ErrorCode::kInvalidArgument);
  EXPECT_TRUE(memory.untouched(BlockId{0}));
  EXPECT_FALSE(find_fill_mismatch(memory.layout(), kAll, block_ids({0}), pattern));
}

}  // namespace
}  // namespace kvbm
