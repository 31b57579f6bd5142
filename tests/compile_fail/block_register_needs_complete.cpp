// SPDX-License-Identifier: Apache-2.0
// A block without a key cannot be registered.
#include <optional>
#include <utility>
#include <vector>

#include "kvbm/blocks/block_registry.hpp"

kvbm::ImmutableBlock publish(kvbm::BlockPool& pool, kvbm::MutableBlock block,
                             const kvbm::BlockKey& key) {
#ifdef KVBM_POSITIVE_CONTROL
  return pool.register_block(std::move(block).complete(key, std::nullopt));
#else
  static_cast<void>(key);
  return pool.register_block(std::move(block));
#endif
}
