// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>

#include <algorithm>

#include "device_access.cuh"
#include "launch.cuh"
#include "strided_plan.hpp"

namespace kvbm::kernels {
namespace {

constexpr uint32_t kThreads = 512;
/// Where CTAs may be as many as there is work for: small ones end and begin side by side.
constexpr uint32_t kFewThreads = 128;
constexpr uint32_t kAllLanes = 0xFFFFFFFF;
/// Chunks that a warp has in flight where its cells are stepped: with 2, two CTAs fill a PCIe 5
/// link with reads.
constexpr uint32_t kChunksPerTurn = 2;

struct Cell {
  const char* src;
  char* dst;
  uint32_t part;
  uint32_t within;  ///< the cell's number inside its part
};

/// Source and destination of a part.
__device__ __forceinline__ Base base_of(const StridedLaunch& launch, const IdPair* ids,
                                        uint32_t part) {
  const Division block = divide(part, launch.bases_count);
  const IdPair id =
      launch.from_ids == nullptr ? ids_in(launch, block.quotient) : ids[block.quotient];
  const Base base = base_in(launch, block.remainder);
  return {base.src + id.from * launch.src_block_stride, base.dst + id.to * launch.dst_block_stride};
}

template <uint32_t kWidth>
__device__ __forceinline__ Cell find_cell(const StridedLaunch& launch, const IdPair* ids,
                                          uint32_t cell) {
  const Division part = divide(cell, launch.part_cells);
  const Base base = base_of(launch, ids, part.quotient);
  const Offsets offsets = offsets_in_part<kWidth>(launch, part.remainder);
  return {base.src + offsets.src, base.dst + offsets.dst, part.quotient, part.remainder};
}

__device__ __forceinline__ uint64_t digest_of(const uint4& value, uint32_t within) {
  return digest_term(uint64_t{value.y} << 32 | value.x, 2 * within) +
         digest_term(uint64_t{value.w} << 32 | value.z, 2 * within + 1);
}
__device__ __forceinline__ uint64_t digest_of(uint64_t value, uint32_t within) {
  return digest_term(value, within);
}

__device__ __forceinline__ void add_to_digest(const StridedLaunch& launch, uint32_t part,
                                              uint64_t term) {
  const Division block = divide(part, launch.bases_count);
  const uint64_t entry = uint64_t{block.quotient} * launch.num_pieces + block.remainder;
  atomicAdd(reinterpret_cast<unsigned long long*>(launch.digests + entry), term);
}

/// Adds what the lanes of a warp have for one part.
__device__ __forceinline__ void add_warp_to_digest(const StridedLaunch& launch, uint32_t part,
                                                   uint64_t term) {
  for (uint32_t distance = kWarp / 2; distance > 0; distance /= 2) {
    term += __shfl_down_sync(kAllLanes, term, distance);
  }
  if (threadIdx.x % kWarp == 0) add_to_digest(launch, part, term);
}

/// The cells of a thread are a constant stride apart, and in one part with those of the other
/// lanes.
template <uint32_t kWidth, Work kWork>
__device__ __forceinline__ void do_stepped(const StridedLaunch& launch, const IdPair* ids,
                                           uint32_t chunk, uint32_t num_chunks) {
  using Value = typename Access<kWidth>::Value;
  Cell first[kChunksPerTurn];
  Value values[kChunksPerTurn][kCellsPerThread];
#pragma unroll
  for (uint32_t j = 0; j < kChunksPerTurn; ++j) {
    if (chunk + j < num_chunks) {
      first[j] = find_cell<kWidth>(launch, ids, (chunk + j) * kChunkCells + threadIdx.x % kWarp);
#pragma unroll
      for (uint32_t i = 0; i < kCellsPerThread; ++i) {
        values[j][i] = Access<kWidth>::load(first[j].src + i * launch.src_step);
      }
    }
  }
#pragma unroll
  for (uint32_t j = 0; j < kChunksPerTurn; ++j) {
    if (chunk + j >= num_chunks) break;
    if constexpr (kWork != Work::kDigest) {
#pragma unroll
      for (uint32_t i = 0; i < kCellsPerThread; ++i) {
        Access<kWidth>::store(first[j].dst + i * launch.dst_step, values[j][i]);
      }
    }
    if constexpr (kWork != Work::kCopy) {
      uint64_t term = 0;
#pragma unroll
      for (uint32_t i = 0; i < kCellsPerThread; ++i) {
        term += digest_of(values[j][i], first[j].within + i * kWarp);
      }
      add_warp_to_digest(launch, first[j].part, term);
    }
  }
}

template <uint32_t kWidth, Work kWork>
__device__ __forceinline__ void do_any(const StridedLaunch& launch, const IdPair* ids,
                                       uint32_t chunk) {
  using Value = typename Access<kWidth>::Value;
  const uint32_t first = chunk * kChunkCells + threadIdx.x % kWarp;
  Cell cells[kCellsPerThread];
  Value values[kCellsPerThread];
#pragma unroll
  for (uint32_t i = 0; i < kCellsPerThread; ++i) {
    if (first + i * kWarp < launch.num_cells) {
      cells[i] = find_cell<kWidth>(launch, ids, first + i * kWarp);
      values[i] = Access<kWidth>::load(cells[i].src);
    }
  }
  if constexpr (kWork != Work::kDigest) {
#pragma unroll
    for (uint32_t i = 0; i < kCellsPerThread; ++i) {
      if (first + i * kWarp < launch.num_cells) Access<kWidth>::store(cells[i].dst, values[i]);
    }
  }
  if constexpr (kWork != Work::kCopy) {
    // Lane 0 has a first cell: there is no chunk without cells.
    const uint32_t part = __shfl_sync(kAllLanes, cells[0].part, 0);
    uint64_t terms[kCellsPerThread] = {};
    uint64_t sum = 0;
    bool same = true;
#pragma unroll
    for (uint32_t i = 0; i < kCellsPerThread; ++i) {
      if (first + i * kWarp < launch.num_cells) {
        terms[i] = digest_of(values[i], cells[i].within);
        sum += terms[i];
        same = same && cells[i].part == part;
      }
    }
    if (__all_sync(kAllLanes, same)) {
      add_warp_to_digest(launch, part, sum);
    } else {
#pragma unroll
      for (uint32_t i = 0; i < kCellsPerThread; ++i) {
        if (first + i * kWarp < launch.num_cells) add_to_digest(launch, cells[i].part, terms[i]);
      }
    }
  }
}

/// Digests where cells are narrower than words: each thread puts its words together.
template <uint32_t kWidth, Work kWork>
__device__ void do_words(const StridedLaunch& launch, const IdPair* ids, uint32_t chunk) {
  for (uint32_t i = 0; i < kCellsPerThread; ++i) {
    const uint32_t number = chunk * kChunkCells + i * kWarp + threadIdx.x % kWarp;
    if (number >= launch.num_cells) return;
    const Division part = divide(number, launch.part_cells);
    const Base base = base_of(launch, ids, part.quotient);
    uint64_t word = 0;
    for (uint32_t j = 0; j < cells_of_word(kWidth); ++j) {
      const uint32_t cell = part.remainder * cells_of_word(kWidth) + j;
      if (cell >= launch.cells_in_part) break;
      const Offsets offsets = offsets_in_part<kWidth>(launch, cell);
      const auto value = Access<kWidth>::load(base.src + offsets.src);
      if constexpr (kWork != Work::kDigest) Access<kWidth>::store(base.dst + offsets.dst, value);
      word |= static_cast<uint64_t>(value) << (8 * kWidth * j);
    }
    add_to_digest(launch, part.quotient, digest_term(word, part.remainder));
  }
}

__device__ __forceinline__ uint64_t now_ticks() {
  uint64_t now = 0;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  return now * kTicks;
}

/// Gives each warp its turns at a distance in time, so that all together keep to a rate: those of
/// the launch, or of all launches that share a pace.
class Pace {
 public:
  __device__ Pace(const StridedLaunch& launch, uint32_t warp, uint32_t num_warps)
      : launch_(launch), round_ticks_(launch.turn_ticks * num_warps) {
    if (launch.turn_ticks == 0) return;
    if (launch.shared_pace == nullptr) {
      due_ = now_ticks() + launch.turn_ticks * warp;
    } else if (threadIdx.x % kWarp == 0) {
      due_ = take_turn(launch.shared_pace, now_ticks(), launch.turn_ticks);
    }
  }

