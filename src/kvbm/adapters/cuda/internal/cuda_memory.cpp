// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cuda/internal/cuda_memory.hpp"

#include <cuda_runtime_api.h>

#include <limits>
#include <utility>

#include "kvbm/base/text.hpp"
#include "kvbm/base/units.hpp"

namespace kvbm::internal {

namespace {

/// What every allocation is aligned to by itself.
constexpr uint64_t kNaturalAlignment = 256;

}  // namespace

Result<std::unique_ptr<CudaMemPool>> CudaMemPool::create(const CudaContext& context,
                                                         CUstream_st* stream,
                                                         const CudaMemPoolOptions& options) {
  int supported = 0;
  static_cast<void>(
      ::cudaDeviceGetAttribute(&supported, cudaDevAttrMemoryPoolsSupported, context.gpu().ordinal));
  if (supported == 0) {
    return make_error(ErrorCode::kUnsupported,
                      format_text("{} has no memory pools", context.gpu().name));
  }
  cudaMemPoolProps properties{};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.handleTypes = cudaMemHandleTypeNone;
  properties.location.type = cudaMemLocationTypeDevice;
  properties.location.id = context.gpu().ordinal;
  cudaMemPool_t handle = nullptr;
  if (const cudaError_t code = ::cudaMemPoolCreate(&handle, &properties)) {
    return make_error(cuda_error("no memory pool", code));
  }
  std::unique_ptr<CudaMemPool> pool(new CudaMemPool(handle, stream));
  uint64_t threshold = options.release_threshold;
  if (const cudaError_t code =
          ::cudaMemPoolSetAttribute(handle, cudaMemPoolAttrReleaseThreshold, &threshold)) {
    return make_error(cuda_error("no release threshold for a memory pool", code));
  }
  if (options.reserve_bytes > 0) {
    KVBM_ASSIGN_OR_RETURN(std::byte* const reserve, pool->take(options.reserve_bytes));
    pool->give_back(reserve);
  }
  return pool;
}

CudaMemPool::~CudaMemPool() { static_cast<void>(::cudaMemPoolDestroy(pool_)); }

Result<std::byte*> CudaMemPool::take(uint64_t size_bytes) {
  void* data = nullptr;
  if (const cudaError_t code = ::cudaMallocFromPoolAsync(&data, size_bytes, pool_, stream_)) {
    return make_error(
        cuda_error(format_text("no {} from the memory pool", format_size(size_bytes)), code));
  }
  return static_cast<std::byte*>(data);
}

void CudaMemPool::give_back(std::byte* data) noexcept {
  static_cast<void>(::cudaFreeAsync(data, stream_));
}

Result<std::shared_ptr<CudaMemory>> CudaMemory::create(std::shared_ptr<const CudaContext> context,
                                                       const CudaMemPoolOptions& options) {
  const CudaContext::Scope scope(*context);
  cudaStream_t stream = nullptr;
  if (const cudaError_t code = ::cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking)) {
    return make_error(cuda_error("no stream for memory", code));
  }
  std::shared_ptr<CudaMemory> memory(new CudaMemory(std::move(context), stream));
  auto pool = CudaMemPool::create(*memory->context_, stream, options);
  if (pool) {
    memory->pool_ = *std::move(pool);
    memory->most_pooled_bytes_ = options.reserve_bytes;
  } else if (pool.error().code() != ErrorCode::kUnsupported) {
    return make_error(std::move(pool).error());
  }
  return memory;
}

CudaMemory::~CudaMemory() {
  const CudaContext::Scope scope(*context_);
  static_cast<void>(::cudaStreamSynchronize(stream_));
  pool_.reset();
  static_cast<void>(::cudaStreamDestroy(stream_));
}

Result<std::byte*> CudaMemory::allocate(uint64_t size_bytes, uint64_t alignment) {
  const CudaContext::Scope scope(*context_);
  const auto exhausted = [&] {
    return make_error(ErrorCode::kExhausted,
                      format_text("asked for {} of GPU memory, {} are free",
                                  format_size(size_bytes), format_size(free_bytes())));
  };
  const uint64_t slack = alignment > kNaturalAlignment ? alignment - kNaturalAlignment : 0;
  if (size_bytes > std::numeric_limits<uint64_t>::max() - slack ||
      size_bytes + slack > context_->gpu().total_bytes) {
    return exhausted();
  }
  Origin origin{.start = nullptr, .pooled = size_bytes + slack <= most_pooled_bytes_};
  if (origin.pooled) {
    auto taken = pool_->take(size_bytes + slack);
    if (!taken && taken.error().code() == ErrorCode::kExhausted) return exhausted();
    KVBM_ASSIGN_OR_RETURN(origin.start, std::move(taken));
  } else {
    void* data = nullptr;
    const cudaError_t code = ::cudaMalloc(&data, size_bytes + slack);
    if (code == cudaErrorMemoryAllocation) {
      static_cast<void>(::cudaGetLastError());
      return exhausted();
    }
    if (code != cudaSuccess) return make_error(cuda_error("no GPU memory", code));
    origin.start = static_cast<std::byte*>(data);
  }
  const auto address = reinterpret_cast<uintptr_t>(origin.start);
  std::byte* const data = origin.start + ((alignment - address % alignment) % alignment);
  {
    const MutexLock lock(mutex_);
    origins_.emplace(data, origin);
  }
  context_->own_memory().add(data, size_bytes);
  cudaError_t code = ::cudaMemsetAsync(data, 0, size_bytes, stream_);
  if (code == cudaSuccess) code = ::cudaStreamSynchronize(stream_);
  if (code != cudaSuccess) {
    free(data, size_bytes);
    return make_error(cuda_error("GPU memory cannot be zeroed", code));
  }
  return data;
}

void CudaMemory::free(std::byte* data, uint64_t /*size_bytes*/) noexcept {
  const CudaContext::Scope scope(*context_);
  context_->own_memory().remove(data);
  Origin origin{};
  {
    const MutexLock lock(mutex_);
    const auto found = origins_.find(data);
    if (found == origins_.end()) return;
    origin = found->second;
    origins_.erase(found);
  }
  if (origin.pooled) {
    pool_->give_back(origin.start);
  } else {
    static_cast<void>(::cudaFree(origin.start));
  }
}

uint64_t CudaMemory::free_bytes() const {
  const CudaContext::Scope scope(*context_);
  size_t free = 0;
  size_t total = 0;
  return ::cudaMemGetInfo(&free, &total) == cudaSuccess ? free : 0;
}

}  // namespace kvbm::internal
