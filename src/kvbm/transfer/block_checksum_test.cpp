// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/block_checksum.hpp"

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/transfer/fill.hpp"

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

/// Byte i is i mod 251: the input of BLAKE3's test vectors.
std::vector<std::byte> vector_input(size_t size) {
  std::vector<std::byte> bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i % 251);
  return bytes;
}

struct KnownAnswer {
  uint32_t size;
  std::string_view hash;
};

/// Source: test_vectors/test_vectors.json of https://github.com/BLAKE3-team/BLAKE3, "hash", of
/// which the first 32 bytes.
constexpr KnownAnswer kKnownAnswers[] = {
    {1, "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"},
    {1023, "10108970eeda3eb932baac1428c7a2163b0e924c9a9e25b35bba72b28f70bd11"},
    {1024, "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7"},
    {1025, "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444"},
    {2049, "5f4d72f40d7a5f82b15ca2b2e44b1de3c2ef86c426c95c1af0b6879522563030"},
    {4097, "9b4052b38f1c5fc8b1f9ff7ac7b27cd242487b3d890d15c96a1c25b8aa0fb995"},
    {5121, "628bd2cb2004694adaab7bbd778a25df25c47b9d4155a55f8fbd79f2fe154cff"},
    {8192, "aae792484c8efe4f19e2ca7d371d8c467ffb10748d8a5a1ae579948f718a2a63"},
    {16384, "f875d6646de28985646f34ee13be9a576fd515f76b5b0a26bb324735041ddde4"},
    {31744, "62b6960e1a44bcc1eb1a611a8d6235b6b4b78f32e7abc4fb4c6cdcce94895c47"},
    {102400, "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085"},
};

TEST(BlockChecksum, IsBlake3) {
  for (const KnownAnswer& known : kKnownAnswers) {
    GuardedPlace opaque = place(KvBlockLayout::kUnknown, {.num_blocks = 2,
                                                          .num_layers = 1,
                                                          .outer_dim = 1,
                                                          .page_size = 1,
                                                          .inner_dim = known.size,
                                                          .dtype_width_bytes = 1,
                                                          .alignment = 1});
    opaque.write(opaque.layout().region(BlockId{1}, LayerId{0}, 0), vector_input(known.size));
    EXPECT_EQ(to_string(block_checksum(opaque.layout(), BlockId{1}).value()), known.hash)
        << known.size;
  }
}

