// SPDX-License-Identifier: Apache-2.0
// What the machine offers to a replay, as the kernel tells: memory (MachineMemory) and disk.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "kvbm/base/result.hpp"
#include "kvbm/device/machine_memory.hpp"

namespace kvbm {

/// Units: bytes.
struct DiskSpace {
  uint64_t total = 0;
  uint64_t free = 0;        ///< for a user without privileges
  std::string file_system;  ///< "ext4", "tmpfs"; a number where the name is not known
};

/// Errors: kNotFound, kIo.
[[nodiscard]] Result<DiskSpace> read_disk_space(const std::filesystem::path& folder);

}  // namespace kvbm
