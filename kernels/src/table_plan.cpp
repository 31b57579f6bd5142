// SPDX-License-Identifier: Apache-2.0
#include "table_plan.hpp"

#include <algorithm>

#include "strided_plan.hpp"

namespace kvbm::kernels {
namespace {

/// 0 for a dtype that is none.
uint32_t width_of(int dtype) {
  switch (dtype) {
    case KVBM_KERNELS_F16:
    case KVBM_KERNELS_BF16:
      return 2;
    case KVBM_KERNELS_F32:
      return 4;
    case KVBM_KERNELS_F64:
      return 8;
    case KVBM_KERNELS_F8:
      return 1;
    default:
      return 0;
  }
}

}  // namespace

PermutePlan::PermutePlan(const void* universal_ptrs, const void* block_ptrs, size_t nb, size_t nh,
                         size_t nl, size_t no, size_t nt, size_t hd, int dtype, int layout,
                         bool to_universal) {
  error_ = KVBM_KERNELS_INVALID_VALUE;
  const uint32_t element = width_of(dtype);
  if (element == 0 || (layout != KVBM_KERNELS_NHD && layout != KVBM_KERNELS_HND)) return;
  if (nb == 0 || nh == 0 || nl == 0 || no == 0 || nt == 0 || hd == 0) {
    error_ = KVBM_KERNELS_SUCCESS;
    return;
  }
  if (universal_ptrs == nullptr || block_ptrs == nullptr) return;

  uint64_t bytes = element;
  for (const size_t count : {nh, nl, no, nt, hd}) {
    if (__builtin_mul_overflow(bytes, count, &bytes)) return;
  }
  uint64_t addresses = nl * no;
  if (__builtin_mul_overflow(addresses, nb, &addresses) || addresses > UINT64_MAX / 8) return;

  const bool nhd = layout == KVBM_KERNELS_NHD;
  const uint64_t run_bytes = nhd ? hd * element : nt * hd * element;
  const uint64_t bits = run_bytes | 16;
  const uint32_t width = static_cast<uint32_t>(bits & (~bits + 1));
  if (bytes / width >= kMaxCells) return;

  const uint32_t run_cells = static_cast<uint32_t>(run_bytes / width);
  const uint32_t inner_runs = nhd ? static_cast<uint32_t>(nh) : 1;
  const uint64_t head_stride = nl * no * nt * hd * element;
  const uint64_t chunk_bytes = nh * nt * hd * element;
  all_.width = width;
  all_.to_universal = to_universal;
  all_.chunk_cells = fast_divisor(static_cast<uint32_t>(chunk_bytes / width));
  all_.planes = fast_divisor(static_cast<uint32_t>(nl * no));
  all_.run_cells = fast_divisor(run_cells);
  all_.inner_runs = fast_divisor(inner_runs);
  all_.plane_stride = nt * hd * element;
  all_.inner_stride = nhd ? head_stride : 0;
  all_.outer_stride = nhd ? hd * element : head_stride;
  all_.block_step = uint64_t{kWarp} * width;
  if (width == 16 && run_cells % kChunkCells == 0) {
    all_.stepped = true;
    all_.universal_step = all_.block_step;
  } else if (width == 16 && kWarp % run_cells == 0 &&
             uint64_t{run_cells} * inner_runs % kChunkCells == 0) {
    all_.stepped = true;
    all_.universal_step = kWarp / run_cells * all_.inner_stride;
  }
  all_.universal = static_cast<void* const*>(universal_ptrs);
  all_.blocks = static_cast<void* const*>(block_ptrs);
  nb_ = nb;
  cells_of_block_ = bytes / width;
  error_ = KVBM_KERNELS_SUCCESS;
}

bool PermutePlan::next(PermuteLaunch& launch) {
  if (next_block_ == nb_) return false;
  const uint64_t blocks = std::min<uint64_t>((kMaxCells - 1) / cells_of_block_, nb_ - next_block_);
  launch = all_;
  launch.num_cells = static_cast<uint32_t>(cells_of_block_ * blocks);
  launch.universal += next_block_;
  launch.blocks += next_block_ * all_.planes.divisor;
  next_block_ += blocks;
  return true;
}

int check_vectorized_copy(const void* src_ptrs, const void* dst_ptrs, size_t bytes_per_pair,
                          int num_pairs) {
  if (num_pairs < 0) return KVBM_KERNELS_INVALID_VALUE;
  if (num_pairs == 0 || bytes_per_pair == 0) return KVBM_KERNELS_SUCCESS;
  if (src_ptrs == nullptr || dst_ptrs == nullptr) return KVBM_KERNELS_INVALID_VALUE;
  return bytes_per_pair >> 41 != 0 ? KVBM_KERNELS_INVALID_VALUE : KVBM_KERNELS_SUCCESS;
}

int check_memcpy_batch(const void* src_ptrs, const void* dst_ptrs, size_t size_per_copy,
                       size_t num_copies, int mode) {
  if (mode != KVBM_KERNELS_BATCH_WITH_FALLBACK && mode != KVBM_KERNELS_FALLBACK_ONLY &&
      mode != KVBM_KERNELS_BATCH_ONLY) {
    return KVBM_KERNELS_INVALID_VALUE;
  }
  if (size_per_copy == 0 || num_copies == 0) return KVBM_KERNELS_SUCCESS;
  return src_ptrs == nullptr || dst_ptrs == nullptr ? KVBM_KERNELS_INVALID_VALUE
                                                    : KVBM_KERNELS_SUCCESS;
}

}  // namespace kvbm::kernels
