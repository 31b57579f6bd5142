// SPDX-License-Identifier: Apache-2.0
// How many blocks a tier has, where users give blocks or bytes.
#pragma once

#include <cstdint>
#include <string_view>

#include "kvbm/base/result.hpp"

namespace kvbm::internal {

/// `blocks`, unless it is 0: then as many of `block_bytes` as `bytes` holds, or none if that is 0.
/// Errors: kInvalidArgument (fewer than 1, more than kMaxTierBlocks).
[[nodiscard]] Result<uint32_t> tier_blocks(std::string_view tier, uint32_t blocks, uint64_t bytes,
                                           uint64_t block_bytes);

}  // namespace kvbm::internal
