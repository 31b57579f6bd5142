// SPDX-License-Identifier: Apache-2.0
// CudaContext: the driver as this process finds it, and the context of one GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "kvbm/adapters/cuda/internal/address_ranges.hpp"
#include "kvbm/base/result.hpp"

struct CUctx_st;
struct CUstream_st;
struct CUevent_st;

namespace kvbm::internal {

/// An error of the CUDA runtime (a cudaError_t): kExhausted for want of memory, else kDevice. Takes
/// the thread's last error away, so that the engine does not find ours.
[[nodiscard]] Error cuda_error(std::string_view what, int code);

/// libcuda.so.1, opened at run time: a process without a driver starts all the same. Its members
/// are entry points that the runtime library has no name for; they give back a CUresult, 0 for
/// success. Threads: any thread (immutable).
struct CudaDriver {
  int (*device)(int* device, int ordinal) = nullptr;
  int (*primary_context)(CUctx_st**, int device) = nullptr;
  int (*current_context)(CUctx_st**) = nullptr;
  int (*context_push)(CUctx_st*) = nullptr;
  int (*context_pop)(CUctx_st**) = nullptr;
  int (*stream_context)(CUstream_st*, CUctx_st**) = nullptr;
  int (*stream_wait_value)(CUstream_st*, uintptr_t address, uint32_t value,
                           uint32_t flags) = nullptr;
  int (*pointer_attributes)(unsigned count, int* attributes, void** values,
                            uintptr_t address) = nullptr;
  bool has_memcpy_batch = false;  ///< the running driver knows cuMemcpyBatchAsync

  /// Errors: kUnavailable (no driver, with what the linker said), kUnsupported (too old a driver).
  [[nodiscard]] static Result<CudaDriver> load();
};

/// What a GPU is, without a context on it.
struct CudaGpu {
  int32_t ordinal = 0;
  std::string name = {};
  int32_t sm = 0;  ///< compute capability: 90 is 9.0
  uint64_t total_bytes = 0;
  std::string pci_address = {};  ///< "0000:3b:00.0"
  std::optional<uint32_t> numa_node =
      std::nullopt;            ///< of the host memory next to it, if there is one
  int32_t driver_version = 0;  ///< 13000 is 13.0
  int32_t runtime_version = 0;
  bool has_memcpy_batch = false;  ///< in the driver and in this build

  /// Errors: those of CudaDriver::load; kUnavailable (no GPU), kUnsupported (too old a driver),
  /// kDevice (a driver that does not come up).
  [[nodiscard]] static Result<int32_t> count();
  /// Errors: those of count; kNotFound (no such ordinal).
  [[nodiscard]] static Result<CudaGpu> find(int32_t ordinal);
};

/// Ownership: the context is the process' own (the primary one), shared with the engine; it stays.
/// Threads: any thread.
class CudaContext {
 public:
  /// Errors: those of CudaGpu::find; kDevice, kExhausted (no context).
  [[nodiscard]] static Result<std::shared_ptr<const CudaContext>> open(int32_t ordinal);

  [[nodiscard]] const CudaGpu& gpu() const noexcept { return gpu_; }
  [[nodiscard]] const CudaDriver& driver() const noexcept { return driver_; }
  [[nodiscard]] CUctx_st* handle() const noexcept { return handle_; }
  /// Memory that was allocated or pinned through this context, and is of use to its kernels.
  [[nodiscard]] AddressRanges& own_memory() const noexcept { return *own_memory_; }

  /// Makes the context the thread's current one, if it is not, and puts the engine's back at the
  /// end. Meanwhile a capture of a graph on another thread does not forbid anything here.
  class Scope {
   public:
    explicit Scope(const CudaContext& context) noexcept;
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    const CudaDriver& driver_;
    bool pushed_ = false;
    int capture_mode_ = 0;
  };

 private:
  CudaContext(CudaGpu gpu, const CudaDriver& driver, CUctx_st* handle)
      : gpu_(std::move(gpu)), driver_(driver), handle_(handle) {}

  CudaGpu gpu_;
  CudaDriver driver_;
  CUctx_st* handle_;
  std::unique_ptr<AddressRanges> own_memory_ = std::make_unique<AddressRanges>();
};

}  // namespace kvbm::internal
