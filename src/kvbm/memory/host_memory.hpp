// SPDX-License-Identifier: Apache-2.0
// HostMemory: host memory as a device wants it: pinned for one that pins, else pageable.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "kvbm/base/completion.hpp"
#include "kvbm/base/executor.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/base/unique_function.hpp"
#include "kvbm/memory/host_pinner.hpp"
#include "kvbm/memory/memory_region.hpp"
#include "kvbm/memory/pinned_memory.hpp"
#include "kvbm/memory/system_memory.hpp"

namespace kvbm {

/// What HostMemory::create waits for.
enum class HostReady : uint8_t {
  kAll,
  kFirstSlice,  ///< the rest is pinned in the background: see HostMemory::ready
};

struct HostMemoryOptions {
  Executor& executor;
  std::shared_ptr<HostPinner> pinner = nullptr;  ///< null: pageable memory
  uint64_t size_bytes = 0;
  HostReady wait = HostReady::kAll;
  uint64_t slice_bytes = PinnedMemoryOptions::kSliceBytes;  ///< see PinnedMemoryOptions
  /// Of the pinning; see PinnedMemoryOptions.
  UniqueFunction<void(uint64_t ready_bytes)> on_progress = {};
  /// The same.
  UniqueFunction<void(uint64_t usable_bytes, const Error& why)> on_shortage = {};
};

/// Reads as zero.
/// Ownership: move-only. Borrows the executor.
/// Threads: one thread at a time; ready() from any.
class HostMemory {
 public:
  /// Owns nothing.
  HostMemory() noexcept = default;

  /// Errors: those of SystemMemory; of PinnedMemory and its pinner.
  [[nodiscard]] static Result<HostMemory> create(HostMemoryOptions options);

  /// Done when the first `bytes` bytes may be used, or with the error that ended the pinning
  /// before. Contract: not more than there are.
  [[nodiscard]] Completion ready(uint64_t bytes) const {
    return pinned_.size_bytes() > 0 ? pinned_.ready(bytes) : Completion::ready();
  }

  /// Waits for all of it, and ends the threads that pinned it. Errors: those of the pinner.
  Status wait() { return pinned_.wait_for(pinned_.size_bytes()); }

  /// As PinnedMemory has it.
  void give_up() noexcept { pinned_.give_up(); }

  [[nodiscard]] uint64_t size_bytes() const noexcept { return bytes().size(); }
  [[nodiscard]] std::span<std::byte> bytes() const noexcept {
    if (pinned_.size_bytes() > 0) return {pinned_.data(), pinned_.size_bytes()};
    return pageable_.bytes();
  }
  [[nodiscard]] MemoryRegion region() const {
    return pinned_.size_bytes() > 0 ? pinned_.region() : pageable_.region();
  }

 private:
  SystemMemory pageable_;
  PinnedMemory pinned_;  // instead, with a pinner
};

}  // namespace kvbm