  /// `is_last`: of the warp's turns.
  __device__ __forceinline__ void wait(bool is_last) {
    if (launch_.turn_ticks == 0) return;
    if (threadIdx.x % kWarp == 0) {
      const bool shared = launch_.shared_pace != nullptr;
      uint64_t now = now_ticks();
      // Whoever is a round late has lost the turn: what was missed is not made up for by a burst.
      if (now > due_ + round_ticks_) {
        due_ = shared ? take_turn(launch_.shared_pace, now, launch_.turn_ticks) : now;
      }
      for (; now < due_; now = now_ticks()) __nanosleep(due_ - now > 200 * kTicks ? 200 : 20);
      if (!shared) {
        due_ += round_ticks_;
      } else if (!is_last) {
        // Now, so that it is known when this turn has ended.
        due_ = take_turn(launch_.shared_pace, now, launch_.turn_ticks);
      }
    }
    __syncwarp();
  }

 private:
  const StridedLaunch& launch_;
  const uint64_t round_ticks_;
  uint64_t due_ = 0;  ///< of the first lane
};

template <uint32_t kWidth, bool kStepped, Work kWork>
__global__ void __launch_bounds__(kThreads, 2)
    strided_kernel(const __grid_constant__ StridedLaunch launch) {
  extern __shared__ IdPair ids[];
  if (launch.from_ids != nullptr) {
    for (uint32_t i = threadIdx.x; i < launch.num_blocks; i += blockDim.x) {
      ids[i] = {launch.from_ids[i], launch.to_ids[i]};
    }
    __syncthreads();
  }

  const uint32_t num_chunks = (launch.num_cells + kChunkCells - 1) / kChunkCells;
  const uint32_t batch = kStepped ? kChunksPerTurn : 1;
  const uint32_t warps_of_cta = blockDim.x / kWarp;
  const uint32_t num_warps = gridDim.x * warps_of_cta;
  const uint32_t warp = blockIdx.x * warps_of_cta + threadIdx.x / kWarp;
  if (warp * batch >= num_chunks) return;  // and takes no turn
  Pace pace(launch, warp, num_warps);
  for (uint32_t chunk = warp * batch; chunk < num_chunks; chunk += num_warps * batch) {
    pace.wait(num_chunks - chunk <= num_warps * batch);
    if constexpr (kStepped) {
      do_stepped<kWidth, kWork>(launch, ids, chunk, num_chunks);
    } else if constexpr (kWork != Work::kCopy && kWidth < 8) {
      do_words<kWidth, kWork>(launch, ids, chunk);
    } else {
      do_any<kWidth, kWork>(launch, ids, chunk);
    }
  }
}

using Kernel = void (*)(StridedLaunch);

template <Work kWork>
Kernel kernel_of(uint32_t width, bool stepped) {
  switch (width) {
    case 16:
      return stepped ? strided_kernel<16, true, kWork> : strided_kernel<16, false, kWork>;
    case 8:
      return strided_kernel<8, false, kWork>;
    case 4:
      return strided_kernel<4, false, kWork>;
    case 2:
      return strided_kernel<2, false, kWork>;
    default:
      return strided_kernel<1, false, kWork>;
  }
}

Kernel kernel_of(Work work, uint32_t width, bool stepped) {
  switch (work) {
    case Work::kCopy:
      return kernel_of<Work::kCopy>(width, stepped);
    case Work::kCopyAndDigest:
      return kernel_of<Work::kCopyAndDigest>(width, stepped);
    default:
      return kernel_of<Work::kDigest>(width, stepped);
  }
}

bool is_host(const void* address) {
  cudaPointerAttributes attributes;
  if (cudaPointerGetAttributes(&attributes, address) != cudaSuccess) {
    cudaGetLastError();
    return false;
  }
  return attributes.type == cudaMemoryTypeHost || attributes.type == cudaMemoryTypeUnregistered;
}

/// How a launch is cut into thread blocks.
struct Grid {
  uint32_t ctas = 0;
  uint32_t threads = kThreads;
};

/// How many CTAs at most, where nobody has said it; 0: all that fit. Reads over a link need many
/// bytes in flight, writes few; device memory needs all there are.
uint32_t choose_ctas(const kvbm_strided_piece& piece, Work work) {
  if (work == Work::kDigest || is_host(piece.src)) return 4;
  return is_host(piece.dst) ? 2 : 0;
}

/// For a launch with `max_ctas`, or 0 for all that fit.
int choose_grid(const StridedLaunch& launch, uint32_t max_ctas, bool paced, Grid& grid) {
  const uint32_t chunks = (launch.num_cells + kChunkCells - 1) / kChunkCells;
  if (max_ctas == 0 && launch.from_ids == nullptr && !paced) {
    // A turn a warp: the GPU hands out what is left as SMs come free.
    constexpr uint32_t kWarpsOfCta = kFewThreads / kWarp;
    const uint32_t turns = launch.stepped ? (chunks + kChunksPerTurn - 1) / kChunksPerTurn : chunks;
    grid = {(turns + kWarpsOfCta - 1) / kWarpsOfCta, kFewThreads};
    return cudaSuccess;
  }
  if (max_ctas == 0) {
    uint32_t processors = 0;
    if (const int error = count_processors(processors); error != cudaSuccess) return error;
    max_ctas = 4 * processors;
  }
  constexpr uint32_t kWarpsOfCta = kThreads / kWarp;
  grid = {std::min(max_ctas, (chunks + kWarpsOfCta - 1) / kWarpsOfCta), kThreads};
  return cudaSuccess;
}

/// Of the pace, for what a warp moves in a turn.
uint64_t turn_ticks(const StridedLaunch& launch, Work work, uint64_t bytes_per_second) {
  if (bytes_per_second == 0) return 0;
  const uint32_t cell_bytes = work == Work::kCopy ? launch.width : std::max(launch.width, 8U);
  const uint64_t turn_bytes =
      uint64_t{kChunkCells} * cell_bytes * (launch.stepped ? kChunksPerTurn : 1);
  return std::max<uint64_t>(paced_ticks(turn_bytes, bytes_per_second), 1);
}

int run(StridedLaunch& launch, Work work, uint32_t max_ctas,
        const kvbm_strided_copy_options& options, cudaStream_t stream) {
  Grid grid;
  const int error = choose_grid(launch, max_ctas, options.max_bytes_per_second > 0, grid);
  if (error != cudaSuccess) return error;
  launch.turn_ticks = turn_ticks(launch, work, options.max_bytes_per_second);
  launch.shared_pace = reinterpret_cast<unsigned long long*>(options.shared_pace);
  const size_t shared_bytes = launch.from_ids == nullptr ? 0 : launch.num_blocks * sizeof(IdPair);
  return launch_kernel(kernel_of(work, launch.width, launch.stepped), grid.ctas, grid.threads,
                       launch, stream, shared_bytes);
}

int run(StridedPlan& plan, size_t num_digests, Work work, const kvbm_strided_copy_options& options,
        cudaStream_t stream) {
  if (const int error = plan.check(); error != KVBM_KERNELS_SUCCESS) return error;
  if (!plan.has_work()) return KVBM_KERNELS_SUCCESS;
  const uint32_t max_ctas =
      options.max_ctas != 0 ? options.max_ctas : choose_ctas(plan.first_piece(), work);
  if (work != Work::kCopy) {
    const int error = cudaMemsetAsync(options.digests, 0, num_digests * sizeof(uint64_t), stream);
    if (error != cudaSuccess) return error;
  }
  StridedLaunch launch;
  while (plan.next(launch)) {
    const int error = run(launch, work, max_ctas, options, stream);
    if (error != cudaSuccess) return error;
  }
  return KVBM_KERNELS_SUCCESS;
}

int copy(const kvbm_strided_piece* pieces, size_t num_pieces, const Blocks& blocks,
         const kvbm_strided_copy_options* options, cudaStream_t stream) {
  const kvbm_strided_copy_options chosen = options ? *options : kvbm_strided_copy_options{};
  const Work work = chosen.digests ? Work::kCopyAndDigest : Work::kCopy;
  StridedPlan plan(pieces, num_pieces, blocks.from_ids, blocks.to_ids, blocks.count, chosen.digests,
                   work, blocks.ids_in);
  return run(plan, num_pieces * blocks.count, work, chosen, stream);
}

}  // namespace
}  // namespace kvbm::kernels

