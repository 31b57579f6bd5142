// SPDX-License-Identifier: Apache-2.0
// TransferManager: the options of a transfer, the ways to name it, and what a manager lends.
#include "kvbm/transfer/transfer_options.hpp"

#include <array>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/transfer/transfer_manager.hpp"

#include "tests/support/guarded_place.hpp"
#include "tests/support/transfer_rig.hpp"
#include "tests/support/wrapped_device.hpp"

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
                               .num_heads = 6,
                               .alignment = 1};

constexpr LayoutConfig half_of(LayoutConfig config) {
  config.inner_dim /= 2;
  config.num_heads = *config.num_heads / 2;
  return config;
}

void expect_error(const Result<TransferCompleteNotification>& result, ErrorCode code,
                  const std::string& word) {
  ASSERT_FALSE(result) << word;
  EXPECT_EQ(result.error().code(), code) << result.error().describe();
  EXPECT_NE(result.error().message().find(word), std::string::npos) << result.error().describe();
}

/// Passes on, and tells about copies and streams.
class ToldDevice final : public testing::WrappedDevice {
 public:
  using WrappedDevice::WrappedDevice;

  std::function<void(const StridedCopyBatch&)> on_copy = [](const StridedCopyBatch&) {};
  int num_created = 0;

  [[nodiscard]] Result<StreamRef> create_stream(std::string_view name) override {
    ++num_created;
    return inner().create_stream(name);
  }
  Status copy(StreamRef stream, StridedCopyBatch batch) override {
    on_copy(batch);
    return inner().copy(stream, std::move(batch));
  }
};

/// A place whose block i has the key i, registered.
struct Filled {
  Filled(TransferRig& rig, const LayoutConfig& config, const KvBlockLayout& format,
         LayoutKind kind = LayoutKind::kFullyContiguous)
      : place(config, kind, StorageKind::kSystem, {}, format) {
    if (!place.is_file()) {
      for (uint32_t i = 0; i < config.num_blocks; ++i) place.fill(BlockId{i}, i);
    }
    handle = rig.manager->register_layout(place.layout()).value();
  }

  [[nodiscard]] std::vector<std::byte> head(uint32_t block, uint32_t layer, uint32_t outer,
                                            uint32_t head, uint32_t page) const {
    return place.read(place.layout().head_region(
        BlockId{block}, LayerId(static_cast<uint16_t>(layer)), outer, head, page));
  }

  GuardedPlace place;
  LayoutHandle handle;
};

/// Whether heads [src_first, +count) of a block became heads [dst_first, +count) of another.
::testing::AssertionResult same_heads(const Filled& src, uint32_t src_block, uint32_t src_first,
                                      const Filled& dst, uint32_t dst_block, uint32_t dst_first,
                                      uint32_t count) {
  for (uint32_t layer = 0; layer < kConfig.num_layers; ++layer) {
    for (uint32_t outer = 0; outer < kConfig.outer_dim; ++outer) {
      for (uint32_t head = 0; head < count; ++head) {
        for (uint32_t page = 0; page < kConfig.page_size; ++page) {
          if (src.head(src_block, layer, outer, src_first + head, page) !=
              dst.head(dst_block, layer, outer, dst_first + head, page)) {
            return ::testing::AssertionFailure() << "layer " << layer << ", outer " << outer
                                                 << ", head " << head << ", page " << page;
          }
        }
      }
    }
  }
  return ::testing::AssertionSuccess();
}

// --- heads and formats
// -----------------------------------------------------------------------------------------

