// SPDX-License-Identifier: Apache-2.0
// TransferManager between memory and files: checks, faults, limits.
#include "kvbm/transfer/internal/file_transfer.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <new>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/hash.hpp"
#include "kvbm/base/random.hpp"
#include "kvbm/transfer/transfer_manager.hpp"

#include "tests/support/allocation_meter.hpp"
#include "tests/support/faulty_file_engine.hpp"
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
using testing::TransferRigOptions;

constexpr uint32_t kNumBlocks = 24;
constexpr LayoutConfig kConfig{.num_blocks = kNumBlocks,
                               .num_layers = 3,
                               .outer_dim = 2,
                               .page_size = 4,
                               .inner_dim = 12,
                               .dtype_width_bytes = 2,
                               .num_heads = std::nullopt,
                               .alignment = 1};

/// Passes requests on and remembers how many were outstanding.
class CountingFileEngine final : public FileEngine {
 public:
  explicit CountingFileEngine(FileEngine& inner) : inner_(inner) {}

  [[nodiscard]] FileEngineCapabilities capabilities() const override {
    return inner_.capabilities();
  }
  [[nodiscard]] Status reach_device(const FileRef& file) override {
    return inner_.reach_device(file);
  }
  [[nodiscard]] Result<FileBatch> submit(std::vector<FileRequest> requests) override {
    if (refuse_with) return make_error(*refuse_with);
    for (const FileRequest& request : requests) requests_.push_back(request);
    num_batches += 1;
    outstanding += requests.size();
    most_outstanding = std::max(most_outstanding, outstanding);
    KVBM_ASSIGN_OR_RETURN(FileBatch batch, inner_.submit(std::move(requests)));
    for (size_t i = 0; i < batch.size(); ++i) {
      batch.completion(i).on_done([this](const Status&) noexcept { --outstanding; });
    }
    return batch;
  }
  [[nodiscard]] const std::vector<FileRequest>& requests() const { return requests_; }

  std::optional<Error> refuse_with;
  size_t outstanding = 0;
  size_t most_outstanding = 0;
  size_t num_batches = 0;

 private:
  FileEngine& inner_;
  std::vector<FileRequest> requests_;
};

/// A source in memory with block i of key i, a file, and a destination of another layout.
struct FileTransferSetup {
  explicit FileTransferSetup(TransferRigOptions options = {}, const SlotOptions& slots = {},
                             const LayoutConfig& config = kConfig)
      : rig(options),
        src(config, LayoutKind::kLayerSeparateBlockSecond),
        file(config, LayoutKind::kFileSlots, StorageKind::kFile, slots),
        dst(config, LayoutKind::kLayerSeparateBlockFirst) {
    for (uint32_t i = 0; i < config.num_blocks; ++i) {
      src.fill(BlockId{i}, i);
      ids.emplace_back(i);
      tags.push_back(tag_of(i));
    }
    register_all();
  }

  void register_all() {
    src_handle = rig.manager->register_layout(src.layout()).value();
    file_handle = rig.manager->register_layout(file.layout()).value();
    dst_handle = rig.manager->register_layout(dst.layout()).value();
  }
  TransferCompleteNotification write(TransferOptions options = {}) {
    options.tags = tags;
    return rig.execute(src_handle, ids, file_handle, ids, options).value();
  }
  TransferCompleteNotification read(TransferOptions options = {}) {
    options.tags = tags;
    return rig.execute(file_handle, ids, dst_handle, ids, options).value();
  }

  void flip(BlockId block, uint64_t offset) {
    const MemoryRegion byte = file.layout().slot(block).slice(offset, 1);
    std::vector<std::byte> value = file.read(byte);
    value[0] ^= std::byte{0x10};
    file.write(byte, value);
  }

