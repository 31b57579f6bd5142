// SPDX-License-Identifier: Apache-2.0
#include "kvbm/layout/page_map.hpp"

#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/contract.hpp"

namespace kvbm {
namespace {

constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();

class PageMapTest : public ::testing::Test {
 protected:
  // 3 blocks x 2 layers x 2 outer of 10 bytes, packed: 120 bytes from byte 8 on.
  PageMapSpec packed() {
    return {.region = MemoryRegion::of_bytes(StorageKind::kSystem, bytes_.data(), 128),
            .base_offset = 8,
            .num_blocks = 3,
            .block_stride = 40,
            .layers = {LayerId{5}, 2},
            .layer_stride = 20,
            .outer_dim = 2,
            .outer_stride = 10,
            .run_bytes = 10};
  }

  void expect_refused(const PageMapSpec& spec, const std::string& word) {
    const Result<PageMap> map = PageMap::create(spec);
    ASSERT_FALSE(map) << word;
    EXPECT_EQ(map.error().code(), ErrorCode::kInvalidArgument);
    EXPECT_NE(map.error().message().find(word), std::string::npos) << map.error().message();
  }

  std::vector<std::byte> bytes_ = std::vector<std::byte>(128);
};

TEST_F(PageMapTest, AChunkIsFoundByItsStrides) {
  const PageMap map = PageMap::create(packed()).value();
  EXPECT_EQ(map.offset(BlockId{0}, LayerId{5}, 0), 8U);
  EXPECT_EQ(map.offset(BlockId{2}, LayerId{6}, 1), 8U + 2 * 40 + 20 + 10);
  const MemoryRegion chunk = map.chunk(BlockId{1}, LayerId{5}, 1);
  EXPECT_EQ(chunk.base(), bytes_.data() + 8 + 40 + 10);
  EXPECT_EQ(chunk.size_bytes(), 10U);
  EXPECT_EQ(map.first_byte(), 8U);
  EXPECT_EQ(map.end_byte(), 128U);
}

TEST_F(PageMapTest, IndexesOutsideAreABrokenContract) {
  const PageMap map = PageMap::create(packed()).value();
  EXPECT_THROW(static_cast<void>(map.offset(BlockId{3}, LayerId{5}, 0)), ContractViolation);
  EXPECT_THROW(static_cast<void>(map.offset(BlockId{0}, LayerId{4}, 0)), ContractViolation);
  EXPECT_THROW(static_cast<void>(map.offset(BlockId{0}, LayerId{7}, 0)), ContractViolation);
  EXPECT_THROW(static_cast<void>(map.offset(BlockId{0}, LayerId{5}, 2)), ContractViolation);
}

TEST_F(PageMapTest, TheLastChunkMayEndWithTheRegionAndNotAfterIt) {
  PageMapSpec spec = packed();
  EXPECT_TRUE(PageMap::create(spec));
  spec.region = spec.region.slice(0, 127);
  expect_refused(spec, "byte 128 of a region of 127");
  spec = packed();
  spec.num_blocks = 4;
  expect_refused(spec, "ends at byte 168");
}

TEST_F(PageMapTest, StridesThatOverflowAreRefused) {
  for (uint64_t PageMapSpec::*field :
       {&PageMapSpec::base_offset, &PageMapSpec::block_stride, &PageMapSpec::layer_stride,
        &PageMapSpec::outer_stride, &PageMapSpec::head_stride, &PageMapSpec::page_stride,
        &PageMapSpec::run_bytes}) {
    PageMapSpec spec = packed();
    spec.num_heads = spec.page_size = 2;
    spec.*field = kMax - 3;
    expect_refused(spec, "2^63");
  }
  PageMapSpec spec = packed();
  spec.num_blocks = std::numeric_limits<uint32_t>::max();
  spec.block_stride = kMax / 2;
  expect_refused(spec, "2^63");
}

TEST_F(PageMapTest, EmptyAxesAreRefused) {
  PageMapSpec spec = packed();
  spec.num_blocks = 0;
  expect_refused(spec, "num_blocks");
  spec = packed();
  spec.layers.count = 0;
  expect_refused(spec, "no layer");
  spec = packed();
  spec.layers = {LayerId{65535}, 2};
  expect_refused(spec, "65536");
  // 1 and 2^32 - 1: the end wraps in 32 bits.
  spec.layers = {LayerId{1}, std::numeric_limits<uint32_t>::max()};
  spec.layer_stride = 0;
  expect_refused(spec, "layer 4294967295 is beyond");
  for (const uint32_t outer_dim : {0U, 3U}) {
    spec = packed();
    spec.outer_dim = outer_dim;
    expect_refused(spec, "outer_dim");
  }
  spec = packed();
  spec.run_bytes = 0;
  expect_refused(spec, "run_bytes");
}

TEST_F(PageMapTest, ChunksThatOverlapAreRefusedOnEveryAxis) {
  PageMapSpec spec = packed();
  spec.block_stride = 39;
  expect_refused(spec, "overlap");
  spec = packed();
  spec.block_stride = 0;
  expect_refused(spec, "overlap");
  spec = packed();
  spec.layer_stride = 19;
  expect_refused(spec, "overlap");
  spec = packed();
  spec.outer_stride = 9;
  expect_refused(spec, "overlap");
  spec = packed();
  spec.num_blocks = 2;
  spec.outer_stride = 40;  // the values of block 0 on the keys of block 1
  expect_refused(spec, "overlap");
}

TEST_F(PageMapTest, HeadsAndPagesHaveStridesOfTheirOwn) {
  // 1 block x 2 layers x 2 heads x 3 pages of 4 bytes, [layer, page, head] with a gap behind heads.
  PageMapSpec spec{.region = MemoryRegion::of_bytes(StorageKind::kSystem, bytes_.data(), 128),
                   .base_offset = 4,
                   .num_blocks = 1,
                   .layers = {LayerId{0}, 2},
                   .layer_stride = 40,
                   .outer_dim = 1,
                   .num_heads = 2,
                   .head_stride = 4,
                   .page_size = 3,
                   .page_stride = 12,
                   .run_bytes = 4};
  const PageMap map = PageMap::create(spec).value();
  EXPECT_EQ(map.offset(BlockId{0}, LayerId{1}, 0, 1, 2), 4U + 40 + 4 + 24);
  EXPECT_EQ(map.run(BlockId{0}, LayerId{1}, 0, 1, 2).base(), bytes_.data() + 72);
  EXPECT_EQ(map.run(BlockId{0}, LayerId{1}, 0, 1, 2).size_bytes(), 4U);
  EXPECT_EQ(map.chunk_bytes(), 24U);
  EXPECT_EQ(map.end_byte(), 76U);
  EXPECT_THROW(static_cast<void>(map.offset(BlockId{0}, LayerId{0}, 0, 2, 0)), ContractViolation);
  EXPECT_THROW(static_cast<void>(map.offset(BlockId{0}, LayerId{0}, 0, 0, 3)), ContractViolation);
  EXPECT_FALSE(map.chunks_are_contiguous());
  EXPECT_THROW(static_cast<void>(map.chunk(BlockId{0}, LayerId{0}, 0)), ContractViolation);

  spec.page_stride = 8;
  const PageMap packed = PageMap::create(spec).value();
  EXPECT_TRUE(packed.chunks_are_contiguous());
  EXPECT_EQ(packed.chunk(BlockId{0}, LayerId{1}, 0).base(), bytes_.data() + 44);
  spec.page_stride = 4;
  expect_refused(spec, "overlap");
  spec.head_stride = 12;
  EXPECT_TRUE(PageMap::create(spec).value().chunks_are_contiguous());
  spec.head_stride = 11;
  expect_refused(spec, "overlap");
  spec.num_heads = 0;
  expect_refused(spec, "num_heads");
  spec.num_heads = 2;
  spec.page_size = 0;
  expect_refused(spec, "page_size");
}

TEST_F(PageMapTest, LargeMapsAreProvedAtOnceAndHopelessOnesAreRefused) {
  // A million blocks of 80 layers: nothing is visited block by block.
  const MemoryRegion far_away =
      MemoryRegion::of_bytes(StorageKind::kDevice, reinterpret_cast<std::byte*>(1), 1ULL << 62);
  PageMapSpec spec{.region = far_away,
                   .num_blocks = 1'000'000,
                   .block_stride = 80ULL * 2 * 256 * 64 * 256,
                   .layers = {LayerId{0}, 80},
                   .layer_stride = 2ULL * 256 * 64 * 256,
                   .outer_dim = 2,
                   .outer_stride = 256ULL * 64 * 256,
                   .num_heads = 64,
                   .head_stride = 256,
                   .page_size = 256,
                   .page_stride = 64 * 256,
                   .run_bytes = 256};
  EXPECT_TRUE(PageMap::create(spec));
  spec.page_stride -= 1;
  expect_refused(spec, "overlap");
  // Three long axes with nearly one stride: no run meets another, as 2003 and 2011 are primes above
  // all counts.
  spec = {.region = far_away,
          .num_blocks = 2000,
          .block_stride = 1'000'000'000,
          .layers = {LayerId{0}, 1},
          .layer_stride = 0,
          .outer_dim = 1,
          .outer_stride = 0,
          .num_heads = 2000,
          .head_stride = 1'000'002'003,
          .page_size = 2000,
          .page_stride = 1'000'002'011,
          .run_bytes = 1};
  const Result<PageMap> map = PageMap::create(spec);
  ASSERT_FALSE(map);
  EXPECT_EQ(map.error().code(), ErrorCode::kUnsupported);
  spec.num_blocks = 100;
  spec.page_size = 100;
  EXPECT_TRUE(PageMap::create(spec));
}

TEST_F(PageMapTest, AxesMayBeInAnyOrderAndPadded) {
  PageMapSpec spec = packed();
  // [outer, layer, block], as an engine may have it.
  spec.block_stride = 10;
  spec.layer_stride = 30;
  spec.outer_stride = 60;
  EXPECT_TRUE(PageMap::create(spec));
  // Blocks 0, 20, 40 and layers 30 apart: interleaved, and still nothing overlaps.
  spec = packed();
  spec.outer_dim = 1;
  spec.block_stride = 20;
  spec.layer_stride = 30;
  EXPECT_TRUE(PageMap::create(spec));
  spec.layer_stride = 35;
  expect_refused(spec, "overlap");
}

TEST_F(PageMapTest, TheStrideOfAnAxisWithOneEntryIsNotUsed) {
  PageMapSpec spec = packed();
  spec.num_blocks = 1;
  spec.block_stride = kMax;
  spec.layers.count = 1;
  spec.layer_stride = 1;
  spec.outer_dim = 1;
  spec.outer_stride = 3;
  const Result<PageMap> map = PageMap::create(spec);
  ASSERT_TRUE(map);
  EXPECT_EQ(map->block_stride(), 0U);
  EXPECT_EQ(map->end_byte(), 18U);
}

}  // namespace
}  // namespace kvbm
