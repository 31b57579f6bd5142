// SPDX-License-Identifier: Apache-2.0
// TransferManager where one hop is not enough: bounce blocks, faults, limits.
#include "kvbm/transfer/internal/staged_transfer.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/random.hpp"
#include "kvbm/transfer/transfer_manager.hpp"

#include "tests/support/allocation_meter.hpp"
#include "tests/support/faulty_file_engine.hpp"
#include "tests/support/guarded_place.hpp"
#include "tests/support/out_of_reach_device.hpp"
#include "tests/support/pinner_double.hpp"
#include "tests/support/seed.hpp"
#include "tests/support/transfer_rig.hpp"

namespace kvbm {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::block_ids;
using testing::GuardedPlace;
using testing::OutOfReachDevice;
using testing::tag_of;
using testing::TransferRig;
using testing::TransferRigOptions;

constexpr uint32_t kNumBlocks = 24;
constexpr LayoutConfig kConfig{.num_blocks = kNumBlocks,
                               .num_layers = 3,
                               .outer_dim = 2,
                               .page_size = 4,
                               .inner_dim = 12,
                               .dtype_width_bytes = 2,
                               .num_heads = 6,
                               .alignment = 1};

void expect_error(const Result<TransferCompleteNotification>& result, ErrorCode code,
                  const std::string& word) {
  ASSERT_FALSE(result) << word;
  EXPECT_EQ(result.error().code(), code) << result.error().describe();
  EXPECT_NE(result.error().message().find(word), std::string::npos) << result.error().describe();
}

/// Fails the test if a file request touches a place that only the device reaches.
class StrictFileEngine final : public FileEngine {
 public:
  explicit StrictFileEngine(FileEngine& inner) : inner_(inner) {}

  std::vector<MemoryRegion> forbidden;
  std::atomic<size_t> num_requests = 0;

  [[nodiscard]] FileEngineCapabilities capabilities() const override {
    return inner_.capabilities();
  }
  [[nodiscard]] Status reach_device(const FileRef& file) override {
    return inner_.reach_device(file);
  }
  [[nodiscard]] Result<FileBatch> submit(std::vector<FileRequest> requests) override {
    num_requests += requests.size();
    for (const FileRequest& request : requests) {
      for (const IoBuffer& buffer : request.buffers) {
        for (const MemoryRegion& region : forbidden) {
          EXPECT_FALSE(buffer.data + buffer.size > region.base() &&
                       buffer.data < region.base() + region.size_bytes());
        }
      }
    }
    return inner_.submit(std::move(requests));
  }

 private:
  FileEngine& inner_;
};

/// A device whose memory the host does not reach, two places in it, and a file. Block i of the
/// first has the key i. A bounce slot has room for two blocks.
struct StagedSetup {
  explicit StagedSetup(TransferRigOptions options = {}, const KvBlockLayout& format = {},
                       const KvBlockLayout& file_format = {})
      : rig(with_small_slots(options)),
        src(kConfig, LayoutKind::kLayerSeparateBlockSecond, StorageKind::kDevice, {}, format),
        file(kConfig, LayoutKind::kFileSlots, StorageKind::kFile, {}, file_format),
        dst(kConfig, LayoutKind::kLayerSeparateBlockFirst, StorageKind::kDevice, {}, format) {
    device = &rig.use_device<OutOfReachDevice>();
    for (uint32_t i = 0; i < kNumBlocks; ++i) {
      src.fill(BlockId{i}, i);
      ids.emplace_back(i);
      tags.push_back(tag_of(i));
    }
    register_all();
  }

  static TransferRigOptions with_small_slots(TransferRigOptions options) {
    options.bounce_slot_bytes = 2 * kConfig.block_bytes();
    return options;
  }

  void register_all() {
    src_handle = rig.manager->register_layout(src.layout()).value();
    file_handle = rig.manager->register_layout(file.layout()).value();
    dst_handle = rig.manager->register_layout(dst.layout()).value();
  }
  void use_faulty_files(const testing::FileFaults& faults) {
    auto inner = PosixFileEngine::create({.executor = *rig.executor, .name = "inner"}).value();
    rig.use_files<testing::FaultyFileEngine>(std::move(inner), *rig.executor, faults);
    register_all();
  }

  TransferCompleteNotification write(TransferOptions options = {}) {
    options.tags = tags;
    return rig.execute(src_handle, ids, file_handle, ids, options).value();
  }
  TransferCompleteNotification read(TransferOptions options = {}) {
    options.tags = tags;
    return rig.execute(file_handle, ids, dst_handle, ids, options).value();
  }