TEST(TransferOptions, HeadsGoToAnotherTensorParallelSizeAndBack) {
  TransferRig rig;
  const Filled whole(rig, kConfig, KvBlockLayout::kOperationalHND);
  std::vector<std::unique_ptr<Filled>> halves;
  for (int i = 0; i < 2; ++i) {
    halves.push_back(std::make_unique<Filled>(rig, half_of(kConfig), KvBlockLayout::kUniversalTP));
    for (uint32_t id = 0; id < 8; ++id) halves.back()->place.fill(BlockId{id}, 99);
  }
  for (uint32_t rank = 0; rank < 2; ++rank) {
    const auto copied = rig.execute(whole.handle, block_ids({5, 2}), halves[rank]->handle,
                                    block_ids({0, 7}), {.src_heads = HeadRange{rank * 3, 3}});
    ASSERT_TRUE(copied) << copied.error().describe();
    ASSERT_TRUE(copied->wait());
    EXPECT_EQ(copied->result().bytes, kConfig.block_bytes());  // two halves
    EXPECT_TRUE(same_heads(whole, 5, rank * 3, *halves[rank], 0, 0, 3));
    EXPECT_TRUE(same_heads(whole, 2, rank * 3, *halves[rank], 7, 0, 3));
    EXPECT_TRUE(halves[rank]->place.holds(BlockId{1}, 99));
    EXPECT_TRUE(halves[rank]->place.guards_hold());
  }
  Filled back(rig, kConfig, KvBlockLayout::kOperationalNHD, LayoutKind::kLayerSeparateBlockSecond);
  for (uint32_t rank = 0; rank < 2; ++rank) {
    ASSERT_TRUE(rig.execute(halves[rank]->handle, block_ids({0, 7}), back.handle, block_ids({1, 3}),
                            {.dst_heads = HeadRange{rank * 3, 3}})
                    ->wait());
  }
  EXPECT_TRUE(back.place.holds(BlockId{1}, 5));
  EXPECT_TRUE(back.place.holds(BlockId{3}, 2));
  EXPECT_TRUE(back.place.guards_hold());
}

TEST(TransferOptions, HeadsAndLayersAndFormatsGoTogether) {
  TransferRig rig;
  const Filled src(rig, kConfig, KvBlockLayout::kUniversalPP);
  Filled dst(rig, half_of(kConfig), KvBlockLayout::kOperationalNHD);
  for (uint32_t id = 0; id < 8; ++id) dst.place.fill(BlockId{id}, 99);
  const GuardedPlace before(half_of(kConfig), LayoutKind::kFullyContiguous);
  const LayerRange layers{LayerId{1}, 1};
  ASSERT_TRUE(
      rig.execute(
             src.handle, block_ids({4}), dst.handle, block_ids({6}),
             {.layer_range = layers, .src_heads = HeadRange{2, 2}, .dst_heads = HeadRange{1, 2}})
          ->wait());
  for (uint32_t page = 0; page < kConfig.page_size; ++page) {
    for (uint32_t outer = 0; outer < kConfig.outer_dim; ++outer) {
      EXPECT_EQ(dst.head(6, 1, outer, 1, page), src.head(4, 1, outer, 2, page));
      EXPECT_EQ(dst.head(6, 1, outer, 2, page), src.head(4, 1, outer, 3, page));
      EXPECT_EQ(dst.head(6, 1, outer, 0, page), dst.head(5, 1, outer, 0, page));
      EXPECT_EQ(dst.head(6, 0, outer, 1, page), dst.head(5, 0, outer, 1, page));
    }
  }
}

