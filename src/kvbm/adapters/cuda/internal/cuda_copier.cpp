// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cuda/internal/cuda_copier.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <span>
#include <utility>

#include "kvbm/adapters/cuda/internal/copy_submit.hpp"
#include "kvbm/base/text.hpp"

namespace kvbm::internal {

namespace {

size_t index_of(CopySide host) { return static_cast<size_t>(host); }

/// Room of a stream for pairs of ids that kernels have not read yet, and how many of them one
/// launch takes at most, so that there is a next one when the first has ended.
constexpr size_t kIdPairs = 65536;
constexpr size_t kIdPairsOfALaunch = kIdPairs / 4;
constexpr size_t kIdBytes = kIdPairs * 2 * sizeof(uint32_t);
/// Up to so many travel with the launches, and take no room: at 160 pieces these are four.
constexpr size_t kIdPairsThatTravel = 512;
/// On the device each of many CTAs reads all ids of a launch. Over the link that takes longer than
/// more launches, unless blocks are so small that a launch has less to do than it costs.
constexpr uint64_t kLeastBlockBytes = 64 * 1024;
/// Below, a launch keeps a pace of its own: of a shared one its turns would take so long that no
/// other launch came to its turn. No link is as slow.
constexpr uint64_t kLeastSharedRate = 1'000'000'000;

bool ids_travel(const QueuedCopy& copy) {
  const size_t num_pairs = copy.batch.pairs->size();
  return num_pairs <= kIdPairsThatTravel ||
         (copy.batch.max_ctas == 0 && copy.bytes / num_pairs >= kLeastBlockBytes);
}

Status too_many_ids(const CudaStream& stream) {
  return make_error(
      ErrorCode::kExhausted,
      format_text("kernels on stream {}, which was adopted, have no room for more ids: it is for "
                  "{} blocks at a time; wait for some to end, or copy by the engine",
                  stream.name, kIdPairs));
}

uint32_t* id_words(const PinnedRing::Slice& slice) {
  return reinterpret_cast<uint32_t*>(slice.bytes().data());
}

/// `memory`: of 2 * count ids, those of the source first.
KernelIds ids_in(const uint32_t* memory, size_t count) {
  return {.from = memory, .to = memory + count, .count = count};
}

KernelIds write_ids(const StridedCopyBatch& batch, size_t first, size_t count, uint32_t* memory) {
  uint32_t* const from = memory;
  uint32_t* const to = from + count;
  for (size_t i = 0; i < count; ++i) {
    from[i] = batch.pairs->from()[first + i].value();
    to[i] = batch.pairs->to()[first + i].value();
  }
  return ids_in(memory, count);
}

/// On the side of the slot each group counts anew.
void write_ring_ids(const QueuedCopy& copy, size_t count, uint64_t slot_bytes, uint32_t* memory) {
  write_ids(copy.batch, copy.done_pairs, count, memory);
  uint32_t* const inside = copy.ring->host == CopySide::kSource ? memory : memory + count;
  for (size_t done = 0; done < count;) {
    const size_t group = blocks_of_next_group(*copy.ring, slot_bytes, count, done);
    std::iota(inside + done, inside + done + group, 0U);
    done += group;
  }
}

void note_copy(CudaStream& stream, const Status& copied, bool queued, Arrival arrival) {
  const MutexLock lock(stream.mutex);
  stream.native_since_mark = stream.native_since_mark || queued;
  stream.bytes_since_mark += arrival.bytes;
  if (arrival.counter != nullptr || !arrival.ids.bytes().empty()) {
    stream.add(std::move(arrival));
  }
  stream.note(copied);
}

/// Arrivals that what is left of a copy comes to, at most.
size_t most_arrivals(const QueuedCopy& copy) {
  if (copy.batch.method == CopyMethod::kEngine) return 1;
  const bool travel = copy.batch.method == CopyMethod::kKernel && ids_travel(copy);
  const size_t left = copy.batch.pairs->size() - copy.done_pairs;
  return left / (travel ? kIdPairsThatTravel : kIdPairsOfALaunch) + 1;
}

}  // namespace

void CudaCopier::find_kernels() {
  kernels_ = kernel_support(context_->gpu().sm);
  if (kernels_ == KernelSupport::kNone) return;
  const CudaContext::Scope scope(*context_);
  cudaStream_t stream = nullptr;
  Status loaded;
  if (const cudaError_t code = ::cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking)) {
    loaded = make_error(cuda_error("no stream", code));
  } else if (const auto memory = take_id_memory(); !memory) {
    loaded = make_error(memory.error());
  } else {
    std::fill_n(*memory, kIdBytes, std::byte{0});
    loaded = make_shared_pace(stream);
    if (loaded) loaded = load_kernels(stream, {*memory, kIdBytes});
    give_back_id_memory(*memory);
  }
  if (stream != nullptr) static_cast<void>(::cudaStreamDestroy(stream));
  if (!loaded) kernels_ = KernelSupport::kNone;
}

