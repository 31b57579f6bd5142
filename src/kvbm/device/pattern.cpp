// SPDX-License-Identifier: Apache-2.0
#include "kvbm/device/pattern.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/text.hpp"

namespace kvbm {

namespace {

static_assert(std::endian::native == std::endian::little, "words have their lowest byte first");

constexpr size_t kChunkWords = 512;  // made at a time, inside the first level cache
constexpr size_t kChunkBytes = kChunkWords * sizeof(uint64_t);
using Chunk = std::array<uint64_t, kChunkWords>;

void make_chunk(uint64_t seed, uint64_t first_word, Chunk& chunk) noexcept {
  for (size_t i = 0; i < kChunkWords; ++i) chunk[i] = pattern_word(seed, first_word + i);
}

tl::unexpected<Error> invalid(std::string message) {
  return make_error(ErrorCode::kInvalidArgument, std::move(message));
}

bool end_is_addressable(const PatternPiece& piece, uint64_t block) {
  uint64_t end = 0;
  return !__builtin_mul_overflow(block, piece.block_stride, &end) &&
         !__builtin_add_overflow(end, piece.bytes, &end) &&
         !__builtin_add_overflow(end, reinterpret_cast<uintptr_t>(piece.data), &end);
}

uint64_t first_wrong_place(const PatternBatch& batch, size_t index) {
  for (size_t p = 0; p < batch.pieces.size(); ++p) {
    const PatternPiece& piece = batch.pieces[p];
    const std::span<const std::byte> bytes(
        piece.data + batch.blocks[index].value() * piece.block_stride, piece.bytes);
    const auto wrong = first_wrong_byte(batch.seeds[index] + piece.seed, bytes);
    if (wrong) return PatternFindings::place_of(p, *wrong);
  }
  return PatternFindings::kNothingWrong;
}

}  // namespace

void fill_pattern(uint64_t seed, std::span<std::byte> out) noexcept {
  Chunk chunk;
  for (uint64_t word = 0; !out.empty(); word += kChunkWords) {
    make_chunk(seed, word, chunk);
    const size_t bytes = std::min(out.size(), kChunkBytes);
    std::memcpy(out.data(), chunk.data(), bytes);
    out = out.subspan(bytes);
  }
}

std::optional<uint64_t> first_wrong_byte(uint64_t seed, std::span<const std::byte> bytes) noexcept {
  Chunk chunk;
  for (size_t offset = 0; offset < bytes.size(); offset += kChunkBytes) {
    make_chunk(seed, offset / sizeof(uint64_t), chunk);
    const size_t length = std::min(bytes.size() - offset, kChunkBytes);
    if (std::memcmp(bytes.data() + offset, chunk.data(), length) == 0) continue;
    const auto expected = std::as_bytes(std::span(chunk));
    size_t at = 0;
    while (bytes[offset + at] == expected[at]) ++at;
    return offset + at;
  }
  return std::nullopt;
}

size_t PatternFindings::num_wrong() const noexcept {
  return first_wrong_.size() - static_cast<size_t>(std::ranges::count(first_wrong_, kNothingWrong));
}

std::optional<PatternFindings::Place> PatternFindings::first_wrong(size_t index) const {
  KVBM_CONTRACT(index < first_wrong_.size(), "the batch has fewer blocks");
  const uint64_t place = first_wrong_[index];
  if (place == kNothingWrong) return std::nullopt;
  return Place{.piece = static_cast<uint32_t>(place / kMaxPieceBytes),
               .offset = place % kMaxPieceBytes};
}

void PatternFindings::add(std::span<const uint64_t> first_wrong) {
  KVBM_CONTRACT(first_wrong.size() <= first_wrong_.size() - num_compared_,
                "more blocks were compared than the batch has");
  std::ranges::copy(first_wrong, first_wrong_.begin() + static_cast<std::ptrdiff_t>(num_compared_));
  num_compared_ += first_wrong.size();
}

Result<uint64_t> planned_bytes(const PatternBatch& batch) {
  if (batch.seeds.size() != batch.blocks.size()) {
    return invalid(format_text("{} blocks have {} seeds", batch.blocks.size(), batch.seeds.size()));
  }
  if (batch.pieces.size() >= PatternFindings::kMaxPieces) {
    return invalid(format_text("a pattern of {} pieces is too large", batch.pieces.size()));
  }
  if (batch.findings != nullptr && batch.findings->num_blocks() != batch.blocks.size()) {
    return invalid(format_text("findings for {} blocks do not fit a batch of {}",
                               batch.findings->num_blocks(), batch.blocks.size()));
  }
  if (batch.blocks.empty()) return 0;
  const uint64_t highest = std::ranges::max(batch.blocks).value();
  uint64_t block_bytes = 0;
  for (const PatternPiece& piece : batch.pieces) {
    if (piece.bytes == 0) continue;
    if (piece.data == nullptr) return invalid("a piece of a pattern has no memory");
    if (piece.bytes >= PatternFindings::kMaxPieceBytes || !end_is_addressable(piece, highest)) {
      return invalid(
          format_text("a pattern has a piece of {} bytes that is not addressable", piece.bytes));
    }
    block_bytes += piece.bytes;  // below 2^64, as both factors are bounded
  }
  uint64_t bytes = 0;
  if (__builtin_mul_overflow(block_bytes, batch.blocks.size(), &bytes)) {
    return invalid("a pattern has 2^64 bytes and more");
  }
  return bytes;
}

void run_pattern(const PatternBatch& batch) {
  if (batch.findings != nullptr) {
    for (size_t i = 0; i < batch.blocks.size(); ++i) {
      const uint64_t place = first_wrong_place(batch, i);
      batch.findings->add({&place, 1});
    }
    return;
  }
  for (size_t i = 0; i < batch.blocks.size(); ++i) {
    for (const PatternPiece& piece : batch.pieces) {
      fill_pattern(batch.seeds[i] + piece.seed,
                   {piece.data + batch.blocks[i].value() * piece.block_stride, piece.bytes});
    }
  }
}

}  // namespace kvbm