  /// What the result says is what is there.
  void expect_consistent(const TransferResult& result, const GuardedPlace& place) const {
    EXPECT_EQ(result.bytes, (ids.size() - result.failed.size()) * kConfig.block_bytes());
    EXPECT_EQ(result.status.has_value(), result.failed.empty());
    EXPECT_TRUE(std::ranges::is_sorted(result.failed));
    EXPECT_EQ(std::ranges::adjacent_find(result.failed), result.failed.end());
    for (uint32_t i = 0; i < ids.size(); ++i) {
      if (std::ranges::binary_search(result.failed, i)) continue;
      EXPECT_TRUE(place.holds(ids[i], i));
    }
    EXPECT_TRUE(place.guards_hold());
    EXPECT_TRUE(src.guards_hold());
  }

  TransferRig rig;
  OutOfReachDevice* device = nullptr;
  GuardedPlace src;
  GuardedPlace file;
  GuardedPlace dst;
  std::vector<BlockId> ids;
  std::vector<SlotTag> tags;
  LayoutHandle src_handle;
  LayoutHandle file_handle;
  LayoutHandle dst_handle;
};

// --- what goes by two hops
// -----------------------------------------------------------------------------------------

void go_to_a_file_and_back(StagedSetup& setup) {
  auto& files = setup.rig.use_files<StrictFileEngine>(*setup.rig.files);
  files.forbidden = {setup.src.everything(), setup.dst.everything()};
  setup.register_all();
  const TransferCompleteNotification write = setup.write();
  ASSERT_TRUE(write.wait()) << write.result().status.error().describe();
  setup.expect_consistent(write.result(), setup.file);
  EXPECT_TRUE(write.result().status);
  const SlotHeader header =
      decode_slot_header(setup.file.read(setup.file.layout().slot(BlockId{5}))).value();
  EXPECT_EQ(header.tag, tag_of(5));
  const TransferCompleteNotification read = setup.read();
  ASSERT_TRUE(read.wait()) << read.result().status.error().describe();
  EXPECT_TRUE(read.event().done());
  setup.expect_consistent(read.result(), setup.dst);
  EXPECT_EQ(files.num_requests, 2U * kNumBlocks);
  EXPECT_EQ(setup.rig.manager->in_flight(), 0U);
}

TEST(StagedTransfer, MemoryThatTheHostDoesNotReachGoesToFilesAndBack) {
  StagedSetup threads;
  go_to_a_file_and_back(threads);
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    StagedSetup stepped({.seed = seed});
    go_to_a_file_and_back(stepped);
  }
}

TEST(StagedTransfer, HopsAreCountedAndNotTheWhole) {
  StagedSetup setup({.seed = 1});
  ASSERT_TRUE(setup.write().wait());
  EXPECT_EQ(testing::counter_value(setup.rig.metrics, "kvbm_copied_blocks_total"), 2 * kNumBlocks);
  EXPECT_EQ(testing::counter_value(setup.rig.metrics, "kvbm_copied_bytes_total"),
            2 * kNumBlocks * kConfig.block_bytes());
}

TEST(StagedTransfer, AFileIsReadAndWrittenInItsOwnFormat) {
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    StagedSetup setup({.seed = seed}, KvBlockLayout::kOperationalHND, KvBlockLayout::kUniversalTP);
    go_to_a_file_and_back(setup);
  }
}

TEST(StagedTransfer, PartsOfASlotAreReadAndNotWritten) {
  StagedSetup setup({.seed = 2}, KvBlockLayout::kOperationalHND, KvBlockLayout::kUniversalTP);
  ASSERT_TRUE(setup.write().wait());
  LayoutConfig half = kConfig;
  half.inner_dim = 6;
  half.num_heads = 3;
  const GuardedPlace part(half, LayoutKind::kFullyContiguous, StorageKind::kSystem, {},
                          KvBlockLayout::kOperationalNHD);
  const LayoutHandle part_handle = setup.rig.manager->register_layout(part.layout()).value();
  const auto read = setup.rig.execute(
      setup.file_handle, setup.ids, part_handle, setup.ids,
      {.layer_range = LayerRange{LayerId{1}, 2}, .tags = setup.tags, .src_heads = HeadRange{2, 3}});
  ASSERT_TRUE(read) << read.error().describe();
  ASSERT_TRUE(read->wait());
  EXPECT_EQ(read->result().bytes, kNumBlocks * 2 * half.layer_bytes());
  for (uint32_t head = 0; head < 3; ++head) {
    for (const uint32_t layer : {1, 2}) {
      const LayerId id(static_cast<uint16_t>(layer));
      EXPECT_EQ(part.read(part.layout().head_region(BlockId{7}, id, 1, head, 3)),
                setup.src.read(setup.src.layout().head_region(BlockId{7}, id, 1, head + 2, 3)));
    }
  }
  const std::vector<std::byte> untouched(half.head_bytes(), GuardedPlace::kFill);
  EXPECT_EQ(part.read(part.layout().head_region(BlockId{7}, LayerId{0}, 1, 0, 3)), untouched);
  EXPECT_TRUE(part.guards_hold());
  expect_error(setup.rig.execute(part_handle, setup.ids, setup.file_handle, setup.ids,
                                 {.tags = setup.tags, .dst_heads = HeadRange{2, 3}}),
               ErrorCode::kUnsupported, "all layers and heads");
  // But a part of other memory fills a slot.
  const GuardedPlace small_file(half, LayoutKind::kFileSlots, StorageKind::kFile, {},
                                KvBlockLayout::kUniversalPP);
  const LayoutHandle small = setup.rig.manager->register_layout(small_file.layout()).value();
  const auto written = setup.rig.execute(setup.src_handle, setup.ids, small, setup.ids,
                                         {.tags = setup.tags, .src_heads = HeadRange{3, 3}});
  ASSERT_TRUE(written) << written.error().describe();
  ASSERT_TRUE(written->wait());
  EXPECT_EQ(small_file.read(small_file.layout().head_region(BlockId{7}, LayerId{2}, 0, 1, 2)),
            setup.src.read(setup.src.layout().head_region(BlockId{7}, LayerId{2}, 0, 4, 2)));
}

