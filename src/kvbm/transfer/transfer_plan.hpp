// SPDX-License-Identifier: Apache-2.0
// TransferPlan: how a block of one layout becomes a block of another, whatever the block ids.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kvbm/base/result.hpp"
#include "kvbm/device/strided_copy.hpp"
#include "kvbm/layout/layout_config.hpp"
#include "kvbm/layout/physical_layout.hpp"

namespace kvbm {

/// A part of every block that is contiguous on both sides, `count` times. Repetition k of the pair
/// of blocks (f, t) goes
///   from  src_offset + f * block_stride of the source's map + k * src_stride
///   to    dst_offset + t * block_stride of the destination's map + k * dst_stride,
/// offsets in the regions of the page maps.
/// Units: bytes, apart from the maps' indices and `count`.
struct PlanPiece {
  uint32_t src_map = 0;
  uint32_t dst_map = 0;
  uint64_t src_offset = 0;
  uint64_t dst_offset = 0;
  uint64_t bytes = 0;
  uint32_t count = 1;
  uint64_t src_stride = 0;  ///< 0 if count is 1
  uint64_t dst_stride = 0;  ///< 0 if count is 1

  friend bool operator==(const PlanPiece&, const PlanPiece&) = default;
};

/// At most num_layers * outer_dim pieces, fewer where both sides are contiguous or repeat. Together
/// they cover the asked bytes of a block exactly once. Ownership: a value; knows nothing of the
/// layouts' memory.
class TransferPlan {
 public:
  /// Errors: kInvalidArgument (block shapes that differ, a layer range that is empty or outside).
  [[nodiscard]] static Result<TransferPlan> create(const PhysicalLayout& src,
                                                   const PhysicalLayout& dst, LayerRange layers);

  [[nodiscard]] std::span<const PlanPiece> pieces() const noexcept { return pieces_; }
  [[nodiscard]] uint64_t bytes_per_block() const noexcept { return bytes_per_block_; }

  /// The pieces with addresses. Contract: the layouts of create(), both with addresses.
  [[nodiscard]] std::vector<StridedPiece> with_addresses(const PhysicalLayout& src,
                                                         const PhysicalLayout& dst) const;

 private:
  TransferPlan() = default;

  std::vector<PlanPiece> pieces_;
  uint64_t bytes_per_block_ = 0;
};

}  // namespace kvbm
