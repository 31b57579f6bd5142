// SPDX-License-Identifier: Apache-2.0
// TransferPlan: how a block of one layout becomes a block of another, whatever the block ids.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kvbm/base/result.hpp"
#include "kvbm/device/strided_copy.hpp"
#include "kvbm/layout/layout_config.hpp"
#include "kvbm/layout/layout_view.hpp"
#include "kvbm/layout/physical_layout.hpp"
#include "kvbm/transfer/remote_agent.hpp"

namespace kvbm {

/// A part of every block, as a StridedPiece has it, with offsets in the regions of page maps
/// instead of addresses: from src_offset + f * block_stride of the source's map, to dst_offset + t
/// * block_stride of the destination's.
/// Units: bytes, apart from the maps' indices.
struct PlanPiece {
  uint32_t src_map = 0;
  uint32_t dst_map = 0;
  uint64_t src_offset = 0;
  uint64_t dst_offset = 0;
  uint64_t bytes = 0;
  StridedAxes axes = {};  ///< folded; the last has the smallest steps in the destination

  friend bool operator==(const PlanPiece&, const PlanPiece&) = default;
};

/// One piece for each pair of page maps that have layers in common, at most one a layer. Together
/// they cover the asked bytes of a block exactly once. Formats, slices of layers and slices of
/// heads are the same to a plan: counts, bases and strides.
/// Ownership: a value; knows nothing of the layouts' memory.
class TransferPlan {
 public:
  /// Layer i of the source's view becomes layer i of the destination's, and so do heads.
  /// Errors: kInvalidArgument (views whose counts differ, with each that does; bytes of a token's
  /// head that differ), kUnsupported (the format of one side is known, that of the other is not,
  /// and a chunk has an order: several heads or tokens).
  [[nodiscard]] static Result<TransferPlan> create(const LayoutView& src, const LayoutView& dst);
  /// The same layers of both. Errors: as above, and a layer range that is empty or outside.
  [[nodiscard]] static Result<TransferPlan> create(const LayoutView& src, const LayoutView& dst,
                                                   LayerRange layers);

  [[nodiscard]] std::span<const PlanPiece> pieces() const noexcept { return pieces_; }
  [[nodiscard]] uint64_t bytes_per_block() const noexcept { return bytes_per_block_; }

  /// The pieces with addresses. Contract: the layouts of create(), both with addresses.
  [[nodiscard]] std::vector<StridedPiece> with_addresses(const PhysicalLayout& src,
                                                         const PhysicalLayout& dst) const;
  /// The same where one of them is of another worker. Contract: the layouts of create(), exactly
  /// one of them remote.
  [[nodiscard]] std::vector<RemotePiece> with_remote_addresses(const PhysicalLayout& src,
                                                               const PhysicalLayout& dst) const;

 private:
  TransferPlan() = default;

  std::vector<PlanPiece> pieces_;
  uint64_t bytes_per_block_ = 0;
};

}  // namespace kvbm
