// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cuda/internal/kernel_copy.hpp"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <vector>

#include <kvbm/kernels.h>

#include "kvbm/base/text.hpp"

namespace kvbm::internal {

namespace {

constexpr int32_t kCompiledFor[] = {KVBM_CUDA_ARCHS};

/// The bytes from the first to the last, ends included.
struct Extent {
  uintptr_t first = 0;
  uintptr_t last = 0;
};

/// What is known around an address: by the device itself, or by the driver.
class Reach {
 public:
  explicit Reach(const CudaContext& context)
      : context_(context), own_(context.own_memory().list()) {}

  [[nodiscard]] bool has(const void* base, const Extent& extent) {
    const auto address = reinterpret_cast<uintptr_t>(base);
    return has(address + extent.first) && has(address + extent.last);
  }

 private:
  [[nodiscard]] bool has(uintptr_t address) {
    if (last_.has(address)) return true;
    if (const AddressRange* const range = own_.find(address)) {
      last_ = *range;
      return true;
    }
    const auto found = find_reach(context_.driver(), context_.gpu().ordinal, address);
    if (found) last_ = *found;
    return found.has_value();
  }

  const CudaContext& context_;
  AddressFinder own_;
  AddressRange last_;
};

/// From the base on.
template <uint64_t StridedAxis::*kStride>
Extent extent_of(uint64_t block_stride, const StridedPiece& piece, const BlockIdRange& ids) {
  Extent extent{.first = ids.lowest * block_stride,
                .last = ids.highest * block_stride + piece.bytes - 1};
  for (const StridedAxis& axis : piece.axes) extent.last += (axis.count - 1) * (axis.*kStride);
  return extent;
}

bool is_empty(const StridedPiece& piece) {
  return piece.bytes == 0 ||
         std::ranges::any_of(piece.axes, [](const StridedAxis& axis) { return axis.count == 0; });
}

// The kernels' pieces are ours under other names, so that a call of theirs converts nothing.
static_assert(sizeof(kvbm_strided_piece) == sizeof(StridedPiece));
static_assert(offsetof(kvbm_strided_piece, src) == offsetof(StridedPiece, src));
static_assert(offsetof(kvbm_strided_piece, dst) == offsetof(StridedPiece, dst));
static_assert(offsetof(kvbm_strided_piece, src_block_stride) ==
              offsetof(StridedPiece, src_block_stride));
static_assert(offsetof(kvbm_strided_piece, dst_block_stride) ==
              offsetof(StridedPiece, dst_block_stride));
static_assert(offsetof(kvbm_strided_piece, bytes) == offsetof(StridedPiece, bytes));
static_assert(offsetof(kvbm_strided_piece, axes) == offsetof(StridedPiece, axes));
static_assert(sizeof(kvbm_strided_axis) == sizeof(StridedAxis));
static_assert(offsetof(kvbm_strided_axis, count) == offsetof(StridedAxis, count));
static_assert(offsetof(kvbm_strided_axis, src_stride) == offsetof(StridedAxis, src_stride));
static_assert(offsetof(kvbm_strided_axis, dst_stride) == offsetof(StridedAxis, dst_stride));

const kvbm_strided_piece* native(std::span<const StridedPiece> pieces) {
  return reinterpret_cast<const kvbm_strided_piece*>(pieces.data());
}

/// Of a call that launches.
Status launched(int code, bool& queued) {
  if (code == KVBM_KERNELS_INVALID_VALUE) {
    return make_error(Error(ErrorCode::kInvalidArgument,
                            "a kernel takes no piece of 2^31 accesses and more in one block: copy "
                            "by the engine",
                            NativeDomain::kCuda, code));
  }
  queued = true;
  if (code != 0) return make_error(cuda_error("a kernel was not launched", code));
  return {};
}

kvbm_strided_copy_options options_of(const KernelLimits& limits) {
  return {.max_ctas = limits.max_ctas,
          .max_bytes_per_second = limits.max_bytes_per_second,
          .shared_pace = limits.shared_pace,
          .digests = nullptr};
}

/// What the kernels have made of pieces, whatever the blocks.
class KernelPlan final : public PreparedPieces {
 public:
  explicit KernelPlan(const PieceList& pieces)
      : error_(::kvbm_kernels_create_strided_plan(native(pieces), pieces.size(), &plan_)) {}
  ~KernelPlan() override { ::kvbm_kernels_destroy_strided_plan(plan_); }

  [[nodiscard]] int launch(const KernelIds& ids, const kvbm_strided_copy_options& options,
                           CUstream_st* stream) const {
    if (error_ != 0) return error_;
    return ::kvbm_kernels_launch_strided_plan(plan_, ids.from, ids.to, ids.count, &options, stream);
  }

