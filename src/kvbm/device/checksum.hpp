// SPDX-License-Identifier: Apache-2.0
// ChecksumBatch: checksums of blocks, computed where the blocks are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kvbm/base/ids.hpp"
#include "kvbm/base/result.hpp"

namespace kvbm {

/// Bytes of every run are a multiple of it: what XXH3 takes before it mixes.
inline constexpr uint64_t kChecksumUnit = 1024;
/// Addresses and strides are.
inline constexpr uint64_t kChecksumAlignment = 16;

/// A part of every block: `count` runs of `bytes` bytes each, the first one at
/// data + block * block_stride, the others `stride` apart. Units: bytes, apart from `count`.
struct ChecksumPiece {
  const std::byte* data = nullptr;
  uint64_t block_stride = 0;
  uint64_t bytes = 0;
  uint32_t count = 1;
  uint64_t stride = 0;  ///< not used if count is 1
};

/// One number for each block of a batch.
/// Threads: the device's until an event recorded after the batch is done, then any.
class BlockChecksums {
 public:
  /// For a batch of so many blocks.
  explicit BlockChecksums(size_t num_blocks) : values_(num_blocks) {}

  /// How many are known, the first ones of the batch: fewer than its blocks if it was left out or
  /// failed.
  [[nodiscard]] size_t num_known() const noexcept { return num_known_; }
  /// Contract: index < num_known().
  [[nodiscard]] uint64_t at(size_t index) const;

  /// For the device: of the next blocks of the batch. Contract: not more than the batch has.
  void add(std::span<const uint64_t> values);

 private:
  std::vector<uint64_t> values_;
  size_t num_known_ = 0;
};

/// checksum() of each block: of its runs in their order, as if they lay one behind the other.
/// Ownership: the memory is the caller's, and stays until an event recorded after the batch is
/// done.
struct ChecksumBatch {
  std::vector<BlockId> blocks = {};
  std::vector<ChecksumPiece> pieces = {};
  /// Filled in not later than the next event of the stream is done. The device keeps it until the
  /// batch has ended or been dropped, and lets go of it, without a lock, before that event is done.
  std::shared_ptr<BlockChecksums> checksums = nullptr;
};

/// The bytes of one block, after a look at the batch's shape.
/// Errors: kInvalidArgument (no checksums; a null base of a piece that is not empty; a run that is
/// not a multiple of kChecksumUnit, or not at one of kChecksumAlignment; no byte; 2^40 bytes and
/// more; an offset of 2^64 bytes and more).
[[nodiscard]] Result<uint64_t> planned_bytes(const ChecksumBatch& batch);

/// The batch in memory that the host addresses, on the calling thread.
/// Requires: planned_bytes() takes the batch.
void run_checksum(const ChecksumBatch& batch);

}  // namespace kvbm
