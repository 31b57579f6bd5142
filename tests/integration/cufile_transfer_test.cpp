// SPDX-License-Identifier: Apache-2.0
// Blocks between files and a device that the host cannot address, by a libcufile that is none: in
// one hop where everything fits, through host memory with the reason where it does not; and never a
// byte that was not checked.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/random.hpp"
#include "kvbm/layout/layout_builder.hpp"

#include "tests/support/cufile_rig.hpp"
#include "tests/support/error_code.hpp"
#include "tests/support/hidden_device.hpp"
#include "tests/support/transfer_rig.hpp"
#include "tests/support/troubleshooting_guide.hpp"

namespace kvbm::testing {
namespace {

constexpr uint32_t kNumBlocks = 20;
/// Runs of 4 KiB, [layer, outer].
constexpr LayoutConfig kConfig{.num_blocks = kNumBlocks,
                               .num_layers = 3,
                               .outer_dim = 2,
                               .page_size = 16,
                               .inner_dim = 128,
                               .dtype_width_bytes = 2};

/// A device whose checksums a test holds back, fails or refuses.
class ChecksumHooks final : public WrappedDevice {
 public:
  using WrappedDevice::WrappedDevice;

  std::optional<DeviceCapabilities> capabilities;
  std::function<Status()> refuse;  ///< asked at the call
  bool fails = false;              ///< in stream order

  [[nodiscard]] DeviceInfo info() const override {
    DeviceInfo info = inner().info();
    if (capabilities) info.capabilities = *capabilities;
    return info;
  }
  Status checksum(StreamRef stream, ChecksumBatch batch) override {
    if (refuse) KVBM_TRY(refuse());
    if (fails) {
      KVBM_TRY(inner().launch(stream, []() -> Status {
        return make_error(ErrorCode::kDevice, "injected: the GPU is lost");
      }));
    }
    return inner().checksum(stream, std::move(batch));
  }
};

struct CufileSetupOptions {
  bool allow_gds = true;
  LayoutConfig config = kConfig;
  DirectIo direct = DirectIo::kTry;
  CufileRigOptions cufile = {};
  uint64_t seed = 1;
  bool device_checksums = true;
};

/// Two places in the device, a file, and all that is below them.
class CufileSetup {
 public:
  explicit CufileSetup(FakeCufile& fake, const CufileSetupOptions& options = {})
      : fake_(fake),
        rig(TransferRigOptions{.seed = options.seed,
                               .capabilities = {.allow_gds = options.allow_gds}}) {
    rig.manager.reset();
    hidden_ = std::make_unique<HiddenDevice>(*rig.device);
    fake_.behind = [this](const std::byte* address) { return hidden_->behind(address); };
    auto hooks = std::make_unique<ChecksumHooks>(*hidden_);
    device = hooks.get();
    if (!options.device_checksums) {
      device->capabilities = hidden_->info().capabilities;
      device->capabilities->checksums = false;
    }
    rig.config.pinner = hidden_->pinner();
    rig.other_device = std::move(hooks);
    rig.other_files = cufile_engine(*rig.executor, options.cufile);
    rig.start();
    const auto builder = [&] {
      return PhysicalLayout::builder("worker-7").with_config(options.config);
    };
    src.emplace(builder().fully_contiguous().allocate_device(*device).build().value());
    dst.emplace(builder()
                    .layer_separate(BlockDimension::kBlockIsSecond)
                    .allocate_device(*device)
                    .build()
                    .value());
    file.emplace(builder()
                     .fully_contiguous()
                     .allocate_disk({.directory = ::testing::TempDir(), .direct = options.direct})
                     .build()
                     .value());
    host.emplace(builder().fully_contiguous().allocate_system().build().value());
    src_handle = rig.manager->register_layout(*src).value();
    dst_handle = rig.manager->register_layout(*dst).value();
    file_handle = rig.manager->register_layout(*file).value();
    host_handle = rig.manager->register_layout(*host).value();
    for (uint32_t i = 0; i < kNumBlocks; ++i) {
      ids.emplace_back(i);
      tags.push_back(tag_of(i));
      Random random(i + 1);
      auto& block = content.emplace_back(options.config.block_bytes());
      for (std::byte& byte : block) byte = static_cast<std::byte>(random.uniform(256));
      put(*src, BlockId{i}, block);
    }
  }
  ~CufileSetup() {
    rig.manager.reset();
    rig.other_files.reset();
    fake_.behind = nullptr;
    fake_.before_io = nullptr;
    EXPECT_EQ(fake_.num_misuses, 0);
  }

