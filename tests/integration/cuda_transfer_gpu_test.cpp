// SPDX-License-Identifier: Apache-2.0
// TransferManager over a real GPU: every byte of every block, between every pair of places.

#include <algorithm>
#include <chrono>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/log.hpp"
#include "kvbm/base/random.hpp"
#include "kvbm/base/thread_executor.hpp"
#include "kvbm/runtime/devices.hpp"
#include "kvbm/transfer/transfer_manager.hpp"

#include "tests/support/allocation_meter.hpp"
#include "tests/support/error_code.hpp"
#include "tests/support/guarded_place.hpp"
#include "tests/support/require.hpp"
#include "tests/support/seed.hpp"
#include "tests/support/test_gpu_name.hpp"
#include "tests/support/transfer_rig.hpp"

namespace kvbm {
namespace {

using std::chrono::seconds;
using testing::block_ids;
using testing::code_of;
using testing::GuardedPlace;

constexpr LayoutConfig kConfig{.num_blocks = 24,
                               .num_layers = 5,
                               .outer_dim = 2,
                               .page_size = 8,
                               .inner_dim = 96,
                               .dtype_width_bytes = 2,
                               .num_heads = 3,
                               .alignment = 1};

constexpr LayoutKind kMemoryKinds[] = {LayoutKind::kFullyContiguous,
                                       LayoutKind::kLayerSeparateBlockFirst,
                                       LayoutKind::kLayerSeparateBlockSecond};

/// A guarded place whose bytes the GPU reaches.
class PinnedPlace {
 public:
  PinnedPlace(std::shared_ptr<HostPinner> pinner, LayoutKind kind,
              const KvBlockLayout& format = KvBlockLayout::kUnknown)
      : place_(kConfig, kind, StorageKind::kPinned, {}, format), pinner_(std::move(pinner)) {
    const MemoryRegion all = place_.everything();
    const Status pinned = pinner_->pin(all.base(), all.size_bytes());
    EXPECT_TRUE(pinned) << pinned.error();
  }
  ~PinnedPlace() { pinner_->unpin(place_.everything().base(), place_.everything().size_bytes()); }
  PinnedPlace(const PinnedPlace&) = delete;
  PinnedPlace& operator=(const PinnedPlace&) = delete;

  [[nodiscard]] GuardedPlace& operator*() { return place_; }
  [[nodiscard]] GuardedPlace* operator->() { return &place_; }

 private:
  GuardedPlace place_;
  std::shared_ptr<HostPinner> pinner_;
};

/// Blocks in memory of the GPU.
class DevicePlace {
 public:
  DevicePlace(Device& device, LayoutKind kind,
              const KvBlockLayout& format = KvBlockLayout::kUnknown) {
    const MemoryNeed need = required_memory(kConfig, kind).value();
    std::vector<MemoryRegion> regions;
    for (size_t i = 0; i < need.num_regions; ++i) {
      memory_.push_back(device.allocate(need.region_bytes, 256).value());
      regions.push_back(MemoryRegion::of(memory_.back()));
    }
    if (kind == LayoutKind::kFullyContiguous) {
      layout_ = PhysicalLayout::fully_contiguous(kConfig, regions.front(), format).value();
    } else {
      layout_ = PhysicalLayout::layer_separate(kConfig,
                                               kind == LayoutKind::kLayerSeparateBlockFirst
                                                   ? BlockDimension::kBlockIsFirst
                                                   : BlockDimension::kBlockIsSecond,
                                               regions, format)
                    .value();
    }
  }
  [[nodiscard]] const PhysicalLayout& layout() const { return *layout_; }

 private:
  std::vector<DeviceMemory> memory_;
  std::optional<PhysicalLayout> layout_;
};

class CudaTransferTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto opened = open_device({.name = testing::test_gpu_name(), .executor = executor_});
    if (!opened) KVBM_SKIP("gpu", opened.error().message());
    device_ = std::move(opened->device);
    pinner_ = std::move(opened->pinner);
    manager_ =
        TransferManager::create(
            {.device = *device_, .executor = executor_, .log = log_, .streams_per_direction = 4})
            .value();
  }

  [[nodiscard]] LayoutHandle add(const PhysicalLayout& layout) {
    return manager_->register_layout(layout).value();
  }
  [[nodiscard]] TransferCompleteNotification start(LayoutHandle src,
                                                   const std::vector<BlockId>& from,
                                                   LayoutHandle dst, const std::vector<BlockId>& to,
                                                   TransferOptions options = {}) {
    return manager_
        ->execute_transfer(
            {.src = src, .src_ids = from, .dst = dst, .dst_ids = to, .options = std::move(options)})
        .value();
  }
  [[nodiscard]] TimePoint soon() const { return executor_.clock().now() + seconds(60); }

