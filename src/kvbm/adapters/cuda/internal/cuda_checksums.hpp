// SPDX-License-Identifier: Apache-2.0
// CudaChecksums: puts checksums of blocks on a native stream.
#pragma once

#include <cstddef>
#include <memory>

#include "kvbm/adapters/cuda/internal/cuda_context.hpp"
#include "kvbm/adapters/cuda/internal/cuda_stream.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/device/checksum.hpp"

namespace kvbm::internal {

/// Each launch has ids in memory that host and GPU share, and room in the GPU for sums. It comes
/// back when the launch has ended, and stays until close(): giving it to the driver would wait for
/// the GPU.
/// Threads: any thread, for one stream one at a time.
class CudaChecksums {
 public:
  explicit CudaChecksums(std::shared_ptr<const CudaContext> context);

  /// Runs the kernel once, before anything waits in the GPU. Errors: kUnsupported (none for this
  /// GPU), kExhausted, kDevice.
  Status load();

  /// Left out, without an error, where the stream has failed before.
  /// Requires: a Scope of the context; the caller calls the driver for this stream;
  /// planned_bytes() takes the batch. Errors: only if nothing was put on the stream
  /// (kInvalidArgument: memory that is neither this GPU's nor pinned; kExhausted, kDevice); what
  /// fails later is noted in the stream.
  Status launch(CudaStream& stream, const ChecksumBatch& batch);

  /// Gives the memory back. Requires: a Scope of the context; all launches have ended.
  void close() noexcept;

 private:
  /// Of one launch.
  struct Room;
  struct Store;

  Status launch_part(CudaStream& stream, const ChecksumBatch& batch, size_t first, size_t count,
                     bool& queued);
  [[nodiscard]] Result<std::shared_ptr<Room>> take_room();

  const std::shared_ptr<const CudaContext> context_;
  const std::shared_ptr<Store> store_;  // shared with what is on its way
};

}  // namespace kvbm::internal
