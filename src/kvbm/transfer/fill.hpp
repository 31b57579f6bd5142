// SPDX-License-Identifier: Apache-2.0
// fill: blocks of a known content, to start from and to check copies by.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "kvbm/base/ids.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/layout/layout_view.hpp"

namespace kvbm {

namespace internal {
class PatternBytes;
}

/// What each element of a block is. The same in every format: element `inner` of a token is element
/// inner % hd of head inner / hd, wherever it lies.
/// Threads: a value.
class FillPattern {
 public:
  /// Each byte.
  [[nodiscard]] static FillPattern constant(std::byte value) noexcept {
    return {Kind::kConstant, static_cast<uint64_t>(value)};
  }
  /// Byte i of block b in canonical order is (b + i) mod 256.
  [[nodiscard]] static FillPattern sequential() noexcept { return {Kind::kSequential, 0}; }
  /// A hash of the seed, the block and every coordinate, so that any swap shows. Of an element of w
  /// bytes, the w lowest.
  [[nodiscard]] static FillPattern position(uint64_t seed) noexcept {
    return {Kind::kPosition, seed};
  }

 private:
  friend class internal::PatternBytes;
  enum class Kind : uint8_t { kConstant, kSequential, kPosition };

  FillPattern(Kind kind, uint64_t value) noexcept : kind_(kind), value_(value) {}

  Kind kind_;
  uint64_t value_;
};

/// Writes the part of each block that the view has. The host does it, element by element.
/// Errors: kInvalidArgument (a block out of range), kUnsupported (memory of a device or of a file:
/// fill host memory and copy it).
Status fill(const LayoutView& view, std::span<const BlockId> ids, const FillPattern& pattern);

/// The first run that is not as fill() left it.
struct FillMismatch {
  BlockId block{0};
  LayerId layer{0};
  uint32_t outer = 0;
  uint32_t head = 0;  ///< 0 if the format is unknown, as is page
  uint32_t page = 0;

  friend bool operator==(const FillMismatch&, const FillMismatch&) = default;
};

/// Compares with what the pattern gives; `pattern_of[i]` is the block whose content ids[i] should
/// have, as after a copy. Errors: those of fill(), and lists of different lengths.
[[nodiscard]] Result<std::optional<FillMismatch>> find_fill_mismatch(
    const LayoutView& view, std::span<const BlockId> ids, std::span<const BlockId> pattern_of,
    const FillPattern& pattern);

}  // namespace kvbm
