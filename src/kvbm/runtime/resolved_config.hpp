// SPDX-License-Identifier: Apache-2.0
// ResolvedConfig: what a KvBlockManagerConfig means: layer groups, shapes, places.
#pragma once

#include <cstdint>
#include <vector>

#include "kvbm/base/result.hpp"
#include "kvbm/blocks/block_key.hpp"
#include "kvbm/blocks/eviction_policy.hpp"
#include "kvbm/blocks/retention.hpp"
#include "kvbm/layout/layout_config.hpp"
#include "kvbm/protocol/messages.hpp"
#include "kvbm/runtime/kv_block_manager_config.hpp"

namespace kvbm {

struct ResolvedConfig {
  NamespaceId ns;
  PolicyKind policy = PolicyKind::kLineage;
  std::vector<GroupSpec> groups;
  ModelLayout model;              ///< one rank's shape of each group, with G1's num_blocks
  std::vector<PlaceSpec> places;  ///< tier by tier, in the order of `groups`

  [[nodiscard]] bool has_tier(TierId tier) const noexcept;
};

/// A size in bytes is the share of all groups and ranks together: it is divided by the bytes that
/// one block position takes over all of them. `device_free_bytes` is what gpu_memory_fraction is a
/// part of, for each rank; used only if num_blocks is 0. Errors: kInvalidArgument (see
/// KvBlockManagerConfig::validate; a size that holds no block, or more than kMaxTierBlocks; a tier
/// of 2^63 bytes or more).
[[nodiscard]] Result<ResolvedConfig> resolve(const KvBlockManagerConfig& config,
                                             uint64_t device_free_bytes);

}  // namespace kvbm
