// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/transfer_manager_builder.hpp"

#include <array>
#include <span>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/thread_executor.hpp"
#include "kvbm/memory/posix_file_engine.hpp"
#include "kvbm/runtime/gds.hpp"
#include "kvbm/transfer/fill.hpp"
#include "kvbm/transfer/loopback_agent.hpp"

#include "tests/support/error_code.hpp"
#include "tests/support/recording_log_sink.hpp"
#include "tests/support/temporary_folder.hpp"

namespace kvbm {
namespace {

using testing::code_of;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr LayoutConfig kConfig{.num_blocks = 8,
                               .num_layers = 2,
                               .outer_dim = 2,
                               .page_size = 16,
                               .inner_dim = 64,
                               .dtype_width_bytes = 2};

TEST(TransferManagerBuilder, MakesAManagerThatCopiesBetweenHostDeviceAndFile) {
  testing::RecordingLogSink log{LogLevel::kWarning};
  auto built = TransferManagerBuilder()
                   .device("host")
                   .worker_id(WorkerId(7))
                   .agent_name("seven")
                   .log(log)
                   .build();
  ASSERT_TRUE(built) << built.error();
  OwnedTransferManager& manager = **built;
  EXPECT_EQ(manager->worker_id(), WorkerId(7));
  EXPECT_EQ(manager->worker_address().agent_name, "seven");

  auto device = manager.layout()
                    .with_config(kConfig)
                    .fully_contiguous()
                    .allocate_device(manager.device())
                    .build();
  ASSERT_TRUE(device) << device.error();
  EXPECT_EQ(device->registration().agent_name, "seven");
  auto pinned = manager.layout()
                    .with_config(kConfig)
                    .layer_separate(BlockDimension::kBlockIsFirst)
                    .allocate_pinned(manager.pinned_memory())
                    .build();
  ASSERT_TRUE(pinned) << pinned.error();
  EXPECT_EQ(pinned->storage_kind(), StorageKind::kPinned);

  const testing::TemporaryFolder folder;
  auto file = manager.layout()
                  .with_config(kConfig)
                  .fully_contiguous()
                  .allocate_disk({.directory = folder.path().string()})
                  .build();
  ASSERT_TRUE(file) << file.error();

  // From host memory to the device and back, then to the file and back.
  const std::array<std::array<BlockId, 2>, 5> ids = {{{BlockId(0), BlockId(5)},
                                                      {BlockId(3), BlockId(1)},
                                                      {BlockId(7), BlockId(6)},
                                                      {BlockId(2), BlockId(4)},
                                                      {BlockId(1), BlockId(2)}}};
  const std::array<SlotTag, 2> tags = {SlotTag{std::byte{1}}, SlotTag{std::byte{2}}};
  const FillPattern pattern = FillPattern::position(1);
  const PhysicalLayout host = *pinned;
  ASSERT_TRUE(fill(host, ids[0], pattern));
  const LayoutHandle host_handle = manager->register_layout(*std::move(pinned)).value();
  const LayoutHandle device_handle = manager->register_layout(*std::move(device)).value();
  const LayoutHandle file_handle = manager->register_layout(*std::move(file)).value();
  const std::array places = {host_handle, device_handle, host_handle, file_handle, host_handle};
  for (size_t i = 1; i < places.size(); ++i) {
    const bool has_file = places[i - 1] == file_handle || places[i] == file_handle;
    const auto copied =
        manager->execute_transfer({.src = places[i - 1],
                                   .src_ids = ids[i - 1],
                                   .dst = places[i],
                                   .dst_ids = ids[i],
                                   .options = {.tags = has_file ? std::span<const SlotTag>(tags)
                                                                : std::span<const SlotTag>()}});
    ASSERT_TRUE(copied) << copied.error();
    EXPECT_TRUE(copied->wait());
  }
  for (const size_t i : {size_t{2}, size_t{4}}) {
    const auto wrong = find_fill_mismatch(host, ids[i], ids[0], pattern);
    ASSERT_TRUE(wrong) << wrong.error();
    EXPECT_FALSE(wrong->has_value());
  }
  EXPECT_THAT(log.records(), IsEmpty());
}

TEST(TransferManagerBuilder, MemoryMayOutliveTheManager) {
  auto built = TransferManagerBuilder().device("host").build();
  ASSERT_TRUE(built) << built.error();
  auto layout = (*built)
                    ->layout()
                    .with_config(kConfig)
                    .fully_contiguous()
                    .allocate_pinned((*built)->pinned_memory())
                    .build();
  ASSERT_TRUE(layout) << layout.error();
  built->reset();
  EXPECT_TRUE(fill(*layout, std::array{BlockId(7)}, FillPattern::sequential()));
}

TEST(TransferManagerBuilder, TheHostHasNoStreamsToAdopt) {
  const auto built = TransferManagerBuilder().device("host").build();
  ASSERT_TRUE(built) << built.error();
  EXPECT_EQ(code_of((*built)->adopt_stream(0, "engine")), ErrorCode::kUnsupported);
}

TEST(TransferManagerBuilder, ManagersOfOneProcessReachEachOtherByAgents) {
  testing::RecordingLogSink log{LogLevel::kWarning};
  ThreadExecutor executor(log);
  LoopbackNetwork network;
  const auto agent = [&](const char* name) {
    return LoopbackAgent::create({.network = network, .executor = executor, .name = name}).value();
  };
  const auto near_agent = agent("near");
  const auto far_agent = agent("far");
  TransferManagerBuilder builder;
  builder.device("host").log(log);
  const auto near = builder.worker_id(WorkerId(1)).remote_agent(*near_agent).build().value();
  const auto far = builder.worker_id(WorkerId(2)).remote_agent(*far_agent).build().value();
  const auto add = [](OwnedTransferManager& manager) {
    auto layout = manager.layout()
                      .with_config(kConfig)
                      .fully_contiguous()
                      .allocate_pinned(manager.pinned_memory())
                      .build()
                      .value();
    const LayoutHandle handle = manager->register_layout(layout).value();
    EXPECT_TRUE(manager->build_logical_descriptor(handle, LogicalLayoutHandle::kG2));
    return layout;
  };
  const PhysicalLayout here = add(*near);
  const PhysicalLayout there = add(*far);
  ASSERT_TRUE((*near)->import_metadata((*far)->export_metadata().value()));

  const std::array from = {BlockId(4), BlockId(0)};
  const std::array to = {BlockId(1), BlockId(7)};
  const FillPattern pattern = FillPattern::position(3);
  ASSERT_TRUE(fill(there, from, pattern));
  const auto read = (*near)->execute_transfer({.src = LogicalLayoutHandle::kG2,
                                               .src_ids = from,
                                               .dst = LogicalLayoutHandle::kG2,
                                               .dst_ids = to,
                                               .src_worker = WorkerId(2)});
  ASSERT_TRUE(read) << read.error();
  ASSERT_TRUE(read->wait());
  EXPECT_FALSE(find_fill_mismatch(here, to, from, pattern).value().has_value());
}

TEST(TransferManagerBuilder, OptionsOfGdsNeedAllowGds) {
  const auto built = TransferManagerBuilder().device("host").gds({}).build();
  ASSERT_FALSE(built);
  EXPECT_EQ(built.error().code(), ErrorCode::kInvalidArgument);
  EXPECT_THAT(built.error().message(), HasSubstr("allow_gds"));
}

TEST(TransferManagerBuilder, TheHostNeedsNoGdsForItsOwnMemory) {
  testing::RecordingLogSink log{LogLevel::kWarning};
  auto built = TransferManagerBuilder()
                   .device("host")
                   .capabilities({.allow_gds = true})
                   .gds({.library = "libno-such-thing.so.7"})
                   .log(log)
                   .build();
  ASSERT_TRUE(built) << built.error();
  EXPECT_THAT(log.records(), IsEmpty());
}

TEST(Gds, WithoutTheLibraryTheFileEngineIsAsGoodAsItWasAndSaysWhy) {
  testing::RecordingLogSink log;
  ThreadExecutor executor{log};
  const OpenedDevice host = open_device({.name = "host", .executor = executor}).value();
  const auto engine = with_gds({.files = PosixFileEngine::create({.executor = executor}).value(),
                                .device = host,
                                .executor = executor,
                                .gds = {.library = "libno-such-thing.so.7"}});
  ASSERT_TRUE(engine) << engine.error();
  const FileEngineCapabilities capabilities = (*engine)->capabilities();
  EXPECT_FALSE(capabilities.device_memory);
  EXPECT_THAT(capabilities.device_memory_note, HasSubstr("libno-such-thing.so.7"));
  const auto found = find_gds("libno-such-thing.so.7");
  ASSERT_FALSE(found);
  EXPECT_EQ(found.error().code(), ErrorCode::kUnsupported);
}

TEST(TransferManagerBuilder, RefusesWhatIsNotThere) {
  EXPECT_EQ(code_of(TransferManagerBuilder().device("tpu").build()), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of(TransferManagerBuilder().cuda_device_id(-1).build()),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of(TransferManagerBuilder().device("host").streams_per_direction(0).build()),
            ErrorCode::kInvalidArgument);
  for (const auto& built :
       {TransferManagerBuilder().device("host").cuda_pool_reserve_size(1 << 20).build(),
        TransferManagerBuilder().device("host").cuda_pool_release_threshold(0).build(),
        TransferManagerBuilder().device("host").cuda_ring_size(0).build()}) {
    ASSERT_EQ(code_of(built), ErrorCode::kInvalidArgument);
    EXPECT_THAT(built.error().message(), HasSubstr("the device is the host"));
  }
  const auto nixl = TransferManagerBuilder().device("host").nixl_backend("UCX").build();
  ASSERT_EQ(code_of(nixl), ErrorCode::kUnsupported);
  EXPECT_THAT(nixl.error().message(), HasSubstr("UCX"));
}

}  // namespace
}  // namespace kvbm
