// SPDX-License-Identifier: Apache-2.0
// CudaGates: where an engine's stream waits in the GPU for the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kvbm/adapters/cuda/internal/cuda_context.hpp"
#include "kvbm/adapters/cuda/internal/cuda_stream.hpp"
#include "kvbm/base/mutex.hpp"
#include "kvbm/base/result.hpp"

namespace kvbm::internal {

/// An adopted stream has one word of memory that the GPU sees. A closed gate is a wait of the
/// native stream for that word to reach the gate's number; opening it writes the number.
/// Threads: any thread.
class CudaGates {
 public:
  explicit CudaGates(std::shared_ptr<const CudaContext> context) : context_(std::move(context)) {}

  /// A word for a stream, counted on from where its last stream left it.
  /// Requires: a Scope of the context. Errors: kExhausted (all are taken; no memory), kDevice.
  [[nodiscard]] Result<volatile uint32_t*> take_word();
  void give_back(volatile uint32_t* word);

  /// Makes the native stream wait; the gate's number. Requires: a Scope of the context, `submit` of
  /// an adopted stream. Errors: kUnsupported.
  [[nodiscard]] Result<uint32_t> close_gate(CudaStream& stream);

  /// Again is no change. Outcomes count in the order of the gates, whatever order they open in; the
  /// GPU passes a gate when all before it are open. Returns whether nothing is left of a stream
  /// that was destroyed: then the caller forgets it.
  static bool open_gate(CudaStream& stream, uint32_t gate, const Status& outcome);

  /// Gives the memory back. Requires: a Scope of the context; no stream waits, or will.
  void close() noexcept;

 private:
  const std::shared_ptr<const CudaContext> context_;
  Mutex mutex_{LockRank::kDevice, "device.cuda_gates", 0};
  volatile uint32_t* words_ KVBM_GUARDED_BY(mutex_) = nullptr;
  std::vector<volatile uint32_t*> free_ KVBM_GUARDED_BY(mutex_);
};

}  // namespace kvbm::internal
