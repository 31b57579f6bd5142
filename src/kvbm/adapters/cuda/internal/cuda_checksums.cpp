// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cuda/internal/cuda_checksums.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include <kvbm/kernels.h>

#include "kvbm/adapters/cuda/internal/kernel_copy.hpp"
#include "kvbm/base/hash.hpp"
#include "kvbm/base/mutex.hpp"

namespace kvbm::internal {

namespace {

/// Blocks of one launch at most.
constexpr size_t kMostBlocks = 4096;
/// Numbers in the GPU for each: of XXH3, the first of which is the checksum at the end.
constexpr size_t kSums = 8;

/// The same memory as a copy onto itself, which is what the check of a kernel's addresses takes.
StridedCopyBatch as_copy(const ChecksumBatch& batch) {
  std::vector<StridedPiece> pieces;
  pieces.reserve(batch.pieces.size());
  for (const ChecksumPiece& piece : batch.pieces) {
    StridedPiece same{.src = piece.data,
                      .dst = const_cast<std::byte*>(piece.data),
                      .src_block_stride = piece.block_stride,
                      .dst_block_stride = piece.block_stride,
                      .bytes = piece.count == 0 ? 0 : piece.bytes};
    same.axes.back() = {
        .count = std::max(piece.count, 1U), .src_stride = piece.stride, .dst_stride = piece.stride};
    pieces.push_back(same);
  }
  const BlockList blocks = make_block_list(batch.blocks);
  return {.from = blocks, .to = blocks, .pieces = std::move(pieces)};
}

std::vector<kvbm_checksum_piece> native_pieces(const ChecksumBatch& batch) {
  std::vector<kvbm_checksum_piece> pieces;
  pieces.reserve(batch.pieces.size());
  for (const ChecksumPiece& piece : batch.pieces) {
    pieces.push_back({.data = piece.data,
                      .block_stride = piece.block_stride,
                      .bytes = piece.bytes,
                      .stride = piece.stride,
                      .count = piece.count});
  }
  return pieces;
}

}  // namespace

/// [kMostBlocks] each.
struct CudaChecksums::Room {
  uint64_t* found = nullptr;  // shared with the GPU
  uint32_t* ids = nullptr;    // likewise
  uint64_t* sums = nullptr;   // of the GPU; kSums for each block
};

struct CudaChecksums::Store {
  Mutex mutex{LockRank::kDevice, "device.cuda_checksums", 0};
  std::vector<std::unique_ptr<Room>> rooms KVBM_GUARDED_BY(mutex);
  std::vector<Room*> free KVBM_GUARDED_BY(mutex);
};

CudaChecksums::CudaChecksums(std::shared_ptr<const CudaContext> context)
    : context_(std::move(context)), store_(std::make_shared<Store>()) {}

Result<std::shared_ptr<CudaChecksums::Room>> CudaChecksums::take_room() {
  const auto lent = [store = store_](Room* room) {
    const MutexLock lock(store->mutex);
    store->free.push_back(room);
  };
  const MutexLock lock(store_->mutex);
  if (store_->free.empty()) {
    constexpr size_t kShared = kMostBlocks * (sizeof(uint64_t) + sizeof(uint32_t));
    auto room = std::make_unique<Room>();
    void* shared = nullptr;
    void* sums = nullptr;
    if (const cudaError_t code =
            ::cudaHostAlloc(&shared, kShared, cudaHostAllocMapped | cudaHostAllocPortable)) {
      return make_error(cuda_error("no memory for the ids of checksums", code));
    }
    if (const cudaError_t code = ::cudaMalloc(&sums, kMostBlocks * kSums * sizeof(uint64_t))) {
      static_cast<void>(::cudaFreeHost(shared));
      return make_error(cuda_error("no memory for checksums", code));
    }
    room->found = static_cast<uint64_t*>(shared);
    room->ids = reinterpret_cast<uint32_t*>(room->found + kMostBlocks);
    room->sums = static_cast<uint64_t*>(sums);
    store_->free.push_back(room.get());
    store_->rooms.push_back(std::move(room));
  }
  Room* const room = store_->free.back();
  store_->free.pop_back();
  return std::shared_ptr<Room>(room, lent);
}

Status CudaChecksums::load() {
  KVBM_ASSIGN_OR_RETURN(const std::shared_ptr<Room> room, take_room());
  room->ids[0] = 0;
  cudaStream_t stream = nullptr;
  if (const cudaError_t code = ::cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking)) {
    return make_error(cuda_error("no stream", code));
  }
  // Of what the room itself has.
  const kvbm_checksum_piece piece{
      .data = room->found, .block_stride = 0, .bytes = kChecksumUnit, .stride = 0, .count = 1};
  int code =
      ::kvbm_kernels_launch_checksum(&piece, 1, room->ids, 1, kChecksumSeed, room->sums, stream);
  if (code == 0) code = ::cudaStreamSynchronize(stream);
  static_cast<void>(::cudaStreamDestroy(stream));
  if (code != 0) {
    const Error error = cuda_error("no kernel of checksums for this GPU", code);
    return make_error(
        Error(ErrorCode::kUnsupported, std::string(error.message()), NativeDomain::kCuda, code));
  }
  return {};
}

Status CudaChecksums::launch(CudaStream& stream, const ChecksumBatch& batch) {
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

Status CudaChecksums::launch_part(CudaStream& stream, const ChecksumBatch& batch, size_t first,
                                  size_t count, bool& queued) {
  KVBM_ASSIGN_OR_RETURN(std::shared_ptr<Room> room, take_room());
  for (size_t i = 0; i < count; ++i) room->ids[i] = batch.blocks[first + i].value();
  const std::vector<kvbm_checksum_piece> pieces = native_pieces(batch);
  int code = ::kvbm_kernels_launch_checksum(pieces.data(), pieces.size(), room->ids, count,
                                            kChecksumSeed, room->sums, stream.native);
  queued = true;  // a part of it may be
  if (code == 0) {
    code = ::cudaMemcpy2DAsync(room->found, sizeof(uint64_t), room->sums, kSums * sizeof(uint64_t),
                               sizeof(uint64_t), count, cudaMemcpyDeviceToHost, stream.native);
  }
  Arrival arrival;
  arrival.on_end = [room = std::move(room), checksums = batch.checksums, count,
                    launched = code == 0](bool arrived) {
    if (arrived && launched) checksums->add({room->found, count});
  };
  {
    const MutexLock lock(stream.mutex);
    stream.add(std::move(arrival));
  }
  if (code != 0) return make_error(cuda_error("checksums were not launched", code));
  return {};
}

void CudaChecksums::close() noexcept {
  const MutexLock lock(store_->mutex);
  for (const std::unique_ptr<Room>& room : store_->rooms) {
    static_cast<void>(::cudaFreeHost(room->found));
    static_cast<void>(::cudaFree(room->sums));
  }
  store_->free.clear();
  store_->rooms.clear();
}

}  // namespace kvbm::internal