TEST(StagedTransfer, FilesGoToFiles) {
  StagedSetup setup({.seed = 3}, KvBlockLayout::kOperationalHND, KvBlockLayout::kOperationalHND);
  ASSERT_TRUE(setup.write().wait());
  const GuardedPlace other(kConfig, LayoutKind::kFileSlots, StorageKind::kFile,
                           {.header_bytes = 128}, KvBlockLayout::kOperationalHND);
  const LayoutHandle handle = setup.rig.manager->register_layout(other.layout()).value();
  std::vector<BlockId> reversed(setup.ids.rbegin(), setup.ids.rend());
  const auto copied =
      setup.rig.execute(setup.file_handle, setup.ids, handle, reversed, {.tags = setup.tags});
  ASSERT_TRUE(copied) << copied.error().describe();
  ASSERT_TRUE(copied->wait());
  for (uint32_t i = 0; i < kNumBlocks; ++i) EXPECT_TRUE(other.holds(reversed[i], i));
  const GuardedPlace universal(kConfig, LayoutKind::kFileSlots, StorageKind::kFile, {},
                               KvBlockLayout::kUniversalTP);
  expect_error(setup.rig.execute(setup.file_handle, setup.ids,
                                 setup.rig.manager->register_layout(universal.layout()).value(),
                                 setup.ids, {.tags = setup.tags}),
               ErrorCode::kUnsupported, "one format");
}

TEST(StagedTransfer, PageableMemoryGoesThroughPinnedMemoryToADeviceThatTakesNoOther) {
  for (const bool threads : {false, true}) {
    const auto pinner = std::make_shared<testing::PinnerDouble>();
    TransferRigOptions options{.seed = threads ? std::nullopt : std::optional<uint64_t>(4),
                               .bounce_slot_bytes = 4096,
                               .pinner = pinner};
    TransferRig rig(options);
    auto& device = rig.use_device<OutOfReachDevice>(false);
    GuardedPlace system(kConfig, LayoutKind::kFullyContiguous, StorageKind::kSystem, {},
                        KvBlockLayout::kUniversalPP);
    GuardedPlace gpu(kConfig, LayoutKind::kLayerSeparateBlockFirst, StorageKind::kDevice, {},
                     KvBlockLayout::kOperationalNHD);
    GuardedPlace back(kConfig, LayoutKind::kFullyContiguous, StorageKind::kSystem, {},
                      KvBlockLayout::kOperationalHND);
    std::vector<MemoryRegion> pageable{system.everything(), back.everything()};
    device.on_copy = [&](const StridedCopyBatch& batch) -> Status {
      for (const StridedPiece& piece : batch.pieces) {
        for (const MemoryRegion& region : pageable) {
          for (const std::byte* base : {piece.src, static_cast<const std::byte*>(piece.dst)}) {
            EXPECT_FALSE(base >= region.base() && base < region.base() + region.size_bytes());
          }
        }
      }
      return {};
    };
    std::vector<BlockId> ids;
    for (uint32_t i = 0; i < kNumBlocks; ++i) {
      system.fill(BlockId{i}, i);
      ids.emplace_back(i);
    }
    const LayoutHandle from = rig.manager->register_layout(system.layout()).value();
    const LayoutHandle via = rig.manager->register_layout(gpu.layout()).value();
    const LayoutHandle to = rig.manager->register_layout(back.layout()).value();
    EXPECT_TRUE(pinner->pinned().empty());  // made when it is needed
    const auto up = rig.execute(from, ids, via, ids);
    ASSERT_TRUE(up) << up.error().describe();
    ASSERT_TRUE(up->wait()) << up->result().status.error().describe();
    EXPECT_EQ(up->result().bytes, kNumBlocks * kConfig.block_bytes());
    EXPECT_FALSE(pinner->pinned().empty());
    const auto down = rig.execute(via, ids, to, ids);
    ASSERT_TRUE(down->wait());
    // A part of the layers and heads alone.
    const auto part = rig.execute(from, block_ids({3}), via, block_ids({9}),
                                  {.layer_range = LayerRange{LayerId{1}, 1},
                                   .src_heads = HeadRange{1, 2},
                                   .dst_heads = HeadRange{4, 2}});
    ASSERT_TRUE(part) << part.error().describe();
    ASSERT_TRUE(part->wait());
    EXPECT_EQ(gpu.read(gpu.layout().head_region(BlockId{9}, LayerId{1}, 0, 5, 2)),
              system.read(system.layout().head_region(BlockId{3}, LayerId{1}, 0, 2, 2)));
    EXPECT_EQ(gpu.read(gpu.layout().head_region(BlockId{9}, LayerId{1}, 0, 3, 2)),
              system.read(system.layout().head_region(BlockId{9}, LayerId{1}, 0, 3, 2)));
    for (uint32_t i = 0; i < kNumBlocks; ++i) EXPECT_TRUE(back.holds(BlockId{i}, i));
    // Between two pageable places the host copies, in one hop.
    GuardedPlace third(kConfig, LayoutKind::kFullyContiguous, StorageKind::kSystem, {},
                       KvBlockLayout::kUniversalTP);
    const LayoutHandle other = rig.manager->register_layout(third.layout()).value();
    const TransferRequest direct{.src = to, .src_ids = ids, .dst = other, .dst_ids = ids};
    EXPECT_NE(rig.manager->explain_transfer(direct)->find("system to system (host copy)"),
              std::string::npos);
    ASSERT_TRUE(rig.manager->execute_transfer(direct)->wait());
    for (uint32_t i = 0; i < kNumBlocks; ++i) EXPECT_TRUE(third.holds(BlockId{i}, i));
    EXPECT_TRUE(gpu.guards_hold() && back.guards_hold() && third.guards_hold());
  }
}

