// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/devices.hpp"

#include <charconv>
#include <system_error>

#include "kvbm/base/text.hpp"
#include "kvbm/device/host_device.hpp"
#include "kvbm/runtime/internal/cuda_backend.hpp"

namespace kvbm {

Result<std::vector<AcceleratorInfo>> find_accelerators() { return internal::find_cuda_devices(); }

std::string default_device() {
  const auto found = find_accelerators();
  return found && !found->empty() ? found->front().device : "host";
}

Result<OpenedDevice> open_device(const OpenDeviceOptions& options) {
  constexpr std::string_view kCuda = "cuda";
  std::string_view rest = options.name;
  if (rest == "host") {
    KVBM_ASSIGN_OR_RETURN(auto device, HostDevice::create({.executor = options.executor,
                                                           .num_threads = options.num_threads,
                                                           .name = options.queue_name,
                                                           .ordinal = options.host_ordinal}));
    return OpenedDevice{
        .device = std::move(device), .pinner = nullptr, .identity = {.name = options.queue_name}};
  }
  if (rest == kCuda) return internal::open_cuda_device(0, options);
  if (rest.starts_with(kCuda) && rest.size() > kCuda.size() + 1 && rest[kCuda.size()] == ':') {
    rest.remove_prefix(kCuda.size() + 1);
    int32_t ordinal = -1;
    const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), ordinal);
    if (error == std::errc() && end == rest.data() + rest.size() && ordinal >= 0) {
      return internal::open_cuda_device(ordinal, options);
    }
  }
  return make_error(
      ErrorCode::kInvalidArgument,
      format_text("there is no device \"{}\": say host, cuda or cuda:N", options.name));
}

}  // namespace kvbm
