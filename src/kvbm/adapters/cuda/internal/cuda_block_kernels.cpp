// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cuda/internal/cuda_block_kernels.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <kvbm/kernels.h>

#include "kvbm/adapters/cuda/internal/kernel_copy.hpp"
#include "kvbm/base/hash.hpp"
#include "kvbm/base/text.hpp"

namespace kvbm::internal {

struct CudaBlockKernels::Work {
  const std::vector<BlockId>& blocks;
  /// What is touched of a block: as copies onto itself, which the check of a kernel's addresses
  /// takes.
  std::vector<StridedPiece> touched = {};
  /// Puts the blocks from `first` on, `count` whose ids are in the room, on the stream, and
  /// behind them the way of what is told of them to `found`. An error of CUDA.
  std::function<int(const CudaRoom& room, size_t first, size_t count)> put = nullptr;
  /// What was found of the next blocks; null: there is nothing to tell.
  std::function<void(std::span<const uint64_t>)> tell = nullptr;
};

Status CudaBlockKernels::load(std::string_view what,
                              const std::function<int(const CudaRoom&, CUstream_st*)>& put) {
  KVBM_ASSIGN_OR_RETURN(const std::shared_ptr<const CudaRoom> room, rooms_.take());
  room->ids[0] = 0;
  room->seeds[0] = 0;
  cudaStream_t stream = nullptr;
  if (const cudaError_t code = ::cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking)) {
    return make_error(cuda_error("no stream", code));
  }
  int code = put(*room, stream);
  if (code == 0) code = ::cudaStreamSynchronize(stream);
  static_cast<void>(::cudaStreamDestroy(stream));
  if (code == 0) return {};
  const Error error = cuda_error(format_text("no {} for this GPU", what), code);
  return make_error(
      Error(ErrorCode::kUnsupported, std::string(error.message()), NativeDomain::kCuda, code));
}

Status CudaBlockKernels::launch(CudaStream& stream, const Work& work) {
  {
    const MutexLock lock(stream.mutex);
    if (stream.failure.has_value()) {
      stream.anything_since_record = true;
      return {};  // the next event fails all the same
    }
    stream.arrivals.make_room(work.blocks.size() / CudaRoom::kMostBlocks + 1);
  }
  KVBM_TRY(
      check_reach(*context_, {.pairs = make_block_pairs(work.blocks), .pieces = work.touched}));
  for (size_t first = 0; first < work.blocks.size(); first += CudaRoom::kMostBlocks) {
    const size_t count = std::min(CudaRoom::kMostBlocks, work.blocks.size() - first);
    auto room = rooms_.take();
    if (!room && first == 0) return make_error(std::move(room).error());
    Status launched;
    Arrival arrival;
    if (room) {
      for (size_t i = 0; i < count; ++i) (*room)->ids[i] = work.blocks[first + i].value();
      // Before the launch: what it has is not to be lent again for want of memory.
      arrival.on_end = [room = *room, count, tell = work.tell](bool arrived) {
        if (arrived && tell) tell({room->found, count});
      };
      const int code = work.put(**room, first, count);
      if (code != 0) {
        // A part of it may be on the stream, and has nothing to tell.
        arrival.on_end = [room = *room](bool /*arrived*/) {};
        launched = make_error(cuda_error("a kernel was not launched", code));
      }
    } else {
      launched = make_error(std::move(room).error());
    }
    const MutexLock lock(stream.mutex);
    if (arrival.on_end) stream.add(std::move(arrival));
    stream.note(launched);
    stream.native_since_mark = true;
    if (!launched) return {};
  }
  return {};
}

// --- patterns ------------------------------------------------------------------------------------

Status CudaBlockKernels::load_patterns() {
  return load("kernels of patterns", [](const CudaRoom& room, CUstream_st* stream) {
    int code = 0;
    // Of filling and of comparing, each with addresses that are aligned, and not so.
    for (const size_t offset : {size_t{0}, size_t{1}}) {
      const kvbm_pattern_piece piece{.data = reinterpret_cast<std::byte*>(room.found) + offset,
                                     .block_stride = 0,
                                     .bytes = 64,
                                     .seed = 0};
      for (uint64_t* const first_wrong : {static_cast<uint64_t*>(nullptr), room.numbers}) {
        if (code != 0) break;
        code =
            ::kvbm_kernels_launch_pattern(&piece, 1, room.ids, room.seeds, 1, first_wrong, stream);
      }
    }
    return code;
  });
}

