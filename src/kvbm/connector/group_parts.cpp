// SPDX-License-Identifier: Apache-2.0
#include "kvbm/connector/group_parts.hpp"

#include <algorithm>

#include "kvbm/base/text.hpp"

namespace kvbm {
namespace {

Status check(std::span<const LayerGroup> groups) {
  if (groups.empty()) {
    return make_error(ErrorCode::kInvalidArgument, "a connector needs at least one layer group");
  }
  std::vector<uint32_t> sizes;
  for (const LayerGroup& group : groups) sizes.push_back(group.block_tokens);
  std::sort(sizes.begin(), sizes.end());
  if (sizes.front() == 0) {
    return make_error(ErrorCode::kInvalidArgument, "a block of a layer group has 0 tokens");
  }
  for (size_t i = 1; i < sizes.size(); ++i) {
    if (sizes[i] % sizes[i - 1] == 0) continue;
    return make_error(ErrorCode::kUnsupported,
                      format_text("layer groups have blocks of {} and of {} tokens, and one does "
                                  "not divide the other; give all of them sizes that do",
                                  sizes[i - 1], sizes[i]));
  }
  return {};
}

}  // namespace

std::vector<GroupSpec> SplitGroups::specs() const {
  std::vector<GroupSpec> specs;
  specs.reserve(parts.size());
  for (const GroupPart& part : parts) specs.push_back(part.spec);
  return specs;
}

Result<SplitGroups> split_groups(std::span<const LayerGroup> groups) {
  KVBM_TRY(check(groups));
  const auto [smallest, largest] =
      std::ranges::minmax(groups, {}, [](const LayerGroup& group) { return group.block_tokens; });
  SplitGroups split{.position_tokens = largest.block_tokens,
                    .identity_tokens = smallest.block_tokens,
                    .parts = {}};
  for (size_t i = 0; i < groups.size(); ++i) {
    const Retention retention = groups[i].retention;
    const uint32_t stride = split.position_tokens / groups[i].block_tokens;
    const uint32_t reached =
        retention.is_full_prefix() ? stride : std::min(stride, retention.window_blocks());
    if (split.parts.size() + reached > kMaxGroupParts) {
      return make_error(
          ErrorCode::kUnsupported,
          format_text("blocks of {} tokens are {} of another layer group's {}: more than {} parts "
                      "of groups",
                      split.position_tokens, stride, groups[i].block_tokens, kMaxGroupParts));
    }
    for (uint32_t first = stride - reached; first < stride; ++first) {
      GroupPart part{.spec = {.id = GroupId(static_cast<uint16_t>(split.parts.size()))},
                     .group = i,
                     .first = first,
                     .stride = stride};
      if (!retention.is_full_prefix()) {
        // Of the window's last blocks, every `stride`th one, counted from the end.
        const uint32_t behind = stride - 1 - first;
        part.spec.retention =
            Retention::last_window((retention.window_blocks() - behind - 1) / stride + 1);
      }
      split.parts.push_back(part);
    }
  }
  return split;
}

}  // namespace kvbm
