// SPDX-License-Identifier: Apache-2.0
// CudaRooms: memory for kernels that have a number to tell of each block, lent for a launch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "kvbm/base/result.hpp"

namespace kvbm::internal {

/// Of one launch. [kMostBlocks] each.
struct CudaRoom {
  static constexpr size_t kMostBlocks = 4096;
  /// Numbers that a kernel has for a block, at most.
  static constexpr size_t kNumbers = 8;

  // Host and GPU share these.
  uint64_t* found = nullptr;  ///< what the launch has to tell
  uint64_t* seeds = nullptr;
  uint32_t* ids = nullptr;
  uint64_t* numbers = nullptr;  ///< of the GPU, kNumbers for each block

  /// Requires: a Scope of the context. Errors: kExhausted, kDevice.
  [[nodiscard]] static Result<CudaRoom> make();
  /// Waits for the GPU. Requires: a Scope of the context.
  void free() const noexcept;
};

/// A room comes back when the last share of it goes, and stays until close(): giving it to the
/// driver would wait for the GPU. Rooms may outlive this, but not close().
/// Threads: any thread.
class CudaRooms {
 public:
  /// `make`: of a room where none is free, without a lock; `free`: at the end.
  explicit CudaRooms(std::function<Result<CudaRoom>()> make = CudaRoom::make,
                     std::function<void(const CudaRoom&)> free = &CudaRoom::free);

  /// Errors: those of `make`.
  [[nodiscard]] Result<std::shared_ptr<const CudaRoom>> take();

  /// Requires: all rooms have come back.
  void close();

 private:
  struct Store;

  const std::function<Result<CudaRoom>()> make_;
  const std::function<void(const CudaRoom&)> free_;
  const std::shared_ptr<Store> store_;  // shared with what is lent
};

}  // namespace kvbm::internal
