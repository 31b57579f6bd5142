// SPDX-License-Identifier: Apache-2.0
// tier_label: how series name a tier.
#pragma once

#include <string>

#include "kvbm/base/ids.hpp"

namespace kvbm::internal {

/// "g2" for TierId::kG2.
[[nodiscard]] inline std::string tier_label(TierId tier) {
  std::string name(to_string(tier));
  name[0] = 'g';
  return name;
}

}  // namespace kvbm::internal
