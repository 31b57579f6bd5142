// SPDX-License-Identifier: Apache-2.0
// The check for broken contracts: a caller's mistake, found at entry, before any change.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace kvbm {

/// Thrown when the caller broke a documented precondition (index out of range, guard of another
/// pool). It says that the program is wrong, not that something failed: nothing catches it but
/// thread entry points and bindings. Failures of the world are `Error` values instead.
class ContractViolation : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

namespace internal {
[[noreturn]] void throw_contract_violation(const char* file, int line, const char* condition,
                                           std::string_view message);
}  // namespace internal
}  // namespace kvbm

/// Throws ContractViolation in all builds unless `condition` holds. `message` is evaluated only
/// then.
#define KVBM_CONTRACT(condition, message)                                                    \
  do {                                                                                       \
    if (!(condition)) [[unlikely]] {                                                         \
      ::kvbm::internal::throw_contract_violation(__FILE__, __LINE__, #condition, (message)); \
    }                                                                                        \
  } while (false)