TEST(TransferOptions, ALayoutIsReadAndWrittenInTheFormatThatAnOptionNames) {
  TransferRig rig;
  // What is there as NHD, registered by someone who did not know.
  Filled nhd(rig, kConfig, KvBlockLayout::kOperationalNHD);
  const MemoryRegion region = nhd.place.layout().page_maps().front().region();
  ASSERT_TRUE(rig.manager->unregister_layout(nhd.handle));
  const LayoutHandle opaque =
      rig.manager->register_layout(PhysicalLayout::fully_contiguous(kConfig, region).value())
          .value();
  Filled hnd(rig, kConfig, KvBlockLayout::kOperationalHND);
  for (uint32_t id = 0; id < 8; ++id) hnd.place.fill(BlockId{id}, 99);
  expect_error(rig.execute(opaque, block_ids({3}), hnd.handle, block_ids({1})),
               ErrorCode::kUnsupported, "unknown");
  ASSERT_TRUE(rig.execute(opaque, block_ids({3}), hnd.handle, block_ids({1}),
                          {.src_kv_layout = KvBlockLayout::kOperationalNHD})
                  ->wait());
  EXPECT_TRUE(hnd.place.holds(BlockId{1}, 3));
  ASSERT_TRUE(rig.execute(hnd.handle, block_ids({1}), opaque, block_ids({4}),
                          {.dst_kv_layout = KvBlockLayout::kOperationalNHD})
                  ->wait());
  EXPECT_TRUE(nhd.place.holds(BlockId{4}, 3));
  // Bytes that are taken for something else on purpose: written as NHD where HND is the name.
  ASSERT_TRUE(rig.execute(opaque, block_ids({5}), hnd.handle, block_ids({2}),
                          {.src_kv_layout = KvBlockLayout::kOperationalNHD,
                           .dst_kv_layout = KvBlockLayout::kOperationalNHD})
                  ->wait());
  EXPECT_FALSE(hnd.place.holds(BlockId{2}, 5));
  EXPECT_EQ(nhd.place.read(region.slice(5 * kConfig.block_bytes(), kConfig.block_bytes())),
            hnd.place.read(hnd.place.layout().page_maps().front().region().slice(
                2 * kConfig.block_bytes(), kConfig.block_bytes())));
}

TEST(TransferOptions, WhatCannotBeHonouredIsRefusedBeforeAnythingIsTouched) {
  TransferRig rig({.seed = 1});
  const Filled src(rig, kConfig, KvBlockLayout::kOperationalHND);
  const Filled dst(rig, kConfig, KvBlockLayout::kOperationalNHD,
                   LayoutKind::kLayerSeparateBlockFirst);
  const Filled half(rig, half_of(kConfig), KvBlockLayout::kOperationalHND);
  const Filled opaque(rig, kConfig, KvBlockLayout::kUnknown);
  const Filled other(rig, kConfig, KvBlockLayout::kUnknown);
  const Filled file(rig, kConfig, KvBlockLayout::kOperationalHND, LayoutKind::kFileSlots);
  const auto ids = block_ids({0, 1});
  const std::vector<SlotTag> tags{tag_of(0), tag_of(1)};
  const StreamRef stream = rig.device->create_stream("engine").value();
  const auto invalid = ErrorCode::kInvalidArgument;
  const auto unsupported = ErrorCode::kUnsupported;
  const auto refuses = [&](const Filled& from, const Filled& to, const TransferOptions& options,
                           ErrorCode code, const std::string& word) {
    expect_error(rig.execute(from.handle, ids, to.handle, ids, options), code, word);
    const auto why = rig.manager->explain_transfer(
        {.src = from.handle, .src_ids = ids, .dst = to.handle, .dst_ids = ids, .options = options});
    ASSERT_FALSE(why);
    EXPECT_EQ(why.error().code(), code);
  };
  refuses(src, dst, {.src_heads = HeadRange{5, 2}}, invalid, "2 heads from head 5");
  refuses(src, dst, {.src_heads = HeadRange{0, 0}}, invalid, "0 heads");
  refuses(src, dst, {.src_heads = HeadRange{0, 3}}, invalid, "num_heads 3 and 6");
  refuses(src, half, {}, invalid, "num_heads 6 and 3");
  refuses(opaque, other, {.src_heads = HeadRange{0, 1}}, invalid, "format is unknown");
  refuses(src, dst, {.dst_kv_layout = KvBlockLayout::kUniversalTP}, invalid, "lie apart");
  refuses(src, dst, {.src_kv_layout = KvBlockLayout::kUnknown}, invalid, "unknown format");
  refuses(src, dst, {.layer_range = LayerRange{LayerId{2}, 2}}, invalid, "layers");
  refuses(src, dst, {.write_notification = 7}, unsupported, "another worker");
  refuses(src, file, {.tags = tags, .write_notification = 7}, unsupported, "another worker");
  refuses(src, dst, {.stream = stream, .priority = TransferPriority::kHigh}, unsupported,
          "priority");
  refuses(src, file, {.stream = stream, .tags = tags}, unsupported, "stream");
  refuses(src, file, {.tags = tags, .src_heads = HeadRange{0, 3}, .dst_heads = HeadRange{0, 3}},
          unsupported, "all layers and heads");
  rig.stepped->run_until_idle();
  EXPECT_EQ(rig.manager->in_flight(), 0U);
  for (uint32_t id = 0; id < kConfig.num_blocks; ++id) {
    EXPECT_TRUE(src.place.holds(BlockId{id}, id));
    EXPECT_TRUE(dst.place.holds(BlockId{id}, id));
    EXPECT_TRUE(file.place.untouched(BlockId{id}));
  }
}