  NullLogSink log_;
  ThreadExecutor executor_{log_};
  std::shared_ptr<HostPinner> pinner_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<TransferManager> manager_;
};

/// Kernels for everything, at a pace that no link has.
Calibration only_kernels() {
  const auto all = [](double bytes_per_second) {
    return FormCost{.rates = {{.run_bytes = 1, .bytes_per_second = bytes_per_second}}};
  };
  Calibration calibration;
  for (const TransferRoute route : {TransferRoute::kHostToDevice, TransferRoute::kDeviceToHost,
                                    TransferRoute::kDeviceToDevice}) {
    calibration.set(route, {all(1), all(1), all(1e12)});
  }
  return calibration;
}

TEST_F(CudaTransferTest, ATransferByAReadyPlanAllocatesNothingOnAnyThread) {
  PinnedPlace host(pinner_, LayoutKind::kFullyContiguous);
  const DevicePlace whole(*device_, LayoutKind::kFullyContiguous);
  const DevicePlace apart(*device_, LayoutKind::kLayerSeparateBlockSecond);
  std::vector<BlockId> rising;
  for (uint32_t i = 0; i < kConfig.num_blocks; ++i) rising.emplace_back(i);
  std::vector<BlockId> shuffled = rising;
  Random(1).shuffle(std::span(shuffled));
  const std::vector<BlockId> one = {BlockId(3)};
  for (const bool by_kernel : {false, true}) {
    manager_ = TransferManager::create({.device = *device_,
                                        .executor = executor_,
                                        .log = log_,
                                        .calibration = by_kernel ? only_kernels() : Calibration()})
                   .value();
    const LayoutHandle pinned = add(host->layout());
    for (const DevicePlace* const place : {&whole, &apart}) {
      const LayoutHandle gpu = add(place->layout());
      for (const std::vector<BlockId>* const ids :
           std::initializer_list<const std::vector<BlockId>*>{&one, &rising, &shuffled}) {
        SCOPED_TRACE(std::string(by_kernel ? "kernel" : "engine") +
                     (place == &whole ? ", whole, " : ", apart, ") + std::to_string(ids->size()));
        std::vector<TransferCompleteNotification> at_a_time(16);
        const auto round = [&] {
          bool down = true;
          for (TransferCompleteNotification& each : at_a_time) {
            each = start(down ? pinned : gpu, *ids, down ? gpu : pinned, *ids);
            down = !down;
          }
          bool all_arrived = true;
          for (const TransferCompleteNotification& each : at_a_time) {
            all_arrived = all_arrived && each.wait(soon()).has_value();
          }
          while (manager_->in_flight() > 0) std::this_thread::yield();
          return all_arrived;
        };
        // Pools grow until they hold what is ever under way at a time, and that differs from round
        // to round; an allocation of each transfer leaves no round without one.
        int quiet_rounds = 0;
        for (int i = 0; i < 300 && quiet_rounds < 20; ++i) {
          const testing::ProcessAllocationMeter meter;
          const bool all_arrived = round();
          quiet_rounds = meter.count() == 0 ? quiet_rounds + 1 : 0;
          ASSERT_TRUE(all_arrived);
        }
        EXPECT_EQ(quiet_rounds, 20);
      }
    }
  }
}

TEST_F(CudaTransferTest, BlocksGoDownAndUpBetweenAllKindsOfLayouts) {
  const uint64_t seed = testing::test_seed();
  for (const LayoutKind host_kind : kMemoryKinds) {
    for (const LayoutKind device_kind : kMemoryKinds) {
      SCOPED_TRACE(std::string(to_string(host_kind)) + " to " +
                   std::string(to_string(device_kind)));
      Random random(seed);
      PinnedPlace src(pinner_, host_kind);
      PinnedPlace dst(pinner_, host_kind);
      const DevicePlace first(*device_, device_kind);
      const DevicePlace second(*device_, LayoutKind::kFullyContiguous);
      for (uint32_t i = 0; i < kConfig.num_blocks; ++i) src->fill(BlockId{i}, i);
      std::vector<BlockId> a;
      for (uint32_t i = 0; i < kConfig.num_blocks; ++i) a.emplace_back(i);
      std::vector<BlockId> b = a;
      std::vector<BlockId> c = a;
      std::vector<BlockId> d = a;
      for (std::vector<BlockId>* ids : {&a, &b, &c, &d}) random.shuffle(std::span(*ids));
      a.resize(17);
      b.resize(17);
      c.resize(17);
      d.resize(17);
      const LayoutHandle one = add(src->layout());
      const LayoutHandle two = add(first.layout());
      const LayoutHandle three = add(second.layout());
      const LayoutHandle four = add(dst->layout());
      const auto down = start(one, a, two, b);
      const auto across = start(two, b, three, c, {.wait_for = {down.event()}});
      const auto up = start(three, c, four, d, {.wait_for = {across.event()}});
      const Status done = up.wait(soon());
      ASSERT_TRUE(done) << done.error();
      for (size_t i = 0; i < a.size(); ++i) ASSERT_TRUE(dst->holds(d[i], a[i].value()));
      ASSERT_TRUE(dst->guards_hold());
      for (const LayoutHandle handle : {one, two, three, four}) {
        ASSERT_TRUE(manager_->unregister_layout(handle));
      }
    }
  }
}

