// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>

#include <cstring>
#include <utility>

#include <kvbm/kernels.h>

#include "kvbm/base/text.hpp"
#include "kvbm/memory/pinned_memory.hpp"

#include "apps/kvbench/raw_copies.hpp"

namespace kvbm {
namespace {

Status checked(int code, std::string_view what) {
  if (code == 0) return {};
  static_cast<void>(::cudaGetLastError());
  return make_error(
      Error(ErrorCode::kDevice,
            format_text("{}: {}", what, ::cudaGetErrorName(static_cast<cudaError_t>(code))),
            NativeDomain::kCuda, code));
}

int dtype_of_width(uint32_t bytes) {
  switch (bytes) {
    case 1:
      return KVBM_KERNELS_F8;
    case 4:
      return KVBM_KERNELS_F32;
    case 8:
      return KVBM_KERNELS_F64;
    default:
      return KVBM_KERNELS_BF16;
  }
}

struct Stream {
  ~Stream() {
    if (native != nullptr) static_cast<void>(::cudaStreamDestroy(native));
    for (const cudaEvent_t event : {begin, end}) {
      if (event != nullptr) static_cast<void>(::cudaEventDestroy(event));
    }
  }

  cudaStream_t native = nullptr;
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
};

/// A table of addresses in pinned memory, and room for it on the GPU.
struct Table {
  ~Table() {
    static_cast<void>(::cudaFreeHost(on_host));
    static_cast<void>(::cudaFree(on_gpu));
  }

  static Result<std::shared_ptr<Table>> create(const void* const* addresses, size_t count) {
    auto table = std::make_shared<Table>();
    table->bytes = count * sizeof(void*);
    KVBM_TRY(checked(::cudaMallocHost(&table->on_host, table->bytes), "a table of addresses"));
    KVBM_TRY(checked(::cudaMalloc(&table->on_gpu, table->bytes), "a table of addresses"));
    std::memcpy(table->on_host, addresses, table->bytes);
    return table;
  }

  Status send(cudaStream_t stream) const {
    return checked(::cudaMemcpyAsync(on_gpu, on_host, bytes, cudaMemcpyHostToDevice, stream),
                   "cudaMemcpyAsync");
  }
  [[nodiscard]] void** addresses() const { return static_cast<void**>(on_gpu); }

  void* on_host = nullptr;
  void* on_gpu = nullptr;
  size_t bytes = 0;
};

class CudaCopies final : public RawCopies {
 public:
  CudaCopies(Device& device, std::shared_ptr<const Stream> stream, StreamRef name)
      : device_(device), stream_(std::move(stream)), name_(name) {}
  ~CudaCopies() override { static_cast<void>(device_.destroy_stream(name_)); }

  [[nodiscard]] bool has_batch() const override { return kvbm_kernels_has_memcpy_batch_async(); }
  [[nodiscard]] StreamRef stream() const override { return name_; }

  Result<double> time(const SubmitCopy& submit) override {
    KVBM_TRY(checked(::cudaEventRecord(stream_->begin, stream_->native), "cudaEventRecord"));
    KVBM_TRY(submit());
    KVBM_TRY(checked(::cudaEventRecord(stream_->end, stream_->native), "cudaEventRecord"));
    KVBM_TRY(checked(::cudaEventSynchronize(stream_->end), "the copy"));
    float ms = 0;
    KVBM_TRY(checked(::cudaEventElapsedTime(&ms, stream_->begin, stream_->end), "the clock"));
    return ms;
  }

  Result<SubmitCopy> vectorized(CopyPairs pairs) override {
    KVBM_ASSIGN_OR_RETURN(const auto src, Table::create(pairs.src.data(), pairs.src.size()));
    KVBM_ASSIGN_OR_RETURN(const auto dst, Table::create(pairs.dst.data(), pairs.dst.size()));
    return SubmitCopy([src, dst, bytes = pairs.bytes, count = static_cast<int>(pairs.src.size()),
                       stream = stream_]() -> Status {
      KVBM_TRY(src->send(stream->native));
      KVBM_TRY(dst->send(stream->native));
      return checked(kvbm_kernels_launch_vectorized_copy(src->addresses(), dst->addresses(), bytes,
                                                         count, stream->native),
                     "kvbm_kernels_launch_vectorized_copy");
    });
  }