// --- ways to name a transfer
// ---------------------------------------------------------------------------------------

TEST(TransferOptions, KvBlocksOfRegisteredLayoutsAreCopiedInTheirFormats) {
  TransferRig rig;
  const Filled src(rig, kConfig, KvBlockLayout::kOperationalHND);
  Filled dst(rig, kConfig, KvBlockLayout::kOperationalNHD);
  const auto from =
      KvBlocks::create(rig.manager->find_layout(src.handle), block_ids({4, 6})).value();
  const auto to = KvBlocks::create(rig.manager->find_layout(dst.handle), block_ids({1, 0})).value();
  ASSERT_TRUE(rig.manager->execute_transfer(from, to)->wait());
  EXPECT_TRUE(dst.place.holds(BlockId{1}, 4));
  EXPECT_TRUE(dst.place.holds(BlockId{0}, 6));

  // Read as NHD: the same bytes on both sides.
  const auto as_nhd = KvBlocks::create(rig.manager->find_layout(src.handle), block_ids({4, 6}),
                                       KvBlockLayout::kOperationalNHD)
                          .value();
  ASSERT_TRUE(rig.manager->execute_transfer(as_nhd, to)->wait());
  EXPECT_FALSE(dst.place.holds(BlockId{1}, 4));
  ASSERT_TRUE(
      rig.manager->execute_transfer(as_nhd, to, {.src_kv_layout = KvBlockLayout::kOperationalNHD})
          ->wait());
  expect_error(
      rig.manager->execute_transfer(as_nhd, to, {.src_kv_layout = KvBlockLayout::kUniversalTP}),
      ErrorCode::kInvalidArgument, "universal_tp");

  const auto copy = std::make_shared<const PhysicalLayout>(src.place.layout());
  const auto foreign = KvBlocks::create(copy, block_ids({4, 6})).value();
  expect_error(rig.manager->execute_transfer(foreign, to), ErrorCode::kNotFound, "find_layout");
  expect_error(rig.manager->execute_transfer(from, foreign), ErrorCode::kNotFound, "find_layout");
  ASSERT_TRUE(rig.manager->unregister_layout(src.handle));
  expect_error(rig.manager->execute_transfer(from, to), ErrorCode::kNotFound, "find_layout");
}

TEST(TransferOptions, TiersAreResolvedByEachWorker) {
  for (const uint64_t worker : {1, 2, 3}) {
    TransferRig rig;
    // Another number for the same tier on each worker.
    for (uint64_t i = 0; i < worker; ++i) {
      const Filled other(rig, kConfig, KvBlockLayout::kOperationalHND);
      ASSERT_TRUE(rig.manager->unregister_layout(other.handle));
    }
    const Filled g1(rig, kConfig, KvBlockLayout::kOperationalHND);
    Filled g2(rig, kConfig, KvBlockLayout::kOperationalNHD);
    const auto ids = block_ids({2});
    const LogicalTransferRequest request{.src = LogicalLayoutHandle::kG1,
                                         .src_ids = ids,
                                         .dst = LogicalLayoutHandle::kG2,
                                         .dst_ids = ids};
    g2.place.fill(BlockId{2}, 99);
    ASSERT_TRUE(rig.manager->build_logical_descriptor(g1.handle, LogicalLayoutHandle::kG1));
    expect_error(rig.manager->execute_transfer(request), ErrorCode::kNotFound, "G2");
    ASSERT_TRUE(rig.manager->build_logical_descriptor(g2.handle, LogicalLayoutHandle::kG2));
    ASSERT_TRUE(rig.manager->execute_transfer(request)->wait());
    EXPECT_TRUE(g2.place.holds(BlockId{2}, 2));
    LogicalTransferRequest other_group = request;
    other_group.group = GroupId{1};
    expect_error(rig.manager->execute_transfer(other_group), ErrorCode::kNotFound, "");
    LogicalTransferRequest with_options = request;
    with_options.options.layer_range = LayerRange{LayerId{3}, 1};
    expect_error(rig.manager->execute_transfer(with_options), ErrorCode::kInvalidArgument,
                 "layers");
  }
}

