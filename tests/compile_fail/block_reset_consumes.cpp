// SPDX-License-Identifier: Apache-2.0
// reset() takes the complete block away.
#include <optional>
#include <utility>
#include <vector>

#include "kvbm/blocks/block_registry.hpp"

kvbm::MutableBlock reopen(kvbm::CompleteBlock& block) {
#ifdef KVBM_POSITIVE_CONTROL
  return std::move(block).reset();
#else
  return block.reset();
#endif
}
