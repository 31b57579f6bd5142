// SPDX-License-Identifier: Apache-2.0
// Retention: which blocks of a prefix a layer group needs in order to go on after it.
#pragma once

#include <cstdint>
#include <limits>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/ids.hpp"

namespace kvbm {

/// Full attention needs the whole prefix; a sliding window needs the blocks that its last tokens
/// reach.
class Retention {
 public:
  [[nodiscard]] static constexpr Retention full_prefix() noexcept { return Retention(kAll); }
  /// Contract: at least one block.
  [[nodiscard]] static constexpr Retention last_window(uint32_t num_blocks) {
    KVBM_CONTRACT(num_blocks >= 1 && num_blocks < kAll, "a window has at least one block");
    return Retention(num_blocks);
  }

  [[nodiscard]] constexpr bool is_full_prefix() const noexcept { return window_ == kAll; }
  /// Contract: not a full prefix.
  [[nodiscard]] constexpr uint32_t window_blocks() const {
    KVBM_CONTRACT(!is_full_prefix(), "a full prefix has no window");
    return window_;
  }
  /// The first position that is needed to go on after `num_blocks` blocks.
  [[nodiscard]] constexpr uint32_t first_needed(uint32_t num_blocks) const noexcept {
    return num_blocks > window_ ? num_blocks - window_ : 0;
  }

  friend constexpr bool operator==(Retention, Retention) noexcept = default;

 private:
  static constexpr uint32_t kAll = std::numeric_limits<uint32_t>::max();

  explicit constexpr Retention(uint32_t window) noexcept : window_(window) {}

  uint32_t window_;
};

/// A group of layers that are alike, and its rule.
struct GroupSpec {
  GroupId id;
  Retention retention = Retention::full_prefix();

  friend constexpr bool operator==(const GroupSpec&, const GroupSpec&) noexcept = default;
};

}  // namespace kvbm
