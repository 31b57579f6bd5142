// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/transfer_options.hpp"

namespace kvbm {

std::string_view to_string(TransferPriority priority) noexcept {
  switch (priority) {
    case TransferPriority::kHigh:
      return "high";
    case TransferPriority::kNormal:
      return "normal";
    case TransferPriority::kLow:
      return "low";
  }
  return "unknown";
}

}  // namespace kvbm
