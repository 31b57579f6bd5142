// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/internal/tier_size.hpp"

#include <algorithm>
#include <cmath>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/text.hpp"
#include "kvbm/base/units.hpp"
#include "kvbm/runtime/kv_block_manager_config.hpp"

namespace kvbm::internal {

Result<uint32_t> tier_blocks(std::string_view tier, uint32_t blocks, uint64_t bytes,
                             uint64_t block_bytes) {
  if (blocks == 0 && bytes == 0) return 0U;
  const uint64_t fit = blocks > 0 ? blocks : bytes / block_bytes;
  if (fit == 0 || fit > kMaxTierBlocks) {
    return make_error(ErrorCode::kInvalidArgument,
                      format_text("{} has {} blocks of {}; allowed are 1 to {}", tier, fit,
                                  format_size(block_bytes), kMaxTierBlocks));
  }
  return static_cast<uint32_t>(fit);
}

uint32_t store_budget_blocks(std::optional<double> share, uint32_t engine_blocks,
                             uint64_t nearest_blocks) {
  constexpr double kDefaultShare = 0.05;
  // In a small pool 5 % is less than what one step computes, and bounds nothing worth bounding.
  constexpr uint64_t kLeastDefault = 1024;
  KVBM_CONTRACT(!share || (*share > 0 && *share <= 1), "a share is above 0, and at most 1");
  const auto blocks =
      static_cast<uint64_t>(std::floor(share.value_or(kDefaultShare) * engine_blocks));
  const uint64_t budget = std::max(blocks, share ? 1 : kLeastDefault);
  return static_cast<uint32_t>(std::min(budget, nearest_blocks));
}

}  // namespace kvbm::internal
