// SPDX-License-Identifier: Apache-2.0
// What is registered has no way back to a writable state.
#include <optional>
#include <utility>
#include <vector>

#include "kvbm/blocks/block_registry.hpp"

kvbm::CompleteBlock change(kvbm::CompleteBlock complete, kvbm::ImmutableBlock immutable,
                           const kvbm::BlockKey& key) {
#ifdef KVBM_POSITIVE_CONTROL
  static_cast<void>(immutable);
  return std::move(complete).reset().complete(key, std::nullopt);
#else
  static_cast<void>(complete);
  return std::move(immutable).reset().complete(key, std::nullopt);
#endif
}
