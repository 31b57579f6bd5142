// SPDX-License-Identifier: Apache-2.0
// Plans of random layouts against a copy element by element.
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/random.hpp"
#include "kvbm/transfer/transfer_plan.hpp"

#include "tests/support/seed.hpp"

namespace kvbm {
namespace {

LayoutConfig random_shape(Random& random) {
  return {.num_blocks = 1,
          .num_layers = static_cast<uint32_t>(random.uniform_between(1, 6)),
          .outer_dim = static_cast<uint32_t>(random.uniform_between(1, 2)),
          .page_size = static_cast<uint32_t>(random.uniform_between(1, 3)),
          .inner_dim = static_cast<uint32_t>(random.uniform_between(1, 4)),
          .dtype_width_bytes = 1U << random.uniform(3),
          .num_heads = std::nullopt,
          .alignment = 1};
}

/// A layout in memory of its own: layers split into random maps, the axes of each in a random order
/// with random gaps.
struct RandomPlace {
  RandomPlace(Random& random, LayoutConfig config) {
    config.num_blocks = static_cast<uint32_t>(random.uniform_between(1, 7));
    struct Part {
      LayerRange layers;
      uint64_t block_stride = 0;
      uint64_t layer_stride = 0;
      uint64_t outer_stride = 0;
      uint64_t base_offset = 0;
      uint64_t bytes = 0;
    };
    std::vector<Part> parts;
    for (uint32_t first = 0; first < config.num_layers;) {
      const auto count =
          static_cast<uint32_t>(random.uniform_between(1, config.num_layers - first));
      Part part;
      part.layers = {LayerId(static_cast<uint16_t>(first)), count};
      std::vector<std::pair<uint64_t*, uint64_t>> axes{
          std::pair(&part.block_stride, uint64_t{config.num_blocks}),
          std::pair(&part.layer_stride, uint64_t{count}),
          std::pair(&part.outer_stride, uint64_t{config.outer_dim})};
      random.shuffle(std::span(axes));
      // Often packed, so that there is something to join.
      const auto gap = [&] { return random.chance(0.6) ? 0 : random.uniform(9); };
      uint64_t span = config.chunk_bytes();
      for (const auto& [stride, entries] : axes) {
        *stride = span + gap();
        span = *stride * entries;
      }
      part.base_offset = gap();
      part.bytes = part.base_offset + span;
      parts.push_back(part);
      first += count;
    }
    random.shuffle(std::span(parts));
    uint64_t total = 0;
    for (const Part& part : parts) total += part.bytes;
    bytes.resize(total);
    std::vector<PageMap> maps;
    uint64_t at = 0;
    for (const Part& part : parts) {
      maps.push_back(PageMap::create({.region = MemoryRegion::of_bytes(
                                          StorageKind::kSystem, bytes.data() + at, part.bytes),
                                      .base_offset = part.base_offset,
                                      .num_blocks = config.num_blocks,
                                      .block_stride = part.block_stride,
                                      .layers = part.layers,
                                      .layer_stride = part.layer_stride,
                                      .outer_dim = config.outer_dim,
                                      .outer_stride = part.outer_stride,
                                      .chunk_bytes = config.chunk_bytes()})
                         .value());
      at += part.bytes;
    }
    layout.emplace(PhysicalLayout::from_page_maps(config, std::move(maps)).value());
  }

