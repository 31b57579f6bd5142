// SPDX-License-Identifier: Apache-2.0
// How C++ errors become the exceptions of kvbm.errors.
#pragma once

#include <utility>

#include <nanobind/nanobind.h>

#include "kvbm/base/error.hpp"
#include "kvbm/base/result.hpp"

namespace kvbm {

void bind_errors(nanobind::module_& module);

/// The exception that tells `error`, not raised.
[[nodiscard]] nanobind::object to_exception(const Error& error);
/// Requires: the GIL.
[[noreturn]] void raise(const Error& error);

inline void check(const Status& status) {
  if (!status) raise(status.error());
}
template <class T>
[[nodiscard]] T take(Result<T>&& result) {
  if (!result) raise(result.error());
  return *std::move(result);
}

}  // namespace kvbm
