// SPDX-License-Identifier: Apache-2.0
// The kernels on a GPU, byte by byte against plain loops.
#include <gtest/gtest.h>

#include "tests/support/require.hpp"

#if KVBM_KERNELS_STUB

TEST(KernelsGpu, AreNotInThisBuild) {
  KVBM_SKIP("gpu", "built without CUDA: it has no GPU test of the kernels");
}

/// By its name too, so that asking for it says why it does not run.
TEST(KernelsGpuPermute, fused_copy_roundtrip) { KVBM_SKIP("gpu", "built without CUDA"); }

#else

#include <cuda_runtime_api.h>

#include <memory>
#include <string>
#include <thread>

#include <kvbm/kernels.h>

#include "random_copy.hpp"
#include "random_pattern.hpp"

namespace kvbm::kernels {
namespace {

enum class Memory { kDevice, kPinned };

const char* name(Memory memory) { return memory == Memory::kDevice ? "device" : "pinned"; }

#define KVBM_CUDA(call) ASSERT_EQ(static_cast<int>(call), 0) << #call

/// Memory of a kind, given back at the end.
class Buffer {
 public:
  Buffer(size_t bytes, Memory memory) : bytes_(bytes), memory_(memory) {
    const size_t asked = std::max<size_t>(bytes, 1);
    error_ = memory == Memory::kDevice ? cudaMalloc(&data_, asked)
                                       : cudaHostAlloc(&data_, asked, cudaHostAllocDefault);
    EXPECT_EQ(error_, cudaSuccess);
  }
  Buffer(const void* from, size_t bytes, Memory memory) : Buffer(bytes, memory) { fill(from); }
  template <typename T>
  Buffer(const std::vector<T>& from, Memory memory)
      : Buffer(from.data(), from.size() * sizeof(T), memory) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    if (memory_ == Memory::kDevice) {
      cudaFree(data_);
    } else {
      cudaFreeHost(data_);
    }
  }

  template <typename T = char>
  T* as() {
    return static_cast<T*>(data_);
  }
  size_t size() const { return bytes_; }
  /// Has ended for every stream: cudaMemcpy may return before the last bytes are on the GPU.
  void fill(const void* from) {
    EXPECT_EQ(cudaMemcpy(data_, from, bytes_, cudaMemcpyDefault), cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);
  }
  template <typename T = char>
  std::vector<T> read() const {
    std::vector<T> bytes(bytes_ / sizeof(T));
    EXPECT_EQ(cudaMemcpy(bytes.data(), data_, bytes_, cudaMemcpyDefault), cudaSuccess);
    return bytes;
  }

 private:
  size_t bytes_;
  Memory memory_;
  void* data_ = nullptr;
  cudaError_t error_ = cudaSuccess;
};

/// A table of addresses at a constant distance, in device memory.
Buffer table(char* first, size_t stride, size_t count) {
  std::vector<void*> addresses;
  for (size_t i = 0; i < count; ++i) addresses.push_back(first + i * stride);
  return {addresses, Memory::kDevice};
}

class KernelsGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (kvbm_kernels_is_stub_build() || cudaGetDeviceCount(&devices) != cudaSuccess ||
        devices == 0) {
      KVBM_SKIP("gpu", "no GPU here");
    }
    KVBM_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  void TearDown() override {
    if (stream_ != nullptr) {
      EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
      cudaStreamDestroy(stream_);
    }
  }

