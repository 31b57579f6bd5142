// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/contract.hpp"

namespace kvbm::internal {

void throw_contract_violation(const char* file, int line, const char* condition,
                              std::string_view message) {
  // From "kvbm/" on: the folder of the build machine tells the reader nothing.
  std::string_view path = file;
  if (const size_t room = path.rfind("kvbm/"); room != std::string_view::npos) {
    path.remove_prefix(room);
  }
  std::string text(message);
  text.append(" [").append(condition).append("] at ").append(path);
  text.append(":").append(std::to_string(line));
  throw ContractViolation(text);
}

}  // namespace kvbm::internal
