// SPDX-License-Identifier: Apache-2.0
// RawCopies: copies by one fixed way each, timed: plain calls of CUDA and of the kernels' C
// interface, and on the host plain loops and calls of its device.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "kvbm/base/result.hpp"
#include "kvbm/device/stream.hpp"
#include "kvbm/runtime/devices.hpp"

namespace kvbm {

/// Puts one copy on a stream.
using SubmitCopy = std::function<Status()>;

struct CopyPairs {
  std::vector<const void*> src = {};
  std::vector<void*> dst = {};
  uint64_t bytes = 0;  ///< of each
};

/// Block stack in NHD and universal blocks, as the permutation kernels want them.
struct PermutedBlocks {
  std::vector<void*> universal = {};  ///< by block
  std::vector<void*> chunks = {};     ///< by block, layer, outer
  uint64_t num_heads = 0;
  uint64_t num_layers = 0;
  uint64_t outer_dim = 0;
  uint64_t page_size = 0;
  uint64_t head_dim = 0;
  uint32_t dtype_width_bytes = 2;
  bool to_universal = true;
};

/// Milliseconds from before `submit` to the end of what it puts on the stream, by the host's clock.
[[nodiscard]] Result<double> time_on_host(Device& device, StreamRef stream,
                                          const SubmitCopy& submit);

/// Ownership: borrows the device, which outlives it and what it made.
/// Threads: one thread at a time; makes the GPU the current one of the thread.
class RawCopies {
 public:
  /// Those of the device, a GPU or the host. Errors: kUnsupported (this build has no CUDA),
  /// kDevice.
  [[nodiscard]] static Result<std::unique_ptr<RawCopies>> create(const OpenedDevice& device);
  virtual ~RawCopies() = default;
  RawCopies(const RawCopies&) = delete;
  RawCopies& operator=(const RawCopies&) = delete;

  /// Whether cudaMemcpyBatchAsync is there; on the host it is not, and batched() does without.
  [[nodiscard]] virtual bool has_batch() const = 0;
  /// The stream that all of it is put on, as the device knows it.
  [[nodiscard]] virtual StreamRef stream() const = 0;

  /// Milliseconds of what `submit` puts on the stream: of a GPU between events around it.
  [[nodiscard]] virtual Result<double> time(const SubmitCopy& submit) = 0;

  /// The tables are sent to the GPU with every copy, as the reference does. On the host one thread
  /// goes through them.
  [[nodiscard]] virtual Result<SubmitCopy> vectorized(CopyPairs pairs) = 0;
  [[nodiscard]] virtual Result<SubmitCopy> permuted(PermutedBlocks blocks) = 0;
  /// Errors: kUnsupported (no batches in this build or driver).
  [[nodiscard]] virtual Result<SubmitCopy> batched(CopyPairs pairs) = 0;
  [[nodiscard]] virtual Result<SubmitCopy> one_by_one(CopyPairs pairs) = 0;

 protected:
  RawCopies() = default;
};

/// Errors: as RawCopies::create.
[[nodiscard]] Result<std::unique_ptr<RawCopies>> create_cuda_copies(const OpenedDevice& device);

}  // namespace kvbm