TEST(StagedTransfer, WithoutAPinnerPinnedBounceBlocksAreTheCallers) {
  TransferRig rig({.seed = 1});
  rig.use_device<OutOfReachDevice>(false);
  const GuardedPlace system(kConfig, LayoutKind::kFullyContiguous);
  const GuardedPlace gpu(kConfig, LayoutKind::kFullyContiguous, StorageKind::kDevice);
  const GuardedPlace pinned(kConfig, LayoutKind::kFullyContiguous, StorageKind::kPinned);
  const GuardedPlace pageable(kConfig, LayoutKind::kFullyContiguous);
  const auto add = [&](const GuardedPlace& place) {
    return rig.manager->register_layout(place.layout()).value();
  };
  const LayoutHandle from = add(system);
  const LayoutHandle to = add(gpu);
  expect_error(rig.execute(from, block_ids({0}), to, block_ids({0})), ErrorCode::kUnsupported,
               "no pinner");
  expect_error(
      rig.execute(from, block_ids({0}), to, block_ids({0}),
                  {.bounce_buffer = BounceBuffer::from_handle(add(pageable), block_ids({0}))}),
      ErrorCode::kUnsupported, "take blocks of kind pinned");
  EXPECT_TRUE(rig.execute(from, block_ids({0}), to, block_ids({0}),
                          {.bounce_buffer = BounceBuffer::from_handle(add(pinned), block_ids({0}))})
                  ->wait());
}

TEST(StagedTransfer, APinnerThatFailsFailsTheTransferAndIsAskedAgain) {
  const auto pinner = std::make_shared<testing::PinnerDouble>();
  pinner->refuse_from = 0;
  TransferRig rig({.bounce_slot_bytes = 4096, .pinner = pinner});
  rig.use_device<OutOfReachDevice>(false);
  GuardedPlace system(kConfig, LayoutKind::kFullyContiguous);
  GuardedPlace gpu(kConfig, LayoutKind::kFullyContiguous, StorageKind::kDevice);
  system.fill(BlockId{2}, 2);
  const LayoutHandle from = rig.manager->register_layout(system.layout()).value();
  const LayoutHandle to = rig.manager->register_layout(gpu.layout()).value();
  const auto failed = rig.execute(from, block_ids({2}), to, block_ids({5}));
  ASSERT_TRUE(failed) << failed.error().describe();
  EXPECT_EQ(failed->wait().error().code(), ErrorCode::kDevice);
  EXPECT_EQ(failed->result().failed, std::vector<uint32_t>{0});
  EXPECT_TRUE(gpu.untouched(BlockId{5}));
  pinner->refuse_from = 1000;
  ASSERT_TRUE(rig.execute(from, block_ids({2}), to, block_ids({5}))->wait());
  EXPECT_TRUE(gpu.holds(BlockId{5}, 2));
}

