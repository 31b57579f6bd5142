// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/internal/staging.hpp"

#include <algorithm>
#include <utility>

#include "kvbm/base/text.hpp"
#include "kvbm/base/units.hpp"

namespace kvbm::internal {
namespace {

/// Less in a group costs more for its start than for its bytes.
constexpr uint64_t kLeastGroupBytes = uint64_t{1} << 20;

bool is_file(const TransferHop& hop) { return hop.kind == HopKind::kFile; }

/// The side whose blocks say what bounce blocks are like.
const LayoutView& model_of(const StagingSides& sides) {
  const TransferStrategy& strategy = sides.strategy;
  if (is_file(strategy.first)) return sides.from;
  if (is_file(*strategy.second)) return sides.to;
  return strategy.first.from.storage == StorageKind::kDevice ? sides.from : sides.to;
}

/// Of what a view has of a block, or of a whole block of a file.
LayoutConfig bounce_config(const StagingSides& sides) {
  const LayoutView& model = model_of(sides);
  LayoutConfig config = model.layout().config();
  config.alignment = 1;
  if (is_file(sides.strategy.first) || is_file(*sides.strategy.second)) return config;
  config.num_layers = model.layers().count;
  if (model.kv_block_layout().is_known()) {
    config.inner_dim = config.inner_dim / *config.num_heads * model.heads().count;
    config.num_heads = model.heads().count;
  }
  return config;
}

/// The same part of a bounce block as the view has of its own.
Result<LayoutView> same_part(const PhysicalLayout& bounce, const LayoutView& view) {
  KVBM_ASSIGN_OR_RETURN(LayoutView part, LayoutView(bounce).slice(view.layers()));
  if (view.kv_block_layout().is_known() && part.kv_block_layout().is_known()) {
    return part.slice(view.heads());
  }
  return part;
}

/// The plans of the hops that are copies. `bounce` is one of the slots' layouts.
Status plan_hops(const StagingSides& sides, const PhysicalLayout& bounce, StagedSpec& spec) {
  const bool from_file = is_file(sides.strategy.first);
  const bool to_file = is_file(*sides.strategy.second);
  if (from_file && to_file) return {};
  if (to_file) {
    KVBM_ASSIGN_OR_RETURN(spec.first_plan, TransferPlan::create(sides.from, bounce));
    return {};
  }
  if (from_file) {
    KVBM_ASSIGN_OR_RETURN(const LayoutView part, same_part(bounce, sides.from));
    KVBM_ASSIGN_OR_RETURN(spec.second_plan, TransferPlan::create(part, sides.to));
    return {};
  }
  LayoutView part(bounce);
  if (part.block_bytes() != sides.from.block_bytes()) {
    KVBM_ASSIGN_OR_RETURN(part, same_part(bounce, sides.from));
  }
  KVBM_ASSIGN_OR_RETURN(spec.first_plan, TransferPlan::create(sides.from, part));
  KVBM_ASSIGN_OR_RETURN(spec.second_plan, TransferPlan::create(part, sides.to));
  return {};
}

/// Groups that are large enough to be worth their start, and so many that hops overlap.
uint32_t group_size(size_t num_blocks, size_t num_slots, uint64_t block_bytes, size_t most) {
  const size_t overlapping = (num_blocks + 2 * num_slots - 1) / (2 * num_slots);
  const size_t least = (kLeastGroupBytes + block_bytes - 1) / block_bytes;
  return static_cast<uint32_t>(std::clamp<size_t>(std::max(overlapping, least), 1, most));
}

}  // namespace

Result<StagedSpec> stage_through(const StagingSides& sides, std::shared_ptr<BounceMemory> memory) {
  LayoutConfig config = bounce_config(sides);
  const uint64_t block_bytes = config.block_bytes();
  const uint64_t room = memory->slot_bytes() / block_bytes;
  if (room == 0) {
    return make_error(
        ErrorCode::kUnsupported,
        format_text("a block of {} does not fit a bounce slot of {}: make bounce_slot_bytes of "
                    "TransferConfig larger, or give the transfer a BounceBuffer",
                    format_size(block_bytes), format_size(memory->slot_bytes())));
  }
  const size_t num_slots = memory->ring().num_slots();
  const auto most = static_cast<size_t>(std::min<uint64_t>(room, sides.num_blocks));
  StagedSpec spec{.strategy = sides.strategy,
                  .blocks_per_group = group_size(sides.num_blocks, num_slots, block_bytes, most)};
  config.num_blocks = spec.blocks_per_group;
  std::vector<BlockId> ids;
  for (uint32_t i = 0; i < config.num_blocks; ++i) ids.emplace_back(i);
  for (uint32_t slot = 0; slot < num_slots; ++slot) {
    KVBM_ASSIGN_OR_RETURN(PhysicalLayout layout,
                          PhysicalLayout::fully_contiguous(config, memory->slot(slot),
                                                           model_of(sides).kv_block_layout()));
    spec.slots.push_back({std::make_shared<const PhysicalLayout>(std::move(layout)), ids});
  }
  KVBM_TRY(plan_hops(sides, *spec.slots.front().layout, spec));
  spec.memory = std::move(memory);
  return spec;
}

Result<StagedSpec> stage_through(const StagingSides& sides,
                                 const std::shared_ptr<const PhysicalLayout>& bounce,
                                 const std::vector<BlockId>& ids, uint32_t max_slots) {
  const bool with_file = is_file(sides.strategy.first) || is_file(*sides.strategy.second);
  const LayoutView& model = model_of(sides);
  StagedSpec spec{.strategy = sides.strategy};
  const Status fits = [&]() -> Status {
    if (with_file) {
      KVBM_TRY(check_same_block_shape(bounce->config(), model.layout().config()));
      if (bounce->kv_block_layout().requires_transform(model.kv_block_layout())) {
        return make_error(
            ErrorCode::kInvalidArgument,
            format_text("their format is {}, that of the file {}",
                        to_string(bounce->kv_block_layout()), to_string(model.kv_block_layout())));
      }
    }
    return plan_hops(sides, *bounce, spec);
  }();
  if (!fits) {
    return make_error(Error(ErrorCode::kInvalidArgument, fits.error().message())
                          .with_context("bounce blocks do not fit between the hops"));
  }
  const size_t num_slots = std::min<size_t>(ids.size(), max_slots);
  for (size_t slot = 0; slot < num_slots; ++slot) {
    const auto at = [&](size_t index) {
      return ids.begin() + static_cast<ptrdiff_t>(index * ids.size() / num_slots);
    };
    spec.slots.push_back({bounce, {at(slot), at(slot + 1)}});
  }
  spec.blocks_per_group = group_size(sides.num_blocks, num_slots, bounce->config().block_bytes(),
                                     (ids.size() + num_slots - 1) / num_slots);
  spec.own_ring = std::make_unique<BounceRing>(static_cast<uint32_t>(num_slots));
  return spec;
}

}  // namespace kvbm::internal
