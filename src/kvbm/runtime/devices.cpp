// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/devices.hpp"

#include "kvbm/base/text.hpp"
#include "kvbm/device/host_device.hpp"
#include "kvbm/runtime/internal/cuda_backend.hpp"
#include "kvbm/runtime/internal/parse_number.hpp"

namespace kvbm {

Result<std::vector<AcceleratorInfo>> find_accelerators() { return internal::find_cuda_devices(); }

std::string advice_on_kernels(const AcceleratorInfo& gpu) {
  if (gpu.has_kernels && !gpu.kernels_from_ptx) return {};
  return format_text(
      "{} has SM {}.{}, and this build has no code for it: {}; build with {} in CUDA_ARCHS",
      gpu.device, gpu.sm / 10, gpu.sm % 10,
      gpu.has_kernels ? "its driver compiles the kernels at the first use, which takes a moment"
                      : "it copies by its engines alone",
      gpu.sm);
}

std::string default_device() {
  const auto found = find_accelerators();
  return found && !found->empty() ? found->front().device : "host";
}

std::optional<int32_t> gpu_ordinal(std::string_view device) {
  constexpr std::string_view kCuda = "cuda";
  if (device == kCuda) return 0;
  if (!device.starts_with(kCuda) || device.size() < kCuda.size() + 2 ||
      device[kCuda.size()] != ':') {
    return std::nullopt;
  }
  device.remove_prefix(kCuda.size() + 1);
  const std::optional<int32_t> ordinal = internal::parse_number<int32_t>(device);
  return ordinal && *ordinal >= 0 ? ordinal : std::nullopt;
}

bool is_device_name(std::string_view device) {
  return device == "host" || gpu_ordinal(device).has_value();
}

Result<OpenedDevice> open_device(const OpenDeviceOptions& options) {
  if (options.name == "host") {
    if (options.cuda_pool_reserve_size || options.cuda_pool_release_threshold) {
      return make_error(
          ErrorCode::kInvalidArgument,
          "cuda_pool_reserve_size and cuda_pool_release_threshold are of the memory "
          "pool of a GPU, and the device is the host: leave them out, or name cuda:N");
    }
    if (options.cuda_ring_size) {
      return make_error(ErrorCode::kInvalidArgument,
                        "cuda_ring_size is of a GPU's memory, and the device is the host: leave it "
                        "out, or name cuda:N");
    }
    KVBM_ASSIGN_OR_RETURN(auto device, HostDevice::create({.executor = options.executor,
                                                           .num_threads = options.num_threads,
                                                           .name = options.queue_name,
                                                           .ordinal = options.host_ordinal}));
    return OpenedDevice{.device = std::move(device),
                        .pinner = nullptr,
                        .identity = {.name = options.queue_name},
                        .adopt_stream = nullptr,
                        .enter = nullptr};
  }
  if (const std::optional<int32_t> ordinal = gpu_ordinal(options.name)) {
    return internal::open_cuda_device(*ordinal, options);
  }
  return make_error(
      ErrorCode::kInvalidArgument,
      format_text("there is no device \"{}\": say host, cuda or cuda:N", options.name));
}

}  // namespace kvbm
