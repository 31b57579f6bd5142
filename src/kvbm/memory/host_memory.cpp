// SPDX-License-Identifier: Apache-2.0
#include "kvbm/memory/host_memory.hpp"

#include <algorithm>
#include <utility>

namespace kvbm {

Result<HostMemory> HostMemory::create(HostMemoryOptions options) {
  HostMemory memory;
  if (options.pinner == nullptr) {
    KVBM_ASSIGN_OR_RETURN(
        memory.pageable_,
        SystemMemory::create({.size_bytes = options.size_bytes, .huge_pages = HugePages::kAdvise}));
    return memory;
  }
  KVBM_ASSIGN_OR_RETURN(memory.pinned_,
                        PinnedMemory::create({.executor = options.executor,
                                              .pinner = std::move(options.pinner),
                                              .size_bytes = options.size_bytes,
                                              .slice_bytes = options.slice_bytes,
                                              .on_progress = std::move(options.on_progress),
                                              .on_shortage = std::move(options.on_shortage)}));
  const uint64_t first = std::min(options.slice_bytes, options.size_bytes);
  KVBM_TRY(memory.pinned_.wait_for(options.wait == HostReady::kAll ? options.size_bytes : first));
  return memory;
}

}  // namespace kvbm
