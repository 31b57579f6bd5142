// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/transfer_manager.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/random.hpp"
#include "kvbm/layout/layout_builder.hpp"
#include "kvbm/memory/system_memory.hpp"

#include "tests/support/allocation_meter.hpp"
#include "tests/support/coroutine.hpp"
#include "tests/support/faulty_device.hpp"
#include "tests/support/guarded_place.hpp"
#include "tests/support/seed.hpp"
#include "tests/support/transfer_rig.hpp"

namespace kvbm {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::block_ids;
using testing::GuardedPlace;
using testing::tag_of;
using testing::TransferRig;

constexpr LayoutConfig kConfig{.num_blocks = 8,
                               .num_layers = 3,
                               .outer_dim = 2,
                               .page_size = 4,
                               .inner_dim = 12,
                               .dtype_width_bytes = 2,
                               .num_heads = 3,
                               .alignment = 1};

constexpr LayoutKind kKinds[] = {LayoutKind::kFullyContiguous, LayoutKind::kLayerSeparateBlockFirst,
                                 LayoutKind::kLayerSeparateBlockSecond, LayoutKind::kFileSlots};

/// Two contiguous places in host memory, the first filled: block i with key i.
struct Pair {
  explicit Pair(TransferRig& rig, const LayoutConfig& config = kConfig)
      : src(config, LayoutKind::kFullyContiguous),
        dst(config, LayoutKind::kLayerSeparateBlockSecond) {
    for (uint32_t i = 0; i < config.num_blocks; ++i) src.fill(BlockId{i}, i);
    src_handle = rig.manager->register_layout(src.layout()).value();
    dst_handle = rig.manager->register_layout(dst.layout()).value();
  }

  GuardedPlace src;
  GuardedPlace dst;
  LayoutHandle src_handle;
  LayoutHandle dst_handle;
};

/// A device that can be told to refuse or to swallow calls.
class ScriptedDevice final : public Device {
 public:
  explicit ScriptedDevice(Device& inner) : inner_(inner) {}

  std::function<Status()> before_copy = [] { return Status(); };
  std::function<Status()> before_record = [] { return Status(); };
  std::function<Status()> before_launch = [] { return Status(); };
  bool swallows_copies = false;

  [[nodiscard]] DeviceInfo info() const override {
    DeviceInfo info = inner_.info();
    if (capabilities) info.capabilities = *capabilities;
    return info;
  }
  [[nodiscard]] Result<StreamRef> create_stream(std::string_view name) override {
    ++num_streams;
    return inner_.create_stream(name);
  }
  Status destroy_stream(StreamRef stream) override {
    --num_streams;
    return inner_.destroy_stream(stream);
  }
  [[nodiscard]] Result<DeviceMemory> allocate(uint64_t size_bytes, uint64_t alignment) override {
    return inner_.allocate(size_bytes, alignment);
  }
  Status copy(StreamRef stream, StridedCopyBatch batch) override {
    KVBM_TRY(before_copy());
    if (swallows_copies) return {};
    return inner_.copy(stream, std::move(batch));
  }
  Status pattern(StreamRef stream, PatternBatch batch) override {
    return inner_.pattern(stream, std::move(batch));
  }
  Status checksum(StreamRef stream, ChecksumBatch batch) override {
    return inner_.checksum(stream, std::move(batch));
  }
  Status launch(StreamRef stream, StreamTask task) override {
    KVBM_TRY(before_launch());
    return inner_.launch(stream, std::move(task));
  }
  [[nodiscard]] Event record(StreamRef stream) override {
    if (Status refused = before_record(); !refused) return Event::ready(std::move(refused));
    return inner_.record(stream);
  }
  Status wait(StreamRef stream, const Event& event) override { return inner_.wait(stream, event); }
  [[nodiscard]] Executor& executor() const noexcept override { return inner_.executor(); }

  std::optional<DeviceCapabilities> capabilities;
  int num_streams = 0;

