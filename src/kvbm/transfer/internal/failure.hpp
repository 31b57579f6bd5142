// SPDX-License-Identifier: Apache-2.0
// How a transfer fails where there may be no memory left: nothing here throws.
#pragma once

#include <exception>
#include <new>
#include <string>
#include <string_view>
#include <utility>

#include "kvbm/base/result.hpp"

namespace kvbm::internal {

/// Fits into a std::string without an allocation.
inline constexpr const char* kOutOfMemory = "out of memory";

/// With the message if there is memory for it.
[[nodiscard]] inline Error failure(ErrorCode code, std::string_view message) noexcept {
  try {
    return Error(code, std::string(message));
  } catch (...) {
    return Error(code, kOutOfMemory);
  }
}

/// Of the exception that is being handled.
[[nodiscard]] inline Error current_failure() noexcept {
  try {
    throw;
  } catch (const std::bad_alloc&) {
    return Error(ErrorCode::kExhausted, kOutOfMemory);
  } catch (const std::exception& exception) {
    return failure(ErrorCode::kInternal, exception.what());
  } catch (...) {
    return failure(ErrorCode::kInternal, "a transfer threw what is no std::exception");
  }
}

/// What `work()` returns, or the exception that it throws.
template <class F>
[[nodiscard]] Status guarded(F&& work) noexcept {
  try {
    return std::forward<F>(work)();
  } catch (...) {
    return make_error(current_failure());
  }
}

}  // namespace kvbm::internal
