// SPDX-License-Identifier: Apache-2.0
#include "kvbm/replay/content.hpp"

#include <algorithm>
#include <array>
#include <cstring>

#include "kvbm/base/hash.hpp"

namespace kvbm {
namespace {

constexpr size_t kLanes = 4;
constexpr uint64_t kStep = 0x9E3779B97F4A7C15ULL;  // 2^64 / golden ratio, odd

/// Words i, i + 1, ... of a piece. Each word is a bijection of the seed, so pieces with other seeds
/// differ in every word; additions, shifts and xors only, so that the compiler makes vectors of it.
class Words {
 public:
  explicit Words(uint64_t seed) {
    for (size_t lane = 0; lane < kLanes; ++lane) state_[lane] = seed + lane * kStep;
  }

  void next(uint64_t* out) noexcept {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      uint64_t word = state_[lane];
      word ^= word >> 29;
      word += word << 17;
      word ^= word >> 32;
      out[lane] = word;
      state_[lane] += kLanes * kStep;
    }
  }

 private:
  std::array<uint64_t, kLanes> state_;
};

constexpr size_t kChunk = 4096;  // bytes that are made at a time, inside the first level cache
using Chunk = std::array<uint64_t, kChunk / sizeof(uint64_t)>;

void make_chunk(Words& words, Chunk& chunk) noexcept {
  for (size_t i = 0; i < chunk.size(); i += kLanes) words.next(&chunk[i]);
}

uint64_t seed_of(const ContentPiece& piece) {
  struct {
    uint64_t key;
    uint64_t ns;
    uint32_t outer;
    uint16_t rank;
    uint16_t layer;
    uint64_t group;
  } text{xxh3_64(piece.key.identity.bytes, 0),
         piece.key.ns.value(),
         piece.outer,
         piece.rank.value(),
         piece.layer.value(),
         piece.key.group.value()};
  return xxh3_64(std::as_bytes(std::span(&text, 1)), 0);
}

}  // namespace

void fill_content(const ContentPiece& piece, std::span<std::byte> out) {
  Words words(seed_of(piece));
  Chunk chunk;
  while (!out.empty()) {
    make_chunk(words, chunk);
    const size_t bytes = std::min(out.size(), kChunk);
    std::memcpy(out.data(), chunk.data(), bytes);
    out = out.subspan(bytes);
  }
}

std::optional<size_t> first_wrong_byte(const ContentPiece& piece,
                                       std::span<const std::byte> bytes) {
  Words words(seed_of(piece));
  Chunk chunk;
  size_t offset = 0;
  while (offset < bytes.size()) {
    make_chunk(words, chunk);
    const size_t length = std::min(bytes.size() - offset, kChunk);
    if (std::memcmp(bytes.data() + offset, chunk.data(), length) != 0) {
      const auto expected = std::as_bytes(std::span(chunk));
      size_t at = 0;
      while (bytes[offset + at] == expected[at]) ++at;
      return offset + at;
    }
    offset += length;
  }
  return std::nullopt;
}

}  // namespace kvbm