 private:
  Device& inner_;
};

template <class T>
void expect_error(const Result<T>& result, ErrorCode code, const std::string& word) {
  ASSERT_FALSE(result) << word;
  EXPECT_EQ(result.error().code(), code) << result.error().describe();
  EXPECT_NE(result.error().message().find(word), std::string::npos) << result.error().describe();
}

// --- copies
// -----------------------------------------------------------------------------------------

void copy_between_all_kinds(TransferRig& rig, uint64_t seed) {
  Random random(seed);
  for (const LayoutKind src_kind : kKinds) {
    for (const LayoutKind dst_kind : kKinds) {
      SCOPED_TRACE(std::string(to_string(src_kind)) + " to " + std::string(to_string(dst_kind)));
      GuardedPlace src(kConfig, src_kind);
      GuardedPlace dst(kConfig, dst_kind);
      const LayoutHandle src_handle = rig.manager->register_layout(src.layout()).value();
      const LayoutHandle dst_handle = rig.manager->register_layout(dst.layout()).value();
      std::vector<uint32_t> from{0, 1, 2, 3, 4, 5, 6, 7};
      std::vector<uint32_t> to = from;
      random.shuffle(std::span(from));
      random.shuffle(std::span(to));
      from.resize(5);
      to.resize(5);

      std::vector<SlotTag> tags;
      tags.reserve(from.size());
      for (const uint32_t id : from) tags.push_back(tag_of(id));
      if (src.is_file()) {
        // A file gets its blocks from memory, so that it has headers.
        GuardedPlace origin(kConfig, LayoutKind::kFullyContiguous);
        const LayoutHandle handle = rig.manager->register_layout(origin.layout()).value();
        for (const uint32_t id : from) origin.fill(BlockId{id}, 100 + id);
        auto stored =
            rig.execute(handle, block_ids(from), src_handle, block_ids(from), {.tags = tags});
        ASSERT_TRUE(stored) << stored.error().describe();
        ASSERT_TRUE(stored->wait());
        ASSERT_TRUE(rig.manager->unregister_layout(handle));
      } else {
        for (const uint32_t id : from) src.fill(BlockId{id}, 100 + id);
      }

      TransferOptions options;
      if (src.is_file() || dst.is_file()) options.tags = tags;
      auto copied = rig.execute(src_handle, block_ids(from), dst_handle, block_ids(to), options);
      ASSERT_TRUE(copied) << copied.error().describe();
      const Status status = copied->wait();
      ASSERT_TRUE(status) << status.error().describe();
      EXPECT_TRUE(copied->done());
      EXPECT_TRUE(copied->event().done());
      EXPECT_TRUE(copied->event().status());
      EXPECT_EQ(copied->result().bytes, 5 * kConfig.block_bytes());
      EXPECT_TRUE(copied->result().failed.empty());

      for (uint32_t id = 0; id < kConfig.num_blocks; ++id) {
        const auto found = std::ranges::find(to, id);
        if (found == to.end()) {
          EXPECT_TRUE(dst.untouched(BlockId{id}));
        } else {
          EXPECT_TRUE(dst.holds(BlockId{id}, 100 + from[static_cast<size_t>(found - to.begin())]));
        }
      }
      for (const uint32_t id : from) EXPECT_TRUE(src.holds(BlockId{id}, 100 + id));
      EXPECT_TRUE(src.guards_hold());
      EXPECT_TRUE(dst.guards_hold());
      EXPECT_TRUE(rig.manager->unregister_layout(src_handle));
      EXPECT_TRUE(rig.manager->unregister_layout(dst_handle));
    }
  }
  EXPECT_EQ(rig.manager->in_flight(), 0U);
}

/// A layout of every kind and format, all of kConfig's shape.
std::vector<std::unique_ptr<GuardedPlace>> places_of_all_formats(bool with_files) {
  std::vector<std::unique_ptr<GuardedPlace>> places;
  const KvBlockLayout custom = KvBlockLayout::custom({BlockAxis::kPage, BlockAxis::kHead,
                                                      BlockAxis::kLayer, BlockAxis::kOuter})
                                   .value();
  for (const KvBlockLayout& format :
       {KvBlockLayout::kUniversalTP, KvBlockLayout::kUniversalPP, KvBlockLayout::kOperationalHND,
        KvBlockLayout::kOperationalNHD, custom}) {
    for (const LayoutKind kind : kKinds) {
      const bool apart = kind == LayoutKind::kLayerSeparateBlockFirst ||
                         kind == LayoutKind::kLayerSeparateBlockSecond;
      if (apart && !format.is_operational()) continue;
      if (kind == LayoutKind::kFileSlots && !with_files) continue;
      places.push_back(std::make_unique<GuardedPlace>(kConfig, kind, StorageKind::kSystem,
                                                      SlotOptions{}, format));
    }
  }
  return places;
}

TEST(TransferManager, BlocksTakeTheFormatOfTheirDestination) {
  TransferRig rig;
  const auto sources = places_of_all_formats(false);
  const auto destinations = places_of_all_formats(false);
  for (const auto& src : sources) {
    for (uint32_t i = 0; i < kConfig.num_blocks; ++i) src->fill(BlockId{i}, i);
    const LayoutHandle from = rig.manager->register_layout(src->layout()).value();
    for (const auto& dst : destinations) {
      for (uint32_t i = 0; i < kConfig.num_blocks; ++i) dst->fill(BlockId{i}, 99);
      const LayoutHandle to = rig.manager->register_layout(dst->layout()).value();
      const auto copied = rig.execute(from, block_ids({5, 2}), to, block_ids({0, 7}));
      ASSERT_TRUE(copied) << copied.error().message();
      ASSERT_TRUE(copied->wait());
      EXPECT_EQ(copied->result().bytes, 2 * kConfig.block_bytes());
      EXPECT_TRUE(dst->holds(BlockId{0}, 5)) << to_string(dst->layout().kv_block_layout());
      EXPECT_TRUE(dst->holds(BlockId{7}, 2)) << to_string(dst->layout().kv_block_layout());
      EXPECT_TRUE(dst->holds(BlockId{1}, 99));
      EXPECT_TRUE(dst->guards_hold());
      ASSERT_TRUE(rig.manager->unregister_layout(to));
    }
    ASSERT_TRUE(rig.manager->unregister_layout(from));
  }
}

TEST(TransferManager, MemoryThatALayoutOwnsStaysUntilItsTransfersHaveEnded) {
  for (const bool waits_on_the_host : {false, true}) {
    TransferRig rig({.seed = 1, .max_waiting_streams = waits_on_the_host ? size_t{0} : 8});
    std::vector<std::weak_ptr<SystemMemory>> memories;
    std::vector<LayoutHandle> handles;
    std::byte* last = nullptr;
    for (int i = 0; i < 2; ++i) {
      auto memory = std::make_shared<SystemMemory>(
          SystemMemory::create({.size_bytes = kConfig.num_blocks * kConfig.block_bytes()}).value());
      memories.emplace_back(memory);
      std::memset(memory->data(), i + 1, memory->size_bytes());
      last = memory->data();
      handles.push_back(rig.manager
                            ->register_layout(PhysicalLayout::builder("worker-7")
                                                  .with_config(kConfig)
                                                  .fully_contiguous()
                                                  .with_regions({{memory->region(), memory}})
                                                  .build()
                                                  .value())
                            .value());
    }
    EventSource gate = rig.device->create_event();
    const auto copied = rig.execute(handles[0], block_ids({3}), handles[1], block_ids({0}),
                                    {.wait_for = {gate.event()}});
    ASSERT_TRUE(copied) << copied.error().message();
    for (const LayoutHandle handle : handles) {
      ASSERT_TRUE(rig.manager->unregister_layout(handle));
    }
    rig.stepped->run_until_idle();
    EXPECT_FALSE(memories[0].expired());
    EXPECT_FALSE(memories[1].expired());
    {
      const std::shared_ptr<SystemMemory> kept = memories[1].lock();
      gate.signal({});
      rig.stepped->run_until_idle();
      ASSERT_TRUE(copied->wait());
      EXPECT_EQ(*last, std::byte{1});
      EXPECT_EQ(copied->result().bytes, kConfig.block_bytes());
    }
    EXPECT_TRUE(memories[0].expired());
    EXPECT_TRUE(memories[1].expired());
  }
}

TEST(TransferManager, AFormatThatOneSideDoesNotKnowIsRefused) {
  TransferRig rig;
  GuardedPlace opaque(kConfig, LayoutKind::kFullyContiguous);
  GuardedPlace known(kConfig, LayoutKind::kFullyContiguous, StorageKind::kSystem, {},
                     KvBlockLayout::kOperationalNHD);
  const LayoutHandle a = rig.manager->register_layout(opaque.layout()).value();
  const LayoutHandle b = rig.manager->register_layout(known.layout()).value();
  for (const auto& [from, to] : {std::pair(a, b), std::pair(b, a)}) {
    const auto copied = rig.execute(from, block_ids({0}), to, block_ids({1}));
    ASSERT_FALSE(copied);
    EXPECT_EQ(copied.error().code(), ErrorCode::kUnsupported);
    EXPECT_NE(copied.error().message().find("operational_nhd"), std::string::npos);
  }
  EXPECT_TRUE(opaque.untouched(BlockId{1}));
  EXPECT_TRUE(known.untouched(BlockId{1}));
}

TEST(TransferManager, AFileAndItsMemoryKeepFormatsOfTheirOwn) {
  TransferRig rig;
  const auto places = places_of_all_formats(true);
  const std::vector<SlotTag> tags{tag_of(1), tag_of(2)};
  TransferOptions options;
  options.tags = tags;
  for (const auto& file : places) {
    if (!file->is_file()) continue;
    const LayoutHandle slots = rig.manager->register_layout(file->layout()).value();
    for (const auto& memory : places) {
      if (memory->is_file()) continue;
      for (uint32_t i = 0; i < kConfig.num_blocks; ++i) memory->fill(BlockId{i}, i);
      const LayoutHandle blocks = rig.manager->register_layout(memory->layout()).value();
      const auto written =
          rig.execute(blocks, block_ids({5, 2}), slots, block_ids({0, 7}), options);
      ASSERT_TRUE(written) << written.error().describe();
      ASSERT_TRUE(written->wait());
      EXPECT_TRUE(file->holds(BlockId{0}, 5));
      EXPECT_TRUE(file->holds(BlockId{7}, 2));
      const auto read = rig.execute(slots, block_ids({0, 7}), blocks, block_ids({1, 3}), options);
      ASSERT_TRUE(read->wait());
      EXPECT_TRUE(memory->holds(BlockId{1}, 5));
      EXPECT_TRUE(memory->holds(BlockId{3}, 2));
      EXPECT_TRUE(memory->guards_hold());
    }
    EXPECT_TRUE(file->guards_hold());
  }
}

TEST(TransferManager, CopiesBlocksBetweenAllKindsOfLayoutOnThreads) {
  TransferRig rig;
  copy_between_all_kinds(rig, testing::test_seed(31));
}

TEST(TransferManager, CopiesBlocksBetweenAllKindsOfLayoutInSteps) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    TransferRig rig({.seed = seed});
    copy_between_all_kinds(rig, seed);
  }
}

TEST(TransferManager, ALayerRangeMovesThoseLayersAlone) {
  TransferRig rig;
  Pair pair(rig);
  const LayerRange layers{LayerId{1}, 1};
  auto copied = rig.execute(pair.src_handle, block_ids({2, 5}), pair.dst_handle, block_ids({5, 0}),
                            {.layer_range = layers});
  ASSERT_TRUE(copied->wait());
  EXPECT_EQ(copied->result().bytes, 2 * kConfig.layer_bytes());
  EXPECT_TRUE(testing::same_block(kConfig, pair.dst.read(BlockId{5}, layers),
                                  testing::pattern_block(kConfig, 2, layers)));
  const std::vector<std::byte> fill(kConfig.layer_bytes(), GuardedPlace::kFill);
  for (const int other : {0, 2}) {
    EXPECT_TRUE(testing::same_block(
        kConfig, pair.dst.read(BlockId{5}, {LayerId(static_cast<uint16_t>(other)), 1}), fill));
  }
  EXPECT_TRUE(pair.dst.guards_hold());
}

TEST(TransferManager, ASourceMayBeCopiedMoreThanOnceAndALayoutOntoItself) {
  TransferRig rig;
  Pair pair(rig);
  ASSERT_TRUE(
      rig.execute(pair.src_handle, block_ids({3, 3}), pair.dst_handle, block_ids({0, 1}))->wait());
  EXPECT_TRUE(pair.dst.holds(BlockId{0}, 3));
  EXPECT_TRUE(pair.dst.holds(BlockId{1}, 3));
  ASSERT_TRUE(
      rig.execute(pair.src_handle, block_ids({3}), pair.src_handle, block_ids({4}))->wait());
  EXPECT_TRUE(pair.src.holds(BlockId{4}, 3));
}

TEST(TransferManager, NoBlocksAreDoneAtOnce) {
  TransferRig rig({.seed = 1});
  Pair pair(rig);
  const auto copied = rig.execute(pair.src_handle, {}, pair.dst_handle, {});
  ASSERT_TRUE(copied);
  EXPECT_TRUE(copied->done());
  EXPECT_EQ(copied->result().bytes, 0U);
  EXPECT_FALSE(rig.execute(pair.src_handle, {}, LayoutHandle{WorkerId{7}, 99}, {}));
}