  std::vector<std::byte> bytes;
  std::optional<PhysicalLayout> layout;
};

TEST(TransferProperty, APlanCoversExactlyTheAskedBytesOnce) {
  Random random(testing::test_seed(21));
  for (int round = 0; round < 1000; ++round) {
    const LayoutConfig shape = random_shape(random);
    RandomPlace src(random, shape);
    RandomPlace dst(random, shape);
    for (std::byte& byte : src.bytes) byte = static_cast<std::byte>(random.next());
    std::vector<std::byte> expected = dst.bytes;
    std::vector<uint32_t> written(dst.bytes.size());

    // Ids in any order, sources more than once.
    const uint32_t num_dst = dst.layout->config().num_blocks;
    std::vector<uint32_t> to(num_dst);
    std::iota(to.begin(), to.end(), 0U);
    random.shuffle(std::span(to));
    to.resize(random.uniform_between(1, num_dst));
    std::vector<uint32_t> from;
    for (size_t i = 0; i < to.size(); ++i) {
      from.push_back(static_cast<uint32_t>(random.uniform(src.layout->config().num_blocks)));
    }
    const auto first = static_cast<uint32_t>(random.uniform(shape.num_layers));
    const LayerRange layers{
        LayerId(static_cast<uint16_t>(first)),
        static_cast<uint32_t>(random.uniform_between(1, shape.num_layers - first))};

    for (size_t i = 0; i < to.size(); ++i) {
      for (uint32_t layer = layers.begin(); layer < layers.end(); ++layer) {
        for (uint32_t outer = 0; outer < shape.outer_dim; ++outer) {
          const LayerId id(static_cast<uint16_t>(layer));
          const std::byte* in = src.layout->region(BlockId{from[i]}, id, outer).base();
          const auto out = static_cast<size_t>(
              dst.layout->region(BlockId{to[i]}, id, outer).base() - dst.bytes.data());
          for (size_t k = 0; k < shape.chunk_bytes(); ++k) expected[out + k] = in[k];
        }
      }
    }

    const TransferPlan plan = TransferPlan::create(*src.layout, *dst.layout, layers).value();
    EXPECT_EQ(plan.bytes_per_block(), shape.layer_bytes() * layers.count);
    EXPECT_LE(plan.pieces().size(), layers.count * shape.outer_dim);
    uint64_t moved = 0;
    for (const StridedPiece& piece : plan.with_addresses(*src.layout, *dst.layout)) {
      for (size_t i = 0; i < to.size(); ++i) {
        for (uint64_t k = 0; k < piece.axes[0].count; ++k) {
          const std::byte* in =
              piece.src + from[i] * piece.src_block_stride + k * piece.axes[0].src_stride;
          std::byte* out =
              piece.dst + to[i] * piece.dst_block_stride + k * piece.axes[0].dst_stride;
          for (uint64_t byte = 0; byte < piece.bytes; ++byte) {
            out[byte] = in[byte];
            ++written[static_cast<size_t>(out + byte - dst.bytes.data())];
            ++moved;
          }
        }
      }
    }
    ASSERT_EQ(moved, plan.bytes_per_block() * to.size());
    ASSERT_LE(*std::ranges::max_element(written), 1U)
        << "a byte was written twice in round " << round;
    ASSERT_TRUE(dst.bytes == expected) << "round " << round;
  }
}

TEST(TransferProperty, NeighbouringPiecesOfAPlanCouldNotBeOne) {
  Random random(testing::test_seed(22));
  size_t merged = 0;
  for (int round = 0; round < 1000; ++round) {
    const LayoutConfig shape = random_shape(random);
    const RandomPlace src(random, shape);
    const RandomPlace dst(random, shape);
    const TransferPlan plan =
        TransferPlan::create(*src.layout, *dst.layout, shape.all_layers()).value();
    merged += plan.pieces().size() < shape.num_layers * shape.outer_dim;
    for (size_t i = 0; i + 1 < plan.pieces().size(); ++i) {
      const PlanPiece& a = plan.pieces()[i];
      const PlanPiece& b = plan.pieces()[i + 1];
      const bool touch = a.src_map == b.src_map && a.dst_map == b.dst_map &&
                         a.src_offset + (a.count - 1) * a.src_stride + a.bytes == b.src_offset &&
                         a.dst_offset + (a.count - 1) * a.dst_stride + a.bytes == b.dst_offset;
      ASSERT_FALSE(touch) << "round " << round;
    }
    for (const PlanPiece& piece : plan.pieces()) {
      ASSERT_FALSE(piece.count > 1 && piece.src_stride == piece.bytes &&
                   piece.dst_stride == piece.bytes);
    }
  }
  EXPECT_GT(merged, 300U);
}

}  // namespace
}  // namespace kvbm