TEST(TransferOptions, EachGroupOfLayersHasAShapeOfItsOwn) {
  // Full attention, a sliding window, MLA, and the state of a recurrent layer: one for each block.
  LayoutConfig window = half_of(kConfig);
  window.num_layers = 2;
  LayoutConfig latent = kConfig;
  latent.outer_dim = 1;
  latent.num_heads = 1;
  const LayoutConfig state{.num_blocks = 5,
                           .num_layers = 4,
                           .outer_dim = 1,
                           .page_size = 1,
                           .inner_dim = 1031,
                           .dtype_width_bytes = 4};
  const ModelLayout model{
      .groups = {
          {GroupId{0}, kConfig}, {GroupId{1}, window}, {GroupId{2}, latent}, {GroupId{3}, state}}};
  ASSERT_TRUE(model.validate());
  TransferRig rig;
  std::vector<std::unique_ptr<Filled>> gpus;
  std::vector<std::unique_ptr<Filled>> hosts;
  for (const ModelLayout::Group& group : model.groups) {
    const bool known = group.config.num_heads.has_value();
    gpus.push_back(std::make_unique<Filled>(
        rig, group.config, known ? KvBlockLayout::kOperationalNHD : KvBlockLayout::kUnknown,
        LayoutKind::kLayerSeparateBlockSecond));
    hosts.push_back(std::make_unique<Filled>(
        rig, group.config, known ? KvBlockLayout::kUniversalTP : KvBlockLayout::kUnknown));
    ASSERT_TRUE(rig.manager->build_logical_descriptor(gpus.back()->handle, LogicalLayoutHandle::kG1,
                                                      group.id));
    ASSERT_TRUE(rig.manager->build_logical_descriptor(hosts.back()->handle,
                                                      LogicalLayoutHandle::kG2, group.id));
    const auto from = block_ids({3, 0});
    const auto to = block_ids({1, 4});
    const auto copied = rig.manager->execute_transfer(
        LogicalTransferRequest{.src_ids = from, .dst_ids = to, .group = group.id});
    ASSERT_TRUE(copied) << copied.error().describe();
    ASSERT_TRUE(copied->wait());
    EXPECT_EQ(copied->result().bytes, 2 * group.config.block_bytes());
  }
  for (const auto& host : hosts) {
    for (const auto& [block, key] : {std::pair{1U, 3U}, {4U, 0U}, {0U, 0U}, {2U, 2U}, {3U, 3U}}) {
      EXPECT_TRUE(host->place.holds(BlockId{block}, key));
    }
    EXPECT_TRUE(host->place.guards_hold());
  }
  // Those of two groups are not mixed up.
  const auto ids = block_ids({0});
  const auto mixed = rig.execute(hosts[0]->handle, ids, hosts[2]->handle, ids);
  expect_error(mixed, ErrorCode::kInvalidArgument, "outer_dim 2 and 1");
}

TEST(TransferOptions, AnExplanationSaysTheWayAndTheWishesThatWereNotMet) {
  TransferRig rig({.seed = 1});
  rig.manager =
      TransferManager::create({.device = *rig.device,
                               .executor = *rig.executor,
                               .log = rig.log,
                               .files = rig.files.get(),
                               .preferences = {.native_vs_nixl = NativeVsNixlPolicy::kPreferNixl}})
          .value();
  const Filled src(rig, kConfig, KvBlockLayout::kOperationalHND);
  const Filled dst(rig, kConfig, KvBlockLayout::kOperationalNHD);
  const auto ids = block_ids({0});
  const auto why = rig.manager->explain_transfer(
      {.src = src.handle, .src_ids = ids, .dst = dst.handle, .dst_ids = ids});
  ASSERT_TRUE(why) << why.error().describe();
  for (const char* word : {"system to system (device copy)", "NIXL was preferred", "engine: "}) {
    EXPECT_NE(why->find(word), std::string::npos) << *why;
  }
  EXPECT_EQ(rig.manager->in_flight(), 0U);
}

