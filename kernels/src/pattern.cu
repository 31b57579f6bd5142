// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>

#include <algorithm>

#include "device_access.cuh"
#include "launch.cuh"
#include "pattern_plan.hpp"

namespace kvbm::kernels {
namespace {

constexpr uint32_t kThreads = 256;
constexpr uint32_t kWarp = 32;
constexpr uint32_t kWarps = kThreads / kWarp;
constexpr uint32_t kAccess = 16;
/// On each processor: as many as fit.
constexpr uint32_t kMostCtas = 8;

/// The first byte of a word that is not as expected, from the word's first on.
/// Requires: the words differ.
__device__ __forceinline__ uint32_t wrong_byte(uint64_t found, uint64_t expected) {
  return (__ffsll(static_cast<long long>(found ^ expected)) - 1) / 8;
}

__device__ __forceinline__ void tell_wrong(const PatternLaunch& launch, uint32_t block,
                                           uint32_t base, uint64_t offset) {
  atomicMin(reinterpret_cast<unsigned long long*>(launch.first_wrong + block),
            pattern_place(launch.first_piece + base, offset));
}

/// One part of a piece in one block.
struct Item {
  char* data;
  uint64_t seed;
  uint64_t begin;
  uint64_t end;
  uint32_t block;
  uint32_t base;
};

__device__ __forceinline__ Item find_item(const PatternLaunch& launch, uint32_t index) {
  const Division section = divide(index, launch.sections);
  const Division part = divide(section.quotient, launch.bases_count);
  const PatternBase base = launch.bases[part.remainder];
  const uint64_t begin = uint64_t{section.remainder} * kItemBytes;
  const uint64_t rest = launch.bytes - begin;
  return {base.data + launch.ids[part.quotient] * launch.block_stride,
          launch.seeds[part.quotient] + base.seed,
          begin,
          begin + (rest < kItemBytes ? rest : kItemBytes),
          part.quotient,
          part.remainder};
}

/// 16 bytes at a time: two words. `end` is a multiple of 16.
template <bool kFill>
__device__ __forceinline__ void do_wide(const PatternLaunch& launch, const Item& item,
                                        uint64_t end) {
  for (uint64_t at = item.begin + threadIdx.x % kWarp * kAccess; at < end; at += kWarp * kAccess) {
    const uint64_t low = pattern_word(item.seed, at / 8);
    const uint64_t high = pattern_word(item.seed, at / 8 + 1);
    if constexpr (kFill) {
      Access<16>::store(item.data + at,
                        make_uint4(static_cast<uint32_t>(low), static_cast<uint32_t>(low >> 32),
                                   static_cast<uint32_t>(high), static_cast<uint32_t>(high >> 32)));
    } else {
      const uint4 found = Access<16>::load(item.data + at);
      const uint64_t found_low = uint64_t{found.y} << 32 | found.x;
      const uint64_t found_high = uint64_t{found.w} << 32 | found.z;
      if (found_low != low) {
        tell_wrong(launch, item.block, item.base, at + wrong_byte(found_low, low));
      } else if (found_high != high) {
        tell_wrong(launch, item.block, item.base, at + 8 + wrong_byte(found_high, high));
      }
    }
  }
}

/// From `begin` on, byte by byte.
template <bool kFill>
__device__ __forceinline__ void do_narrow(const PatternLaunch& launch, const Item& item,
                                          uint64_t begin) {
  for (uint64_t at = begin + threadIdx.x % kWarp; at < item.end; at += kWarp) {
    const auto expected = static_cast<uint8_t>(pattern_word(item.seed, at / 8) >> (at % 8 * 8));
    if constexpr (kFill) {
      Access<1>::store(item.data + at, expected);
    } else if (Access<1>::load(item.data + at) != expected) {
      tell_wrong(launch, item.block, item.base, at);
    }
  }
}

template <bool kFill, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    pattern_kernel(const __grid_constant__ PatternLaunch launch) {
  const uint32_t num_warps = gridDim.x * kWarps;
  for (uint32_t index = blockIdx.x * kWarps + threadIdx.x / kWarp; index < launch.num_items;
       index += num_warps) {
    const Item item = find_item(launch, index);
    uint64_t begin = item.begin;
    if constexpr (kAligned) {
      begin = item.end / kAccess * kAccess;
      do_wide<kFill>(launch, item, begin);
    }
    do_narrow<kFill>(launch, item, begin);
  }
}

using Kernel = void (*)(PatternLaunch);

Kernel kernel_of(const PatternLaunch& launch) {
  if (launch.first_wrong == nullptr) {
    return launch.aligned ? pattern_kernel<true, true> : pattern_kernel<true, false>;
  }
  return launch.aligned ? pattern_kernel<false, true> : pattern_kernel<false, false>;
}

}  // namespace
}  // namespace kvbm::kernels

using namespace kvbm::kernels;

int kvbm_kernels_launch_pattern(const kvbm_pattern_piece* pieces, size_t num_pieces,
                                const uint32_t* ids, const uint64_t* seeds, size_t num_blocks,
                                uint64_t* first_wrong, kvbm_kernels_stream stream) {
  PatternPlan plan(pieces, num_pieces, ids, seeds, num_blocks, first_wrong);
  if (const int error = plan.check(); error != KVBM_KERNELS_SUCCESS) return error;
  if (!plan.has_work()) return KVBM_KERNELS_SUCCESS;
  uint32_t processors = 0;
  if (const int error = count_processors(processors); error != cudaSuccess) return error;
  if (first_wrong != nullptr) {
    const int error = cudaMemsetAsync(first_wrong, 0xFF, num_blocks * sizeof(uint64_t), stream);
    if (error != cudaSuccess) return error;
  }
  PatternLaunch launch;
  while (plan.next(launch)) {
    const uint32_t ctas =
        std::min(kMostCtas * processors, (launch.num_items + kWarps - 1) / kWarps);
    const int error = launch_kernel(kernel_of(launch), ctas, kThreads, launch, stream);
    if (error != cudaSuccess) return error;
  }
  return KVBM_KERNELS_SUCCESS;
}
