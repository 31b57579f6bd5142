// SPDX-License-Identifier: Apache-2.0
// Parts of layer groups: what makes groups whose blocks hold different numbers of tokens alike.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvbm/base/result.hpp"
#include "kvbm/blocks/retention.hpp"

namespace kvbm {

/// A layer group as an engine has it.
struct LayerGroup {
  uint32_t block_tokens = 0;
  Retention retention = Retention::full_prefix();  ///< in the group's own blocks

  friend bool operator==(const LayerGroup&, const LayerGroup&) = default;
};

/// Every `stride`th block of an engine's layer group, from block `first` on. The tiers take it for
/// a group of its own, which has one block a position.
struct GroupPart {
  GroupSpec spec;  ///< what the tiers know; ids from 0 on without gaps
  size_t group = 0;
  uint32_t first = 0;
  uint32_t stride = 1;

  /// Of the engine's group, the block that stands at a position of the part.
  [[nodiscard]] size_t block_at(size_t position) const noexcept {
    return position * stride + first;
  }

  friend bool operator==(const GroupPart&, const GroupPart&) = default;
};

/// A position is a block of the largest size. A group of smaller blocks becomes as many parts as
/// fit, except for those that no window reaches back to from the end of a position: nothing could
/// be restored from them.
struct SplitGroups {
  uint32_t position_tokens = 0;  ///< of the largest blocks
  uint32_t identity_tokens = 0;  ///< of the smallest blocks
  std::vector<GroupPart> parts;  ///< group by group, in the order of their first blocks

  [[nodiscard]] std::vector<GroupSpec> specs() const;
};

/// Parts of all groups together.
inline constexpr size_t kMaxGroupParts = 1024;

/// Errors: kInvalidArgument (no group, a block without tokens), kUnsupported (a block size that
/// does not divide a larger one, more than kMaxGroupParts).
[[nodiscard]] Result<SplitGroups> split_groups(std::span<const LayerGroup> groups);

}  // namespace kvbm
