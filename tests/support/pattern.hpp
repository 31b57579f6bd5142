// SPDX-License-Identifier: Apache-2.0
// Fill patterns for blocks: every element hashes where it belongs, so that any swap shows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/random.hpp"
#include "kvbm/layout/layout_config.hpp"

namespace kvbm::testing {

/// Where an element of a block is. `head` is 0 and `dim` counts all of inner_dim if heads are
/// unknown.
struct ElementPosition {
  uint32_t layer = 0;
  uint32_t outer = 0;
  uint32_t token = 0;
  uint32_t head = 0;
  uint32_t dim = 0;
};

/// The value of one element of the block with this key; an element of w bytes takes the first w of
/// it.
[[nodiscard]] inline uint64_t pattern(uint64_t key, const ElementPosition& at) {
  uint64_t state = key;
  uint64_t value = splitmix64(state);
  for (const uint32_t coordinate : {at.layer, at.outer, at.token, at.head, at.dim}) {
    state = value ^ coordinate;
    value = splitmix64(state);
  }
  return value;
}

/// Layers of the block with this key in canonical order.
[[nodiscard]] inline std::vector<std::byte> pattern_block(const LayoutConfig& config, uint64_t key,
                                                          LayerRange layers) {
  std::vector<std::byte> block(config.layer_bytes() * layers.count);
  const uint32_t heads = config.num_heads.value_or(1);
  const uint32_t head_dim = config.inner_dim / heads;
  std::byte* out = block.data();
  for (uint32_t layer = layers.begin(); layer < layers.end(); ++layer) {
    for (uint32_t outer = 0; outer < config.outer_dim; ++outer) {
      for (uint32_t token = 0; token < config.page_size; ++token) {
        for (uint32_t inner = 0; inner < config.inner_dim; ++inner) {
          const uint64_t value = pattern(key, {.layer = layer,
                                               .outer = outer,
                                               .token = token,
                                               .head = inner / head_dim,
                                               .dim = inner % head_dim});
          std::memcpy(out, &value, config.dtype_width_bytes);
          out += config.dtype_width_bytes;
        }
      }
    }
  }
  return block;
}

[[nodiscard]] inline std::vector<std::byte> pattern_block(const LayoutConfig& config,
                                                          uint64_t key) {
  return pattern_block(config, key, config.all_layers());
}

/// Says where the first difference is: layer, outer, token and byte.
[[nodiscard]] inline ::testing::AssertionResult same_block(const LayoutConfig& config,
                                                           std::span<const std::byte> found,
                                                           std::span<const std::byte> expected) {
  if (found.size() != expected.size()) {
    return ::testing::AssertionFailure() << found.size() << " bytes instead of " << expected.size();
  }
  for (size_t i = 0; i < found.size(); ++i) {
    if (found[i] == expected[i]) continue;
    const uint64_t chunk = i / config.chunk_bytes();
    const uint64_t token_bytes = config.chunk_bytes() / config.page_size;
    return ::testing::AssertionFailure()
           << "byte " << i << " (layer " << chunk / config.outer_dim << ", outer "
           << chunk % config.outer_dim << ", token " << i % config.chunk_bytes() / token_bytes
           << ") is " << std::to_integer<int>(found[i]) << " instead of "
           << std::to_integer<int>(expected[i]);
  }
  return ::testing::AssertionSuccess();
}

}  // namespace kvbm::testing
