// SPDX-License-Identifier: Apache-2.0
// A block is never compared with a layer.
#include "kvbm/base/ids.hpp"

bool is_same(kvbm::BlockId block) {
#ifdef KVBM_POSITIVE_CONTROL
  return block == kvbm::BlockId(3);
#else
  return block == kvbm::LayerId(3);
#endif
}
