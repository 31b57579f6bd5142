// SPDX-License-Identifier: Apache-2.0
// LayoutHandle: the name of a registered layout, in 128 bits.
#pragma once

#include <compare>
#include <cstdint>
#include <string>

#include "kvbm/base/ids.hpp"
#include "kvbm/base/result.hpp"

namespace kvbm {

/// Bits 0..63 are the worker, bits 64..79 its layout, bits 80..127 are zero. Each worker numbers
/// its own layouts, so the same layout has another handle elsewhere.
struct LayoutHandle {
  WorkerId worker{0};
  uint16_t layout = 0;

  [[nodiscard]] constexpr uint64_t low() const noexcept { return worker.value(); }
  [[nodiscard]] constexpr uint64_t high() const noexcept { return layout; }

  /// Errors: kInvalidArgument (a bit above 79 is set).
  [[nodiscard]] static Result<LayoutHandle> from_bits(uint64_t low, uint64_t high);

  friend constexpr auto operator<=>(const LayoutHandle&, const LayoutHandle&) = default;
};

/// "worker 7 layout 2".
[[nodiscard]] std::string to_string(const LayoutHandle& handle);

}  // namespace kvbm
