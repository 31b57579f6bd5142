// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>

#include <algorithm>

#include "checksum_plan.hpp"
#include "device_access.cuh"
#include "launch.cuh"

namespace kvbm::kernels {
namespace {

constexpr uint32_t kWarp = 32;
constexpr uint32_t kReaders = 8;                       // warps
constexpr uint32_t kThreads = (kReaders + 1) * kWarp;  // one more warp mixes
constexpr uint32_t kUnitsOfWarp = 8;
constexpr uint32_t kTileUnits = kReaders * kUnitsOfWarp;
constexpr uint32_t kAccess = 16;
/// On each processor: two hide what one waits for.
constexpr uint32_t kMostCtas = 2;

__device__ __forceinline__ uint64_t low(const uint4& words) {
  return uint64_t{words.y} << 32 | words.x;
}
__device__ __forceinline__ uint64_t high(const uint4& words) {
  return uint64_t{words.w} << 32 | words.z;
}

/// What the two accesses of a thread add: to the sums of lanes 2p and 2p + 1, p the last two bits
/// of the thread.
struct Keys {
  uint64_t even[2];
  uint64_t odd[2];
};

__device__ __forceinline__ Keys keys_of(const ChecksumSecret& secret, uint32_t thread,
                                        bool of_last_unit) {
  const uint32_t lane = thread % 4 * 2;
  const uint32_t stripe = thread / 4;
  Keys keys = {{secret.words[stripe + lane], secret.words[stripe + 8 + lane]},
               {secret.words[stripe + lane + 1], secret.words[stripe + 8 + lane + 1]}};
  if (of_last_unit && stripe + 8 == kStripes - 1) {
    keys.even[1] = secret.last[lane];
    keys.odd[1] = secret.last[lane + 1];
  }
  return keys;
}

/// Where a unit of a block is. `piece` only goes up.
__device__ __forceinline__ const char* find_unit(const ChecksumLaunch& launch, uint32_t id,
                                                 uint32_t unit, uint32_t& piece) {
  while (unit >= launch.pieces[piece].end_unit) ++piece;
  const ChecksumPiece& of = launch.pieces[piece];
  const uint32_t within = unit - (piece == 0 ? 0 : launch.pieces[piece - 1].end_unit);
  return of.data + id * of.block_stride + within / of.run_units * of.stride +
         uint64_t{within % of.run_units} * kUnitBytes;
}

/// The sums of up to kUnitsOfWarp units, by one warp.
__device__ __forceinline__ void read_units(const ChecksumLaunch& launch, uint32_t id,
                                           uint32_t first, uint32_t end, uint32_t& piece,
                                           uint64_t (*sums)[kLanes]) {
  const uint32_t thread = threadIdx.x % kWarp;
  const Keys plain = keys_of(launch.secret, thread, false);
  const Keys last = keys_of(launch.secret, thread, true);
  uint4 words[kUnitsOfWarp][2];
#pragma unroll
  for (uint32_t i = 0; i < kUnitsOfWarp; ++i) {
    if (first + i >= end) break;
    const char* const unit = find_unit(launch, id, first + i, piece) + thread * kAccess;
    words[i][0] = Access<16>::load(unit);
    words[i][1] = Access<16>::load(unit + kWarp * kAccess);
  }
#pragma unroll
  for (uint32_t i = 0; i < kUnitsOfWarp; ++i) {
    if (first + i >= end) break;
    const bool of_last = launch.is_last && first + i + 1 == launch.num_units();
    const Keys& keys = of_last ? last : plain;
    uint64_t even = 0;
    uint64_t odd = 0;
#pragma unroll
    for (uint32_t k = 0; k < 2; ++k) {
      even += product(low(words[i][k]), keys.even[k]) + high(words[i][k]);
      odd += product(high(words[i][k]), keys.odd[k]) + low(words[i][k]);
    }
#pragma unroll
    for (uint32_t distance = 4; distance < kWarp; distance *= 2) {
      even += __shfl_xor_sync(0xFFFFFFFF, even, distance);
      odd += __shfl_xor_sync(0xFFFFFFFF, odd, distance);
    }
    if (thread < 4) {
      sums[i][2 * thread] = even;
      sums[i][2 * thread + 1] = odd;
    }
  }
}

/// A block at a time for each thread block: eight warps read a tile while the ninth mixes the one
/// before.
__global__ void __launch_bounds__(kThreads)
    checksum_kernel(const __grid_constant__ ChecksumLaunch launch) {
  __shared__ uint64_t tiles[2][kTileUnits][kLanes];
  const uint32_t warp = threadIdx.x / kWarp;
  const uint32_t lane = threadIdx.x % kWarp;
  const uint32_t num_units = launch.num_units();
  const uint32_t num_tiles = (num_units + kTileUnits - 1) / kTileUnits;
  for (uint32_t block = blockIdx.x; block < launch.num_blocks; block += gridDim.x) {
    const uint32_t id = launch.ids[block];
    uint64_t* const state = launch.sums + uint64_t{block} * kLanes;
    uint64_t sum = 0;
    if (warp == kReaders && lane < kLanes) sum = launch.is_first ? initial_sum(lane) : state[lane];
    uint32_t piece = 0;
    for (uint32_t tile = 0; tile <= num_tiles; ++tile) {
      if (warp < kReaders && tile < num_tiles) {
        const uint32_t first = tile * kTileUnits + warp * kUnitsOfWarp;
        if (first < num_units) {
          read_units(launch, id, first, num_units, piece, &tiles[tile % 2][warp * kUnitsOfWarp]);
        }
      } else if (warp == kReaders && tile > 0 && lane < kLanes) {
        const uint32_t first = (tile - 1) * kTileUnits;
        const uint32_t end = num_units - first < kTileUnits ? num_units - first : kTileUnits;
        const uint64_t key = launch.secret.words[16 + lane];
        for (uint32_t unit = 0; unit < end; ++unit) {
          sum += tiles[(tile - 1) % 2][unit][lane];
          const bool of_last = launch.is_last && first + unit + 1 == num_units;
          if (!of_last) sum = scramble(sum, key);
        }
      }
      __syncthreads();
    }
    if (warp != kReaders) continue;
    if (launch.is_last) {
      uint64_t sums[kLanes];
#pragma unroll
      for (uint32_t i = 0; i < kLanes; ++i) sums[i] = __shfl_sync(0xFFFFFFFF, sum, i);
      if (lane == 0) *state = merged(sums, launch.secret.merge, launch.block_bytes);
    } else if (lane < kLanes) {
      state[lane] = sum;
    }
  }
}

}  // namespace
}  // namespace kvbm::kernels

using namespace kvbm::kernels;

int kvbm_kernels_launch_checksum(const kvbm_checksum_piece* pieces, size_t num_pieces,
                                 const uint32_t* ids, size_t num_blocks, uint64_t seed,
                                 uint64_t* sums, kvbm_kernels_stream stream) {
  ChecksumPlan plan(pieces, num_pieces, ids, num_blocks, seed, sums);
  if (const int error = plan.check(); error != KVBM_KERNELS_SUCCESS) return error;
  if (!plan.has_work()) return KVBM_KERNELS_SUCCESS;
  uint32_t processors = 0;
  if (const int error = count_processors(processors); error != cudaSuccess) return error;
  ChecksumLaunch launch;
  while (plan.next(launch)) {
    const uint32_t ctas = std::min(kMostCtas * processors, launch.num_blocks);
    const int error = launch_kernel(checksum_kernel, ctas, kThreads, launch, stream);
    if (error != cudaSuccess) return error;
  }
  return KVBM_KERNELS_SUCCESS;
}
