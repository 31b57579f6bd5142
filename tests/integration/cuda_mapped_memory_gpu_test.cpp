// SPDX-License-Identifier: Apache-2.0
// TransferManager over tensors in memory that an engine has mapped itself, piece by piece, as
// PyTorch does with expandable segments.
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/log.hpp"
#include "kvbm/base/random.hpp"
#include "kvbm/base/thread_executor.hpp"
#include "kvbm/base/units.hpp"
#include "kvbm/layout/layout_builder.hpp"
#include "kvbm/runtime/devices.hpp"
#include "kvbm/transfer/transfer_manager.hpp"

#include "tests/support/error_code.hpp"
#include "tests/support/guarded_place.hpp"
#include "tests/support/require.hpp"
#include "tests/support/seed.hpp"
#include "tests/support/test_gpu.hpp"
#include "tests/support/test_gpu_name.hpp"
#include "tests/support/transfer_rig.hpp"

namespace kvbm {
namespace {

using std::chrono::seconds;
using testing::block_ids;
using testing::code_of;
using testing::GuardedPlace;

/// A chunk has 160 KiB, and one of them lies across each end of 2 MiB.
constexpr LayoutConfig kConfig{.num_blocks = 18,
                               .num_layers = 2,
                               .outer_dim = 2,
                               .page_size = 16,
                               .inner_dim = 5120,
                               .dtype_width_bytes = 2,
                               .num_heads = 8,
                               .alignment = 1};
constexpr uint64_t kChunkBytes = 160 * kKiB;
constexpr uint64_t kLayerBytes = kConfig.num_blocks * kConfig.outer_dim * kChunkBytes;
constexpr uint64_t kHandleBytes = 2 * kMiB;
static_assert(kHandleBytes % kChunkBytes != 0 && 2 * kHandleBytes % kChunkBytes != 0);
static_assert(kLayerBytes > 2 * kHandleBytes && kLayerBytes <= 3 * kHandleBytes);

/// What the driver has for it; the test links none.
struct MappingDriver {
  decltype(&::cuMemAddressReserve) reserve = nullptr;
  decltype(&::cuMemAddressFree) free = nullptr;
  decltype(&::cuMemCreate) create = nullptr;
  decltype(&::cuMemRelease) release = nullptr;
  decltype(&::cuMemMap) map = nullptr;
  decltype(&::cuMemUnmap) unmap = nullptr;
  decltype(&::cuMemSetAccess) set_access = nullptr;
  decltype(&::cuMemGetAllocationGranularity) granularity = nullptr;

  [[nodiscard]] bool load() {
    void* const library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return false;
    const auto find = [library](const char* name, auto& function) {
      function =
          reinterpret_cast<std::remove_reference_t<decltype(function)>>(::dlsym(library, name));
      return function != nullptr;
    };
    return find("cuMemAddressReserve", reserve) && find("cuMemAddressFree", free) &&
           find("cuMemCreate", create) && find("cuMemRelease", release) && find("cuMemMap", map) &&
           find("cuMemUnmap", unmap) && find("cuMemSetAccess", set_access) &&
           find("cuMemGetAllocationGranularity", granularity);
  }
};

/// Addresses of which the first part has memory, of several handles.
class MappedRange {
 public:
  MappedRange(const MappingDriver& driver, size_t num_handles, uint64_t reserved_bytes)
      : driver_(driver), reserved_bytes_(reserved_bytes) {
    EXPECT_EQ(driver_.reserve(&base_, reserved_bytes_, 0, 0, 0), CUDA_SUCCESS);
    CUmemAllocationProp wanted{};
    wanted.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    wanted.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = testing::test_gpu()};
    size_t granularity = 0;
    EXPECT_EQ(driver_.granularity(&granularity, &wanted, CU_MEM_ALLOC_GRANULARITY_MINIMUM),
              CUDA_SUCCESS);
    EXPECT_EQ(kHandleBytes % granularity, 0u);
    const CUmemAccessDesc access{.location = wanted.location,
                                 .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    for (; mapped_bytes_ < num_handles * kHandleBytes; mapped_bytes_ += kHandleBytes) {
      CUmemGenericAllocationHandle handle = 0;
      EXPECT_EQ(driver_.create(&handle, kHandleBytes, &wanted, 0), CUDA_SUCCESS);
      EXPECT_EQ(driver_.map(base_ + mapped_bytes_, kHandleBytes, 0, handle, 0), CUDA_SUCCESS);
      EXPECT_EQ(driver_.set_access(base_ + mapped_bytes_, kHandleBytes, &access, 1), CUDA_SUCCESS);
      handles_.push_back(handle);
    }
    EXPECT_EQ(::cudaMemset(data(), static_cast<int>(GuardedPlace::kFill), mapped_bytes_),
              cudaSuccess);
    EXPECT_EQ(::cudaDeviceSynchronize(), cudaSuccess);
  }
  ~MappedRange() {
    EXPECT_EQ(::cudaDeviceSynchronize(), cudaSuccess);
    for (size_t i = 0; i < handles_.size(); ++i) {
      EXPECT_EQ(driver_.unmap(base_ + i * kHandleBytes, kHandleBytes), CUDA_SUCCESS);
      EXPECT_EQ(driver_.release(handles_[i]), CUDA_SUCCESS);
    }
    EXPECT_EQ(driver_.free(base_, reserved_bytes_), CUDA_SUCCESS);
  }
  MappedRange(const MappedRange&) = delete;
  MappedRange& operator=(const MappedRange&) = delete;