/// To the GPU, on it and back, each in another format: by the engine and by kernels.
TEST_F(CudaTransferTest, BlocksArePermutedBetweenAllFormats) {
  const KvBlockLayout by_page = KvBlockLayout::custom({BlockAxis::kPage, BlockAxis::kLayer,
                                                       BlockAxis::kOuter, BlockAxis::kHead})
                                    .value();
  const KvBlockLayout formats[] = {KvBlockLayout::kOperationalNHD, KvBlockLayout::kOperationalHND,
                                   KvBlockLayout::kUniversalTP, KvBlockLayout::kUniversalPP,
                                   by_page};
  const auto kind_for = [](const KvBlockLayout& format) {
    return format.is_operational() ? LayoutKind::kLayerSeparateBlockSecond
                                   : LayoutKind::kFullyContiguous;
  };
  const std::vector<BlockId> a = block_ids({4, 0, 23, 7});
  const std::vector<BlockId> b = block_ids({9, 22, 1, 3});
  for (const bool by_kernel : {false, true}) {
    manager_ = TransferManager::create({.device = *device_,
                                        .executor = executor_,
                                        .log = log_,
                                        .calibration = by_kernel ? only_kernels() : Calibration()})
                   .value();
    for (const KvBlockLayout& from : formats) {
      for (const KvBlockLayout& to : formats) {
        SCOPED_TRACE(to_string(from) + " and " + to_string(to) + (by_kernel ? ", kernel" : ""));
        PinnedPlace src(pinner_, LayoutKind::kFullyContiguous, from);
        PinnedPlace dst(pinner_, kind_for(to), to);
        const DevicePlace first(*device_, kind_for(to), to);
        const DevicePlace second(*device_, kind_for(from), from);
        for (const BlockId block : a) src->fill(block, block.value());
        const LayoutHandle one = add(src->layout());
        const LayoutHandle two = add(first.layout());
        const LayoutHandle three = add(second.layout());
        const LayoutHandle four = add(dst->layout());
        if (by_kernel && from.requires_transform(to)) {
          for (const auto& [source, destination] :
               {std::pair(one, two), std::pair(two, three), std::pair(three, four)}) {
            const auto way = manager_->explain_transfer(
                {.src = source, .src_ids = a, .dst = destination, .dst_ids = b});
            ASSERT_TRUE(way) << way.error();
            ASSERT_NE(way->find("; kernel, "), std::string::npos) << *way;
          }
        }
        const auto down = start(one, a, two, b);
        const auto across = start(two, b, three, a, {.wait_for = {down.event()}});
        const auto up = start(three, a, four, b, {.wait_for = {across.event()}});
        const Status done = up.wait(soon());
        ASSERT_TRUE(done) << done.error();
        for (size_t i = 0; i < a.size(); ++i) ASSERT_TRUE(dst->holds(b[i], a[i].value()));
        ASSERT_TRUE(dst->untouched(BlockId(0)));
        ASSERT_TRUE(dst->guards_hold());
        for (const LayoutHandle handle : {one, two, three, four}) {
          ASSERT_TRUE(manager_->unregister_layout(handle));
        }
      }
    }
  }
}

TEST_F(CudaTransferTest, PageableMemoryIsRefused) {
  const GuardedPlace pageable(kConfig, LayoutKind::kFullyContiguous);
  const DevicePlace cache(*device_, LayoutKind::kFullyContiguous);
  const auto ids = block_ids({0});
  const auto refused = manager_->execute_transfer(
      {.src = add(pageable.layout()), .src_ids = ids, .dst = add(cache.layout()), .dst_ids = ids});
  EXPECT_EQ(code_of(refused), ErrorCode::kUnsupported);
}

}  // namespace
}  // namespace kvbm