// --- priority
// -----------------------------------------------------------------------------------------

TEST(TransferOptions, WhatWaitsForTheManagersThreadsGoesByPriority) {
  TransferRig rig({.seed = 1});
  auto& device = rig.use_device<ToldDevice>();
  const Filled src(rig, kConfig, KvBlockLayout::kOperationalHND);
  const Filled dst(rig, kConfig, KvBlockLayout::kOperationalHND);
  std::vector<uint32_t> order;
  device.on_copy = [&](const StridedCopyBatch& batch) {
    order.push_back(batch.pairs->from().front().value());
  };
  EventSource go = rig.device->create_event();
  rig.stepped->hold("w7-transfer");
  uint32_t block = 0;
  for (const TransferPriority priority :
       {TransferPriority::kLow, TransferPriority::kNormal, TransferPriority::kHigh,
        TransferPriority::kLow, TransferPriority::kHigh}) {
    const auto ids = block_ids({block++});
    // With a deadline the wait is the host's.
    ASSERT_TRUE(rig.execute(
        src.handle, ids, dst.handle, ids,
        {.wait_for = {go.event()}, .deadline = rig.after(seconds(9)), .priority = priority}));
  }
  go.signal();
  rig.stepped->run_until_idle();
  EXPECT_TRUE(order.empty());
  rig.stepped->release("w7-transfer");
  rig.stepped->run_until_idle();
  EXPECT_EQ(order, (std::vector<uint32_t>{2, 4, 1, 0, 3}));
  EXPECT_EQ(rig.manager->in_flight(), 0U);
}

// --- streams
// ------------------------------------------------------------------------------------------

TEST(TransferOptions, AllStreamsAreMadeWithTheManager) {
  TransferRig rig({.seed = 1});
  auto& device = rig.use_device<ToldDevice>();
  EXPECT_EQ(device.num_created, 4 + 4 + 2 + 8);
  const Filled src(rig, kConfig, KvBlockLayout::kOperationalHND);
  const Filled dst(rig, kConfig, KvBlockLayout::kOperationalHND);
  EventSource go = rig.device->create_event();
  // Each copy begins the next one while it is being put on its stream.
  std::vector<Result<TransferCompleteNotification>> nested;
  device.on_copy = [&](const StridedCopyBatch&) {
    const auto ids = block_ids({static_cast<uint32_t>(nested.size()) % 8});
    if (nested.size() < 20) {
      nested.emplace_back();
      const size_t at = nested.size() - 1;
      auto made = rig.execute(src.handle, ids, dst.handle, ids);
      nested[at] = std::move(made);
    }
  };
  const auto waits = rig.execute(src.handle, block_ids({7}), dst.handle, block_ids({7}),
                                 {.wait_for = {go.event()}, .deadline = rig.after(seconds(9))});
  ASSERT_TRUE(waits);
  ASSERT_TRUE(rig.execute(src.handle, block_ids({0}), dst.handle, block_ids({1})));
  // Ten are held; whoever comes then is told so.
  ASSERT_EQ(nested.size(), 10U);
  expect_error(nested.back(), ErrorCode::kExhausted, "each stream");
  for (size_t i = 0; i + 1 < nested.size(); ++i) EXPECT_TRUE(nested[i]) << i;
  nested.clear();
  device.on_copy = [](const StridedCopyBatch&) {};
  go.signal();
  rig.stepped->run_until_idle();
  ASSERT_TRUE(waits->wait());
  EXPECT_EQ(device.num_created, 4 + 4 + 2 + 8);
  EXPECT_EQ(rig.manager->in_flight(), 0U);
}

