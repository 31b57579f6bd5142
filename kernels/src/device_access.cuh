// SPDX-License-Identifier: Apache-2.0
// Loads and stores of one thread.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace kvbm::kernels {

/// Accesses of one width. What is loaded is not written while the kernel runs; neither side is
/// looked at again by it.
template <uint32_t kWidth>
struct Access;

template <>
struct Access<16> {
  using Value = uint4;
  static __device__ __forceinline__ Value load(const char* address) {
    Value value;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
        : "l"(address));
    return value;
  }
  static __device__ __forceinline__ void store(char* address, const Value& value) {
    __stcs(reinterpret_cast<Value*>(address), value);
  }
};

template <typename T>
struct ScalarAccess {
  using Value = T;
  static __device__ __forceinline__ Value load(const char* address) {
    return __ldg(reinterpret_cast<const T*>(address));
  }
  static __device__ __forceinline__ void store(char* address, Value value) {
    *reinterpret_cast<T*>(address) = value;
  }
};

template <>
struct Access<8> : ScalarAccess<unsigned long long> {};
template <>
struct Access<4> : ScalarAccess<uint32_t> {};
template <>
struct Access<2> : ScalarAccess<uint16_t> {};
template <>
struct Access<1> : ScalarAccess<uint8_t> {};

}  // namespace kvbm::kernels
