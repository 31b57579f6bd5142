// SPDX-License-Identifier: Apache-2.0
// Provokes every message that docs/guides/troubleshooting.md quotes and that needs no GPU.
#include <sys/eventfd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <kvbm/kernels.h>

#include "kvbm/base/thread_executor.hpp"
#include "kvbm/base/units.hpp"
#include "kvbm/cluster/cluster.hpp"
#include "kvbm/cluster/inproc_channel.hpp"
#include "kvbm/device/host_device.hpp"
#include "kvbm/events/event_sink.hpp"
#include "kvbm/memory/internal/anonymous_file.hpp"
#include "kvbm/memory/posix_file_engine.hpp"
#include "kvbm/memory/system_memory.hpp"
#include "kvbm/runtime/devices.hpp"
#include "kvbm/runtime/transfer_manager_builder.hpp"

#include "tests/support/out_of_reach_device.hpp"
#include "tests/support/pinner_double.hpp"
#include "tests/support/rank_rig.hpp"
#include "tests/support/recording_log_sink.hpp"
#include "tests/support/temporary_folder.hpp"
#include "tests/support/troubleshooting_guide.hpp"
#include "tests/support/wrapped_device.hpp"

namespace kvbm {
namespace {

using std::chrono::milliseconds;
using testing::TemporaryFolder;
using testing::TroubleshootingGuide;

constexpr LayoutConfig kConfig{.num_blocks = 8,
                               .num_layers = 2,
                               .outer_dim = 2,
                               .page_size = 4,
                               .inner_dim = 32,
                               .dtype_width_bytes = 2,
                               .num_heads = 4};

TroubleshootingGuide guide_of(const std::string& section) {
  std::ifstream guide(KVBM_TEST_SOURCE_DIR "/../../docs/guides/troubleshooting.md");
  return {guide, [&section](const std::string& heading) { return heading == section; }};
}

template <class T>
std::string message_of(const Result<T>& result) {
  return result ? "it succeeded" : result.error().message();
}

PhysicalLayout layout_of(const LayoutConfig& config = kConfig, const KvBlockLayout& format = {}) {
  return PhysicalLayout::builder("test")
      .with_config(config)
      .fully_contiguous()
      .with_block_layout(format)
      .allocate_system()
      .build()
      .value();
}

/// A manager of the host, with one layout for each place that the tests name.
struct Manager {
  explicit Manager(WorkerId worker = WorkerId(7))
      : owned(TransferManagerBuilder().device("host").worker_id(worker).log(log).build().value()) {}

  [[nodiscard]] LayoutHandle add(PhysicalLayout layout) {
    return (*owned)->register_layout(std::move(layout)).value();
  }
  [[nodiscard]] Result<TransferCompleteNotification> copy(
      LayoutHandle src, LayoutHandle dst, TransferOptions options = {},
      std::vector<BlockId> src_ids = {BlockId(0)}, std::vector<BlockId> dst_ids = {BlockId(0)}) {
    return (*owned)->execute_transfer({.src = src,
                                       .src_ids = src_ids,
                                       .dst = dst,
                                       .dst_ids = dst_ids,
                                       .options = std::move(options)});
  }