  /// What the result says is what is there.
  void expect_consistent(const TransferResult& result, const GuardedPlace& place) const {
    EXPECT_EQ(result.bytes, (ids.size() - result.failed.size()) * place.config().block_bytes());
    EXPECT_EQ(result.status.has_value(), result.failed.empty());
    EXPECT_TRUE(std::ranges::is_sorted(result.failed));
    for (uint32_t i = 0; i < ids.size(); ++i) {
      if (std::ranges::binary_search(result.failed, i)) continue;
      EXPECT_TRUE(place.holds(ids[i], i));
    }
    EXPECT_TRUE(place.guards_hold());
  }

  TransferRig rig;
  GuardedPlace src;
  GuardedPlace file;
  GuardedPlace dst;
  std::vector<BlockId> ids;
  std::vector<SlotTag> tags;
  LayoutHandle src_handle;
  LayoutHandle file_handle;
  LayoutHandle dst_handle;
};

TEST(FileTransfer, ASlotHoldsTheHeaderThatTheFormatSays) {
  FileTransferSetup setup;
  ASSERT_TRUE(setup.write().wait());
  const std::vector<std::byte> payload = testing::pattern_block(kConfig, 5);
  const SlotHeader header =
      decode_slot_header(setup.file.read(setup.file.layout().slot(BlockId{5}))).value();
  EXPECT_EQ(header, (SlotHeader{.header_bytes = 64,
                                .payload_bytes = kConfig.block_bytes(),
                                .tag = tag_of(5),
                                .payload_checksum = checksum(payload)}));
  EXPECT_TRUE(setup.file.holds(BlockId{5}, 5));
  EXPECT_TRUE(setup.file.guards_hold());
}

TEST(FileTransfer, EachKindOfDamageFailsExactlyItsBlock) {
  const uint64_t payload = kConfig.block_bytes();
  struct Place {
    std::string name;
    uint64_t offset;
  };
  for (const Place& place :
       {Place{"magic", 0}, Place{"version", 4}, Place{"header_bytes", 6}, Place{"payload_bytes", 8},
        Place{"first of the tag", 16}, Place{"last of the tag", 47}, Place{"payload_checksum", 48},
        Place{"last of the payload_checksum", 55}, Place{"header_checksum", 56},
        Place{"last of the header_checksum", 63}, Place{"first of the payload", 64},
        Place{"middle of the payload", 64 + payload / 2},
        Place{"last of the payload", 64 + payload - 1}}) {
    SCOPED_TRACE(place.name);
    FileTransferSetup setup({.seed = 7});
    ASSERT_TRUE(setup.write().wait());
    setup.flip(BlockId{9}, place.offset);
    const TransferCompleteNotification read = setup.read();
    EXPECT_EQ(read.wait().error().code(), ErrorCode::kCorrupt);
    EXPECT_EQ(read.result().failed, std::vector<uint32_t>{9});
    setup.expect_consistent(read.result(), setup.dst);
    EXPECT_FALSE(read.event().status());
    EXPECT_EQ(testing::counter_value(setup.rig.metrics, "kvbm_corrupt_blocks_total"), 1U);
    EXPECT_EQ(testing::counter_value(setup.rig.metrics, "kvbm_copy_failed_blocks_total"), 1U);
    const auto warnings = setup.rig.log.messages(LogLevel::kWarning);
    EXPECT_TRUE(std::ranges::any_of(warnings, [](const std::string& line) {
      return line.find("slot 9: corrupt") != std::string::npos;
    }));
  }
}

TEST(FileTransfer, TheBytesBetweenSlotsAreNobodys) {
  FileTransferSetup setup({.seed = 7});
  ASSERT_TRUE(setup.write().wait());
  setup.flip(BlockId{9}, 64 + kConfig.block_bytes());
  setup.flip(BlockId{9}, 4095);
  EXPECT_TRUE(setup.read().wait());
}

