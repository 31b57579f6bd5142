// SPDX-License-Identifier: Apache-2.0
// Random: a small seeded generator with the same numbers on every platform.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>

namespace kvbm {

/// One step of splitmix64: advances `state`, returns the next number. Spreads any seed.
[[nodiscard]] uint64_t splitmix64(uint64_t& state) noexcept;

/// xoshiro256**, seeded through splitmix64. For tests, traces and policies; not for secrets. It is
/// a UniformRandomBitGenerator, but std::uniform_int_distribution and friends differ between
/// standard libraries: use the members. Source: D. Blackman, S. Vigna, "Scrambled linear
/// pseudorandom number generators", ACM TOMS 47(4), 2021. Threads: one thread at a time.
class Random {
 public:
  using result_type = uint64_t;  // NOLINT(readability-identifier-naming): the standard's name

  explicit Random(uint64_t seed) noexcept;
  /// Starts from a raw state. Contract: not all zero.
  explicit Random(const std::array<uint64_t, 4>& state);

  [[nodiscard]] uint64_t next() noexcept;

  /// Uniform in [0, bound), without bias. Contract: bound > 0.
  [[nodiscard]] uint64_t uniform(uint64_t bound);
  /// Uniform in [low, high], both included. Contract: low <= high.
  [[nodiscard]] uint64_t uniform_between(uint64_t low, uint64_t high);
  /// Uniform in [0, 1), 53 bits.
  [[nodiscard]] double uniform_real() noexcept;
  /// True with probability p: never for p <= 0, always for p >= 1.
  [[nodiscard]] bool chance(double p) noexcept;

  /// Fisher-Yates.
  template <class T>
  void shuffle(std::span<T> items) {
    for (size_t n = items.size(); n > 1; --n) {
      std::swap(items[n - 1], items[static_cast<size_t>(uniform(n))]);
    }
  }

  /// A generator of its own, seeded from this one: one per part of a simulation, so that a change
  /// in one part does not shift the numbers of another.
  [[nodiscard]] Random fork() noexcept { return Random(next()); }

  static constexpr result_type min() noexcept { return 0; }
  static constexpr result_type max() noexcept { return std::numeric_limits<result_type>::max(); }
  result_type operator()() noexcept { return next(); }

 private:
  std::array<uint64_t, 4> state_;
};

}  // namespace kvbm
