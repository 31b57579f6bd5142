// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cuda/internal/cuda_patterns.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <span>
#include <utility>

#include <kvbm/kernels.h>

#include "kvbm/adapters/cuda/internal/kernel_copy.hpp"

namespace kvbm::internal {

namespace {

/// Blocks of one launch at most.
constexpr size_t kMostBlocks = 16384;

/// The same memory as a copy onto itself, which is what the check of a kernel's addresses takes.
StridedCopyBatch as_copy(const PatternBatch& batch) {
  std::vector<StridedPiece> pieces;
  pieces.reserve(batch.pieces.size());
  for (const PatternPiece& piece : batch.pieces) {
    pieces.push_back({.src = piece.data,
                      .dst = piece.data,
                      .src_block_stride = piece.block_stride,
                      .dst_block_stride = piece.block_stride,
                      .bytes = piece.bytes});
  }
  const BlockList blocks = make_block_list(batch.blocks);
  return {.from = blocks, .to = blocks, .pieces = std::move(pieces)};
}

std::vector<kvbm_pattern_piece> native_pieces(const PatternBatch& batch) {
  std::vector<kvbm_pattern_piece> pieces;
  pieces.reserve(batch.pieces.size());
  for (const PatternPiece& piece : batch.pieces) {
    pieces.push_back({.data = piece.data,
                      .block_stride = piece.block_stride,
                      .bytes = piece.bytes,
                      .seed = piece.seed});
  }
  return pieces;
}

}  // namespace

/// [kMostBlocks] each.
struct CudaPatterns::Room {
  uint64_t* seeds = nullptr;        // shared with the GPU
  uint64_t* found = nullptr;        // likewise
  uint32_t* ids = nullptr;          // likewise
  uint64_t* first_wrong = nullptr;  // of the GPU
};

struct CudaPatterns::Store {
  Mutex mutex{LockRank::kDevice, "device.cuda_patterns", 0};
  std::vector<std::unique_ptr<Room>> rooms KVBM_GUARDED_BY(mutex);
  std::vector<Room*> free KVBM_GUARDED_BY(mutex);
};

CudaPatterns::CudaPatterns(std::shared_ptr<const CudaContext> context)
    : context_(std::move(context)), store_(std::make_shared<Store>()) {}

Result<std::shared_ptr<CudaPatterns::Room>> CudaPatterns::take_room() {
  const auto lent = [store = store_](Room* room) {
    const MutexLock lock(store->mutex);
    store->free.push_back(room);
  };
  const MutexLock lock(store_->mutex);
  if (store_->free.empty()) {
    constexpr size_t kShared = kMostBlocks * (2 * sizeof(uint64_t) + sizeof(uint32_t));
    auto room = std::make_unique<Room>();
    void* shared = nullptr;
    void* first_wrong = nullptr;
    if (const cudaError_t code =
            ::cudaHostAlloc(&shared, kShared, cudaHostAllocMapped | cudaHostAllocPortable)) {
      return make_error(cuda_error("no memory for the ids of a pattern", code));
    }
    if (const cudaError_t code = ::cudaMalloc(&first_wrong, kMostBlocks * sizeof(uint64_t))) {
      static_cast<void>(::cudaFreeHost(shared));
      return make_error(cuda_error("no memory for what is found of a pattern", code));
    }
    room->first_wrong = static_cast<uint64_t*>(first_wrong);
    room->seeds = static_cast<uint64_t*>(shared);
    room->found = room->seeds + kMostBlocks;
    room->ids = reinterpret_cast<uint32_t*>(room->found + kMostBlocks);
    store_->free.push_back(room.get());
    store_->rooms.push_back(std::move(room));
  }
  Room* const room = store_->free.back();
  store_->free.pop_back();
  return std::shared_ptr<Room>(room, lent);
}

Status CudaPatterns::load() {
  KVBM_ASSIGN_OR_RETURN(const std::shared_ptr<Room> room, take_room());
  room->ids[0] = 0;
  room->seeds[0] = 0;
  cudaStream_t stream = nullptr;
  if (const cudaError_t code = ::cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking)) {
    return make_error(cuda_error("no stream", code));
  }
  int code = 0;
  // Both kernels of filling and of comparing: with addresses that are aligned, and not so.
  for (const size_t offset : {size_t{0}, size_t{1}}) {
    const kvbm_pattern_piece piece{.data = reinterpret_cast<std::byte*>(room->found) + offset,
                                   .block_stride = 0,
                                   .bytes = 64,
                                   .seed = 0};
    for (uint64_t* const first_wrong : {static_cast<uint64_t*>(nullptr), room->first_wrong}) {
      if (code != 0) break;
      code =
          ::kvbm_kernels_launch_pattern(&piece, 1, room->ids, room->seeds, 1, first_wrong, stream);
    }
  }
  if (code == 0) code = ::cudaStreamSynchronize(stream);
  static_cast<void>(::cudaStreamDestroy(stream));
  if (code != 0) {
    Error error = cuda_error("no kernels of patterns for this GPU", code);
    return make_error(
        Error(ErrorCode::kUnsupported, std::string(error.message()), NativeDomain::kCuda, code));
  }
  return {};
}

