// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/internal/remote_transfer.hpp"

#include <chrono>
#include <utility>
#include <vector>

#include "kvbm/base/text.hpp"
#include "kvbm/transfer/internal/failure.hpp"

namespace kvbm::internal {
namespace {

/// When the agent is full.
constexpr Duration kRetry = std::chrono::milliseconds(1);

AgentMemory memory_of(const PhysicalLayout& layout) {
  return {.type = layout.registration().memory_type, .device_id = layout.registration().device_id};
}

}  // namespace

RemoteRequest remote_request(const TransferPlan& plan, const PhysicalLayout& src,
                             const PhysicalLayout& dst, const BlockPairs& pairs) {
  const bool reads = src.storage_kind() == StorageKind::kRemote;
  const PhysicalLayout& here = reads ? dst : src;
  const PhysicalLayout& there = reads ? src : dst;
  std::vector<RemotePiece> pieces;
  if (!pairs.empty()) pieces = plan.with_remote_addresses(src, dst);
  return {.op = reads ? RemoteOp::kRead : RemoteOp::kWrite,
          .peer = there.registration().agent_name,
          .local_memory = memory_of(here),
          .remote_memory = memory_of(there),
          .local = make_block_list(reads ? pairs.to() : pairs.from()),
          .remote = make_block_list(reads ? pairs.from() : pairs.to()),
          .pieces = std::move(pieces)};
}

RemoteTransfer::RemoteTransfer(TransferFrame frame, RemoteAgent& agent, RemoteRequest request)
    : Transfer(std::move(frame)), agent_(agent), request_(std::move(request)) {
  request_.deadline = deadline();
  request_.bytes_moved = std::make_shared<std::atomic<uint64_t>>(0);
}

void RemoteTransfer::run() noexcept {
  const Status handed_over = guarded([this] { return hand_over(); });
  if (!handed_over) fail_all(handed_over.error());
}

Status RemoteTransfer::hand_over() {
  if (stopped_.load()) {
    return make_error(ErrorCode::kCancelled, "the transfer manager was destroyed before its turn");
  }
  if (context().now() >= deadline()) {
    return make_error(ErrorCode::kTimeout, "the deadline passed before its turn");
  }
  Result<Completion> operation = agent_.submit(request_);
  if (!operation) {
    if (operation.error().code() != ErrorCode::kExhausted) {
      return make_error(std::move(operation).error());
    }
    return context().post_after(kRetry, [weak = weak_from_this()] {
      if (const std::shared_ptr<Transfer> self = weak.lock()) self->run();
    });
  }
  const auto self = std::static_pointer_cast<RemoteTransfer>(shared_from_this());
  const Status heard = guarded([&]() -> Status {
    operation->on_done([self](const Status& status) noexcept { self->ended(status); });
    return {};
  });
  if (heard) return {};
  // No memory to be called back, so it is waited for: the blocks are in use until then.
  static_cast<void>(guarded([&] { return operation->wait(); }));
  ended(operation->status());
  return {};
}

void RemoteTransfer::ended(const Status& status) noexcept {
  if (!status) return fail_all(status.error());
  const uint64_t planned = frame().block_bytes * frame().num_blocks;
  const uint64_t moved = request_.bytes_moved->load();
  if (moved != planned) {
    const Status short_of_bytes = guarded([&]() -> Status {
      return make_error(ErrorCode::kInternal,
                        format_text("the remote agent moved {} of {} bytes and reported no failure",
                                    moved, planned));
    });
    return fail_all(short_of_bytes.error());
  }
  TransferResult result;
  result.bytes = moved;
  finish(std::move(result));
}

}  // namespace kvbm::internal
