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

/// What a copy moves of each block, the same on both sides.
struct Shape {
  bool known = true;  ///< formats
  uint32_t num_layers = 1;
  uint32_t outer_dim = 1;
  uint32_t page_size = 1;
  uint32_t num_heads = 1;
  uint32_t head_dim = 1;
  uint32_t width = 1;
};

uint32_t between(Random& random, uint64_t low, uint64_t high) {
  return static_cast<uint32_t>(random.uniform_between(low, high));
}

Shape random_shape(Random& random) {
  return {.known = random.chance(0.7),
          .num_layers = between(random, 1, 5),
          .outer_dim = between(random, 1, 2),
          .page_size = between(random, 1, 3),
          .num_heads = between(random, 1, 4),
          .head_dim = between(random, 1, 3),
          .width = 1U << random.uniform(4)};
}

KvBlockLayout random_format(Random& random) {
  switch (random.uniform(5)) {
    case 0:
      return KvBlockLayout::kUniversalTP;
    case 1:
      return KvBlockLayout::kUniversalPP;
    case 2:
      return KvBlockLayout::kOperationalHND;
    case 3:
      return KvBlockLayout::kOperationalNHD;
    default:
      break;
  }
  BlockAxisOrder order{BlockAxis::kLayer, BlockAxis::kOuter, BlockAxis::kHead, BlockAxis::kPage};
  random.shuffle(std::span<BlockAxis>(order));
  return KvBlockLayout::custom(order).value();
}

/// A layout in memory of its own, of any kind and format, and a view of the slice that is copied.
/// `truth` says where things are: the layout, or one that has by birth the format that the view
/// reads.
struct RandomPlace {
  RandomPlace(Random& random, const Shape& shape) {
    first_layer = between(random, 0, 2);
    first_head = shape.known ? between(random, 0, 2) : 0;
    config = {.num_blocks = between(random, 1, 7),
              .num_layers = first_layer + shape.num_layers + between(random, 0, 1),
              .outer_dim = shape.outer_dim,
              .page_size = shape.page_size,
              .inner_dim = 0,
              .dtype_width_bytes = shape.width,
              .num_heads = first_head + shape.num_heads + (shape.known ? between(random, 0, 2) : 0),
              .alignment = 1};
    config.inner_dim = *config.num_heads * shape.head_dim;
    if (!shape.known) config.num_heads = std::nullopt;
    if (random.chance(0.5)) {
      make_page_maps(random, shape.known);
    } else {
      make_packed(random, shape.known);
    }
    view = view->slice(LayerRange{layer(0), shape.num_layers}).value();
    // Tensors of one head and one token are opaque.
    if (view->kv_block_layout().is_known()) {
      view = view->slice(HeadRange{first_head, shape.num_heads}).value();
    }
  }

  RandomPlace(const RandomPlace&) = delete;  // the view looks at the layout beside it
  RandomPlace& operator=(const RandomPlace&) = delete;

  [[nodiscard]] LayerId layer(uint32_t index) const {
    return LayerId(static_cast<uint16_t>(first_layer + index));
  }

  /// Fully contiguous or layer separate, aligned or not, in its own format or read in another.
  void make_packed(Random& random, bool known) {
    const bool separate = random.chance(0.5);
    const BlockDimension dimension =
        random.chance(0.5) ? BlockDimension::kBlockIsFirst : BlockDimension::kBlockIsSecond;
    const LayoutKind kind = !separate ? LayoutKind::kFullyContiguous
                            : dimension == BlockDimension::kBlockIsFirst
                                ? LayoutKind::kLayerSeparateBlockFirst
                                : LayoutKind::kLayerSeparateBlockSecond;
    const MemoryNeed need = required_memory(config, kind).value();
    bytes.resize(need.num_regions * need.region_bytes);
    std::vector<MemoryRegion> regions;
    for (size_t i = 0; i < need.num_regions; ++i) {
      regions.push_back(MemoryRegion::of_bytes(
          StorageKind::kSystem, bytes.data() + i * need.region_bytes, need.region_bytes));
    }
    random.shuffle(std::span(regions));
    const auto format = [&] {
      KvBlockLayout any = random_format(random);
      while (separate && !any.is_operational()) any = random_format(random);
      return known ? any : KvBlockLayout::kUnknown;
    };
    const auto make = [&](const KvBlockLayout& of) {
      return separate ? PhysicalLayout::layer_separate(config, dimension, regions, of)
                      : PhysicalLayout::fully_contiguous(config, regions.front(), of);
    };
    const bool read_otherwise = known && random.chance(0.3);
    const KvBlockLayout native =
        read_otherwise && random.chance(0.5) ? KvBlockLayout::kUnknown : format();
    layout.emplace(make(native).value());
    view.emplace(*layout);
    if (!read_otherwise) {
      truth.emplace(*layout);
      return;
    }
    const KvBlockLayout other = format();
    truth.emplace(make(other).value());
    view = view->as(other).value();
  }

