// SPDX-License-Identifier: Apache-2.0
// Measures the kernels against plain copies of the same run, and prints JSON.
//
//   kvbm_kernels_bench [--quick]
//   [fragments|one_block|sizes|permutes|fused|both|digests|beside|submission]...
//
// GB are 1e9 bytes; a share is of the plain copy of as many bytes in the same run.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include <kvbm/kernels.h>

#include "matrix_product.hpp"

namespace {

void check(int error, const char* what) {
  if (error == 0) return;
  std::fprintf(stderr, "%s: error %d, %s\n", what, error,
               cudaGetErrorString(static_cast<cudaError_t>(error)));
  std::exit(1);
}
#define CHECK(call) check((call), #call)

constexpr size_t kMiB = size_t{1} << 20;

// --- what is measured: Llama 3.1 70B in bf16, 16 tokens a block ----------------------------------

constexpr size_t kLayers = 80, kOuter = 2, kTokens = 16, kHeads = 8, kHeadDim = 128, kWidth = 2;
constexpr size_t kRow = kHeadDim * kWidth;
constexpr size_t kChunk = kTokens * kHeads * kRow;    // 32 KiB
constexpr size_t kBlock = kLayers * kOuter * kChunk;  // 5 MiB
constexpr size_t kBlocks = 128;
constexpr size_t kTotal = kBlocks * kBlock;  // 640 MiB in 20,480 chunks

enum class Way { kH2d, kD2h };
const char* name(Way way) { return way == Way::kH2d ? "h2d" : "d2h"; }

cudaStream_t stream, other_stream;
int iterations = 15;
std::string results;

void add(const std::string& section, const std::string& what, const std::string& fields) {
  char line[600];
  std::snprintf(line, sizeof line, "%s\n    {\"section\": \"%s\", \"case\": \"%s\", %s}",
                results.empty() ? "" : ",", section.c_str(), what.c_str(), fields.c_str());
  results += line;
}

/// Median of the milliseconds between events around `work`.
double measure(const std::function<void()>& work, int count = 0) {
  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  for (int i = 0; i < 3; ++i) work();
  std::vector<float> times;
  for (int i = 0; i < (count > 0 ? count : iterations); ++i) {
    CHECK(cudaEventRecord(begin, stream));
    work();
    CHECK(cudaEventRecord(end, stream));
    CHECK(cudaEventSynchronize(end));
    float ms = 0;
    CHECK(cudaEventElapsedTime(&ms, begin, end));
    times.push_back(ms);
  }
  CHECK(cudaGetLastError());
  CHECK(cudaEventDestroy(begin));
  CHECK(cudaEventDestroy(end));
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2];
}

double add_rate(const std::string& section, const std::string& what, size_t bytes, double ms,
                double peak_gbps) {
  const double gbps = static_cast<double>(bytes) / ms * 1e-6;
  char fields[300];
  std::snprintf(
      fields, sizeof fields,
      "\"bytes\": %zu, \"ms\": %.4f, \"gbps\": %.2f, \"peak_gbps\": %.2f, \"share\": %.3f", bytes,
      ms, gbps, peak_gbps > 0 ? peak_gbps : gbps, peak_gbps > 0 ? gbps / peak_gbps : 1.0);
  add(section, what, fields);
  return gbps;
}

__global__ void fill(uint4* data, size_t count, uint32_t seed) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count;
       i += size_t{gridDim.x} * blockDim.x) {
    const uint32_t x = static_cast<uint32_t>(i) * 2654435761U + seed;
    data[i] = make_uint4(x, x ^ 0x9E3779B9U, x * 747796405U, ~x * 277803737U);
  }
}

struct Memory {
  char* device = nullptr;  // kTotal, and as much again
  char* device2 = nullptr;
  char* host = nullptr;       // pinned
  std::vector<char*> layers;  // kLayers allocations, [outer, block, chunk] each
  uint32_t* ids = nullptr;    // 0, 1, ... in device memory
  uint32_t* shuffled = nullptr;
  uint32_t* host_ids = nullptr;
  uint64_t* digests = nullptr;
} memory;

