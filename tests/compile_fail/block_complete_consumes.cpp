// SPDX-License-Identifier: Apache-2.0
// complete() takes the mutable block away, so that nobody can go on writing to it.
#include <optional>
#include <utility>
#include <vector>

#include "kvbm/blocks/block_registry.hpp"

kvbm::CompleteBlock fill(kvbm::MutableBlock& block, const kvbm::BlockKey& key) {
#ifdef KVBM_POSITIVE_CONTROL
  return std::move(block).complete(key, std::nullopt);
#else
  return block.complete(key, std::nullopt);
#endif
}
