// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/internal/host_transfer.hpp"

#include <algorithm>
#include <utility>

#include "kvbm/transfer/internal/failure.hpp"

namespace kvbm::internal {
namespace {

/// Of a turn: some hundred microseconds.
constexpr uint64_t kTurnBytes = uint64_t{4} << 20;

}  // namespace

void HostTransfer::run() noexcept {
  if (stopped_.load(std::memory_order_relaxed)) {
    return give_up(ErrorCode::kCancelled, "the transfer manager was destroyed before its turn");
  }
  if (context().now() >= deadline()) {
    return give_up(ErrorCode::kTimeout, "the deadline passed before its turn");
  }
  const auto num_blocks = static_cast<uint32_t>(frame().num_blocks);
  const uint64_t turn = std::max<uint64_t>(kTurnBytes / frame().block_bytes, 1);
  const auto end = static_cast<uint32_t>(std::min<uint64_t>(next_ + turn, num_blocks));
  for (; next_ < end; ++next_) {
    for (const StridedPiece& piece : batch_.pieces) {
      copy_on_host(piece, batch_.pairs->from()[next_], batch_.pairs->to()[next_]);
    }
  }
  if (next_ < num_blocks) return context().schedule(shared_from_this());
  TransferResult result;
  result.bytes = frame().block_bytes * num_blocks;
  finish(std::move(result));
}

/// What has been copied has arrived.
void HostTransfer::give_up(ErrorCode code, std::string_view why) noexcept {
  TransferResult result{.status = make_error(failure(code, why)),
                        .bytes = frame().block_bytes * next_,
                        .failed = std::move(failed())};
  for (uint32_t i = next_; i < frame().num_blocks; ++i) result.failed.push_back(i);  // has room
  finish(std::move(result));
}

}  // namespace kvbm::internal