TEST(FileTransfer, AnotherBlockInTheSlotIsAMiss) {
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    FileTransferSetup setup({.seed = seed});
    ASSERT_TRUE(setup.write().wait());
    std::swap(setup.tags[3], setup.tags[4]);
    setup.tags[20] = tag_of(999);
    const TransferCompleteNotification read = setup.read();
    EXPECT_EQ(read.wait().error().code(), ErrorCode::kCorrupt);
    // In the order of the request, whatever came first.
    EXPECT_EQ(read.result().failed, (std::vector<uint32_t>{3, 4, 20}));
    EXPECT_NE(read.result().status.error().message().find("3 of 24 blocks failed, first slot 3"),
              std::string::npos)
        << read.result().status.error().message();
  }
}

TEST(FileTransfer, AnEngineThatMovedLessThanAllIsNotBelieved) {
  FileTransferSetup setup({.seed = 7});
  auto inner = PosixFileEngine::create({.executor = *setup.rig.executor, .name = "inner"}).value();
  setup.rig.use_files<testing::FaultyFileEngine>(std::move(inner), *setup.rig.executor,
                                                 testing::FileFaults{.lie = 1});
  setup.register_all();
  const TransferCompleteNotification write = setup.write();
  EXPECT_EQ(write.wait().error().code(), ErrorCode::kInternal);
  EXPECT_EQ(write.result().failed.size(), kNumBlocks);
  EXPECT_EQ(write.result().bytes, 0U);
}

TEST(FileTransfer, ASlotThatWasNeverWrittenIsAMiss) {
  FileTransferSetup setup({.seed = 7});
  ASSERT_TRUE(setup.write().wait());
  const MemoryRegion header = setup.file.layout().slot(BlockId{2}).slice(0, 64);
  setup.file.write(header, std::vector<std::byte>(64));
  const TransferCompleteNotification read = setup.read();
  EXPECT_EQ(read.wait().error().code(), ErrorCode::kCorrupt);
  EXPECT_EQ(read.result().failed, std::vector<uint32_t>{2});
}

TEST(FileTransfer, SlotsOfAnotherGeometryAreMisses) {
  FileTransferSetup setup({.seed = 7});
  ASSERT_TRUE(setup.write().wait());
  // The same file read as slots with a larger header: same place, other sizes.
  const PhysicalLayout other =
      PhysicalLayout::file_slots(kConfig, setup.file.layout().page_maps().front().region(),
                                 {.header_bytes = 128})
          .value();
  ASSERT_TRUE(setup.rig.manager->unregister_layout(setup.file_handle));
  setup.file_handle = setup.rig.manager->register_layout(other).value();
  const TransferCompleteNotification read = setup.read();
  EXPECT_EQ(read.wait().error().code(), ErrorCode::kCorrupt);
  EXPECT_EQ(read.result().failed.size(), kNumBlocks);
}

TEST(FileTransfer, AFileThatIsTooShortFailsTheBlocksBeyondItsEnd) {
  FileTransferSetup setup;
  ASSERT_TRUE(setup.write().wait());
  const MemoryRegion slot = setup.file.layout().slot(BlockId{20});
  ASSERT_EQ(ftruncate(slot.file().fd, static_cast<off_t>(slot.file_offset())), 0);
  const TransferCompleteNotification read = setup.read();
  EXPECT_EQ(read.wait().error().code(), ErrorCode::kIo);
  EXPECT_EQ(read.result().failed, (std::vector<uint32_t>{20, 21, 22, 23}));
  EXPECT_EQ(testing::counter_value(setup.rig.metrics, "kvbm_corrupt_blocks_total"), 0U);
}

