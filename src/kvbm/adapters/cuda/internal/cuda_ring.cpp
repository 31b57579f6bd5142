// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cuda/internal/cuda_ring.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "kvbm/adapters/cuda/internal/copy_submit.hpp"
#include "kvbm/base/text.hpp"
#include "kvbm/base/units.hpp"

namespace kvbm::internal {

namespace {

/// Slots start at multiples of it.
constexpr uint64_t kSlotAlignment = 4096;
/// A group takes the link longer than its calls take the host.
constexpr uint64_t kLeastGroupBytes = 2 * kMiB;
/// They take the host 16 us each.
constexpr size_t kGroupsOfACall = 4;
/// Enough to fill a slot several times as fast as the link empties it.
constexpr uint32_t kCtas = 16;

tl::unexpected<Error> no_path(std::string_view why) {
  return make_error(
      ErrorCode::kInvalidArgument,
      format_text("a copy through the ring was refused: {}; copy by the engine or a kernel", why));
}

Status put(std::string_view what, cudaError_t code) {
  if (code != cudaSuccess) return make_error(cuda_error(what, code));
  return {};
}

Status put_wait(CUstream_st* stream, CUevent_st* event) {
  return put("a stream cannot wait for a slot", ::cudaStreamWaitEvent(stream, event, 0));
}

Status put_record(CUevent_st* event, CUstream_st* stream) {
  return put("cannot record an event of a slot", ::cudaEventRecord(event, stream));
}

cudaMemoryType type_of(const void* address) {
  cudaPointerAttributes attributes{};
  if (::cudaPointerGetAttributes(&attributes, address) != cudaSuccess) {
    static_cast<void>(::cudaGetLastError());
    return cudaMemoryTypeUnregistered;
  }
  return attributes.type;
}

bool is_of(const StridedPiece& piece) {
  return piece.bytes > 0 &&
         std::ranges::none_of(piece.axes, [](const StridedAxis& axis) { return axis.count == 0; });
}

}  // namespace

Result<RingPath> find_ring_path(const CudaContext& context, const StridedCopyBatch& batch,
                                uint64_t slot_bytes) {
  const auto* const piece =
      std::find_if(batch.pieces.data(), batch.pieces.data() + batch.pieces.size(), is_of);
  const cudaMemoryType src =
      type_of(piece->src + batch.pairs->from().front().value() * piece->src_block_stride);
  const cudaMemoryType dst =
      type_of(piece->dst + batch.pairs->to().front().value() * piece->dst_block_stride);
  RingPath path;
  if (src == cudaMemoryTypeDevice && dst == cudaMemoryTypeHost) {
    path.host = CopySide::kDestination;
  } else if (src != cudaMemoryTypeHost || dst != cudaMemoryTypeDevice) {
    return no_path("it is not between pinned host memory and this GPU");
  }
  const std::optional<BlockImage> image = find_image(batch.pieces, path.host);
  if (!image) return no_path("blocks have gaps on the side of the host");
  if (image->bytes > slot_bytes) {
    return no_path(format_text("a block has {}, a slot {}", format_size(image->bytes),
                               format_size(slot_bytes)));
  }
  KVBM_TRY(check_reach(context, batch));
  path.image = *image;
  return path;
}

size_t blocks_of_next_group(const RingPath& path, uint64_t slot_bytes, size_t num_blocks,
                            size_t done) noexcept {
  const uint64_t most = slot_bytes / path.image.bytes;
  const uint64_t least = std::clamp<uint64_t>(kLeastGroupBytes / path.image.bytes, 1, most);
  const uint64_t left = num_blocks - done;
  const uint64_t even = path.host == CopySide::kDestination ? done : (left + 1) / 2;
  return std::min(std::clamp<uint64_t>(even, least, most), left);
}

Result<std::unique_ptr<CudaRing>> CudaRing::create(std::shared_ptr<const CudaContext> context,
                                                   uint64_t size_bytes) {
  const uint64_t slot_bytes = size_bytes / kSlots / kSlotAlignment * kSlotAlignment;
  std::unique_ptr<CudaRing> ring(new CudaRing(std::move(context), slot_bytes));
  KVBM_TRY(ring->open());
  return ring;
}

CudaRing::CudaRing(std::shared_ptr<const CudaContext> context, uint64_t slot_bytes)
    : context_(std::move(context)), slot_bytes_(slot_bytes) {}

Status CudaRing::open() {
  const CudaContext::Scope scope(*context_);
  KVBM_TRY(put("no memory for a ring", ::cudaMalloc(&memory_, kSlots * slot_bytes_)));
  KVBM_TRY(
      put("no stream for a ring", ::cudaStreamCreateWithFlags(&kernels_, cudaStreamNonBlocking)));
  auto* memory = static_cast<std::byte*>(memory_);
  for (Slot& slot : slots_) {
    slot.memory = std::exchange(memory, memory + slot_bytes_);
    for (CUevent_st** const event : {&slot.filled, &slot.free}) {
      KVBM_TRY(
          put("no event for a ring", ::cudaEventCreateWithFlags(event, cudaEventDisableTiming)));
    }
  }
  return {};
}

CudaRing::~CudaRing() {
  const CudaContext::Scope scope(*context_);
  if (kernels_ != nullptr) {
    static_cast<void>(::cudaStreamSynchronize(kernels_));
    static_cast<void>(::cudaStreamDestroy(kernels_));
  }
  for (const Slot& slot : slots_) {
    for (CUevent_st* const event : {slot.filled, slot.free}) {
      if (event != nullptr) static_cast<void>(::cudaEventDestroy(event));
    }
  }
  static_cast<void>(::cudaFree(memory_));
}

Status CudaRing::copy(RingCopy& copy, CUstream_st* stream, bool& queued) {
  const MutexLock lock(mutex_);
  queued = queued || copy.done > 0;
  // Else the stream does not wait for all that was put on, and the slots do not know their last
  // use.
  const auto let_end = [&] {
    if (!queued) return;
    static_cast<void>(::cudaStreamSynchronize(kernels_));
    static_cast<void>(::cudaStreamSynchronize(stream));
    static_cast<void>(::cudaGetLastError());
  };
  try {
    Status result = put_on(copy, stream, queued);
    if (!result) let_end();
    return result;
  } catch (...) {
    let_end();
    throw;
  }
}

Status CudaRing::put_on(RingCopy& copy, CUstream_st* stream, bool& queued) {
  const bool to_host = copy.path.host == CopySide::kDestination;
  CUstream_st* const begin = to_host ? kernels_ : stream;
  CUstream_st* const end = to_host ? stream : kernels_;
  for (size_t group = 0; group < kGroupsOfACall && copy.done < copy.ids.count; ++group) {
    const size_t count = blocks_of_next_group(copy.path, slot_bytes_, copy.ids.count, copy.done);
    const Slot& slot = slots_[turn_++ % kSlots];
    const auto gather_or_scatter = [&] { return put_kernel(copy, count, slot.memory, queued); };
    const auto move = [&] { return put_engine(copy, count, slot.memory, stream, queued); };
    KVBM_TRY(put_wait(begin, slot.free));
    KVBM_TRY(to_host ? gather_or_scatter() : move());
    KVBM_TRY(put_record(slot.filled, begin));
    KVBM_TRY(put_wait(end, slot.filled));
    KVBM_TRY(to_host ? move() : gather_or_scatter());
    KVBM_TRY(put_record(slot.free, end));
    copy.done += count;
    if (copy.done == copy.ids.count && !to_host) KVBM_TRY(put_wait(stream, slot.free));
  }
  return {};
}

Status CudaRing::put_kernel(const RingCopy& copy, size_t count, std::byte* memory, bool& queued) {
  pieces_.clear();
  for (const StridedPiece& piece : copy.batch.pieces) {
    if (is_of(piece)) pieces_.push_back(moved_to(piece, copy.path.image, copy.path.host, memory));
  }
  KernelIds ids = copy.ids;
  ids.from += copy.done;
  ids.to += copy.done;
  ids.count = count;
  const uint32_t max_ctas = copy.batch.max_ctas == 0 ? kCtas : copy.batch.max_ctas;
  return launch_pieces(pieces_, {.max_ctas = max_ctas}, ids, kernels_, queued);
}

Status CudaRing::put_engine(const RingCopy& copy, size_t count, std::byte* memory,
                            CUstream_st* stream, bool& queued) {
  while (inside_.size() < count) inside_.emplace_back(static_cast<uint32_t>(inside_.size()));
  const bool to_host = copy.path.host == CopySide::kDestination;
  const auto& outside = to_host ? copy.batch.pairs->to() : copy.batch.pairs->from();
  const std::span<const BlockId> host = std::span(outside).subspan(copy.first + copy.done, count);
  const std::span<const BlockId> slot = std::span(inside_).first(count);
  const StridedPiece piece = image_piece(copy.path.image, copy.path.host, memory);
  pairs_.assign(to_host ? slot : host, to_host ? host : slot);
  list_.clear();
  expand(std::span(&piece, 1), pairs_, copy.cuts, list_);
  return submit(list_, stream, context_->gpu().has_memcpy_batch, queued);
}

}  // namespace kvbm::internal
