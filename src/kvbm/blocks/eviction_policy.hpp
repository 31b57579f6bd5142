// SPDX-License-Identifier: Apache-2.0
// PolicyKind: which idle block a pool gives up first.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <span>
#include <string_view>

#include "kvbm/base/result.hpp"

namespace kvbm {

/// A block is idle when it is registered and nobody holds it. Its tick is the moment it became idle
/// or was last touched by a match. Every choice costs O(log n) at most, whatever the order of
/// events.
enum class PolicyKind : uint8_t {
  /// Leaf first: among the idle blocks without a direct child in the same tier, the smallest tick.
  /// A
  /// parent whose last child leaves competes with the tick it has had all along. If every idle
  /// block
  /// has a child there (one that is held, say, while its parent is not), the one that came into
  /// that
  /// position, or was touched in it, longest ago. In a pool of a last-window group this is kLru:
  /// there
  /// the deepest blocks are the ones worth keeping.
  kLineage,
  /// The smallest tick.
  kLru,
  /// The block that was registered first, however often it was used since.
  kFifo,
};

/// "lineage", "lru", "fifo".
[[nodiscard]] std::string_view to_string(PolicyKind policy) noexcept;
std::ostream& operator<<(std::ostream& out, PolicyKind policy);

/// All names, in the order of the enumerators.
[[nodiscard]] std::span<const std::string_view> policy_names() noexcept;

/// Errors: kInvalidArgument, with the names there are.
[[nodiscard]] Result<PolicyKind> parse_policy(std::string_view name);

}  // namespace kvbm