TEST(FileTransfer, NoFaultOfTheEngineMakesAWrongBlockLookRight) {
  Random seeds(testing::test_seed(41));
  size_t failures = 0;
  size_t successes = 0;
  for (int round = 0; round < 60; ++round) {
    const bool threads = round % 3 == 0;
    FileTransferSetup setup({.seed = threads ? std::nullopt : std::optional(seeds.next())});
    auto inner =
        PosixFileEngine::create({.executor = *setup.rig.executor, .name = "inner"}).value();
    setup.rig.use_files<testing::FaultyFileEngine>(std::move(inner), *setup.rig.executor,
                                                   testing::FileFaults{.seed = seeds.next(),
                                                                       .fail = 0.03,
                                                                       .torn = 0.03,
                                                                       .lie = 0.03,
                                                                       .bit_flip = 0.03,
                                                                       .delay = 0.2});
    setup.register_all();
    const TransferCompleteNotification write = setup.write();
    static_cast<void>(write.wait());
    ASSERT_TRUE(write.done());
    EXPECT_EQ(write.result().status.has_value(), write.result().failed.empty());
    EXPECT_EQ(write.result().bytes,
              (kNumBlocks - write.result().failed.size()) * kConfig.block_bytes());
    const TransferCompleteNotification read = setup.read();
    static_cast<void>(read.wait());
    ASSERT_TRUE(read.done());
    setup.expect_consistent(read.result(), setup.dst);
    failures += read.result().failed.size();
    successes += kNumBlocks - read.result().failed.size();
    // What could not be written cannot be read, unless the old or the new bytes are whole.
    setup.rig.manager.reset();
  }
  EXPECT_GT(failures, 50U);
  EXPECT_GT(successes, 500U);
}

TEST(FileTransfer, TheSameSeedGivesTheSameRun) {
  const auto run = [](uint64_t seed) {
    FileTransferSetup setup({.seed = seed, .file_requests_per_transfer = 5});
    auto& engine = setup.rig.use_files<CountingFileEngine>(*setup.rig.files);
    setup.register_all();
    std::vector<int> order;
    const TransferCompleteNotification write = setup.write();
    const TransferCompleteNotification copy =
        setup.rig.execute(setup.src_handle, setup.ids, setup.dst_handle, setup.ids).value();
    write.on_done([&order](const TransferResult&) noexcept { order.push_back(1); });
    copy.on_done([&order](const TransferResult&) noexcept { order.push_back(2); });
    size_t steps = 0;
    while (setup.rig.stepped->step()) {
      ++steps;
      order.push_back(static_cast<int>(100 + engine.outstanding));
    }
    EXPECT_TRUE(write.done() && copy.done());
    order.push_back(static_cast<int>(steps));
    return order;
  };
  const std::vector<int> first = run(5);
  EXPECT_EQ(run(5), first);
  EXPECT_TRUE(run(6) != first || run(7) != first);
}

TEST(FileTransfer, WithoutMemoryTheRestOfTheBlocksFails) {
  // From the n-th allocation on, those of one or of all turns of the transfer fail.
  size_t num_whole = 0;
  for (const bool for_good : {false, true}) {
    bool ran_out = true;
    for (size_t after = 0; ran_out; ++after) {
      SCOPED_TRACE(after);
      ASSERT_LT(after, 5000U);
      FileTransferSetup setup({.seed = 1 + after, .file_requests_per_transfer = 5});
      ASSERT_TRUE(setup.write().wait());
      setup.rig.stepped->hold("file");
      const TransferCompleteNotification read = setup.read();
      ran_out = false;
      {
        const testing::AllocationFailure no_memory(after);
        setup.rig.stepped->run_until_idle();
        if (for_good) {
          setup.rig.stepped->release("file");
          setup.rig.stepped->run_until_idle();
        }
        ran_out = no_memory.num_refused() > 0;
      }
      setup.rig.stepped->release("file");
      static_cast<void>(read.wait());
      ASSERT_TRUE(read.done());
      setup.expect_consistent(read.result(), setup.dst);
      EXPECT_EQ(setup.rig.manager->in_flight(), 0U);
      if (!read.result().status) {
        EXPECT_EQ(read.result().status.error().code(), ErrorCode::kExhausted)
            << read.result().status.error().describe();
      } else {
        ++num_whole;
      }
    }
  }
  EXPECT_GT(num_whole, 0U);
}