Status CudaCopier::make_shared_pace(CUstream_st* stream) {
  constexpr size_t kBytes = sizeof(*shared_pace_);
  void* memory = nullptr;
  cudaError_t code = ::cudaMalloc(&memory, kBytes);
  shared_pace_ = static_cast<uint64_t*>(memory);
  if (code == cudaSuccess) code = ::cudaMemsetAsync(memory, 0, kBytes, stream);
  if (code != cudaSuccess) return make_error(cuda_error("no memory for a pace", code));
  return {};
}

Status CudaCopier::make_rings(uint64_t size_bytes) {
  const auto make = [&]() -> Status {
    for (auto& ring : rings_) {
      KVBM_ASSIGN_OR_RETURN(ring, CudaRing::create(context_, size_bytes));
    }
    return {};
  };
  Status made = make();
  if (!made) rings_ = {};
  return made;
}

Result<RingPath> CudaCopier::find_path(const StridedCopyBatch& batch) const {
  return find_ring_path(*context_, batch, ring_block_bytes());
}

Status CudaCopier::copy(CudaStream& stream, QueuedCopy& copy) {
  {
    const MutexLock lock(stream.mutex);
    if (stream.failure.has_value() && !copy.is_under_way()) {
      stream.anything_since_record = true;
      copy.done_pairs = copy.batch.pairs->size();
      return {};  // the next event fails all the same
    }
    // What is on the stream already could not be kept for want of memory.
    stream.arrivals.make_room(most_arrivals(copy));
  }
  if (copy.ring.has_value()) return copy_by_ring(stream, copy);
  return copy.batch.method == CopyMethod::kKernel ? copy_by_kernel(stream, copy)
                                                  : copy_by_engine(stream, copy);
}

Status CudaCopier::copy_by_engine(CudaStream& stream, QueuedCopy& copy) {
  std::unique_ptr<CopyList> list = take_list();
  expand(copy.batch.pieces, *copy.batch.pairs, *pinner_->cuts(), *list);
  bool queued = false;
  Status copied = submit(*list, stream.native, context_->gpu().has_memcpy_batch, queued);
  give_back(std::move(list));
  if (!copied && !queued) return copied;
  copy.done_pairs = copy.batch.pairs->size();
  note_copy(stream, copied, queued,
            {.counter = copy.batch.bytes_moved, .bytes = copied ? copy.bytes : 0});
  return {};
}

Status CudaCopier::copy_by_kernel(CudaStream& stream, QueuedCopy& copy) {
  const StridedCopyBatch& batch = copy.batch;
  const size_t num_pairs = batch.pairs->size();
  const bool travel = ids_travel(copy);
  if (copy.done_pairs == 0) KVBM_TRY(check_reach(*context_, batch));
  if (copy.bytes > 0 && !travel) KVBM_TRY(need_ids(stream));
  do {
    const size_t left = num_pairs - copy.done_pairs;
    size_t count = stream.adopted ? left : std::min(left, kIdPairsOfALaunch);
    if (travel) count = std::min(left, kIdPairsThatTravel);
    Arrival arrival{.counter = batch.bytes_moved};
    bool queued = false;
    Status copied;
    if (copy.bytes > 0) {
      KernelIds ids;
      std::array<uint32_t, 2 * kIdPairsThatTravel> travelling;
      if (travel) {
        ids = write_ids(batch, copy.done_pairs, count, travelling.data());
        ids.travel = true;
      } else {
        auto slice = stream.ids->take(count * 2 * sizeof(uint32_t));
        copy.needs_room = !slice.has_value();
        if (copy.needs_room) return stream.adopted ? too_many_ids(stream) : Status();
        ids = write_ids(batch, copy.done_pairs, count, id_words(*slice));
        arrival.ids = *std::move(slice);
      }
      const KernelLimits limits{
          .max_ctas = batch.max_ctas,
          .max_bytes_per_second = batch.max_bytes_per_second,
          .shared_pace = batch.max_bytes_per_second < kLeastSharedRate ? nullptr : shared_pace_};
      copied = launch_copy(batch.pieces, limits, ids, stream.native, queued);
      if (!copied && !queued && copy.done_pairs == 0) return copied;
      if (copied) arrival.bytes = copy.bytes / num_pairs * count;
    }
    copy.done_pairs += copied ? count : left;
    note_copy(stream, copied, queued, std::move(arrival));
  } while (!copy.is_done());
  return {};
}

