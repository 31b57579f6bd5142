// SPDX-License-Identifier: Apache-2.0
// CudaRing: memory of the GPU that copies between it and the host go through, one way.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kvbm/adapters/cuda/internal/copy_list.hpp"
#include "kvbm/adapters/cuda/internal/cuda_context.hpp"
#include "kvbm/adapters/cuda/internal/kernel_copy.hpp"
#include "kvbm/base/mutex.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/device/block_image.hpp"
#include "kvbm/device/strided_copy.hpp"

namespace kvbm::internal {

/// Which side of a batch is the host's, and what a block is there.
struct RingPath {
  CopySide host = CopySide::kSource;
  BlockImage image = {};
};

/// Requires: a Scope of the context; planned_bytes() has taken the batch and counted bytes.
/// Errors: kInvalidArgument (the sides are not the host's and the GPU's, the host side is no image,
/// or a block is larger than a slot).
[[nodiscard]] Result<RingPath> find_ring_path(const CudaContext& context,
                                              const StridedCopyBatch& batch, uint64_t slot_bytes);

/// How many of `num_blocks` go next, where `done` have gone. The link has nothing to do before the
/// first gathering and after the last move, so groups begin small on the way to the host, and end
/// small on the way to the device; each one costs the link some time, so in between they are large.
/// Requires: some are left; a block is not larger than a slot.
[[nodiscard]] size_t blocks_of_next_group(const RingPath& path, uint64_t slot_bytes,
                                          size_t num_blocks, size_t done) noexcept;

/// Pairs of a batch, from `first` on, of which `done` have been put on in calls before.
struct RingCopy {
  const StridedCopyBatch& batch;
  RingPath path;
  size_t first = 0;
  size_t done = 0;
  /// Of these pairs, for kernels: on the side of the slot counted anew in each group.
  KernelIds ids = {};
  std::span<const uintptr_t> cuts = {};
};

/// Blocks go in groups. A kernel gathers a group in a slot and the copy engine moves it, or the
/// other way round; two slots take turns, so that the link always has one. Streams wait for each
/// other's events; the host waits for nothing.
///
/// The kernels of all copies are on one stream, and what a slot waits for is the copy before. So a
/// copy is put on only where everything that it waits for is a copy or a kernel.
///
/// Ownership: ends after the copies. Threads: any thread.
class CudaRing {
 public:
  static constexpr size_t kSlots = 2;

  /// `size_bytes`: of all slots. Requires: before anything waits in the GPU.
  /// Errors: kExhausted (no memory), kDevice.
  [[nodiscard]] static Result<std::unique_ptr<CudaRing>> create(
      std::shared_ptr<const CudaContext> context, uint64_t size_bytes);
  ~CudaRing();
  CudaRing(const CudaRing&) = delete;
  CudaRing& operator=(const CudaRing&) = delete;

  [[nodiscard]] uint64_t slot_bytes() const noexcept { return slot_bytes_; }

  /// Puts the next groups on, a few: each keeps the caller for a while. After the last one all has
  /// ended where `stream` comes to what is put there next. `queued`: whether anything was put on,
  /// also where the call fails; a call that fails has waited for what was.
  /// Requires: a Scope of the context; the GPU has ended what was on `stream` before the first;
  /// this ring goes the way of the copy, of which a block is not larger than a slot.
  /// Errors: kInvalidArgument (what no kernel takes), kDevice.
  [[nodiscard]] Status copy(RingCopy& copy, CUstream_st* stream, bool& queued);

 private:
  struct Slot {
    std::byte* memory = nullptr;
    CUevent_st* filled = nullptr;  // the first half of a copy has ended
    CUevent_st* free = nullptr;    // and the second
  };

  CudaRing(std::shared_ptr<const CudaContext> context, uint64_t slot_bytes);

  [[nodiscard]] Status open();
  [[nodiscard]] Status put_on(RingCopy& copy, CUstream_st* stream, bool& queued)
      KVBM_REQUIRES(mutex_);
  /// Of the `count` next blocks.
  [[nodiscard]] Status put_kernel(const RingCopy& copy, size_t count, std::byte* memory,
                                  bool& queued) KVBM_REQUIRES(mutex_);
  [[nodiscard]] Status put_engine(const RingCopy& copy, size_t count, std::byte* memory,
                                  CUstream_st* stream, bool& queued) KVBM_REQUIRES(mutex_);

  const std::shared_ptr<const CudaContext> context_;
  const uint64_t slot_bytes_;
  void* memory_ = nullptr;
  CUstream_st* kernels_ = nullptr;
  std::array<Slot, kSlots> slots_;

  Mutex mutex_{LockRank::kDevice, "device.cuda_ring", 1};
  size_t turn_ KVBM_GUARDED_BY(mutex_) = 0;
  // They keep their memory.
  std::vector<BlockId> inside_ KVBM_GUARDED_BY(mutex_);  // 0, 1, 2 …
  BlockPairs pairs_ KVBM_GUARDED_BY(mutex_);             // of a group
  std::vector<StridedPiece> pieces_ KVBM_GUARDED_BY(mutex_);
  CopyList list_ KVBM_GUARDED_BY(mutex_);
};

}  // namespace kvbm::internal
