// SPDX-License-Identifier: Apache-2.0
// Checks and sizes of the launches that take tables of addresses: pure arithmetic, the same in
// every build.
#pragma once

#include <cstddef>
#include <cstdint>

#include <kvbm/kernels.h>

#include "host_device.hpp"

namespace kvbm::kernels {

/// Where the cells of a chunk (one block, layer and outer) are. Cells are numbered in the order of
/// the chunk's bytes; a plane is what one layer and outer have in one head of a universal block,
/// [nt, hd].
struct PermuteLaunch {
  uint32_t width = 0;  ///< bytes of a cell
  uint32_t num_cells = 0;
  bool to_universal = false;
  /// If set, the cells that a thread has in one chunk of the launch are a constant stride apart.
  bool stepped = false;
  FastDivisor chunk_cells;
  FastDivisor planes;      ///< nl * no
  FastDivisor run_cells;   ///< what is contiguous on both sides
  FastDivisor inner_runs;  ///< NHD: nh. HND: 1
  uint64_t plane_stride = 0;
  uint64_t inner_stride = 0;  ///< of universal, from run to run: NHD by head, HND not used
  uint64_t outer_stride = 0;  ///< NHD by token, HND by head
  uint64_t block_step = 0;
  uint64_t universal_step = 0;
  void* const* universal = nullptr;
  void* const* blocks = nullptr;
};

/// The arguments of both permutations, and their cutting into launches.
class PermutePlan {
 public:
  PermutePlan(const void* universal_ptrs, const void* block_ptrs, size_t nb, size_t nh, size_t nl,
              size_t no, size_t nt, size_t hd, int dtype, int layout, bool to_universal);

  /// KVBM_KERNELS_SUCCESS or KVBM_KERNELS_INVALID_VALUE.
  int check() const { return error_; }
  bool has_work() const { return cells_of_block_ > 0; }

  /// Fills in the next launch; false at the end. Requires: check() succeeded.
  bool next(PermuteLaunch& launch);

 private:
  int error_ = KVBM_KERNELS_SUCCESS;
  PermuteLaunch all_;
  size_t nb_ = 0;
  size_t next_block_ = 0;
  uint64_t cells_of_block_ = 0;
};

/// From the start of a universal block to a cell of a chunk. Requires: cell < chunk_cells.
KVBM_HOST_DEVICE uint64_t universal_offset(const PermuteLaunch& launch, uint32_t plane,
                                           uint32_t cell) {
  const Division run = divide(cell, launch.run_cells);
  const Division outer = divide(run.quotient, launch.inner_runs);
  return plane * launch.plane_stride + outer.quotient * launch.outer_stride +
         outer.remainder * launch.inner_stride + uint64_t{run.remainder} * launch.width;
}

int check_vectorized_copy(const void* src_ptrs, const void* dst_ptrs, size_t bytes_per_pair,
                          int num_pairs);
int check_memcpy_batch(const void* src_ptrs, const void* dst_ptrs, size_t size_per_copy,
                       size_t num_copies, int mode);

}  // namespace kvbm::kernels