  /// Layers split into random maps, the axes of each in a random order with random gaps.
  void make_page_maps(Random& random, bool known) {
    std::vector<PageMapSpec> parts;
    std::vector<BlockAxis> order{BlockAxis::kOuter};
    if (known) order = {BlockAxis::kOuter, BlockAxis::kHead, BlockAxis::kPage};
    random.shuffle(std::span(order));  // of all maps: they have one format
    for (uint32_t first = 0; first < config.num_layers;) {
      const uint32_t count = between(random, 1, config.num_layers - first);
      PageMapSpec part{.num_blocks = config.num_blocks,
                       .layers = {LayerId(static_cast<uint16_t>(first)), count},
                       .outer_dim = config.outer_dim,
                       .run_bytes = config.chunk_bytes()};
      if (known) {
        part.num_heads = *config.num_heads;
        part.page_size = config.page_size;
        part.run_bytes = config.head_bytes();
      }
      struct Axis {
        uint64_t* stride;
        uint64_t entries;
      };
      std::vector<Axis> axes;
      for (const BlockAxis axis : order) {
        if (axis == BlockAxis::kOuter) axes.push_back({&part.outer_stride, part.outer_dim});
        if (axis == BlockAxis::kHead) axes.push_back({&part.head_stride, part.num_heads});
        if (axis == BlockAxis::kPage) axes.push_back({&part.page_stride, part.page_size});
      }
      const auto insert = [&](Axis axis) {
        axes.insert(axes.begin() + static_cast<ptrdiff_t>(random.uniform(axes.size() + 1)), axis);
      };
      insert({&part.layer_stride, count});
      insert({&part.block_stride, part.num_blocks});
      // Often packed, so that there is something to join.
      const auto gap = [&] { return random.chance(0.6) ? 0 : random.uniform(9); };
      uint64_t span = part.run_bytes;
      for (const Axis& axis : axes) {
        *axis.stride = span + gap();
        span = *axis.stride * axis.entries;
      }
      part.base_offset = gap();
      part.region = MemoryRegion::of_file({.fd = 0, .alignment = {}}, 0, part.base_offset + span);
      parts.push_back(part);
      first += count;
    }
    random.shuffle(std::span(parts));
    uint64_t total = 0;
    for (const PageMapSpec& part : parts) total += part.region.size_bytes();
    bytes.resize(total);
    std::vector<PageMap> maps;
    uint64_t at = 0;
    for (PageMapSpec& part : parts) {
      const uint64_t size = part.region.size_bytes();
      part.region = MemoryRegion::of_bytes(StorageKind::kSystem, bytes.data() + at, size);
      maps.push_back(PageMap::create(part).value());
      at += size;
    }
    layout.emplace(PhysicalLayout::from_page_maps(config, std::move(maps)).value());
    truth.emplace(*layout);
    view.emplace(*layout);
  }

  /// Calls visit(address, bytes) for each head of each token of the slice, in one order for all
  /// layouts, or for each opaque chunk.
  template <class F>
  void for_each_part(const Shape& shape, uint32_t block, F&& visit) const {
    for (uint32_t index = 0; index < shape.num_layers; ++index) {
      for (uint32_t outer = 0; outer < shape.outer_dim; ++outer) {
        if (!truth->kv_block_layout().is_known()) {
          const MemoryRegion chunk = truth->region(BlockId{block}, layer(index), outer);
          visit(chunk.base(), chunk.size_bytes());
          continue;
        }
        for (uint32_t head = 0; head < shape.num_heads; ++head) {
          for (uint32_t page = 0; page < shape.page_size; ++page) {
            const MemoryRegion part =
                truth->head_region(BlockId{block}, layer(index), outer, first_head + head, page);
            visit(part.base(), part.size_bytes());
          }
        }
      }
    }
  }

  LayoutConfig config;
  uint32_t first_layer = 0;
  uint32_t first_head = 0;
  std::vector<std::byte> bytes;
  std::optional<PhysicalLayout> layout;
  std::optional<PhysicalLayout> truth;
  std::optional<LayoutView> view;
};

/// Calls visit(source, destination) for each step of a piece.
template <class F>
void for_each_step(const StridedPiece& piece, uint32_t from, uint32_t to, F&& visit) {
  const StridedAxes& axes = piece.axes;
  for (uint64_t a = 0; a < axes[0].count; ++a) {
    for (uint64_t b = 0; b < axes[1].count; ++b) {
      for (uint64_t c = 0; c < axes[2].count; ++c) {
        for (uint64_t d = 0; d < axes[3].count; ++d) {
          visit(piece.src + from * piece.src_block_stride + a * axes[0].src_stride +
                    b * axes[1].src_stride + c * axes[2].src_stride + d * axes[3].src_stride,
                piece.dst + to * piece.dst_block_stride + a * axes[0].dst_stride +
                    b * axes[1].dst_stride + c * axes[2].dst_stride + d * axes[3].dst_stride);
        }
      }
    }
  }
}