  [[nodiscard]] bool is_direct() const {
    return file->page_maps().front().region().file().alignment.direct();
  }

  /// Where the bytes of a place really are.
  [[nodiscard]] std::byte* reach(std::byte* address) const {
    std::byte* const behind = hidden_->behind(address);
    return behind != nullptr ? behind : address;
  }
  void put(const PhysicalLayout& layout, BlockId block, std::span<const std::byte> bytes) const {
    for_each_region(layout, block, [&](std::byte* region, size_t at, size_t size) {
      std::memcpy(region, bytes.data() + at, size);
    });
  }
  [[nodiscard]] std::vector<std::byte> get(const PhysicalLayout& layout, BlockId block) const {
    std::vector<std::byte> bytes(layout.config().block_bytes());
    for_each_region(layout, block, [&](std::byte* region, size_t at, size_t size) {
      std::memcpy(bytes.data() + at, region, size);
    });
    return bytes;
  }

  [[nodiscard]] Result<TransferCompleteNotification> start(LayoutHandle from, LayoutHandle to,
                                                           TransferOptions options = {}) {
    options.tags = tags;
    return rig.execute(from, ids, to, ids, std::move(options));
  }
  [[nodiscard]] TransferResult run(LayoutHandle from, LayoutHandle to) {
    const TransferCompleteNotification done = start(from, to).value();
    static_cast<void>(done.wait());
    const TransferResult& result = done.result();
    return {.status = result.status ? Status() : Status(make_error(Error(result.status.error()))),
            .bytes = result.bytes,
            .failed = result.failed};
  }
  [[nodiscard]] TransferResult write() { return run(src_handle, file_handle); }
  [[nodiscard]] TransferResult read() { return run(file_handle, dst_handle); }

  [[nodiscard]] std::string explain(LayoutHandle from, LayoutHandle to) {
    TransferOptions options;
    options.tags = tags;
    return rig.manager
        ->explain_transfer(
            {.src = from, .src_ids = ids, .dst = to, .dst_ids = ids, .options = options})
        .value();
  }

  void expect_all(const TransferResult& result) const {
    EXPECT_TRUE(result.status) << result.status.error();
    EXPECT_EQ(result.bytes, kNumBlocks * src->config().block_bytes());
    EXPECT_TRUE(result.failed.empty());
  }
  void expect_content(const PhysicalLayout& layout) const {
    for (const BlockId id : ids) EXPECT_EQ(get(layout, id), content[id.value()]) << "block " << id;
  }
  /// There and back, and in the words of the plan.
  void expect_staged(const std::string& why) {
    const std::string text = explain(src_handle, file_handle);
    EXPECT_NE(text.find("device to pinned (device copy), pinned to file (file engine)"),
              std::string::npos)
        << text;
    EXPECT_NE(text.find(why), std::string::npos) << text;
    EXPECT_NE(explain(file_handle, dst_handle).find(why), std::string::npos);
    expect_all(write());
    expect_all(read());
    expect_content(*dst);
    EXPECT_TRUE(fake_.asked.empty());
  }
  [[nodiscard]] size_t num_warnings(const std::string& word) const {
    size_t count = 0;
    for (const auto& record : rig.log.records()) {
      if (record.level == LogLevel::kWarning && record.message.find(word) != std::string::npos) {
        ++count;
      }
    }
    return count;
  }

  FakeCufile& fake_;
  TransferRig rig;
  ChecksumHooks* device = nullptr;
  std::optional<PhysicalLayout> src, dst, file, host;
  LayoutHandle src_handle, dst_handle, file_handle, host_handle;
  std::vector<BlockId> ids;
  std::vector<SlotTag> tags;
  std::vector<std::vector<std::byte>> content;

 private:
  template <class F>
  void for_each_region(const PhysicalLayout& layout, BlockId block, F&& each) const {
    size_t at = 0;
    for (uint16_t layer = 0; layer < layout.config().num_layers; ++layer) {
      for (uint32_t outer = 0; outer < layout.config().outer_dim; ++outer) {
        const MemoryRegion region = layout.region(block, LayerId{layer}, outer);
        each(reach(region.base()), at, region.size_bytes());
        at += region.size_bytes();
      }
    }
  }

