// SPDX-License-Identifier: Apache-2.0
// What a CudaDevice asks of the kernels: whether they run here, and a batch on a native stream.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "kvbm/adapters/cuda/internal/cuda_context.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/device/strided_copy.hpp"

namespace kvbm::internal {

enum class KernelSupport : uint8_t {
  kNone,      ///< older than every SM version that was compiled for
  kCompiled,  ///< the build has code for this GPU
  kFromPtx,   ///< the driver compiles them, which takes a moment where it has not done so before
};

/// `compiled`: SM versions with code of their own, ascending; the lowest is there as PTX too.
[[nodiscard]] KernelSupport kernel_support(int32_t sm, std::span<const int32_t> compiled) noexcept;
/// Of this build.
[[nodiscard]] KernelSupport kernel_support(int32_t sm) noexcept;

/// Runs every kernel of kernel copies once: a driver loads a kernel at its first launch, and waits
/// for the whole GPU then. `memory`: 16 KiB that host and GPU share, zeroed.
/// Requires: a Scope of the context. Errors: kUnsupported (no code for this GPU, or none that its
/// driver compiles), kDevice.
[[nodiscard]] Status load_kernels(CUstream_st* stream, std::span<std::byte> memory);

/// What a kernel on the GPU `ordinal` may touch around an address, at this very address: memory of
/// that GPU, or pinned memory, which a GPU may have at another one. As far as the driver tells; at
/// least one byte. None where it may not.
[[nodiscard]] std::optional<AddressRange> find_reach(const CudaDriver& driver, int32_t ordinal,
                                                     uintptr_t address);

/// Whether all that the batch touches is memory of this GPU or pinned: a kernel that touches other
/// memory ends the context. Looks at both ends of what a piece touches on a side.
/// Requires: planned_bytes() takes the batch. Errors: kInvalidArgument.
[[nodiscard]] Status check_reach(const CudaContext& context, const StridedCopyBatch& batch);

struct KernelIds {
  const uint32_t* from = nullptr;
  const uint32_t* to = nullptr;
  size_t count = 0;
  bool travel = false;  ///< with the launch; otherwise the GPU reads them where they are
};

/// What a kernel may take of the GPU and of the link; 0: as it likes.
struct KernelLimits {
  uint32_t max_ctas = 0;
  uint64_t max_bytes_per_second = 0;
  uint64_t* shared_pace = nullptr;  ///< of the GPU: all launches with it keep to the rate together
};

/// Puts the pieces for these ids on the stream, which keeps nothing of the pieces. `queued`:
/// whether anything was or may have been put there, also where the call fails.
/// Requires: a Scope of the context; bytes to copy; ids that do not travel. Errors:
/// kInvalidArgument (2^31 accesses and more in a piece of one block), kDevice.
[[nodiscard]] Status launch_pieces(std::span<const StridedPiece> pieces, const KernelLimits& limits,
                                   const KernelIds& ids, CUstream_st* stream, bool& queued);
/// Those of a batch, with which it keeps what it makes of them; its ids may travel.
[[nodiscard]] Status launch_copy(const PieceList& pieces, const KernelLimits& limits,
                                 const KernelIds& ids, CUstream_st* stream, bool& queued);

}  // namespace kvbm::internal
