// SPDX-License-Identifier: Apache-2.0
// Result<T>: a value, or the Error that explains why there is none.
#pragma once

#include <string>
#include <utility>

#include <tl/expected.hpp>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/error.hpp"

namespace kvbm {

/// For every failure that the caller could not have prevented. Absence (a cache miss) is a
/// std::optional or an empty range, a broken contract throws ContractViolation.
template <class T>
using Result = tl::expected<T, Error>;

using Status = Result<void>;

/// The error side of any Result: `return make_error(ErrorCode::kNotFound, "no block 7 in G2");`
[[nodiscard]] inline tl::unexpected<Error> make_error(ErrorCode code, std::string message) {
  return tl::unexpected<Error>(Error(code, std::move(message)));
}

[[nodiscard]] inline tl::unexpected<Error> make_error(Error error) {
  return tl::unexpected<Error>(std::move(error));
}

/// The error side of any Result for a failed system call: see Error::from_errno.
[[nodiscard]] inline tl::unexpected<Error> errno_error(std::string message, int error_number) {
  return tl::unexpected<Error>(Error::from_errno(std::move(message), error_number));
}

namespace internal {

/// A copy; without memory for its message, one that has the same codes and a short one.
[[nodiscard]] inline Error copy_of(const Error& error) noexcept {
  try {
    return error;
  } catch (...) {
    return Error(error.code(), "out of memory", error.native_domain(), error.native_code());
  }
}

[[nodiscard]] inline Status copy_of(const Status& status) noexcept {
  if (status) return {};
  return make_error(copy_of(status.error()));
}

}  // namespace internal

}  // namespace kvbm

#define KVBM_INTERNAL_CONCAT2(a, b) a##b
#define KVBM_INTERNAL_CONCAT(a, b) KVBM_INTERNAL_CONCAT2(a, b)

/// Returns the error of `expr` (a Result) from the enclosing function; goes on if it has a value.
#define KVBM_TRY(...)                                                             \
  do {                                                                            \
    if (auto kvbm_try_result = (__VA_ARGS__); !kvbm_try_result) {                 \
      return ::tl::unexpected<::kvbm::Error>(std::move(kvbm_try_result).error()); \
    }                                                                             \
  } while (false)

/// `KVBM_ASSIGN_OR_RETURN(auto file, open(path));` binds the value or returns the error.
#define KVBM_ASSIGN_OR_RETURN(declaration, ...)                                             \
  KVBM_INTERNAL_ASSIGN_OR_RETURN(KVBM_INTERNAL_CONCAT(kvbm_result_, __LINE__), declaration, \
                                 __VA_ARGS__)

#define KVBM_INTERNAL_ASSIGN_OR_RETURN(result, declaration, ...)                  \
  auto result = (__VA_ARGS__);                                                    \
  if (!result) return ::tl::unexpected<::kvbm::Error>(std::move(result).error()); \
  declaration = *std::move(result)
