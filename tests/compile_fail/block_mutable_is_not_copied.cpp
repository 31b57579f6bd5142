// SPDX-License-Identifier: Apache-2.0
// A writable block has one holder.
#include <optional>
#include <utility>
#include <vector>

#include "kvbm/blocks/block_registry.hpp"

kvbm::MutableBlock share(kvbm::MutableBlock& block) {
#ifdef KVBM_POSITIVE_CONTROL
  return std::move(block);
#else
  return block;
#endif
}
