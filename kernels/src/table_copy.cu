// SPDX-License-Identifier: Apache-2.0
// The launches that take tables of addresses: permutations and the vectorized copy.
#include <cuda_runtime.h>

#include <algorithm>

#include "device_access.cuh"
#include "launch.cuh"
#include "strided_plan.hpp"
#include "table_plan.hpp"

namespace kvbm::kernels {
namespace {

constexpr uint32_t kThreads = 512;
constexpr uint32_t kWarps = kThreads / kWarp;
/// Bytes that a warp copies of a pair at a time: two chunks.
constexpr uint32_t kPieceBytes = 2 * kChunkCells * 16;

struct Cell {
  const char* src;
  char* dst;
};

template <bool kToUniversal>
__device__ __forceinline__ Cell find_cell(const PermuteLaunch& launch, uint32_t cell) {
  const Division chunk = divide(cell, launch.chunk_cells);
  const Division block = divide(chunk.quotient, launch.planes);
  char* in_universal = static_cast<char*>(launch.universal[block.quotient]) +
                       universal_offset(launch, block.remainder, chunk.remainder);
  char* in_chunk =
      static_cast<char*>(launch.blocks[chunk.quotient]) + uint64_t{chunk.remainder} * launch.width;
  return kToUniversal ? Cell{in_chunk, in_universal} : Cell{in_universal, in_chunk};
}

template <uint32_t kWidth>
__device__ __forceinline__ bool is_aligned(const Cell& cell) {
  return ((reinterpret_cast<uintptr_t>(cell.src) | reinterpret_cast<uintptr_t>(cell.dst)) &
          (kWidth - 1)) == 0;
}

/// For addresses that a table has and nobody could look at before: byte by byte.
template <uint32_t kWidth>
__device__ __forceinline__ void copy_bytes(const Cell& cell) {
#pragma unroll 1
  for (uint32_t i = 0; i < kWidth; ++i) cell.dst[i] = cell.src[i];
}

/// Two chunks of which the cells of a thread are a constant stride apart.
template <uint32_t kWidth, bool kToUniversal>
__device__ __forceinline__ void permute_stepped(const PermuteLaunch& launch, uint32_t first_cell) {
  const uint64_t src_step = kToUniversal ? launch.block_step : launch.universal_step;
  const uint64_t dst_step = kToUniversal ? launch.universal_step : launch.block_step;
  Cell first[2];
  bool aligned[2] = {};
  typename Access<kWidth>::Value values[2][kCellsPerThread];
#pragma unroll
  for (uint32_t j = 0; j < 2; ++j) {
    const uint32_t cell = first_cell + j * kChunkCells;
    if (cell >= launch.num_cells) break;
    first[j] = find_cell<kToUniversal>(launch, cell);
    aligned[j] = is_aligned<kWidth>(first[j]);
    if (!aligned[j]) continue;
#pragma unroll
    for (uint32_t i = 0; i < kCellsPerThread; ++i) {
      values[j][i] = Access<kWidth>::load(first[j].src + i * src_step);
    }
  }
#pragma unroll
  for (uint32_t j = 0; j < 2; ++j) {
    if (first_cell + j * kChunkCells >= launch.num_cells) break;
#pragma unroll
    for (uint32_t i = 0; i < kCellsPerThread; ++i) {
      if (aligned[j]) {
        Access<kWidth>::store(first[j].dst + i * dst_step, values[j][i]);
      } else {
        copy_bytes<kWidth>({first[j].src + i * src_step, first[j].dst + i * dst_step});
      }
    }
  }
}

template <uint32_t kWidth, bool kToUniversal>
__device__ __forceinline__ void permute_any(const PermuteLaunch& launch, uint32_t first_cell) {
  Cell cells[kCellsPerThread];
  bool aligned[kCellsPerThread] = {};
  typename Access<kWidth>::Value values[kCellsPerThread];
#pragma unroll
  for (uint32_t i = 0; i < kCellsPerThread; ++i) {
    if (first_cell + i * kWarp < launch.num_cells) {
      cells[i] = find_cell<kToUniversal>(launch, first_cell + i * kWarp);
      aligned[i] = is_aligned<kWidth>(cells[i]);
      if (aligned[i]) values[i] = Access<kWidth>::load(cells[i].src);
    }
  }
#pragma unroll
  for (uint32_t i = 0; i < kCellsPerThread; ++i) {
    if (aligned[i]) {
      Access<kWidth>::store(cells[i].dst, values[i]);
    } else if (first_cell + i * kWarp < launch.num_cells) {
      copy_bytes<kWidth>(cells[i]);
    }
  }
}

template <uint32_t kWidth, bool kStepped, bool kToUniversal>
__global__ void __launch_bounds__(kThreads, 2)
    permute_kernel(const __grid_constant__ PermuteLaunch launch) {
  constexpr uint32_t kTurn = kStepped ? 2 * kChunkCells : kChunkCells;
  const uint32_t num_turns = (launch.num_cells + kTurn - 1) / kTurn;
  for (uint32_t turn = blockIdx.x * kWarps + threadIdx.x / kWarp; turn < num_turns;
       turn += gridDim.x * kWarps) {
    const uint32_t first_cell = turn * kTurn + threadIdx.x % kWarp;
    if constexpr (kStepped) {
      permute_stepped<kWidth, kToUniversal>(launch, first_cell);
    } else {
      permute_any<kWidth, kToUniversal>(launch, first_cell);
    }
  }
}

/// A warp copies `bytes` (at most kPieceBytes), of which addresses and size are multiples of
/// kWidth.
template <uint32_t kWidth, uint32_t kInFlight>
__device__ __forceinline__ void copy_piece(const char* src, char* dst, uint32_t bytes) {
  using Value = typename Access<kWidth>::Value;
  for (uint32_t begin = threadIdx.x % kWarp * kWidth; begin < bytes;
       begin += kInFlight * kWarp * kWidth) {
    Value values[kInFlight];
#pragma unroll
    for (uint32_t i = 0; i < kInFlight; ++i) {
      const uint32_t at = begin + i * kWarp * kWidth;
      if (at < bytes) values[i] = Access<kWidth>::load(src + at);
    }
#pragma unroll
    for (uint32_t i = 0; i < kInFlight; ++i) {
      const uint32_t at = begin + i * kWarp * kWidth;
      if (at < bytes) Access<kWidth>::store(dst + at, values[i]);
    }
  }
}

__global__ void __launch_bounds__(kThreads, 2)
    vectorized_kernel(void* const* srcs, void* const* dsts, uint64_t bytes_per_pair,
                      FastDivisor pieces_per_pair, uint32_t num_pieces) {
  for (uint32_t number = blockIdx.x * kWarps + threadIdx.x / kWarp; number < num_pieces;
       number += gridDim.x * kWarps) {
    const Division pair = divide(number, pieces_per_pair);
    const uint64_t begin = uint64_t{pair.remainder} * kPieceBytes;
    const char* src = static_cast<const char*>(srcs[pair.quotient]) + begin;
    char* dst = static_cast<char*>(dsts[pair.quotient]) + begin;
    const uint32_t bytes =
        static_cast<uint32_t>(min(bytes_per_pair - begin, uint64_t{kPieceBytes}));
    // The addresses choose the width; what the width leaves over at the end goes byte by byte.
    const uint64_t bits = reinterpret_cast<uintptr_t>(src) | reinterpret_cast<uintptr_t>(dst) | 16;
    const uint32_t width = static_cast<uint32_t>(bits & (~bits + 1));
    const uint32_t main = bytes & ~(width - 1);
    switch (width) {
      case 16:
        copy_piece<16, 2 * kCellsPerThread>(src, dst, main);
        break;
      case 8:
        copy_piece<8, 2>(src, dst, main);
        break;
      case 4:
        copy_piece<4, 2>(src, dst, main);
        break;
      case 2:
        copy_piece<2, 2>(src, dst, main);
        break;
      default:
        copy_piece<1, 2>(src, dst, main);
    }
    copy_piece<1, 2>(src + main, dst + main, bytes - main);
  }
}

/// CTAs that fill the device, but not more than there is work for.
int choose_ctas(uint32_t warps, uint32_t& ctas) {
  uint32_t processors = 0;
  const int error = count_processors(processors);
  ctas = std::min(4 * processors, (warps + kWarps - 1) / kWarps);
  return error;
}

using PermuteKernel = void (*)(PermuteLaunch);

template <bool kToUniversal>
PermuteKernel permute_kernel_of(uint32_t width, bool stepped) {
  switch (width) {
    case 16:
      return stepped ? permute_kernel<16, true, kToUniversal>
                     : permute_kernel<16, false, kToUniversal>;
    case 8:
      return permute_kernel<8, false, kToUniversal>;
    case 4:
      return permute_kernel<4, false, kToUniversal>;
    case 2:
      return permute_kernel<2, false, kToUniversal>;
    default:
      return permute_kernel<1, false, kToUniversal>;
  }
}

int permute(PermutePlan plan, cudaStream_t stream) {
  if (plan.check() != KVBM_KERNELS_SUCCESS) return plan.check();
  PermuteLaunch launch;
  while (plan.next(launch)) {
    uint32_t ctas = 0;
    const uint32_t chunks = (launch.num_cells + kChunkCells - 1) / kChunkCells;
    if (const int error = choose_ctas(chunks, ctas); error != cudaSuccess) return error;
    const PermuteKernel kernel = launch.to_universal
                                     ? permute_kernel_of<true>(launch.width, launch.stepped)
                                     : permute_kernel_of<false>(launch.width, launch.stepped);
    if (const int error = launch_kernel(kernel, ctas, kThreads, launch, stream);
        error != cudaSuccess) {
      return error;
    }
  }
  return KVBM_KERNELS_SUCCESS;
}

}  // namespace
}  // namespace kvbm::kernels

