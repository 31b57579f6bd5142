// SPDX-License-Identifier: Apache-2.0
// How many blocks a tier has, where users give blocks or bytes, and how many stores may read.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "kvbm/base/result.hpp"

namespace kvbm::internal {

/// `blocks`, unless it is 0: then as many of `block_bytes` as `bytes` holds, or none if that is 0.
/// Errors: kInvalidArgument (fewer than 1, more than kMaxTierBlocks).
[[nodiscard]] Result<uint32_t> tier_blocks(std::string_view tier, uint32_t blocks, uint64_t bytes,
                                           uint64_t block_bytes);

/// How many blocks of an engine's pool of `engine_blocks` stores under way may read at a time:
/// `share` of them, at least 1. Without a share 5 %, but not less than 1024. Never more than
/// `nearest_blocks`, of all groups in the tier that is stored to.
/// Contract: 0 < share <= 1.
[[nodiscard]] uint32_t store_budget_blocks(std::optional<double> share, uint32_t engine_blocks,
                                           uint64_t nearest_blocks);

}  // namespace kvbm::internal
