// SPDX-License-Identifier: Apache-2.0
// Content: the bytes that a key dictates, so that a wrong byte anywhere can be told.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "kvbm/base/ids.hpp"
#include "kvbm/blocks/block_key.hpp"

namespace kvbm {

/// Names one piece of a block: a block id that is used for another key, a swapped rank, layer or
/// half gives other bytes everywhere.
struct ContentPiece {
  BlockKey key;
  RankId rank;
  LayerId layer;
  uint32_t outer = 0;
};

/// Writes the piece's bytes; those at the start do not depend on the length.
void fill_content(const ContentPiece& piece, std::span<std::byte> out);

/// The first offset whose byte is not the piece's, if there is one.
[[nodiscard]] std::optional<size_t> first_wrong_byte(const ContentPiece& piece,
                                                     std::span<const std::byte> bytes);

}  // namespace kvbm
