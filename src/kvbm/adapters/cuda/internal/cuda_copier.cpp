// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cuda/internal/cuda_copier.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <span>
#include <utility>

#include "kvbm/adapters/cuda/internal/copy_submit.hpp"
#include "kvbm/base/text.hpp"

namespace kvbm::internal {

namespace {

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

bool ids_travel(const QueuedCopy& copy) {
  const size_t num_pairs = copy.batch.from->size();
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

/// `memory`: of 2 * count ids.
KernelIds write_ids(const StridedCopyBatch& batch, size_t first, size_t count, uint32_t* memory) {
  uint32_t* const from = memory;
  uint32_t* const to = from + count;
  for (size_t i = 0; i < count; ++i) {
    from[i] = (*batch.from)[first + i].value();
    to[i] = (*batch.to)[first + i].value();
  }
  return {.from = from, .to = to, .count = count};
}

void note_copy(CudaStream& stream, const Status& copied, bool queued, Arrival arrival) {
  const MutexLock lock(stream.mutex);
  stream.note(copied);
  stream.native_since_mark = stream.native_since_mark || queued;
  stream.bytes_since_mark += arrival.bytes;
  if (arrival.counter != nullptr || !arrival.ids.bytes().empty()) {
    stream.arrivals.push_back(std::move(arrival));
  }
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
    loaded = load_kernels(stream, {*memory, kIdBytes});
    give_back_id_memory(*memory);
  }
  if (stream != nullptr) static_cast<void>(::cudaStreamDestroy(stream));
  if (!loaded) kernels_ = KernelSupport::kNone;
}

Status CudaCopier::copy(CudaStream& stream, QueuedCopy& copy) {
  {
    const MutexLock lock(stream.mutex);
    if (stream.failure.has_value()) {
      stream.anything_since_record = true;
      copy.done_pairs = copy.batch.from->size();
      return {};  // the next event fails all the same
    }
  }
  return copy.batch.method == CopyMethod::kKernel ? copy_by_kernel(stream, copy)
                                                  : copy_by_engine(stream, copy);
}

Status CudaCopier::copy_by_engine(CudaStream& stream, QueuedCopy& copy) {
  std::unique_ptr<CopyList> list = take_list();
  expand(copy.batch, *pinner_->cuts(), *list);
  bool queued = false;
  Status copied = submit(*list, stream.native, context_->gpu().has_memcpy_batch, queued);
  give_back(std::move(list));
  if (!copied && !queued) return copied;
  copy.done_pairs = copy.batch.from->size();
  note_copy(stream, copied, queued,
            {.counter = copy.batch.bytes_moved, .bytes = copied ? copy.bytes : 0});
  return {};
}

Status CudaCopier::copy_by_kernel(CudaStream& stream, QueuedCopy& copy) {
  const StridedCopyBatch& batch = copy.batch;
  const size_t num_pairs = batch.from->size();
  const bool travel = ids_travel(copy);
  if (copy.done_pairs == 0) KVBM_TRY(check_reach(*context_, batch));
  if (copy.bytes > 0 && !travel && stream.ids == nullptr) {
    KVBM_ASSIGN_OR_RETURN(std::byte* const memory, take_id_memory());
    stream.ids = std::make_unique<PinnedRing>(std::span(memory, kIdBytes));
  }
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
        if (!slice.has_value()) return stream.adopted ? too_many_ids(stream) : Status();
        ids = write_ids(batch, copy.done_pairs, count,
                        reinterpret_cast<uint32_t*>(slice->bytes().data()));
        arrival.ids = *std::move(slice);
      }
      copied = launch_copy(batch, ids, stream.native, queued);
      if (!copied && !queued && copy.done_pairs == 0) return copied;
      if (copied) arrival.bytes = copy.bytes / num_pairs * count;
    }
    copy.done_pairs += copied ? count : left;
    note_copy(stream, copied, queued, std::move(arrival));
  } while (!copy.is_done());
  return {};
}

void CudaCopier::forget(CudaStream& stream) {
  if (stream.ids != nullptr) give_back_id_memory(stream.ids->memory().data());
}

void CudaCopier::close() noexcept {
  const MutexLock lock(ids_mutex_);
  for (void* const memory : id_memory_) static_cast<void>(::cudaFreeHost(memory));
  id_memory_.clear();
  free_id_memory_.clear();
}

Result<std::byte*> CudaCopier::take_id_memory() {
  const MutexLock lock(ids_mutex_);
  if (free_id_memory_.empty()) {
    void* memory = nullptr;
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

void CudaCopier::give_back(std::unique_ptr<CopyList> list) {
  list->clear();
  const MutexLock lock(lists_mutex_);
  lists_.push_back(std::move(list));
}

}  // namespace kvbm::internal
