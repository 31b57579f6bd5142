// SPDX-License-Identifier: Apache-2.0
// Only registered blocks are released.
#include <optional>
#include <utility>
#include <vector>

#include "kvbm/blocks/block_registry.hpp"

void give_back(kvbm::BlockPool& pool, std::vector<kvbm::CompleteBlock> blocks) {
#ifdef KVBM_POSITIVE_CONTROL
  pool.release(pool.register_blocks(std::move(blocks)));
#else
  pool.release(std::move(blocks));
#endif
}
