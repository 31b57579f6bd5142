// SPDX-License-Identifier: Apache-2.0
// Random transfers between all places that a processor has, direct and staged, here and with
// another worker, against a copy element by element.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/random.hpp"
#include "kvbm/transfer/fill.hpp"
#include "kvbm/transfer/transfer_manager.hpp"

#include "tests/support/guarded_place.hpp"
#include "tests/support/out_of_reach_device.hpp"
#include "tests/support/pinner_double.hpp"
#include "tests/support/seed.hpp"
#include "tests/support/transfer_rig.hpp"

namespace kvbm {
namespace {

using testing::GuardedPlace;
using testing::TransferRig;

uint32_t between(Random& random, uint64_t low, uint64_t high) {
  return static_cast<uint32_t>(random.uniform_between(low, high));
}

/// What both sides have in common.
struct Shape {
  bool known = true;
  uint32_t num_layers = 1;
  uint32_t outer_dim = 1;
  uint32_t page_size = 1;
  uint32_t num_heads = 1;  ///< that are copied
  uint32_t head_dim = 1;
  uint32_t width = 1;
  LayerRange layers = {};
};

Shape random_shape(Random& random) {
  Shape shape{.known = random.chance(0.8),
              .num_layers = between(random, 1, 4),
              .outer_dim = between(random, 1, 2),
              .page_size = between(random, 1, 3),
              .num_heads = between(random, 1, 3),
              .head_dim = between(random, 1, 3),
              .width = 1U << random.uniform(4)};
  shape.layers = {LayerId{0}, shape.num_layers};
  if (random.chance(0.3)) {
    const uint32_t first = between(random, 0, shape.num_layers - 1);
    shape.layers = {LayerId(static_cast<uint16_t>(first)),
                    between(random, 1, shape.num_layers - first)};
  }
  return shape;
}

KvBlockLayout random_format(Random& random, bool operational) {
  for (;;) {
    BlockAxisOrder order{BlockAxis::kLayer, BlockAxis::kOuter, BlockAxis::kHead, BlockAxis::kPage};
    random.shuffle(std::span<BlockAxis>(order));
    const KvBlockLayout named[] = {KvBlockLayout::kUniversalTP, KvBlockLayout::kUniversalPP,
                                   KvBlockLayout::kOperationalHND, KvBlockLayout::kOperationalNHD,
                                   KvBlockLayout::custom(order).value()};
    const KvBlockLayout format = named[random.uniform(5)];
    if (!operational || format.is_operational()) return format;
  }
}

/// A place of a random kind, format and storage. What is registered may have another format than
/// `truth`; then an option says which it is.
struct RandomSide {
  RandomSide(Random& random, const Shape& shape, bool takes_parts) {
    constexpr LayoutKind kKinds[] = {LayoutKind::kFullyContiguous,
                                     LayoutKind::kLayerSeparateBlockFirst,
                                     LayoutKind::kLayerSeparateBlockSecond, LayoutKind::kFileSlots};
    const LayoutKind kind = kKinds[random.uniform(4)];
    constexpr StorageKind kStorage[] = {StorageKind::kSystem, StorageKind::kPinned,
                                        StorageKind::kDevice};
    const StorageKind storage = kStorage[random.uniform(3)];
    const bool whole = kind == LayoutKind::kFileSlots && !takes_parts;
    const bool apart = kind == LayoutKind::kLayerSeparateBlockFirst ||
                       kind == LayoutKind::kLayerSeparateBlockSecond;
    LayoutConfig config{.num_blocks = between(random, 3, 9),
                        .num_layers = shape.num_layers,
                        .outer_dim = shape.outer_dim,
                        .page_size = shape.page_size,
                        .inner_dim = shape.num_heads * shape.head_dim,
                        .dtype_width_bytes = shape.width,
                        .num_heads = std::nullopt,
                        .alignment = 1};
    KvBlockLayout format;
    if (shape.known) {
      first_head = whole ? 0 : between(random, 0, 2);
      config.num_heads = first_head + shape.num_heads + (whole ? 0 : between(random, 0, 2));
      config.inner_dim = *config.num_heads * shape.head_dim;
      format = random_format(random, apart);
    }
    place = std::make_unique<GuardedPlace>(config, kind, storage, SlotOptions{}, format);
    registered = place->layout();
    if (shape.known && random.chance(0.3)) {
      register_otherwise(random.chance(0.5) ? KvBlockLayout::kUnknown
                                            : random_format(random, apart));
      named = format;
    }
    if (shape.known && (first_head > 0 || *config.num_heads > shape.num_heads)) {
      heads = HeadRange{first_head, shape.num_heads};
    }
  }

