// SPDX-License-Identifier: Apache-2.0
// A message has as many places as arguments.
#include "kvbm/base/text.hpp"

std::string message(int count) {
#ifdef KVBM_POSITIVE_CONTROL
  return kvbm::format_text("{} blocks", count);
#else
  return kvbm::format_text("{} blocks of {}", count);
#endif
}
