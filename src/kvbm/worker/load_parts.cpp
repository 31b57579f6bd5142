// SPDX-License-Identifier: Apache-2.0
#include "kvbm/worker/load_parts.hpp"

#include <algorithm>
#include <array>

#include "kvbm/base/contract.hpp"

namespace kvbm {
namespace {

/// Shares of the first n parts together.
constexpr std::array<uint64_t, kMaxLoadParts + 1> kShares{0, 1, 3, 7, 11, 15, 19, 23, 27};

}  // namespace

std::vector<LayerRange> split_load(uint32_t num_layers, uint64_t layer_bytes,
                                   uint64_t min_part_bytes) {
  KVBM_CONTRACT(num_layers > 0, "a load of no layers");
  const uint64_t bytes = layer_bytes * num_layers;
  size_t num_parts = std::min<size_t>(kMaxLoadParts, num_layers);
  while (num_parts > 1 && bytes / kShares[num_parts] < min_part_bytes) --num_parts;

  std::vector<LayerRange> parts;
  parts.reserve(num_parts);
  const uint64_t shares = kShares[num_parts];
  uint32_t begin = 0;
  for (size_t i = 0; i < num_parts; ++i) {
    // At least one layer for this part, and for each that follows.
    const auto nearest = static_cast<uint32_t>((num_layers * kShares[i + 1] + shares / 2) / shares);
    const auto last = static_cast<uint32_t>(num_layers - (num_parts - 1 - i));
    const uint32_t end = std::clamp(nearest, begin + 1, last);
    parts.push_back({LayerId(static_cast<uint16_t>(begin)), end - begin});
    begin = end;
  }
  return parts;
}

}  // namespace kvbm
