// SPDX-License-Identifier: Apache-2.0
// test_seed(): where the randomness of property and model tests comes from.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace kvbm::testing {

/// The number in the environment variable KVBM_SEED, or `fallback`. Prints it, so that a failure
/// can be run again.
[[nodiscard]] inline uint64_t test_seed(uint64_t fallback = 1) {
  uint64_t seed = fallback;
  if (const char* text = std::getenv("KVBM_SEED")) {
    size_t used = 0;
    seed = std::stoull(text, &used, 0);
    if (text[used] != '\0') throw std::invalid_argument(std::string("KVBM_SEED=") + text);
  }
  std::printf("KVBM_SEED=%llu\n", static_cast<unsigned long long>(seed));
  return seed;
}

}  // namespace kvbm::testing