TEST(TransferManager, CountsWhatItMoves) {
  TransferRig rig;
  Pair pair(rig);
  ASSERT_TRUE(
      rig.execute(pair.src_handle, block_ids({0, 1}), pair.dst_handle, block_ids({0, 1}))->wait());
  EXPECT_EQ(testing::counter_value(rig.metrics, "kvbm_copied_blocks_total"), 2U);
  EXPECT_EQ(testing::counter_value(rig.metrics, "kvbm_copied_bytes_total"),
            2 * kConfig.block_bytes());
  EXPECT_EQ(testing::counter_value(rig.metrics, "kvbm_copy_failed_blocks_total"), 0U);
}

// --- checks
// -----------------------------------------------------------------------------------------

TEST(TransferManager, RefusesBadRequestsBeforeItTouchesAnything) {
  TransferRig rig({.seed = 1});
  Pair pair(rig);
  GuardedPlace file(kConfig, LayoutKind::kFileSlots);
  const LayoutHandle file_handle = rig.manager->register_layout(file.layout()).value();
  LayoutConfig other_config = kConfig;
  other_config.page_size = 8;
  GuardedPlace other(other_config, LayoutKind::kFullyContiguous);
  const LayoutHandle other_handle = rig.manager->register_layout(other.layout()).value();
  const std::vector<SlotTag> tags(2, tag_of(1));
  const auto two = block_ids({0, 1});
  const auto invalid = ErrorCode::kInvalidArgument;

  expect_error(rig.execute({WorkerId{7}, 99}, two, pair.dst_handle, two), ErrorCode::kNotFound,
               "layout 99");
  expect_error(rig.execute(pair.src_handle, two, {WorkerId{8}, pair.dst_handle.layout}, two),
               ErrorCode::kNotFound, "worker 8");
  expect_error(rig.execute(pair.src_handle, two, pair.dst_handle, block_ids({0})), invalid,
               "2 source blocks and 1");
  expect_error(rig.execute(pair.src_handle, block_ids({0, 8}), pair.dst_handle, two), invalid,
               "source block 8 of");
  expect_error(rig.execute(pair.src_handle, two, pair.dst_handle, block_ids({8, 1})), invalid,
               "destination block 8 of");
  expect_error(rig.execute(pair.src_handle, two, pair.dst_handle, block_ids({5, 5})), invalid,
               "block 5 is a destination twice");
  expect_error(rig.execute(pair.src_handle, two, pair.src_handle, block_ids({2, 1})), invalid,
               "block 1 is a source and");
  expect_error(rig.execute(pair.src_handle, two, other_handle, two), invalid, "page_size 4 and 8");
  expect_error(rig.execute(pair.src_handle, two, pair.dst_handle, two,
                           {.layer_range = LayerRange{LayerId{2}, 2}}),
               invalid, "layers");
  expect_error(rig.execute(pair.src_handle, two, pair.dst_handle, two, {.tags = tags}), invalid,
               "memory has no place");
  expect_error(
      rig.execute(pair.src_handle, two, pair.dst_handle, two, {.deadline = rig.after(Duration(0))}),
      ErrorCode::kTimeout, "passed");
  expect_error(
      rig.execute(pair.src_handle, two, pair.dst_handle, two, {.stream = StreamRef{12345}}),
      ErrorCode::kNotFound, "12345");
  expect_error(rig.execute(pair.src_handle, two, file_handle, two), invalid, "0 tags for 2");
  expect_error(
      rig.execute(pair.src_handle, block_ids({0}), file_handle, block_ids({0}), {.tags = tags}),
      invalid, "2 tags for 1");
  expect_error(rig.execute(file_handle, two, file_handle, block_ids({2, 3})), invalid,
               "0 tags for 2");
  expect_error(rig.execute(pair.src_handle, two, file_handle, two,
                           {.layer_range = LayerRange{LayerId{0}, 2}, .tags = tags}),
               ErrorCode::kUnsupported, "all layers");
  const StreamRef stream = rig.device->create_stream("test").value();
  expect_error(
      rig.execute(pair.src_handle, two, file_handle, two, {.stream = stream, .tags = tags}),
      ErrorCode::kUnsupported, "stream");

  EXPECT_EQ(rig.manager->in_flight(), 0U);
  rig.stepped->run_until_idle();
  for (uint32_t id = 0; id < kConfig.num_blocks; ++id) {
    EXPECT_TRUE(pair.dst.untouched(BlockId{id}));
    EXPECT_TRUE(pair.src.holds(BlockId{id}, id));
    EXPECT_TRUE(file.untouched(BlockId{id}));
  }
  // All layers of a file may be named.
  EXPECT_TRUE(rig.execute(pair.src_handle, two, file_handle, two,
                          {.layer_range = kConfig.all_layers(), .tags = tags}));
}

