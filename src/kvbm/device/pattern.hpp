// SPDX-License-Identifier: Apache-2.0
// PatternBatch: blocks to fill with words that a seed dictates, or to compare with them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kvbm/base/ids.hpp"
#include "kvbm/base/result.hpp"

namespace kvbm {

/// Word i of a pattern: 8 bytes, the lowest first. Additions, shifts and xors only, so
/// that compilers make vectors of it. A bijection of the seed: patterns of two seeds differ in
/// every word.
[[nodiscard]] constexpr uint64_t pattern_word(uint64_t seed, uint64_t i) noexcept {
  uint64_t word = seed + i * 0x9E3779B97F4A7C15ULL;  // 2^64 / golden ratio, odd
  word ^= word >> 29;
  word += word << 17;
  word ^= word >> 32;
  return word;
}

/// Writes the words of `seed` from the first on; the last one may be cut off.
void fill_pattern(uint64_t seed, std::span<std::byte> out) noexcept;

/// The first offset whose byte is not the pattern's, if there is one.
[[nodiscard]] std::optional<uint64_t> first_wrong_byte(uint64_t seed,
                                                       std::span<const std::byte> bytes) noexcept;

/// One part of every block, such as the keys of a layer: `bytes` bytes from
/// data + block * block_stride on. Units: bytes.
struct PatternPiece {
  std::byte* data = nullptr;
  uint64_t block_stride = 0;
  uint64_t bytes = 0;
  uint64_t seed = 0;
};

/// What a comparison found: for each block of its batch the first wrong byte.
/// Threads: the device's until an event recorded after the batch is done, then any.
class PatternFindings {
 public:
  /// Pieces of a batch, and bytes of one piece, stay below these.
  static constexpr uint64_t kMaxPieces = uint64_t{1} << 24;
  static constexpr uint64_t kMaxPieceBytes = uint64_t{1} << 40;
  /// A place as one number, in the order of pieces and then of offsets.
  static constexpr uint64_t kNothingWrong = ~uint64_t{0};
  [[nodiscard]] static constexpr uint64_t place_of(uint64_t piece, uint64_t offset) noexcept {
    return piece * kMaxPieceBytes + offset;
  }

  struct Place {
    uint32_t piece = 0;   ///< of the batch
    uint64_t offset = 0;  ///< in the piece

    friend bool operator==(const Place&, const Place&) = default;
  };

  /// For a batch of so many blocks.
  explicit PatternFindings(size_t num_blocks) : first_wrong_(num_blocks, kNothingWrong) {}

  [[nodiscard]] size_t num_blocks() const noexcept { return first_wrong_.size(); }
  /// How many blocks have been compared: fewer than the batch's if it was left out or failed.
  [[nodiscard]] size_t num_compared() const noexcept { return num_compared_; }
  [[nodiscard]] size_t num_wrong() const noexcept;
  /// Of the index-th block of the batch. Contract: `index` is one of the batch.
  [[nodiscard]] std::optional<Place> first_wrong(size_t index) const;

  /// For the device: the next blocks of the batch have been compared. Each number is a place_of()
  /// or kNothingWrong. Contract: not more blocks than the batch has.
  void add(std::span<const uint64_t> first_wrong);

 private:
  std::vector<uint64_t> first_wrong_;
  size_t num_compared_ = 0;
};

/// Every piece of every block: blocks[i] holds, or is to hold, in each piece the pattern of
/// seeds[i] + the piece's seed (mod 2^64).
/// Ownership: the memory is the caller's, and stays until an event recorded after the batch is
/// done. Requires: pieces of different blocks do not overlap.
struct PatternBatch {
  std::vector<BlockId> blocks = {};
  std::vector<uint64_t> seeds = {};
  std::vector<PatternPiece> pieces = {};
  /// Null: the blocks are filled. Otherwise they are compared, and here is what was found, not
  /// later than the next event of the stream is done.
  std::shared_ptr<PatternFindings> findings = nullptr;
};

/// The bytes that a batch fills or compares, after a look at its shape.
/// Errors: kInvalidArgument (another number of seeds than of blocks; a null base of a piece that is
/// not empty; kMaxPieces, kMaxPieceBytes and more; an offset of 2^64 bytes and more; findings of
/// another number of blocks).
[[nodiscard]] Result<uint64_t> planned_bytes(const PatternBatch& batch);

/// The batch in memory that the host addresses, on the calling thread.
/// Requires: planned_bytes() takes the batch.
void run_pattern(const PatternBatch& batch);

}  // namespace kvbm
