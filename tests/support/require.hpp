// SPDX-License-Identifier: Apache-2.0
// KVBM_SKIP: a test that cannot run here says so, or fails where it has to run.
#pragma once

#include <cstdlib>
#include <string_view>

#include <gtest/gtest.h>

namespace kvbm::testing {

/// Whether KVBM_REQUIRE, a list such as "gpu,server", names `what`.
[[nodiscard]] inline bool is_required(std::string_view what) {
  const char* const text = std::getenv("KVBM_REQUIRE");
  std::string_view rest = text != nullptr ? text : "";
  while (!rest.empty()) {
    const size_t comma = rest.find(',');
    if (rest.substr(0, comma) == what) return true;
    rest = comma == std::string_view::npos ? "" : rest.substr(comma + 1);
  }
  return false;
}

}  // namespace kvbm::testing

/// Ends the test as skipped, with the reason; as failed if KVBM_REQUIRE names `what`.
#define KVBM_SKIP(what, reason)                                                 \
  do {                                                                          \
    if (::kvbm::testing::is_required(what)) {                                   \
      GTEST_FAIL() << "KVBM_REQUIRE names " << (what) << ", but: " << (reason); \
    }                                                                           \
    GTEST_SKIP() << (reason);                                                   \
  } while (false)
