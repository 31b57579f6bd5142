// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/memory_pool.hpp"

namespace kvbm {

MemoryPool make_memory_pool() { return std::make_shared<std::pmr::synchronized_pool_resource>(); }

}  // namespace kvbm