  /// The copy between arenas of these kinds, with digests or without.
  void expect_copy(const RandomCopy& copy, Memory from, Memory to, bool digests, uint32_t max_ctas,
                   uint64_t seed) {
    SCOPED_TRACE(std::string(name(from)) + " to " + name(to) + ", seed " + std::to_string(seed) +
                 (digests ? ", digests" : ""));
    const std::vector<char> src_bytes = random_bytes(copy.src_bytes, seed);
    const std::vector<char> before = random_bytes(copy.dst_bytes, seed + 1);
    std::vector<char> expected = before;
    Buffer src(src_bytes, from);
    Buffer dst(before, to);
    const Memory ids = seed % 2 == 0 ? Memory::kDevice : Memory::kPinned;
    Buffer from_ids(copy.from, ids);
    Buffer to_ids(copy.to, ids);
    const auto pieces = copy.place(src.as(), dst.as());
    const size_t num_digests = copy.from.size() * pieces.size();
    Buffer found(std::vector<uint64_t>(num_digests, 77), Memory::kDevice);
    Buffer shared_pace(std::vector<uint64_t>(1), Memory::kDevice);
    const kvbm_strided_copy_options options = {
        max_ctas, seed % 5 == 0 ? uint64_t{3'000'000'000} : 0,
        seed / 20 % 2 == 0 ? shared_pace.as<uint64_t>() : nullptr,
        digests ? found.as<uint64_t>() : nullptr};
    copy_plainly(copy, src_bytes, expected);
    KVBM_CUDA(kvbm_kernels_launch_strided_copy(pieces.data(), pieces.size(),
                                               from_ids.as<uint32_t>(), to_ids.as<uint32_t>(),
                                               copy.from.size(), &options, stream_));
    KVBM_CUDA(cudaStreamSynchronize(stream_));
    ASSERT_TRUE(dst.read() == expected);
    if (digests) expect_digests(copy, src_bytes, found);

    dst.fill(before.data());
    KVBM_CUDA(cudaMemsetAsync(found.as(), 1, found.size(), stream_));
    launch_and_forget(copy, pieces, options);
    KVBM_CUDA(cudaStreamSynchronize(stream_));
    ASSERT_TRUE(dst.read() == expected) << "ids that travel with the launch";
    if (digests) expect_digests(copy, src_bytes, found);

    dst.fill(before.data());
    launch_plan_and_forget(copy, pieces,
                           {max_ctas, options.max_bytes_per_second, options.shared_pace, nullptr});
    KVBM_CUDA(cudaStreamSynchronize(stream_));
    ASSERT_TRUE(dst.read() == expected) << "a plan";

    KVBM_CUDA(cudaMemsetAsync(found.as(), 1, found.size(), stream_));
    const kvbm_strided_copy_options digest_options = {0, 0, nullptr, found.as<uint64_t>()};
    KVBM_CUDA(kvbm_kernels_launch_digest(pieces.data(), pieces.size(), from_ids.as<uint32_t>(),
                                         copy.from.size(), &digest_options, stream_));
    KVBM_CUDA(cudaStreamSynchronize(stream_));
    expect_digests(copy, src_bytes, found);
  }

  /// With ids that nobody has any more when the kernel runs.
  void launch_and_forget(const RandomCopy& copy, const std::vector<kvbm_strided_piece>& pieces,
                         const kvbm_strided_copy_options& options) {
    std::vector<uint32_t> from = copy.from;
    std::vector<uint32_t> to = copy.to;
    KVBM_CUDA(kvbm_kernels_launch_strided_copy_host_ids(pieces.data(), pieces.size(), from.data(),
                                                        to.data(), from.size(), &options, stream_));
    std::ranges::fill(from, UINT32_MAX);
    std::ranges::fill(to, UINT32_MAX);
  }

  void launch_plan_and_forget(const RandomCopy& copy, const std::vector<kvbm_strided_piece>& pieces,
                              const kvbm_strided_copy_options& options) {
    std::vector<kvbm_strided_piece> own = pieces;
    kvbm_kernels_strided_plan* plan = nullptr;
    KVBM_CUDA(kvbm_kernels_create_strided_plan(own.data(), own.size(), &plan));
    own.clear();
    EXPECT_EQ(kvbm_kernels_launch_strided_plan(plan, copy.from.data(), copy.to.data(),
                                               copy.from.size(), &options, stream_),
              0);
    kvbm_kernels_destroy_strided_plan(plan);
  }

  static void expect_digests(const RandomCopy& copy, const std::vector<char>& src,
                             const Buffer& found) {
    std::vector<uint64_t> expected;
    std::vector<char> nowhere(copy.dst_bytes);
    const auto pieces = copy.place(src.data(), nowhere.data());
    for (const uint32_t block : copy.from) {
      for (const auto& piece : pieces) expected.push_back(digest_plainly(piece, block));
    }
    ASSERT_EQ(found.read<uint64_t>(), expected);
  }

  cudaStream_t stream_ = nullptr;
};

// --- strided copies ------------------------------------------------------------------------------

TEST_F(KernelsGpu, StridedCopyEqualsThePlainLoopsForAnyPieces) {
  for (uint64_t seed = 0; seed < 160; ++seed) {
    CopyMaker maker(seed);
    CopyLimits limits;
    limits.unit = uint64_t{1} << maker.pick(0, 5);
    if (seed % 4 == 0) limits = {2048, 3, 3, 3, 3};  // a chunk inside a run
    if (seed % 4 == 1) limits = {128, 3, 2, 16, 2};  // whole runs of an axis in a chunk
    if (seed % 4 == 2) limits = {512, 8, 4, 3, 80};  // long runs
    const RandomCopy copy = maker.make(limits);
    const Memory from = seed / 4 % 2 == 0 ? Memory::kDevice : Memory::kPinned;
    const Memory to = seed / 8 % 2 == 0 ? Memory::kDevice : Memory::kPinned;
    expect_copy(copy, from, to, seed / 16 % 2 == 0, static_cast<uint32_t>(maker.pick(0, 3)), seed);
    if (HasFailure()) return;
  }
}

TEST_F(KernelsGpu, StridedCopyTakesMorePiecesThanALaunchHolds) {
  CopyMaker maker(1);
  RandomCopy copy = maker.make({16, 900, 3, 2, 2});
  while (copy.pieces.size() < 600) copy = maker.make({16, 900, 3, 2, 2});
  expect_copy(copy, Memory::kPinned, Memory::kDevice, true, 0, 1);
}

TEST_F(KernelsGpu, StridedCopyTakesMoreBlocksThanALaunchHolds) {
  CopyMaker maker(2);
  RandomCopy copy = maker.make({16, 3, 12000, 2, 2});
  while (copy.from.size() < 9000) copy = maker.make({16, 3, 12000, 2, 2});
  expect_copy(copy, Memory::kDevice, Memory::kPinned, true, 0, 1);
  expect_copy(copy, Memory::kDevice, Memory::kDevice, false, 0, 2);
}

TEST_F(KernelsGpu, StridedCopyTakesBasesThatAreNotAligned) {
  for (const uint64_t shift : {1, 2, 4, 8, 24}) {
    CopyMaker maker(shift);
    RandomCopy copy = maker.make({64, 4, 4, 4, 9});
    for (auto& piece : copy.pieces) {
      piece.src = static_cast<const char*>(piece.src) + shift;
    }
    copy.src_bytes += 64;
    expect_copy(copy, Memory::kDevice, Memory::kDevice, true, 0, shift);
  }
}

TEST_F(KernelsGpu, StridedCopySlicesLayersAndHeads) {
  // Operational blocks [nl, no, nt, nh, hd] to universal ones [nh / 2, nl, no, nt, hd] of
  // heads 4..7, layers 1..2.
  const uint64_t nb = 5, nl = 4, no = 2, nt = 16, nh = 8, hd = 128, width = 2;
  const uint64_t row = hd * width;
  RandomCopy copy;
  kvbm_strided_piece piece = {};
  piece.bytes = row;
  piece.src = reinterpret_cast<const void*>((1 * no * nt * nh + 4) * row);
  piece.dst = reinterpret_cast<void*>(1 * no * nt * row);
  piece.src_block_stride = nl * no * nt * nh * row;
  piece.dst_block_stride = nh / 2 * nl * no * nt * row;
  piece.axes[0] = {2, no * nt * nh * row, no * nt * row};
  piece.axes[1] = {no, nt * nh * row, nt * row};
  piece.axes[2] = {nt, nh * row, row};
  piece.axes[3] = {nh / 2, row, nl * no * nt * row};
  copy.pieces = {piece};
  copy.src_bytes = nb * piece.src_block_stride;
  copy.dst_bytes = nb * piece.dst_block_stride;
  copy.from = {4, 0, 2};
  copy.to = {0, 3, 1};
  for (const Memory from : {Memory::kDevice, Memory::kPinned}) {
    for (const Memory to : {Memory::kDevice, Memory::kPinned}) {
      expect_copy(copy, from, to, true, 0, 9);
    }
  }
}

TEST_F(KernelsGpu, StridedCopyMovesFourGibibytesAndMore) {
  // Offsets beyond 32 bits on both sides. Blocks of 64 MiB are repeated, so that the host need not
  // have as much.
  const uint64_t block = 64 << 20;
  const uint32_t num_blocks = 68;
  const std::vector<char> bytes = random_bytes(1 << 20, 5);
  Buffer src(block, Memory::kDevice);
  for (uint64_t at = 0; at < block; at += bytes.size()) {
    KVBM_CUDA(cudaMemcpy(src.as() + at, bytes.data(), bytes.size(), cudaMemcpyDefault));
  }
  Buffer dst(block * num_blocks, Memory::kDevice);
  std::vector<uint32_t> to(num_blocks);
  std::iota(to.begin(), to.end(), 0U);
  Buffer from_ids(std::vector<uint32_t>(num_blocks, 0), Memory::kDevice);
  Buffer to_ids(to, Memory::kDevice);
  const kvbm_strided_piece piece = {
      src.as(), dst.as(), block, block, block, {{1, 0, 0}, {1, 0, 0}, {1, 0, 0}, {1, 0, 0}}};
  KVBM_CUDA(kvbm_kernels_launch_strided_copy(&piece, 1, from_ids.as<uint32_t>(),
                                             to_ids.as<uint32_t>(), num_blocks, nullptr, stream_));
  KVBM_CUDA(cudaStreamSynchronize(stream_));
  std::vector<char> found(bytes.size());
  for (const uint64_t at : {uint64_t{0}, block * 33 + (7 << 20), block * num_blocks - (1 << 20)}) {
    KVBM_CUDA(cudaMemcpy(found.data(), dst.as() + at, found.size(), cudaMemcpyDefault));
    ASSERT_TRUE(found == bytes) << at;
  }
}

// --- permutations --------------------------------------------------------------------------------

struct PermuteCase {
  size_t nb, nh, nl, no, nt, hd;
  size_t shift = 0;  ///< of all addresses
};

size_t width_of(int dtype) {
  return dtype == KVBM_KERNELS_F8    ? 1
         : dtype == KVBM_KERNELS_F32 ? 4
         : dtype == KVBM_KERNELS_F64 ? 8
                                     : 2;
}

/// Universal blocks from chunks, by plain loops on many threads.
void permute_plainly(const PermuteCase& s, size_t element, int layout, const char* chunks,
                     char* universal) {
  const size_t run = s.hd * element;
  const size_t planes = s.nl * s.no;
  std::vector<std::thread> threads;
  const size_t num_threads = std::min<size_t>(16, s.nb * planes);
  for (size_t thread = 0; thread < num_threads; ++thread) {
    threads.emplace_back([=] {
      for (size_t chunk = thread; chunk < s.nb * planes; chunk += num_threads) {
        const size_t b = chunk / planes;
        const size_t plane = chunk % planes;
        for (size_t t = 0; t < s.nt; ++t) {
          for (size_t h = 0; h < s.nh; ++h) {
            const size_t row = layout == KVBM_KERNELS_NHD ? t * s.nh + h : h * s.nt + t;
            std::memcpy(universal + (((b * s.nh + h) * planes + plane) * s.nt + t) * run,
                        chunks + (chunk * s.nt * s.nh + row) * run, run);
          }
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
}

class KernelsGpuPermute : public KernelsGpu {
 protected:
  void expect_permute(const PermuteCase& s, int dtype, int layout,
                      Memory memory = Memory::kDevice) {
    const size_t element = width_of(dtype);
    SCOPED_TRACE("dtype " + std::to_string(dtype) + ", layout " + std::to_string(layout) +
                 ", nb nh nl no nt hd " + std::to_string(s.nb) + " " + std::to_string(s.nh) + " " +
                 std::to_string(s.nl) + " " + std::to_string(s.no) + " " + std::to_string(s.nt) +
                 " " + std::to_string(s.hd) + ", shift " + std::to_string(s.shift));
    const size_t chunk = s.nt * s.nh * s.hd * element;
    const size_t block = chunk * s.nl * s.no;
    const size_t total = block * s.nb;
    const std::vector<char> chunks = fast_bytes(total);
    std::vector<char> universal(total);
    permute_plainly(s, element, layout, chunks.data(), universal.data());

    constexpr size_t kGuard = 64;
    const std::vector<char> poison(total + s.shift + 2 * kGuard, static_cast<char>(0xDE));
    Buffer a(poison, memory);
    Buffer b(poison, memory);
    char* const a_first = a.as() + kGuard + s.shift;
    char* const b_first = b.as() + kGuard + s.shift;
    KVBM_CUDA(cudaMemcpy(a_first, chunks.data(), total, cudaMemcpyDefault));
    Buffer chunk_table = table(a_first, chunk, s.nb * s.nl * s.no);
    Buffer universal_table = table(b_first, block, s.nb);
    KVBM_CUDA(kvbm_kernels_launch_universal_from_block(
        universal_table.as<void*>(), chunk_table.as<const void*>(), s.nb, s.nh, s.nl, s.no, s.nt,
        s.hd, dtype, layout, stream_));
    KVBM_CUDA(cudaStreamSynchronize(stream_));
    expect_bytes(b, kGuard + s.shift, universal);

    KVBM_CUDA(cudaMemset(a.as(), 0xDE, a.size()));
    KVBM_CUDA(kvbm_kernels_launch_block_from_universal(universal_table.as<const void*>(),
                                                       chunk_table.as<void*>(), s.nb, s.nh, s.nl,
                                                       s.no, s.nt, s.hd, dtype, layout, stream_));
    KVBM_CUDA(cudaStreamSynchronize(stream_));
    expect_bytes(a, kGuard + s.shift, chunks);
  }

  static std::vector<char> fast_bytes(size_t count) {
    std::vector<char> bytes((count + 7) / 8 * 8);
    uint64_t state = 0x1234567;
    for (size_t i = 0; i < bytes.size(); i += 8) {
      state = state * 6364136223846793005ULL + 1442695040888963407ULL;
      const uint64_t word = state ^ (state >> 29);
      std::memcpy(&bytes[i], &word, 8);
    }
    bytes.resize(count);
    return bytes;
  }

  /// The bytes at an offset, and poison around them.
  static void expect_bytes(const Buffer& buffer, size_t offset, const std::vector<char>& expected) {
    const std::vector<char> found = buffer.read();
    ASSERT_EQ(std::memcmp(found.data() + offset, expected.data(), expected.size()), 0);
    for (size_t i = 0; i < offset; ++i) ASSERT_EQ(found[i], static_cast<char>(0xDE)) << i;
    for (size_t i = offset + expected.size(); i < found.size(); ++i) {
      ASSERT_EQ(found[i], static_cast<char>(0xDE)) << i;
    }
  }
};

TEST_F(KernelsGpuPermute, EqualsThePlainLoopsForAllTypesAndLayouts) {
  for (const PermuteCase& shape :
       {PermuteCase{3, 3, 2, 2, 4, 5}, PermuteCase{2, 8, 3, 2, 16, 128},
        PermuteCase{1, 1, 1, 1, 1, 1}, PermuteCase{5, 7, 3, 1, 9, 24},
        PermuteCase{2, 16, 2, 2, 3, 64}, PermuteCase{2, 8, 2, 2, 16, 128, 2},
        PermuteCase{2, 8, 2, 2, 16, 40, 8}, PermuteCase{2, 4, 2, 2, 8, 16, 1}}) {
    for (const int dtype : {KVBM_KERNELS_F16, KVBM_KERNELS_BF16, KVBM_KERNELS_F32, KVBM_KERNELS_F64,
                            KVBM_KERNELS_F8}) {
      for (const int layout : {KVBM_KERNELS_NHD, KVBM_KERNELS_HND}) {
        expect_permute(shape, dtype, layout);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_F(KernelsGpuPermute, EqualsThePlainLoopsForTheDocumentsDimensions) {
  for (const int layout : {KVBM_KERNELS_NHD, KVBM_KERNELS_HND}) {
    expect_permute({1, 32, 32, 2, 128, 128}, KVBM_KERNELS_BF16, layout);
    expect_permute({1, 64, 32, 2, 256, 128}, KVBM_KERNELS_BF16, layout);
    expect_permute({128, 32, 1, 2, 128, 128}, KVBM_KERNELS_F16, layout);
    expect_permute({16, 64, 2, 2, 128, 128}, KVBM_KERNELS_F32, layout);
  }
}

TEST_F(KernelsGpuPermute, ReadsAndWritesPinnedMemory) {
  for (const int layout : {KVBM_KERNELS_NHD, KVBM_KERNELS_HND}) {
    expect_permute({4, 8, 4, 2, 16, 128}, KVBM_KERNELS_BF16, layout, Memory::kPinned);
  }
}

/// Chunks of separate layers on the device go to universal blocks in host memory in one pass, and
/// come back in another.
TEST_F(KernelsGpuPermute, fused_copy_roundtrip) {
  const PermuteCase s = {6, 8, 10, 2, 16, 128};
  const size_t row = s.hd * 2;
  const size_t chunk = s.nt * s.nh * row;
  const size_t block = s.nl * s.no * chunk;
  const std::vector<char> chunks = fast_bytes(s.nb * block);
  std::vector<char> universal(chunks.size());
  permute_plainly(s, 2, KVBM_KERNELS_NHD, chunks.data(), universal.data());

  // Layer separate: [no, nb, nt, nh, hd] for each layer.
  std::vector<std::unique_ptr<Buffer>> layers;
  std::vector<kvbm_strided_piece> out;
  Buffer host(chunks.size(), Memory::kPinned);
  for (size_t l = 0; l < s.nl; ++l) {
    layers.push_back(std::make_unique<Buffer>(s.no * s.nb * chunk, Memory::kDevice));
    for (size_t b = 0; b < s.nb; ++b) {
      for (size_t o = 0; o < s.no; ++o) {
        KVBM_CUDA(cudaMemcpy(layers[l]->as() + (o * s.nb + b) * chunk,
                             chunks.data() + ((b * s.nl + l) * s.no + o) * chunk, chunk,
                             cudaMemcpyDefault));
      }
    }
    out.push_back({layers[l]->as(),
                   host.as() + l * s.no * s.nt * row,
                   chunk,
                   block,
                   row,
                   {{1, 0, 0},
                    {s.no, s.nb * chunk, s.nt * row},
                    {s.nt, s.nh * row, row},
                    {s.nh, row, s.nl * s.no * s.nt * row}}});
  }
  std::vector<uint32_t> ids = {3, 0, 5, 1, 2, 4};
  Buffer device_ids(ids, Memory::kDevice);
  std::vector<uint64_t> expected_digests(s.nb * s.nl);
  Buffer digests(expected_digests, Memory::kDevice);
  const kvbm_strided_copy_options options = {0, 0, nullptr, digests.as<uint64_t>()};
  KVBM_CUDA(kvbm_kernels_launch_strided_copy(out.data(), out.size(), device_ids.as<uint32_t>(),
                                             device_ids.as<uint32_t>(), s.nb, &options, stream_));
  KVBM_CUDA(cudaStreamSynchronize(stream_));
  ASSERT_TRUE(host.read() == universal);
  const std::vector<uint64_t> sent = digests.read<uint64_t>();

  std::vector<kvbm_strided_piece> in = out;
  for (size_t l = 0; l < s.nl; ++l) {
    KVBM_CUDA(cudaMemset(layers[l]->as(), 0xDE, layers[l]->size()));
    in[l].src = out[l].dst;
    in[l].dst = layers[l]->as();
    std::swap(in[l].src_block_stride, in[l].dst_block_stride);
    for (auto& axis : in[l].axes) std::swap(axis.src_stride, axis.dst_stride);
  }
  KVBM_CUDA(kvbm_kernels_launch_strided_copy(in.data(), in.size(), device_ids.as<uint32_t>(),
                                             device_ids.as<uint32_t>(), s.nb, &options, stream_));
  KVBM_CUDA(cudaStreamSynchronize(stream_));
  for (size_t l = 0; l < s.nl; ++l) {
    const std::vector<char> layer = layers[l]->read();
    for (size_t b = 0; b < s.nb; ++b) {
      for (size_t o = 0; o < s.no; ++o) {
        ASSERT_EQ(std::memcmp(layer.data() + (o * s.nb + b) * chunk,
                              chunks.data() + ((b * s.nl + l) * s.no + o) * chunk, chunk),
                  0);
      }
    }
  }
  // The same axes in the same order: the stream of a part is the same whatever the format is.
  EXPECT_EQ(digests.read<uint64_t>(), sent);
  for (size_t l = 0; l < s.nl; ++l) {
    uint64_t digest = 0;
    ASSERT_EQ(kvbm_kernels_digest_on_host(&in[l], ids[2], &digest), 0);
    EXPECT_EQ(digest, sent[2 * s.nl + l]);
  }
  std::printf(
      "%zu blocks of %zu layers: NHD -> universal in pinned memory -> NHD, %zu bytes each way\n",
      s.nb, s.nl, chunks.size());
}

// --- copies by tables ----------------------------------------------------------------------------

TEST_F(KernelsGpu, VectorizedCopyTakesAnySizeAndAlignment) {
  CopyMaker maker(11);
  for (const size_t size : {size_t{1}, size_t{7}, size_t{16}, size_t{64}, size_t{999}, size_t{2048},
                            size_t{4096 + 5}, size_t{32768}, size_t{5} << 20}) {
    for (const int pairs : {1, 3, 33}) {
      if (size * static_cast<size_t>(pairs) > (64 << 20)) continue;
      SCOPED_TRACE(std::to_string(pairs) + " pairs of " + std::to_string(size));
      const size_t slot = size + 64;
      const std::vector<char> src_bytes = random_bytes(slot * static_cast<size_t>(pairs), size);
      std::vector<char> expected(src_bytes.size(), static_cast<char>(0xDE));
      Buffer src(src_bytes, pairs == 3 ? Memory::kPinned : Memory::kDevice);
      Buffer dst(expected, Memory::kDevice);
      std::vector<void*> srcs;
      std::vector<void*> dsts;
      for (int i = 0; i < pairs; ++i) {
        // Each pair has an alignment of its own, and both sides may have different ones.
        const size_t unit = size_t{1} << maker.pick(0, 4);
        const size_t begin = (slot * static_cast<size_t>(i) + 15) / 16 * 16;
        const size_t src_at = begin + unit * maker.pick(0, 32 / unit);
        const size_t dst_at = begin + unit * maker.pick(0, 32 / unit);
        srcs.push_back(src.as() + src_at);
        dsts.push_back(dst.as() + dst_at);
        std::memcpy(expected.data() + dst_at, src_bytes.data() + src_at, size);
      }
      Buffer src_table(srcs, Memory::kDevice);
      Buffer dst_table(dsts, Memory::kDevice);
      KVBM_CUDA(kvbm_kernels_launch_vectorized_copy(src_table.as<void*>(), dst_table.as<void*>(),
                                                    size, pairs, stream_));
      KVBM_CUDA(cudaStreamSynchronize(stream_));
      ASSERT_TRUE(dst.read() == expected);
    }
  }
}

TEST_F(KernelsGpu, MemcpyBatchCopiesInEveryMode) {
  struct Case {
    size_t size, count;
  };
  std::vector<int> modes = {KVBM_KERNELS_BATCH_WITH_FALLBACK, KVBM_KERNELS_FALLBACK_ONLY};
  if (kvbm_kernels_has_memcpy_batch_async()) modes.push_back(KVBM_KERNELS_BATCH_ONLY);
  for (const auto& [size, count] : {Case{256, 1}, Case{512, 8}, Case{1 << 20, 3}, Case{999, 5},
                                    Case{64, 256}, Case{16, 5000}}) {
    for (const int mode : modes) {
      for (const bool to_device : {true, false}) {
        SCOPED_TRACE(std::to_string(count) + " copies of " + std::to_string(size) + ", mode " +
                     std::to_string(mode));
        const size_t slot = size + 3;
        const std::vector<char> src_bytes = random_bytes(slot * count, size);
        std::vector<char> expected(src_bytes.size(), static_cast<char>(0xDE));
        Buffer src(src_bytes, to_device ? Memory::kPinned : Memory::kDevice);
        Buffer dst(expected, to_device ? Memory::kDevice : Memory::kPinned);
        std::vector<const void*> srcs;
        std::vector<void*> dsts;
        for (size_t i = 0; i < count; ++i) {
          srcs.push_back(src.as() + slot * i);
          dsts.push_back(dst.as() + slot * (count - 1 - i));
          std::memcpy(expected.data() + slot * (count - 1 - i), src_bytes.data() + slot * i, size);
        }
        KVBM_CUDA(kvbm_kernels_memcpy_batch(srcs.data(), dsts.data(), size, count, mode, stream_));
        KVBM_CUDA(cudaStreamSynchronize(stream_));
        ASSERT_TRUE(dst.read() == expected);
      }
    }
  }
}

TEST_F(KernelsGpu, MemcpyBatchFallsBackOnADefaultStream) {
  const std::vector<char> bytes = random_bytes(4096, 1);
  Buffer src(bytes, Memory::kPinned);
  const void* srcs[] = {src.as()};
  for (const cudaStream_t stream : {cudaStream_t{nullptr}, cudaStreamLegacy, cudaStreamPerThread}) {
    Buffer dst(4096, Memory::kDevice);
    void* dsts[] = {dst.as()};
    EXPECT_EQ(kvbm_kernels_memcpy_batch(srcs, dsts, 4096, 1, KVBM_KERNELS_BATCH_ONLY, stream),
              kvbm_kernels_has_memcpy_batch_async() ? KVBM_KERNELS_INVALID_VALUE
                                                    : KVBM_KERNELS_NOT_SUPPORTED);
    KVBM_CUDA(
        kvbm_kernels_memcpy_batch(srcs, dsts, 4096, 1, KVBM_KERNELS_BATCH_WITH_FALLBACK, stream));
    KVBM_CUDA(cudaDeviceSynchronize());
    EXPECT_TRUE(dst.read() == bytes);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  }
}

TEST_F(KernelsGpu, PatternsAreThoseOfTheHost) {
  for (uint64_t seed = 1; seed <= 120; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    const RandomPattern pattern = make_random_pattern(seed);
    std::vector<char> expected = random_bytes(pattern.bytes, seed);
    const Memory kind = seed % 3 == 0 ? Memory::kPinned : Memory::kDevice;
    Buffer arena(expected, kind);
    Buffer ids(pattern.ids, Memory::kPinned);
    Buffer seeds(pattern.seeds, seed % 2 == 0 ? Memory::kDevice : Memory::kPinned);
    Buffer first_wrong(pattern.ids.size() * sizeof(uint64_t), Memory::kDevice);
    const auto pieces = pattern.place(arena.as());
    const auto launch = [&](uint64_t* found) {
      KVBM_CUDA(kvbm_kernels_launch_pattern(pieces.data(), pieces.size(), ids.as<uint32_t>(),
                                            seeds.as<uint64_t>(), pattern.ids.size(), found,
                                            stream_));
      KVBM_CUDA(cudaStreamSynchronize(stream_));
    };
    launch(nullptr);
    fill_on_host(pattern, expected, nullptr);
    ASSERT_TRUE(arena.read() == expected);

    spoil(expected, seed);
    arena.fill(expected.data());
    std::vector<uint64_t> first_on_host(pattern.ids.size());
    launch(first_wrong.as<uint64_t>());
    fill_on_host(pattern, expected, first_on_host.data());
    EXPECT_EQ(first_wrong.read<uint64_t>(), first_on_host);
    EXPECT_TRUE(arena.read() == expected) << "a comparison wrote";
  }
}

TEST_F(KernelsGpu, ChecksumsAreThoseOfTheHost) {
  constexpr size_t kUnit = 1024;
  constexpr uint64_t kSeed = 0x6b76626d2d73756d;
  // From one unit to more pieces than one launch takes, and to runs of many tiles.
  for (const size_t num_pieces : {1, 2, 3, 90, 91, 200}) {
    for (const size_t units : {1, 7, 64, 65, 300}) {
      for (const size_t num_blocks : {1, 3, 400}) {
        const size_t block_bytes = num_pieces * (2 * units + 1) * kUnit;
        if (num_blocks * block_bytes > (size_t{64} << 20)) continue;
        SCOPED_TRACE(std::to_string(num_pieces) + " pieces, " + std::to_string(units) + " units, " +
                     std::to_string(num_blocks) + " blocks");
        const std::vector<char> bytes = random_bytes(num_blocks * block_bytes, units);
        Buffer memory(bytes, Memory::kDevice);
        std::vector<uint32_t> order(num_blocks);
        for (size_t i = 0; i < num_blocks; ++i) {
          order[i] = static_cast<uint32_t>(num_blocks - 1 - i);
        }
        Buffer ids(order, Memory::kPinned);
        Buffer sums(num_blocks * 8 * sizeof(uint64_t), Memory::kDevice);
        const auto place = [&](const char* base) {
          std::vector<kvbm_checksum_piece> pieces;
          for (size_t i = 0; i < num_pieces; ++i) {
            pieces.push_back({base + i * (2 * units + 1) * kUnit, block_bytes, units * kUnit,
                              (units + 1) * kUnit, i % 3 == 2 ? 1U : 2U});
          }
          return pieces;
        };
        const auto here = place(memory.as());
        KVBM_CUDA(kvbm_kernels_launch_checksum(here.data(), here.size(), ids.as<uint32_t>(),
                                               num_blocks, kSeed, sums.as<uint64_t>(), stream_));
        KVBM_CUDA(cudaStreamSynchronize(stream_));
        const std::vector<uint64_t> found = sums.read<uint64_t>();
        const auto there = place(bytes.data());
        for (size_t i = 0; i < num_blocks; ++i) {
          uint64_t expected = 0;
          ASSERT_EQ(
              kvbm_kernels_checksum_on_host(there.data(), there.size(), order[i], kSeed, &expected),
              0);
          ASSERT_EQ(found[8 * i], expected) << "block " << i;
        }
      }
    }
  }
}

TEST_F(KernelsGpu, ComparesWhereEveryByteIsWrong) {
  constexpr size_t kBytes = size_t{8} << 20;
  Buffer memory(kBytes, Memory::kDevice);
  KVBM_CUDA(cudaMemset(memory.as(), 0xEE, kBytes));
  Buffer ids(std::vector<uint32_t>(1), Memory::kPinned);
  Buffer seeds(std::vector<uint64_t>{1}, Memory::kPinned);
  Buffer first_wrong(sizeof(uint64_t), Memory::kDevice);
  const kvbm_pattern_piece piece = {memory.as(), 0, kBytes, 0};
  KVBM_CUDA(kvbm_kernels_launch_pattern(&piece, 1, ids.as<uint32_t>(), seeds.as<uint64_t>(), 1,
                                        first_wrong.as<uint64_t>(), stream_));
  KVBM_CUDA(cudaStreamSynchronize(stream_));
  EXPECT_EQ(first_wrong.read<uint64_t>().front(), 0u);
}

}  // namespace
}  // namespace kvbm::kernels

#endif