TEST(TransferProperty, APlanCoversExactlyTheAskedBytesOnce) {
  Random random(testing::test_seed(21));
  size_t transforms = 0;
  for (int round = 0; round < 3000; ++round) {
    const Shape shape = random_shape(random);
    RandomPlace src(random, shape);
    RandomPlace dst(random, shape);
    transforms += src.view->kv_block_layout().requires_transform(dst.view->kv_block_layout());
    for (std::byte& byte : src.bytes) byte = static_cast<std::byte>(random.next());
    std::vector<std::byte> expected = dst.bytes;
    std::vector<uint32_t> written(dst.bytes.size());

    // Ids in any order, sources more than once.
    const uint32_t num_dst = dst.config.num_blocks;
    std::vector<uint32_t> to(num_dst);
    std::iota(to.begin(), to.end(), 0U);
    random.shuffle(std::span(to));
    to.resize(random.uniform_between(1, num_dst));
    std::vector<uint32_t> from;
    for (size_t i = 0; i < to.size(); ++i) {
      from.push_back(static_cast<uint32_t>(random.uniform(src.config.num_blocks)));
    }

    uint64_t asked = 0;
    for (size_t i = 0; i < to.size(); ++i) {
      std::vector<std::byte> block;
      src.for_each_part(shape, from[i], [&](const std::byte* part, uint64_t size) {
        block.insert(block.end(), part, part + size);
      });
      asked += block.size();
      auto next = block.begin();
      dst.for_each_part(shape, to[i], [&](const std::byte* part, uint64_t size) {
        std::copy_n(next, size, expected.begin() + (part - dst.bytes.data()));
        next += static_cast<ptrdiff_t>(size);
      });
    }

    const Result<TransferPlan> plan = TransferPlan::create(*src.view, *dst.view);
    ASSERT_TRUE(plan) << plan.error().message();
    EXPECT_EQ(plan->bytes_per_block() * to.size(), asked);
    EXPECT_LE(plan->pieces().size(), shape.num_layers);
    uint64_t moved = 0;
    for (const StridedPiece& piece : plan->with_addresses(*src.layout, *dst.layout)) {
      for (size_t i = 0; i < to.size(); ++i) {
        for_each_step(piece, from[i], to[i], [&](const std::byte* in, std::byte* out) {
          for (uint64_t byte = 0; byte < piece.bytes; ++byte) {
            out[byte] = in[byte];
            ++written[static_cast<size_t>(out + byte - dst.bytes.data())];
            ++moved;
          }
        });
      }
    }
    ASSERT_EQ(moved, asked);
    ASSERT_LE(*std::ranges::max_element(written), 1U)
        << "a byte was written twice in round " << round;
    ASSERT_TRUE(dst.bytes == expected)
        << "round " << round << ": from " << to_string(src.view->kv_block_layout()) << " to "
        << to_string(dst.view->kv_block_layout());
  }
  EXPECT_GT(transforms, 1000U);
}

TEST(TransferProperty, NoTwoAxesOfAPlanCouldBeOne) {
  Random random(testing::test_seed(22));
  size_t folded = 0;
  for (int round = 0; round < 3000; ++round) {
    const Shape shape = random_shape(random);
    const RandomPlace src(random, shape);
    const RandomPlace dst(random, shape);
    const TransferPlan plan = TransferPlan::create(*src.view, *dst.view).value();
    std::vector<std::pair<uint32_t, uint32_t>> maps;
    for (const PlanPiece& piece : plan.pieces()) {
      const std::pair between_maps(piece.src_map, piece.dst_map);
      ASSERT_EQ(std::ranges::count(maps, between_maps), 0) << "round " << round;
      maps.push_back(between_maps);
      folded += piece.bytes > src.view->run_bytes();
      for (const StridedAxis& a : piece.axes) {
        if (a.count == 1) continue;
        ASSERT_FALSE(a.src_stride == piece.bytes && a.dst_stride == piece.bytes);
        for (const StridedAxis& b : piece.axes) {
          ASSERT_FALSE(b.count > 1 && a.src_stride == b.src_stride * b.count &&
                       a.dst_stride == b.dst_stride * b.count)
              << "round " << round;
        }
      }
    }
  }
  EXPECT_GT(folded, 1000U);
}

}  // namespace
}  // namespace kvbm