Status CudaCopier::copy_by_ring(CudaStream& stream, QueuedCopy& copy) {
  const StridedCopyBatch& batch = copy.batch;
  const size_t num_pairs = batch.pairs->size();
  const size_t left = num_pairs - copy.done_pairs;
  const size_t count = std::min(left, kIdPairsOfALaunch);
  CudaRing& ring = *rings_[index_of(copy.ring->host)];
  if (!copy.is_under_way()) {
    KVBM_TRY(need_ids(stream));
    auto slice = stream.ids->take(count * 2 * sizeof(uint32_t));
    copy.needs_room = !slice.has_value();
    if (copy.needs_room) return {};
    write_ring_ids(copy, count, ring.slot_bytes(), id_words(*slice));
    copy.ring_ids = *std::move(slice);
    copy.ring_done = 0;
  }
  const auto cuts = pinner_->cuts();
  RingCopy part{.batch = batch,
                .path = *copy.ring,
                .first = copy.done_pairs,
                .done = copy.ring_done,
                .ids = ids_in(id_words(copy.ring_ids), count),
                .cuts = *cuts};
  bool queued = false;
  const Status copied = ring.copy(part, stream.native, queued);
  copy.ring_done = part.done;
  if (copied && part.done < count) return {};
  Arrival arrival{.counter = batch.bytes_moved, .ids = std::move(copy.ring_ids)};
  if (!copied && !queued && copy.done_pairs == 0) return copied;
  if (copied) arrival.bytes = copy.bytes / num_pairs * count;
  copy.done_pairs += copied ? count : left;
  note_copy(stream, copied, queued, std::move(arrival));
  return {};
}

Status CudaCopier::need_ids(CudaStream& stream) {
  if (stream.ids != nullptr) return {};
  KVBM_ASSIGN_OR_RETURN(std::byte* const memory, take_id_memory());
  stream.ids = std::make_unique<PinnedRing>(std::span(memory, kIdBytes));
  return {};
}

void CudaCopier::forget(CudaStream& stream) {
  if (stream.ids != nullptr) give_back_id_memory(stream.ids->memory().data());
}

void CudaCopier::close() noexcept {
  rings_ = {};
  static_cast<void>(::cudaFree(std::exchange(shared_pace_, nullptr)));
  const MutexLock lock(ids_mutex_);
  for (void* const memory : id_memory_) static_cast<void>(::cudaFreeHost(memory));
  id_memory_.clear();
  free_id_memory_.clear();
}

Result<std::byte*> CudaCopier::take_id_memory() {
  const MutexLock lock(ids_mutex_);
  if (free_id_memory_.empty()) {
    void* memory = nullptr;
    // To keep it now, and to give it back later, needs no memory then.
    id_memory_.reserve(id_memory_.size() + 1);
    free_id_memory_.reserve(id_memory_.size() + 1);
    if (const cudaError_t code =
            ::cudaHostAlloc(&memory, kIdBytes, cudaHostAllocMapped | cudaHostAllocPortable)) {
      return make_error(cuda_error("no memory for block ids", code));
    }
    id_memory_.push_back(memory);
    return static_cast<std::byte*>(memory);
  }
  std::byte* const memory = free_id_memory_.back();
  free_id_memory_.pop_back();
  return memory;
}

void CudaCopier::give_back_id_memory(std::byte* memory) {
  const MutexLock lock(ids_mutex_);
  free_id_memory_.push_back(memory);
}

std::unique_ptr<CopyList> CudaCopier::take_list() {
  {
    const MutexLock lock(lists_mutex_);
    if (!lists_.empty()) {
      std::unique_ptr<CopyList> list = std::move(lists_.back());
      lists_.pop_back();
      return list;
    }
  }
  return std::make_unique<CopyList>();
}

void CudaCopier::give_back(std::unique_ptr<CopyList> list) noexcept {
  list->clear();
  const MutexLock lock(lists_mutex_);
  try {
    lists_.push_back(std::move(list));
  } catch (...) {
    list.reset();  // without memory for its place it goes
  }
}

}  // namespace kvbm::internal
