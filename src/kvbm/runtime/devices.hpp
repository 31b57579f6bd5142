// SPDX-License-Identifier: Apache-2.0
// Devices by name: "host", "cuda:0". What this build has and this machine offers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvbm/base/executor.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/device/device.hpp"
#include "kvbm/device/stream.hpp"
#include "kvbm/memory/host_pinner.hpp"

namespace kvbm {

/// A device beside the host. Asking for it makes no context on it.
struct AcceleratorInfo {
  std::string device = {};  ///< the name to open it by: "cuda:0"
  std::string name = {};    ///< for people: "NVIDIA H100 80GB HBM3"
  int32_t sm = 0;           ///< compute capability: 90 is 9.0
  uint64_t total_bytes = 0;
  int32_t driver_version = 0;  ///< the CUDA that the driver knows: 13000 is 13.0
  int32_t runtime_version = 0;
  bool has_memcpy_batch = false;
  std::optional<uint32_t> numa_node = std::nullopt;
  /// Whether this build has kernels for it: code for its SM version, or PTX, which its driver
  /// compiles at the first use. Neither: it copies by its engines alone.
  bool has_kernels = false;
  bool kernels_from_ptx = false;
};

/// What to do where this build has no code for the GPU's SM version, and what it costs not to;
/// empty where it has.
[[nodiscard]] std::string advice_on_kernels(const AcceleratorInfo& gpu);

/// Errors: kUnsupported (left out of this build; too old a driver), kUnavailable (no driver, no
/// GPU), kDevice.
[[nodiscard]] Result<std::vector<AcceleratorInfo>> find_accelerators();

/// N of "cuda:N", 0 of "cuda"; nothing for any other name.
[[nodiscard]] std::optional<int32_t> gpu_ordinal(std::string_view device);

/// Whether open_device() knows the form of the name.
[[nodiscard]] bool is_device_name(std::string_view device);

/// Of the first of them; "host" where there is none.
[[nodiscard]] std::string default_device();

/// By which a device, and what drives it, is told from another. Empty and 0: nothing to tell.
struct DeviceIdentity {
  std::string name = {};         ///< as DeviceInfo has it
  std::string pci_address = {};  ///< "0000:3b:00.0"
  std::string driver = {};       ///< the kernel's part of it: "580.95.05"
  int32_t driver_version = 0;    ///< the CUDA that the driver knows: 13000 is 13.0
  int32_t runtime_version = 0;

  friend bool operator==(const DeviceIdentity&, const DeviceIdentity&) = default;
};

struct OpenDeviceOptions {
  std::string name = "host";  ///< "host", "cuda:N", or "cuda", which is "cuda:0"
  Executor& executor;
  size_t num_threads = 2;
  std::string queue_name = "kvbm-copy";  ///< of a host device
  int32_t host_ordinal = 0;              ///< that a host device tells

  /// Of a GPU's memory pool, which serves small allocations: what it takes at once, and what it
  /// keeps of what comes back. Nothing: those of CudaDeviceOptions. A host device has no pool.
  std::optional<uint64_t> cuda_pool_reserve_size = std::nullopt;
  std::optional<uint64_t> cuda_pool_release_threshold = std::nullopt;
  /// Of a GPU: memory, each way, of the ring that large copies go through; 0: none. Nothing: that
  /// of CudaDeviceOptions.
  std::optional<uint64_t> cuda_ring_size = std::nullopt;
};

struct OpenedDevice {
  std::unique_ptr<Device> device;
  std::shared_ptr<HostPinner> pinner;  ///< null for the host, which copies any memory
  DeviceIdentity identity = {};
  /// The name on the device of an engine's own stream (a cudaStream_t; 0: the default stream),
  /// which outlives what is queued on it. Empty for the host, which knows no native streams.
  std::function<Result<StreamRef>(uintptr_t native_stream, std::string_view name)> adopt_stream =
      nullptr;
  /// Makes the GPU's context the calling thread's own for as long as the result lives. Empty for
  /// the host. Valid as long as the device.
  std::function<std::shared_ptr<const void>()> enter = nullptr;
};

/// As open_device(), for who has devices of his own.
using DeviceOpener = std::function<Result<OpenedDevice>(const OpenDeviceOptions&)>;

/// Errors: kInvalidArgument (no such name; a pool or a ring of a host device), those of
/// find_accelerators, kNotFound (no such GPU), kExhausted.
[[nodiscard]] Result<OpenedDevice> open_device(const OpenDeviceOptions& options);

}  // namespace kvbm