  std::unique_ptr<HiddenDevice> hidden_;
};

class CufileTransferTest : public ::testing::Test {
 protected:
  FakeCufile& fake_ = fresh_fake_cufile();
};

/// Files of the temporary folder may know no direct I/O.
#define KVBM_NEEDS_DIRECT(setup) \
  if (!(setup).is_direct()) GTEST_SKIP() << "no direct I/O in " << ::testing::TempDir()

TEST_F(CufileTransferTest, BlocksGoBetweenFileAndDeviceInOneHop) {
  CufileSetup setup(fake_);
  KVBM_NEEDS_DIRECT(setup);
  EXPECT_EQ(setup.explain(setup.src_handle, setup.file_handle),
            "device to file (file engine): the file engine reaches the memory of the blocks");
  EXPECT_EQ(setup.explain(setup.file_handle, setup.dst_handle),
            "file to device (file engine): the file engine reaches the memory of the blocks");
  setup.expect_all(setup.write());
  EXPECT_EQ(fake_.asked.size(), kNumBlocks) << "a call for each block of one run";
  setup.expect_all(setup.read());
  setup.expect_content(*setup.dst);
  EXPECT_EQ(counter_value(setup.rig.metrics, "kvbm_corrupt_blocks_total"), 0U);
  EXPECT_EQ(setup.num_warnings(""), 0U);
}

TEST_F(CufileTransferTest, SlotsAreTheSameAsThoseOfTheHost) {
  CufileSetup setup(fake_);
  KVBM_NEEDS_DIRECT(setup);
  setup.expect_all(setup.write());
  setup.expect_all(setup.run(setup.file_handle, setup.host_handle));
  setup.expect_content(*setup.host);
  // And the other way round.
  for (const BlockId id : setup.ids) {
    std::ranges::reverse(setup.content[id.value()]);
    setup.put(*setup.host, id, setup.content[id.value()]);
  }
  setup.expect_all(setup.run(setup.host_handle, setup.file_handle));
  setup.expect_all(setup.read());
  setup.expect_content(*setup.dst);
}

TEST_F(CufileTransferTest, ABlockThatIsDamagedInTheFileIsNotServed) {
  CufileSetup setup(fake_);
  KVBM_NEEDS_DIRECT(setup);
  setup.expect_all(setup.write());
  const auto spoil = [&](uint32_t slot, uint64_t byte) {
    const MemoryRegion region = setup.file->slot(BlockId{slot});
    const uint64_t unit = region.file_offset() + byte / 4096 * 4096;
    std::vector<std::byte> bytes(8192);
    std::byte* const aligned =
        bytes.data() + (4096 - reinterpret_cast<uintptr_t>(bytes.data()) % 4096) % 4096;
    ASSERT_EQ(::pread(region.file().fd, aligned, 4096, static_cast<off_t>(unit)), 4096);
    aligned[byte % 4096] ^= std::byte{1};
    ASSERT_EQ(::pwrite(region.file().fd, aligned, 4096, static_cast<off_t>(unit)), 4096);
  };
  const SlotGeometry& slots = *setup.file->slots();
  spoil(3, slots.header_bytes + 17);
  spoil(8, slots.header_bytes + slots.payload_bytes - 1);
  spoil(12, 50);  // the checksum itself
  setup.tags[15] = tag_of(999);
  const TransferResult result = setup.read();
  EXPECT_EQ(code_of(result.status), ErrorCode::kCorrupt);
  EXPECT_EQ(result.failed, (std::vector<uint32_t>{3, 8, 12, 15}));
  EXPECT_EQ(result.bytes, (kNumBlocks - 4) * kConfig.block_bytes());
  EXPECT_EQ(counter_value(setup.rig.metrics, "kvbm_corrupt_blocks_total"), 4U);
  for (const BlockId id : setup.ids) {
    if (std::ranges::find(result.failed, id.value()) != result.failed.end()) continue;
    EXPECT_EQ(setup.get(*setup.dst, id), setup.content[id.value()]);
  }
}

TEST_F(CufileTransferTest, ALibraryThatSaysItReadAndDidNotIsFoundOut) {
  CufileSetup setup(fake_);
  KVBM_NEEDS_DIRECT(setup);
  setup.expect_all(setup.write());
  int call = 0;
  fake_.before_io = [&](FakeCufileIo& io) {
    return call++ % 40 == 7 ? static_cast<ssize_t>(io.size) : FakeCufile::kGoOn;
  };
  const TransferResult result = setup.read();
  EXPECT_EQ(code_of(result.status), ErrorCode::kCorrupt);
  EXPECT_FALSE(result.failed.empty());
  EXPECT_LT(result.failed.size(), kNumBlocks);
  EXPECT_EQ(result.bytes, (kNumBlocks - result.failed.size()) * kConfig.block_bytes());
}

TEST_F(CufileTransferTest, WhatFailsInTheLibraryFailsItsBlocks) {
  CufileSetup setup(fake_);
  KVBM_NEEDS_DIRECT(setup);
  setup.expect_all(setup.write());
  int call = 0;
  // Runs are read one by one; the second one of some blocks fails.
  fake_.before_io = [&](FakeCufileIo&) -> ssize_t {
    return call++ % 50 == 9 ? -5044 : FakeCufile::kGoOn;
  };
  const TransferResult read = setup.read();
  EXPECT_EQ(code_of(read.status), ErrorCode::kIo);
  EXPECT_EQ(read.status.error().native_domain(), NativeDomain::kCufile);
  EXPECT_FALSE(read.failed.empty());
  EXPECT_LT(read.failed.size(), kNumBlocks);
  EXPECT_EQ(read.bytes, (kNumBlocks - read.failed.size()) * kConfig.block_bytes());
  fake_.before_io = [](FakeCufileIo&) -> ssize_t { return -5043; };
  const TransferResult write = setup.write();
  EXPECT_EQ(code_of(write.status), ErrorCode::kExhausted);
  EXPECT_EQ(write.failed.size(), kNumBlocks);
}

TEST_F(CufileTransferTest, ADeviceThatComputesNoChecksumMovesNothing) {
  CufileSetup setup(fake_);
  KVBM_NEEDS_DIRECT(setup);
  setup.expect_all(setup.write());
  fake_.asked.clear();
  for (const bool at_the_call : {true, false}) {
    setup.device->fails = !at_the_call;
    setup.device->refuse = [at_the_call]() -> Status {
      if (at_the_call) return make_error(ErrorCode::kDevice, "injected: the GPU is lost");
      return {};
    };
    const TransferResult write = setup.write();
    EXPECT_EQ(code_of(write.status), ErrorCode::kDevice);
    EXPECT_NE(write.status.error().message().find("the GPU is lost"), std::string::npos);
    EXPECT_EQ(write.failed.size(), kNumBlocks);
    EXPECT_EQ(write.bytes, 0U);
    EXPECT_TRUE(fake_.asked.empty()) << "written without a checksum";
    const TransferResult read = setup.read();
    EXPECT_EQ(code_of(read.status), ErrorCode::kDevice);
    EXPECT_EQ(read.failed.size(), kNumBlocks);
    EXPECT_EQ(read.bytes, 0U);
    fake_.asked.clear();
  }
  // The streams of the manager are as good as before.
  setup.device->fails = false;
  setup.device->refuse = nullptr;
  setup.expect_all(setup.read());
  setup.expect_content(*setup.dst);
}

TEST_F(CufileTransferTest, WithoutTheLibraryBlocksAreStagedAndTheLogSaysItOnce) {
  CufileSetup setup(fake_, {.cufile = {.library = "libno-such-thing.so.7"}});
  setup.expect_staged("no GPU Direct Storage: libcufile is not found");
  EXPECT_EQ(setup.num_warnings("allow_gds is on"), 1U);
}

TEST_F(CufileTransferTest, ACompatibilityModeIsStagedUnlessItIsTaken) {
  fake_.nvidia_fs_major = 0;
  {
    CufileSetup setup(fake_);
    setup.expect_staged("compatibility mode");
    EXPECT_EQ(setup.num_warnings("allow_gds is on"), 1U);
  }
  CufileSetup setup(fake_, {.cufile = {.compatibility = CufileCompatibility::kTake}});
  KVBM_NEEDS_DIRECT(setup);
  EXPECT_EQ(setup.explain(setup.src_handle, setup.file_handle).find("pinned"), std::string::npos);
}

TEST_F(CufileTransferTest, AFileThatTheLibraryRefusesIsStaged) {
  fake_.register_code = 5008;
  CufileSetup setup(fake_);
  setup.expect_staged("does not support the file system");
  EXPECT_EQ(setup.num_warnings("allow_gds is on"), 1U);
  // Another one is asked for again.
  fake_.register_code = 0;
  EXPECT_TRUE(setup.rig.manager->unregister_layout(setup.file_handle));
  setup.file_handle = setup.rig.manager->register_layout(*setup.file).value();
  KVBM_NEEDS_DIRECT(setup);
  EXPECT_EQ(setup.explain(setup.src_handle, setup.file_handle).find("pinned"), std::string::npos);
}

TEST_F(CufileTransferTest, WhatDoesNotFitIsStaged) {
  {
    CufileSetup setup(fake_, {.allow_gds = false});
    setup.expect_staged("allow_gds is off");
    EXPECT_EQ(setup.num_warnings(""), 0U);
  }
  {
    CufileSetup setup(fake_, {.direct = DirectIo::kOff});
    setup.expect_staged("direct I/O");
  }
  {
    CufileSetup setup(fake_, {.device_checksums = false});
    setup.expect_staged("checksums");
    EXPECT_EQ(setup.num_warnings("allow_gds is on"), 1U);
  }
  LayoutConfig odd = kConfig;
  odd.inner_dim = 8;  // runs of 256 bytes; the whole block has 1.5 KiB
  CufileSetup setup(fake_, {.config = odd});
  setup.expect_staged(setup.is_direct() ? "multiples of 4 KiB" : "direct I/O");
}

TEST_F(CufileTransferTest, ADeadlineEndsWhatHasNotBegun) {
  CufileSetup setup(fake_);
  KVBM_NEEDS_DIRECT(setup);
  EventSource gate = setup.device->create_event();
  TransferOptions options;
  options.wait_for = {gate.event()};
  options.deadline = setup.rig.after(std::chrono::milliseconds(5));
  const TransferCompleteNotification done =
      setup.start(setup.src_handle, setup.file_handle, options).value();
  EXPECT_EQ(code_of(done.wait()), ErrorCode::kTimeout);
  EXPECT_EQ(done.result().failed.size(), kNumBlocks);
  EXPECT_TRUE(fake_.asked.empty());
  gate.signal();
}

TEST_F(CufileTransferTest, SaysWhatTheGuideQuotes) {
  std::ifstream text(KVBM_TEST_SOURCE_DIR "/../../docs/guides/troubleshooting.md");
  TroubleshootingGuide guide(
      text, [](const std::string& heading) { return heading == "GPU Direct Storage"; });
  const auto staged = [&](const CufileSetupOptions& options) {
    CufileSetup setup(fake_, options);
    guide.said(setup.explain(setup.src_handle, setup.file_handle));
    for (const auto& record : setup.rig.log.records()) {
      if (record.level == LogLevel::kWarning) guide.said(record.message);
    }
  };
  staged({.cufile = {.library = "libno-such-thing.so.7"}});
  staged({.cufile = {.library = KVBM_FAKE_CUFILE_INCOMPLETE}});
  fake_.open_code = 5001;
  staged({});
  fake_.open_code = 0;
  fake_.nvidia_fs_major = 0;
  staged({});
  fake_.nvidia_fs_major = 2;
  for (const int code : {5008, 5030, 5031}) {
    fake_.register_code = code;
    staged({});
  }
  fake_.register_code = 0;
  staged({.direct = DirectIo::kOff});
  guide.written_in(KVBM_TEST_SOURCE_DIR "/../../src/kvbm/adapters/cufile/cufile_file_engine.cpp",
                   "libcufile does not survive a fork: make a file engine in the new process");
  LayoutConfig odd = kConfig;
  odd.inner_dim = 8;
  CufileSetup setup(fake_, {.config = odd});
  KVBM_NEEDS_DIRECT(setup);
  guide.said(setup.explain(setup.src_handle, setup.file_handle));
  guide.expect_all_were_said();
}

/// At every step of a write and of a read the manager goes: each ends once, with what it says.
TEST_F(CufileTransferTest, EveryTransferEndsOnceWhenTheManagerGoes) {
  for (const bool writes : {true, false}) {
    for (int steps = 0; steps < 60; ++steps) {
      CufileSetup setup(fake_, {.seed = static_cast<uint64_t>(steps) + 1});
      KVBM_NEEDS_DIRECT(setup);
      if (!writes) setup.expect_all(setup.write());
      const TransferCompleteNotification done =
          (writes ? setup.start(setup.src_handle, setup.file_handle)
                  : setup.start(setup.file_handle, setup.dst_handle))
              .value();
      int ends = 0;
      done.on_done([&](const TransferResult&) noexcept { ++ends; });
      for (int i = 0; i < steps; ++i) {
        if (!setup.rig.stepped->step()) break;
      }
      setup.rig.manager.reset();
      ASSERT_TRUE(done.done());
      EXPECT_EQ(ends, 1);
      const TransferResult& result = done.result();
      EXPECT_EQ(result.bytes, (kNumBlocks - result.failed.size()) * kConfig.block_bytes());
      if (!writes) {
        for (const BlockId id : setup.ids) {
          if (std::ranges::find(result.failed, id.value()) != result.failed.end()) continue;
          EXPECT_EQ(setup.get(*setup.dst, id), setup.content[id.value()]);
        }
      }
    }
  }
}

}  // namespace
}  // namespace kvbm::testing
