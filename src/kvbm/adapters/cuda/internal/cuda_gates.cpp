// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cuda/internal/cuda_gates.hpp"

#include <cuda_runtime_api.h>

#include <atomic>
#include <utility>

#include "kvbm/base/text.hpp"

namespace kvbm::internal {

namespace {

/// Words that the GPU waits for, one a cache line.
constexpr size_t kWords = 64;
constexpr size_t kWordStride = 16;

}  // namespace

Result<volatile uint32_t*> CudaGates::take_word() {
  const MutexLock lock(mutex_);
  if (words_ == nullptr) {
    void* words = nullptr;
    const size_t bytes = kWords * kWordStride * sizeof(uint32_t);
    if (const cudaError_t code =
            ::cudaHostAlloc(&words, bytes, cudaHostAllocMapped | cudaHostAllocPortable)) {
      return make_error(cuda_error("no memory that the host and the GPU share", code));
    }
    words_ = static_cast<volatile uint32_t*>(words);
    for (size_t i = 0; i < kWords; ++i) {
      words_[i * kWordStride] = 0;
      free_.push_back(words_ + i * kWordStride);
    }
  }
  if (free_.empty()) {
    return make_error(ErrorCode::kExhausted, format_text("cuda:{} has adopted {} streams already",
                                                         context_->gpu().ordinal, kWords));
  }
  volatile uint32_t* const word = free_.back();
  free_.pop_back();
  return word;
}

void CudaGates::give_back(volatile uint32_t* word) {
  const MutexLock lock(mutex_);
  free_.push_back(word);
}

Result<uint32_t> CudaGates::close_gate(CudaStream& stream) {
  uint32_t gate = 0;
  volatile uint32_t* word = nullptr;
  {
    const MutexLock lock(stream.mutex);
    gate = stream.first_gate + static_cast<uint32_t>(stream.gates.size());
    word = stream.gate_word;
    // First: where there is no memory for a gate or the mark of its task, the GPU would wait for
    // ever. The watcher puts one mark before that at most.
    stream.marks.make_room(2);
    stream.gates.push_back({.segment = stream.segment, .is_open = false, .outcome = {}});
  }
  constexpr uint32_t kAtLeast = 0;  // CU_STREAM_WAIT_VALUE_GEQ, which counts in circles
  const int code = context_->driver().stream_wait_value(
      stream.native, reinterpret_cast<uintptr_t>(word), gate, kAtLeast);
  const MutexLock lock(stream.mutex);
  if (code != 0) {
    stream.gates.pop_back();
    return make_error(Error(ErrorCode::kUnsupported,
                            format_text("stream {} cannot wait for the host", stream.name),
                            NativeDomain::kCuda, code));
  }
  stream.anything_since_record = true;
  stream.native_since_mark = true;
  return gate;
}

bool CudaGates::open_gate(CudaStream& stream, uint32_t gate, const Status& outcome) {
  const MutexLock lock(stream.mutex);
  const uint32_t at = gate - stream.first_gate;
  if (at >= stream.gates.size() || stream.gates[at].is_open) return false;
  stream.gates[at].is_open = true;
  stream.gates[at].outcome = outcome;
  while (!stream.gates.empty() && stream.gates.front().is_open) {
    const CudaGate open = std::move(stream.gates.front());
    stream.gates.pop_front();
    stream.note(open.segment, open.outcome);
    std::atomic_thread_fence(std::memory_order_release);
    *stream.gate_word = stream.first_gate++;
  }
  return stream.destroyed && stream.is_drained();
}

void CudaGates::close() noexcept {
  const MutexLock lock(mutex_);
  if (words_ != nullptr) static_cast<void>(::cudaFreeHost(const_cast<uint32_t*>(words_)));
  words_ = nullptr;
  free_.clear();
}

}  // namespace kvbm::internal