TEST(TransferManager, ChecksTheIdsOfACallWithoutTheSizeOfTheLayout) {
  TransferRig rig({.seed = 1});
  constexpr LayoutConfig kMany{.num_blocks = 1 << 22,
                               .num_layers = 1,
                               .outer_dim = 1,
                               .page_size = 1,
                               .inner_dim = 1,
                               .dtype_width_bytes = 1};
  const SystemMemory memory = SystemMemory::create({.size_bytes = 2 * kMany.num_blocks}).value();
  const auto place = [&](uint64_t at) {
    return rig.manager
        ->register_layout(
            PhysicalLayout::fully_contiguous(kMany, memory.region().slice(at, kMany.num_blocks))
                .value())
        .value();
  };
  const LayoutHandle src = place(0);
  const LayoutHandle dst = place(kMany.num_blocks);
  const std::vector<BlockId> one = block_ids({kMany.num_blocks - 1});
  const testing::AllocationMeter meter;
  const auto copied = rig.execute(src, one, dst, one);
  const size_t largest = meter.largest_bytes();
  ASSERT_TRUE(copied);
  EXPECT_LT(largest, 16'384U);
  EXPECT_TRUE(copied->wait());
}

TEST(TransferManager, FindsAnIdThatIsThereTwiceAmongManyOthers) {
  TransferRig rig({.seed = 1});
  LayoutConfig config = kConfig;
  config.num_blocks = 4096;
  Pair pair(rig, config);
  Random random(testing::test_seed(17));
  for (int round = 0; round < 50; ++round) {
    std::vector<uint32_t> numbers(config.num_blocks);
    for (uint32_t i = 0; i < config.num_blocks; ++i) numbers[i] = i;
    random.shuffle(std::span(numbers));
    const auto count = 2 + random.uniform(300);
    std::vector<uint32_t> others(numbers.begin() + 2048, numbers.begin() + 2048 + count);
    numbers.resize(count);
    const auto copied = rig.execute(pair.src_handle, block_ids(others), pair.src_handle,
                                    block_ids(numbers), {.layer_range = LayerRange{LayerId{0}, 1}});
    ASSERT_TRUE(copied) << copied.error().describe();
    ASSERT_TRUE(copied->wait());

    const uint32_t again = numbers[random.uniform(count - 1)];
    const uint32_t last = std::exchange(numbers.back(), again);
    expect_error(
        rig.execute(pair.src_handle, block_ids(others), pair.dst_handle, block_ids(numbers)),
        ErrorCode::kInvalidArgument, "block " + std::to_string(again) + " is a destination twice");
    numbers.back() = last;
    others.front() = again;
    expect_error(
        rig.execute(pair.src_handle, block_ids(others), pair.src_handle, block_ids(numbers)),
        ErrorCode::kInvalidArgument,
        "block " + std::to_string(again) + " is a source and a destination");
  }
}

// --- ready plans
// ------------------------------------------------------------------------------------

/// Argument: the destination's kind. 160 runs of each block, or one.
class ReadyPlan : public ::testing::TestWithParam<LayoutKind> {};

INSTANTIATE_TEST_SUITE_P(Kinds, ReadyPlan,
                         ::testing::Values(LayoutKind::kFullyContiguous,
                                           LayoutKind::kLayerSeparateBlockSecond),
                         [](const auto& kind) { return std::string(to_string(kind.param)); });

TEST_P(ReadyPlan, ATransferByItAllocatesNothingOnAnyThread) {
  constexpr LayoutConfig kLayers{.num_blocks = 64,
                                 .num_layers = 80,
                                 .outer_dim = 2,
                                 .page_size = 1,
                                 .inner_dim = 8,
                                 .dtype_width_bytes = 2};
  TransferRig rig;
  const GuardedPlace src(kLayers, LayoutKind::kFullyContiguous);
  const GuardedPlace dst(kLayers, GetParam());
  const LayoutHandle from = rig.manager->register_layout(src.layout()).value();
  const LayoutHandle to = rig.manager->register_layout(dst.layout()).value();
  std::vector<TransferCompleteNotification> at_a_time(32);
  // Blocks of its own for each, rising and falling.
  std::vector<std::vector<BlockId>> blocks;
  for (uint32_t i = 0; i < at_a_time.size(); ++i) {
    blocks.push_back(i % 2 == 0 ? block_ids({2 * i, 2 * i + 1}) : block_ids({2 * i + 1, 2 * i}));
  }
  const auto round = [&] {
    for (size_t i = 0; i < at_a_time.size(); ++i) {
      at_a_time[i] = rig.execute(from, blocks[i], to, blocks[i]).value();
    }
    bool all_arrived = true;
    for (const TransferCompleteNotification& each : at_a_time) {
      all_arrived = all_arrived && each.wait().has_value();
    }
    return all_arrived;
  };
  const auto settle = [&] {
    while (rig.manager->in_flight() > 0) std::this_thread::yield();
  };
  // Pools grow until they hold what is ever under way at a time, and that differs from round to
  // round; an allocation of each transfer leaves no round without one.
  int quiet_rounds = 0;
  for (int i = 0; i < 300 && quiet_rounds < 20; ++i) {
    const testing::ProcessAllocationMeter meter;
    const bool all_arrived = round();
    settle();
    quiet_rounds = meter.count() == 0 ? quiet_rounds + 1 : 0;
    ASSERT_TRUE(all_arrived);
  }
  EXPECT_EQ(quiet_rounds, 20);
}

TEST(TransferManager, APlanGoesWithItsLayout) {
  TransferRig rig;
  Pair pair(rig);
  const std::vector<BlockId> ids = block_ids({1, 2});
  GuardedPlace old_place(kConfig, LayoutKind::kFullyContiguous);
  const LayoutHandle handle = rig.manager->register_layout(old_place.layout()).value();
  ASSERT_TRUE(rig.execute(pair.src_handle, ids, handle, ids)->wait());
  ASSERT_TRUE(rig.execute(handle, ids, pair.dst_handle, ids)->wait());
  while (rig.manager->in_flight() > 0) std::this_thread::yield();
  const std::weak_ptr<const PhysicalLayout> watch = rig.manager->find_layout(handle);
  ASSERT_TRUE(rig.manager->unregister_layout(handle));
  EXPECT_TRUE(watch.expired()) << "something keeps the layout";
  expect_error(rig.execute(pair.src_handle, ids, handle, ids), ErrorCode::kNotFound, "registered");
  expect_error(rig.execute(handle, ids, pair.dst_handle, ids), ErrorCode::kNotFound, "registered");

  // The number comes again, for other memory.
  const GuardedPlace place(kConfig, LayoutKind::kLayerSeparateBlockFirst);
  for (;;) {
    const LayoutHandle next = rig.manager->register_layout(place.layout()).value();
    if (next == handle) break;
    ASSERT_TRUE(rig.manager->unregister_layout(next));
  }
  for (const BlockId id : ids) old_place.fill(id, 99);
  ASSERT_TRUE(rig.execute(pair.src_handle, ids, handle, ids)->wait());
  for (const BlockId id : ids) {
    EXPECT_TRUE(place.holds(id, id.value()));
    EXPECT_TRUE(old_place.holds(id, 99));
  }
}

TEST(TransferManager, ItsQueueIsNamedAfterItsWorker) {
  TransferRig rig({.seed = 1});
  const Pair pair(rig);
  const auto other =
      TransferManager::create(
          {.worker = WorkerId{8}, .device = *rig.device, .executor = *rig.executor, .log = rig.log})
          .value();
  const LayoutHandle src = other->register_layout(pair.src.layout()).value();
  const LayoutHandle dst = other->register_layout(pair.dst.layout()).value();
  const std::vector<BlockId> ids = block_ids({0});
  rig.stepped->hold("w7-transfer");
  EventSource go = rig.device->create_event();
  const TransferOptions options{.wait_for = {go.event()}, .deadline = rig.after(seconds(1))};
  const auto held = rig.execute(pair.src_handle, ids, pair.dst_handle, block_ids({1}), options);
  const auto runs = other->execute_transfer(
      {.src = src, .src_ids = ids, .dst = dst, .dst_ids = ids, .options = options});
  ASSERT_TRUE(held && runs);
  go.signal();
  rig.stepped->run_until_idle();
  EXPECT_TRUE(runs->done());
  EXPECT_FALSE(held->done());
  rig.stepped->release("w7-transfer");
  EXPECT_TRUE(held->wait());
}

TEST(TransferManager, LayoutsThatShareBytesAreNotCopiedToEachOther) {
  TransferRig rig;
  Pair pair(rig);
  const LayoutHandle alias = rig.manager->register_layout(pair.src.layout()).value();
  expect_error(rig.execute(pair.src_handle, block_ids({0}), alias, block_ids({1})),
               ErrorCode::kUnsupported, "share bytes");
  expect_error(rig.execute(alias, block_ids({0}), pair.src_handle, block_ids({1})),
               ErrorCode::kUnsupported, "share bytes");
  ASSERT_TRUE(rig.execute(alias, block_ids({0}), pair.dst_handle, block_ids({1}))->wait());
  ASSERT_TRUE(rig.manager->unregister_layout(alias));
  // The number may come again for memory that is not shared.
  const GuardedPlace place(kConfig, LayoutKind::kFullyContiguous);
  LayoutHandle handle;
  do {
    handle = rig.manager->register_layout(place.layout()).value();
    if (handle == alias) break;
    ASSERT_TRUE(rig.manager->unregister_layout(handle));
  } while (true);
  ASSERT_TRUE(rig.execute(pair.src_handle, block_ids({0}), alias, block_ids({1}))->wait());
}

TEST(TransferManager, HandlesNameLayoutsUntilTheyAreUnregistered) {
  TransferRig rig;
  EXPECT_EQ(rig.manager->worker_id(), WorkerId{7});
  const GuardedPlace place(kConfig, LayoutKind::kFullyContiguous);
  const LayoutHandle first = rig.manager->register_layout(place.layout()).value();
  const LayoutHandle second = rig.manager->register_layout(place.layout()).value();
  EXPECT_EQ(first.worker, WorkerId{7});
  EXPECT_NE(first, second);
  ASSERT_NE(rig.manager->find_layout(first), nullptr);
  EXPECT_EQ(rig.manager->find_layout(first)->config(), kConfig);
  EXPECT_EQ(rig.manager->find_layout({WorkerId{8}, first.layout}), nullptr);
  ASSERT_TRUE(rig.manager->unregister_layout(first));
  EXPECT_EQ(rig.manager->find_layout(first), nullptr);
  EXPECT_EQ(rig.manager->unregister_layout(first).error().code(), ErrorCode::kNotFound);
  EXPECT_EQ(rig.manager->unregister_layout({WorkerId{8}, second.layout}).error().code(),
            ErrorCode::kNotFound);
  // A number does not come back soon.
  EXPECT_NE(rig.manager->register_layout(place.layout()).value(), first);
}

TEST(TransferManager, ALayoutOfAnotherDeviceIsNotItsOwn) {
  TransferRig rig;
  const auto other = HostDevice::create({.executor = *rig.executor, .ordinal = 3}).value();
  const auto made_on = [](Device& device) {
    return PhysicalLayout::builder("worker-7")
        .with_config(kConfig)
        .fully_contiguous()
        .allocate_device(device)
        .build()
        .value();
  };
  const auto refused = rig.manager->register_layout(made_on(*other));
  expect_error(refused, ErrorCode::kInvalidArgument, "memory of device 3");
  EXPECT_TRUE(rig.manager->register_layout(made_on(*rig.device)));
  const auto manager =
      TransferManager::create({.device = *other, .executor = *rig.executor, .log = rig.log});
  EXPECT_TRUE((*manager)->register_layout(made_on(*other)));
  expect_error((*manager)->register_layout(made_on(*rig.device)), ErrorCode::kInvalidArgument,
               "memory of device 0");
}

TEST(TransferManager, StorageThatTheDeviceCannotReachIsRefused) {
  TransferRig rig({.seed = 1});
  auto& device = rig.use_device<ScriptedDevice>();
  device.capabilities =
      DeviceCapabilities{.host_accessible = false, .copies_pageable_host = false, .page_bytes = 1};
  rig.start();
  const GuardedPlace system(kConfig, LayoutKind::kFullyContiguous);
  const GuardedPlace gpu(kConfig, LayoutKind::kFullyContiguous, StorageKind::kDevice);
  const GuardedPlace file(kConfig, LayoutKind::kFileSlots);
  const LayoutHandle system_handle = rig.manager->register_layout(system.layout()).value();
  const LayoutHandle gpu_handle = rig.manager->register_layout(gpu.layout()).value();
  const LayoutHandle file_handle = rig.manager->register_layout(file.layout()).value();
  const std::vector<SlotTag> tags(1);
  expect_error(rig.execute(system_handle, block_ids({0}), gpu_handle, block_ids({0})),
               ErrorCode::kUnsupported, "pinned");
  expect_error(rig.execute(gpu_handle, block_ids({0}), file_handle, block_ids({0}), {.tags = tags}),
               ErrorCode::kUnsupported, "no pinner");
}

TEST(TransferManager, WithoutAFileEngineFilesAreUnsupported) {
  TransferRig rig({.seed = 1});
  rig.manager =
      TransferManager::create({.device = *rig.device, .executor = *rig.executor, .log = rig.log})
          .value();
  Pair pair(rig);
  const GuardedPlace file(kConfig, LayoutKind::kFileSlots);
  const LayoutHandle handle = rig.manager->register_layout(file.layout()).value();
  const std::vector<SlotTag> tags(1);
  expect_error(rig.execute(pair.src_handle, block_ids({0}), handle, block_ids({0}), {.tags = tags}),
               ErrorCode::kUnsupported, "file engine");
  EXPECT_TRUE(
      rig.execute(pair.src_handle, block_ids({0}), pair.dst_handle, block_ids({0}))->wait());
}

TEST(TransferManager, AConfigWithoutStreamsThreadsOrRoomIsRefused) {
  TransferRig rig({.seed = 1});
  const TransferConfig good{.device = *rig.device, .executor = *rig.executor, .log = rig.log};
  for (size_t TransferConfig::*field :
       {&TransferConfig::streams_per_direction, &TransferConfig::num_threads,
        &TransferConfig::file_requests_per_transfer, &TransferConfig::max_transfers,
        &TransferConfig::side_streams}) {
    TransferConfig config = good;
    config.*field = 0;
    const auto manager = TransferManager::create(config);
    ASSERT_FALSE(manager);
    EXPECT_EQ(manager.error().code(), ErrorCode::kInvalidArgument);
  }
}

// --- order
// ------------------------------------------------------------------------------------------

TEST(TransferManager, NothingIsTouchedBeforeTheEventsAreDone) {
  struct Case {
    std::string name;
    size_t max_waiting_streams;
    bool deadline;
    bool own_stream;
    bool file;
  };
  for (const Case& kind : {Case{"on a waiting stream", 8, false, false, false},
                           Case{"on the host, for want of streams", 0, false, false, false},
                           Case{"on the host, for the deadline", 8, true, false, false},
                           Case{"on the caller's stream", 8, true, true, false},
                           Case{"to a file", 8, false, false, true}}) {
    SCOPED_TRACE(kind.name);
    TransferRig rig({.seed = 3, .max_waiting_streams = kind.max_waiting_streams});
    Pair pair(rig);
    GuardedPlace file(kConfig, LayoutKind::kFileSlots);
    const LayoutHandle file_handle = rig.manager->register_layout(file.layout()).value();
    GuardedPlace& dst = kind.file ? file : pair.dst;
    const std::vector<SlotTag> tags{tag_of(1)};
    EventSource first = rig.device->create_event();
    EventSource second = rig.device->create_event();
    TransferOptions options;
    options.wait_for = {first.event(), Event(), second.event()};
    if (kind.deadline) options.deadline = rig.after(seconds(10));
    if (kind.own_stream) options.stream = rig.device->create_stream("engine").value();
    if (kind.file) options.tags = tags;
    auto copied = rig.execute(pair.src_handle, block_ids({6}),
                              kind.file ? file_handle : pair.dst_handle, block_ids({2}), options);
    ASSERT_TRUE(copied) << copied.error().describe();
    rig.stepped->run_until_idle();
    second.signal();
    rig.stepped->run_until_idle();
    EXPECT_FALSE(copied->done());
    EXPECT_FALSE(copied->event().done());
    EXPECT_TRUE(dst.untouched(BlockId{2}));
    EXPECT_EQ(rig.manager->in_flight(), 1U);
    first.signal();
    ASSERT_TRUE(copied->wait());
    EXPECT_TRUE(dst.holds(BlockId{2}, 6));
    EXPECT_EQ(rig.manager->in_flight(), 0U);
  }
}

TEST(TransferManager, AnEventThatFailsFailsTheTransfer) {
  for (const size_t max_waiting_streams : {size_t{8}, size_t{0}}) {
    for (const bool failed_before : {true, false}) {
      TransferRig rig({.seed = 3, .max_waiting_streams = max_waiting_streams});
      Pair pair(rig);
      EventSource source = rig.device->create_event();
      if (failed_before) source.signal(make_error(ErrorCode::kDevice, "the kernel failed"));
      auto copied = rig.execute(pair.src_handle, block_ids({6, 7}), pair.dst_handle,
                                block_ids({2, 3}), {.wait_for = {source.event()}});
      ASSERT_TRUE(copied);
      if (!failed_before) source.signal(make_error(ErrorCode::kDevice, "the kernel failed"));
      EXPECT_EQ(copied->wait().error().code(), ErrorCode::kDevice);
      EXPECT_EQ(copied->result().bytes, 0U);
      EXPECT_EQ(copied->result().failed, (std::vector<uint32_t>{0, 1}));
      EXPECT_FALSE(copied->event().status());
      EXPECT_TRUE(pair.dst.untouched(BlockId{2}));
      // The next one is not affected.
      EXPECT_TRUE(
          rig.execute(pair.src_handle, block_ids({6}), pair.dst_handle, block_ids({2}))->wait());
      EXPECT_TRUE(pair.dst.holds(BlockId{2}, 6));
    }
  }
}

TEST(TransferManager, ATransferThatWaitsHoldsUpNoOther) {
  TransferRig rig({.seed = 5, .max_waiting_streams = 2});
  const auto& device = rig.use_device<ScriptedDevice>();
  Pair pair(rig);
  EventSource never = rig.device->create_event();
  std::vector<TransferCompleteNotification> waiting;
  for (uint32_t i = 0; i < 4; ++i) {
    waiting.push_back(rig.execute(pair.src_handle, block_ids({i}), pair.dst_handle, block_ids({i}),
                                  {.wait_for = {never.event()}})
                          .value());
  }
  for (uint32_t i = 4; i < 8; ++i) {
    ASSERT_TRUE(
        rig.execute(pair.src_handle, block_ids({i}), pair.dst_handle, block_ids({i}))->wait());
    EXPECT_TRUE(pair.dst.holds(BlockId{i}, i));
  }
  for (const auto& transfer : waiting) EXPECT_FALSE(transfer.done());
  EXPECT_EQ(device.num_streams, 4 + 4 + 2 + 2);
  never.signal();
  for (uint32_t i = 0; i < 4; ++i) {
    EXPECT_TRUE(waiting[i].wait());
    EXPECT_TRUE(pair.dst.holds(BlockId{i}, i));
  }
}

TEST(TransferManager, TransfersFollowEachOtherByEvents) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    TransferRig rig({.seed = seed});
    Pair pair(rig);
    GuardedPlace file(kConfig, LayoutKind::kFileSlots);
    GuardedPlace back(kConfig, LayoutKind::kLayerSeparateBlockFirst);
    const LayoutHandle file_handle = rig.manager->register_layout(file.layout()).value();
    const LayoutHandle back_handle = rig.manager->register_layout(back.layout()).value();
    const std::vector<SlotTag> tags{tag_of(1), tag_of(2)};
    const auto ids = block_ids({1, 2});
    const auto down = rig.execute(pair.src_handle, ids, pair.dst_handle, ids).value();
    const auto write = rig.execute(pair.dst_handle, ids, file_handle, ids,
                                   {.wait_for = {down.event()}, .tags = tags})
                           .value();
    const auto read =
        rig.execute(file_handle, ids, back_handle, ids, {.wait_for = {write.event()}, .tags = tags})
            .value();
    const StreamRef stream = rig.device->create_stream("compute").value();
    ASSERT_TRUE(rig.device->wait(stream, read.event()));
    ASSERT_TRUE(rig.device->synchronize(stream)) << seed;
    EXPECT_TRUE(back.holds(BlockId{1}, 1));
    EXPECT_TRUE(back.holds(BlockId{2}, 2));
  }
}

