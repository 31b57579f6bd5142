// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/internal/hop.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include "kvbm/transfer/internal/failure.hpp"
#include "kvbm/transfer/internal/file_transfer.hpp"
#include "kvbm/transfer/internal/host_transfer.hpp"
#include "kvbm/transfer/internal/memory_transfer.hpp"
#include "kvbm/transfer/internal/remote_transfer.hpp"

namespace kvbm::internal {
namespace {

std::vector<Event> not_done(std::span<const Event> events) {
  std::vector<Event> result;
  for (const Event& event : events) {
    // One that has failed counts as not done, so that it is looked at.
    if (!event.done() || !event.status()) result.push_back(event);
  }
  return result;
}

bool any_failed(std::span<const Event> events) {
  return std::ranges::any_of(events,
                             [](const Event& event) { return event.done() && !event.status(); });
}

TransferFrame frame_of(const std::shared_ptr<TransferContext>& context, const HopRequest& request,
                       uint64_t block_bytes) {
  return {.context = context,
          .kind = request.kind,
          .route = request.hop.route(),
          .num_blocks = request.blocks->pairs.size(),
          .block_bytes = block_bytes,
          .blocks = request.blocks,
          .deadline = request.deadline,
          .priority = request.priority,
          .layouts = {request.src, request.dst}};
}

StridedCopyBatch batch_of(const TransferFrame& frame, const HopRequest& request) {
  return {.pairs = pairs_of(frame.blocks),
          .pieces = request.pieces.empty()
                        ? PieceList(request.plan->with_addresses(*request.src, *request.dst))
                        : request.pieces,
          .bytes_moved = nullptr};
}

Status start_copy(TransferContext& context, MemoryTransfer& copy, const HopRequest& request) {
  const std::vector<Event> events = not_done(request.wait_for);
  if (request.kind == TransferKind::kPart || any_failed(events)) return copy.start_on_host(events);
  if (request.stream) return copy.start_on(*request.stream, events);
  if (events.empty()) return copy.start_now();
  if (request.deadline == kNever) {
    if (const auto stream = context.streams().take_waiting()) {
      Status status = copy.start_on_waiting(*stream, events);
      // It may have been left with a wait for an event that never comes.
      if (!status) context.streams().discard_waiting(*stream);
      return status;
    }
  }
  return copy.start_on_host(events);
}

Result<TransferCompleteNotification> copy_on_device(const std::shared_ptr<TransferContext>& context,
                                                    const HopRequest& request) {
  TransferFrame frame = frame_of(context, request, request.plan->bytes_per_block());
  StridedCopyBatch batch = batch_of(frame, request);
  // A caller's stream may have no room for what a kernel needs, and cannot wait for it; there the
  // copy engine is left as it is.
  if (!request.stream) {
    const MethodChoice choice =
        choose_method_of(*context, batch.pieces, *batch.pairs, request.hop.route());
    batch.method = choice.method;
    batch.max_ctas = choice.max_ctas;
    batch.max_bytes_per_second = choice.max_bytes_per_second;
  }
  const auto transfer =
      make_pooled<MemoryTransfer>(context->pool(), std::move(frame), std::move(batch));
  return launch(*context, transfer,
                [&](MemoryTransfer& copy) { return start_copy(*context, copy, request); });
}

Result<TransferCompleteNotification> copy_on_host(const std::shared_ptr<TransferContext>& context,
                                                  const HopRequest& request) {
  TransferFrame frame = frame_of(context, request, request.plan->bytes_per_block());
  StridedCopyBatch batch = batch_of(frame, request);
  const auto transfer =
      make_pooled<HostTransfer>(context->pool(), std::move(frame), std::move(batch));
  return launch(*context, transfer,
                [&](HostTransfer& copy) { return copy.start_after(not_done(request.wait_for)); });
}

Result<TransferCompleteNotification> ask_file(const std::shared_ptr<TransferContext>& context,
                                              const HopRequest& request) {
  const bool writes = request.hop.route() == TransferRoute::kMemoryToFile;
  const PhysicalLayout& file = writes ? *request.dst : *request.src;
  const PhysicalLayout& memory = writes ? *request.src : *request.dst;
  const bool hidden =
      memory.storage_kind() == StorageKind::kDevice && !context->capabilities().host_accessible;
  const BlockPairs& pairs = request.blocks->pairs;
  KVBM_TRY(check_slot_alignment(file));
  KVBM_ASSIGN_OR_RETURN(
      const auto transfer,
      FileTransfer::create(
          frame_of(context, request, file.config().block_bytes()),
          FileTransferSpec{.op = writes ? FileOp::kWrite : FileOp::kRead,
                           .place = hidden ? BufferPlace::kDevice : BufferPlace::kHost,
                           .file = file,
                           .runs = addressed_runs(memory),
                           .slots = writes ? pairs.to() : pairs.from(),
                           .blocks = writes ? pairs.from() : pairs.to(),
                           .tags = {request.tags.begin(), request.tags.end()}}));
  return launch(*context, transfer, [&](FileTransfer& starting) {
    return starting.start_after(not_done(request.wait_for));
  });
}

Result<TransferCompleteNotification> ask_agent(const std::shared_ptr<TransferContext>& context,
                                               const HopRequest& request) {
  RemoteRequest operation =
      remote_request(*request.plan, *request.src, *request.dst, request.blocks->pairs);
  operation.notification = request.write_notification;
  const auto transfer =
      std::make_shared<RemoteTransfer>(frame_of(context, request, request.plan->bytes_per_block()),
                                       *context->config().remote_agent, std::move(operation));
  return launch(*context, transfer, [&](RemoteTransfer& starting) {
    return starting.start_after(not_done(request.wait_for));
  });
}

}  // namespace

Result<TransferCompleteNotification> start_hop(const std::shared_ptr<TransferContext>& context,
                                               const HopRequest& request) {
  if (request.hop.kind == HopKind::kRemote) return ask_agent(context, request);
  if (request.hop.kind == HopKind::kFile) return ask_file(context, request);
  return request.hop.kind == HopKind::kDevice ? copy_on_device(context, request)
                                              : copy_on_host(context, request);
}

MethodChoice choose_method_of(const TransferContext& context, std::span<const StridedPiece> pieces,
                              const BlockPairs& pairs, TransferRoute route) {
  const DeviceCapabilities& capabilities = context.capabilities();
  return choose_method({.pieces = pieces,
                        .num_blocks = pairs.size(),
                        .num_groups = capabilities.kernel_copies ? pairs.count_groups() : 0,
                        .route = route,
                        .capabilities = capabilities,
                        .calibration = context.config().calibration});
}

}  // namespace kvbm::internal
