// SPDX-License-Identifier: Apache-2.0
// FrequencySketch: about how often keys were seen lately, in little memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvbm::internal {

/// Counts of up to 15 a key, which may be too high and are never too low, until they are halved:
/// after ten times `num_keys` sights. Keys are told apart by their 64-bit hashes.
/// Memory: 4 to 8 bytes a key. Threads: one thread at a time.
/// Source: the admission sketch of TinyLFU (Einziger, Friedman, Manes 2017).
class FrequencySketch {
 public:
  explicit FrequencySketch(uint64_t num_keys);

  void see(uint64_t hash);
  [[nodiscard]] uint32_t frequency(uint64_t hash) const noexcept;

 private:
  static constexpr size_t kRows = 4;
  /// Where the counters of a key are: sixteen of 4 bits a word.
  struct Cells {
    std::array<size_t, kRows> words;
    std::array<uint32_t, kRows> shifts;
  };
  [[nodiscard]] Cells cells_of(uint64_t hash) const noexcept;
  [[nodiscard]] uint32_t least(const Cells& cells) const noexcept;
  void halve() noexcept;

  std::vector<uint64_t> words_;
  uint64_t mask_;  // of a counter's number
  uint64_t most_sights_;
  uint64_t num_sights_ = 0;
};

}  // namespace kvbm::internal
