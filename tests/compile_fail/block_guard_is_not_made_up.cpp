// SPDX-License-Identifier: Apache-2.0
// A guard comes from a pool.
#include <optional>
#include <utility>
#include <vector>

#include "kvbm/blocks/block_registry.hpp"

kvbm::ImmutableBlock invent(kvbm::BlockPool& pool, const kvbm::BlockKey& key) {
#ifdef KVBM_POSITIVE_CONTROL
  return std::move(pool.find(key)).value();
#else
  static_cast<void>(pool);
  static_cast<void>(key);
  return kvbm::ImmutableBlock();
#endif
}