void set_up() {
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  CHECK(cudaStreamCreateWithFlags(&other_stream, cudaStreamNonBlocking));
  CHECK(cudaMalloc(&memory.device, kTotal));
  CHECK(cudaMalloc(&memory.device2, kTotal));
  CHECK(cudaHostAlloc(&memory.host, kTotal, cudaHostAllocDefault));
  for (size_t l = 0; l < kLayers; ++l) {
    char* layer = nullptr;
    CHECK(cudaMalloc(&layer, kTotal / kLayers));
    memory.layers.push_back(layer);
    fill<<<256, 256, 0, stream>>>(reinterpret_cast<uint4*>(layer), kTotal / kLayers / 16, 7 + l);
  }
  fill<<<1024, 256, 0, stream>>>(reinterpret_cast<uint4*>(memory.device), kTotal / 16, 1);
  fill<<<1024, 256, 0, stream>>>(reinterpret_cast<uint4*>(memory.device2), kTotal / 16, 2);
  CHECK(cudaMemcpyAsync(memory.host, memory.device, kTotal, cudaMemcpyDefault, stream));
  constexpr size_t kIds = 1 << 17;
  CHECK(cudaMalloc(&memory.ids, kIds * 4));
  CHECK(cudaMalloc(&memory.shuffled, kBlocks * 4));
  CHECK(cudaHostAlloc(&memory.host_ids, kIds * 4, cudaHostAllocDefault));
  CHECK(cudaMalloc(&memory.digests, kBlocks * kLayers * kOuter * 8 * 8));
  std::iota(memory.host_ids, memory.host_ids + kIds, 0U);
  CHECK(cudaMemcpyAsync(memory.ids, memory.host_ids, kIds * 4, cudaMemcpyDefault, stream));
  CHECK(cudaStreamSynchronize(stream));
  std::vector<uint32_t> ids(memory.host_ids, memory.host_ids + kBlocks);
  std::shuffle(ids.begin(), ids.end(), std::mt19937(5));
  CHECK(cudaMemcpy(memory.shuffled, ids.data(), kBlocks * 4, cudaMemcpyDefault));
}

// --- pieces --------------------------------------------------------------------------------------

kvbm_strided_piece turned(kvbm_strided_piece piece) {
  const void* src = piece.src;
  piece.src = piece.dst;
  piece.dst = const_cast<void*>(src);
  std::swap(piece.src_block_stride, piece.dst_block_stride);
  for (auto& axis : piece.axes) std::swap(axis.src_stride, axis.dst_stride);
  return piece;
}

std::vector<kvbm_strided_piece> turned(std::vector<kvbm_strided_piece> pieces) {
  for (auto& piece : pieces) piece = turned(piece);
  return pieces;
}

kvbm_strided_axis one() { return {1, 0, 0}; }

/// Layer separate to fully contiguous, one piece for each layer and outer, chunks of any size.
std::vector<kvbm_strided_piece> lw_to_fc(char* fc, size_t chunk, size_t blocks) {
  std::vector<kvbm_strided_piece> pieces;
  for (size_t l = 0; l < kLayers; ++l) {
    for (size_t o = 0; o < kOuter; ++o) {
      pieces.push_back({memory.layers[l] + o * blocks * chunk,
                        fc + (l * kOuter + o) * chunk,
                        chunk,
                        kLayers * kOuter * chunk,
                        chunk,
                        {one(), one(), one(), one()}});
    }
  }
  return pieces;
}

/// Layer separate, NHD, to universal blocks.
std::vector<kvbm_strided_piece> lw_to_universal(char* universal, bool nhd) {
  std::vector<kvbm_strided_piece> pieces;
  const kvbm_strided_axis tokens = {kTokens, nhd ? kHeads * kRow : kRow, kRow};
  const kvbm_strided_axis heads = {kHeads, nhd ? kRow : kTokens * kRow,
                                   kLayers * kOuter * kTokens * kRow};
  for (size_t l = 0; l < kLayers; ++l) {
    for (size_t o = 0; o < kOuter; ++o) {
      pieces.push_back({memory.layers[l] + o * kBlocks * kChunk,
                        universal + (l * kOuter + o) * kTokens * kRow,
                        kChunk,
                        kBlock,
                        kRow,
                        {one(), one(), nhd ? tokens : heads, nhd ? heads : tokens}});
    }
  }
  return pieces;
}

