// SPDX-License-Identifier: Apache-2.0
// GroupConfig: one group of layers as configured, and the SPEC text that lists groups.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvbm/base/result.hpp"
#include "kvbm/blocks/retention.hpp"

namespace kvbm {

/// Layers that are alike. What is not set here is as in the whole configuration.
struct GroupConfig {
  std::string name = {};  ///< unique; letters, digits, `_` and `-`
  uint32_t num_layers = 0;
  Retention retention = Retention::full_prefix();
  std::optional<uint32_t> outer_dim = {};
  std::optional<uint32_t> num_heads = {};
  std::optional<uint32_t> head_dim = {};
  std::optional<uint32_t> dtype_width_bytes = {};

  friend bool operator==(const GroupConfig&, const GroupConfig&) = default;
};

inline constexpr size_t kMaxGroups = 256;

/// Errors: kInvalidArgument, naming the group (too many groups, a name that is empty, wrong or
/// taken, a number out of its range).
[[nodiscard]] Status check_groups(std::span<const GroupConfig> groups);

/// Reads a SPEC, such as `full:layers=4;window:layers=2,blocks=8`:
///
///   spec   = [ group { ";" group } ]
///   group  = ( "full" | "window" ) [ ":" option { "," option } ]
///   option = key "=" value
///
/// with the keys `layers` (required), `blocks` (required in a window, wrong elsewhere), `name` and
/// the overrides `outer_dim`, `num_heads`, `head_dim`, `dtype_width_bytes`. A group without a name
/// has that of its kind, the second one with `_2` after it. Spaces around words do not matter. An
/// empty SPEC is no group. Errors: kInvalidArgument, beginning with "character N: ", where the
/// first character is 1.
[[nodiscard]] Result<std::vector<GroupConfig>> parse_groups(std::string_view spec);

/// A SPEC that reads back to the same groups. Contract: each could come from one.
[[nodiscard]] std::string format_groups(std::span<const GroupConfig> groups);

}  // namespace kvbm
