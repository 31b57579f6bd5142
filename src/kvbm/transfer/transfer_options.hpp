// SPDX-License-Identifier: Apache-2.0
// TransferOptions and the requests that they are part of.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/ids.hpp"
#include "kvbm/device/event.hpp"
#include "kvbm/device/stream.hpp"
#include "kvbm/layout/kv_block_layout.hpp"
#include "kvbm/layout/layout_config.hpp"
#include "kvbm/layout/slot_format.hpp"
#include "kvbm/transfer/layout_handle.hpp"
#include "kvbm/transfer/logical_layout.hpp"

namespace kvbm {

/// First what is said first here. It orders what waits for a thread of the manager (file requests
/// to be prepared and checked, copies that had to wait on the host) and for its bounce blocks. What
/// a device or a file engine has keeps its order, and a copy that waits for nothing is handed over
/// at the call.
enum class TransferPriority : uint8_t { kHigh, kNormal, kLow };

/// "high", "normal", "low".
[[nodiscard]] std::string_view to_string(TransferPriority priority) noexcept;

/// Blocks that a caller lends to a transfer of two hops, for what is between them. Nobody else uses
/// them until its notification is done. With fewer than four of them less happens at a time.
/// Threads: a value.
class BounceBuffer {
 public:
  /// Blocks of a registered layout of the manager, in memory that both hops reach. Between a file
  /// and anything else they have the shape and the format of the file's blocks; between two places
  /// in memory the shape of what is copied of a block, or of a whole block of the source.
  [[nodiscard]] static BounceBuffer from_handle(LayoutHandle handle, std::vector<BlockId> ids) {
    return {handle, std::move(ids)};
  }

  [[nodiscard]] LayoutHandle handle() const noexcept { return handle_; }
  [[nodiscard]] const std::vector<BlockId>& ids() const noexcept { return ids_; }

 private:
  BounceBuffer(LayoutHandle handle, std::vector<BlockId> ids) noexcept
      : handle_(handle), ids_(std::move(ids)) {}

  LayoutHandle handle_;
  std::vector<BlockId> ids_;
};

/// Each is honoured, or refused with the reason.
struct TransferOptions {
  /// Of both sides; default: all layers. A slot of a file is written whole.
  std::optional<LayerRange> layer_range = std::nullopt;

  /// Put the copies on this stream, in its order; the host does not wait. Memory to memory only.
  std::optional<StreamRef> stream = std::nullopt;

  /// The transfer touches nothing before all of them are done. If one fails the transfer fails with
  /// that error, and all its blocks have failed.
  std::vector<Event> wait_for = {};

  /// Blocks that have not been handed to a device or a file engine by then fail with kTimeout; what
  /// has been handed over is finished first. Copies are handed over at the call if there is nothing
  /// to wait for, or if the caller gives a stream.
  TimePoint deadline = kNever;

  /// One a block where a side is a file, else empty. Written to the file, or compared with what it
  /// says. Read during the call alone.
  std::span<const SlotTag> tags = {};

  /// The format in which a side is read or written instead of its layout's own; see
  /// LayoutView::as for what it takes.
  std::optional<KvBlockLayout> src_kv_layout = std::nullopt;
  std::optional<KvBlockLayout> dst_kv_layout = std::nullopt;

  /// Head i of the one becomes head i of the other, for tensor-parallel sizes that differ. Default:
  /// all heads of that side. They need a known format. A slot of a file is written whole.
  std::optional<HeadRange> src_heads = std::nullopt;
  std::optional<HeadRange> dst_heads = std::nullopt;

  /// Not with a stream: there the order is the stream's.
  TransferPriority priority = TransferPriority::kNormal;

  /// Instead of bounce blocks of the manager's own; with a transfer of two hops alone.
  std::optional<BounceBuffer> bounce_buffer = std::nullopt;

  /// What the other worker is told once all bytes are there (written: with it; read: here): for
  /// layouts of other workers alone.
  std::optional<uint64_t> write_notification = std::nullopt;
};

/// Copies block src_ids[i] of `src` to block dst_ids[i] of `dst`, for every i.
/// Ownership: the spans are read during the call alone.
struct TransferRequest {
  LayoutHandle src;
  std::span<const BlockId> src_ids;
  LayoutHandle dst;
  std::span<const BlockId> dst_ids;
  TransferOptions options = {};
};

/// The same between two tiers, of a worker or of two, whichever layouts they are there: what a
/// caller says to each of its workers.
struct LogicalTransferRequest {
  LogicalLayoutHandle src = LogicalLayoutHandle::kG1;
  std::span<const BlockId> src_ids;
  LogicalLayoutHandle dst = LogicalLayoutHandle::kG2;
  std::span<const BlockId> dst_ids;
  GroupId group{0};  ///< of layers
  /// Whose tier it is; default: this worker's. One of them may be a worker that was imported.
  std::optional<WorkerId> src_worker = std::nullopt;
  std::optional<WorkerId> dst_worker = std::nullopt;
  TransferOptions options = {};
};

}  // namespace kvbm