/// Fully contiguous, NHD or HND, to universal blocks: one piece.
std::vector<kvbm_strided_piece> fc_to_universal(char* fc, char* universal, bool nhd, size_t nl,
                                                size_t nt, size_t nh) {
  const size_t chunk = nt * nh * kRow;
  const kvbm_strided_axis tokens = {nt, nhd ? nh * kRow : kRow, kRow};
  const kvbm_strided_axis heads = {nh, nhd ? kRow : nt * kRow, nl * kOuter * nt * kRow};
  return {{fc,
           universal,
           nl * kOuter * chunk,
           nl * kOuter * chunk,
           kRow,
           {one(), {nl * kOuter, chunk, nt * kRow}, nhd ? tokens : heads, nhd ? heads : tokens}}};
}

struct How {
  uint32_t ctas = 0;
  double gbps = 0;
  bool digests = false;
  bool travel = false;  ///< the ids, with the launch
};

std::string label(const How& how) {
  std::string text = how.ctas == 0 ? "default" : "ctas " + std::to_string(how.ctas);
  if (how.gbps > 0) text += ", paced";
  if (how.digests) text += ", digests";
  if (how.travel) text += ", ids travel";
  return text;
}

void launch(const std::vector<kvbm_strided_piece>& pieces, size_t blocks, const How& how,
            cudaStream_t on = nullptr, const uint32_t* from = nullptr,
            const uint32_t* to = nullptr) {
  const kvbm_strided_copy_options options = {how.ctas, static_cast<uint64_t>(how.gbps * 1e9),
                                             nullptr, how.digests ? memory.digests : nullptr};
  if (how.travel) {
    CHECK(kvbm_kernels_launch_strided_copy_host_ids(pieces.data(), pieces.size(), memory.host_ids,
                                                    memory.host_ids, blocks, &options,
                                                    on ? on : stream));
    return;
  }
  CHECK(kvbm_kernels_launch_strided_copy(pieces.data(), pieces.size(), from ? from : memory.ids,
                                         to ? to : memory.ids, blocks, &options, on ? on : stream));
}

std::vector<kvbm_strided_piece> on_the_way(Way way, const std::vector<kvbm_strided_piece>& out) {
  return way == Way::kD2h ? out : turned(out);
}

/// One plain copy of these bytes, once a number of bytes and way.
double plain(Way way, size_t bytes, int count = 0) {
  const double ms = measure(
      [&] {
        if (way == Way::kH2d) {
          CHECK(cudaMemcpyAsync(memory.device, memory.host, bytes, cudaMemcpyDefault, stream));
        } else {
          CHECK(cudaMemcpyAsync(memory.host, memory.device, bytes, cudaMemcpyDefault, stream));
        }
      },
      count);
  return add_rate("plain", std::string(name(way)) + " " + std::to_string(bytes), bytes, ms, 0);
}

struct Lists {
  std::vector<const void*> srcs;
  std::vector<void*> dsts;
};

Lists lists_of(const std::vector<kvbm_strided_piece>& pieces, size_t blocks) {
  Lists lists;
  for (size_t b = 0; b < blocks; ++b) {
    for (const auto& piece : pieces) {
      lists.srcs.push_back(static_cast<const char*>(piece.src) + b * piece.src_block_stride);
      lists.dsts.push_back(static_cast<char*>(piece.dst) + b * piece.dst_block_stride);
    }
  }
  return lists;
}

void batch(const Lists& lists, size_t size, cudaStream_t on) {
  CHECK(kvbm_kernels_memcpy_batch(lists.srcs.data(), lists.dsts.data(), size, lists.srcs.size(), 0,
                                  on));
}

/// Through a ring of slots in device memory: the copy engine moves contiguous bytes, a kernel
/// gathers or scatters them.
struct Ring {
  static constexpr size_t kSlots = 4, kSlotBlocks = 8;
  char* slots[kSlots];
  cudaStream_t engine;
  cudaEvent_t kernel_done[kSlots], engine_done[kSlots];
  ~Ring() {
    CHECK(cudaDeviceSynchronize());
    for (size_t i = 0; i < kSlots; ++i) {
      cudaFree(slots[i]);
      cudaEventDestroy(kernel_done[i]);
      cudaEventDestroy(engine_done[i]);
    }
    cudaStreamDestroy(engine);
  }
  Ring() {
    CHECK(cudaStreamCreateWithFlags(&engine, cudaStreamNonBlocking));
    for (size_t i = 0; i < kSlots; ++i) {
      CHECK(cudaMalloc(&slots[i], kSlotBlocks * kBlock));
      CHECK(cudaEventCreateWithFlags(&kernel_done[i], cudaEventDisableTiming));
      CHECK(cudaEventCreateWithFlags(&engine_done[i], cudaEventDisableTiming));
    }
  }
};

