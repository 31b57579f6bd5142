// SPDX-License-Identifier: Apache-2.0
// LayoutConfig: the shape of the blocks of one layer group.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/ids.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/layout/kv_block_layout.hpp"

namespace kvbm {

/// Layers [first, first + count) of a layout; a layout counts its own layers from 0.
struct LayerRange {
  LayerId first{0};
  uint32_t count = 0;

  [[nodiscard]] constexpr uint32_t begin() const noexcept { return first.value(); }
  /// One more bit than `count`, so that no range wraps.
  [[nodiscard]] constexpr uint64_t end() const noexcept { return uint64_t{first.value()} + count; }
  friend constexpr bool operator==(LayerRange, LayerRange) noexcept = default;
};

/// Heads [first, first + count) of a layout whose heads are known.
struct HeadRange {
  uint32_t first = 0;
  uint32_t count = 0;

  /// One more bit than `count`, so that no range wraps.
  [[nodiscard]] constexpr uint64_t end() const noexcept { return uint64_t{first} + count; }
  friend constexpr bool operator==(HeadRange, HeadRange) noexcept = default;
};

/// A block is num_layers x outer_dim x page_size x inner_dim elements; a KvBlockLayout says in
/// which order. The chunk of (layer, outer) is the page_size x inner_dim elements of one layer's
/// keys or values; where the format is unknown it is opaque, and chunks follow each other by layer,
/// then by outer. Units: `alignment` and whatever ends in `_bytes` are bytes, `page_size` is
/// tokens.
struct LayoutConfig {
  uint32_t num_blocks = 0;
  uint32_t num_layers = 0;  ///< at most 65536, so that a LayerId can name each
  uint32_t outer_dim = 0;   ///< 2: keys and values; 1: one tensor
  uint32_t page_size = 0;   ///< tokens of a block
  uint32_t inner_dim =
      0;  ///< elements of a token in a chunk: heads x head size, if heads are known
  uint32_t dtype_width_bytes = 2;                    ///< 1, 2, 4 or 8
  std::optional<uint32_t> num_heads = std::nullopt;  ///< if set, divides inner_dim
  /// Each part of a block that is stored apart (the whole block, or its part in one layer's memory)
  /// starts at a multiple of it; strides are rounded up. A power of two.
  uint64_t alignment = 1;

  /// Everything else here requires that it succeeds.
  /// Errors: kInvalidArgument, naming the field; also where num_blocks aligned blocks would take
  /// 2^63 bytes and more.
  [[nodiscard]] Status validate() const;

  [[nodiscard]] uint64_t chunk_bytes() const noexcept {
    return uint64_t{page_size} * inner_dim * dtype_width_bytes;
  }
  [[nodiscard]] uint64_t layer_bytes() const noexcept { return chunk_bytes() * outer_dim; }
  /// The payload of a block, without padding.
  [[nodiscard]] uint64_t block_bytes() const noexcept { return layer_bytes() * num_layers; }

  /// hd elements, the bytes that are contiguous in every format. Contract: num_heads is set.
  [[nodiscard]] uint64_t head_bytes() const {
    KVBM_CONTRACT(num_heads.has_value(), "the heads of the layout are not known");
    return uint64_t{inner_dim / *num_heads} * dtype_width_bytes;
  }

  [[nodiscard]] LayerRange all_layers() const noexcept { return {LayerId{0}, num_layers}; }
  /// One head, if heads are not known.
  [[nodiscard]] HeadRange all_heads() const noexcept { return {0, num_heads.value_or(1)}; }

  friend bool operator==(const LayoutConfig&, const LayoutConfig&) = default;
};

/// Whether a block of one can be copied to a block of the other byte by byte: all that describes a
/// block is equal (num_heads: unless unknown to one of them). Says nothing about num_blocks and
/// alignment. Errors: kInvalidArgument, with each field that differs and both values.
[[nodiscard]] Status check_same_block_shape(const LayoutConfig& src, const LayoutConfig& dst);

/// Errors: kInvalidArgument, unless `range` has a layer and lies inside the config's layers.
[[nodiscard]] Status check_layer_range(const LayoutConfig& config, LayerRange range);

/// Errors: kInvalidArgument, unless the heads are known and `range` has one and lies inside them.
[[nodiscard]] Status check_head_range(const LayoutConfig& config, HeadRange range);

/// Errors: kInvalidArgument (a known format of a config without num_heads).
[[nodiscard]] Status check_kv_block_layout(const LayoutConfig& config, const KvBlockLayout& format);

/// A model: its layer groups and the shape of each.
struct ModelLayout {
  struct Group {
    GroupId id{0};
    LayoutConfig config;
    friend bool operator==(const Group&, const Group&) = default;
  };
  std::vector<Group> groups;

  /// Errors: kInvalidArgument (no group, a group named twice, a config that is not valid).
  [[nodiscard]] Status validate() const;
  /// Null if there is no such group.
  [[nodiscard]] const LayoutConfig* find(GroupId group) const noexcept;
  friend bool operator==(const ModelLayout&, const ModelLayout&) = default;
};

namespace internal {
/// Arithmetic that knows when it leaves 64 bits.
[[nodiscard]] std::optional<uint64_t> checked_add(uint64_t a, uint64_t b) noexcept;
[[nodiscard]] std::optional<uint64_t> checked_mul(uint64_t a, uint64_t b) noexcept;
/// The next multiple of `alignment`, a power of two.
[[nodiscard]] std::optional<uint64_t> checked_round_up(uint64_t value, uint64_t alignment) noexcept;
}  // namespace internal

}  // namespace kvbm