  [[nodiscard]] std::byte* data() const { return reinterpret_cast<std::byte*>(base_); }

 private:
  const MappingDriver& driver_;
  const uint64_t reserved_bytes_;
  CUdeviceptr base_ = 0;
  uint64_t mapped_bytes_ = 0;
  std::vector<CUmemGenericAllocationHandle> handles_;
};

/// Nothing measured, or one way that is faster than all others by far.
Calibration only(std::optional<CopyForm> form) {
  Calibration calibration;
  if (!form) return calibration;
  for (const TransferRoute route : {TransferRoute::kHostToDevice, TransferRoute::kDeviceToHost,
                                    TransferRoute::kDeviceToDevice}) {
    const bool to_host = route != TransferRoute::kDeviceToDevice;
    if (*form == CopyForm::kRing && !to_host) continue;
    RouteCost cost;
    for (size_t i = 0; i < kNumCopyForms; ++i) {
      const double rate = i == static_cast<size_t>(*form) ? 1e12 : 1;
      cost[i].rates = {{.run_bytes = 1, .bytes_per_second = rate}};
    }
    if (*form == CopyForm::kRing) {
      // The engine moves what the ring has: it takes long to begin, and is as fast.
      cost[static_cast<size_t>(CopyForm::kEngineRuns)] = {
          .submission = CopyCost(1e6), .rates = {{.run_bytes = 1, .bytes_per_second = 1e12}}};
    }
    calibration.set(route, cost);
  }
  return calibration;
}

class CudaMappedMemory : public ::testing::Test {
 protected:
  void SetUp() override {
    auto opened = open_device({.name = testing::test_gpu_name(), .executor = executor_});
    if (!opened) KVBM_SKIP("gpu", opened.error().message());
    device_ = std::move(opened->device);
    pinner_ = std::move(opened->pinner);
    ASSERT_EQ(::cudaSetDevice(testing::test_gpu()), cudaSuccess);
    ASSERT_EQ(::cudaFree(nullptr), cudaSuccess);
    ASSERT_TRUE(driver_.load());
  }

  void make_manager(std::optional<CopyForm> form) {
    manager_ =
        TransferManager::create(
            {.device = *device_, .executor = executor_, .log = log_, .calibration = only(form)})
            .value();
  }

  /// An engine's tensor for each layer: [block, outer, page, head, head_dim].
  [[nodiscard]] static PhysicalLayout tensors_in(
      const std::vector<std::unique_ptr<MappedRange>>& layers, LayoutConfig config = kConfig) {
    std::vector<ExternalTensor> tensors;
    config.num_layers = static_cast<uint32_t>(layers.size());
    tensors.reserve(layers.size());
    for (const auto& layer : layers) {
      tensors.push_back({.region = MemoryRegion::of_bytes(StorageKind::kDevice, layer->data(),
                                                          config.num_blocks * config.layer_bytes()),
                         .axes = {TensorAxis::kBlock, TensorAxis::kOuter, TensorAxis::kPage,
                                  TensorAxis::kHead, TensorAxis::kHeadDim},
                         .shape = {config.num_blocks, 2, 16, 8, 640},
                         .strides = {163840, 81920, 5120, 640, 1}});
    }
    return PhysicalLayout::builder("engine")
        .with_config(config)
        .page_maps()
        .with_external_device_regions(tensors, static_cast<uint64_t>(testing::test_gpu()))
        .build()
        .value();
  }
  [[nodiscard]] std::vector<std::unique_ptr<MappedRange>> two_layers() const {
    std::vector<std::unique_ptr<MappedRange>> layers(kConfig.num_layers);
    for (auto& layer : layers) layer = std::make_unique<MappedRange>(driver_, 3, 3 * kHandleBytes);
    return layers;
  }

