// SPDX-License-Identifier: Apache-2.0
// BlockShape: the layers, heads and elements that a pretended block is given.
#pragma once

#include <cstdint>
#include <optional>

namespace kvbm {

/// One rank's part of a block of one token, with elements of one byte.
struct BlockShape {
  uint32_t num_layers = 0;
  uint32_t outer_dim = 0;
  uint32_t num_heads = 0;
  uint32_t head_dim = 0;

  friend bool operator==(const BlockShape&, const BlockShape&) = default;
};

/// A shape of exactly `rank_block_bytes`, each value within the range of its configuration key, and
/// few enough layers for 64 groups. The bytes are the pretended engine's, which has no heads: any
/// split is as good as another. Nothing for 0, and for a size with too large a prime factor; always
/// something up to 64 KiB, and for multiples of 4 KiB up to 256 MiB.
[[nodiscard]] std::optional<BlockShape> block_shape_of(uint64_t rank_block_bytes) noexcept;

}  // namespace kvbm
