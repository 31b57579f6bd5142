// SPDX-License-Identifier: Apache-2.0
// The memory of a device, each way, for the ring that large copies go through (CopyMethod::kRing).
#pragma once

#include <cstdint>

namespace kvbm {

/// Where nothing else is said.
inline constexpr uint64_t kDefaultRingBytes = uint64_t{80} << 20;

/// A page for each of two slots.
inline constexpr uint64_t kLeastRingBytes = 2 * 4096;

}  // namespace kvbm