  void register_otherwise(const KvBlockLayout& format) {
    std::vector<MemoryRegion> regions;
    for (const PageMap& map : place->layout().page_maps()) regions.push_back(map.region());
    switch (place->layout().kind()) {
      case LayoutKind::kFullyContiguous:
        registered =
            PhysicalLayout::fully_contiguous(place->config(), regions.front(), format).value();
        return;
      case LayoutKind::kFileSlots:
        registered =
            PhysicalLayout::file_slots(place->config(), regions.front(), {}, format).value();
        return;
      default:
        registered = PhysicalLayout::layer_separate(
                         place->config(),
                         place->layout().kind() == LayoutKind::kLayerSeparateBlockFirst
                             ? BlockDimension::kBlockIsFirst
                             : BlockDimension::kBlockIsSecond,
                         regions, format)
                         .value();
    }
  }

  [[nodiscard]] bool is_file() const { return place->is_file(); }
  /// Whether it is memory that a remote agent without RDMA reaches.
  [[nodiscard]] bool can_be_far() const {
    return !is_file() && place->layout().storage_kind() != StorageKind::kDevice;
  }

  /// One head of one token of what is copied, or an opaque chunk.
  [[nodiscard]] MemoryRegion part(BlockId block, LayerId layer, uint32_t outer, uint32_t head,
                                  uint32_t page) const {
    const PhysicalLayout& truth = place->layout();
    return truth.kv_block_layout().is_known()
               ? truth.head_region(block, layer, outer, first_head + head, page)
               : truth.region(block, layer, outer);
  }

