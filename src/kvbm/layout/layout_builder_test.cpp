// SPDX-License-Identifier: Apache-2.0
#include "kvbm/layout/layout_builder.hpp"

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/log.hpp"
#include "kvbm/base/thread_executor.hpp"
#include "kvbm/device/host_device.hpp"

namespace kvbm {
namespace {

// 24 bytes a chunk, 48 a layer, 144 a block.
constexpr LayoutConfig kConfig{.num_blocks = 4,
                               .num_layers = 3,
                               .outer_dim = 2,
                               .page_size = 2,
                               .inner_dim = 6,
                               .dtype_width_bytes = 2,
                               .num_heads = 3,
                               .alignment = 1};

void expect_refused(const Result<PhysicalLayout>& layout, const std::string& words) {
  ASSERT_FALSE(layout) << words;
  EXPECT_EQ(layout.error().code(), ErrorCode::kInvalidArgument);
  EXPECT_NE(layout.error().message().find(words), std::string::npos) << layout.error().message();
}

LayoutMemoryStage<true> contiguous(const LayoutConfig& config = kConfig) {
  return PhysicalLayout::builder("worker-0").with_config(config).fully_contiguous();
}

LayoutMemoryStage<false> separate(const LayoutConfig& config = kConfig) {
  return PhysicalLayout::builder("worker-0")
      .with_config(config)
      .layer_separate(BlockDimension::kBlockIsFirst);
}

/// Notes what it is asked and when its memory goes away.
struct CountingAllocator {
  RegionAllocator allocator(StorageKind kind) {
    return [this, kind](uint64_t size_bytes, uint64_t alignment) -> Result<OwnedRegion> {
      asked_bytes = size_bytes;
      asked_alignment = alignment;
      ++num_asked;
      auto memory = std::make_shared<SystemMemory>(
          SystemMemory::create({.size_bytes = size_bytes, .alignment = alignment}).value());
      last = memory;
      return OwnedRegion{
          MemoryRegion::of_bytes(kind, memory->data(), std::min(size_bytes, given_bytes)), memory};
    };
  }