TEST(TransferManager, OnTheCallersStreamCopiesKeepTheStreamsOrder) {
  TransferRig rig({.seed = 9});
  Pair pair(rig);
  const StreamRef stream = rig.device->create_stream("engine").value();
  // What the engine computes before, and what it overwrites after.
  ASSERT_TRUE(rig.device->launch(stream, [&]() -> Status {
    pair.src.fill(BlockId{0}, 50);
    return {};
  }));
  const auto copied = rig.execute(pair.src_handle, block_ids({0}), pair.dst_handle, block_ids({0}),
                                  {.stream = stream});
  ASSERT_TRUE(copied);
  ASSERT_TRUE(rig.device->launch(stream, [&]() -> Status {
    pair.src.fill(BlockId{0}, 60);
    return {};
  }));
  ASSERT_TRUE(rig.device->synchronize(stream));
  ASSERT_TRUE(copied->done());
  EXPECT_TRUE(copied->result().status);
  EXPECT_TRUE(pair.dst.holds(BlockId{0}, 50));
}

TEST(TransferManager, AtTheDeadlineATransferThatHasNotStartedEndsUntouched) {
  TransferRig rig({.seed = 3});
  Pair pair(rig);
  EventSource late = rig.device->create_event();
  EventSource later = rig.device->create_event();
  // Deadlines in any order: each is kept.
  const auto far =
      rig.execute(pair.src_handle, block_ids({1}), pair.dst_handle, block_ids({1}),
                  {.wait_for = {later.event()}, .deadline = rig.after(milliseconds(50))});
  const auto near =
      rig.execute(pair.src_handle, block_ids({0}), pair.dst_handle, block_ids({0}),
                  {.wait_for = {late.event()}, .deadline = rig.after(milliseconds(10))});
  ASSERT_TRUE(far && near);
  rig.stepped->run_for(milliseconds(9));
  EXPECT_FALSE(near->done());
  rig.stepped->run_for(milliseconds(1));
  ASSERT_TRUE(near->done());
  EXPECT_EQ(near->result().status.error().code(), ErrorCode::kTimeout);
  EXPECT_EQ(near->result().failed, std::vector<uint32_t>{0});
  EXPECT_FALSE(far->done());
  rig.stepped->run_for(milliseconds(39));
  EXPECT_FALSE(far->done());
  rig.stepped->run_for(milliseconds(1));
  ASSERT_TRUE(far->done());
  late.signal();
  later.signal();
  rig.stepped->run_until_idle();
  EXPECT_TRUE(pair.dst.untouched(BlockId{0}));
  EXPECT_TRUE(pair.dst.untouched(BlockId{1}));
  // And so is one that is set after all of those.
  EventSource latest = rig.device->create_event();
  const auto third =
      rig.execute(pair.src_handle, block_ids({0}), pair.dst_handle, block_ids({0}),
                  {.wait_for = {latest.event()}, .deadline = rig.after(milliseconds(5))});
  EXPECT_EQ(third->wait().error().code(), ErrorCode::kTimeout);
  EXPECT_EQ(rig.manager->in_flight(), 0U);
}

