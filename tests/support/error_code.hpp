// SPDX-License-Identifier: Apache-2.0
// code_of(): the error code of a Result that may have succeeded against expectation.
#pragma once

#include <optional>

#include "kvbm/base/error.hpp"
#include "kvbm/base/result.hpp"

namespace kvbm::testing {

/// None if it succeeded: `EXPECT_EQ(code_of(result), ErrorCode::kIo)` then fails, where error() of
/// a success would read whatever lies there.
template <class T>
[[nodiscard]] std::optional<ErrorCode> code_of(const Result<T>& result) {
  if (result.has_value()) return std::nullopt;
  return result.error().code();
}

}  // namespace kvbm::testing