TEST(FileTransfer, AnEngineWithoutMemoryFailsTheBlocks) {
  class NoMemory final : public FileEngine {
   public:
    [[nodiscard]] FileEngineCapabilities capabilities() const override {
      return {.name = "none", .max_parallel = 1, .max_pending = 8};
    }
    [[nodiscard]] Status reach_device(const FileRef& /*file*/) override {
      return make_error(ErrorCode::kUnsupported, "none");
    }
    [[nodiscard]] Result<FileBatch> submit(std::vector<FileRequest> /*requests*/) override {
      throw std::bad_alloc();
    }
  };
  FileTransferSetup setup({.seed = 7});
  setup.rig.use_files<NoMemory>();
  setup.register_all();
  const TransferCompleteNotification write = setup.write();
  EXPECT_EQ(write.wait().error().code(), ErrorCode::kExhausted);
  EXPECT_EQ(write.result().failed.size(), kNumBlocks);
}

TEST(FileTransfer, OnlySoManyRequestsAreInFlight) {
  FileTransferSetup setup({.seed = 3, .file_requests_per_transfer = 5});
  auto& engine = setup.rig.use_files<CountingFileEngine>(*setup.rig.files);
  setup.register_all();
  setup.rig.stepped->hold("file");
  const TransferCompleteNotification write = setup.write();
  setup.rig.stepped->run_until_idle();
  EXPECT_EQ(engine.outstanding, 5U);
  setup.rig.stepped->release("file");
  ASSERT_TRUE(write.wait());
  EXPECT_EQ(engine.most_outstanding, 5U);
  EXPECT_EQ(engine.requests().size(), kNumBlocks);  // one request a block
  ASSERT_TRUE(setup.read().wait());
  EXPECT_EQ(engine.most_outstanding, 5U);
  setup.expect_consistent({.status = {}, .bytes = kNumBlocks * kConfig.block_bytes(), .failed = {}},
                          setup.dst);
}

TEST(FileTransfer, RequestsGoStraightToTheMemoryOfTheBlock) {
  FileTransferSetup setup({.seed = 3});
  auto& engine = setup.rig.use_files<CountingFileEngine>(*setup.rig.files);
  setup.register_all();
  ASSERT_TRUE(setup.write().wait());
  const FileRequest& request = engine.requests().front();
  EXPECT_EQ(request.op, FileOp::kWrite);
  EXPECT_EQ(request.offset, setup.file.layout().slot(BlockId{0}).file_offset());
  ASSERT_EQ(request.buffers.size(), 1U + 3 * 2);  // header, then keys and values of each layer
  EXPECT_EQ(request.buffers[0].size, 64U);
  EXPECT_EQ(request.buffers[2].data, setup.src.layout().region(BlockId{0}, LayerId{0}, 1).base());
  EXPECT_EQ(request.buffers[2].size, kConfig.chunk_bytes());
}

TEST(FileTransfer, AnEngineThatIsFullIsAskedAgain) {
  FileTransferSetup setup({.seed = 3, .file_requests_per_transfer = 16, .max_file_requests = 3});
  GuardedPlace other_src(kConfig, LayoutKind::kFullyContiguous);
  GuardedPlace other_file(kConfig, LayoutKind::kFileSlots);
  for (uint32_t i = 0; i < kNumBlocks; ++i) other_src.fill(BlockId{i}, 500 + i);
  const LayoutHandle other_src_handle =
      setup.rig.manager->register_layout(other_src.layout()).value();
  const LayoutHandle other_file_handle =
      setup.rig.manager->register_layout(other_file.layout()).value();
  setup.rig.stepped->hold("file");
  const TransferCompleteNotification first = setup.write();
  setup.rig.stepped->run_until_idle();  // takes all the room there is
  const TransferCompleteNotification second =
      setup.rig
          .execute(other_src_handle, setup.ids, other_file_handle, setup.ids, {.tags = setup.tags})
          .value();
  setup.rig.stepped->run_for(milliseconds(20));
  EXPECT_FALSE(second.done());
  setup.rig.stepped->release("file");
  EXPECT_TRUE(first.wait());
  EXPECT_TRUE(second.wait());
  for (uint32_t i = 0; i < kNumBlocks; ++i) {
    EXPECT_TRUE(setup.file.holds(BlockId{i}, i));
    EXPECT_TRUE(other_file.holds(BlockId{i}, 500 + i));
  }
}