void staged(Ring& ring, Way way, bool universal, uint32_t ctas, cudaStream_t on) {
  cudaEvent_t start = ring.engine_done[0];
  CHECK(cudaEventRecord(start, on));
  CHECK(cudaStreamWaitEvent(ring.engine, start));
  constexpr size_t kBytes = Ring::kSlotBlocks * kBlock;
  for (size_t i = 0; i < kBlocks / Ring::kSlotBlocks; ++i) {
    const size_t slot = i % Ring::kSlots;
    const auto out = universal ? lw_to_universal(ring.slots[slot], true)
                               : lw_to_fc(ring.slots[slot], kChunk, kBlocks);
    const uint32_t* engine_ids = memory.ids + i * Ring::kSlotBlocks;
    if (way == Way::kD2h) {
      if (i >= Ring::kSlots) CHECK(cudaStreamWaitEvent(on, ring.engine_done[slot]));
      launch(out, Ring::kSlotBlocks, {ctas}, on, engine_ids, memory.ids);
      CHECK(cudaEventRecord(ring.kernel_done[slot], on));
      CHECK(cudaStreamWaitEvent(ring.engine, ring.kernel_done[slot]));
      CHECK(cudaMemcpyAsync(memory.host + i * kBytes, ring.slots[slot], kBytes, cudaMemcpyDefault,
                            ring.engine));
      CHECK(cudaEventRecord(ring.engine_done[slot], ring.engine));
    } else {
      if (i >= Ring::kSlots) CHECK(cudaStreamWaitEvent(ring.engine, ring.kernel_done[slot]));
      CHECK(cudaMemcpyAsync(ring.slots[slot], memory.host + i * kBytes, kBytes, cudaMemcpyDefault,
                            ring.engine));
      CHECK(cudaEventRecord(ring.engine_done[slot], ring.engine));
      CHECK(cudaStreamWaitEvent(on, ring.engine_done[slot]));
      launch(turned(out), Ring::kSlotBlocks, {ctas}, on, memory.ids, engine_ids);
      CHECK(cudaEventRecord(ring.kernel_done[slot], on));
    }
  }
  CHECK(cudaEventRecord(start, ring.engine));
  CHECK(cudaStreamWaitEvent(on, start));
}

// --- sections ------------------------------------------------------------------------------------

/// What a kernel reaches alone, less what keeps the link's queues short: the rate to copy at beside
/// other work.
double pace(double gbps) { return 0.95 * gbps; }

void fragments() {
  for (const Way way : {Way::kH2d, Way::kD2h}) {
    const double peak = plain(way, kTotal);
    const auto pieces = on_the_way(way, lw_to_fc(memory.host, kChunk, kBlocks));
    const std::string what = std::string(name(way)) + " lw<->fc 32 KiB x 20480, ";
    const auto add_case = [&](const How& how) {
      return add_rate("fragments", what + label(how), kTotal,
                      measure([&] { launch(pieces, kBlocks, how); }), peak);
    };
    for (const uint32_t ctas : {1, 2, 4, 8, 16, 32}) add_case({ctas});
    const double alone = add_case({});
    add_case({0, pace(alone)});
    add_case({0, 0, true});
    add_case({0, 0, false, true});
    add_rate("fragments", what + "default, ids pinned", kTotal, measure([&] {
               launch(pieces, kBlocks, {}, nullptr, memory.host_ids, memory.host_ids);
             }),
             peak);
    add_rate("fragments", what + "default, ids in any order", kTotal, measure([&] {
               launch(pieces, kBlocks, {}, nullptr, memory.shuffled, memory.shuffled);
             }),
             peak);
    const Lists lists = lists_of(pieces, kBlocks);
    add_rate("fragments", what + "memcpy_batch", kTotal,
             measure([&] { batch(lists, kChunk, stream); }), peak);
    Ring ring;
    add_rate("fragments", what + "staged on the device", kTotal,
             measure([&] { staged(ring, way, false, 16, stream); }), peak);
  }
}

