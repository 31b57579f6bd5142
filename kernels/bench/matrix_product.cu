// SPDX-License-Identifier: Apache-2.0
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <mma.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "matrix_product.hpp"

namespace {

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}
#define CHECK(call) check((call), #call)

constexpr int kM = 6144, kN = 6144, kK = 4096;
constexpr int kTile = 128, kStep = 32;

__global__ void __launch_bounds__(256, 2)
    multiply(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c) {
  using namespace nvcuda;
  __shared__ __align__(16) __nv_bfloat16 a_tile[2][kTile][kStep + 8];
  __shared__ __align__(16) __nv_bfloat16 b_tile[2][kTile][kStep + 8];
  const int warp = threadIdx.x / 32;
  const int row = blockIdx.y * kTile, column = blockIdx.x * kTile;
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum[2][4];
  for (auto& line : sum) {
    for (auto& part : line) wmma::fill_fragment(part, 0.0F);
  }
  uint4 a_next[2], b_next[2];
  const auto fetch = [&](int k) {
    for (int i = 0; i < 2; ++i) {
      const int at = threadIdx.x + i * 256;
      a_next[i] = *reinterpret_cast<const uint4*>(a + size_t(row + at / 4) * kK + k + at % 4 * 8);
      b_next[i] =
          *reinterpret_cast<const uint4*>(b + size_t(column + at / 4) * kK + k + at % 4 * 8);
    }
  };
  const auto put = [&](int stage) {
    for (int i = 0; i < 2; ++i) {
      const int at = threadIdx.x + i * 256;
      *reinterpret_cast<uint4*>(&a_tile[stage][at / 4][at % 4 * 8]) = a_next[i];
      *reinterpret_cast<uint4*>(&b_tile[stage][at / 4][at % 4 * 8]) = b_next[i];
    }
  };
  fetch(0);
  put(0);
  __syncthreads();
  for (int k = 0; k < kK; k += kStep) {
    const int stage = k / kStep % 2;
    if (k + kStep < kK) fetch(k + kStep);
    for (int inner = 0; inner < kStep; inner += 16) {
      wmma::fragment<wmma::matrix_a, 16, 16, 16, __nv_bfloat16, wmma::row_major> a_part[2];
      wmma::fragment<wmma::matrix_b, 16, 16, 16, __nv_bfloat16, wmma::col_major> b_part[4];
      for (int i = 0; i < 2; ++i) {
        wmma::load_matrix_sync(a_part[i], &a_tile[stage][warp / 2 * 32 + i * 16][inner], kStep + 8);
      }
      for (int j = 0; j < 4; ++j) {
        wmma::load_matrix_sync(b_part[j], &b_tile[stage][warp % 2 * 64 + j * 16][inner], kStep + 8);
      }
      for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 4; ++j) wmma::mma_sync(sum[i][j], a_part[i], b_part[j], sum[i][j]);
      }
    }
    if (k + kStep < kK) put(1 - stage);
    __syncthreads();
  }
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 4; ++j) {
      wmma::store_matrix_sync(
          c + size_t(row + warp / 2 * 32 + i * 16) * kN + column + warp % 2 * 64 + j * 16,
          sum[i][j], kN, wmma::mem_row_major);
    }
  }
}

__global__ void fill(uint32_t* data, size_t count, uint32_t seed) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count;
       i += size_t{gridDim.x} * blockDim.x) {
    // Two numbers between 1 and 2.
    data[i] = 0x3F803F80U | ((static_cast<uint32_t>(i) * 2654435761U + seed) & 0x007F007FU);
  }
}

constexpr int kExclusiveBytes = 150 * 1024;

}  // namespace

MatrixProduct::MatrixProduct(cudaStream_t stream) {
  static_assert(kOperations == 2.0 * kM * kN * kK);
  CHECK(cudaMalloc(&a_, size_t{kM} * kK * 2));
  CHECK(cudaMalloc(&b_, size_t{kN} * kK * 2));
  CHECK(cudaMalloc(&c_, size_t{kM} * kN * 4));
  fill<<<1024, 256, 0, stream>>>(static_cast<uint32_t*>(a_), size_t{kM} * kK / 2, 3);
  fill<<<1024, 256, 0, stream>>>(static_cast<uint32_t*>(b_), size_t{kN} * kK / 2, 4);
  CHECK(
      cudaFuncSetAttribute(multiply, cudaFuncAttributeMaxDynamicSharedMemorySize, kExclusiveBytes));
  CHECK(cudaStreamSynchronize(stream));
}

MatrixProduct::~MatrixProduct() {
  for (void* const matrix : {a_, b_, c_}) static_cast<void>(cudaFree(matrix));
}

void MatrixProduct::start(cudaStream_t stream, bool exclusive) {
  multiply<<<dim3(kN / kTile, kM / kTile), 256, exclusive ? kExclusiveBytes : 0, stream>>>(
      static_cast<const __nv_bfloat16*>(a_), static_cast<const __nv_bfloat16*>(b_),
      static_cast<float*>(c_));
  CHECK(cudaGetLastError());
}