Status CudaPatterns::launch(CudaStream& stream, const PatternBatch& batch) {
  {
    const MutexLock lock(stream.mutex);
    if (stream.failure.has_value()) {
      stream.anything_since_record = true;
      return {};  // the next event fails all the same
    }
  }
  KVBM_TRY(check_reach(*context_, as_copy(batch)));
  for (size_t first = 0; first < batch.blocks.size(); first += kMostBlocks) {
    const size_t count = std::min(kMostBlocks, batch.blocks.size() - first);
    bool queued = first > 0;
    Status launched = launch_part(stream, batch, first, count, queued);
    if (!launched && !queued) return launched;
    const MutexLock lock(stream.mutex);
    stream.note(launched);
    stream.native_since_mark = true;
    if (!launched) return {};
  }
  return {};
}

Status CudaPatterns::launch_part(CudaStream& stream, const PatternBatch& batch, size_t first,
                                 size_t count, bool& queued) {
  KVBM_ASSIGN_OR_RETURN(std::shared_ptr<Room> room, take_room());
  for (size_t i = 0; i < count; ++i) {
    room->ids[i] = batch.blocks[first + i].value();
    room->seeds[i] = batch.seeds[first + i];
  }
  const std::vector<kvbm_pattern_piece> pieces = native_pieces(batch);
  const bool compares = batch.findings != nullptr;
  int code =
      ::kvbm_kernels_launch_pattern(pieces.data(), pieces.size(), room->ids, room->seeds, count,
                                    compares ? room->first_wrong : nullptr, stream.native);
  queued = true;  // a part of it may be
  if (code == 0 && compares && !pieces.empty()) {
    code = ::cudaMemcpyAsync(room->found, room->first_wrong, count * sizeof(uint64_t),
                             cudaMemcpyDeviceToHost, stream.native);
  } else if (code == 0 && compares) {
    std::fill_n(room->found, count, PatternFindings::kNothingWrong);
  }
  Arrival arrival;
  arrival.on_end = [room = std::move(room), findings = code == 0 ? batch.findings : nullptr,
                    count](bool arrived) {
    if (arrived && findings != nullptr) findings->add({room->found, count});
  };
  {
    const MutexLock lock(stream.mutex);
    stream.add(std::move(arrival));
  }
  if (code != 0) return make_error(cuda_error("a pattern was not launched", code));
  return {};
}

void CudaPatterns::close() noexcept {
  const MutexLock lock(store_->mutex);
  for (const std::unique_ptr<Room>& room : store_->rooms) {
    static_cast<void>(::cudaFreeHost(room->seeds));
    static_cast<void>(::cudaFree(room->first_wrong));
  }
  store_->free.clear();
  store_->rooms.clear();
}

}  // namespace kvbm::internal
