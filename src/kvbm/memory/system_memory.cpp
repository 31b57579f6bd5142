// SPDX-License-Identifier: Apache-2.0
#include "kvbm/memory/system_memory.hpp"

namespace kvbm {

Result<SystemMemory> SystemMemory::create(const HostPagesOptions& options) {
  KVBM_ASSIGN_OR_RETURN(HostPages pages, HostPages::map(options));
  return SystemMemory(std::move(pages));
}

}  // namespace kvbm
