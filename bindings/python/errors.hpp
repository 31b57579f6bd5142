// SPDX-License-Identifier: Apache-2.0
// How C++ errors become the exceptions of kvbm.errors.
#pragma once

#include <sys/types.h>

#include <string_view>
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

/// Raises kvbm.UnsupportedError in a forked child: wherever `process`, which made the `what`, is
/// not this one. Requires: the GIL.
void check_process(std::string_view what, pid_t process);

inline void check(const Status& status) {
  if (!status) raise(status.error());
}
template <class T>
[[nodiscard]] T take(Result<T>&& result) {
  if (!result) raise(result.error());
  return *std::move(result);
}

}  // namespace kvbm
