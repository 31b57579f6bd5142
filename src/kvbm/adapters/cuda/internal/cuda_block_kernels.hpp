// SPDX-License-Identifier: Apache-2.0
// CudaBlockKernels: puts patterns and checksums of blocks on a native stream.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string_view>
#include <utility>

#include "kvbm/adapters/cuda/internal/cuda_context.hpp"
#include "kvbm/adapters/cuda/internal/cuda_rooms.hpp"
#include "kvbm/adapters/cuda/internal/cuda_stream.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/device/checksum.hpp"
#include "kvbm/device/pattern.hpp"

namespace kvbm::internal {

/// A batch is launched in parts, each with a room of its own until it has ended.
/// Threads: any thread, for one stream one at a time.
class CudaBlockKernels {
 public:
  explicit CudaBlockKernels(std::shared_ptr<const CudaContext> context)
      : context_(std::move(context)) {}

  /// Run the kernels once, before anything waits in the GPU. Requires: a Scope of the context.
  /// Errors: kUnsupported (none for this GPU), kExhausted, kDevice.
  [[nodiscard]] Status load_patterns();
  [[nodiscard]] Status load_checksums();

  /// Left out, without an error, where the stream has failed before.
  /// Requires: a Scope of the context; the caller calls the driver for this stream;
  /// planned_bytes() takes the batch. Errors: only if nothing was put on the stream
  /// (kInvalidArgument: memory that is neither this GPU's nor pinned; kExhausted, kDevice); what
  /// fails later is noted in the stream.
  [[nodiscard]] Status launch(CudaStream& stream, const PatternBatch& batch);
  [[nodiscard]] Status launch(CudaStream& stream, const ChecksumBatch& batch);

  /// Gives the memory back. Requires: a Scope of the context; all launches have ended.
  void close() { rooms_.close(); }

 private:
  /// What is put on a stream for every part of a batch.
  struct Work;

  [[nodiscard]] Status load(std::string_view what,
                            const std::function<int(const CudaRoom&, CUstream_st*)>& put);
  [[nodiscard]] Status launch(CudaStream& stream, const Work& work);

  const std::shared_ptr<const CudaContext> context_;
  CudaRooms rooms_;
};

}  // namespace kvbm::internal