// --- bounce buffers of callers
// -------------------------------------------------------------------------------------

TEST(StagedTransfer, ACallersBounceBlocksServeOneTransferAtATime) {
  StagedSetup setup({.seed = 5});
  LayoutConfig config = kConfig;
  config.num_blocks = 9;
  const GuardedPlace bounce(config, LayoutKind::kFullyContiguous);
  const LayoutHandle handle = setup.rig.manager->register_layout(bounce.layout()).value();
  const auto lend = [&](const std::vector<uint32_t>& ids) {
    return BounceBuffer::from_handle(handle, block_ids(ids));
  };
  TransferOptions options{.tags = setup.tags, .bounce_buffer = lend({1, 7, 3, 4, 5})};
  const auto again = [&](const TransferOptions& with) {
    return setup.rig.execute(setup.src_handle, setup.ids, setup.file_handle, setup.ids, with);
  };
  setup.rig.stepped->hold("file");
  const auto first = again(options);
  ASSERT_TRUE(first) << first.error().describe();
  setup.rig.stepped->run_until_idle();
  // Four slots at a time: of five blocks, the last two are one.
  for (const uint32_t id : {0, 2, 6, 8}) EXPECT_TRUE(bounce.untouched(BlockId{id}));
  for (const uint32_t id : {1, 7, 3, 4, 5}) EXPECT_FALSE(bounce.untouched(BlockId{id}));
  options.bounce_buffer = lend({0, 3});
  expect_error(again(options), ErrorCode::kInvalidArgument, "block 3");
  options.bounce_buffer = lend({0, 2});
  const auto beside = again(options);  // nothing of the refused one is left
  ASSERT_TRUE(beside);
  options.bounce_buffer = lend({1});
  bool free_at_the_end = false;
  first->on_done(
      [&](const TransferResult&) noexcept { free_at_the_end = again(options).has_value(); });
  setup.rig.stepped->release("file");
  ASSERT_TRUE(first->wait());
  setup.expect_consistent(first->result(), setup.file);
  EXPECT_TRUE(free_at_the_end);
  options.bounce_buffer = lend({3});
  const auto with_one = again(options);
  ASSERT_TRUE(with_one) << with_one.error().describe();
  ASSERT_TRUE(with_one->wait());
  ASSERT_TRUE(beside->wait());
  EXPECT_TRUE(bounce.guards_hold());

  const auto refuses = [&](const BounceBuffer& buffer, ErrorCode code, const std::string& word) {
    TransferOptions bad{.tags = setup.tags, .bounce_buffer = buffer};
    expect_error(again(bad), code, word);
  };
  const auto invalid = ErrorCode::kInvalidArgument;
  refuses(lend({}), invalid, "without blocks");
  refuses(lend({0, 9}), invalid, "bounce block 9");
  refuses(lend({2, 2}), invalid, "there twice");
  refuses(BounceBuffer::from_handle({WorkerId{7}, 999}, block_ids({0})), ErrorCode::kNotFound,
          "999");
  refuses(BounceBuffer::from_handle(setup.src_handle, block_ids({0})), invalid, "is a side");
  refuses(BounceBuffer::from_handle(setup.dst_handle, block_ids({0})), ErrorCode::kUnsupported,
          "kind device");
  config.page_size = 8;
  const GuardedPlace larger(config, LayoutKind::kFullyContiguous);
  refuses(BounceBuffer::from_handle(setup.rig.manager->register_layout(larger.layout()).value(),
                                    block_ids({0})),
          invalid, "page_size");
  config.page_size = 4;
  const GuardedPlace formatted(config, LayoutKind::kFullyContiguous, StorageKind::kSystem, {},
                               KvBlockLayout::kUniversalTP);
  refuses(BounceBuffer::from_handle(setup.rig.manager->register_layout(formatted.layout()).value(),
                                    block_ids({0})),
          invalid, "universal_tp");
  expect_error(setup.rig.execute(setup.src_handle, setup.ids, setup.dst_handle, setup.ids,
                                 {.bounce_buffer = lend({0})}),
               ErrorCode::kUnsupported, "no bounce blocks");
  EXPECT_EQ(setup.rig.manager->in_flight(), 0U);
  options.bounce_buffer = lend({0, 1, 2, 3, 4, 5, 6, 7, 8});
  EXPECT_TRUE(again(options)->wait()) << "no refusal keeps a block";
}

