// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/resolved_config.hpp"

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "kvbm/base/text.hpp"
#include "kvbm/base/units.hpp"
#include "kvbm/layout/slot_format.hpp"

namespace kvbm {
namespace {

using internal::checked_add;
using internal::checked_mul;

constexpr uint64_t kMaxBytes = std::numeric_limits<int64_t>::max();  // what a file offset reaches

tl::unexpected<Error> invalid(std::string message) {
  return make_error(ErrorCode::kInvalidArgument, std::move(message));
}

/// Nothing where there is nothing, or where it is too much.
std::optional<uint64_t> in_reach(std::optional<uint64_t> bytes) {
  return bytes && *bytes <= kMaxBytes ? bytes : std::nullopt;
}

Result<uint32_t> blocks_in(std::string_view what, uint64_t bytes, uint64_t position_bytes) {
  const uint64_t blocks = bytes / position_bytes;
  if (blocks == 0) {
    return invalid(format_text("{} is {}, less than one block of {} over all groups and ranks",
                               what, format_size(bytes), format_size(position_bytes)));
  }
  if (blocks > kMaxTierBlocks) {
    return invalid(format_text("{} is {}, more than {} blocks of {}", what, format_size(bytes),
                               kMaxTierBlocks, format_size(position_bytes)));
  }
  return static_cast<uint32_t>(blocks);
}

}  // namespace

bool ResolvedConfig::has_tier(TierId tier) const noexcept {
  return std::any_of(places.begin(), places.end(),
                     [tier](const PlaceSpec& spec) { return spec.place.tier == tier; });
}

Result<ResolvedConfig> resolve(const KvBlockManagerConfig& config, uint64_t device_free_bytes) {
  KVBM_TRY(config.validate());
  ResolvedConfig resolved;
  KVBM_ASSIGN_OR_RETURN(resolved.policy, parse_policy(config.policy));

  const std::vector<GroupConfig> group_configs = config.effective_groups();
  uint64_t rank_position_bytes = 0;
  uint64_t rank_slot_bytes = 0;  // of a position on disk, with headers and padding
  uint32_t num_layers = 0;
  for (size_t i = 0; i < group_configs.size(); ++i) {
    const GroupConfig& group = group_configs[i];
    const GroupId id(static_cast<uint16_t>(i));
    const std::optional<uint64_t> inner_dim = checked_mul(*group.num_heads, *group.head_dim);
    if (!inner_dim || *inner_dim > std::numeric_limits<uint32_t>::max()) {
      return invalid(format_text("group {}: num_heads {} x head_dim {} is 2^32 or more", group.name,
                                 *group.num_heads, *group.head_dim));
    }
    LayoutConfig layout{.num_blocks = std::max(config.num_blocks, 1U),
                        .num_layers = group.num_layers,
                        .outer_dim = *group.outer_dim,
                        .page_size = config.block_size,
                        .inner_dim = static_cast<uint32_t>(*inner_dim),
                        .dtype_width_bytes = *group.dtype_width_bytes,
                        .num_heads = group.num_heads};
    KVBM_TRY(layout.validate());
    const std::optional<uint64_t> with_group =
        in_reach(checked_add(rank_position_bytes, layout.block_bytes()));
    if (!with_group) {
      return invalid("one block over all groups is 2^63 bytes or more on each rank");
    }
    rank_position_bytes = *with_group;
    KVBM_ASSIGN_OR_RETURN(const SlotGeometry slot, slot_geometry(layout.block_bytes()));
    const std::optional<uint64_t> with_slot =
        in_reach(checked_add(rank_slot_bytes, slot.slot_bytes));
    if (!with_slot) {
      return invalid("one block on disk over all groups is 2^63 bytes or more on each rank");
    }
    rank_slot_bytes = *with_slot;
    num_layers += group.num_layers;
    resolved.groups.push_back({.id = id, .retention = group.retention});
    resolved.model.groups.push_back({.id = id, .config = layout});
  }

  const std::optional<uint64_t> all_ranks =
      in_reach(checked_mul(rank_position_bytes, config.num_ranks));
  if (!all_ranks) {
    return invalid(
        format_text("one block over all groups and {} ranks is 2^63 bytes or more: {} on each rank",
                    config.num_ranks, format_size(rank_position_bytes)));
  }
  const uint64_t position_bytes = *all_ranks;
  uint32_t gpu_blocks = config.num_blocks;
  if (gpu_blocks == 0) {
    const auto share =
        static_cast<uint64_t>(static_cast<double>(device_free_bytes) * config.gpu_memory_fraction);
    KVBM_ASSIGN_OR_RETURN(gpu_blocks, blocks_in("gpu_memory_fraction of the free device memory",
                                                share, rank_position_bytes));
  }
  uint32_t host_blocks = config.host_blocks;
  if (config.host_bytes > 0) {
    KVBM_ASSIGN_OR_RETURN(host_blocks, blocks_in("host_bytes", config.host_bytes, position_bytes));
  }
  uint32_t disk_blocks = config.disk_blocks;
  if (config.disk_bytes > 0) {
    const std::optional<uint64_t> slots = in_reach(checked_mul(rank_slot_bytes, config.num_ranks));
    if (!slots) return invalid("one block on disk over all ranks is 2^63 bytes or more");
    KVBM_ASSIGN_OR_RETURN(disk_blocks, blocks_in("disk_bytes", config.disk_bytes, *slots));
  }

  for (const auto& [tier, num_blocks] :
       {std::pair(TierId::kG1, gpu_blocks), std::pair(TierId::kG2, host_blocks),
        std::pair(TierId::kG3, disk_blocks)}) {
    if (in_reach(checked_mul(position_bytes, num_blocks))) continue;
    return invalid(format_text("{} blocks of {} in {} are 2^63 bytes or more", num_blocks,
                               format_size(position_bytes), tier));
  }

  const auto add_places = [&resolved](TierId tier, uint32_t num_blocks, Owner owner) {
    if (num_blocks == 0) return;
    for (const ModelLayout::Group& group : resolved.model.groups) {
      resolved.places.push_back({.place = {tier, group.id},
                                 .owner = owner,
                                 .spread = Spread::kSharded,
                                 .num_blocks = num_blocks,
                                 .rank_block_bytes = group.config.block_bytes()});
    }
  };
  for (ModelLayout::Group& group : resolved.model.groups) group.config.num_blocks = gpu_blocks;
  add_places(TierId::kG1, gpu_blocks, Owner::kEngine);
  add_places(TierId::kG2, host_blocks, Owner::kKvbm);
  add_places(TierId::kG3, disk_blocks, Owner::kKvbm);

  resolved.ns = Namespace{.model = config.model,
                          .weights_epoch = 0,
                          .dtype = std::to_string(config.dtype_width_bytes * 8) + " bit",
                          .num_heads = config.num_heads * config.num_ranks,
                          .num_layers = num_layers,
                          .tokens_per_block = config.block_size,
                          .identity_scheme = {},
                          .tenant_salt = config.cache_salt}
                    .id();
  return resolved;
}

}  // namespace kvbm
