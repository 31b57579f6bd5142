// SPDX-License-Identifier: Apache-2.0
// HostTransfer: blocks between two layouts in host memory, copied by the manager's threads.
#pragma once

#include <atomic>
#include <cstdint>

#include "kvbm/device/strided_copy.hpp"
#include "kvbm/transfer/internal/transfer.hpp"

namespace kvbm::internal {

/// Some blocks a turn, so that others get theirs. Threads: see Transfer.
class HostTransfer final : public Transfer {
 public:
  HostTransfer(TransferFrame frame, StridedCopyBatch batch)
      : Transfer(std::move(frame)), batch_(std::move(batch)) {}

  void run() noexcept override;

 private:
  void stop() noexcept override { stopped_.store(true, std::memory_order_relaxed); }
  void give_up(ErrorCode code, std::string_view why) noexcept;

  const StridedCopyBatch batch_;
  uint32_t next_ = 0;  ///< of whoever runs
  std::atomic<bool> stopped_{false};
};

}  // namespace kvbm::internal