Status CudaBlockKernels::launch(CudaStream& stream, const PatternBatch& batch) {
  Work work{.blocks = batch.blocks};
  std::vector<kvbm_pattern_piece> pieces;
  for (const PatternPiece& piece : batch.pieces) {
    work.touched.push_back({.src = piece.data,
                            .dst = piece.data,
                            .src_block_stride = piece.block_stride,
                            .dst_block_stride = piece.block_stride,
                            .bytes = piece.bytes});
    pieces.push_back({.data = piece.data,
                      .block_stride = piece.block_stride,
                      .bytes = piece.bytes,
                      .seed = piece.seed});
  }
  const bool compares = batch.findings != nullptr;
  work.put = [&](const CudaRoom& room, size_t first, size_t count) -> int {
    std::copy_n(batch.seeds.data() + first, count, room.seeds);
    const int code =
        ::kvbm_kernels_launch_pattern(pieces.data(), pieces.size(), room.ids, room.seeds, count,
                                      compares ? room.numbers : nullptr, stream.native);
    if (code != 0 || !compares) return code;
    if (pieces.empty()) {
      std::fill_n(room.found, count, PatternFindings::kNothingWrong);
      return 0;
    }
    return ::cudaMemcpyAsync(room.found, room.numbers, count * sizeof(uint64_t),
                             cudaMemcpyDeviceToHost, stream.native);
  };
  if (compares) {
    work.tell = [findings = batch.findings](std::span<const uint64_t> found) {
      findings->add(found);
    };
  }
  return launch(stream, work);
}

// --- checksums -----------------------------------------------------------------------------------

Status CudaBlockKernels::load_checksums() {
  return load("kernel of checksums", [](const CudaRoom& room, CUstream_st* stream) {
    const kvbm_checksum_piece piece{
        .data = room.found, .block_stride = 0, .bytes = kChecksumUnit, .stride = 0, .count = 1};
    return ::kvbm_kernels_launch_checksum(&piece, 1, room.ids, 1, kChecksumSeed, room.numbers,
                                          stream);
  });
}

Status CudaBlockKernels::launch(CudaStream& stream, const ChecksumBatch& batch) {
  Work work{.blocks = batch.blocks};
  std::vector<kvbm_checksum_piece> pieces;
  for (const ChecksumPiece& piece : batch.pieces) {
    StridedPiece& touched = work.touched.emplace_back();
    touched = {.src = piece.data,
               .dst = const_cast<std::byte*>(piece.data),
               .src_block_stride = piece.block_stride,
               .dst_block_stride = piece.block_stride,
               .bytes = piece.bytes};
    touched.axes.back() = {
        .count = piece.count, .src_stride = piece.stride, .dst_stride = piece.stride};
    pieces.push_back({.data = piece.data,
                      .block_stride = piece.block_stride,
                      .bytes = piece.bytes,
                      .stride = piece.stride,
                      .count = piece.count});
  }
  work.put = [&](const CudaRoom& room, size_t /*first*/, size_t count) -> int {
    const int code = ::kvbm_kernels_launch_checksum(pieces.data(), pieces.size(), room.ids, count,
                                                    kChecksumSeed, room.numbers, stream.native);
    if (code != 0) return code;
    // The first number of each block.
    return ::cudaMemcpy2DAsync(room.found, sizeof(uint64_t), room.numbers,
                               CudaRoom::kNumbers * sizeof(uint64_t), sizeof(uint64_t), count,
                               cudaMemcpyDeviceToHost, stream.native);
  };
  work.tell = [checksums = batch.checksums](std::span<const uint64_t> found) {
    checksums->add(found);
  };
  return launch(stream, work);
}

}  // namespace kvbm::internal