void one_block() {
  for (const Way way : {Way::kH2d, Way::kD2h}) {
    const double peak = plain(way, kBlock, 50);
    const auto pieces = on_the_way(way, lw_to_fc(memory.host, kChunk, kBlocks));
    const std::string what = std::string(name(way)) + " one block, 160 x 32 KiB, ";
    for (const How& how : {How{1}, How{2}, How{4}, How{8}, How{16}, How{32}, How{}, How{0, 0, true},
                           How{0, 0, false, true}}) {
      add_rate("one_block", what + label(how), kBlock, measure([&] { launch(pieces, 1, how); }, 50),
               peak);
    }
    add_rate("one_block", what + "default, ids pinned", kBlock,
             measure([&] { launch(pieces, 1, {}, nullptr, memory.host_ids, memory.host_ids); }, 50),
             peak);
    const Lists lists = lists_of(pieces, 1);
    add_rate("one_block", what + "memcpy_batch", kBlock,
             measure([&] { batch(lists, kChunk, stream); }, 50), peak);
  }
}

void sizes() {
  for (const Way way : {Way::kH2d, Way::kD2h}) {
    for (size_t chunk = 4096; chunk <= kMiB; chunk *= 2) {
      const size_t blocks = std::max<size_t>(1, 256 * kMiB / (kLayers * kOuter * chunk));
      const size_t bytes = blocks * kLayers * kOuter * chunk;
      const double peak = plain(way, bytes);
      const auto pieces = on_the_way(way, lw_to_fc(memory.host, chunk, blocks));
      const std::string what =
          std::string(name(way)) + " lw<->fc " + std::to_string(chunk / 1024) + " KiB, ";
      add_rate("sizes", what + "default", bytes, measure([&] { launch(pieces, blocks, {}); }),
               peak);
      const Lists lists = lists_of(pieces, blocks);
      add_rate("sizes", what + "memcpy_batch", bytes,
               measure([&] { batch(lists, chunk, stream); }, 7), peak);
    }
  }
}

/// The tables of the launches that take tables, in device memory.
struct Table {
  void** data = nullptr;
  explicit Table(const std::vector<void*>& addresses) {
    CHECK(cudaMalloc(&data, addresses.size() * sizeof(void*)));
    CHECK(cudaMemcpy(data, addresses.data(), addresses.size() * sizeof(void*), cudaMemcpyDefault));
  }
  ~Table() { cudaFree(data); }
  const void* const* sources() const { return const_cast<const void* const*>(data); }
};

void permutes() {
  struct Shape {
    size_t nb, nl, nt, nh;
  };
  for (const Shape s : {Shape{128, 80, 16, 8}, Shape{16, 80, 16, 8}, Shape{2, 32, 128, 32},
                        Shape{1, 32, 256, 64}}) {
    const size_t chunk = s.nt * s.nh * kRow;
    const size_t block = s.nl * kOuter * chunk;
    const size_t bytes = s.nb * block;
    const double peak = add_rate(
        "plain", "d2d " + std::to_string(bytes), bytes, measure([&] {
          CHECK(cudaMemcpyAsync(memory.device2, memory.device, bytes, cudaMemcpyDefault, stream));
        }),
        0);
    const std::string shape = ", nb " + std::to_string(s.nb) + " nl " + std::to_string(s.nl) +
                              " nt " + std::to_string(s.nt) + " nh " + std::to_string(s.nh) + ", ";
    const auto add_case = [&](const std::string& what, const std::function<void()>& work) {
      add_rate("permutes", what, bytes, measure(work, 31), peak);
    };
    std::vector<void*> chunks, blocks;
    for (size_t i = 0; i < s.nb * s.nl * kOuter; ++i) chunks.push_back(memory.device + i * chunk);
    for (size_t i = 0; i < s.nb; ++i) blocks.push_back(memory.device2 + i * block);
    const Table chunk_table(chunks), universal_table(blocks);
    for (const bool nhd : {true, false}) {
      const int layout = nhd ? KVBM_KERNELS_NHD : KVBM_KERNELS_HND;
      const std::string what = std::string("d2d ") + (nhd ? "NHD" : "HND") + shape;
      const auto out = fc_to_universal(memory.device, memory.device2, nhd, s.nl, s.nt, s.nh);
      const auto in = turned(out);
      const How travel = {0, 0, false, true};
      add_case(what + "to universal, strided", [&] { launch(out, s.nb, {}); });
      add_case(what + "from universal, strided", [&] { launch(in, s.nb, {}); });
      add_case(what + "to universal, ids travel", [&] { launch(out, s.nb, travel); });
      add_case(what + "from universal, ids travel", [&] { launch(in, s.nb, travel); });
      add_case(what + "universal_from_block", [&] {
        CHECK(kvbm_kernels_launch_universal_from_block(universal_table.data, chunk_table.sources(),
                                                       s.nb, s.nh, s.nl, kOuter, s.nt, kHeadDim,
                                                       KVBM_KERNELS_BF16, layout, stream));
      });
      add_case(what + "block_from_universal", [&] {
        CHECK(kvbm_kernels_launch_block_from_universal(universal_table.sources(), chunk_table.data,
                                                       s.nb, s.nh, s.nl, kOuter, s.nt, kHeadDim,
                                                       KVBM_KERNELS_BF16, layout, stream));
      });
    }
    if (s.nl != kLayers) continue;
    const auto pieces = lw_to_fc(memory.device2, kChunk, s.nb);
    add_case("d2d" + shape + "lw to fc, strided", [&] { launch(pieces, s.nb, {}); });
    add_case("d2d" + shape + "lw to fc, ids travel", [&] {
      launch(pieces, s.nb, {0, 0, false, true});
    });
    add_case("d2d" + shape + "lw to fc, strided, digests", [&] {
      launch(pieces, s.nb, {0, 0, true});
    });
    const Lists lists = lists_of(pieces, s.nb);
    std::vector<void*> sources;
    for (const void* source : lists.srcs) sources.push_back(const_cast<void*>(source));
    const Table src_table(sources), dst_table(lists.dsts);
    add_case("d2d" + shape + "lw to fc, vectorized_copy", [&] {
      CHECK(kvbm_kernels_launch_vectorized_copy(src_table.data, dst_table.data, kChunk,
                                                static_cast<int>(sources.size()), stream));
    });
  }
}