TEST(TransferOptions, ACopyThatWaitedOnTheHostTriesAgainForAStream) {
  TransferRig rig({.seed = 1});
  // A device that runs the manager's tasks in the middle of a copy, as another thread would.
  auto& device = rig.use_device<ToldDevice>();
  rig.manager = TransferManager::create({.worker = WorkerId{7},
                                         .device = device,
                                         .executor = *rig.executor,
                                         .log = rig.log,
                                         .streams_per_direction = 1,
                                         .side_streams = 1})
                    .value();
  Filled src(rig, kConfig, KvBlockLayout::kOperationalHND);
  Filled dst(rig, kConfig, KvBlockLayout::kOperationalHND);
  for (uint32_t id = 0; id < 8; ++id) dst.place.fill(BlockId{id}, 99);
  EventSource go = rig.device->create_event();
  const auto waits = rig.execute(src.handle, block_ids({7}), dst.handle, block_ids({7}),
                                 {.wait_for = {go.event()}, .deadline = rig.after(seconds(9))});
  ASSERT_TRUE(waits);
  int depth = 0;
  device.on_copy = [&](const StridedCopyBatch&) {
    if (++depth < 3) {
      const auto ids = block_ids({static_cast<uint32_t>(depth)});
      EXPECT_TRUE(rig.execute(src.handle, ids, dst.handle, ids));
    } else if (depth == 3) {
      go.signal();
      rig.stepped->run_until_idle();
      EXPECT_FALSE(waits->done());  // no stream for it
    }
  };
  const TimePoint before = rig.after({});
  ASSERT_TRUE(rig.execute(src.handle, block_ids({0}), dst.handle, block_ids({0})));
  ASSERT_EQ(depth, 3);
  EXPECT_TRUE(waits->wait());
  EXPECT_LE(rig.after({}) - before, std::chrono::microseconds(50));
  rig.stepped->run_until_idle();
  EXPECT_EQ(rig.manager->in_flight(), 0U);
  EXPECT_TRUE(dst.place.holds(BlockId{7}, 7));
}

TEST(TransferOptions, AManagerLendsStreamsAndEvents) {
  TransferRig rig({.seed = 1});
  const Filled src(rig, kConfig, KvBlockLayout::kOperationalHND);
  Filled dst(rig, kConfig, KvBlockLayout::kOperationalHND);
  const ManagerContext context = rig.manager->context();
  EXPECT_EQ(&context.device(), rig.device.get());
  std::optional<LentStream> stream = context.acquire_h2d_stream().value();
  // A completion of the caller's own: work behind an event of the host.
  EventSource gate = context.create_event();
  bool ran = false;
  ASSERT_TRUE(context.device().wait(stream->ref(), gate.event()));
  ASSERT_TRUE(context.device().launch(stream->ref(), [&]() -> Status {
    ran = true;
    return {};
  }));
  const Event done = context.device().record(stream->ref());
  const auto copied =
      rig.execute(src.handle, block_ids({3}), dst.handle, block_ids({0}), {.wait_for = {done}});
  ASSERT_TRUE(copied);
  const auto on_it = rig.execute(src.handle, block_ids({4}), dst.handle, block_ids({1}),
                                 {.stream = stream->ref()});
  ASSERT_TRUE(on_it);
  rig.stepped->run_until_idle();
  EXPECT_FALSE(ran || copied->done() || on_it->done());

  // All but one of a direction, and this one is not free before its work is done.
  std::vector<LentStream> others;
  others.push_back(context.acquire_h2d_stream().value());
  others.push_back(context.acquire_h2d_stream().value());
  const auto refused = context.acquire_h2d_stream();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), ErrorCode::kExhausted);
  stream.reset();
  EXPECT_FALSE(context.acquire_h2d_stream());
  EXPECT_TRUE(context.acquire_d2h_stream());
  EXPECT_TRUE(context.acquire_d2d_stream());
  gate.signal();
  ASSERT_TRUE(copied->wait());
  ASSERT_TRUE(on_it->wait());
  EXPECT_TRUE(ran);
  rig.stepped->run_until_idle();
  EXPECT_TRUE(context.acquire_h2d_stream());
  others.clear();
  EXPECT_TRUE(context.acquire_h2d_stream());
}