TEST(BlockChecksum, IsBlake3OfTheCanonicalOrderWhateverTheFormat) {
  // 102,400 bytes in runs of 8 to 10,240, some of which touch.
  constexpr LayoutConfig kSmallHeads{.num_blocks = 1,
                                     .num_layers = 5,
                                     .outer_dim = 2,
                                     .page_size = 32,
                                     .inner_dim = 160,
                                     .dtype_width_bytes = 2,
                                     .num_heads = 40,
                                     .alignment = 1};
  LayoutConfig large_heads = kSmallHeads;
  large_heads.num_layers = 1;
  large_heads.page_size = 5;
  large_heads.inner_dim = 5120;
  large_heads.num_heads = 1;
  for (const LayoutConfig& config : {kSmallHeads, large_heads}) {
    ASSERT_EQ(config.block_bytes(), 102'400U);
    const std::vector<std::byte> input = vector_input(config.block_bytes());
    for (const KvBlockLayout& format :
         {KvBlockLayout::kOperationalNHD, KvBlockLayout::kOperationalHND,
          KvBlockLayout::kUniversalTP, KvBlockLayout::kUniversalPP}) {
      GuardedPlace known = place(format, config);
      auto next = input.begin();
      for (uint16_t layer = 0; layer < config.num_layers; ++layer) {
        for (uint32_t outer = 0; outer < config.outer_dim; ++outer) {
          for (uint32_t page = 0; page < config.page_size; ++page) {
            for (uint32_t head = 0; head < *config.num_heads; ++head) {
              const auto end = next + static_cast<ptrdiff_t>(config.head_bytes());
              known.write(known.layout().head_region(BlockId{0}, LayerId{layer}, outer, head, page),
                          std::span(next, end));
              next = end;
            }
          }
        }
      }
      EXPECT_EQ(to_string(block_checksum(known.layout(), BlockId{0}).value()),
                kKnownAnswers[10].hash)
          << to_string(format);
    }
  }
}

TEST(BlockChecksum, LayersMayLieInDifferentWays) {
  // Tokens of 128 bytes: in the first and the last layer with gaps between them, else without.
  constexpr LayoutConfig kLayers{.num_blocks = 2,
                                 .num_layers = 3,
                                 .outer_dim = 1,
                                 .page_size = 64,
                                 .inner_dim = 64,
                                 .dtype_width_bytes = 2,
                                 .num_heads = 2,
                                 .alignment = 1};
  std::vector<std::byte> bytes(uint64_t{3} * 2 * 64 * 192);
  std::vector<PageMap> maps;
  for (uint16_t layer = 0; layer < 3; ++layer) {
    const uint64_t token = layer == 1 ? 128 : 192;
    maps.push_back(PageMap::create({.region = MemoryRegion::of_bytes(
                                        StorageKind::kSystem, bytes.data() + layer * 2 * 64 * 192,
                                        uint64_t{2} * 64 * 192),
                                    .num_blocks = 2,
                                    .block_stride = 64 * token,
                                    .layers = {LayerId{layer}, 1},
                                    .outer_dim = 1,
                                    .num_heads = 2,
                                    .head_stride = 64,
                                    .page_size = 64,
                                    .page_stride = token,
                                    .run_bytes = 64})
                       .value());
  }
  const PhysicalLayout tensors = PhysicalLayout::from_page_maps(kLayers, std::move(maps)).value();
  GuardedPlace packed = place(KvBlockLayout::kOperationalNHD, kLayers);
  const std::vector<BlockId> ids = block_ids({0, 1});
  ASSERT_TRUE(fill(tensors, ids, FillPattern::position(8)));
  ASSERT_TRUE(fill(packed.layout(), ids, FillPattern::position(8)));
  EXPECT_EQ(block_checksums(tensors, ids).value(), block_checksums(packed.layout(), ids).value());
}

TEST(BlockChecksum, SourceAndDestinationOfATransformAgree) {
  testing::TransferRig rig;
  GuardedPlace src =
      place(KvBlockLayout::kOperationalNHD, kConfig, LayoutKind::kLayerSeparateBlockSecond);
  GuardedPlace dst = place(KvBlockLayout::kUniversalTP);
  ASSERT_TRUE(fill(src.layout(), kAll, FillPattern::position(5)));
  const std::vector<BlockId> from = block_ids({3, 1});
  const std::vector<BlockId> to = block_ids({0, 2});
  const auto copied = rig.execute(rig.manager->register_layout(src.layout()).value(), from,
                                  rig.manager->register_layout(dst.layout()).value(), to);
  ASSERT_TRUE(copied->wait());
  const auto sent = block_checksums(src.layout(), from).value();
  EXPECT_EQ(block_checksums(dst.layout(), to).value(), sent);
  EXPECT_NE(sent[0], sent[1]);
  EXPECT_EQ(sent[1], block_checksum(src.layout(), BlockId{1}).value());
}

TEST(BlockChecksum, OfALayerRangeIsAboutThoseLayers) {
  GuardedPlace nhd = place(KvBlockLayout::kOperationalNHD);
  const LayoutView view(nhd.layout());
  ASSERT_TRUE(fill(view, kAll, FillPattern::position(6)));
  const auto of = [&](LayerRange layers) {
    return block_checksum(view, BlockId{1}, layers).value();
  };
  const LayerRange first{LayerId{0}, 1};
  const LayerRange rest{LayerId{1}, 2};
  const BlockChecksum of_first = of(first);
  const BlockChecksum of_rest = of(rest);
  EXPECT_NE(of_first, of_rest);
  EXPECT_EQ(of_rest, block_checksum(view.slice(rest).value(), BlockId{1}).value());
  EXPECT_EQ(of(kConfig.all_layers()), block_checksum(view, BlockId{1}).value());
  nhd.layout().head_region(BlockId{1}, LayerId{2}, 1, 2, 1).base()[3] ^= std::byte{1};
  EXPECT_EQ(of(first), of_first);
  EXPECT_NE(of(rest), of_rest);
  for (const LayerRange wrong : {LayerRange{LayerId{2}, 2}, LayerRange{LayerId{0}, 0}}) {
    EXPECT_EQ(block_checksum(view, BlockId{1}, wrong).error().code(), ErrorCode::kInvalidArgument);
  }
}

TEST(BlockChecksum, ShowsEverySwapOfTwoRuns) {
  GuardedPlace tp = place(KvBlockLayout::kUniversalTP);
  ASSERT_TRUE(fill(tp.layout(), kAll, FillPattern::position(7)));
  std::vector<MemoryRegion> runs;
  for (const BlockId block : block_ids({1, 2})) {
    for (uint16_t layer = 0; layer < kConfig.num_layers; ++layer) {
      for (uint32_t i = 0; i < 12; ++i) {
        runs.push_back(tp.layout().head_region(block, LayerId{layer}, i / 6, i / 2 % 3, i % 2));
      }
    }
  }
  const std::vector<BlockId> blocks = block_ids({0, 1, 2});
  const auto right = block_checksums(tp.layout(), blocks).value();
  const auto swap = [&](size_t a, size_t b) {
    std::swap_ranges(runs[a].base(), runs[a].base() + runs[a].size_bytes(), runs[b].base());
  };
  for (size_t a = 0; a < runs.size(); ++a) {
    for (size_t b = a + 1; b < runs.size(); ++b) {
      swap(a, b);
      const auto found = block_checksums(tp.layout(), blocks).value();
      ASSERT_EQ(found[0], right[0]);
      ASSERT_EQ(found[1] != right[1], a < 36) << a << ", " << b;
      ASSERT_EQ(found[2] != right[2], b >= 36) << a << ", " << b;
      swap(a, b);
    }
  }
  EXPECT_EQ(runs.size(), 72U);
  EXPECT_EQ(block_checksums(tp.layout(), blocks).value(), right);
}

TEST(BlockChecksum, WhatTheHostCannotReachIsRefused) {
  const GuardedPlace file(kConfig, LayoutKind::kFileSlots);
  const GuardedPlace device(kConfig, LayoutKind::kFullyContiguous, StorageKind::kDevice);
  for (const GuardedPlace* refused : {&file, &device}) {
    EXPECT_EQ(block_checksum(refused->layout(), BlockId{0}).error().code(),
              ErrorCode::kUnsupported);
    EXPECT_EQ(block_checksums(refused->layout(), kAll).error().code(), ErrorCode::kUnsupported);
  }
  const GuardedPlace pinned(kConfig, LayoutKind::kFullyContiguous, StorageKind::kPinned);
  EXPECT_TRUE(block_checksum(pinned.layout(), BlockId{0}));
  EXPECT_EQ(block_checksum(pinned.layout(), BlockId{4}).error().code(),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(block_checksums(pinned.layout(), block_ids({0, 4})).error().code(),
            ErrorCode::kInvalidArgument);
  EXPECT_TRUE(block_checksums(pinned.layout(), {})->empty());
}

}  // namespace
}  // namespace kvbm
