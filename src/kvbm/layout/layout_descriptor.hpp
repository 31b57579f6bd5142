// SPDX-License-Identifier: Apache-2.0
// LayoutDescriptor: what another process has to know of a PhysicalLayout to address its bytes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kvbm/base/result.hpp"
#include "kvbm/layout/kv_block_layout.hpp"
#include "kvbm/layout/layout_config.hpp"
#include "kvbm/layout/page_map.hpp"
#include "kvbm/layout/physical_layout.hpp"
#include "kvbm/layout/slot_format.hpp"
#include "kvbm/memory/memory_region.hpp"

namespace kvbm {

/// A PageMap without its memory. Its counts are the config's: num_blocks, outer_dim, and heads and
/// tokens where the format is known, else one opaque chunk. Units: bytes.
struct PageMapDescriptor {
  uint64_t address = 0;  ///< of the region in its process; in a file: an offset
  uint64_t size_bytes = 0;
  uint64_t base_offset = 0;  ///< of the first run in the region
  uint64_t block_stride = 0;
  LayerRange layers = {};
  BlockStrides strides = {};

  friend bool operator==(const PageMapDescriptor&, const PageMapDescriptor&) = default;
};

/// Strides and counts alone: its size depends on the number of page maps, not on that of blocks.
/// Threads: a value.
struct LayoutDescriptor {
  LayoutConfig config = {};
  LayoutKind kind = LayoutKind::kFullyContiguous;
  KvBlockLayout format = {};
  StorageKind storage = StorageKind::kSystem;  ///< to the process that has the memory
  RegistrationMetadata registration = {};
  std::optional<SlotGeometry> slots = std::nullopt;  ///< set if the kind is kFileSlots
  std::vector<PageMapDescriptor> page_maps = {};

  [[nodiscard]] static LayoutDescriptor of(const PhysicalLayout& layout);

  /// Whether a layout can be like this: the same checks that made it, and so the same time.
  /// Errors: kInvalidArgument (those of the layout's kind; strides or slots that are not those of
  /// kind, config and format; a region without address or that ends beyond 2^60; a memory type that
  /// is not the storage's), kUnsupported (see PageMap; too many interleaved maps).
  [[nodiscard]] Status validate() const;

  /// The layout as one of another worker, to plan with: its regions are remote, so that no copy of
  /// this process takes it. `agent_name` is the agent that reaches the memory.
  /// Errors: those of validate(), kUnsupported (slots of a file).
  [[nodiscard]] Result<PhysicalLayout> as_remote(const std::string& agent_name) const;

  friend bool operator==(const LayoutDescriptor&, const LayoutDescriptor&) = default;
};

}  // namespace kvbm
