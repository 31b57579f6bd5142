// SPDX-License-Identifier: Apache-2.0
#include "kvbm/device/checksum.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/hash.hpp"
#include "kvbm/base/text.hpp"

namespace kvbm {
namespace {

constexpr uint64_t kMostBytes = uint64_t{1} << 40;

tl::unexpected<Error> invalid(std::string message) {
  return make_error(ErrorCode::kInvalidArgument, std::move(message));
}

/// Whether the last run of the last block begins below 2^64.
bool offsets_fit(const ChecksumPiece& piece, uint32_t last_block) {
  uint64_t blocks = 0;
  uint64_t runs = 0;
  uint64_t end = reinterpret_cast<uintptr_t>(piece.data);
  return !__builtin_mul_overflow(piece.block_stride, uint64_t{last_block}, &blocks) &&
         !__builtin_mul_overflow(piece.stride, uint64_t{piece.count - 1}, &runs) &&
         !__builtin_add_overflow(end, blocks, &end) && !__builtin_add_overflow(end, runs, &end) &&
         !__builtin_add_overflow(end, piece.bytes, &end);
}

}  // namespace

uint64_t BlockChecksums::at(size_t index) const {
  KVBM_CONTRACT(index < num_known_, format_text("checksum {} of {}", index, num_known_));
  return values_[index];
}

void BlockChecksums::add(std::span<const uint64_t> values) {
  KVBM_CONTRACT(values.size() <= values_.size() - num_known_,
                "more checksums than the batch has blocks");
  std::ranges::copy(values, values_.begin() + static_cast<ptrdiff_t>(num_known_));
  num_known_ += values.size();
}

Result<uint64_t> planned_bytes(const ChecksumBatch& batch) {
  if (batch.checksums == nullptr) return invalid("a batch of checksums has no place for them");
  uint32_t last_block = 0;
  for (const BlockId block : batch.blocks) last_block = std::max(last_block, block.value());
  uint64_t total = 0;
  for (const ChecksumPiece& piece : batch.pieces) {
    if (piece.bytes == 0 || piece.count == 0) continue;
    if (piece.data == nullptr) return invalid("a piece of a checksum has no address");
    if (piece.bytes % kChecksumUnit != 0) {
      return invalid(format_text("a run of {} bytes in a checksum; they go in multiples of {}",
                                 piece.bytes, kChecksumUnit));
    }
    if ((reinterpret_cast<uintptr_t>(piece.data) | piece.block_stride | piece.stride) %
            kChecksumAlignment !=
        0) {
      return invalid(
          format_text("the runs of a checksum are at multiples of {} bytes", kChecksumAlignment));
    }
    if (piece.bytes >= kMostBytes / piece.count || !offsets_fit(piece, last_block)) {
      return invalid("a piece of a checksum is beyond all memory");
    }
    total += piece.bytes * piece.count;
    if (total >= kMostBytes) return invalid("a block of 2^40 bytes or more in a checksum");
  }
  if (total == 0 && !batch.blocks.empty()) return invalid("a checksum of no byte");
  return total;
}

void run_checksum(const ChecksumBatch& batch) {
  for (const BlockId block : batch.blocks) {
    Xxh3Stream stream(kChecksumSeed);
    for (const ChecksumPiece& piece : batch.pieces) {
      for (uint32_t k = 0; k < piece.count && piece.bytes > 0; ++k) {
        stream.update(
            {piece.data + block.value() * piece.block_stride + k * piece.stride, piece.bytes});
      }
    }
    const uint64_t value = stream.digest();
    batch.checksums->add({&value, 1});
  }
}

}  // namespace kvbm