void fused() {
  for (const Way way : {Way::kH2d, Way::kD2h}) {
    const double peak = plain(way, kTotal);
    for (const bool nhd : {true, false}) {
      const auto pieces = on_the_way(way, lw_to_universal(memory.host, nhd));
      const std::string what =
          std::string(name(way)) + (nhd ? " lw NHD" : " lw HND") + " <-> universal, ";
      const auto add_case = [&](const How& how) {
        return add_rate("fused", what + label(how), kTotal,
                        measure([&] { launch(pieces, kBlocks, how); }), peak);
      };
      for (const uint32_t ctas : {1, 2, 4, 8, 16, 32}) add_case({ctas});
      const double alone = add_case({});
      add_case({0, pace(alone)});
      add_case({0, 0, true});
      if (!nhd) continue;
      Ring ring;
      add_rate("fused", what + "staged on the device", kTotal,
               measure([&] { staged(ring, way, true, 16, stream); }), peak);
    }
  }
}

/// Both directions at a time, each with the kernel, against both plain copies at a time.
void both() {
  char* host2 = nullptr;
  CHECK(cudaHostAlloc(&host2, kTotal, cudaHostAllocDefault));
  const auto together = [&](const std::function<void()>& first,
                            const std::function<void()>& second) {
    cudaEvent_t fork, join;
    CHECK(cudaEventCreateWithFlags(&fork, cudaEventDisableTiming));
    CHECK(cudaEventCreateWithFlags(&join, cudaEventDisableTiming));
    const double ms = measure([&] {
      CHECK(cudaEventRecord(fork, stream));
      CHECK(cudaStreamWaitEvent(other_stream, fork));
      first();
      second();
      CHECK(cudaEventRecord(join, other_stream));
      CHECK(cudaStreamWaitEvent(stream, join));
    });
    CHECK(cudaEventDestroy(fork));
    CHECK(cudaEventDestroy(join));
    return ms;
  };
  const double peak = add_rate(
      "plain", "h2d and d2h at a time", 2 * kTotal,
      together(
          [&] {
            CHECK(cudaMemcpyAsync(memory.device2, memory.host, kTotal, cudaMemcpyDefault, stream));
          },
          [&] {
            CHECK(cudaMemcpyAsync(host2, memory.device, kTotal, cudaMemcpyDefault, other_stream));
          }),
      0);
  const auto in = turned(lw_to_fc(memory.host, kChunk, kBlocks));
  auto out = lw_to_fc(host2, kChunk, kBlocks);
  for (size_t i = 0; i < out.size(); ++i) out[i].src = memory.device + i * kBlocks * kChunk;
  const auto add_case = [&](const std::string& what, const std::function<void()>& first,
                            const std::function<void()>& second) {
    add_rate("both", "h2d and d2h at a time, " + what, 2 * kTotal, together(first, second), peak);
  };
  for (const double gbps : {0.0, 46.0, 42.0, 38.0}) {
    add_case(
        "kernels" + (gbps > 0 ? ", d2h at " + std::to_string(static_cast<int>(gbps)) + " GB/s"
                              : std::string()),
        [&] { launch(in, kBlocks, {}); },
        [&] {
          launch(out, kBlocks, {0, gbps}, other_stream);
        });
  }
  Ring in_ring, out_ring;
  add_case(
      "staged on the device", [&] { staged(in_ring, Way::kH2d, false, 16, stream); },
      [&] { staged(out_ring, Way::kD2h, false, 16, other_stream); });
  add_case(
      "h2d kernel, d2h staged on the device", [&] { launch(in, kBlocks, {}); },
      [&] { staged(out_ring, Way::kD2h, false, 16, other_stream); });
  const Lists in_lists = lists_of(in, kBlocks), out_lists = lists_of(out, kBlocks);
  add_case(
      "memcpy_batch", [&] { batch(in_lists, kChunk, stream); },
      [&] { batch(out_lists, kChunk, other_stream); });
  CHECK(cudaFreeHost(host2));
}

