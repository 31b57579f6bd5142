// SPDX-License-Identifier: Apache-2.0
// CudaCopier: puts the copies of a batch on a native stream, by the copy engine or by kernels.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kvbm/adapters/cuda/internal/copy_list.hpp"
#include "kvbm/adapters/cuda/internal/cuda_context.hpp"
#include "kvbm/adapters/cuda/internal/cuda_pinner.hpp"
#include "kvbm/adapters/cuda/internal/cuda_ring.hpp"
#include "kvbm/adapters/cuda/internal/cuda_stream.hpp"
#include "kvbm/adapters/cuda/internal/kernel_copy.hpp"
#include "kvbm/base/mutex.hpp"
#include "kvbm/base/result.hpp"

namespace kvbm::internal {

/// Threads: any thread, for one stream one at a time.
class CudaCopier {
 public:
  CudaCopier(std::shared_ptr<const CudaContext> context, std::shared_ptr<CudaPinner> pinner)
      : context_(std::move(context)), pinner_(std::move(pinner)) {}

  /// Loads the kernels, before anything waits in the GPU. Without them there is one method less.
  void find_kernels();
  /// Requires: find_kernels() has ended.
  [[nodiscard]] KernelSupport kernels() const noexcept { return kernels_; }

  /// A ring of so many bytes each way. Requires: find_kernels() has found some; before anything
  /// waits in the GPU. Errors: those of CudaRing; there is none then.
  [[nodiscard]] Status make_rings(uint64_t size_bytes);
  /// Of a slot; 0: there is no ring.
  [[nodiscard]] uint64_t ring_block_bytes() const noexcept {
    return rings_[0] ? rings_[0]->slot_bytes() : 0;
  }
  /// How the batch goes through its ring. Requires: there is one; see find_ring_path().
  [[nodiscard]] Result<RingPath> find_path(const StridedCopyBatch& batch) const;

  /// A copy with ids left is to be called with again, if it says so once there is room for them;
  /// one on an adopted stream has none left. Left out, without an error, where the stream has
  /// failed before. Requires: a Scope of the context; the caller calls the driver for this stream,
  /// which has nothing before a copy through the ring begins that the GPU has not ended. Errors:
  /// only if nothing was put on the stream (kInvalidArgument, kExhausted, kDevice); what fails
  /// later is noted in the stream.
  [[nodiscard]] Status copy(CudaStream& stream, QueuedCopy& copy);

  /// Requires: the stream is drained, and will not be used again.
  void forget(CudaStream& stream);
  /// Gives the memory back. Requires: a Scope of the context; all copies have ended.
  void close() noexcept;

 private:
  /// Before the kernels that come on the stream.
  [[nodiscard]] Status make_shared_pace(CUstream_st* stream);

  Status copy_by_engine(CudaStream& stream, QueuedCopy& copy);
  Status copy_by_kernel(CudaStream& stream, QueuedCopy& copy);
  Status copy_by_ring(CudaStream& stream, QueuedCopy& copy);

  /// Gives the stream room for ids, if it has none yet.
  Status need_ids(CudaStream& stream);

  /// Memory for ids that the host and the GPU share. It comes back when its stream has gone, and
  /// stays until close(): giving it to the driver would wait for the GPU.
  [[nodiscard]] Result<std::byte*> take_id_memory();
  void give_back_id_memory(std::byte* memory);

  [[nodiscard]] std::unique_ptr<CopyList> take_list();
  void give_back(std::unique_ptr<CopyList> list) noexcept;

  const std::shared_ptr<const CudaContext> context_;
  const std::shared_ptr<CudaPinner> pinner_;
  KernelSupport kernels_ = KernelSupport::kNone;
  uint64_t* shared_pace_ = nullptr;  ///< of the GPU, for kernels that have a pace
  /// By the side of the host: to the device, to the host. Both, or none.
  std::array<std::unique_ptr<CudaRing>, 2> rings_;

  Mutex lists_mutex_{LockRank::kDevice, "device.cuda_lists", 0};
  std::vector<std::unique_ptr<CopyList>> lists_ KVBM_GUARDED_BY(lists_mutex_);

  Mutex ids_mutex_{LockRank::kDevice, "device.cuda_ids", 0};
  std::vector<void*> id_memory_ KVBM_GUARDED_BY(ids_mutex_);
  std::vector<std::byte*> free_id_memory_ KVBM_GUARDED_BY(ids_mutex_);
};

}  // namespace kvbm::internal
