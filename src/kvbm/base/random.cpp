// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/random.hpp"

#include <algorithm>
#include <bit>

#include "kvbm/base/contract.hpp"

namespace kvbm {

uint64_t splitmix64(uint64_t& state) noexcept {
  state += 0x9E37'79B9'7F4A'7C15;
  uint64_t mixed = state;
  mixed = (mixed ^ (mixed >> 30U)) * 0xBF58'476D'1CE4'E5B9;
  mixed = (mixed ^ (mixed >> 27U)) * 0x94D0'49BB'1331'11EB;
  return mixed ^ (mixed >> 31U);
}

Random::Random(uint64_t seed) noexcept : state_{} {
  // Four different outputs of a bijection: never all zero.
  for (uint64_t& word : state_) word = splitmix64(seed);
}

Random::Random(const std::array<uint64_t, 4>& state) : state_(state) {
  KVBM_CONTRACT(std::ranges::any_of(state, [](uint64_t word) { return word != 0; }),
                "the generator would stay at zero");
}

uint64_t Random::next() noexcept {
  const uint64_t result = std::rotl(state_[1] * 5, 7) * 9;
  const uint64_t shifted = state_[1] << 17U;
  state_[2] ^= state_[0];
  state_[3] ^= state_[1];
  state_[1] ^= state_[2];
  state_[0] ^= state_[3];
  state_[2] ^= shifted;
  state_[3] = std::rotl(state_[3], 45);
  return result;
}

uint64_t Random::uniform(uint64_t bound) {
  KVBM_CONTRACT(bound > 0, "there is no number below zero");
  // The lowest 2^64 mod bound numbers would make small results likelier; draw again.
  const uint64_t threshold = (0 - bound) % bound;
  uint64_t drawn = next();
  while (drawn < threshold) drawn = next();
  return drawn % bound;
}

uint64_t Random::uniform_between(uint64_t low, uint64_t high) {
  KVBM_CONTRACT(low <= high, "the range is empty");
  const uint64_t width = high - low + 1;
  return width == 0 ? next() : low + uniform(width);
}

double Random::uniform_real() noexcept { return static_cast<double>(next() >> 11U) * 0x1.0p-53; }

bool Random::chance(double p) noexcept { return uniform_real() < p; }

}  // namespace kvbm