TEST(TransferManager, TheDeadlineOfATransferThatHasStartedChangesNothing) {
  TransferRig rig({.seed = 3});
  Pair pair(rig);
  EventSource source = rig.device->create_event();
  rig.stepped->hold("host");
  const auto copied =
      rig.execute(pair.src_handle, block_ids({1}), pair.dst_handle, block_ids({1}),
                  {.wait_for = {source.event()}, .deadline = rig.after(milliseconds(10))});
  ASSERT_TRUE(copied);
  source.signal();
  rig.stepped->run_for(milliseconds(50));
  EXPECT_FALSE(copied->done());
  rig.stepped->release("host");
  ASSERT_TRUE(copied->wait());
  EXPECT_TRUE(pair.dst.holds(BlockId{1}, 1));
}

TEST(TransferManager, ADeadlineThatIsKeptLeavesNothingBehind) {
  TransferRig rig({.seed = 3, .max_transfers = 4});
  Pair pair(rig);
  for (int round = 0; round < 300; ++round) {  // more than the queue has room for alarms
    EventSource source = rig.device->create_event();
    const auto copied = rig.execute(
        pair.src_handle, block_ids({1}), pair.dst_handle, block_ids({1}),
        {.wait_for = {source.event()}, .deadline = rig.after(seconds(3600) + milliseconds(round))});
    ASSERT_TRUE(copied) << copied.error().describe();
    source.signal();
    ASSERT_TRUE(copied->wait());
  }
}

// --- limits and failures
// ----------------------------------------------------------------------------

TEST(TransferManager, TakesNoMoreThanMaxTransfersAtATime) {
  TransferRig rig({.seed = 3, .max_transfers = 2});
  Pair pair(rig);
  EventSource source = rig.device->create_event();
  const auto copy = [&](uint32_t block) {
    return rig.execute(pair.src_handle, block_ids({block}), pair.dst_handle, block_ids({block}),
                       {.wait_for = {source.event()}});
  };
  const auto first = copy(0);
  const auto second = copy(1);
  ASSERT_TRUE(first && second);
  expect_error(copy(2), ErrorCode::kExhausted, "2 transfers");
  source.signal();
  ASSERT_TRUE(first->wait());
  ASSERT_TRUE(copy(2)->wait());
}

TEST(TransferManager, ARefusedCopyLeavesNothingUnderWay) {
  TransferRig rig({.seed = 3});
  rig.use_device<testing::FaultyDevice>(
      testing::DeviceFaults{.seed = 1, .copy_fails = 0, .copy_refused = 1});
  Pair pair(rig);
  EventSource source = rig.device->create_event();
  expect_error(rig.execute(pair.src_handle, block_ids({0}), pair.dst_handle, block_ids({0})),
               ErrorCode::kExhausted, "no copy");
  expect_error(rig.execute(pair.src_handle, block_ids({0}), pair.dst_handle, block_ids({0}),
                           {.wait_for = {source.event()}}),
               ErrorCode::kExhausted, "no copy");
  EXPECT_EQ(rig.manager->in_flight(), 0U);
  // Waiting on the host, the refusal comes after the call.
  const auto later = rig.execute(pair.src_handle, block_ids({0}), pair.dst_handle, block_ids({0}),
                                 {.wait_for = {source.event()}, .deadline = rig.after(seconds(1))});
  ASSERT_TRUE(later);
  source.signal();
  EXPECT_EQ(later->wait().error().code(), ErrorCode::kExhausted);
  EXPECT_TRUE(pair.dst.untouched(BlockId{0}));
}

TEST(TransferManager, ARefusedCopyLeavesNoWaitBehindForTheNextTransfer) {
  TransferRig rig({.seed = 3, .max_waiting_streams = 1});
  auto& device = rig.use_device<ScriptedDevice>();
  Pair pair(rig);
  EventSource never = rig.device->create_event();
  EventSource soon = rig.device->create_event();
  device.before_copy = []() -> Status { return make_error(ErrorCode::kExhausted, "full"); };
  EXPECT_FALSE(rig.execute(pair.src_handle, block_ids({0}), pair.dst_handle, block_ids({0}),
                           {.wait_for = {never.event()}}));
  device.before_copy = [] { return Status(); };
  const auto next = rig.execute(pair.src_handle, block_ids({0}), pair.dst_handle, block_ids({0}),
                                {.wait_for = {soon.event()}});
  soon.signal();
  ASSERT_TRUE(next->wait());
  EXPECT_TRUE(pair.dst.holds(BlockId{0}, 0));
}

TEST(TransferManager, AFailedCopyFailsItsTransferAndNoOther) {
  TransferRig rig;
  const auto& device = rig.use_device<testing::FaultyDevice>(
      testing::DeviceFaults{.seed = testing::test_seed(4), .copy_fails = 0.3, .copy_refused = 0});
  LayoutConfig config = kConfig;
  config.num_blocks = 200;
  Pair pair(rig, config);
  std::vector<TransferCompleteNotification> copies;
  for (uint32_t id = 0; id < 200; ++id) {
    copies.push_back(
        rig.execute(pair.src_handle, block_ids({id}), pair.dst_handle, block_ids({id})).value());
  }
  uint64_t failures = 0;
  for (uint32_t id = 0; id < 200; ++id) {
    if (copies[id].wait()) {
      EXPECT_TRUE(pair.dst.holds(BlockId{id}, id));
      continue;
    }
    ++failures;
    EXPECT_EQ(copies[id].result().status.error().code(), ErrorCode::kDevice);
    EXPECT_EQ(copies[id].result().failed, std::vector<uint32_t>{0});
    EXPECT_EQ(copies[id].result().bytes, 0U);
  }
  EXPECT_EQ(failures, device.num_faults());
  EXPECT_GT(failures, 20U);
  EXPECT_EQ(testing::counter_value(rig.metrics, "kvbm_copy_failed_blocks_total"), failures);
}

