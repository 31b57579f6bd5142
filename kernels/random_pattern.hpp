// SPDX-License-Identifier: Apache-2.0
// Patterns made up from a seed, in one arena, and the host's twin of them: what kernels are held
// against.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include <kvbm/kernels.h>

#include "src/pattern_plan.hpp"

namespace kvbm::kernels {

/// Addresses are offsets into the arena until place() has put them there.
struct RandomPattern {
  std::vector<kvbm_pattern_piece> pieces;
  std::vector<uint32_t> ids;
  std::vector<uint64_t> seeds;
  uint64_t bytes = 0;  ///< of the arena

  std::vector<kvbm_pattern_piece> place(void* arena) const {
    std::vector<kvbm_pattern_piece> placed = pieces;
    for (auto& piece : placed) {
      piece.data = static_cast<char*>(arena) + reinterpret_cast<uintptr_t>(piece.data);
    }
    return placed;
  }
};

/// Blocks in any order, with gaps; pieces of one length and of several, aligned or not.
inline RandomPattern make_random_pattern(uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto pick = [&random](uint64_t low, uint64_t high) {
    return std::uniform_int_distribution<uint64_t>(low, high)(random);
  };
  const uint64_t unit = seed % 2 == 0 ? 16 : 1;
  RandomPattern pattern;
  uint64_t block_bytes = unit * pick(0, 3);
  for (uint64_t pieces = pick(1, 6); pieces > 0; --pieces) {
    kvbm_pattern_piece piece = {};
    piece.data = reinterpret_cast<void*>(block_bytes);
    const bool alike = !pattern.pieces.empty() && pick(0, 2) > 0;
    piece.bytes =
        alike ? pattern.pieces.back().bytes : unit * pick(0, pick(0, 2) == 0 ? 20'000 / unit : 40);
    piece.seed = random();
    block_bytes += piece.bytes + unit * pick(0, 3);
    pattern.pieces.push_back(piece);
  }
  block_bytes += unit;
  for (auto& piece : pattern.pieces) piece.block_stride = block_bytes;
  const auto num_blocks = static_cast<uint32_t>(pick(1, 8));
  pattern.ids.resize(num_blocks + pick(0, 3));
  std::iota(pattern.ids.begin(), pattern.ids.end(), 0U);
  pattern.bytes = (pattern.ids.size() + 1) * block_bytes;
  std::shuffle(pattern.ids.begin(), pattern.ids.end(), random);
  pattern.ids.resize(num_blocks);
  for (uint32_t i = 0; i < num_blocks; ++i) pattern.seeds.push_back(random());
  return pattern;
}

/// What kvbm_kernels_launch_pattern is to do, by the host's twin, piece by piece.
inline void fill_on_host(const RandomPattern& pattern, std::vector<char>& arena,
                         uint64_t* first_wrong) {
  const auto pieces = pattern.place(arena.data());
  for (size_t b = 0; b < pattern.ids.size(); ++b) {
    if (first_wrong != nullptr) first_wrong[b] = UINT64_MAX;
    for (size_t p = 0; p < pieces.size(); ++p) {
      uint64_t found = UINT64_MAX;
      kvbm_kernels_pattern_on_host(&pieces[p], pattern.ids[b], pattern.seeds[b],
                                   first_wrong != nullptr ? &found : nullptr);
      if (found == UINT64_MAX) continue;
      first_wrong[b] = std::min(first_wrong[b], pattern_place(p, found));
    }
  }
}

/// Changes a few bytes, in a piece or between two.
inline void spoil(std::vector<char>& bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  for (int i = 0; i < 4; ++i) bytes[random() % bytes.size()] ^= 0x20;
}

}  // namespace kvbm::kernels