  testing::RecordingLogSink log;
  std::unique_ptr<OwnedTransferManager> owned;
};

// --- formats and shapes --------------------------------------------------------------------------

/// One layer of NHD blocks, [block, outer, page, head, head_dim], as an engine would describe it.
struct EngineTensor {
  SystemMemory memory =
      SystemMemory::create({.size_bytes = kConfig.num_blocks * kConfig.layer_bytes()}).value();
  ExternalTensor tensor{.region = memory.region(),
                        .axes = {TensorAxis::kBlock, TensorAxis::kOuter, TensorAxis::kPage,
                                 TensorAxis::kHead, TensorAxis::kHeadDim},
                        .shape = {8, 2, 4, 4, 8},
                        .strides = {256, 128, 32, 8, 1}};
};

std::string refusal_of(const LayoutConfig& config, const std::vector<ExternalTensor>& tensors) {
  return message_of(PhysicalLayout::builder("test")
                        .with_config(config)
                        .page_maps()
                        .with_external_device_regions(tensors)
                        .build());
}

TEST(Troubleshooting, FormatsAndShapes) {
  TroubleshootingGuide guide = guide_of("Formats and shapes");

  char byte = 0;
  const void* table[] = {&byte};
  if (kvbm_kernels_launch_universal_from_block(nullptr, table, 1, 1, 1, 1, 1, 1, 0, 0, nullptr) ==
      KVBM_KERNELS_INVALID_VALUE) {
    guide.said("KVBM_KERNELS_INVALID_VALUE");
  }

  const std::array<EngineTensor, 2> layers;
  std::vector<ExternalTensor> tensors = {layers[0].tensor, layers[1].tensor};
  guide.said(message_of(PhysicalLayout::layer_separate(kConfig, BlockDimension::kBlockIsFirst,
                                                       std::array{layers[0].memory.region()})));
  tensors[1].shape[0] = 7;
  guide.said(refusal_of(kConfig, tensors));
  tensors[1] = layers[1].tensor;
  tensors[1].strides = {256, 128, 32, 1, 4};
  guide.said(refusal_of(kConfig, tensors));
  // Heads outside of tokens are no run of bytes if nobody knows of heads.
  LayoutConfig opaque = kConfig;
  opaque.num_heads = std::nullopt;
  for (ExternalTensor& tensor : tensors) {
    tensor.axes = {TensorAxis::kBlock, TensorAxis::kOuter, TensorAxis::kPage, TensorAxis::kHeadDim};
    tensor.shape = {8, 2, 4, 32};
    tensor.strides = {512, 256, 64, 1};
  }
  guide.said(refusal_of(opaque, tensors));
  tensors = {layers[0].tensor, layers[1].tensor};
  tensors[1].dtype_width_bytes = 4;
  guide.said(refusal_of(kConfig, tensors));

  Manager manager;
  tensors[1].dtype_width_bytes = 2;
  const LayoutHandle engine = manager.add(PhysicalLayout::builder("test")
                                              .with_config(kConfig)
                                              .page_maps()
                                              .with_external_device_regions(tensors)
                                              .build()
                                              .value());
  const LayoutHandle hnd = manager.add(layout_of(kConfig, KvBlockLayout::kOperationalHND));
  guide.said(
      message_of(manager.copy(engine, hnd, {.src_kv_layout = KvBlockLayout::kOperationalHND})));
  const LayoutHandle plain = manager.add(layout_of());
  guide.said(message_of(manager.copy(plain, hnd)));

  LayoutConfig other = kConfig;
  other.dtype_width_bytes = 4;
  guide.said(message_of(manager.copy(plain, manager.add(layout_of(other)))));
  other = kConfig;
  other.num_layers = 3;
  other.page_size = 8;
  guide.said(message_of(manager.copy(plain, manager.add(layout_of(other)))));

  guide.expect_all_were_said();
}

// --- GPU and driver ------------------------------------------------------------------------------

/// What `kvbm doctor` prints, if drivers are looked for in a folder first.
std::string doctor(const std::string& libraries = "", const std::string& before = "") {
  const std::string command =
      before + "LD_LIBRARY_PATH='" + libraries + "' '" KVBM_PROGRAM "' doctor 2>&1";
  FILE* const pipe = ::popen(command.c_str(), "r");
  EXPECT_NE(pipe, nullptr);
  std::string text;
  for (std::array<char, 4096> part{}; pipe != nullptr && ::fgets(part.data(), part.size(), pipe);) {
    text += part.data();
  }
  EXPECT_TRUE(pipe != nullptr && ::pclose(pipe) == 0) << text;
  return text;
}

/// The one of its lines that begins with a word or two after the status.
std::string line_of(const std::string& text, const std::string& name) {
  const size_t at = text.find(" " + name + " ");
  return at == std::string::npos ? text : text.substr(at, text.find('\n', at) - at);
}

#if KVBM_HAS_CUDA
void say_drivers(TroubleshootingGuide& guide) {
  const TemporaryFolder folder;
  folder.write("libcuda.so.1", "no library");
  for (const std::string& libraries :
       {folder.path().string(), std::string(KVBM_STAND_IN_DRIVERS "/without_functions"),
        std::string(KVBM_STAND_IN_DRIVERS "/too_old"),
        std::string(KVBM_STAND_IN_DRIVERS "/without_gpu")}) {
    guide.said(line_of(doctor(libraries), "gpus"));
  }
  guide.written_in(KVBM_TEST_SOURCE_DIR "/../../src/kvbm/runtime/internal/cuda_backend_absent.cpp",
                   "CUDA was left out of this build: configure with -DKVBM_WITH_CUDA=ON");
  guide.written_in(KVBM_TEST_SOURCE_DIR "/../../kernels/src/stub.cpp",
                   "KVBM_KERNELS_NOT_SUPPORTED");
}
#else
void say_drivers(TroubleshootingGuide& guide) {
  guide.said(line_of(doctor(), "gpus"));
  char byte = 0;
  void* table[] = {&byte};
  if (kvbm_kernels_launch_vectorized_copy(table, table, 1, 1, nullptr) ==
      KVBM_KERNELS_NOT_SUPPORTED) {
    guide.said("KVBM_KERNELS_NOT_SUPPORTED");
  }
  guide.leave_out("NVIDIA driver");
}
#endif

TEST(Troubleshooting, GpuAndDriver) {
  TroubleshootingGuide guide = guide_of("GPU and driver");
  say_drivers(guide);
  testing::RecordingLogSink log;
  ThreadExecutor executor{log};
  guide.said(message_of(open_device({.name = "gpu", .executor = executor})));
  guide.said(advice_on_kernels(
      {.device = "cuda:0", .sm = 121, .has_kernels = true, .kernels_from_ptx = true}));
  guide.said(advice_on_kernels({.device = "cuda:0", .sm = 75}));
  guide.said(message_of(TransferManagerBuilder().device("host").nixl_backend("UCX").build()));
  guide.said(message_of(TransferManagerBuilder().device("host").cuda_pool_reserve_size(1).build()));
  guide.said(message_of(TransferManagerBuilder().device("host").cuda_ring_size(1).build()));

  class CompilingDevice final : public testing::WrappedDevice {
   public:
    using WrappedDevice::WrappedDevice;
    [[nodiscard]] DeviceInfo info() const override {
      DeviceInfo info = inner().info();
      info.capabilities.kernels_from_ptx = true;
      info.capabilities.ring_is_missing = true;
      return info;
    }
  };
  const auto host = HostDevice::create({.executor = executor}).value();
  ASSERT_TRUE(TransferManager::create({.device = *host, .executor = executor, .log = log}));
  EXPECT_TRUE(log.messages(LogLevel::kWarning).empty());
  CompilingDevice device{*host};
  ASSERT_TRUE(TransferManager::create({.device = device, .executor = executor, .log = log}));
  ASSERT_EQ(log.messages(LogLevel::kWarning).size(), 2U);
  guide.said(log.messages(LogLevel::kWarning).front());
  guide.said(log.messages(LogLevel::kWarning).back());

  guide.expect_all_were_said();
}

// --- memory --------------------------------------------------------------------------------------

/// What worker and leader say in their log where all but the first slice cannot be pinned.
std::vector<std::string> records_of_a_short_tier() {
  testing::RecordingLogSink log(LogLevel::kWarning);
  ThreadExecutor executor{log};
  const auto pinner = std::make_shared<testing::PinnerDouble>();
  pinner->refuse_from = 1;
  const testing::RankRig rank(executor, log,
                              {.host_blocks = 4 * kMiB / testing::kRigBlockBytes,
                               .disk_blocks = 0,
                               .pinner = pinner,
                               .pin_slice_bytes = 2 * kMiB});
  InprocChannel channel(executor, {rank.worker.get()});
  NullSink events;
  MetricsRegistry metrics;
  auto leader = TierManager::create(
      {.groups = {{GroupId(0), Retention::full_prefix()}}, .places = rank.specs}, executor.clock(),
      events, metrics, log);
  Cluster cluster(std::move(leader).value(), channel, executor.clock());
  EXPECT_TRUE(channel.wait(executor.clock().now() + std::chrono::seconds(10)));
  cluster.exchange();
  std::vector<std::string> records = log.messages(LogLevel::kError);
  const std::vector<std::string> warnings = log.messages(LogLevel::kWarning);
  records.insert(records.end(), warnings.begin(), warnings.end());
  return records;
}

TEST(Troubleshooting, Memory) {
  TroubleshootingGuide guide = guide_of("Memory");
  testing::RecordingLogSink log;
  ThreadExecutor executor{log};
  const auto host = HostDevice::create({.executor = executor}).value();
  testing::OutOfReachDevice device{*host, false};
  const auto manager =
      TransferManager::create({.device = device, .executor = executor, .log = log}).value();
  const LayoutHandle pageable = manager->register_layout(layout_of()).value();
  const LayoutHandle gpu = manager
                               ->register_layout(PhysicalLayout::builder("test")
                                                     .with_config(kConfig)
                                                     .fully_contiguous()
                                                     .allocate_device(device)
                                                     .build()
                                                     .value())
                               .value();
  const std::array ids = {BlockId(0)};
  const auto way =
      manager->explain_transfer({.src = pageable, .src_ids = ids, .dst = gpu, .dst_ids = ids});
  ASSERT_TRUE(way) << way.error();
  guide.said(*way);
  guide.said(message_of(SystemMemory::create({.size_bytes = uint64_t{1} << 60})));
  guide.said(line_of(doctor("", "ulimit -l 64; "), "locked memory"));
  for (const std::string& record : records_of_a_short_tier()) guide.said(record);
  guide.expect_all_were_said();
}

// --- disk ----------------------------------------------------------------------------------------

/// What a file without a name says in the log where the file system is of this kind.
std::string warning_of(FileOptions options, internal::FileCalls calls) {
  testing::RecordingLogSink log;
  const TemporaryFolder folder;
  options.directory = folder.path().string();
  options.size_bytes = 4 * kKiB;
  options.log = &log;
  const auto file = internal::create_anonymous_file(options, calls);
  if (!file) return message_of(file);
  const std::vector<std::string> warnings = log.messages(LogLevel::kWarning);
  return warnings.size() == 1 ? warnings.front() : "not one warning";
}

TEST(Troubleshooting, Disk) {
  TroubleshootingGuide guide = guide_of("Disk");
  const TemporaryFolder folder;
  const std::string directory = folder.path().string();
  guide.said(
      message_of(FileMemory::create({.directory = directory, .size_bytes = uint64_t{1} << 60})));
  guide.said(message_of(FileMemory::create({.directory = directory + "/gone", .size_bytes = 1})));

  internal::FileCalls calls = internal::FileCalls::system();
  calls.allocate = [](int, off_t) {
    errno = EOPNOTSUPP;
    return -1;
  };
  guide.said(warning_of({}, calls));
  guide.said(warning_of({.zero_fill = true}, calls));
  // A descriptor that takes no O_DIRECT, on any file system.
  calls.open_unnamed = [](const char*) { return ::eventfd(0, EFD_CLOEXEC); };
  calls.allocate = [](int, off_t) { return 0; };
  guide.said(warning_of({.direct = DirectIo::kTry}, calls));

  testing::RecordingLogSink log;
  ThreadExecutor executor{log};
  const auto memory = FileMemory::create({.directory = directory, .size_bytes = kMiB}).value();
  const FileRef direct{memory.file().fd, {.memory = 512, .offset = 4096}};
  const auto files = PosixFileEngine::create({.executor = executor}).value();
  std::array<std::byte, 100> buffer{};
  FileRequest request{.file = direct};
  request.buffers = {{buffer.data(), buffer.size()}};
  auto batch = files->submit({request});
  ASSERT_TRUE(batch) << batch.error();
  static_cast<void>(batch->completion().wait());
  guide.said(message_of(batch->result(0).status));

  Manager manager;
  const LayoutHandle host = manager.add(layout_of());
  const std::vector<SlotTag> tags = {SlotTag{std::byte{1}}};
  const LayoutHandle narrow = manager.add(
      PhysicalLayout::file_slots(kConfig, MemoryRegion::of_file(direct, 0, kMiB), SlotOptions{})
          .value());
  guide.said(message_of(manager.copy(host, narrow, {.tags = tags})));

  const LayoutHandle disk = manager.add(PhysicalLayout::builder("test")
                                            .with_config(kConfig)
                                            .fully_contiguous()
                                            .allocate_disk({.directory = directory})
                                            .build()
                                            .value());
  ASSERT_TRUE(manager.copy(host, disk, {.tags = tags}).value().wait());
  const std::vector<SlotTag> others = {SlotTag{std::byte{2}}};
  guide.said(message_of(manager.copy(disk, host, {.tags = others}).value().wait()));
  guide.said(message_of(manager.copy(disk, host, {.tags = tags}, {BlockId(5)}).value().wait()));
  guide.expect_all_were_said();
}

// --- transfers -----------------------------------------------------------------------------------

TEST(Troubleshooting, Transfers) {
  TroubleshootingGuide guide = guide_of("Transfers");
  Manager manager;
  const LayoutHandle src = manager.add(layout_of());
  const LayoutHandle dst = manager.add(layout_of());
  const LayoutHandle disk = manager.add(PhysicalLayout::builder("test")
                                            .with_config(kConfig)
                                            .fully_contiguous()
                                            .allocate_disk({.directory = TemporaryFolder().path()})
                                            .build()
                                            .value());

  const Manager namesake;
  guide.said(
      message_of((*manager.owned)->import_metadata((*namesake.owned)->export_metadata().value())));
  Manager other(WorkerId(2));
  const LayoutHandle remote = other.add(layout_of());
  ASSERT_TRUE((*other.owned)->build_logical_descriptor(remote, LogicalLayoutHandle::kG2));
  guide.said(message_of(manager.copy(src, remote)));
  const SerializedLayout metadata = (*other.owned)->export_metadata().value();
  ASSERT_TRUE((*manager.owned)->import_metadata(metadata));
  guide.said(message_of((*manager.owned)->import_metadata(metadata)));
  guide.said(message_of(manager.copy(src, remote)));

  const std::vector<SlotTag> tags(1);
  guide.said(message_of(manager.copy(src, disk)));
  guide.said(message_of(manager.copy(src, dst, {.tags = tags})));

  const TimePoint now = manager.owned->executor().clock().now();
  guide.said(message_of(manager.copy(src, dst, {.deadline = now})));
  const EventSource never = (*manager.owned)->context().create_event();
  guide.said(message_of(
      manager.copy(src, dst, {.wait_for = {never.event()}, .deadline = now + milliseconds(50)})
          .value()
          .wait()));

  guide.said(message_of(manager.copy(src, dst, {}, {BlockId(9)})));
  guide.said(
      message_of(manager.copy(src, dst, {}, {BlockId(0), BlockId(1)}, {BlockId(3), BlockId(3)})));
  guide.said(message_of(manager.copy(src, src, {}, {BlockId(0)}, {BlockId(0)})));

  const SystemMemory memory =
      SystemMemory::create({.size_bytes = kConfig.num_blocks * kConfig.block_bytes()}).value();
  const LayoutHandle one =
      manager.add(PhysicalLayout::fully_contiguous(kConfig, memory.region()).value());
  const LayoutHandle two =
      manager.add(PhysicalLayout::fully_contiguous(kConfig, memory.region()).value());
  guide.said(message_of(manager.copy(one, two)));

  guide.said(message_of(
      manager.copy(src, dst, {.bounce_buffer = BounceBuffer::from_handle(one, {BlockId(0)})})));
  const LentStream stream = (*manager.owned)->context().acquire_d2h_stream().value();
  guide.said(message_of(manager.copy(src, disk, {.stream = stream.ref(), .tags = tags})));

  guide.expect_all_were_said();
}

}  // namespace
}  // namespace kvbm