  uint64_t asked_bytes = 0;
  uint64_t asked_alignment = 0;
  int num_asked = 0;
  uint64_t given_bytes = ~uint64_t{0};
  std::weak_ptr<SystemMemory> last;
};

TEST(LayoutBuilder, MakesALayoutThatOwnsItsMemory) {
  PhysicalLayout layout =
      contiguous().with_block_layout(KvBlockLayout::kUniversalTP).allocate_system().build().value();
  EXPECT_EQ(layout.kind(), LayoutKind::kFullyContiguous);
  EXPECT_EQ(layout.kv_block_layout(), KvBlockLayout::kUniversalTP);
  EXPECT_EQ(layout.storage_kind(), StorageKind::kSystem);
  EXPECT_EQ(layout.registration(), (RegistrationMetadata{"worker-0", MemoryType::kDram, 0}));
  const MemoryRegion region = layout.page_maps().front().region();
  EXPECT_EQ(reinterpret_cast<uintptr_t>(region.base()) % 4096, 0U);
  EXPECT_EQ(region.size_bytes(), 4U * 144);
  EXPECT_TRUE(std::all_of(region.base(), region.base() + region.size_bytes(),
                          [](std::byte byte) { return byte == std::byte{0}; }));
  const auto huge = contiguous().allocate_system(HugePages::kAdvise).build();
  ASSERT_TRUE(huge);
  EXPECT_FALSE(huge->kv_block_layout().is_known());
}

TEST(LayoutBuilder, TheMemoryLivesAsLongAsAnyCopyOfTheLayout) {
  CountingAllocator pool;
  std::optional<PhysicalLayout> layout =
      contiguous().allocate_pinned(pool.allocator(StorageKind::kPinned)).build().value();
  EXPECT_EQ(layout->storage_kind(), StorageKind::kPinned);
  EXPECT_EQ(layout->registration().memory_type, MemoryType::kDram);
  std::optional<PhysicalLayout> copy = layout;
  layout.reset();
  EXPECT_FALSE(pool.last.expired());
  copy.reset();
  EXPECT_TRUE(pool.last.expired());
}

TEST(LayoutBuilder, LayersThatLieApartShareOneReservation) {
  CountingAllocator pool;
  const PhysicalLayout layout = separate()
                                    .with_block_layout(KvBlockLayout::kOperationalHND)
                                    .allocate_pinned(pool.allocator(StorageKind::kPinned))
                                    .build()
                                    .value();
  EXPECT_EQ(layout.kind(), LayoutKind::kLayerSeparateBlockFirst);
  EXPECT_EQ(pool.num_asked, 1);
  EXPECT_EQ(pool.asked_alignment, 4096U);
  // 4 x 48 bytes a layer, each in 512.
  EXPECT_EQ(pool.asked_bytes, 3U * 512);
  for (size_t i = 0; i < 3; ++i) {
    const MemoryRegion& region = layout.page_maps()[i].region();
    EXPECT_EQ(region.size_bytes(), 4U * 48);
    EXPECT_EQ(region.base() - layout.page_maps()[0].region().base(),
              static_cast<ptrdiff_t>(i * 512));
  }
  LayoutConfig config = kConfig;
  config.alignment = 8192;
  ASSERT_TRUE(separate(config).allocate_pinned(pool.allocator(StorageKind::kPinned)).build());
  EXPECT_EQ(pool.asked_alignment, 8192U);
  EXPECT_EQ(pool.asked_bytes, 3U * 4 * 8192);
}

TEST(LayoutBuilder, AnAllocatorThatKeepsNoPromiseIsRefused) {
  CountingAllocator pool;
  expect_refused(contiguous().allocate_pinned(pool.allocator(StorageKind::kSystem)).build(),
                 "system memory instead of pinned");
  pool.given_bytes = 575;
  expect_refused(contiguous().allocate_pinned(pool.allocator(StorageKind::kPinned)).build(),
                 "575 of 576 bytes");
  auto again = contiguous().allocate_pinned([](uint64_t, uint64_t) -> Result<OwnedRegion> {
    return make_error(ErrorCode::kExhausted, "no pinned memory is left");
  });
  const Result<PhysicalLayout> layout = std::move(again).build();
  ASSERT_FALSE(layout);
  EXPECT_EQ(layout.error().code(), ErrorCode::kExhausted);
}

TEST(LayoutBuilder, ADeviceGivesItsMemoryAndItsOrdinal) {
  NullLogSink log;
  ThreadExecutor executor(log);
  auto device = HostDevice::create({.executor = executor, .ordinal = 3}).value();
  Result<PhysicalLayout> layout = separate().allocate_device(*device).build();
  ASSERT_TRUE(layout);
  EXPECT_EQ(layout->storage_kind(), StorageKind::kDevice);
  EXPECT_EQ(layout->registration(), (RegistrationMetadata{"worker-0", MemoryType::kVram, 3}));
  device.reset();
  *layout->region(BlockId{3}, LayerId{2}, 1).base() = std::byte{1};
}

TEST(LayoutBuilder, ADiskGivesSlots) {
  const std::string directory = std::filesystem::temp_directory_path().string();
  Result<PhysicalLayout> layout = contiguous()
                                      .with_block_layout(KvBlockLayout::kUniversalPP)
                                      .allocate_disk({.directory = directory})
                                      .build();
  ASSERT_TRUE(layout) << layout.error().message();
  EXPECT_EQ(layout->kind(), LayoutKind::kFileSlots);
  EXPECT_EQ(layout->storage_kind(), StorageKind::kFile);
  EXPECT_EQ(layout->kv_block_layout(), KvBlockLayout::kUniversalPP);
  EXPECT_EQ(layout->slots()->header_bytes, 64U);
  const FileRef file = layout->page_maps().front().region().file();
  EXPECT_EQ(layout->registration(),
            (RegistrationMetadata{"worker-0", MemoryType::kFile, static_cast<uint64_t>(file.fd)}));
  const auto direct =
      contiguous().allocate_disk({.directory = directory, .direct = DirectIo::kTry}).build();
  EXPECT_EQ(direct->slots()->header_bytes, kDirectSlots.header_bytes);
  const auto chosen =
      contiguous().allocate_disk({.directory = directory}, SlotOptions{128, 512}).build();
  EXPECT_EQ(*chosen->slots(), (SlotGeometry{128, 144, 512}));
  expect_refused(contiguous().allocate_disk({.directory = directory, .size_bytes = 5}).build(),
                 "leave size_bytes at 0");
}

TEST(LayoutBuilder, TakesRegionsOfTheCallers) {
  SystemMemory memory = SystemMemory::create({.size_bytes = 3 * 4096}).value();
  const MemoryRegion all = memory.region();
  const auto shared = std::make_shared<SystemMemory>(std::move(memory));
  const std::weak_ptr<SystemMemory> weak = shared;
  std::vector<OwnedRegion> regions;
  for (size_t i = 0; i < 3; ++i) regions.push_back({all.slice(i * 4096, 4096), shared});
  Result<PhysicalLayout> layout = separate().with_regions(regions).build();
  ASSERT_TRUE(layout);
  EXPECT_EQ(layout->region(BlockId{0}, LayerId{2}, 0).base(), all.base() + 2 * 4096);
  EXPECT_EQ(weak.use_count(), 1 + 3 + 3);
  layout = make_error(ErrorCode::kNotFound, "gone");
  EXPECT_EQ(weak.use_count(), 1 + 3);

  expect_refused(contiguous().with_regions(regions).build(), "3 regions");
  regions.pop_back();
  expect_refused(separate().with_regions(regions).build(), "2 regions");
  // Whoever does not own them keeps them alive.
  EXPECT_TRUE(contiguous().with_regions({{all, nullptr}}).build());
}

TEST(LayoutBuilder, ErrorsComeWithBuildAndBeforeAnyAllocation) {
  CountingAllocator pool;
  LayoutConfig bad = kConfig;
  bad.page_size = 0;
  expect_refused(contiguous(bad).allocate_pinned(pool.allocator(StorageKind::kPinned)).build(),
                 "page_size is 0");
  LayoutConfig no_heads = kConfig;
  no_heads.num_heads = std::nullopt;
  expect_refused(contiguous(no_heads)
                     .with_block_layout(KvBlockLayout::kUniversalTP)
                     .allocate_pinned(pool.allocator(StorageKind::kPinned))
                     .build(),
                 "set num_heads");
  expect_refused(separate()
                     .with_block_layout(KvBlockLayout::kUniversalTP)
                     .allocate_pinned(pool.allocator(StorageKind::kPinned))
                     .build(),
                 "cannot lie apart");
  EXPECT_EQ(pool.num_asked, 0);
}

TEST(LayoutBuilder, TakesTheTensorsOfAnEngine) {
  SystemMemory memory = SystemMemory::create({.size_bytes = 4096}).value();
  const ExternalTensor tensor{
      .region = MemoryRegion::of_bytes(StorageKind::kDevice, memory.data(), 4096),
      .dtype_width_bytes = 2,
      .axes = {TensorAxis::kLayer, TensorAxis::kOuter, TensorAxis::kBlock, TensorAxis::kHead,
               TensorAxis::kPage, TensorAxis::kHeadDim},
      .shape = {3, 2, 4, 3, 2, 2},
      .strides = {128, 64, 12, 4, 2, 1}};
  const PhysicalLayout layout = PhysicalLayout::builder("worker-0")
                                    .with_config(kConfig)
                                    .page_maps()
                                    .with_external_device_regions({tensor}, 1)
                                    .build()
                                    .value();
  EXPECT_EQ(layout.kind(), LayoutKind::kPageMaps);
  EXPECT_EQ(layout.kv_block_layout(), KvBlockLayout::kOperationalHND);
  EXPECT_EQ(layout.registration(), (RegistrationMetadata{"worker-0", MemoryType::kVram, 1}));
  EXPECT_EQ(layout.head_region(BlockId{3}, LayerId{2}, 1, 1, 1).base(),
            memory.data() + 2 * (2 * 128 + 64 + 3 * 12 + 4 + 2));
  expect_refused(PhysicalLayout::builder("worker-0")
                     .with_config(kConfig)
                     .page_maps()
                     .with_external_device_regions({})
                     .build(),
                 "at least one tensor");
  // Memory of the host is of no device.
  ExternalTensor on_host = tensor;
  on_host.region = MemoryRegion::of_bytes(StorageKind::kPinned, memory.data(), 4096);
  const auto of_device = [&](uint64_t device_id) {
    return PhysicalLayout::builder("worker-0")
        .with_config(kConfig)
        .page_maps()
        .with_external_device_regions({on_host}, device_id)
        .build();
  };
  EXPECT_TRUE(of_device(0));
  expect_refused(of_device(1), "device 1 is named for pinned memory");
  expect_refused(contiguous().with_regions({{memory.region(), nullptr}}, 2).build(),
                 "device 2 is named for system memory");
}

}  // namespace
}  // namespace kvbm
