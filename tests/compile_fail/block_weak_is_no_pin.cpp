// SPDX-License-Identifier: Apache-2.0
// A weak block names no slot: it must be upgraded first.
#include <optional>
#include <utility>
#include <vector>

#include "kvbm/blocks/block_registry.hpp"

kvbm::BlockId slot_of(const kvbm::WeakBlock& block) {
#ifdef KVBM_POSITIVE_CONTROL
  return block.upgrade().value().block_id();
#else
  return block.block_id();
#endif
}
