// SPDX-License-Identifier: Apache-2.0
// StreamRef: the name of a stream, which only its device understands.
#pragma once

#include <compare>
#include <cstdint>

namespace kvbm {

/// A queue of a device: what is put on it runs in order. Opaque; an engine's own stream travels as
/// one. Ownership: none. One that its device does not know (any more) is refused, never followed.
struct StreamRef {
  uint64_t value = 0;

  friend constexpr auto operator<=>(StreamRef, StreamRef) noexcept = default;
};

}  // namespace kvbm