using namespace kvbm::kernels;

int kvbm_kernels_launch_strided_copy(const kvbm_strided_piece* pieces, size_t num_pieces,
                                     const uint32_t* from_ids, const uint32_t* to_ids,
                                     size_t num_blocks, const kvbm_strided_copy_options* options,
                                     kvbm_kernels_stream stream) {
  return copy(pieces, num_pieces, {from_ids, to_ids, num_blocks, IdsIn::kMemory}, options, stream);
}

int kvbm_kernels_launch_strided_copy_host_ids(const kvbm_strided_piece* pieces, size_t num_pieces,
                                              const uint32_t* from_ids, const uint32_t* to_ids,
                                              size_t num_blocks,
                                              const kvbm_strided_copy_options* options,
                                              kvbm_kernels_stream stream) {
  return copy(pieces, num_pieces, {from_ids, to_ids, num_blocks, IdsIn::kLaunch}, options, stream);
}

int kvbm_kernels_launch_strided_plan(const kvbm_kernels_strided_plan* plan,
                                     const uint32_t* from_ids, const uint32_t* to_ids,
                                     size_t num_blocks, const kvbm_strided_copy_options* options,
                                     kvbm_kernels_stream stream) {
  const Blocks blocks = {from_ids, to_ids, num_blocks, IdsIn::kLaunch};
  if (const int error = plan->check(blocks, options); error != KVBM_KERNELS_SUCCESS) return error;
  if (num_blocks == 0 || plan->groups.empty()) return KVBM_KERNELS_SUCCESS;
  const kvbm_strided_copy_options chosen = options ? *options : kvbm_strided_copy_options{};
  const uint32_t max_ctas =
      chosen.max_ctas != 0 ? chosen.max_ctas : choose_ctas(plan->first, Work::kCopy);
  StridedLaunch launch;
  for (const StridedLaunch& group : plan->groups) {
    for (size_t next_block = 0; next_block < num_blocks;) {
      cut_launch(group, blocks, next_block, launch);
      const int error = run(launch, Work::kCopy, max_ctas, chosen, stream);
      if (error != cudaSuccess) return error;
    }
  }
  return KVBM_KERNELS_SUCCESS;
}

int kvbm_kernels_launch_digest(const kvbm_strided_piece* pieces, size_t num_pieces,
                               const uint32_t* ids, size_t num_blocks,
                               const kvbm_strided_copy_options* options,
                               kvbm_kernels_stream stream) {
  const kvbm_strided_copy_options chosen = options ? *options : kvbm_strided_copy_options{};
  StridedPlan plan(pieces, num_pieces, ids, ids, num_blocks, chosen.digests, Work::kDigest);
  return run(plan, num_pieces * num_blocks, Work::kDigest, chosen, stream);
}
