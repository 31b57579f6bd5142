// SPDX-License-Identifier: Apache-2.0
#include "kvbm/tiers/internal/frequency_sketch.hpp"

#include <algorithm>
#include <bit>

namespace kvbm::internal {
namespace {

constexpr uint64_t kMost = 15;
/// Counters a key, and sights a key until they are halved.
constexpr uint64_t kCountersPerKey = 8;
constexpr uint64_t kSightsPerKey = 10;
constexpr uint64_t kLeastKeys = 64;

}  // namespace

FrequencySketch::FrequencySketch(uint64_t num_keys) {
  const uint64_t keys = std::max(num_keys, kLeastKeys);
  const uint64_t counters = std::bit_ceil(keys * kCountersPerKey);
  words_.resize(counters / 16);
  mask_ = counters - 1;
  most_sights_ = keys * kSightsPerKey;
}

FrequencySketch::Cells FrequencySketch::cells_of(uint64_t hash) const noexcept {
  // Two hashes make as many as are needed.
  const uint64_t step = std::rotl(hash * 0x9e3779b97f4a7c15ULL, 32) | 1;
  Cells cells{};
  for (size_t row = 0; row < kRows; ++row) {
    const uint64_t counter = hash & mask_;
    cells.words[row] = counter / 16;
    cells.shifts[row] = static_cast<uint32_t>(counter % 16) * 4;
    hash += step;
  }
  return cells;
}

uint32_t FrequencySketch::least(const Cells& cells) const noexcept {
  uint64_t found = kMost;
  for (size_t row = 0; row < kRows; ++row) {
    found = std::min(found, (words_[cells.words[row]] >> cells.shifts[row]) & kMost);
  }
  return static_cast<uint32_t>(found);
}

void FrequencySketch::see(uint64_t hash) {
  const Cells cells = cells_of(hash);
  const uint64_t count = least(cells);
  // Only the lowest grow: what others have added stays as little as it can.
  if (count < kMost) {
    for (size_t row = 0; row < kRows; ++row) {
      uint64_t& word = words_[cells.words[row]];
      if (((word >> cells.shifts[row]) & kMost) == count) word += uint64_t{1} << cells.shifts[row];
    }
  }
  if (++num_sights_ == most_sights_) halve();
}

uint32_t FrequencySketch::frequency(uint64_t hash) const noexcept { return least(cells_of(hash)); }

void FrequencySketch::halve() noexcept {
  for (uint64_t& word : words_) word = (word >> 1) & 0x7777777777777777ULL;
  num_sights_ /= 2;
}

}  // namespace kvbm::internal