TEST(StagedTransfer, BouncesBetweenPlacesInMemoryMayBeWholeBlocksOrTheirParts) {
  TransferRig rig({.seed = 6});
  rig.use_device<OutOfReachDevice>(false);
  GuardedPlace system(kConfig, LayoutKind::kFullyContiguous, StorageKind::kSystem, {},
                      KvBlockLayout::kOperationalHND);
  GuardedPlace gpu(kConfig, LayoutKind::kFullyContiguous, StorageKind::kDevice, {},
                   KvBlockLayout::kOperationalNHD);
  for (uint32_t i = 0; i < kNumBlocks; ++i) system.fill(BlockId{i}, i);
  LayoutConfig part = kConfig;
  part.num_layers = 1;
  part.inner_dim = 4;
  part.num_heads = 2;
  const GuardedPlace whole_bounce(kConfig, LayoutKind::kFullyContiguous, StorageKind::kPinned, {},
                                  KvBlockLayout::kUniversalTP);
  const GuardedPlace part_bounce(part, LayoutKind::kFullyContiguous, StorageKind::kPinned, {},
                                 KvBlockLayout::kUniversalPP);
  const LayoutHandle from = rig.manager->register_layout(system.layout()).value();
  const LayoutHandle to = rig.manager->register_layout(gpu.layout()).value();
  uint32_t block = 0;
  for (const GuardedPlace* bounce : {&whole_bounce, &part_bounce}) {
    const LayoutHandle handle = rig.manager->register_layout(bounce->layout()).value();
    const std::vector<BlockId> ids = block_ids({++block});
    const auto copied =
        rig.execute(from, ids, to, ids,
                    {.layer_range = LayerRange{LayerId{2}, 1},
                     .src_heads = HeadRange{3, 2},
                     .dst_heads = HeadRange{0, 2},
                     .bounce_buffer = BounceBuffer::from_handle(handle, block_ids({1, 2, 3}))});
    ASSERT_TRUE(copied) << copied.error().describe();
    ASSERT_TRUE(copied->wait());
    for (uint32_t page = 0; page < 4; ++page) {
      EXPECT_EQ(gpu.read(gpu.layout().head_region(ids[0], LayerId{2}, 1, 1, page)),
                system.read(system.layout().head_region(ids[0], LayerId{2}, 1, 4, page)));
    }
    EXPECT_TRUE(bounce->guards_hold());
  }
  EXPECT_TRUE(gpu.guards_hold());
}

// --- the ring
// -----------------------------------------------------------------------------------------

TEST(StagedTransfer, HopsOverlapAndASlotIsNotFilledBeforeItIsEmpty) {
  for (const uint32_t slots : {1U, 4U}) {
    StagedSetup setup({.seed = 7, .bounce_slots = slots});
    size_t copied_blocks = 0;
    setup.device->on_copy = [&](const StridedCopyBatch& batch) -> Status {
      copied_blocks += batch.pairs->size();
      return {};
    };
    setup.rig.stepped->hold("file");
    const TransferCompleteNotification write = setup.write();
    setup.rig.stepped->run_until_idle();
    // The file stands still: as many blocks have come as there is room for.
    EXPECT_EQ(copied_blocks, 2 * slots);
    EXPECT_FALSE(write.done());
    setup.rig.stepped->release("file");
    ASSERT_TRUE(write.wait());
    EXPECT_EQ(copied_blocks, kNumBlocks);
    setup.expect_consistent(write.result(), setup.file);
  }
}

TEST(StagedTransfer, SlotsGoToTheHigherPriorityFirst) {
  StagedSetup setup({.seed = 8, .bounce_slots = 1});
  std::vector<int> order;
  setup.rig.stepped->hold("file");
  std::vector<TransferCompleteNotification> writes;
  const std::vector<TransferPriority> priorities{TransferPriority::kNormal, TransferPriority::kLow,
                                                 TransferPriority::kNormal,
                                                 TransferPriority::kHigh};
  for (int i = 0; i < 4; ++i) {
    const auto ids = block_ids({static_cast<uint32_t>(i)});
    const std::vector<SlotTag> tags{tag_of(1)};
    writes.push_back(setup.rig
                         .execute(setup.src_handle, ids, setup.file_handle, ids,
                                  {.tags = tags, .priority = priorities[static_cast<size_t>(i)]})
                         .value());
    setup.rig.stepped->run_until_idle();  // the first one has the slot, the others wait
    writes.back().on_done([&order, i](const TransferResult&) noexcept { order.push_back(i); });
  }
  setup.rig.stepped->release("file");
  setup.rig.stepped->run_until_idle();
  EXPECT_EQ(order, (std::vector<int>{0, 3, 2, 1}));
}

