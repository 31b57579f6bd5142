// SPDX-License-Identifier: Apache-2.0
// The contract of devices, kept by CudaDevice.
#include <cuda_runtime_api.h>

#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "kvbm/adapters/cuda/cuda_device.hpp"
#include "kvbm/base/log.hpp"
#include "kvbm/base/thread_executor.hpp"

#include "tests/contract/device_contract.hpp"
#include "tests/support/test_gpu.hpp"

namespace kvbm::testing {
namespace {

class CudaDeviceHarness {
 public:
  CudaDeviceHarness() {
    auto device = CudaDevice::create({.executor = executor_, .ordinal = testing::test_gpu()});
    if (device) {
      device_ = *std::move(device);
    } else {
      missing_ = device.error().message();
    }
  }

  [[nodiscard]] const std::optional<std::string>& missing() const { return missing_; }
  [[nodiscard]] Executor& executor() { return executor_; }
  [[nodiscard]] Device& device() { return *device_; }
  void destroy_device() { device_.reset(); }
  [[nodiscard]] std::byte* host_memory(size_t size_bytes) {
    void* memory = nullptr;
    if (::cudaMallocHost(&memory, size_bytes) != cudaSuccess) {
      throw std::runtime_error("cudaMallocHost");
    }
    host_memory_.emplace_back(memory);
    return static_cast<std::byte*>(memory);
  }
  void upload(std::byte* to, std::span<const std::byte> from) {
    copy(to, from.data(), from.size());
  }
  void download(std::span<std::byte> to, const std::byte* from) {
    copy(to.data(), from, to.size());
  }

 private:
  static void copy(void* to, const void* from, size_t bytes) {
    // Memory of a pool is its own GPU's alone.
    if (::cudaSetDevice(testing::test_gpu()) != cudaSuccess) {
      throw std::runtime_error("cudaSetDevice");
    }
    if (::cudaMemcpy(to, from, bytes, cudaMemcpyDefault) != cudaSuccess) {
      throw std::runtime_error("cudaMemcpy");
    }
    // A copy from pageable memory may return before it has arrived.
    if (::cudaStreamSynchronize(nullptr) != cudaSuccess) throw std::runtime_error("synchronize");
  }

  NullLogSink log_;
  ThreadExecutor executor_{log_};
  struct Free {
    void operator()(void* memory) const { static_cast<void>(::cudaFreeHost(memory)); }
  };
  std::vector<std::unique_ptr<void, Free>> host_memory_;  // outlives the device
  std::unique_ptr<CudaDevice> device_;
  std::optional<std::string> missing_;
};

INSTANTIATE_TYPED_TEST_SUITE_P(CudaDeviceOnAGpu, DeviceContract, CudaDeviceHarness);

}  // namespace
}  // namespace kvbm::testing
