// SPDX-License-Identifier: Apache-2.0
// Another pin is asked for by name.
#include <optional>
#include <utility>
#include <vector>

#include "kvbm/blocks/block_registry.hpp"

kvbm::ImmutableBlock pin_again(const kvbm::ImmutableBlock& block) {
#ifdef KVBM_POSITIVE_CONTROL
  return block.clone();
#else
  return block;
#endif
}