TEST(StagedTransfer, ABlockThatNoSlotHoldsIsRefused) {
  TransferRig rig({.seed = 1, .bounce_slot_bytes = kConfig.block_bytes() - 1});
  rig.use_device<OutOfReachDevice>();
  const GuardedPlace gpu(kConfig, LayoutKind::kFullyContiguous, StorageKind::kDevice);
  const GuardedPlace file(kConfig, LayoutKind::kFileSlots);
  const LayoutHandle from = rig.manager->register_layout(gpu.layout()).value();
  const LayoutHandle to = rig.manager->register_layout(file.layout()).value();
  const std::vector<SlotTag> tags{tag_of(0)};
  expect_error(rig.execute(from, block_ids({0}), to, block_ids({0}), {.tags = tags}),
               ErrorCode::kUnsupported, "bounce_slot_bytes");
  TransferConfig config{.device = *rig.device, .executor = *rig.executor, .log = rig.log};
  config.bounce_slots = 0;
  EXPECT_FALSE(TransferManager::create(config));
  config.bounce_slots = 1;
  config.bounce_slot_bytes = 0;
  EXPECT_FALSE(TransferManager::create(config));
}

TEST(StagedTransfer, NothingIsTouchedBeforeTheEventsAreDone) {
  StagedSetup setup({.seed = 9});
  EventSource go = setup.rig.device->create_event();
  size_t copies = 0;
  setup.device->on_copy = [&](const StridedCopyBatch&) -> Status {
    ++copies;
    return {};
  };
  const TransferCompleteNotification write = setup.write({.wait_for = {go.event()}});
  setup.rig.stepped->run_until_idle();
  EXPECT_EQ(copies, 0U);
  go.signal();
  ASSERT_TRUE(write.wait());
  setup.expect_consistent(write.result(), setup.file);
  EventSource bad = setup.rig.device->create_event();
  const TransferCompleteNotification read = setup.read({.wait_for = {bad.event()}});
  bad.signal(make_error(ErrorCode::kDevice, "the kernel failed"));
  EXPECT_EQ(read.wait().error().code(), ErrorCode::kDevice);
  EXPECT_EQ(read.result().failed.size(), kNumBlocks);
  EXPECT_TRUE(setup.dst.untouched(BlockId{0}));
}

// --- faults
// -------------------------------------------------------------------------------------------

TEST(StagedTransfer, ABlockThatTheFirstHopDoesNotBringTakesNoOtherWithIt) {
  StagedSetup setup({.seed = 10});
  ASSERT_TRUE(setup.write().wait());
  for (const uint32_t damaged : {2, 8, 9}) {
    const MemoryRegion byte = setup.file.layout().slot(BlockId{damaged}).slice(70, 1);
    std::vector<std::byte> value = setup.file.read(byte);
    value[0] ^= std::byte{0x10};
    setup.file.write(byte, value);
  }
  const TransferCompleteNotification read = setup.read();
  EXPECT_EQ(read.wait().error().code(), ErrorCode::kCorrupt);
  EXPECT_EQ(read.result().failed, (std::vector<uint32_t>{2, 8, 9}));
  EXPECT_NE(read.result().status.error().message().find("3 of 24 blocks failed, first position 2"),
            std::string::npos)
      << read.result().status.error().message();
  setup.expect_consistent(read.result(), setup.dst);
  for (const uint32_t damaged : {2, 8, 9}) EXPECT_TRUE(setup.dst.untouched(BlockId{damaged}));
}

TEST(StagedTransfer, NoFaultOfDeviceOrFileMakesAWrongBlockLookRight) {
  Random random(testing::test_seed(51));
  size_t failures = 0;
  size_t successes = 0;
  for (int round = 0; round < 60; ++round) {
    const bool threads = round % 3 == 0;
    StagedSetup setup({.seed = threads ? std::nullopt : std::optional(random.next())});
    setup.use_faulty_files({.seed = random.next(),
                            .fail = 0.03,
                            .torn = 0.03,
                            .lie = 0.03,
                            .bit_flip = 0.03,
                            .delay = 0.2});
    Mutex mutex{LockRank::kDevice, "tests.random"};
    Random faults(random.next());
    setup.device->on_copy = [&](const StridedCopyBatch&) -> Status {
      const MutexLock lock(mutex);
      if (!faults.chance(0.1)) return {};
      return make_error(ErrorCode::kDevice, "injected: the copy was refused");
    };
    const TransferCompleteNotification write = setup.write();
    static_cast<void>(write.wait());
    ASSERT_TRUE(write.done());
    EXPECT_EQ(write.result().status.has_value(), write.result().failed.empty());
    const TransferCompleteNotification read = setup.read();
    static_cast<void>(read.wait());
    ASSERT_TRUE(read.done());
    setup.expect_consistent(read.result(), setup.dst);
    EXPECT_EQ(setup.rig.manager->in_flight(), 0U);
    failures += read.result().failed.size();
    successes += kNumBlocks - read.result().failed.size();
    setup.rig.manager.reset();
  }
  EXPECT_GT(failures, 100U);
  EXPECT_GT(successes, 300U);
}

