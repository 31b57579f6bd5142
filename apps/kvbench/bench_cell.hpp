// SPDX-License-Identifier: Apache-2.0
// What kvbench measures: patterns, directions, backends, and the sizes of a cell of its grid.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "kvbm/layout/kv_block_layout.hpp"
#include "kvbm/layout/layout_config.hpp"
#include "kvbm/layout/physical_layout.hpp"

namespace kvbm {

/// From where to where; fc: blocks one after another in one region; lw: a region a layer.
enum class CopyPattern : uint8_t {
  kFcToFc,
  kLwToFc,
  kFcToLw,
  kNhdToUniversal,  ///< lw in NHD to fc in UniversalTP
  kUniversalToNhd,  ///< and back
};

enum class CopyDirection : uint8_t { kH2d, kD2h, kD2d };

enum class CopyBackend : uint8_t {
  kVectorized,   ///< kernels by tables of addresses
  kBatched,      ///< cudaMemcpyBatchAsync
  kMemcpyAsync,  ///< cudaMemcpyAsync, one by one
  kAuto,         ///< what the planner chooses
  kTransferMgr,  ///< TransferManager, from the call to the end of the wait
};

inline constexpr CopyPattern kCopyPatterns[] = {CopyPattern::kFcToFc, CopyPattern::kLwToFc,
                                                CopyPattern::kFcToLw, CopyPattern::kNhdToUniversal,
                                                CopyPattern::kUniversalToNhd};
inline constexpr CopyDirection kCopyDirections[] = {CopyDirection::kH2d, CopyDirection::kD2h,
                                                    CopyDirection::kD2d};
inline constexpr CopyBackend kCopyBackends[] = {CopyBackend::kVectorized, CopyBackend::kBatched,
                                                CopyBackend::kMemcpyAsync, CopyBackend::kAuto,
                                                CopyBackend::kTransferMgr};

/// "fc_to_fc" … "universal_to_nhd"; "h2d" …; "vectorized" … "transfer_mgr".
[[nodiscard]] std::string_view to_string(CopyPattern pattern) noexcept;
[[nodiscard]] std::string_view to_string(CopyDirection direction) noexcept;
[[nodiscard]] std::string_view to_string(CopyBackend backend) noexcept;

/// Whether it is one of the calls that the planner chooses among.
[[nodiscard]] constexpr bool is_fixed(CopyBackend backend) noexcept {
  return backend != CopyBackend::kAuto && backend != CopyBackend::kTransferMgr;
}

/// A block without its tokens. Default: Llama 3.1 70B in bf16.
struct BenchShape {
  uint32_t layers = 80;
  uint32_t kv_heads = 8;
  uint32_t head_dim = 128;
  uint32_t outer_dim = 2;
  uint32_t dtype_width_bytes = 2;

  [[nodiscard]] LayoutConfig config(uint32_t tokens_per_block, uint32_t num_blocks) const noexcept;
  friend bool operator==(const BenchShape&, const BenchShape&) = default;
};

/// One side of a cell.
struct BenchSide {
  LayoutKind kind = LayoutKind::kFullyContiguous;  ///< or kLayerSeparateBlockSecond
  KvBlockLayout format = KvBlockLayout::kOperationalNHD;
  bool on_device = false;
};

struct BenchCell {
  uint32_t tokens_per_block = 16;
  uint32_t num_blocks = 1;
  CopyPattern pattern = CopyPattern::kFcToFc;
  CopyDirection direction = CopyDirection::kH2d;

  [[nodiscard]] BenchSide source() const noexcept;
  [[nodiscard]] BenchSide destination() const noexcept;
  [[nodiscard]] bool permutes() const noexcept;
  friend bool operator==(const BenchCell&, const BenchCell&) = default;
};

/// Units: bytes.
struct CellSizes {
  uint64_t total = 0;
  uint64_t inner = 0;  ///< one layer's keys or values in a block
  uint64_t block = 0;
  uint64_t copy = 0;  ///< what is contiguous on both sides, whatever the order of the blocks
  uint64_t num_copies = 0;
};

[[nodiscard]] CellSizes sizes_of(const BenchShape& shape, const BenchCell& cell) noexcept;

}  // namespace kvbm
