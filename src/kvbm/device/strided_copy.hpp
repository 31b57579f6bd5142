// SPDX-License-Identifier: Apache-2.0
// StridedCopyBatch: many copies between blocks, described by strides instead of by a list of
// copies.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "kvbm/base/ids.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/device/block_pairs.hpp"

namespace kvbm {

/// One loop of a StridedPiece. Units: bytes, apart from `count`.
struct StridedAxis {
  uint64_t count = 1;
  uint64_t src_stride = 0;  ///< not used if count is 1
  uint64_t dst_stride = 0;  ///< not used if count is 1

  friend bool operator==(const StridedAxis&, const StridedAxis&) = default;
};

/// Layer, outer, head and page, in any order: what a format can permute inside a block.
inline constexpr size_t kStridedAxes = 4;
using StridedAxes = std::array<StridedAxis, kStridedAxes>;

/// One part of every block, such as the keys of a layer. For each pair (f, t) of block ids and each
/// index (i0, i1, i2, i3) of the axes, outermost first: copies `bytes` bytes
///   from  src + f * src_block_stride + i0 * axes[0].src_stride + … + i3 * axes[3].src_stride
///   to    dst + t * dst_block_stride + i0 * axes[0].dst_stride + … + i3 * axes[3].dst_stride.
/// Units: bytes.
struct StridedPiece {
  const std::byte* src = nullptr;
  std::byte* dst = nullptr;
  uint64_t src_block_stride = 0;
  uint64_t dst_block_stride = 0;
  uint64_t bytes = 0;
  StridedAxes axes = {};
};

/// Whether two pieces differ in their bases alone, as those of layers mostly do.
[[nodiscard]] bool same_form(const StridedPiece& a, const StridedPiece& b) noexcept;

/// Neighbours in a list that are of one form.
struct PieceRun {
  size_t begin = 0;
  size_t end = 0;
  bool has_null_base = false;
  const std::byte* last_src = nullptr;  ///< the highest base
  const std::byte* last_dst = nullptr;
};

/// What a device has made of pieces for itself.
class PreparedPieces {
 public:
  PreparedPieces() = default;
  virtual ~PreparedPieces() = default;
  PreparedPieces(const PreparedPieces&) = delete;
  PreparedPieces& operator=(const PreparedPieces&) = delete;
};

/// Pieces that a plan makes once and the batches of all its transfers share. What is found out
/// about them is found out once. Ownership: a value; copies share the pieces, which never change.
/// Threads: any thread.
class PieceList {
 public:
  PieceList() = default;
  PieceList(std::vector<StridedPiece> pieces);            // NOLINT(google-explicit-constructor)
  PieceList(std::initializer_list<StridedPiece> pieces);  // NOLINT(google-explicit-constructor)

  [[nodiscard]] size_t size() const noexcept { return shared_ ? shared_->pieces.size() : 0; }
  [[nodiscard]] bool empty() const noexcept { return size() == 0; }
  [[nodiscard]] const StridedPiece* data() const noexcept {
    return shared_ ? shared_->pieces.data() : nullptr;
  }
  [[nodiscard]] const StridedPiece* begin() const noexcept { return data(); }
  [[nodiscard]] const StridedPiece* end() const noexcept { return data() + size(); }
  /// Requires: there are more than `i`.
  [[nodiscard]] const StridedPiece& operator[](size_t i) const { return shared_->pieces[i]; }

  /// All pieces, in order.
  [[nodiscard]] std::span<const PieceRun> runs() const noexcept {
    return shared_ ? std::span<const PieceRun>(shared_->runs) : std::span<const PieceRun>();
  }

  /// What was kept here first, as long as the pieces are; null before.
  [[nodiscard]] const PreparedPieces* prepared() const noexcept {
    return shared_ ? shared_->prepared.load(std::memory_order_acquire) : nullptr;
  }
  /// Keeps it, unless something is kept already; what is kept then. Requires: not empty.
  const PreparedPieces& keep(std::unique_ptr<const PreparedPieces> prepared) const noexcept;

 private:
  struct Shared {
    explicit Shared(std::vector<StridedPiece> all);
    ~Shared() { delete prepared.load(std::memory_order_acquire); }
    Shared(const Shared&) = delete;
    Shared& operator=(const Shared&) = delete;

    const std::vector<StridedPiece> pieces;
    std::vector<PieceRun> runs;
    mutable std::atomic<const PreparedPieces*> prepared{nullptr};
  };

  std::shared_ptr<const Shared> shared_;  ///< null: none
};

/// The piece with axes of one entry left out, runs that touch on both sides joined, and the axes
/// that are left moved to the end. The same bytes go to the same places, in the fewest steps that
/// the order of the axes allows.
/// Requires: planned_bytes() takes the piece.
[[nodiscard]] StridedPiece fold(const StridedPiece& piece) noexcept;

/// Copies a piece of one block to one block, as the host that addresses both sides does it.
/// Requires: planned_bytes() takes the piece.
void copy_on_host(const StridedPiece& piece, BlockId from, BlockId to) noexcept;

/// What moves the bytes of a batch.
enum class CopyMethod : uint8_t {
  kEngine,  ///< the copy engine of a device, the memcpy of a host; every device has it
  kKernel,  ///< threads of the device itself; see DeviceCapabilities::kernel_copies
  /// Between host and device: threads of the device gather or scatter in memory of the device, and
  /// its copy engine moves what is there. The host side of a block is to be a BlockImage; see
  /// DeviceCapabilities::ring_copies.
  kRing,
};

/// "engine", "kernel", "ring".
[[nodiscard]] std::string_view to_string(CopyMethod method) noexcept;

/// Every piece for every pair.
/// Ownership: keeps its pairs until the copies have ended; the memory is the caller's, and stays
/// until an event recorded after the batch is done. Requires: what is written overlaps neither
/// itself nor what is read. The order of the copies inside a batch is not defined.
struct StridedCopyBatch {
  BlockPairList pairs = nullptr;
  PieceList pieces = {};

  CopyMethod method = CopyMethod::kEngine;
  /// Thread blocks that a kernel may hold at a time, so that an engine's own kernels find room; 0:
  /// as the device finds best. With kEngine it has no meaning and is refused.
  uint32_t max_ctas = 0;
  /// Bytes per second that a kernel moves at most; 0: as fast as it goes. Writes to the host that
  /// come faster than the link takes them hold up the memory accesses of every other kernel. So
  /// those of a device that have a pace share it, and move no more together than one alone. With
  /// kEngine and kRing, whose kernels do not write there, it has no meaning and is refused.
  uint64_t max_bytes_per_second = 0;

  /// If set, grows by the bytes that arrived, not later than the next event of the stream is done.
  /// A batch that was skipped or failed leaves it short. The device keeps it until the copies have
  /// ended or been dropped, and lets go of it, without a lock, before the next event is done: that
  /// tells their end even where no event could be recorded.
  std::shared_ptr<std::atomic<uint64_t>> bytes_moved = nullptr;
};

/// The bytes that a batch asks for, after a look at its shape.
/// Errors: kInvalidArgument (no pairs given, a null base of a piece that is not empty, a sum or an
/// offset of 2^64 bytes and more, max_ctas or max_bytes_per_second for a method that does not look
/// at it).
[[nodiscard]] Result<uint64_t> planned_bytes(const StridedCopyBatch& batch);

}  // namespace kvbm