void digests() {
  const auto pieces = lw_to_fc(memory.device2, kChunk, kBlocks);
  for (const uint32_t ctas : {1, 2, 4}) {
    const kvbm_strided_copy_options options = {ctas, 0, nullptr, memory.digests};
    add_rate("digests", "digests only, 32 KiB x 20480, ctas " + std::to_string(ctas), kTotal,
             measure([&] {
               CHECK(kvbm_kernels_launch_digest(pieces.data(), pieces.size(), memory.ids, kBlocks,
                                                &options, stream));
             }),
             0);
  }
}

// --- a matrix product beside a transfer ----------------------------------------------------------

void beside() {
  const auto ring = std::make_shared<Ring>();
  MatrixProduct matrices(stream);
  for (const bool exclusive : {false, true}) {
    const auto product = [&] {
      for (int i = 0; i < 8; ++i) matrices.start(stream, exclusive);
    };
    const double alone = measure(product, 7) / 8;
    const double teraflops = MatrixProduct::kOperations / alone * 1e-9;
    char fields[300];
    std::snprintf(fields, sizeof fields, "\"ms\": %.4f, \"tflops\": %.1f", alone, teraflops);
    const std::string kind = exclusive ? "product, 150 KiB CTAs" : "product, small CTAs";
    add("beside", kind + ", alone", fields);

    struct Load {
      std::string name;
      std::function<void()> work;
    };
    std::vector<Load> loads;
    static Lists lists[2];
    for (const Way way : {Way::kH2d, Way::kD2h}) {
      const auto pieces = on_the_way(way, lw_to_fc(memory.host, kChunk, kBlocks));
      const auto permuted = on_the_way(way, lw_to_universal(memory.host, true));
      const double rate = pace(kTotal / measure([&] { launch(pieces, kBlocks, {}); }, 3) * 1e-6);
      for (const How& how : {How{}, How{0, rate}, How{0, rate, true}}) {
        loads.push_back({std::string(name(way)) + " lw<->fc, " + label(how),
                         [=] { launch(pieces, kBlocks, how, other_stream); }});
      }
      // Closer to what the link takes.
      for (const int percent : {97, 98, 99}) {
        loads.push_back(
            {std::string(name(way)) + " lw<->fc, default, at 0." + std::to_string(percent) +
                 " of its rate",
             [=] {
               launch(pieces, kBlocks, {0, rate / pace(1) * percent / 100}, other_stream);
             }});
      }
      loads.push_back({std::string(name(way)) + " NHD <-> universal, " + label({0, rate}), [=] {
                         launch(permuted, kBlocks, {0, rate}, other_stream);
                       }});
      loads.push_back({std::string(name(way)) + " lw<->fc, staged on the device",
                       [=] { staged(*ring, way, false, 8, other_stream); }});
      Lists& list = lists[way == Way::kH2d ? 0 : 1];
      list = lists_of(pieces, kBlocks);
      loads.push_back({std::string(name(way)) + " lw<->fc, memcpy_batch",
                       [&list] { batch(list, kChunk, other_stream); }});
    }
    for (const Load& load : loads) {
      // Enough transfers to outlast the products, and an event to see that they did.
      cudaEvent_t first, last, begin, end;
      for (cudaEvent_t* event : {&first, &last, &begin, &end}) CHECK(cudaEventCreate(event));
      constexpr int kTransfers = 8;
      CHECK(cudaDeviceSynchronize());
      CHECK(cudaEventRecord(first, other_stream));
      for (int i = 0; i < kTransfers; ++i) load.work();
      CHECK(cudaEventRecord(last, other_stream));
      CHECK(cudaEventRecord(begin, stream));
      for (int i = 0; i < 2; ++i) product();
      CHECK(cudaEventRecord(end, stream));
      CHECK(cudaEventSynchronize(end));
      const bool outlasted = cudaEventQuery(last) == cudaErrorNotReady;
      cudaGetLastError();
      CHECK(cudaEventSynchronize(last));
      float ms = 0, transfer_ms = 0;
      CHECK(cudaEventElapsedTime(&ms, begin, end));
      CHECK(cudaEventElapsedTime(&transfer_ms, first, last));
      std::snprintf(fields, sizeof fields,
                    "\"ms\": %.4f, \"slowed\": %.4f, \"transfer_gbps\": %.2f, \"outlasted\": %s",
                    ms / 16, ms / 16 / alone - 1, kTransfers * double(kTotal) / transfer_ms * 1e-6,
                    outlasted ? "true" : "false");
      add("beside", kind + ", " + load.name, fields);
      for (cudaEvent_t event : {first, last, begin, end}) CHECK(cudaEventDestroy(event));
    }
  }
}