TEST(StagedTransfer, AtTheDeadlineNothingIsBegunAndWhatRunsIsFinished) {
  StagedSetup setup({.seed = 11, .bounce_slots = 2});
  setup.rig.stepped->hold("file");
  const TransferCompleteNotification write =
      setup.write({.deadline = setup.rig.after(milliseconds(5))});
  setup.rig.stepped->run_until_idle();
  // Another one waits for a slot, and its deadline is its end.
  const TransferCompleteNotification other =
      setup.read({.deadline = setup.rig.after(milliseconds(3))});
  setup.rig.stepped->run_for(milliseconds(4));
  ASSERT_TRUE(other.done());
  EXPECT_EQ(other.result().status.error().code(), ErrorCode::kTimeout);
  EXPECT_EQ(other.result().failed.size(), kNumBlocks);
  setup.rig.stepped->run_for(milliseconds(4));
  EXPECT_FALSE(write.done());  // the engine still has four
  setup.rig.stepped->release("file");
  EXPECT_EQ(write.wait().error().code(), ErrorCode::kTimeout);
  EXPECT_EQ(write.result().failed.size(), kNumBlocks - 4);
  setup.expect_consistent(write.result(), setup.file);
  EXPECT_TRUE(setup.file.untouched(BlockId{4}));
  // No slot is lost.
  ASSERT_TRUE(setup.write().wait());
  setup.expect_consistent({.status = {}, .bytes = kNumBlocks * kConfig.block_bytes(), .failed = {}},
                          setup.file);
}

TEST(StagedTransfer, ADroppedManagerEndsEachTransferOnce) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    StagedSetup setup({.seed = seed, .bounce_slots = 2});
    int ends = 0;
    std::vector<TransferCompleteNotification> transfers;
    for (int i = 0; i < 3; ++i) {
      transfers.push_back(setup.write());
      transfers.back().on_done([&ends](const TransferResult&) noexcept { ++ends; });
    }
    for (uint64_t step = 0; step < seed * 3; ++step) setup.rig.stepped->step();
    setup.rig.manager.reset();
    for (const TransferCompleteNotification& transfer : transfers) {
      ASSERT_TRUE(transfer.done());
      const TransferResult& result = transfer.result();
      EXPECT_EQ(result.status.has_value(), result.failed.empty());
      EXPECT_EQ(result.bytes, (kNumBlocks - result.failed.size()) * kConfig.block_bytes());
      EXPECT_TRUE(result.status || result.status.error().code() == ErrorCode::kCancelled);
    }
    EXPECT_EQ(ends, 3);
  }
}

TEST(StagedTransfer, ADroppedManagerOnThreadsLeavesNothingOpen) {
  for (int round = 0; round < 20; ++round) {
    StagedSetup setup({.bounce_slots = 2});
    const TransferCompleteNotification write = setup.write();
    const TransferCompleteNotification read = setup.read({.wait_for = {write.event()}});
    setup.rig.manager.reset();
    ASSERT_TRUE(write.done() && read.done());
  }
}

TEST(StagedTransfer, ADroppedManagerEndsATransferWhoseFileStandsStillOnceItGoesOn) {
  StagedSetup setup({.seed = 12});
  setup.rig.stepped->hold("file");
  const TransferCompleteNotification write = setup.write();
  setup.rig.stepped->run_until_idle();
  setup.rig.manager.reset();
  EXPECT_FALSE(write.done());  // the engine may still read the slots
  setup.rig.stepped->release("file");
  EXPECT_EQ(write.wait().error().code(), ErrorCode::kCancelled);
  EXPECT_EQ(write.result().failed.size(), kNumBlocks - 8);
  setup.expect_consistent(write.result(), setup.file);
}

TEST(StagedTransfer, WithoutMemoryTheRestOfTheBlocksFails) {
  size_t num_whole = 0;
  size_t num_failed = 0;
  for (size_t after = 0; after < 400; after += 3) {
    SCOPED_TRACE(after);
    StagedSetup setup({.seed = 1 + after, .bounce_slots = 2});
    setup.rig.stepped->hold("w7-transfer");
    const TransferCompleteNotification write = setup.write();
    setup.rig.stepped->release("w7-transfer");
    {
      const testing::AllocationFailure no_memory(after);
      setup.rig.stepped->run_until_idle();
    }
    static_cast<void>(write.wait());
    ASSERT_TRUE(write.done());
    setup.expect_consistent(write.result(), setup.file);
    EXPECT_EQ(setup.rig.manager->in_flight(), 0U);
    ++(write.result().status ? num_whole : num_failed);
    // No slot is lost.
    ASSERT_TRUE(setup.write().wait());
  }
  EXPECT_GT(num_failed, 20U);
}

}  // namespace
}  // namespace kvbm