TEST(TransferOptions, ACallersOwnCompletionGoesWithThoseOfTransfers) {
  TransferRig rig({.seed = 1});
  const Filled src(rig, kConfig, KvBlockLayout::kOperationalHND);
  const Filled dst(rig, kConfig, KvBlockLayout::kOperationalHND);
  const ManagerContext context = rig.manager->context();
  const LentStream stream = context.acquire_d2h_stream().value();
  EventSource gate = context.create_event();
  ASSERT_TRUE(context.device().wait(stream.ref(), gate.event()));
  // Work of the caller's on the manager's stream, and its end.
  auto own = std::make_shared<TransferSource>(context.executor());
  const TransferCompleteNotification mine = own->notification();
  context.device().record(stream.ref()).on_done([own](const Status& status) noexcept {
    own->resolve({.status = status, .bytes = 5});
  });
  const auto copied = rig.execute(src.handle, block_ids({3}), dst.handle, block_ids({0}));
  ASSERT_TRUE(copied);
  const auto both = TransferCompleteNotification::aggregate(std::array{*copied, mine});
  ASSERT_TRUE(copied->wait());
  EXPECT_FALSE(both.done());
  gate.signal(make_error(ErrorCode::kDevice, "the caller's kernel failed"));
  const Status status = both.wait();
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code(), ErrorCode::kDevice);
  EXPECT_EQ(both.result().failed, std::vector<uint32_t>{1});
  EXPECT_EQ(both.result().bytes, kConfig.block_bytes() + 5);
}

TEST(TransferOptions, AFailureOnALentStreamIsNobodyElses) {
  TransferRig rig({.seed = 1});
  const Filled src(rig, kConfig, KvBlockLayout::kOperationalHND);
  const Filled dst(rig, kConfig, KvBlockLayout::kOperationalHND);
  const ManagerContext context = rig.manager->context();
  for (int round = 0; round < 8; ++round) {
    rig.stepped->run_until_idle();
    const LentStream stream = context.acquire_d2d_stream().value();
    ASSERT_TRUE(context.device().launch(stream.ref(), []() -> Status {
      return make_error(ErrorCode::kDevice, "the caller's kernel failed");
    }));
  }
  for (uint32_t id = 0; id < 8; ++id) {
    EXPECT_TRUE(rig.execute(src.handle, block_ids({id}), dst.handle, block_ids({id}))->wait());
  }
}

TEST(TransferOptions, ALentStreamMayOutliveTheManager) {
  TransferRig rig({.seed = 1});
  std::optional<LentStream> stream = rig.manager->context().acquire_d2h_stream().value();
  rig.manager.reset();
  rig.stepped->run_until_idle();
  EXPECT_FALSE(rig.device->record(stream->ref()).status());
  stream.reset();
}

// --- the configuration
// -------------------------------------------------------------------------------------

TEST(TransferOptions, WhatAConfigurationAsksForIsThereOrRefused) {
  TransferRig rig({.seed = 1});
  TransferConfig config{.device = *rig.device, .executor = *rig.executor, .log = rig.log};
  const Status nixl = config.nixl_backend("UCX");
  ASSERT_FALSE(nixl);
  EXPECT_EQ(nixl.error().code(), ErrorCode::kUnsupported);
  EXPECT_NE(nixl.error().message().find("UCX"), std::string::npos);
  config.cuda_device_id = 0;
  const auto manager = TransferManager::create(config);
  ASSERT_FALSE(manager);
  EXPECT_EQ(manager.error().code(), ErrorCode::kInvalidArgument);
  EXPECT_NE(manager.error().message().find("cuda_device_id is 0, the device is host 0"),
            std::string::npos)
      << manager.error().message();
  config.cuda_device_id.reset();
  config.side_streams = 0;
  EXPECT_FALSE(TransferManager::create(config));
  config.side_streams = 1;
  EXPECT_TRUE(TransferManager::create(config));
}

}  // namespace
}  // namespace kvbm