TEST(FileTransfer, AnEngineThatRefusesForGoodFailsWhatItHasNotTaken) {
  FileTransferSetup setup({.seed = 3, .file_requests_per_transfer = 4});
  auto& engine = setup.rig.use_files<CountingFileEngine>(*setup.rig.files);
  setup.register_all();
  setup.rig.stepped->hold("file");
  const TransferCompleteNotification write = setup.write();
  setup.rig.stepped->run_until_idle();
  engine.refuse_with = Error(ErrorCode::kUnavailable, "the engine is going");
  setup.rig.stepped->release("file");
  EXPECT_EQ(write.wait().error().code(), ErrorCode::kUnavailable);
  EXPECT_EQ(write.result().failed.size(), kNumBlocks - 4);
  EXPECT_EQ(write.result().bytes, 4 * kConfig.block_bytes());
  EXPECT_TRUE(setup.file.holds(BlockId{3}, 3));
  EXPECT_TRUE(setup.file.untouched(BlockId{4}));
}

TEST(FileTransfer, AtTheDeadlineWhatIsSubmittedIsFinishedAndTheRestFails) {
  FileTransferSetup setup({.seed = 3, .file_requests_per_transfer = 4});
  setup.rig.stepped->hold("file");
  const TransferCompleteNotification write =
      setup.write({.deadline = setup.rig.after(milliseconds(5))});
  setup.rig.stepped->run_until_idle();
  setup.rig.stepped->advance(milliseconds(5));
  setup.rig.stepped->run_until_idle();
  EXPECT_FALSE(write.done());  // the engine still has four
  setup.rig.stepped->release("file");
  EXPECT_EQ(write.wait().error().code(), ErrorCode::kTimeout);
  EXPECT_EQ(write.result().failed.size(), kNumBlocks - 4);
  EXPECT_EQ(write.result().bytes, 4 * kConfig.block_bytes());
  EXPECT_TRUE(setup.file.untouched(BlockId{4}));
}

TEST(FileTransfer, ADroppedManagerFinishesWhatIsSubmittedAndCancelsTheRest) {
  FileTransferSetup setup({.seed = 3, .file_requests_per_transfer = 4});
  const TransferCompleteNotification write = setup.write();
  for (int step = 0; step < 2; ++step) ASSERT_TRUE(setup.rig.stepped->step());
  setup.rig.manager.reset();
  ASSERT_TRUE(write.done());
  EXPECT_EQ(write.result().status.error().code(), ErrorCode::kCancelled);
  EXPECT_GE(write.result().bytes, 4 * kConfig.block_bytes());
  EXPECT_EQ(write.result().bytes,
            (kNumBlocks - write.result().failed.size()) * kConfig.block_bytes());
  for (const uint32_t position : write.result().failed)
    EXPECT_TRUE(setup.file.untouched(BlockId{position}));
}

TEST(FileTransfer, ADroppedManagerLeavesNoTransferOpenEvenIfTheEngineStandsStill) {
  for (const bool engine_goes : {false, true}) {
    FileTransferSetup setup({.seed = 3, .file_requests_per_transfer = 4});
    setup.rig.stepped->hold("file");
    const TransferCompleteNotification write = setup.write();
    setup.rig.stepped->run_until_idle();
    setup.rig.manager.reset();
    EXPECT_FALSE(write.done());  // the engine may still read the blocks
    if (engine_goes) {
      setup.rig.files.reset();
      ASSERT_TRUE(write.done());
      EXPECT_EQ(write.result().failed.size(), kNumBlocks);
    } else {
      setup.rig.stepped->release("file");
      EXPECT_EQ(write.wait().error().code(), ErrorCode::kCancelled);
      EXPECT_EQ(write.result().failed.size(), kNumBlocks - 4);
      EXPECT_TRUE(setup.file.holds(BlockId{0}, 0));
    }
  }
}