using namespace kvbm::kernels;

int kvbm_kernels_launch_universal_from_block(void* const* universal_ptrs,
                                             const void* const* block_ptrs, size_t nb, size_t nh,
                                             size_t nl, size_t no, size_t nt, size_t hd, int dtype,
                                             int layout, kvbm_kernels_stream stream) {
  return permute({universal_ptrs, block_ptrs, nb, nh, nl, no, nt, hd, dtype, layout, true}, stream);
}

int kvbm_kernels_launch_block_from_universal(const void* const* universal_ptrs,
                                             void* const* block_ptrs, size_t nb, size_t nh,
                                             size_t nl, size_t no, size_t nt, size_t hd, int dtype,
                                             int layout, kvbm_kernels_stream stream) {
  return permute({universal_ptrs, block_ptrs, nb, nh, nl, no, nt, hd, dtype, layout, false},
                 stream);
}

int kvbm_kernels_launch_vectorized_copy(void** src_ptrs, void** dst_ptrs, size_t bytes_per_pair,
                                        int num_pairs, kvbm_kernels_stream stream) {
  if (const int error = check_vectorized_copy(src_ptrs, dst_ptrs, bytes_per_pair, num_pairs);
      error != KVBM_KERNELS_SUCCESS) {
    return error;
  }
  if (num_pairs == 0 || bytes_per_pair == 0) return KVBM_KERNELS_SUCCESS;
  const uint64_t per_pair = (bytes_per_pair + kPieceBytes - 1) / kPieceBytes;
  const int most = static_cast<int>((kMaxCells - 1) / per_pair);
  for (int begin = 0; begin < num_pairs;) {
    const int pairs = std::min(most, num_pairs - begin);
    const uint32_t num_pieces = static_cast<uint32_t>(per_pair) * static_cast<uint32_t>(pairs);
    uint32_t ctas = 0;
    if (const int error = choose_ctas(num_pieces, ctas); error != cudaSuccess) return error;
    vectorized_kernel<<<ctas, kThreads, 0, stream>>>(
        src_ptrs + begin, dst_ptrs + begin, bytes_per_pair,
        fast_divisor(static_cast<uint32_t>(per_pair)), num_pieces);
    if (const int error = cudaGetLastError(); error != cudaSuccess) return error;
    begin += pairs;
  }
  return KVBM_KERNELS_SUCCESS;
}
