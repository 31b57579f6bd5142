// SPDX-License-Identifier: Apache-2.0
// What the machine offers to a replay: memory and disk, as the kernel tells.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "kvbm/base/result.hpp"

namespace kvbm {

/// Units: bytes.
struct MachineMemory {
  uint64_t total = 0;            ///< of the machine, or of the control group if that allows less
  uint64_t available = 0;        ///< without pushing anything out to swap
  uint64_t huge_page_size = 0;   ///< 0: the kernel has none
  uint64_t huge_pages_free = 0;  ///< reserved pages, counted
};

/// Reads /proc/meminfo and the limits of the control group, below `root`.
/// Errors: kUnsupported where the kernel does not tell.
[[nodiscard]] Result<MachineMemory> read_machine_memory(const std::filesystem::path& root = "/");

/// Units: bytes.
struct DiskSpace {
  uint64_t total = 0;
  uint64_t free = 0;        ///< for a user without privileges
  std::string file_system;  ///< "ext4", "tmpfs"; a number where the name is not known
};

/// Errors: kNotFound, kIo.
[[nodiscard]] Result<DiskSpace> read_disk_space(const std::filesystem::path& folder);

}  // namespace kvbm
