// SPDX-License-Identifier: Apache-2.0
// MachineMemory: the memory that this process may use, as the kernel tells.
#pragma once

#include <cstdint>
#include <filesystem>

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

}  // namespace kvbm