/// Median of the host's time in a call that launches.
void add_submission(const std::string& what, const std::function<void()>& call) {
  std::vector<double> times;
  for (int i = 0; i < 60; ++i) {
    timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    call();
    clock_gettime(CLOCK_MONOTONIC, &end);
    CHECK(cudaStreamSynchronize(stream));
    times.push_back((end.tv_sec - begin.tv_sec) * 1e6 + (end.tv_nsec - begin.tv_nsec) * 1e-3);
  }
  std::nth_element(times.begin(), times.begin() + 30, times.end());
  char fields[100];
  std::snprintf(fields, sizeof fields, "\"us\": %.2f", times[30]);
  add("submission", what, fields);
}

void submission() {
  const auto pieces = turned(lw_to_fc(memory.host, kChunk, kBlocks));
  kvbm_kernels_strided_plan* plan = nullptr;
  CHECK(kvbm_kernels_create_strided_plan(pieces.data(), pieces.size(), &plan));
  for (const size_t blocks : {size_t{1}, size_t{128}}) {
    const std::string what = "160 pieces, blocks " + std::to_string(blocks);
    add_submission(what, [&] { launch(pieces, blocks, {}); });
    add_submission(what + ", ids travel", [&] { launch(pieces, blocks, {0, 0, false, true}); });
    add_submission(what + ", a plan", [&] {
      CHECK(kvbm_kernels_launch_strided_plan(plan, memory.host_ids, memory.host_ids, blocks,
                                             nullptr, stream));
    });
  }
  kvbm_kernels_destroy_strided_plan(plan);
}

}  // namespace

int main(int argc, char** argv) {
  std::set<std::string> wanted;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--quick") == 0) {
      iterations = 3;
    } else {
      wanted.insert(argv[i]);
    }
  }
  set_up();
  const std::pair<const char*, void (*)()> sections[] = {
      {"fragments", fragments}, {"one_block", one_block}, {"sizes", sizes},
      {"permutes", permutes},   {"fused", fused},         {"both", both},
      {"digests", digests},     {"beside", beside},       {"submission", submission}};
  for (const auto& [section, work] : sections) {
    if (wanted.empty() || wanted.count(section) > 0) work();
  }
  cudaDeviceProp properties;
  int driver = 0;
  CHECK(cudaGetDeviceProperties(&properties, 0));
  CHECK(cudaDriverGetVersion(&driver));
  std::printf(
      "{\n  \"gpu\": \"%s\", \"driver\": %d, \"runtime\": %d, \"batch\": %s,\n  \"results\": [%s\n "
      " ]\n}\n",
      properties.name, driver, CUDART_VERSION,
      kvbm_kernels_has_memcpy_batch_async() ? "true" : "false", results.c_str());
  return 0;
}