  std::unique_ptr<GuardedPlace> place;  ///< its layout says where things are
  std::optional<PhysicalLayout> registered;
  std::optional<KvBlockLayout> named;
  std::optional<HeadRange> heads;
  uint32_t first_head = 0;
};

std::vector<BlockId> some_blocks(Random& random, uint32_t num_blocks, size_t count) {
  std::vector<uint32_t> numbers(num_blocks);
  std::iota(numbers.begin(), numbers.end(), 0U);
  random.shuffle(std::span(numbers));
  numbers.resize(count);
  return testing::block_ids(numbers);
}

/// Bytes that nobody else has, in every block; a file gets them with headers.
void fill_source(TransferRig& rig, RandomSide& side, std::span<const BlockId> ids,
                 std::span<const SlotTag> tags, uint64_t seed) {
  if (!side.is_file()) {
    for (const BlockId id : ids) side.place->fill(id, seed + id.value());
    return;
  }
  GuardedPlace memory(side.place->config(), LayoutKind::kFullyContiguous, StorageKind::kSystem, {},
                      side.place->layout().kv_block_layout());
  ASSERT_TRUE(fill(memory.layout(), ids, FillPattern::position(seed)));
  const LayoutHandle from = rig.manager->register_layout(memory.layout()).value();
  const LayoutHandle to = rig.manager->register_layout(side.place->layout()).value();
  const auto written = rig.execute(from, ids, to, ids, {.tags = tags});
  ASSERT_TRUE(written) << written.error().describe();
  ASSERT_TRUE(written->wait());
  ASSERT_TRUE(rig.manager->unregister_layout(from));
  ASSERT_TRUE(rig.manager->unregister_layout(to));
}

/// Which side is a layout of another worker.
enum class Far : uint8_t { kNone, kSource, kDestination };

/// The layout as one that the rig's manager may name; with `owner`, one of that worker.
LayoutHandle register_side(TransferRig& rig, TransferRig* owner, const RandomSide& side) {
  if (owner == nullptr) return rig.manager->register_layout(*side.registered).value();
  const LayoutHandle handle = owner->manager->register_layout(*side.registered).value();
  EXPECT_TRUE(owner->manager->build_logical_descriptor(handle, LogicalLayoutHandle::kG1));
  EXPECT_TRUE(rig.manager->import_metadata(owner->manager->export_metadata().value()));
  return handle;
}

void unregister_side(TransferRig& rig, TransferRig* owner, LayoutHandle handle) {
  if (owner != nullptr) {
    ASSERT_TRUE(rig.manager->remove_import(handle.worker));
  }
  const auto left = (owner ? owner : &rig)->manager->unregister_layout(handle);
  ASSERT_TRUE(left);
  ASSERT_TRUE(left->wait());
}

/// The slots of files hold what the blocks of memory do; everything else of a block of memory is as
/// it was.
void check_one(TransferRig& rig, TransferRig* other, Random& random, size_t& staged,
               size_t& direct) {
  const Shape shape = random_shape(random);
  const bool all_layers = shape.layers.count == shape.num_layers;
  RandomSide src(random, shape, true);
  RandomSide dst(random, shape, false);
  const bool whole_src = all_layers && !src.heads;
  if (dst.is_file() && !all_layers) return;
  const auto format_of = [](const RandomSide& side) {
    return side.place->layout().kv_block_layout();
  };
  if (src.is_file() && dst.is_file() &&
      (!whole_src || format_of(src).requires_transform(format_of(dst)))) {
    return;
  }
  Far far = Far::kNone;
  if (other != nullptr) far = random.chance(0.5) ? Far::kSource : Far::kDestination;
  if (far != Far::kNone) {
    const RandomSide& there = far == Far::kSource ? src : dst;
    const RandomSide& here = far == Far::kSource ? dst : src;
    const bool same = whole_src && !dst.heads && !format_of(src).requires_transform(format_of(dst));
    if (!there.can_be_far() || (here.is_file() && !same)) return;
  }
  const size_t count =
      between(random, 1, std::min(src.place->config().num_blocks, dst.place->config().num_blocks));
  const std::vector<BlockId> from = some_blocks(random, src.place->config().num_blocks, count);
  const std::vector<BlockId> to = some_blocks(random, dst.place->config().num_blocks, count);
  std::vector<SlotTag> tags;
  if (src.is_file() || dst.is_file()) {
    for (const BlockId id : from) tags.push_back(testing::tag_of(id.value()));
  }
  fill_source(rig, src, from, tags, random.next());
  if (!dst.is_file()) {
    for (uint32_t i = 0; i < dst.place->config().num_blocks; ++i)
      dst.place->fill(BlockId{i}, 7 + i);
  }
  std::vector<std::vector<std::byte>> before;
  for (uint32_t i = 0; i < dst.place->config().num_blocks; ++i) {
    before.push_back(dst.place->read(BlockId{i}));
  }

  TransferRig* const src_owner = far == Far::kSource ? other : nullptr;
  TransferRig* const dst_owner = far == Far::kDestination ? other : nullptr;
  const LayoutHandle src_handle = register_side(rig, src_owner, src);
  const LayoutHandle dst_handle = register_side(rig, dst_owner, dst);
  TransferOptions options{.tags = tags,
                          .src_kv_layout = src.named,
                          .dst_kv_layout = dst.named,
                          .src_heads = src.heads,
                          .dst_heads = dst.heads};
  if (!all_layers || random.chance(0.5)) options.layer_range = shape.layers;
  const TransferRequest request{
      .src = src_handle, .src_ids = from, .dst = dst_handle, .dst_ids = to, .options = options};
  const auto why = rig.manager->explain_transfer(request);
  ASSERT_TRUE(why) << why.error().describe();
  SCOPED_TRACE(*why + "; formats " + to_string(format_of(src)) + " and " +
               to_string(format_of(dst)));
  ++(why->find("), ") != std::string::npos ? staged : direct);
  const auto copied = rig.manager->execute_transfer(request);
  ASSERT_TRUE(copied) << copied.error().describe();
  const Status status = copied->wait();
  ASSERT_TRUE(status) << status.error().describe();

  uint64_t moved = 0;
  const bool known = shape.known;
  for (size_t i = 0; i < count; ++i) {
    std::vector<std::byte>& expected = before[to[i].value()];
    const LayoutConfig& config = dst.place->config();
    const uint64_t head_bytes = known ? config.head_bytes() : config.chunk_bytes();
    const uint32_t all_heads = known ? *config.num_heads : 1;
    const uint32_t pages = known ? shape.page_size : 1;
    for (uint32_t layer = shape.layers.begin(); layer < shape.layers.end(); ++layer) {
      for (uint32_t outer = 0; outer < shape.outer_dim; ++outer) {
        for (uint32_t page = 0; page < pages; ++page) {
          for (uint32_t head = 0; head < (known ? shape.num_heads : 1); ++head) {
            const LayerId id(static_cast<uint16_t>(layer));
            const std::vector<std::byte> bytes =
                src.place->read(src.part(from[i], id, outer, head, page));
            ASSERT_EQ(bytes.size(), head_bytes);
            // Canonical order: layer, outer, page, head.
            const size_t at = ((layer * shape.outer_dim + outer) * pages + page) * all_heads +
                              dst.first_head + head;
            std::ranges::copy(bytes, expected.begin() + static_cast<ptrdiff_t>(at * head_bytes));
            moved += head_bytes;
          }
        }
      }
    }
  }
  EXPECT_EQ(copied->result().bytes, moved);
  for (uint32_t i = 0; i < dst.place->config().num_blocks; ++i) {
    ASSERT_TRUE(testing::same_block(dst.place->config(), dst.place->read(BlockId{i}), before[i]))
        << "block " << i;
  }
  EXPECT_TRUE(dst.place->guards_hold());
  EXPECT_TRUE(src.place->guards_hold());
  unregister_side(rig, src_owner, src_handle);
  unregister_side(rig, dst_owner, dst_handle);
}

TEST(ExecuteProperty, DirectAndStagedTransfersMoveWhatAnElementwiseCopyWould) {
  Random random(testing::test_seed(61));
  size_t staged = 0;
  size_t direct = 0;
  enum class Reach { kAll, kPageable, kPinned };
  for (const Reach reach : {Reach::kAll, Reach::kPageable, Reach::kPinned}) {
    for (const bool threads : {true, false}) {
      TransferRig rig({.seed = threads ? std::nullopt : std::optional<uint64_t>(random.next()),
                       .bounce_slots = between(random, 1, 5),
                       .bounce_slot_bytes = 4096,
                       .pinner = std::make_shared<testing::PinnerDouble>()});
      if (reach != Reach::kAll)
        rig.use_device<testing::OutOfReachDevice>(reach == Reach::kPageable);
      for (int round = 0; round < 120; ++round) {
        SCOPED_TRACE(round);
        check_one(rig, nullptr, random, staged, direct);
        if (::testing::Test::HasFatalFailure()) return;
      }
      EXPECT_EQ(rig.manager->in_flight(), 0U);
    }
  }
  EXPECT_GT(staged, 200U);
  EXPECT_GT(direct, 200U);
}

TEST(ExecuteProperty, SoDoThoseFromAndToAnotherWorker) {
  Random random(testing::test_seed(62));
  size_t staged = 0;
  size_t direct = 0;
  for (const bool threads : {true, false}) {
    for (const bool gpu_like : {true, false}) {
      const auto seed = threads ? std::nullopt : std::optional<uint64_t>(random.next());
      LoopbackNetwork network;
      TransferRig other({.worker = 8, .network = &network, .seed = seed});
      TransferRig rig({.network = &network,
                       .seed = seed,
                       .bounce_slots = between(random, 1, 5),
                       .bounce_slot_bytes = 4096,
                       .pinner = std::make_shared<testing::PinnerDouble>()});
      if (gpu_like) rig.use_device<testing::OutOfReachDevice>(false);
      for (int round = 0; round < 200; ++round) {
        SCOPED_TRACE(round);
        check_one(rig, &other, random, staged, direct);
        if (::testing::Test::HasFatalFailure()) return;
      }
      EXPECT_EQ(rig.manager->in_flight(), 0U);
    }
  }
  EXPECT_GT(staged, 60U);
  EXPECT_GT(direct, 60U);
}

}  // namespace
}  // namespace kvbm
