// SPDX-License-Identifier: Apache-2.0
// CudaMemory: the memory of a GPU: a pool for what is small, whole allocations for what is not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>

#include "kvbm/adapters/cuda/internal/cuda_context.hpp"
#include "kvbm/base/mutex.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/device/device_memory.hpp"

struct CUmemPoolHandle_st;

namespace kvbm::internal {

struct CudaMemPoolOptions {
  uint64_t reserve_bytes = uint64_t{64} << 20;      ///< taken from the GPU at once
  uint64_t release_threshold = uint64_t{64} << 20;  ///< what the pool keeps of what comes back
};

/// A pool of memory in stream order: giving back does not wait for the GPU.
/// Ownership: borrows the context. Nothing that came from it is left when it goes.
/// Threads: any thread.
class CudaMemPool {
 public:
  /// Errors: kUnsupported (a GPU without pools), kExhausted (no room for the reserve), kDevice.
  /// Requires: a Scope of the context, here and below.
  [[nodiscard]] static Result<std::unique_ptr<CudaMemPool>> create(
      const CudaContext& context, CUstream_st* stream, const CudaMemPoolOptions& options);
  ~CudaMemPool();
  CudaMemPool(const CudaMemPool&) = delete;
  CudaMemPool& operator=(const CudaMemPool&) = delete;

  /// Usable after what is queued on the stream. Errors: kExhausted, kDevice.
  [[nodiscard]] Result<std::byte*> take(uint64_t size_bytes);
  void give_back(std::byte* data) noexcept;

 private:
  CudaMemPool(CUmemPoolHandle_st* pool, CUstream_st* stream) noexcept
      : pool_(pool), stream_(stream) {}

  CUmemPoolHandle_st* const pool_;
  CUstream_st* const stream_;
};

/// Where the DeviceMemory of a CudaDevice comes from and goes back to. Up to the pool's reserve it
/// comes from the pool; more than that is an allocation of its own, which other libraries (RDMA,
/// GPU Direct Storage) can register, and whose end waits for the GPU.
/// Threads: any thread.
class CudaMemory final : public DeviceAllocator {
 public:
  /// Errors: those of CudaMemPool::create but kUnsupported: then there is no pool.
  [[nodiscard]] static Result<std::shared_ptr<CudaMemory>> create(
      std::shared_ptr<const CudaContext> context, const CudaMemPoolOptions& options);
  ~CudaMemory() override;

  /// Zeroed. Errors: kExhausted (with the bytes asked and free), kDevice.
  /// Requires: at least one byte; a power of two.
  [[nodiscard]] Result<std::byte*> allocate(uint64_t size_bytes, uint64_t alignment);
  void free(std::byte* data, uint64_t size_bytes) noexcept override;

  /// Zero where the driver does not say.
  [[nodiscard]] uint64_t free_bytes() const;

 private:
  struct Origin {
    std::byte* start;
    bool pooled;
  };

  CudaMemory(std::shared_ptr<const CudaContext> context, CUstream_st* stream)
      : context_(std::move(context)), stream_(stream) {}

  const std::shared_ptr<const CudaContext> context_;
  CUstream_st* const stream_;
  std::unique_ptr<CudaMemPool> pool_;
  uint64_t most_pooled_bytes_ = 0;
  Mutex mutex_{LockRank::kDevice, "device.cuda_memory", 0};
  std::map<std::byte*, Origin> origins_ KVBM_GUARDED_BY(mutex_);  ///< by the address that was given
};

}  // namespace kvbm::internal