  void pin(const GuardedPlace& place) {
    const Status pinned = pinner_->pin(place.everything().base(), place.everything().size_bytes());
    ASSERT_TRUE(pinned) << pinned.error();
  }
  void unpin(const GuardedPlace& place) {
    pinner_->unpin(place.everything().base(), place.everything().size_bytes());
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
  MappingDriver driver_;
  std::shared_ptr<HostPinner> pinner_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<TransferManager> manager_;
};

/// From the host to tensors, to other tensors and back; in the order of heads that the host has.
TEST_F(CudaMappedMemory, BlocksAcrossTheEndsOfHandlesGoBothWays) {
  Random random(testing::test_seed());
  const auto one_engine = two_layers();
  const auto other_engine = two_layers();
  const std::pair<std::optional<CopyForm>, std::string> ways[] = {{std::nullopt, "; engine: "},
                                                                  {CopyForm::kKernel, "; kernel, "},
                                                                  {CopyForm::kRing, "; ring: "}};
  for (const auto& [form, words] : ways) {
    make_manager(form);
    for (const KvBlockLayout& format :
         {KvBlockLayout::kOperationalNHD, KvBlockLayout::kOperationalHND}) {
      SCOPED_TRACE(words + to_string(format));
      GuardedPlace src(kConfig, LayoutKind::kFullyContiguous, StorageKind::kPinned, {}, format);
      GuardedPlace dst(kConfig, LayoutKind::kFullyContiguous, StorageKind::kPinned, {}, format);
      pin(src);
      pin(dst);
      std::vector<BlockId> a;
      for (uint32_t i = 0; i < kConfig.num_blocks; ++i) a.emplace_back(i);
      std::vector<BlockId> b = a;
      std::vector<BlockId> c = a;
      for (std::vector<BlockId>* ids : {&a, &b, &c}) random.shuffle(std::span(*ids));
      const BlockId left_alone = b.back();  // all others: every end of a handle is among them
      for (std::vector<BlockId>* ids : {&a, &b, &c}) ids->pop_back();
      for (const BlockId block : a) src.fill(block, block.value());
      for (const auto* engine : {&one_engine, &other_engine}) {
        for (const auto& layer : *engine) {
          ASSERT_EQ(::cudaMemset(layer->data(), static_cast<int>(GuardedPlace::kFill), kLayerBytes),
                    cudaSuccess);
        }
      }
      ASSERT_EQ(::cudaDeviceSynchronize(), cudaSuccess);

      const LayoutHandle one = add(src.layout());
      const LayoutHandle two = add(tensors_in(one_engine));
      const LayoutHandle three = add(tensors_in(other_engine));
      const LayoutHandle four = add(dst.layout());
      for (const auto& [source, destination] : {std::pair(one, two), std::pair(three, four)}) {
        const auto way = manager_->explain_transfer(
            {.src = source, .src_ids = a, .dst = destination, .dst_ids = b});
        ASSERT_TRUE(way) << way.error();
        EXPECT_NE(way->find(words), std::string::npos) << *way;
      }
      const auto down = start(one, a, two, b);
      const auto across = start(two, b, three, c, {.wait_for = {down.event()}});
      const auto up = start(three, c, four, a, {.wait_for = {across.event()}});
      const Status done = up.wait(soon());
      ASSERT_TRUE(done) << done.error();
      for (const BlockId block : a) ASSERT_TRUE(dst.holds(block, block.value()));
      EXPECT_TRUE(dst.guards_hold());

      dst.fill(a.front(), 1000);
      const Status other = start(two, {left_alone}, four, {a.front()}).wait(soon());
      ASSERT_TRUE(other) << other.error();
      EXPECT_TRUE(dst.untouched(a.front())) << "it was to be left alone";
      for (const LayoutHandle handle : {one, two, three, four}) {
        ASSERT_TRUE(manager_->unregister_layout(handle));
      }
      unpin(src);
      unpin(dst);
    }
  }
}

/// A segment that can grow has more addresses than memory.
TEST_F(CudaMappedMemory, AKernelIsGivenNoAddressThatHasNoMemory) {
  make_manager(CopyForm::kKernel);
  LayoutConfig config = kConfig;
  config.num_layers = 1;
  config.num_blocks = 24;
  std::vector<std::unique_ptr<MappedRange>> layers;
  layers.push_back(std::make_unique<MappedRange>(driver_, 3, 4 * kHandleBytes));
  GuardedPlace host(config, LayoutKind::kFullyContiguous, StorageKind::kPinned, {},
                    KvBlockLayout::kOperationalHND);
  pin(host);
  const LayoutHandle near = add(host.layout());
  const LayoutHandle far = add(tensors_in(layers, config));
  host.fill(BlockId(2), 2);
  const auto mapped = block_ids({6});   // across the end of the first handle
  const auto beyond = block_ids({19});  // begins in the last one
  const auto last = block_ids({23});
  for (const auto& ids : {beyond, last}) {
    const auto refused = manager_->execute_transfer(
        {.src = near, .src_ids = mapped, .dst = far, .dst_ids = ids, .options = {}});
    const Status outcome = refused ? refused->wait(soon()) : Status(make_error(refused.error()));
    EXPECT_EQ(code_of(outcome), ErrorCode::kInvalidArgument);
  }
  ASSERT_TRUE(start(near, block_ids({2}), far, mapped).wait(soon()));
  ASSERT_TRUE(start(far, mapped, near, block_ids({9})).wait(soon()));
  EXPECT_TRUE(host.holds(BlockId(9), 2)) << "the GPU is as good as before";
  manager_.reset();
  unpin(host);
}

}  // namespace
}  // namespace kvbm
