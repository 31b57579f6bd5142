// SPDX-License-Identifier: Apache-2.0
// The devices of a block manager's ranks.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kvbm/base/executor.hpp"
#include "kvbm/base/log.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/runtime/devices.hpp"

namespace kvbm::internal {

/// The device of each rank, by name: a GPU of its own from the named one on where there are enough,
/// else the named one for all. Of a name that is no GPU it is the same name each time.
[[nodiscard]] std::vector<std::string> rank_device_names(std::string_view device,
                                                         uint32_t num_ranks, size_t num_gpus);

struct RankDevicesOptions {
  std::string_view device;
  uint32_t num_ranks = 1;
  size_t num_threads = 2;       ///< of each device
  uint64_t cuda_ring_size = 0;  ///< of each GPU
  Executor& executor;
  LogSink& log;
  const DeviceOpener& open_device;  ///< null: of the GPUs that are found
};

/// Warns once if ranks share a GPU. Errors: those of open_device(), with what to do.
[[nodiscard]] Result<std::vector<OpenedDevice>> open_rank_devices(
    const RankDevicesOptions& options);

}  // namespace kvbm::internal
