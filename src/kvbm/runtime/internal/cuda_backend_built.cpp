// SPDX-License-Identifier: Apache-2.0
#include <fstream>

#include "kvbm/adapters/cuda/cuda_device.hpp"
#include "kvbm/base/text.hpp"
#include "kvbm/runtime/internal/cuda_backend.hpp"

namespace kvbm::internal {
namespace {

/// Of the kernel's module; empty where the kernel does not tell.
std::string driver_release() {
  std::ifstream in("/sys/module/nvidia/version");
  std::string release;
  std::getline(in, release);
  return release;
}

Result<DeviceIdentity> identity_of(int32_t ordinal) {
  KVBM_ASSIGN_OR_RETURN(const std::vector<CudaDeviceInfo> all, CudaDevice::find_all());
  for (const CudaDeviceInfo& gpu : all) {
    if (gpu.ordinal != ordinal) continue;
    return DeviceIdentity{.name = gpu.name,
                          .pci_address = gpu.pci_address,
                          .driver = driver_release(),
                          .driver_version = gpu.driver_version,
                          .runtime_version = gpu.runtime_version};
  }
  return make_error(ErrorCode::kNotFound, format_text("cuda:{} is not there any more", ordinal));
}

}  // namespace

Result<std::vector<AcceleratorInfo>> find_cuda_devices() {
  KVBM_ASSIGN_OR_RETURN(std::vector<CudaDeviceInfo> all, CudaDevice::find_all());
  std::vector<AcceleratorInfo> found;
  found.reserve(all.size());
  for (CudaDeviceInfo& gpu : all) {
    found.push_back({.device = format_text("cuda:{}", gpu.ordinal),
                     .name = std::move(gpu.name),
                     .sm = gpu.sm,
                     .total_bytes = gpu.total_bytes,
                     .driver_version = gpu.driver_version,
                     .runtime_version = gpu.runtime_version,
                     .has_memcpy_batch = gpu.has_memcpy_batch,
                     .numa_node = gpu.numa_node,
                     .has_kernels = gpu.has_kernels,
                     .kernels_from_ptx = gpu.kernels_from_ptx});
  }
  return found;
}

Result<OpenedDevice> open_cuda_device(int32_t ordinal, const OpenDeviceOptions& options) {
  CudaDeviceOptions cuda{
      .executor = options.executor, .ordinal = ordinal, .num_threads = options.num_threads};
  if (options.cuda_pool_reserve_size) cuda.pool_reserve_bytes = *options.cuda_pool_reserve_size;
  if (options.cuda_pool_release_threshold) {
    cuda.pool_release_threshold = *options.cuda_pool_release_threshold;
  }
  if (options.cuda_ring_size) cuda.ring_bytes = *options.cuda_ring_size;
  KVBM_ASSIGN_OR_RETURN(auto device, CudaDevice::create(cuda));
  std::shared_ptr<HostPinner> pinner = device->pinner();
  KVBM_ASSIGN_OR_RETURN(DeviceIdentity identity, identity_of(ordinal));
  const auto adopt = [gpu = device.get()](uintptr_t native_stream, std::string_view name) {
    return gpu->adopt_stream(native_stream, name);
  };
  const auto enter = [gpu = device.get()] { return gpu->enter(); };
  return OpenedDevice{.device = std::move(device),
                      .pinner = std::move(pinner),
                      .identity = std::move(identity),
                      .adopt_stream = adopt,
                      .enter = enter};
}

}  // namespace kvbm::internal
