// SPDX-License-Identifier: Apache-2.0
// Layout metadata to test with: addresses that nobody reads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kvbm/base/bytes.hpp"
#include "kvbm/base/hash.hpp"
#include "kvbm/transfer/serialized_layout.hpp"

namespace kvbm::testing {

/// A region that only exists as a number.
[[nodiscard]] inline MemoryRegion region_at(uint64_t address, uint64_t size_bytes,
                                            StorageKind storage = StorageKind::kDevice) {
  return MemoryRegion::of_bytes(
      storage,
      reinterpret_cast<std::byte*>(address),  // NOLINT(performance-no-int-to-ptr)
      size_bytes);
}

/// Worker 7: G1 with its layers apart, a contiguous G2 of a custom format, a file, and a G1 of a
/// second group whose chunks are opaque.
[[nodiscard]] inline LayoutMetadata sample_metadata() {
  const LayoutConfig config{.num_blocks = 10,
                            .num_layers = 2,
                            .outer_dim = 2,
                            .page_size = 4,
                            .inner_dim = 16,
                            .dtype_width_bytes = 2,
                            .num_heads = 4};
  LayoutConfig latent = config;
  latent.outer_dim = 1;
  latent.num_heads = std::nullopt;
  latent.alignment = 64;
  const std::vector<MemoryRegion> layers{region_at(0x9000, 2560), region_at(0x1000, 2560)};
  const auto custom = KvBlockLayout::custom(
      {BlockAxis::kPage, BlockAxis::kLayer, BlockAxis::kOuter, BlockAxis::kHead});
  LayoutMetadata metadata{.worker = {WorkerId{7}, "worker-7"},
                          .agent_metadata = {std::byte{1}, std::byte{2}, std::byte{3}}};
  const auto add = [&](LogicalLayoutHandle tier, GroupId group, const PhysicalLayout& layout) {
    const auto id = static_cast<uint16_t>(metadata.layouts.size());
    metadata.layouts.push_back({.handle = {WorkerId{7}, id},
                                .tier = tier,
                                .group = group,
                                .layout = LayoutDescriptor::of(layout)});
  };
  add(LogicalLayoutHandle::kG1, GroupId{0},
      PhysicalLayout::layer_separate(config, BlockDimension::kBlockIsFirst, layers,
                                     KvBlockLayout::kOperationalNHD)
          .value());
  add(LogicalLayoutHandle::kG2, GroupId{0},
      PhysicalLayout::fully_contiguous(config, region_at(0x20000, 5120, StorageKind::kPinned),
                                       custom.value())
          .value());
  add(LogicalLayoutHandle::kG3, GroupId{0},
      PhysicalLayout::file_slots(config, MemoryRegion::of_file({.fd = 5}, 4096, 10 * 4096))
          .value());
  add(LogicalLayoutHandle::kG1, GroupId{1},
      PhysicalLayout::fully_contiguous(latent, region_at(0x30000, 2560)).value());
  metadata.layouts[0].layout.registration.agent_name = "worker-7";
  metadata.layouts[0].layout.registration.device_id = 3;
  return metadata;
}

/// The same bytes with the length and the checksum that they should have, so that the body is
/// looked at.
[[nodiscard]] inline std::vector<std::byte> resealed_metadata(std::span<const std::byte> bytes) {
  ByteWriter out;
  out.bytes(bytes);
  out.patch_u32(14, static_cast<uint32_t>(bytes.size() - 18));
  out.patch_u64(4, checksum(out.view().subspan(12)));
  return std::move(out).take();
}

}  // namespace kvbm::testing
