// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/internal/tier_size.hpp"

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

}  // namespace kvbm::internal