TEST(TransferManager, ThereIsNoSuccessWithoutBytes) {
  TransferRig rig({.seed = 3});
  auto& device = rig.use_device<ScriptedDevice>();
  device.swallows_copies = true;
  Pair pair(rig);
  const auto copied = rig.execute(pair.src_handle, block_ids({0}), pair.dst_handle, block_ids({0}));
  ASSERT_TRUE(copied);
  EXPECT_EQ(copied->wait().error().code(), ErrorCode::kInternal);
  EXPECT_NE(copied->result().status.error().message().find("0 of 576 bytes"), std::string::npos);
}

TEST(TransferManager, ARefusedRecordDoesNotEndATransferWhoseCopiesStillRun) {
  for (const int refused_launches : {0, 3}) {
    TransferRig rig({.seed = 3});
    auto& device = rig.use_device<ScriptedDevice>();
    Pair pair(rig);
    const auto full = [](const char* what) {
      return make_error(ErrorCode::kExhausted, std::string("the stream takes no ") + what);
    };
    int launches_left = refused_launches;
    device.before_record = [&]() -> Status { return full("record"); };
    device.before_launch = [&]() -> Status {
      if (launches_left-- > 0) return full("launch");
      return {};
    };
    const auto copied =
        rig.execute(pair.src_handle, block_ids({6}), pair.dst_handle, block_ids({2}));
    ASSERT_TRUE(copied);
    EXPECT_FALSE(copied->done());
    EXPECT_TRUE(pair.dst.untouched(BlockId{2}));
    ASSERT_TRUE(copied->wait());
    EXPECT_TRUE(pair.dst.holds(BlockId{2}, 6));
    EXPECT_EQ(copied->result().bytes, kConfig.block_bytes());
    EXPECT_TRUE(copied->event().done());
  }
}

TEST(TransferManager, CopiesOfADestroyedStreamAreNotDoneBeforeTheyHaveEnded) {
  for (const bool device_goes : {false, true}) {
    TransferRig rig({.seed = 3});
    auto& device = rig.use_device<ScriptedDevice>();
    Pair pair(rig);
    const StreamRef stream = rig.device->create_stream("engine").value();
    EventSource source = rig.device->create_event();
    ASSERT_TRUE(rig.device->wait(stream, source.event()));
    device.before_record = [&]() -> Status {
      // Its owner is faster than the record; what is queued still runs.
      static_cast<void>(rig.device->destroy_stream(stream));
      return {};
    };
    const auto copied = rig.execute(pair.src_handle, block_ids({6}), pair.dst_handle,
                                    block_ids({2}), {.stream = stream});
    ASSERT_TRUE(copied);
    EXPECT_FALSE(copied->done());
    rig.stepped->run_until_idle();
    ASSERT_FALSE(copied->done());
    EXPECT_TRUE(pair.dst.untouched(BlockId{2}));
    if (device_goes) {
      rig.manager.reset();
      rig.device.reset();
    } else {
      source.signal();
      rig.stepped->run_until_idle();
      EXPECT_TRUE(pair.dst.holds(BlockId{2}, 6));
    }
    ASSERT_TRUE(copied->done());
    EXPECT_EQ(copied->result().status.error().code(), ErrorCode::kNotFound);
    EXPECT_EQ(copied->result().failed, std::vector<uint32_t>{0});
  }
}

// --- memory that runs out
// ----------------------------------------------------------------------------------------

TEST(TransferManager, ATransferThatFailsNeedsNoMemoryForIt) {
  TransferRig rig({.seed = 3});
  Pair pair(rig);
  EventSource source = rig.device->create_event();
  const auto copied =
      rig.execute(pair.src_handle, block_ids({0, 1, 2}), pair.dst_handle, block_ids({0, 1, 2}),
                  {.wait_for = {source.event()}, .deadline = rig.after(seconds(1))});
  ASSERT_TRUE(copied);
  Status failure = make_error(ErrorCode::kIo, "a message that is too long for a small string");
  size_t refused = 0;
  {
    const testing::AllocationFailure no_memory;
    source.signal(std::move(failure));
    refused = no_memory.num_refused();
  }
  EXPECT_GT(refused, 0U);
  ASSERT_TRUE(copied->done());
  EXPECT_EQ(copied->wait().error().code(), ErrorCode::kIo);
  EXPECT_EQ(copied->result().failed, (std::vector<uint32_t>{0, 1, 2}));
}

TEST(TransferManager, ATransferThatIsCancelledOrTooLateNeedsNoMemoryForIt) {
  TransferRig rig({.seed = 3});
  Pair pair(rig);
  EventSource never = rig.device->create_event();
  const auto late = rig.execute(pair.src_handle, block_ids({0}), pair.dst_handle, block_ids({0}),
                                {.wait_for = {never.event()}, .deadline = rig.after(seconds(1))});
  ASSERT_TRUE(late);
  rig.stepped->advance(seconds(2));
  {
    const testing::AllocationFailure no_memory(1);  // of tick()
    rig.stepped->run_until_idle();
  }
  ASSERT_TRUE(late->done());
  EXPECT_EQ(late->result().status.error().code(), ErrorCode::kTimeout);
}

TEST(TransferManager, ACopyThatFindsNoMemoryFails) {
  TransferRig rig({.seed = 3});
  auto& device = rig.use_device<ScriptedDevice>();
  Pair pair(rig);
  device.before_copy = []() -> Status { throw std::bad_alloc(); };
  expect_error(rig.execute(pair.src_handle, block_ids({0}), pair.dst_handle, block_ids({0})),
               ErrorCode::kExhausted, "memory");
  EventSource source = rig.device->create_event();
  expect_error(rig.execute(pair.src_handle, block_ids({0}), pair.dst_handle, block_ids({0}),
                           {.wait_for = {source.event()}}),
               ErrorCode::kExhausted, "memory");
  const auto later = rig.execute(pair.src_handle, block_ids({0}), pair.dst_handle, block_ids({0}),
                                 {.wait_for = {source.event()}, .deadline = rig.after(seconds(1))});
  ASSERT_TRUE(later);
  source.signal();
  EXPECT_EQ(later->wait().error().code(), ErrorCode::kExhausted);
  EXPECT_EQ(later->result().failed, std::vector<uint32_t>{0});
  EXPECT_EQ(rig.manager->in_flight(), 0U);
  device.before_copy = [] { return Status(); };
  EXPECT_TRUE(
      rig.execute(pair.src_handle, block_ids({0}), pair.dst_handle, block_ids({0}))->wait());
}

TEST(TransferManager, WithoutMemoryForItsEndACopyFailsOnceItHasStopped) {
  for (const bool waits_on_host : {false, true}) {
    for (const bool refuses_first : {false, true}) {
      TransferRig rig({.seed = 3});
      auto& device = rig.use_device<ScriptedDevice>();
      Pair pair(rig);
      const auto no_memory = []() -> Status { throw std::bad_alloc(); };
      if (refuses_first) {
        device.before_record = []() -> Status { return make_error(ErrorCode::kExhausted, "full"); };
      } else {
        device.before_record = no_memory;
      }
      device.before_launch = no_memory;
      EventSource source = rig.device->create_event();
      TransferOptions options;
      if (waits_on_host) {
        options = {.wait_for = {source.event()}, .deadline = rig.after(seconds(1))};
      }
      const auto copied =
          rig.execute(pair.src_handle, block_ids({6}), pair.dst_handle, block_ids({2}), options);
      ASSERT_TRUE(copied);
      EXPECT_FALSE(copied->done());
      EXPECT_TRUE(pair.dst.untouched(BlockId{2}));
      source.signal();
      EXPECT_EQ(copied->wait().error().code(), ErrorCode::kExhausted);
      EXPECT_TRUE(pair.dst.holds(BlockId{2}, 6));
      EXPECT_EQ(copied->result().failed, std::vector<uint32_t>{0});
      EXPECT_EQ(rig.manager->in_flight(), 0U);
    }
  }
}

// --- the end
// ----------------------------------------------------------------------------------------

TEST(TransferManager, DroppedItCancelsWhatHasNotStarted) {
  TransferRig rig({.seed = 3});
  Pair pair(rig);
  EventSource never = rig.device->create_event();
  const auto copied = rig.execute(pair.src_handle, block_ids({0}), pair.dst_handle, block_ids({0}),
                                  {.wait_for = {never.event()}, .deadline = rig.after(seconds(1))});
  ASSERT_TRUE(copied);
  rig.manager.reset();
  ASSERT_TRUE(copied->done());
  EXPECT_EQ(copied->result().status.error().code(), ErrorCode::kCancelled);
  EXPECT_EQ(copied->event().status().error().code(), ErrorCode::kCancelled);
  never.signal();
  rig.stepped->run_until_idle();
  EXPECT_TRUE(pair.dst.untouched(BlockId{0}));
}

