// SPDX-License-Identifier: Apache-2.0
// MatrixProduct: what an engine's GPU does while blocks are copied.
#pragma once

#include <cuda_runtime_api.h>

/// C = A * B in bf16 on tensor cores, 6144 x 4096 x 6144; enough to keep a GPU busy, not the
/// fastest there is.
/// Ownership: its matrices. A failure of the runtime ends the program.
class MatrixProduct {
 public:
  /// Floating point operations of one product.
  static constexpr double kOperations = 2.0 * 6144 * 6144 * 4096;

  explicit MatrixProduct(cudaStream_t stream);
  ~MatrixProduct();
  MatrixProduct(const MatrixProduct&) = delete;
  MatrixProduct& operator=(const MatrixProduct&) = delete;

  /// One product. `exclusive`: with so much shared memory that each multiprocessor has one thread
  /// block, as those of libraries have.
  void start(cudaStream_t stream, bool exclusive);

 private:
  void* a_ = nullptr;
  void* b_ = nullptr;
  void* c_ = nullptr;
};