 private:
  kvbm_kernels_strided_plan* plan_ = nullptr;
  int error_;
};

const KernelPlan& plan_of(const PieceList& pieces) {
  const PreparedPieces* prepared = pieces.prepared();
  if (prepared == nullptr) prepared = &pieces.keep(std::make_unique<const KernelPlan>(pieces));
  return static_cast<const KernelPlan&>(*prepared);  // nobody else keeps any
}

}  // namespace

KernelSupport kernel_support(int32_t sm, std::span<const int32_t> compiled) noexcept {
  const auto runs = [sm](int32_t built) { return built / 10 == sm / 10 && built <= sm; };
  if (std::ranges::any_of(compiled, runs)) return KernelSupport::kCompiled;
  return !compiled.empty() && compiled.front() <= sm ? KernelSupport::kFromPtx
                                                     : KernelSupport::kNone;
}

KernelSupport kernel_support(int32_t sm) noexcept { return kernel_support(sm, kCompiledFor); }

Status load_kernels(CUstream_st* stream, std::span<std::byte> memory) {
  constexpr size_t kHalf = 4096;
  const auto* const id = reinterpret_cast<const uint32_t*>(memory.data() + 2 * kHalf);
  // One for each width of access; the longest run is cut differently from the others.
  for (const uint64_t bytes : std::initializer_list<uint64_t>{2048, 16, 8, 4, 2, 1}) {
    kvbm_strided_piece piece{};
    piece.src = memory.data();
    piece.dst = memory.data() + kHalf;
    piece.bytes = bytes;
    for (kvbm_strided_axis& axis : piece.axes) axis.count = 1;
    const int code = ::kvbm_kernels_launch_strided_copy(&piece, 1, id, id, 1, nullptr, stream);
    if (code != 0) {
      Error error = cuda_error("no kernel for this GPU", code);
      return make_error(
          Error(ErrorCode::kUnsupported, std::string(error.message()), NativeDomain::kCuda, code));
    }
  }
  if (const cudaError_t code = ::cudaStreamSynchronize(stream)) {
    return make_error(cuda_error("kernels do not run", code));
  }
  return {};
}

std::optional<AddressRange> find_reach(const CudaDriver& driver, int32_t ordinal,
                                       uintptr_t address) {
  CUmemorytype type{};
  int of_gpu = -1;
  CUdeviceptr for_gpu = 0;
  CUdeviceptr start = 0;
  size_t size = 0;
  CUdeviceptr mapped_start = 0;
  size_t mapped_size = 0;
  std::array<int, 7> attributes = {
      CU_POINTER_ATTRIBUTE_MEMORY_TYPE,    CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
      CU_POINTER_ATTRIBUTE_DEVICE_POINTER, CU_POINTER_ATTRIBUTE_RANGE_START_ADDR,
      CU_POINTER_ATTRIBUTE_RANGE_SIZE,     CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR,
      CU_POINTER_ATTRIBUTE_MAPPING_SIZE};
  std::array<void*, 7> values = {&type, &of_gpu,       &for_gpu,    &start,
                                 &size, &mapped_start, &mapped_size};
  const int code = driver.pointer_attributes(static_cast<unsigned>(attributes.size()),
                                             attributes.data(), values.data(), address);
  const bool ours =
      type == CU_MEMORYTYPE_HOST || (type == CU_MEMORYTYPE_DEVICE && of_gpu == ordinal);
  if (code != 0 || !ours || for_gpu != address) return std::nullopt;
  const AddressRange range{.begin = start, .end = start + size};
  const AddressRange mapped{.begin = mapped_start, .end = mapped_start + mapped_size};
  // The driver does not tell them of all memory.
  if (!range.has(address) || !mapped.has(address)) {
    return AddressRange{.begin = address, .end = address + 1};
  }
  // Who maps memory himself has more addresses than memory, and the range has them all; other
  // memory may be less than what is mapped for it.
  return AddressRange{.begin = std::max(range.begin, mapped.begin),
                      .end = std::min(range.end, mapped.end)};
}

Status check_reach(const CudaContext& context, const StridedCopyBatch& batch) {
  if (batch.pairs->empty()) return {};
  const BlockIdRange& from = batch.pairs->from_range();
  const BlockIdRange& to = batch.pairs->to_range();
  Reach src_reach(context);
  Reach dst_reach(context);
  for (const PieceRun& run : batch.pieces.runs()) {
    const StridedPiece& first = batch.pieces[run.begin];
    if (is_empty(first)) continue;
    const Extent src = extent_of<&StridedAxis::src_stride>(first.src_block_stride, first, from);
    const Extent dst = extent_of<&StridedAxis::dst_stride>(first.dst_block_stride, first, to);
    for (size_t i = run.begin; i < run.end; ++i) {
      const StridedPiece& piece = batch.pieces[i];
      if (!src_reach.has(piece.src, src) || !dst_reach.has(piece.dst, dst)) {
        return make_error(
            ErrorCode::kInvalidArgument,
            "a copy by a kernel was refused: its addresses are neither of this GPU nor "
            "pinned host memory that the GPU has at the same address");
      }
    }
  }
  return {};
}

Status launch_pieces(std::span<const StridedPiece> pieces, const KernelLimits& limits,
                     const KernelIds& ids, CUstream_st* stream, bool& queued) {
  const kvbm_strided_copy_options options = options_of(limits);
  return launched(::kvbm_kernels_launch_strided_copy(native(pieces), pieces.size(), ids.from,
                                                     ids.to, ids.count, &options, stream),
                  queued);
}

Status launch_copy(const PieceList& pieces, const KernelLimits& limits, const KernelIds& ids,
                   CUstream_st* stream, bool& queued) {
  if (!ids.travel) return launch_pieces(pieces, limits, ids, stream, queued);
  return launched(plan_of(pieces).launch(ids, options_of(limits), stream), queued);
}

}  // namespace kvbm::internal
