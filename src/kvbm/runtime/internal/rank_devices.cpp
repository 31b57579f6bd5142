// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/internal/rank_devices.hpp"

#include <utility>

#include "kvbm/base/text.hpp"

namespace kvbm::internal {
namespace {

tl::unexpected<Error> with_mend(Error error, std::string_view device) {
  // A name that is none says itself what to write.
  if (error.code() == ErrorCode::kInvalidArgument) return make_error(std::move(error));
  return make_error(std::move(error).with_context(format_text(
      "device = {} is not to be had (kvbm doctor tells what is; device = host needs no GPU)",
      device)));
}

}  // namespace

std::vector<std::string> rank_device_names(std::string_view device, uint32_t num_ranks,
                                           size_t num_gpus) {
  std::vector<std::string> names(num_ranks, std::string(device));
  const std::optional<int32_t> first = gpu_ordinal(device);
  if (!first || num_gpus < num_ranks || static_cast<size_t>(*first) > num_gpus - num_ranks) {
    return names;
  }
  for (uint32_t rank = 0; rank < num_ranks; ++rank) {
    names[rank] = format_text("cuda:{}", static_cast<uint32_t>(*first) + rank);
  }
  return names;
}

Result<std::vector<OpenedDevice>> open_rank_devices(const RankDevicesOptions& options) {
  const bool is_gpu = gpu_ordinal(options.device).has_value();
  std::vector<std::string> names(options.num_ranks, std::string(options.device));
  if (is_gpu && !options.open_device) {
    auto found = find_accelerators();
    if (!found) return with_mend(std::move(found).error(), options.device);
    names = rank_device_names(options.device, options.num_ranks, found->size());
    if (names.size() > 1 && names[0] == names[1]) {
      KVBM_LOG_WARNING(options.log, "devices",
                       "{} ranks share {}: of {} GPUs there are not as many from there on",
                       names.size(), names[0], found->size());
    }
  }
  const DeviceOpener open = options.open_device ? options.open_device : open_device;
  std::vector<OpenedDevice> devices;
  for (uint32_t rank = 0; rank < options.num_ranks; ++rank) {
    auto device =
        open({.name = names[rank],
              .executor = options.executor,
              .num_threads = options.num_threads,
              .queue_name = format_text("kvbm-copy-{}", rank),
              .host_ordinal = static_cast<int32_t>(rank),
              .cuda_ring_size = is_gpu ? std::optional(options.cuda_ring_size) : std::nullopt});
    if (!device) return with_mend(std::move(device).error(), names[rank]);
    devices.push_back(*std::move(device));
  }
  return devices;
}

}  // namespace kvbm::internal