TEST(FileTransfer, ADroppedManagerEndsATransferThatWaitsForRoomInTheEngine) {
  FileTransferSetup setup({.seed = 3});
  auto& engine = setup.rig.use_files<CountingFileEngine>(*setup.rig.files);
  engine.refuse_with = Error(ErrorCode::kExhausted, "full");
  setup.register_all();
  const TransferCompleteNotification write = setup.write();
  setup.rig.stepped->run_for(milliseconds(5));
  EXPECT_FALSE(write.done());
  setup.rig.manager.reset();
  ASSERT_TRUE(write.done());
  EXPECT_EQ(write.result().status.error().code(), ErrorCode::kCancelled);
  EXPECT_TRUE(setup.file.untouched(BlockId{0}));
}

TEST(FileTransfer, ADroppedManagerWaitsForItsFilesOnThreads) {
  for (int round = 0; round < 20; ++round) {
    FileTransferSetup setup({.file_requests_per_transfer = 2, .file_threads = 2});
    const TransferCompleteNotification write = setup.write();
    const TransferCompleteNotification read = setup.read({.wait_for = {write.event()}});
    setup.rig.manager.reset();
    ASSERT_TRUE(write.done() && read.done());
    if (write.result().status) continue;
    EXPECT_EQ(write.result().status.error().code(), ErrorCode::kCancelled);
  }
}

TEST(FileTransfer, BuffersAreUsedAgain) {
  FileTransferSetup setup({.seed = 3});
  auto& engine = setup.rig.use_files<CountingFileEngine>(*setup.rig.files);
  setup.register_all();
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(setup.write().wait());
    ASSERT_TRUE(setup.read().wait());
  }
  // Each request begins with the header, in a buffer.
  std::set<std::byte*> headers;
  for (const FileRequest& request : engine.requests()) {
    headers.insert(request.buffers.front().data);
    unsigned char in_core = 0;
    const auto page = reinterpret_cast<uintptr_t>(request.buffers.front().data) / 4096 * 4096;
    // Still there, though no transfer runs.
    EXPECT_EQ(::mincore(reinterpret_cast<void*>(page), 1, &in_core), 0);
  }
  EXPECT_LE(headers.size(), size_t{kNumBlocks});
}