  Result<SubmitCopy> permuted(PermutedBlocks blocks) override {
    KVBM_ASSIGN_OR_RETURN(const auto universal,
                          Table::create(blocks.universal.data(), blocks.universal.size()));
    KVBM_ASSIGN_OR_RETURN(const auto chunks,
                          Table::create(blocks.chunks.data(), blocks.chunks.size()));
    const int dtype = dtype_of_width(blocks.dtype_width_bytes);
    return SubmitCopy(
        [universal, chunks, dtype, shape = std::move(blocks), stream = stream_]() -> Status {
          KVBM_TRY(universal->send(stream->native));
          KVBM_TRY(chunks->send(stream->native));
          const size_t nb = shape.universal.size();
          if (shape.to_universal) {
            return checked(kvbm_kernels_launch_universal_from_block(
                               universal->addresses(), chunks->addresses(), nb, shape.num_heads,
                               shape.num_layers, shape.outer_dim, shape.page_size, shape.head_dim,
                               dtype, KVBM_KERNELS_NHD, stream->native),
                           "kvbm_kernels_launch_universal_from_block");
          }
          return checked(kvbm_kernels_launch_block_from_universal(
                             universal->addresses(), chunks->addresses(), nb, shape.num_heads,
                             shape.num_layers, shape.outer_dim, shape.page_size, shape.head_dim,
                             dtype, KVBM_KERNELS_NHD, stream->native),
                         "kvbm_kernels_launch_block_from_universal");
        });
  }

  Result<SubmitCopy> batched(CopyPairs pairs) override {
    if (!has_batch()) {
      return make_error(ErrorCode::kUnsupported,
                        "there is no cudaMemcpyBatchAsync in this build or driver");
    }
    return by_copy_engine(std::move(pairs), KVBM_KERNELS_BATCH_ONLY);
  }
  Result<SubmitCopy> one_by_one(CopyPairs pairs) override {
    return by_copy_engine(std::move(pairs), KVBM_KERNELS_FALLBACK_ONLY);
  }

 private:
  Result<SubmitCopy> by_copy_engine(CopyPairs pairs, int mode) {
    const auto kept = std::make_shared<const CopyPairs>(std::move(pairs));
    return SubmitCopy([kept, mode, stream = stream_] {
      return checked(kvbm_kernels_memcpy_batch(kept->src.data(), kept->dst.data(), kept->bytes,
                                               kept->src.size(), mode, stream->native),
                     "kvbm_kernels_memcpy_batch");
    });
  }

  Device& device_;
  const std::shared_ptr<const Stream> stream_;
  const StreamRef name_;
};

}  // namespace

Result<std::unique_ptr<RawCopies>> create_cuda_copies(const OpenedDevice& device) {
  KVBM_TRY(checked(::cudaSetDevice(device.device->info().ordinal), "cudaSetDevice"));
  auto stream = std::make_shared<Stream>();
  KVBM_TRY(
      checked(::cudaStreamCreateWithFlags(&stream->native, cudaStreamNonBlocking), "a stream"));
  KVBM_TRY(checked(::cudaEventCreate(&stream->begin), "an event"));
  KVBM_TRY(checked(::cudaEventCreate(&stream->end), "an event"));
  KVBM_ASSIGN_OR_RETURN(
      const StreamRef name,
      device.adopt_stream(reinterpret_cast<uintptr_t>(stream->native), "kvbench"));
  return std::make_unique<CudaCopies>(*device.device, std::move(stream), name);
}

}  // namespace kvbm
