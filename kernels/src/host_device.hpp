// SPDX-License-Identifier: Apache-2.0
// What is computed the same way on the host and on the device.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define KVBM_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define KVBM_HOST_DEVICE inline
#endif

namespace kvbm::kernels {

/// Division of numbers below 2^31 by a number that is known at the launch, as a multiplication and
/// a shift. Source: T. Granlund, P. Montgomery, "Division by Invariant Integers using
/// Multiplication", 1994.
struct FastDivisor {
  uint32_t divisor = 1;
  uint32_t multiplier = 1;
  uint32_t shift = 0;
};

struct Division {
  uint32_t quotient;
  uint32_t remainder;
};

/// Requires: 1 <= divisor < 2^31.
inline FastDivisor fast_divisor(uint32_t divisor) {
  uint32_t shift = 0;
  while ((uint64_t{1} << shift) < divisor) ++shift;
  const uint64_t above = (uint64_t{1} << shift) - divisor;
  return {divisor, static_cast<uint32_t>((above << 32) / divisor + 1), shift};
}

/// Requires: number < 2^31.
KVBM_HOST_DEVICE Division divide(uint32_t number, const FastDivisor& by) {
#ifdef __CUDA_ARCH__
  const uint32_t high = __umulhi(number, by.multiplier);
#else
  const uint32_t high = static_cast<uint32_t>((uint64_t{number} * by.multiplier) >> 32);
#endif
  const uint32_t quotient = (high + number) >> by.shift;
  return {quotient, number - quotient * by.divisor};
}

/// What word `index` of a stream adds to its digest; kernels.h has the definition.
KVBM_HOST_DEVICE uint64_t digest_term(uint64_t word, uint32_t index) {
  const uint32_t low = static_cast<uint32_t>(word);
  const uint32_t high = static_cast<uint32_t>(word >> 32);
  const uint32_t a = index * 0x9E3779B1U + 0x85EBCA77U;
  const uint32_t b = index * 0xC2B2AE3DU + 0x27D4EB2FU;
  return uint64_t{low ^ a} * (high ^ b) + ((uint64_t{low} << 32) | high);
}

}  // namespace kvbm::kernels