TEST(FileTransfer, ADirectFileTakesAlignedMemoryAsItIsAndAnyOtherThroughBuffers) {
  LayoutConfig config = kConfig;
  config.inner_dim = 64;  // chunks of 512 bytes
  const FileAlignment direct{.memory = 512, .offset = 512};
  const auto as_direct = [&](const GuardedPlace& file, const SlotOptions& slots,
                             const LayoutConfig& of_file) {
    const MemoryRegion& region = file.layout().page_maps().front().region();
    FileRef ref = region.file();
    ref.alignment = direct;
    return PhysicalLayout::file_slots(
               of_file, MemoryRegion::of_file(ref, region.file_offset(), region.size_bytes()),
               slots)
        .value();
  };
  // The engine checks each request against the alignment that the file claims.
  const SlotOptions slots{.header_bytes = 512, .alignment = 512};
  FileTransferSetup setup({.seed = 3}, slots, config);
  setup.file_handle =
      setup.rig.manager->register_layout(as_direct(setup.file, slots, config)).value();
  Status status = setup.write().wait();
  ASSERT_TRUE(status) << status.error().describe();
  status = setup.read().wait();
  ASSERT_TRUE(status) << status.error().describe();
  for (uint32_t i = 0; i < kNumBlocks; ++i) EXPECT_TRUE(setup.dst.holds(BlockId{i}, i));

  // Slots that the file cannot take are refused before anything happens.
  const LayoutHandle unaligned =
      setup.rig.manager
          ->register_layout(as_direct(setup.file, {.header_bytes = 64, .alignment = 512}, config))
          .value();
  const auto refused =
      setup.rig.execute(setup.src_handle, setup.ids, unaligned, setup.ids, {.tags = setup.tags});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), ErrorCode::kUnsupported);
  EXPECT_NE(refused.error().message().find("SlotOptions"), std::string::npos);

  std::vector<std::byte> memory(config.block_bytes() * kNumBlocks + 4096);
  const auto start = reinterpret_cast<uintptr_t>(memory.data());
  const uintptr_t odd = (start + 511) / 512 * 512 + 8 - start;
  const PhysicalLayout shifted =
      PhysicalLayout::fully_contiguous(
          config, MemoryRegion::of_bytes(StorageKind::kSystem, memory.data() + odd,
                                         config.block_bytes() * kNumBlocks))
          .value();
  const LayoutHandle shifted_handle = setup.rig.manager->register_layout(shifted).value();
  const auto copy = [&](LayoutHandle from, LayoutHandle to) {
    auto started = setup.rig.execute(from, setup.ids, to, setup.ids, {.tags = setup.tags});
    ASSERT_TRUE(started) << started.error().describe();
    const Status done = started->wait();
    EXPECT_TRUE(done) << done.error().describe();
  };
  copy(setup.file_handle, shifted_handle);
  for (uint32_t i = 0; i < kNumBlocks; ++i) {
    setup.flip(BlockId{i}, 600);
    setup.dst.fill(BlockId{i}, 99);
  }
  copy(shifted_handle, setup.file_handle);
  copy(setup.file_handle, setup.dst_handle);
  for (uint32_t i = 0; i < kNumBlocks; ++i) EXPECT_TRUE(setup.dst.holds(BlockId{i}, i));
  EXPECT_TRUE(setup.file.guards_hold());

  // A slot that is larger than its block has zeros behind it, whatever the buffer held before.
  LayoutConfig smaller = kConfig;
  smaller.inner_dim = 12;
  const GuardedPlace file(smaller, LayoutKind::kFileSlots, StorageKind::kFile, slots);
  const LayoutHandle small_file =
      setup.rig.manager->register_layout(as_direct(file, slots, smaller)).value();
  GuardedPlace small_source(smaller, LayoutKind::kLayerSeparateBlockSecond);
  const LayoutHandle small_handle =
      setup.rig.manager->register_layout(small_source.layout()).value();
  const std::span<const BlockId> some = std::span(setup.ids).first(16);  // as much in all
  ASSERT_TRUE(setup.rig
                  .execute(setup.file_handle, some, shifted_handle, some,
                           {.tags = std::span(setup.tags).first(16)})
                  ->wait());
  copy(small_handle, small_file);
  const MemoryRegion slot = file.layout().slot(BlockId{3});
  const uint64_t used = slots.header_bytes + smaller.block_bytes();
  ASSERT_LT(used, slot.size_bytes());
  EXPECT_THAT(file.read(slot.slice(used, slot.size_bytes() - used)), ::testing::Each(std::byte{0}));

  setup.flip(BlockId{2}, 600);
  std::ranges::fill(memory, std::byte{7});
  const auto corrupt = setup.rig.execute(setup.file_handle, setup.ids, shifted_handle, setup.ids,
                                         {.tags = setup.tags});
  ASSERT_TRUE(corrupt);
  EXPECT_EQ(corrupt->wait().error().code(), ErrorCode::kCorrupt);
  const std::span<const std::byte> block(memory.data() + odd + 2 * config.block_bytes(),
                                         config.block_bytes());
  EXPECT_TRUE(std::ranges::all_of(block, [](std::byte byte) { return byte == std::byte{7}; }));
}

}  // namespace
}  // namespace kvbm