testing::Coroutine note_end(TransferCompleteNotification notification,
                            std::vector<std::optional<ErrorCode>>& ends) {
  const Status outcome = co_await notification;
  ends.push_back(outcome ? std::nullopt : std::optional(outcome.error().code()));
}

TEST(TransferManager, CoroutinesGoOnOnceWhateverEndsTheirTransfer) {
  TransferRig rig({.seed = 3});
  Pair pair(rig);
  EventSource never = rig.device->create_event();
  EventSource failing = rig.device->create_event();
  const auto copy = [&](uint32_t id, TransferOptions options) {
    return rig
        .execute(pair.src_handle, block_ids({id}), pair.dst_handle, block_ids({id}),
                 std::move(options))
        .value();
  };
  const std::vector<TransferCompleteNotification> parts = {
      copy(0, {}), copy(1, {.wait_for = {failing.event()}}),
      copy(2, {.wait_for = {never.event()}, .deadline = rig.after(seconds(1))}),
      copy(3, {.wait_for = {never.event()}, .deadline = rig.after(seconds(1000))})};
  std::vector<std::optional<ErrorCode>> ends;
  std::vector<std::optional<ErrorCode>> end_of_all;
  for (const TransferCompleteNotification& part : parts) note_end(part, ends);
  note_end(TransferCompleteNotification::aggregate(parts), end_of_all);
  EXPECT_TRUE(ends.empty());
  failing.signal(make_error(ErrorCode::kDevice, "lost"));
  rig.stepped->run_for(seconds(2));
  EXPECT_EQ(ends.size(), 3U);
  EXPECT_TRUE(end_of_all.empty());
  rig.manager.reset();
  ASSERT_EQ(ends.size(), 4U);
  EXPECT_EQ(ends[3], ErrorCode::kCancelled);
  EXPECT_EQ(std::ranges::count(ends, std::optional<ErrorCode>()), 1);
  EXPECT_EQ(std::ranges::count(ends, ErrorCode::kDevice), 1);
  EXPECT_EQ(std::ranges::count(ends, ErrorCode::kTimeout), 1);
  EXPECT_EQ(end_of_all, std::vector<std::optional<ErrorCode>>{ErrorCode::kDevice});
}

TEST(TransferManager, DroppedItWaitsForCopiesThatRun) {
  for (const bool threads : {true, false}) {
    TransferRig rig({.seed = threads ? std::nullopt : std::optional<uint64_t>(3)});
    LayoutConfig config = kConfig;
    config.num_blocks = 100;
    Pair pair(rig, config);
    std::vector<TransferCompleteNotification> copies;
    for (uint32_t id = 0; id < 100; ++id) {
      copies.push_back(
          rig.execute(pair.src_handle, block_ids({id}), pair.dst_handle, block_ids({id})).value());
    }
    rig.manager.reset();
    for (uint32_t id = 0; id < 100; ++id) {
      ASSERT_TRUE(copies[id].done());
      EXPECT_TRUE(copies[id].result().status);
      EXPECT_TRUE(pair.dst.holds(BlockId{id}, id));
    }
  }
}

void drop_manager_before_event(TransferRig& rig, bool device_goes) {
  Pair pair(rig);
  EventSource source = rig.device->create_event();
  const auto waiting = rig.execute(pair.src_handle, block_ids({0}), pair.dst_handle, block_ids({0}),
                                   {.wait_for = {source.event()}});
  const StreamRef stream = rig.device->create_stream("engine").value();
  ASSERT_TRUE(rig.device->wait(stream, source.event()));
  const auto callers = rig.execute(pair.src_handle, block_ids({1}), pair.dst_handle, block_ids({1}),
                                   {.stream = stream});
  ASSERT_TRUE(waiting && callers);
  rig.manager.reset();
  EXPECT_FALSE(waiting->done());
  EXPECT_FALSE(callers->done());
  if (device_goes) {
    rig.device.reset();
    ASSERT_TRUE(waiting->done() && callers->done());
    EXPECT_EQ(waiting->result().status.error().code(), ErrorCode::kCancelled);
    EXPECT_EQ(callers->result().status.error().code(), ErrorCode::kCancelled);
    EXPECT_TRUE(pair.dst.untouched(BlockId{0}));
  } else {
    source.signal();
    EXPECT_TRUE(waiting->wait());
    EXPECT_TRUE(callers->wait());
    EXPECT_TRUE(pair.dst.holds(BlockId{0}, 0));
    EXPECT_TRUE(pair.dst.holds(BlockId{1}, 1));
  }
}

TEST(TransferManager, CopiesBehindAnEventEndWithTheirDeviceIfTheManagerIsDropped) {
  for (const bool device_goes : {true, false}) {
    TransferRig stepped({.seed = 3});
    drop_manager_before_event(stepped, device_goes);
    TransferRig threads;
    drop_manager_before_event(threads, device_goes);
  }
}

TEST(TransferManager, ASealThatTheDeviceDropsCancelsTheTransfer) {
  TransferRig rig({.seed = 3});
  auto& device = rig.use_device<ScriptedDevice>();
  device.before_record = []() -> Status { return make_error(ErrorCode::kExhausted, "full"); };
  Pair pair(rig);
  const StreamRef stream = rig.device->create_stream("engine").value();
  EventSource never = rig.device->create_event();
  ASSERT_TRUE(rig.device->wait(stream, never.event()));
  const auto copied = rig.execute(pair.src_handle, block_ids({1}), pair.dst_handle, block_ids({1}),
                                  {.stream = stream});
  ASSERT_TRUE(copied);
  rig.manager.reset();
  rig.stepped->run_until_idle();
  EXPECT_FALSE(copied->done());
  rig.device.reset();
  ASSERT_TRUE(copied->done());
  EXPECT_EQ(copied->result().status.error().code(), ErrorCode::kCancelled);
}

TEST(TransferManager, ItGivesItsStreamsBack) {
  TransferRig rig({.seed = 3});
  auto& device = rig.use_device<ScriptedDevice>();
  Pair pair(rig);
  EventSource source = rig.device->create_event();
  for (int i = 0; i < 3; ++i) {
    EventSource soon = rig.device->create_event();
    const auto copied = rig.execute(pair.src_handle, block_ids({0}), pair.dst_handle,
                                    block_ids({0}), {.wait_for = {soon.event()}});
    soon.signal();
    ASSERT_TRUE(copied->wait());
  }
  EXPECT_EQ(device.num_streams, 4 + 4 + 2 + 8);
  rig.manager.reset();
  EXPECT_EQ(device.num_streams, 0);
}

TEST(TransferManager, ServesManyThreadsAtOnce) {
  TransferRig rig;
  LayoutConfig config = kConfig;
  config.num_blocks = 64;
  Pair pair(rig, config);
  GuardedPlace file(config, LayoutKind::kFileSlots);
  const LayoutHandle file_handle = rig.manager->register_layout(file.layout()).value();
  const auto queue = rig.executor->create_queue({.name = "callers", .num_threads = 4}).value();
  std::atomic<int> failures{0};
  for (uint32_t part = 0; part < 8; ++part) {
    ASSERT_TRUE(queue->post([&, part] {
      std::vector<BlockId> ids;
      std::vector<SlotTag> tags;
      for (uint32_t i = 0; i < 8; ++i) {
        ids.emplace_back(part * 8 + i);
        tags.push_back(tag_of(part * 8 + i));
      }
      for (int round = 0; round < 10; ++round) {
        const auto write =
            rig.execute(pair.src_handle, ids, file_handle, ids, {.tags = tags}).value();
        const auto read = rig.execute(file_handle, ids, pair.dst_handle, ids,
                                      {.wait_for = {write.event()}, .tags = tags})
                              .value();
        const auto back =
            rig.execute(pair.dst_handle, ids, pair.src_handle, ids, {.wait_for = {read.event()}})
                .value();
        if (!back.wait() || !read.wait()) ++failures;
      }
    }));
  }
  queue->stop();
  EXPECT_EQ(failures, 0);
  for (uint32_t id = 0; id < 64; ++id) EXPECT_TRUE(pair.src.holds(BlockId{id}, id));
  EXPECT_TRUE(pair.src.guards_hold());
  EXPECT_TRUE(pair.dst.guards_hold());
  EXPECT_TRUE(file.guards_hold());
  EXPECT_EQ(rig.manager->in_flight(), 0U);
}

}  // namespace
}  // namespace kvbm
